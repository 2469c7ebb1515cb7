"""Part labels -> the four regions: which pixels, which box, present or not.

The order of the B-MoE paper (section 3.2): a box from the labels, crop, then keep only the region's own pixels.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.own_yaml import load_own_yaml
from pipeline.spec import REGIONS, RegionsSpec

PARTS_FILE = Path(__file__).resolve().parents[1] / "manifests" / "parts.yaml"

# Pieces below this share of their region are specks of the segmenter: they do not stretch a box.
SPECK = 0.03


@dataclass(frozen=True)
class Parts:
    """One part list: class names, classes of each region, and the classes that are garments."""

    classes: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    clothing: tuple[int, ...]


@dataclass(frozen=True)
class Boxes:
    """Regions of one clip; axis 1 is the region in the order of REGIONS.

    Attributes:
        box: float32 [F, 4, 4], x1, y1, x2, y2 as shares of the width and height; zeros where absent.
        area: float32 [F, 4], the region's pixels as a share of the frame.
        present: uint8 [F, 4].
    """

    box: np.ndarray
    area: np.ndarray
    present: np.ndarray


@cache
def load_parts(name: str = "sapiens28") -> Parts:
    """The part list `name` of parts.yaml. Raises UserError when it is not there."""
    table = load_own_yaml(PARTS_FILE)
    if name not in table:
        raise UserError(f"{PARTS_FILE}: no part list '{name}'; it has {', '.join(sorted(table))}")
    entry = table[name]
    regions = {region: tuple(entry["regions"][region]) for region in REGIONS}
    return Parts(tuple(entry["classes"]), regions, tuple(entry["clothing"]))


def dress(labels: np.ndarray, under: np.ndarray, clothing: str) -> np.ndarray:
    """Apply the clothing rule: labels uint8 [...], under = best class beneath a garment (0 elsewhere)."""
    if clothing == "keep":
        return labels
    return np.where(under > 0, under, labels)


def region_map(labels: np.ndarray, regions: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Labels uint8 [...] -> uint8 [...]: 0 for no region, i + 1 for REGIONS[i]."""
    table = np.zeros(256, np.uint8)
    for index, region in enumerate(REGIONS):
        table[list(regions[region])] = index + 1
    return table[labels]


def extent(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Pixel box (x1, y1, x2, y2), half-open, of the mask without its specks; None when it is empty."""
    import cv2

    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_16U)
    if count < 2:
        return None
    stats = stats[1:]
    area = stats[:, cv2.CC_STAT_AREA]
    stats = stats[area >= min(SPECK * area.sum(), area.max())]  # a region in crumbs keeps its largest piece
    x, y = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = x + stats[:, cv2.CC_STAT_WIDTH], y + stats[:, cv2.CC_STAT_HEIGHT]
    return int(x.min()), int(y.min()), int(right.max()), int(bottom.max())


def find_boxes(regions: np.ndarray, spec: RegionsSpec) -> Boxes:
    """Boxes of one clip from its region maps, uint8 [F, h, w] as region_map gives them."""
    return settle(frame_boxes(regions, spec), spec)


def frame_boxes(regions: np.ndarray, spec: RegionsSpec) -> Boxes:
    """Boxes of some frames of a clip, each by itself; `settle` makes those of the clip of them."""
    frames, height, width = regions.shape
    box = np.zeros((frames, 4, 4), np.float32)
    area = np.zeros((frames, 4), np.float32)
    present = np.zeros((frames, 4), np.uint8)
    scale = np.array([width, height, width, height], np.float32)
    for index in range(4):
        masks = (regions == index + 1).view(np.uint8)
        area[:, index] = masks.mean((1, 2))
        for frame in np.flatnonzero(area[:, index] >= spec.min_area):
            found = extent(masks[frame])
            if found is not None:
                box[frame, index] = np.array(found, np.float32) / scale
                present[frame, index] = 1
    return Boxes(box, area, present)


def settle(boxes: Boxes, spec: RegionsSpec) -> Boxes:
    """Union, smoothing and padding of the boxes of all frames of a clip."""
    box = boxes.box.copy()
    for index in range(4):
        there = boxes.present[:, index].astype(bool)
        if there.any():
            box[there, index] = _settle(box[there, index], spec)
    return Boxes(box, boxes.area, boxes.present)


def _settle(box: np.ndarray, spec: RegionsSpec) -> np.ndarray:
    """Union or smoothing over the frames where a region is present, then padding; box [n, 4]."""
    if spec.box == "clip":
        union = np.concatenate([box[:, :2].min(0), box[:, 2:].max(0)])
        box = np.broadcast_to(union, box.shape)
    elif spec.smoothing > 1:
        half = spec.smoothing // 2
        padded = np.pad(box, ((half, spec.smoothing - 1 - half), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, spec.smoothing, axis=0)
        box = windows.mean(-1)
    pad = spec.padding * (box[:, 2:] - box[:, :2])
    return np.clip(np.concatenate([box[:, :2] - pad, box[:, 2:] + pad], 1), 0, 1)
