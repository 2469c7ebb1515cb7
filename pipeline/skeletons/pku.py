"""PKU-MMD skeleton text (Kinect v2): a line per frame, 2 bodies x 25 joints x (x, y, z), zeros for nobody."""

from pathlib import Path

import numpy as np

from pipeline.errors import ClipError
from pipeline.skeletons.joints import Skeletons, finite, room

BODIES, JOINTS = 2, 25
NUMBERS = BODIES * JOINTS * 3


def read(path: Path) -> Skeletons:
    """Bodies "0" and "1". Confidence is 1 where a body is in the frame: the format has none."""
    lines = path.read_text("ascii").replace(",", " ").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    if not rows:
        raise ClipError("E_SKEL_TRUNCATED", "the file holds no line")
    for number, row in enumerate(rows):
        if len(row) != NUMBERS:
            code = (
                "E_SKEL_TRUNCATED" if number == len(rows) - 1 and len(row) < NUMBERS else "E_SKEL_JOINTCOUNT"
            )
            raise ClipError(code, f"{len(row)} numbers in frame {number}, want {NUMBERS}; copy it again")
    xyz, confidence = room(len(rows), BODIES, JOINTS)
    xyz[:] = finite(np.array(rows, np.float64).reshape(xyz.shape))
    confidence[:] = np.any(xyz, (2, 3), keepdims=True)[..., 0]
    return Skeletons(xyz, confidence, ("0", "1"))
