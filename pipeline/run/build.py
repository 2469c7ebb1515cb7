"""Run a plan to its end: read the files, compute what is missing shard by shard, account for every clip."""

import os
import platform
import resource
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClipError, UserError
from pipeline.events import Event, Listener
from pipeline.manifest import Manifest, manifest_path, read_manifest
from pipeline.media import Media, index_folder, media_path, read_media, scan, write_media
from pipeline.plan import Counts, Group, Plan, contents, make_plan, shard_rows
from pipeline.presets import Recipe
from pipeline.store.layout import build_path, check_cache, load_build
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder, Stage, create_stage, open_stage, write_build

if TYPE_CHECKING:  # both import torch, and planning must not
    from pipeline.run.engine import Engine
    from pipeline.stages.skeleton import SkeletonEngine
    from pipeline.stages.work import Work


@dataclass(frozen=True)
class BuildResult:
    """What a build did: `before` is the plan it started from, `computed` the clips it wrote per stage.

    `seconds` are those of `Engine.seconds`: the stages, "decode" and "compile".
    """

    before: Plan
    clips: Counts
    computed: Mapping[str, int]
    seconds: Mapping[str, float]


def read_files(cache: Path, manifest: Manifest, listen: Listener, workers: int = 2) -> dict[str, Media]:
    """Hash and probe every file of a dataset; files whose size and time did not change are not read again."""
    path = media_path(cache, manifest.dataset)
    known = read_media(path) if path.exists() else {}
    if not manifest.root.is_dir():
        raise UserError(
            f"{manifest.root} is not there (root of dataset '{manifest.dataset}'); mount it, or import again "
            f"with `bmoe-cache dataset import {manifest.dataset} --root DIR`"
        )
    videos = {clip.video_path for clip in manifest.clips if clip.video_path}
    skeletons = {clip.skeleton_path: clip.skeleton_format for clip in manifest.clips if clip.skeleton_path}

    def progress(done: int, total: int) -> None:
        listen(Event("step", "reading files", done, total))

    media = scan(
        manifest.root,
        sorted(videos),
        known,
        workers=workers,
        on_progress=progress,
        index=index_folder(cache),
        skeletons=dict(sorted(skeletons.items())),
    )
    if media != known:
        write_media(path, media)
    return media


def plan_dataset(
    cache: Path,
    dataset: str,
    recipe: Recipe,
    stages: Sequence[str] | None = None,
    listen: Listener = lambda _: None,
) -> tuple[Plan, Manifest, dict[str, Media]]:
    """Read the files of a dataset and plan the given stages (None: all of the preset).

    Raises UserError when the preset lacks one of them, or no clip has what they read.
    """
    check_cache(cache)
    has = recipe.spec.stages()
    stages = tuple(has) if stages is None else stages
    if other := [stage for stage in stages if stage not in has]:
        raise UserError(f"preset '{recipe.spec.preset}' has no stage {other[0]}; it has {', '.join(has)}")
    manifest = read_manifest(manifest_path(cache, dataset))
    source = recipe.spec.source
    if not any(clip.path(source) for clip in manifest.clips):
        other_way = "with --preset skeleton" if source == "video" else "with a preset of encoders"
        raise UserError(f"'{dataset}' has no clip with a {source}; build it {other_way}")
    media = read_files(cache, manifest, listen)
    plan = make_plan(cache, manifest, media, recipe.spec, stages, recipe.run.shard_clips)
    return plan, manifest, media


def build(
    cache: Path,
    dataset: str,
    recipe: Recipe,
    stages: Sequence[str] | None = None,
    listen: Listener = lambda _: None,
    workers: int = 2,
) -> BuildResult:
    """Compute the given stages of a dataset (None: all of the preset).

    Clips that cannot be used are quarantined and the build goes on. Raises UserError when the stages need part
    labels that no segment run has made.
    """
    plan, manifest, media = plan_dataset(cache, dataset, recipe, stages, listen)
    stages = [stage.stage for stage in plan.stages]
    _check_labels(plan, cache, recipe)
    _record(cache, dataset, recipe, {})
    before, computed, seconds = plan, dict.fromkeys(stages, 0), {}
    if plan.groups:
        needed = {stage for group in plan.groups for stage in group.missing}
        with _engine(cache, manifest.root, recipe, needed, workers, listen) as engine:
            total = sum(len(group.clips) for group in plan.groups)
            done = 0
            rows = dict.fromkeys(stages, 0)
            while plan.groups:
                targets = open_targets(cache, recipe, plan, engine)
                for group in plan.groups:
                    for work in run_group(engine, group, targets, computed, rows):
                        done += 1
                        listen(Event("step", "building", min(done, total), total))
                        for stage, error in [work.error] if work.error else []:
                            listen(
                                Event("warning", stage, text=f"quarantined {work.task.clip.clip_id}: {error}")
                            )
                # Clips that found no room, because a file held more frames than its header said, are planned anew.
                plan = make_plan(cache, manifest, media, recipe.spec, stages, recipe.run.shard_clips)
            seconds = dict(engine.seconds)
        made = {name: (clips, rows[name]) for name, clips in computed.items()}
        made["decode"] = (max(computed.values()), engine.frames)
        rates = {
            name: {"clips": clips, "rows": count, "seconds": round(seconds[name], 6)}
            for name, (clips, count) in made.items()
            if count
        }
        _record(cache, dataset, recipe, rates)
    return BuildResult(before, plan.clips, computed, seconds)


