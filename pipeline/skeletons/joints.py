"""What every reader gives: the joints of all persons of a file."""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ClipError

MAX_POINTS = 50_000_000  # frames x persons x joints of one file; 800 MB


@dataclass(frozen=True)
class Skeletons:
    """Joints of F frames, P persons and J joints, in the file's own coordinates (metres for Kinect).

    Attributes:
        xyz: float32 [F, P, J, 3], as the file has them; zeros where a person is not in the frame.
        confidence: float32 [F, P, J] in [0, 1]: 1 where the format has none, 0 where a person is not in the frame.
        bodies: the file's names of the P persons, in order of appearance.
    """

    xyz: np.ndarray
    confidence: np.ndarray
    bodies: tuple[str, ...]

    def part(self, start: int, end: int | None, body: str | None) -> "Skeletons":
        """Frames start to end - 1 (None: to the last), of one person or of all that are there in them.

        Raises ClipError: E_END_PAST_EOF (one frame of rounding is forgiven), E_SKEL_PERSON, E_SKEL_EMPTY.
        """
        count = len(self.xyz)
        if start >= count or (end is not None and end > count + 1):
            wanted = f"frames {start} to {'the end' if end is None else end - 1}"
            raise ClipError("E_END_PAST_EOF", f"{count} frames of skeletons, the manifest asks for {wanted}")
        if body is not None and body not in self.bodies:
            there = ", ".join(self.bodies[:5])
            raise ClipError("E_SKEL_PERSON", f"no person {body} in the skeletons, which have {there}")
        xyz, confidence = self.xyz[start:end], self.confidence[start:end]
        seen = (xyz != 0).any((0, 2, 3))
        kept = [i for i, name in enumerate(self.bodies) if seen[i] and body in (None, name)]
        if not kept:
            raise ClipError("E_SKEL_EMPTY", f"nobody is tracked in frames {start} to {start + len(xyz) - 1}")
        names = tuple(self.bodies[i] for i in kept)
        return Skeletons(xyz[:, kept], confidence[:, kept], names)


def room(frames: int, persons: int, joints: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros for xyz and confidence; ClipError when a file claims too much."""
    if frames * persons * joints > MAX_POINTS:
        size = f"{frames} frames x {persons} persons"
        raise ClipError("E_TOO_LARGE", f"{size} of skeletons are more than {MAX_POINTS:,} points")
    return np.zeros((frames, persons, joints, 3), np.float32), np.zeros((frames, persons, joints), np.float32)


def finite(xyz: np.ndarray) -> np.ndarray:
    """xyz as float32; ClipError E_SKEL_VALUE unless every number is finite."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(xyz, np.float32)
    if not np.isfinite(narrow).all():
        raise ClipError("E_SKEL_VALUE", "a coordinate is no finite number; restore the file")
    return narrow
