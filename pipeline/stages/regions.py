"""Boxes of the four regions, from the part labels alone: no frames, no encoder."""

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.carry import carry_boxes, carry_maps
from pipeline.regions import Boxes, dress, frame_boxes, region_map, settle
from pipeline.spec import RegionsSpec
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec

CHUNK_ROWS = 256
FRAMES = 64  # whose maps are in memory at a time


def arrays() -> list[ArraySpec]:
    """box as shares of width and height, area as a share of the frame, present 0 or 1; one row per segmented frame."""
    return [
        raw("box", "float32", 4, 4, chunk_rows=CHUNK_ROWS),
        raw("area", "float32", 4, chunk_rows=CHUNK_ROWS),
        raw("present", "uint8", 4, chunk_rows=CHUNK_ROWS),
    ]


def maps(work: Work, spec: RegionsSpec, rows: slice) -> np.ndarray:
    """Region maps uint8 [n, h, w] of some segmented frames of a work that has labels."""
    assert work.labels is not None
    assert work.under is not None
    return region_map(dress(work.labels[rows], work.under[rows], spec.clothing), dict(spec.parts))


def find_regions(works: Iterable[Work], spec: RegionsSpec) -> Iterator[Work]:
    """Add boxes to every work that has labels and no boxes yet."""
    for work in works:
        if work.labels is not None and work.boxes is None and not work.error:
            spans = (slice(low, low + FRAMES) for low in range(0, len(work.labels), FRAMES))
            found = [frame_boxes(maps(work, spec, rows), spec) for rows in spans]
            parts = zip(*((boxes.box, boxes.area, boxes.present) for boxes in found), strict=True)
            work.boxes = settle(Boxes(*map(np.concatenate, parts)), spec)
            written = {"box": work.boxes.box, "area": work.boxes.area, "present": work.boxes.present}
            work.written["regions"] = (written, dict(work.facts))
        yield work


def carried(
    work: Work, spec: RegionsSpec, segment_stride: int, frames: np.ndarray
) -> tuple[Boxes, np.ndarray]:
    """(boxes, region maps uint8 [n, h, w]) of the given frames, rising, of a work that has labels and boxes."""
    assert work.boxes is not None
    boxes = carry_boxes(work.boxes, frames, segment_stride, spec.carry)
    first = min(int(frames[0]) // segment_stride, len(work.boxes.box) - 1)
    around = maps(work, spec, slice(first, int(frames[-1]) // segment_stride + 2))  # with the neighbours
    return boxes, carry_maps(around, frames - first * segment_stride, segment_stride, spec.carry)
