"""The demo from end to end: world -> cache -> heads -> summary. The one place that uses both packages."""

import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from heads.config import load_config, variant_config
from heads.sweep import Job, Sweep, train_all
from pipeline.datasets import import_dataset
from pipeline.demo.truth import compare_regions
from pipeline.demo.world import render_world
from pipeline.events import Event, Listener
from pipeline.manifest import manifest_path, write_manifest
from pipeline.presets import Recipe, load_recipe
from pipeline.report import describe
from pipeline.run.build import build, peak_memory
from pipeline.run.previews import write_previews
from pipeline.store.layout import init_cache
from pipeline.versions import versions

SEEDS = (0, 1, 2)
HEAD = "bmoe_demo"
ROWS = {"bmoe": "full", "semantic_only": "semantic_only", "motion_only": "motion_only"}
PREVIEWS = 6


def render(world: Path, listen: Listener) -> int:
    """Draw the clips of the demo world that are not there yet; returns how many were drawn."""

    def drawn(done: int, total: int) -> None:
        listen(Event("step", "rendering the demo world", done, total))

    return render_world(world, on_progress=drawn)


def run_demo(out: Path, listen: Listener) -> dict[str, Any]:
    """Run or repeat the demo in a folder; finished parts are kept. Writes and returns summary.json."""
    began = time.perf_counter()
    world, cache = out / "world", out / "cache"

    rendered = render(world, listen)
    init_cache(cache)
    manifest = import_dataset("demo", world)
    write_manifest(manifest, manifest_path(cache, "demo"))
    recipe = load_recipe("demo")
    result = build(cache, "demo", recipe, listen=listen)
    computed = sum(result.computed.values())
    listen(Event("note", "cache", text=_cache_text(rendered, computed)))
    report = describe(cache, "demo")
    agreement = _agreement(out, cache, recipe)
    scores, trained = _train_all(out / "runs", cache, listen)
    pictures = _previews(out, cache, [clip.clip_id for clip in manifest.clips if clip.split == "val"])
    summary = {
        "note": "demo numbers are about the software, never about micro-action recognition",
        "clips": report["clips"],
        "stages": report["stages"],
        "segmentation": agreement,
        "heads": scores,
        "recomputed": {
            "rendered_clips": rendered,
            "stage_clips": dict(result.computed),
            "trained_heads": trained,
        },
        "previews": [str(path.relative_to(out)) for path in pictures],
        "seconds": round(time.perf_counter() - began, 1),
        "peak_memory_bytes": peak_memory(),  # of the largest process
        "versions": versions("bmoe-cache", "torch", "numpy", "zarr", "av", "decord")
        | {"python": platform.python_version()},
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _cache_text(rendered: int, computed: int) -> str:
    if rendered or computed:
        return f"rendered {rendered} clips; computed {computed} clip results"
    return "world and cache are fresh: nothing was recomputed"


def _agreement(out: Path, cache: Path, recipe: Recipe) -> dict[str, Any]:
    """Region agreement with the truth, measured again only when segment or regions changed."""
    path = out / "segmentation.json"
    key = recipe.spec.regions.key
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["regions_key"] == key:
            return dict(kept)
    found = {"regions_key": key, **asdict(compare_regions(cache, recipe.spec))}
    path.write_text(json.dumps(found) + "\n")
    return found


def _train_all(runs: Path, cache: Path, listen: Listener) -> tuple[dict[str, dict[str, Any]], int]:
    """Train (or read back) every row of the table for every seed; ({row: {top1, f1_macro}}, runs trained)."""
    trained = 0

    def told(done: int, total: int) -> None:
        nonlocal trained
        trained = total
        listen(Event("step", "training heads", done, total))

    sweep = Sweep(cache, "demo", runs, SEEDS, workers=os.cpu_count() or 1, overwrite=True, progress=told)
    jobs = [Job(row, variant_config(load_config(HEAD), variant), variant) for row, variant in ROWS.items()]
    results = train_all(sweep, jobs)
    table = {
        row: {name: [round(run.scores[name], 4) for run in found] for name in ("top1", "f1_macro")}
        for row, found in results.items()
    }
    return table, trained


def _previews(out: Path, cache: Path, clip_ids: list[str]) -> list[Path]:
    """Pictures of a few clips of different classes."""
    chosen = clip_ids[:: len(clip_ids) // PREVIEWS + 1]  # a step of 21 walks through the 12 classes
    folder = out / "previews"
    made = sorted(folder.glob("*.png"))
    if len(made) == len(chosen):
        return made
    return list(write_previews(cache, "demo", chosen, folder).values())


def summary_text(summary: dict[str, Any], out: Path) -> str:
    """The table a person sees at the end."""
    clips, regions = summary["clips"], summary["segmentation"]
    lines = ["", f"{'stage':<10}{'clips':>7}{'seconds':>9}{'clips/s':>9}{'MB':>8}  key"]
    for name, stage in summary["stages"].items():
        seconds, rate = stage["seconds"] or 0.0, stage["clips_per_s"] or 0.0
        lines.append(
            f"{name:<10}{stage['clips']:>7}{seconds:>9.1f}{rate:>9.1f}{stage['bytes'] / 1e6:>8.1f}  {stage['key'][:16]}"
        )
    lines += ["", f"{'region':<12}{'mIoU':>7}{'box IoU':>9}   (val people, against the true labels)"]
    lines += [f"{name:<12}{pixel:>7.3f}{box:>9.3f}" for name, (pixel, box) in regions["by_region"].items()]
    lines.append(f"{'mean':<12}{regions['region_miou']:>7.3f}{regions['box_iou']:>9.3f}")
    lines += ["", f"{'head':<15}{'top-1':>8}{'macro F1':>10}   (val, mean of {len(SEEDS)} seeds)"]
    lines += [
        f"{name:<15}{mean(row['top1']):>8.3f}{mean(row['f1_macro']):>10.3f}"
        for name, row in summary["heads"].items()
    ]
    made = summary["recomputed"]
    again = not (made["rendered_clips"] or made["trained_heads"] or any(made["stage_clips"].values()))
    lines += [
        "",
        f"{clips['manifest']} clips = {clips['done']} done, {clips['quarantined']} quarantined, "
        f"{clips['pending']} pending; {summary['seconds']:.0f} s, peak {summary['peak_memory_bytes'] / 2**30:.1f} GiB"
        + ("; nothing was recomputed" if again else ""),
        f"pictures: {out / 'previews'}   summary: {out / 'summary.json'}",
        "These numbers are about the software, never about micro-action recognition.",
    ]
    return "\n".join(lines)
