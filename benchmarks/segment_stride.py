"""What segmenting every n-th frame costs: region IoU and head accuracy on the demo world, against every frame.

    python -m benchmarks.segment_stride [--strides 1 2 3 4 6 8] [--seeds 0 1 2] [--out]

The region IoU counts the pixels of every frame of the val clips, carried ones included, against the true labels; the
accuracy is that of the demo head on the val people, one number per seed. The cost of segmentation needs no measuring: a
stride of n runs the segmenter on one frame in n.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.harness import report
from heads.config import Config, load_config
from heads.features import load_features
from heads.train import train
from pipeline.datasets import import_dataset
from pipeline.demo.world import plan_world, render_world, true_parts
from pipeline.manifest import manifest_path, write_manifest
from pipeline.plan import ClipTask
from pipeline.presets import load_recipe
from pipeline.regions import Boxes, region_map
from pipeline.run.build import build
from pipeline.spec import REGIONS, PipelineSpec
from pipeline.stages.regions import carried
from pipeline.stages.work import Work
from pipeline.store.layout import init_cache
from pipeline.store.reader import Cache

HEAD = "bmoe_demo"


@dataclass(frozen=True)
class Case:
    stride: int
    carry: str


def cases(strides: Sequence[int]) -> list[Case]:
    """Every stride with both ways to carry; with stride 1 there is nothing to carry."""
    return [Case(s, carry) for s in strides for carry in (("nearest",) if s == 1 else ("nearest", "blend"))]


def region_ious(cache_root: Path, spec: PipelineSpec, split: str = "val") -> dict[str, float]:
    """IoU of each region with the truth, over all pixels of all frames of a split of the demo world."""
    cache = Cache(cache_root)
    manifest, keys = cache.dataset("demo"), cache.clip_keys("demo")
    segment, regions = cache.stage("segment", spec.segment.key), cache.stage("regions", spec.regions.key)
    counts = np.zeros((len(REGIONS), 2))
    for clip in manifest.clips:
        truth = true_parts(manifest.root, clip.media_path)
        if clip.split != split or truth is None:
            continue
        key = keys[clip.clip_id]
        boxes = Boxes(*(regions.read(key, name) for name in ("box", "area", "present")))
        labels, under = (segment.read(key, name) for name in ("labels", "under"))
        work = Work(ClipTask(key, clip, len(truth)), labels=labels, under=under, boxes=boxes)
        _, found = carried(work, spec.regions, spec.segment.stride, np.arange(len(truth)))
        right = region_map(truth, dict(spec.regions.parts))
        for index in range(len(REGIONS)):
            a, b = found == index + 1, right == index + 1
            counts[index] += (a & b).sum(), (a | b).sum()
    return {
        region: float(inter / max(union, 1)) for region, (inter, union) in zip(REGIONS, counts, strict=True)
    }


def measure(case: Case, folder: Path, seeds: Sequence[int], config: Config) -> dict[str, Any]:
    """Build the cache of one case, compare its regions with the truth, train a head per seed."""
    cache = folder / "cache"
    changes = [f"segment.stride={case.stride}", f"regions.carry={case.carry}"]
    recipe = load_recipe("demo", overrides=changes)
    result = build(cache, "demo", recipe, None if seeds else ("segment", "regions"))
    if result.clips.done != result.clips.manifest:
        raise SystemExit(f"stride {case.stride}: {result.clips} are not all done: the numbers mean nothing")
    ious = region_ious(cache, recipe.spec)
    found = {
        "stride": case.stride,
        "carry": case.carry,
        "region_iou": {name: round(value, 4) for name, value in ious.items()},
        "region_iou_mean": round(mean(ious.values()), 4),
    }
    if not seeds:
        return found
    features = load_features(cache, "demo", config.t_len, config.t_mode)
    scores = []
    for seed in seeds:
        run = folder / "runs" / f"stride{case.stride}-{case.carry}-seed{seed}"
        shutil.rmtree(run, ignore_errors=True)
        scores.append(train(cache, "demo", config, run, seed, features=features).top1)
    return {**found, "top1": [round(score, 4) for score in scores], "top1_mean": round(mean(scores), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: no heads, IoU alone")
    parser.add_argument("--folder", type=Path, default=Path("build/segment_stride"))
    parser.add_argument(
        "--clips", type=int, help="clips per class in train and in val; default: the whole demo world"
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="option of the demo head"
    )
    parser.add_argument(
        "--out", action="store_true", help="also write benchmarks/results/segment_stride.json"
    )
    options = parser.parse_args()
    config = load_config(HEAD, options.overrides)
    per_class = {"train": options.clips, "val": options.clips} if options.clips else None
    render_world(options.folder / "world", plan_world(per_class=per_class))
    cache = options.folder / "cache"
    init_cache(cache)
    manifest = import_dataset("demo", options.folder / "world")
    write_manifest(manifest, manifest_path(cache, "demo"))
    rows = [measure(case, options.folder, options.seeds, config) for case in cases(options.strides)]
    base = rows[0]
    for row in rows:
        row["iou_to_first"] = round(row["region_iou_mean"] / base["region_iou_mean"], 4)
        if options.seeds:
            row["top1_to_first"] = round(row["top1_mean"] - base["top1_mean"], 4)
    report(
        "segment_stride", {"clips": len(manifest.clips), "seeds": options.seeds, "cases": rows}, options.out
    )


if __name__ == "__main__":
    main()
