"""NTU RGB+D .skeleton files (Kinect v2), after read_skeleton_file.m of the dataset's repository.

frames, then for every frame: bodies, then for every body
    bodyID and 9 numbers of its state
    25
    25 lines: x y z, depth x y, colour x y, orientation w x y z, tracking state
"""

from pathlib import Path

import numpy as np

from pipeline.errors import ClipError
from pipeline.skeletons.joints import Skeletons, finite, room

JOINTS = 25
BODY = 10  # numbers of a body's first line
JOINT = 12
KEPT = (0, 1, 2, 11)  # x, y, z, tracking state; orientations may be text such as -1.#IND


def read(path: Path) -> Skeletons:
    """All bodies by their id, a 64-bit number that floats cannot hold; 0, 1 or many in a frame.

    Tracking state 0 (not tracked), 1 (inferred), 2 (tracked) becomes confidence 0, 0.5, 1.
    """
    words = path.read_text("ascii").split()
    if not words:
        raise ClipError("E_SKEL_TRUNCATED", "the file holds no number")
    frames = int(words[0])
    at = 1
    found: list[tuple[int, str]] = []  # (frame, body) in file order
    numbers: list[str] = []
    for frame in range(frames):
        bodies, at = _count(words, at, frame, frames), at + 1
        for _ in range(bodies):
            joints = _count(words, at + BODY, frame, frames)
            if joints != JOINTS:
                raise ClipError("E_SKEL_JOINTCOUNT", f"{joints} joints in frame {frame}, want {JOINTS}")
            found.append((frame, words[at]))
            at += BODY + 1
            if at + JOINTS * JOINT > len(words):
                raise _truncated(frame, frames)
            for column in KEPT:
                numbers += words[at + column : at + JOINTS * JOINT : JOINT]
            at += JOINTS * JOINT
    if at != len(words):
        raise ClipError("E_SKEL_VALUE", f"it goes on behind the {frames} frames it states; restore it")
    names = tuple(dict.fromkeys(body for _, body in found))
    xyz, confidence = room(frames, len(names), JOINTS)
    values = np.array(numbers, np.float64).reshape(-1, len(KEPT), JOINTS)
    places = {name: person for person, name in enumerate(names)}
    where = [frame for frame, _ in found], [places[body] for _, body in found]
    xyz[where] = finite(values[:, :3].transpose(0, 2, 1))
    states = values[:, 3]
    if not np.isin(states, (0, 1, 2)).all():
        raise ClipError("E_SKEL_VALUE", "a tracking state is none of 0, 1, 2; restore the file")
    confidence[where] = states / 2
    return Skeletons(xyz, confidence, names)


def _count(words: list[str], at: int, frame: int, frames: int) -> int:
    if at >= len(words):
        raise _truncated(frame, frames)
    count = int(words[at])
    if count < 0:
        raise ClipError("E_SKEL_VALUE", f"a count of {count} in frame {frame}; restore the file")
    return count


def _truncated(frame: int, frames: int) -> ClipError:
    return ClipError("E_SKEL_TRUNCATED", f"it ends in frame {frame} of the {frames} it states; copy it again")
