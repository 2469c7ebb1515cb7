"""Run a plan to its end: read the files, compute what is missing shard by shard, account for every clip."""

import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.events import Event, EventFile, Follower, Listener, Pace, both
from pipeline.manifest import Manifest, manifest_path, read_manifest
from pipeline.media import Media, index_folder, media_path, read_media, scan, write_media
from pipeline.plan import Counts, Plan, contents, make_plan
from pipeline.presets import Recipe
from pipeline.run.board import Board
from pipeline.run.crew import Running, WorkerSpec, add_up, make_crew, run_jobs
from pipeline.run.worker import ShardResult, heal_length
from pipeline.store.layout import build_path, check_cache, events_path, load_build
from pipeline.store.writer import open_stage, write_build

SERIAL = Running()


@dataclass(frozen=True)
class BuildResult:
    """What a build did: `before` is the plan it started from, `computed` the clips it wrote per stage.

    `seconds` are those of `Engine.seconds`: the stages, "decode" and "compile".
    """

    before: Plan
    clips: Counts
    computed: Mapping[str, int]
    seconds: Mapping[str, float]


def read_files(cache: Path, manifest: Manifest, listen: Listener) -> dict[str, Media]:
    """Hash and probe every file of a dataset; files whose size and time did not change are not read again."""
    path = media_path(cache, manifest.dataset)
    known = read_media(path) if path.exists() else {}
    if not manifest.root.is_dir():
        raise UserError(
            f"{manifest.root} is not there (root of dataset '{manifest.dataset}'); mount it, or import again "
            f"with `bmoe-cache dataset import {manifest.dataset} --root DIR`"
        )
    videos = set(manifest.column("video_path")) - {None, ""}
    formats = zip(manifest.column("skeleton_path"), manifest.column("skeleton_format"), strict=True)
    skeletons = {path: form for path, form in formats if path}

    def progress(done: int, total: int) -> None:
        listen(Event("step", "reading files", done, total))

    media = scan(
        manifest.root,
        sorted(videos),
        known,
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
    if not any(manifest.column(f"{source}_path")):
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
    running: Running = SERIAL,
) -> BuildResult:
    """Compute the given stages of a dataset (None: all of the preset), together with other builds of this cache.

    Clips that cannot be used are quarantined and the build goes on. Jobs that others work on are waited for, and
    taken over when their builds die. Raises UserError when the stages need part labels that no segment run has
    made.
    """
    before, manifest, media = plan_dataset(cache, dataset, recipe, stages, listen)
    stages = [stage.stage for stage in before.stages]
    _check_labels(before, cache, recipe)
    _record(cache, dataset, recipe, {})
    computed, rows = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0)
    seconds: dict[str, float] = {}
    board = Board(cache, recipe, stages, manifest, media)
    if not board.done:
        frames = 0
        for result in _results(board, recipe, running, listen):
            add_up(computed, result.clips)
            add_up(rows, result.rows)
            add_up(seconds, result.seconds)
            frames += result.frames
        made = {name: (clips, rows[name]) for name, clips in computed.items()}
        made["decode"] = (max(computed.values()), frames)
        rates = {
            name: {"clips": clips, "rows": count, "seconds": round(seconds[name], 6)}
            for name, (clips, count) in made.items()
            if count
        }
        _record(cache, dataset, recipe, rates)
    for name, spec in recipe.spec.stages().items():
        if name in stages and (stage := open_stage(cache, name, spec.key)) is not None:
            heal_length(stage)
    return BuildResult(before, board.plan.clips, computed, seconds)


def _results(board: Board, recipe: Recipe, running: Running, listen: Listener) -> Iterator[ShardResult]:
    """Run the jobs of a board, and tell of it: to the listener and to the file of events."""
    pending = {stage.stage: stage.pending for stage in board.plan.stages if stage.pending}
    # Those of jobs too: one may have nothing left to compute, and has to be ended.
    begun = {shard.stage for job in board.plan.jobs for shard in job.shards}
    stages = tuple(stage.stage for stage in board.plan.stages if stage.stage in pending.keys() | begun)
    path = events_path(board.cache, board.manifest.dataset)
    with EventFile(path) as file, Follower(path) as others:
        tell = both(listen, file)
        pace = Pace(tell, _to_do(board.plan), pending)

        def tick() -> None:
            for event in others:
                if event.who != file.who and event.kind != "step":
                    (pace if event.kind == "work" else listen)(event)

        spec = WorkerSpec(
            board.cache.absolute(), board.manifest.dataset, recipe, stages, running.decoders, running.memory,
            path.absolute(),
        )  # fmt: skip
        with make_crew(spec, running, pace) as crew:
            yield from run_jobs(board, crew, tell, tick)


def _to_do(plan: Plan) -> int:
    """Clips to pass through the stages: those of unfinished jobs and of new groups."""
    return sum(len(job.clips) for job in plan.jobs) + sum(len(group.clips) for group in plan.groups)


def _check_labels(plan: Plan, cache: Path, recipe: Recipe) -> None:
    planned = {stage.stage for stage in plan.stages}
    if "segment" in planned or not planned & {"regions", "semantic"}:
        return
    held = contents(open_stage(cache, "segment", recipe.spec.segment.key)).done
    need = ("regions", "semantic")
    wanted = [group.missing[stage] for group in plan.groups for stage in need if stage in group.missing]
    wanted += [frozenset(shard.clips) for job in plan.jobs for shard in job.shards if shard.stage in need]
    lacking = frozenset[str]().union(*wanted) - held
    if lacking:
        raise UserError(
            f"{len(lacking)} clips of '{plan.dataset}' have no part labels; run `bmoe-cache segment` with the same "
            "options first, or `bmoe-cache build` for all stages"
        )


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
        "shards": len(plan.jobs) + len(plan.groups),
        "unfinished_jobs": len(plan.jobs),
    }
