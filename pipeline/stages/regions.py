"""Boxes of the four regions, from the part labels alone: no frames, no encoder."""

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.carry import carry_boxes, carry_maps
from pipeline.regions import Boxes, dress, find_boxes, region_map
from pipeline.spec import RegionsSpec
from pipeline.stages.work import Work, raw
from pipeline.store.layout import ArraySpec

CHUNK_ROWS = 256


def arrays() -> list[ArraySpec]:
    """box as shares of width and height, area as a share of the frame, present 0 or 1; one row per segmented frame."""
    return [
        raw("box", "float32", 4, 4, chunk_rows=CHUNK_ROWS),
        raw("area", "float32", 4, chunk_rows=CHUNK_ROWS),
        raw("present", "uint8", 4, chunk_rows=CHUNK_ROWS),
    ]


def maps(work: Work, spec: RegionsSpec) -> np.ndarray:
    """Region maps uint8 [S, h, w] of a work that has labels."""
    assert work.labels is not None
    assert work.under is not None
    return region_map(dress(work.labels, work.under, spec.clothing), dict(spec.parts))


def find_regions(works: Iterable[Work], spec: RegionsSpec) -> Iterator[Work]:
    """Add boxes to every work that has labels and no boxes yet."""
    for work in works:
        if work.labels is not None and work.boxes is None and not work.error:
            work.boxes = find_boxes(maps(work, spec), spec)
            written = {"box": work.boxes.box, "area": work.boxes.area, "present": work.boxes.present}
            work.written["regions"] = (written, dict(work.facts))
        yield work


def carried(
    work: Work, spec: RegionsSpec, segment_stride: int, frames: np.ndarray
) -> tuple[Boxes, np.ndarray]:
    """(boxes, region maps uint8 [n, h, w]) of the given frames of a work that has labels and boxes."""
    assert work.boxes is not None
    boxes = carry_boxes(work.boxes, frames, segment_stride, spec.carry)
    return boxes, carry_maps(maps(work, spec), frames, segment_stride, spec.carry)
