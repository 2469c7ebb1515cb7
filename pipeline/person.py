"""The crop around the person: where a segmenter should look, and how the labels of the crop come back.

A small person suffers when a whole frame is squashed into the segmenter's input. One box per clip, so that the
crop never jumps within a clip; it is found on a few frames of the clip.
"""

import numpy as np

from pipeline.regions import extent

PixelBox = tuple[int, int, int, int]  # x1, y1, x2, y2 of a frame, half-open

LOOKS = 3  # frames, evenly spread, on which the person is searched
PADDING = 0.15  # share of the person's box added on every side: room for arms between the looks
MIN_PERSON = 0.001  # a smaller share of the frame is noise; a person 8 m from an NTU camera takes 0.016


def look_at(frames: int) -> np.ndarray:
    """The frames on which the person of a clip is searched: int64 [n], n = LOOKS or fewer."""
    return np.unique(np.linspace(0, frames - 1, LOOKS).round().astype(np.int64))


def person_box(labels: np.ndarray, frame: tuple[int, int], shape: tuple[int, int]) -> PixelBox | None:
    """The part of the frame that holds the person in all of the looks, or None when nobody was found.

    Args:
        labels: uint8 [n, h, w] part labels of whole frames, 0 the background.
        frame: (height, width) of the frames in pixels.
        shape: (height, width) of the segmenter's input; the box takes its aspect where the frame has room.
    """
    masks = (labels > 0).view(np.uint8)
    found = [extent(mask) for mask in masks if mask.mean() >= MIN_PERSON]
    if not found:
        return None
    boxes = np.array(found, np.float64)
    height, width = frame
    scale = width / labels.shape[2], height / labels.shape[1]
    x1, y1 = boxes[:, :2].min(0) * scale
    x2, y2 = boxes[:, 2:].max(0) * scale
    wide, high = (1 + 2 * PADDING) * (x2 - x1), (1 + 2 * PADDING) * (y2 - y1)
    wide, high = max(wide, high * shape[1] / shape[0]), max(high, wide * shape[0] / shape[1])
    left, right = _placed((x1 + x2) / 2, wide, width)
    top, bottom = _placed((y1 + y2) / 2, high, height)
    return left, top, right, bottom


def _placed(centre: float, size: float, limit: int) -> tuple[int, int]:
    """Half-open pixels of a span, moved into 0..limit and cut to it where it is longer."""
    length = min(int(np.ceil(size)), limit)
    low = int(np.clip(round(centre - length / 2), 0, limit - length))
    return low, low + length


def pasted(labels: np.ndarray, box: PixelBox, frame: tuple[int, int]) -> np.ndarray:
    """Labels uint8 [n, h, w] of a crop as labels [n, h, w] of the whole frame, nearest; background outside."""
    out = np.zeros_like(labels)
    target_rows, rows = _sources(labels.shape[1], frame[0], box[1], box[3])
    target_columns, columns = _sources(labels.shape[2], frame[1], box[0], box[2])
    out[:, target_rows[:, None], target_columns] = labels[:, rows[:, None], columns]
    return out


def _sources(cells: int, pixels: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of the frame's map whose centre lies in low..high, and the cells of the crop's map under them."""
    centres = (np.arange(cells) + 0.5) * pixels / cells
    inside = np.flatnonzero((centres >= low) & (centres < high))
    return inside, ((centres[inside] - low) / (high - low) * cells).astype(np.int64)
