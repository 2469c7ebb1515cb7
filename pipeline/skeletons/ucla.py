"""Northwestern-UCLA skeletons (Kinect v1, 20 joints, one person): a JSON per sequence, or all of them in one .npz."""

import json
import zipfile
from pathlib import Path

import numpy as np

from pipeline.errors import ClipError
from pipeline.skeletons.joints import Skeletons, finite

JOINTS = 20


def read_json(path: Path) -> Skeletons:
    """{"skeletons": [frames][20][3], ...}."""
    try:
        record = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict) or not isinstance(record.get("skeletons"), list):
        raise ClipError("E_SKEL_VALUE", 'no list "skeletons" in it; restore the file')
    return _one_person(np.array(record["skeletons"], np.float64))


def read_npz(path: Path) -> Skeletons:
    """`xyz` float32 [all frames, 20, 3] of all sequences; a clip is an interval of them."""
    (xyz,) = arrays_of(path, "xyz")
    return _one_person(xyz)


def arrays_of(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz file. ClipError E_PICKLE_UNSAFE where one is a pickle, ValueError where one is not there."""
    if not zipfile.is_zipfile(path):
        raise ValueError("not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [np.asarray(arrays[name]) for name in names]
    except (KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"want the arrays {', '.join(names)}: {error}") from None
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ClipError(
            "E_PICKLE_UNSAFE", "it holds a pickle, which can run code and is never opened"
        ) from None


def _one_person(xyz: np.ndarray) -> Skeletons:
    if xyz.ndim != 3 or xyz.shape[1:] != (JOINTS, 3):
        shape = list(xyz.shape)
        raise ClipError("E_SKEL_JOINTCOUNT", f"joints of shape {shape}, want [frames, {JOINTS}, 3]")
    if len(xyz) == 0:
        raise ClipError("E_SKEL_TRUNCATED", "the file holds no frame")
    return Skeletons(finite(xyz)[:, None], np.ones((len(xyz), 1, JOINTS), np.float32), ("0",))
