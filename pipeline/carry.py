"""Regions of the frames between segmented ones: of the nearest segmented frame, or blended from its two neighbours.

Masks are blended by shape: the signed distance to a region's outline is interpolated and cut at zero, so that a
region moves and changes form in between (Raya and Udupa, "Shape-based interpolation of multidimensional objects",
IEEE Transactions on Medical Imaging 9(1), 1990).
"""

from functools import lru_cache

import cv2
import numpy as np

from pipeline.regions import Boxes
from pipeline.spec import REGIONS


def nearest_segmented(frames: np.ndarray, segmented: int, stride: int) -> np.ndarray:
    """For every given frame the position of the nearest segmented frame, the earlier one on a tie: int64 [n]."""
    return np.minimum((frames + (stride - 1) // 2) // stride, segmented - 1)


def carry_boxes(boxes: Boxes, frames: np.ndarray, stride: int, carry: str) -> Boxes:
    """Boxes of the given frames from those of the segmented ones; `carry` is RegionsSpec.carry.

    Blended boxes are interpolated where a region is present on both sides; elsewhere, and for presence itself,
    the nearest segmented frame decides.
    """
    near = nearest_segmented(frames, len(boxes.box), stride)
    nearest = Boxes(boxes.box[near], boxes.area[near], boxes.present[near])
    if carry == "nearest":
        return nearest
    before, after, share = _neighbours(frames, len(boxes.box), stride)
    both = (boxes.present[before] & boxes.present[after]).astype(bool)
    area = _between(boxes.area[before], boxes.area[after], share[:, None])
    box = _between(boxes.box[before], boxes.box[after], share[:, None, None])
    return Boxes(
        np.where(both[..., None], box, nearest.box), np.where(both, area, nearest.area), nearest.present
    )


def carry_maps(maps: np.ndarray, frames: np.ndarray, stride: int, carry: str) -> np.ndarray:
    """Region maps uint8 [n, h, w] of the given frames from those [S, h, w] of the segmented ones.

    A region that is missing on one side is, when blended, as on the nearer side.
    """
    if carry == "nearest":
        return maps[nearest_segmented(frames, len(maps), stride)]

    @lru_cache(2)
    def depths(position: int) -> np.ndarray:
        return np.stack([_depth(maps[position] == index + 1) for index in range(len(REGIONS))])

    out = np.empty((len(frames), *maps.shape[1:]), np.uint8)
    for row, (before, after, share) in enumerate(zip(*_neighbours(frames, len(maps), stride), strict=True)):
        if share == 0:
            out[row] = maps[before]
            continue
        a, b = depths(int(before)), depths(int(after))
        one_sided = np.isinf(a) | np.isinf(b)
        mixed = np.where(one_sided, b if share > 0.5 else a, _between(a, b, share))
        out[row] = np.where(mixed.max(0) > 0, mixed.argmax(0) + 1, 0)
    return out


def _neighbours(frames: np.ndarray, segmented: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(before, after, share): positions of the segmented frames around every given frame, and the way between them.

    Share is float32 [n], 0 at a segmented frame and after the last one.
    """
    before = np.minimum(frames // stride, segmented - 1)
    after = np.minimum(before + 1, segmented - 1)
    share = np.where(after > before, (frames - before * stride) / stride, 0)
    return before, after, share.astype(np.float32)


def _between(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    return (1 - share) * a + share * b


def _depth(mask: np.ndarray) -> np.ndarray:
    """Pixels to the outline, positive inside, float32 [h, w]; minus infinity everywhere for an empty mask."""
    if not mask.any():
        return np.full(mask.shape, -np.inf, np.float32)
    inside = mask.astype(np.uint8)
    within, without = (
        cv2.distanceTransform(side, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for side in (inside, 1 - inside)
    )
    return np.minimum(within, sum(mask.shape)) - without  # a mask that fills the frame has no outline