def _engine(
    cache: Path, root: Path, recipe: Recipe, needed: Collection[str], workers: int, listen: Listener
) -> "Engine | SkeletonEngine":
    """Imported only when there is work: torch and the encoders take seconds."""
    if recipe.spec.source == "skeleton":
        from pipeline.stages.skeleton import SkeletonEngine

        return SkeletonEngine(root)
    from pipeline.run.engine import Engine

    return Engine(cache, root, recipe, needed, workers, listen)


def _check_labels(plan: Plan, cache: Path, recipe: Recipe) -> None:
    planned = {stage.stage for stage in plan.stages}
    if "segment" in planned or not planned & {"regions", "semantic"}:
        return
    held = contents(open_stage(cache, "segment", recipe.spec.segment.key)).done
    lacking = {
        task.key
        for group in plan.groups
        for task in group.clips
        if task.key not in held and any(task.key in group.missing.get(s, ()) for s in ("regions", "semantic"))
    }
    if lacking:
        raise UserError(
            f"{len(lacking)} clips of '{plan.dataset}' have no part labels; run `bmoe-cache segment` with the same "
            "options first, or `bmoe-cache build` for all stages"
        )


def open_targets(
    cache: Path, recipe: Recipe, plan: Plan, engine: "Engine | SkeletonEngine"
) -> dict[str, Stage]:
    """Make the folders of the stages to write; a new stage gets shards that hold its fullest group."""
    stages = {}
    specs = recipe.spec.stages()
    for stage in plan.stages:
        if stage.pending:
            arrays = engine.arrays(stage.stage)
            multiple = max(array.chunk_rows for array in arrays)
            rows = shard_rows(recipe.spec, stage.stage, plan.groups, multiple)
            origin = provenance() | {"weights_differences": engine.differences.get(stage.stage, [])}
            stages[stage.stage] = create_stage(
                cache, specs[stage.stage].facts(), stage.key, arrays, rows, origin
            )
    return stages


def run_group(
    engine: "Engine | SkeletonEngine",
    group: Group,
    targets: Mapping[str, Stage],
    computed: dict[str, int],
    rows: dict[str, int],
) -> "Iterator[Work]":
    """Stream one group and commit its shards at the end; yields every work, and adds up clips and rows by stage."""
    builders = {name: ShardBuilder(targets[name], targets[name].next_shard) for name in group.missing}
    filled: dict[str, int] = dict.fromkeys(builders, 0)
    for work in engine.stream(group):
        for stage, builder in builders.items():
            if work.task.key in group.missing[stage]:
                filled[stage] += _keep(work, stage, builder, targets[stage])
        yield work
        work.release()
    for stage, builder in builders.items():
        if filled[stage]:
            rows[stage] += builder.commit().rows
            computed[stage] += filled[stage]


def _keep(work: "Work", stage: str, builder: ShardBuilder, target: Stage) -> int:
    """Add a clip's rows to the shard, or put it into quarantine; 1 when it was added."""
    task = work.task
    try:
        if stage not in work.written:
            if work.error is None:
                raise ClipError("E_NOTHING", f"stage {stage} made nothing for this clip")
            raise work.error[1]
        arrays, facts = work.written[stage]
        rows = len(next(iter(arrays.values())))
        if rows <= target.shard_rows and not builder.room_for(rows):
            return 0  # stays pending; the next plan gives it another shard
        builder.add(task.key, task.clip.clip_id, arrays, facts)
    except ClipError as error:
        if work.error is None:
            work.error = (stage, error)
        target.add_quarantine(QuarantineEntry.of(task.key, task.clip.clip_id, work.error[0], error))
        return 0
    return 1


def _record(cache: Path, dataset: str, recipe: Recipe, measured: Mapping[str, dict[str, Any]]) -> None:
    """Note the keys of this build, and what it measured of each stage it computed; earlier rates stay.

    So do the keys of stages this preset does not have: a dataset may be built from its videos, and from its
    skeletons.
    """
    before = load_build(cache, dataset) if build_path(cache, dataset).exists() else {}
    rates = before.get("rates", {})
    stages = before.get("stages", {}) | {name: spec.key for name, spec in recipe.spec.stages().items()}
    rates |= {name: {**rate, "key": stages.get(name)} for name, rate in measured.items()}
    record = {"preset": recipe.spec.preset, "source": recipe.spec.source, "stages": stages, "rates": rates}
    write_build(cache, dataset, record)


def provenance() -> dict[str, Any]:
    """Where and with what a stage is made; informs people, never part of a key."""
    names = ("bmoe-cache", "torch", "numpy", "av", "opencv-python-headless")
    return {
        "versions": {name: version(name) for name in names},
        "python": platform.python_version(),
        "host": platform.node(),
        "cores": os.cpu_count(),
        "command": " ".join(sys.argv),
    }


def peak_memory() -> int:
    """Largest resident size so far of this process or one it has waited for, in bytes."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) * 1024


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values, without the clips."""
    return {
        "dataset": plan.dataset,
        "preset": plan.preset,
        "clips": asdict(plan.clips),
        "stages": [asdict(stage) for stage in plan.stages],
        "shards": len(plan.groups),
    }
