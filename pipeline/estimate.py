"""What a dataset would cost under a preset: rows, TFLOP, GB and hours of every stage, before anything is computed.

Needs neither weights nor videos nor torch. Hours come from the last build in the cache that ran the same encoder,
or from a machine's sustained TFLOP/s; a guess from another encoder's speed would be wrong by factors.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cost import REGION_SECONDS, forwards, row_bytes, row_macs
from pipeline.errors import UserError
from pipeline.manifest import manifest_path, read_manifest
from pipeline.media import media_path, read_media
from pipeline.plan import Plan, clip_tasks, stage_rows
from pipeline.presets import unweighted_spec
from pipeline.spec import PipelineSpec, canonical_json
from pipeline.store.layout import check_cache, load_build
from pipeline.store.writer import open_stage
from pipeline.taxonomy import load_taxonomy

SPEED_FACTS = ("model", "config", "precision", "crop", "views", "tokens")  # what the time of a row depends on


@dataclass(frozen=True)
class Cost:
    """What rows of a stage take. None where it is not known: an encoder without closed form, no rate."""

    stage: str
    rows: int
    tflop: float | None
    gb: float | None
    hours: float | None
    by: str  # where the hours come from, or what would give them


def stage_cost(
    spec: PipelineSpec,
    stage: str,
    rows: int,
    clips: int,
    cache: Path | None = None,
    tflops: float | None = None,
) -> Cost:
    """The cost of `rows` rows of `clips` clips.

    Hours are by the last measured rate in the cache, else at `tflops` sustained TFLOP/s.
    Regions, which need no encoder, go by a rate measured once.
    """
    macs, size = row_macs(spec, stage), row_bytes(spec, stage)
    runs = forwards(spec, stage, rows, clips)
    tflop = None if macs is None else runs * 2 * macs / 1e12
    gb = None if size is None else rows * size / 1e9
    seconds = measured_seconds(cache, spec, stage) if cache else None
    if seconds is not None:
        return Cost(stage, rows, tflop, gb, runs * seconds / 3600, f"measured here, {1 / seconds:.4g} rows/s")
    if tflop is not None and macs and tflops:
        return Cost(stage, rows, tflop, gb, tflop / tflops / 3600, f"at {tflops:g} TFLOP/s")
    if stage == "regions":
        hours = rows * math.prod(spec.segment.label_size) * REGION_SECONDS / 3600
        return Cost(stage, rows, tflop, gb, hours, "about, on one CPU core")
    return Cost(stage, rows, tflop, gb, None, "never measured here" + ("; give --tflops" if macs else ""))


def measured_seconds(cache: Path, spec: PipelineSpec, stage: str) -> float | None:
    """Seconds of one forward in the last build of this cache that ran the stage in the same way, or None."""
    wanted = _speed_facts(spec.stages()[stage].facts())
    for rate in _rates(cache, stage):
        built = open_stage(cache, stage, rate["key"])
        if built is not None and _speed_facts(built.facts) == wanted:
            return float(rate["seconds"]) / forwards(spec, stage, rate["rows"], rate["clips"])
    return None


def _rates(cache: Path, stage: str) -> Iterator[Mapping[str, Any]]:
    """What the builds of this cache measured of a stage (or "decode": the wait for frames), newest first."""
    builds = sorted((cache / "builds").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in builds:
        rate = load_build(cache, path.stem).get("rates", {}).get(stage)
        if rate and rate["seconds"]:
            yield rate


def _speed_facts(facts: Mapping[str, Any]) -> str:
    return canonical_json({name: facts.get(name) for name in SPEED_FACTS})


def clip_lengths(dataset: str, cache: Path | None) -> tuple[Counter[int], str]:
    """Frames of a clip -> how many clips have so many, and where this is from.

    The clip table of the cache and the files as last read; for a dataset not imported (or never read) the counts of
    its taxonomy. Raises UserError when neither knows.
    """
    if cache is not None:
        check_cache(cache)
    known = load_taxonomy(dataset)
    size = known.size if known else None
    path = manifest_path(cache, dataset) if cache else None
    if cache is not None and path is not None and path.exists():
        manifest = read_manifest(path)
        table = media_path(cache, dataset)
        if table.exists():
            tasks = clip_tasks(manifest, read_media(table)).values()
            return Counter(task.frames for task in tasks), str(path)
        if size is None:
            raise UserError(
                f"the files of '{dataset}' were never read, so nobody knows how long they are; run `bmoe-cache plan`"
            )
        return Counter(
            {round(size.frames_per_clip): len(manifest.clips)}
        ), f"{path}, mean length as published"
    if size is None:
        raise UserError(
            f"'{dataset}' is not imported in this cache and no dataset whose size is known; run `bmoe-cache dataset "
            "import`"
        )
    return Counter({round(size.frames_per_clip): size.clips}), f"manifests/datasets/{dataset}.yaml"


def estimate(
    dataset: str,
    preset: str,
    overrides: Sequence[str] = (),
    cache: Path | None = None,
    tflops: float | None = None,
) -> dict[str, Any]:
    """The cost of every stage for all clips of a dataset, as JSON values.

    Returns {"dataset", "preset", "clips", "frames", "source", "stages": [Cost], "total": {tflop, gb, hours}}; a
    total is None where a part of it is. All five views of every window are counted, so absent regions make it
    cheaper; so does what the cache already holds, which `bmoe-cache plan` knows.
    """
    spec = unweighted_spec(preset, overrides)
    if spec.source != "video":
        raise UserError(f"preset '{preset}' runs no encoder: there is nothing to estimate; just build it")
    lengths, source = clip_lengths(dataset, cache)
    frames = sum(frames * clips for frames, clips in lengths.items())
    costs = []
    for rate in _rates(cache, "decode") if cache else ():
        hours = frames * rate["seconds"] / rate["rows"] / 3600
        costs.append(Cost("decode", frames, 0.0, 0.0, hours, "the wait for frames measured here"))
        break
    for stage in spec.stages():
        rows = sum(clips * stage_rows(spec, stage, frames) for frames, clips in lengths.items())
        costs.append(stage_cost(spec, stage, rows, lengths.total(), cache, tflops))
    return {
        "dataset": dataset,
        "preset": preset,
        "clips": lengths.total(),
        "frames": frames,
        "source": source,
        "stages": [asdict(cost) for cost in costs],
        "total": _totals(costs),
    }


def _totals(costs: Sequence[Cost]) -> dict[str, float | None]:
    totals: dict[str, float | None] = {}
    for name in ("tflop", "gb", "hours"):
        known = [value for cost in costs if (value := getattr(cost, name)) is not None]
        totals[name] = sum(known) if len(known) == len(costs) else None
    return totals


def table(record: Mapping[str, Any]) -> str:
    """An estimate as text."""
    total = {"stage": "total", "rows": None, "by": "", **record["total"]}
    lines = [
        f"{record['dataset']}: {record['clips']:,} clips, {record['frames']:,} frames ({record['source']}), preset "
        f"{record['preset']}",
        f"{'stage':<9} {'rows':>12}{'TFLOP':>14}{'GB':>10}{'hours':>10}",
    ]
    for cost in (*record["stages"], total):
        rows = "" if cost["rows"] is None else f"{cost['rows']:,}"
        numbers = f"{shown(cost['tflop']):>14}{shown(cost['gb']):>10}{shown(cost['hours']):>10}"
        lines.append(f"{cost['stage']:<9} {rows:>12}{numbers}  {cost['by']}".rstrip())
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """A quantity of three digits or more; ? where it is not known."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plan_costs(plan: Plan, spec: PipelineSpec, cache: Path) -> dict[str, Any]:
    """What a plan costs, as JSON values: {"stages": [StagePlan and Cost of what lacks], "total": {tflop, gb, hours}}.

    A total is None where a part of it is.
    """
    costs = [stage_cost(spec, stage.stage, stage.rows, stage.pending, cache) for stage in plan.stages]
    return {
        "stages": [asdict(stage) | asdict(cost) for stage, cost in zip(plan.stages, costs, strict=True)],
        "total": _totals(costs),
    }


def plan_text(record: Mapping[str, Any]) -> list[str]:
    """The stages of `plan_costs` as lines: state, what is pending, its cost, and why."""
    lines = [
        f"{stage['stage']:<9} {stage['key'][:16]}  {stage['state']:<8} {stage['pending']:>7} clips "
        f"{stage['rows']:>9} rows {_costs_text(stage)}  {stage['why']}"
        for stage in record["stages"]
    ]
    if any(stage["pending"] for stage in record["stages"]):
        lines.append(f"{'total':<69} {_costs_text(record['total'])}")
    if record["total"]["hours"] is None:
        lines.append("hours come with the first build here; `bmoe-cache estimate --tflops N` guesses them")
    return lines


def _costs_text(costs: Mapping[str, Any]) -> str:
    units = {"tflop": "TFLOP", "gb": "GB", "hours": "h"}
    return " ".join(f"{shown(costs[name]):>8} {unit}" for name, unit in units.items())
