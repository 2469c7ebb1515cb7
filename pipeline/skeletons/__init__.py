"""Skeleton files: where the joints of every person are, frame by frame. One reader a format, one result.

A reader is a function from a path to Skeletons; to add one, write it and name it in READERS. Files are text or
arrays from outside: sizes are bounded, nothing is unpickled, and what a file lacks is a ClipError with a code.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.decode.probe import check_file
from pipeline.errors import ClipError
from pipeline.skeletons import ntu, pku, ucla
from pipeline.skeletons.joints import Skeletons

__all__ = ["READERS", "Skeletons", "read_skeletons"]

MAX_BYTES = 1 << 30

READERS: dict[str, Callable[[Path], Skeletons]] = {
    "ntu_skeleton": ntu.read,
    "pku_line": pku.read,
    "ucla_json": ucla.read_json,
    "ucla_npz": ucla.read_npz,
}


def read_skeletons(path: Path, form: str | None) -> Skeletons:
    """The whole file; `form` is a clip's skeleton_format.

    Raises ClipError: the file codes of `check_file`, E_TOO_LARGE, E_SKEL_FORMAT (no reader), E_SKEL_TRUNCATED (it ends
    early), E_SKEL_JOINTCOUNT (other joints than the format has), E_SKEL_VALUE (not numbers, or not finite),
    E_PICKLE_UNSAFE (a pickle can run code: none is opened).
    """
    if form == "mmaction_pkl":
        raise ClipError(
            "E_PICKLE_UNSAFE", f"{path}: a pickle can run code and is never opened; convert it to .npz"
        )
    if form not in READERS:
        known = ", ".join(READERS)
        raise ClipError("E_SKEL_FORMAT", f"{path}: no reader for skeleton_format {form}; there are {known}")
    if check_file(path).st_size > MAX_BYTES:
        raise ClipError("E_TOO_LARGE", f"{path} has more than {MAX_BYTES >> 30} GiB; cut it into files")
    try:
        return READERS[form](path)
    except ClipError as error:
        raise ClipError(error.code, f"{path}: {error.message}") from None
    except OSError as error:
        raise ClipError("E_UNREADABLE", f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, OverflowError) as error:  # not the text or numbers it should be
        reason = " ".join(str(error).split())[:100]
        raise ClipError("E_SKEL_VALUE", f"{path}: no {form} file ({reason}); restore it") from None
