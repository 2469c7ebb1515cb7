"""Cropping a clip to its person: one box for all its frames, so that what moves in the crop is the person."""

from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path

from pipeline.errors import ClipError

PADDING = 0.10  # share of the box's own width and height added on every side

KeyBox = tuple[int, float, float, float, float]
Box = tuple[int, int, int, int]


def crop_box(track: Sequence[KeyBox], start: int, end: int | None) -> Box:
    """The box around every place of the person in frames start to end - 1 (None: to the last), padded.

    Args:
        track: key boxes (frame, x1, y1, x2, y2), frames increasing, in pixels of the upright picture. Between
            two of them the box moves in a straight line, before the first and after the last it stands still.

    Returns x1, y1, x2, y2 in whole pixels, half-open, outwards; it may leave the picture (see `clip_box`). A box
    that followed the person would take their motion out of the picture; this one keeps it.
    """
    last = end - 1 if end is not None else max(start, track[-1][0])
    # Each coordinate is linear between key boxes, so its extremes are at key boxes or at the ends.
    boxes = [box_at(track, frame) for frame in (start, last)]
    boxes += [key[1:] for key in track if start <= key[0] <= last]
    x1, y1 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x2, y2 = max(box[2] for box in boxes), max(box[3] for box in boxes)
    dx, dy = PADDING * (x2 - x1), PADDING * (y2 - y1)
    return floor(x1 - dx), floor(y1 - dy), ceil(x2 + dx), ceil(y2 + dy)


def box_at(track: Sequence[KeyBox], frame: int) -> tuple[float, float, float, float]:
    """The person's box x1, y1, x2, y2 in one frame."""
    before = [key for key in track if key[0] <= frame]
    after = [key for key in track if key[0] > frame]
    if not before or not after:
        _, x1, y1, x2, y2 = after[0] if after else before[-1]
        return x1, y1, x2, y2
    (low, *a), (high, *b) = before[-1], after[0]
    share = (frame - low) / (high - low)
    x1, y1, x2, y2 = (p + share * (q - p) for p, q in zip(a, b, strict=True))
    return x1, y1, x2, y2


def clip_box(box: Sequence[int] | None, width: int, height: int, path: Path) -> Box:
    """The part of a box that lies in the picture; all of the picture for None. ClipError when none does."""
    if box is None:
        return 0, 0, width, height
    x1, y1, x2, y2 = max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)
    if x1 >= x2 or y1 >= y2:
        shown = ", ".join(map(str, box))
        raise ClipError(
            "E_BBOX_OUTSIDE",
            f"{path}: the person's box ({shown}) lies outside the picture of {width}x{height}; is the track in "
            "pixels of another resolution?",
        )
    return x1, y1, x2, y2
