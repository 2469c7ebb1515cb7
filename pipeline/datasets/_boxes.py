"""Box tracks written in a cell, and their way from annotation frames to the frames and pixels of the video."""

import json
import math
from collections.abc import Sequence
from typing import Any

from pipeline.clip import KeyBox, shown


def parse_track(text: str, frame: int) -> tuple[KeyBox, ...]:
    """The key boxes in a cell; ValueError with the reason otherwise.

    Accepted, as JSON or (one box) as four numbers between commas or blanks: [x1, y1, x2, y2], a box that holds
    from `frame` on; [[frame, x1, y1, x2, y2], ...]; [{"frame": f, "bbox": [x1, y1, x2, y2]}, ...].
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text.replace(",", " ").split()
    if isinstance(value, list) and len(value) == 4 and not any(isinstance(one, list | dict) for one in value):
        value = [[frame, *value]]
    if not isinstance(value, list) or not value:
        raise ValueError(f"box {shown(text)[:60]!r}, want [x1, y1, x2, y2] or [[frame, x1, y1, x2, y2], ...]")
    return tuple(sorted(_key_box(one, text) for one in value))


def _key_box(value: Any, text: str) -> KeyBox:
    if isinstance(value, dict) and isinstance(value.get("bbox"), list):
        value = [value.get("frame"), *value["bbox"]]
    try:
        frame, x1, y1, x2, y2 = value
        key = int(frame), float(x1), float(y1), float(x2), float(y2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"box {shown(text)[:60]!r}, want frame, x1, y1, x2, y2") from None
    if not 0 <= key[0] < 2**31 or not all(math.isfinite(corner) and abs(corner) < 1e6 for corner in key[1:]):
        raise ValueError(f"box {shown(text)[:60]!r}, want a frame from 0 and pixels")
    return key


def scaled(
    track: Sequence[KeyBox], across: float, down: float, frames: float, start: int, end: int | None
) -> tuple[KeyBox, ...]:
    """Key boxes of a video whose annotation frames were taken at another size and rate.

    Args:
        across, down: pixels of the video per pixel of the annotation frame.
        frames: frames of the video per annotation frame.
        start, end: frames of the clip. Key boxes outside it are dropped, but for the nearest on either side,
            which moves onto its first or last frame where the clip has no key box there itself: it is the same
            box to within one annotation frame.
    """
    moved = [
        (round(frame * frames), x1 * across, y1 * down, x2 * across, y2 * down)
        for frame, x1, y1, x2, y2 in track
    ]
    last = math.inf if end is None else end - 1
    inside = [box for box in moved if start <= box[0] <= last]
    before = [box for box in moved if box[0] < start]
    after = [box for box in moved if box[0] > last]
    near = 2 * frames
    if before and (not inside or inside[0][0] > start) and start - before[-1][0] <= near:
        inside.insert(0, (start, *before[-1][1:]))
    elif not inside and after and end is not None and after[0][0] - last <= near:
        inside.append((end - 1, *after[0][1:]))
    return tuple(inside)
