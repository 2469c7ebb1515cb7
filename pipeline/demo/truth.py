"""How well the demo segmenter and regions agree with the ground truth that the renderer knows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.demo.world import true_parts
from pipeline.regions import dress, find_boxes, region_map
from pipeline.spec import REGIONS, PipelineSpec
from pipeline.store.reader import Cache


@dataclass(frozen=True)
class Agreement:
    """Means over the four regions; `by_region` holds (mIoU, box IoU) of each."""

    clips: int
    region_miou: float
    box_iou: float
    by_region: dict[str, tuple[float, float]]


def box_ious(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes [n, 4] and [n, 4], x1 y1 x2 y2: [n]; 0 where either is empty."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    inter = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1)
    return inter / np.maximum(area - inter, 1e-9)


def compare_regions(cache_root: Path, spec: PipelineSpec, split: str = "val") -> Agreement:
    """Compare the cached regions of a split of the demo world with its true labels.

    A region's mIoU counts its pixels over all segmented frames, at the resolution of the video; its box IoU is
    the mean over the frames where the truth has the region, a missing box counting 0.
    """
    cache = Cache(cache_root)
    manifest = cache.dataset("demo")
    keys = cache.clip_keys("demo")
    segment, regions = cache.stage("segment", spec.segment.key), cache.stage("regions", spec.regions.key)
    overlap = np.zeros((len(REGIONS), 2))
    boxes: list[list[np.ndarray]] = [[] for _ in REGIONS]
    clips = 0
    for clip in manifest.clips:
        key = keys.get(clip.clip_id)
        truth = true_parts(manifest.root, clip.media_path)
        if clip.split != split or truth is None or key not in segment.clips or key not in regions.clips:
            continue
        clips += 1
        true_map = region_map(truth[:: spec.segment.stride], dict(spec.regions.parts))
        labels = dress(segment.read(key, "labels"), segment.read(key, "under"), spec.regions.clothing)
        found_map = _to_size(region_map(labels, dict(spec.regions.parts)), true_map.shape[1:])
        wanted = find_boxes(true_map, spec.regions)
        found = regions.read(key, "box")
        for i in range(len(REGIONS)):
            mine, right = found_map == i + 1, true_map == i + 1
            overlap[i] += (mine & right).sum(), (mine | right).sum()
            there = wanted.present[:, i].astype(bool)
            boxes[i].append(box_ious(found[there, i], wanted.box[there, i]))
    pixel = overlap[:, 0] / np.maximum(overlap[:, 1], 1)
    box = np.array([np.concatenate(values).mean() if values else 0.0 for values in boxes])
    by_region = {name: (float(pixel[i]), float(box[i])) for i, name in enumerate(REGIONS)}
    return Agreement(clips, float(pixel.mean()), float(box.mean()), by_region)


def _to_size(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest-neighbour resize of [F, h, w] to [F, *size]."""
    rows = (np.arange(size[0]) + 0.5) * maps.shape[1] // size[0]
    columns = (np.arange(size[1]) + 0.5) * maps.shape[2] // size[1]
    return maps[:, rows.astype(int)][:, :, columns.astype(int)]
