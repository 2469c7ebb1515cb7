"""Compare what a preset wants with what a cache holds: what is fresh, what is missing, why, and in which shards.

A plan is data: the runner executes it, the command line prints it. Neither torch nor zarr is imported.
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.collecting import uncollected
from pipeline.manifest import Clip, Manifest
from pipeline.media import Media, clip_keys
from pipeline.spec import (
    MotionSpec,
    PipelineSpec,
    SegmentSpec,
    SemanticSpec,
    SkeletonSpec,
    StageSpec,
    canonical_json,
)
from pipeline.store.jobs import Job, is_committed, load_jobs
from pipeline.store.layout import build_path, committed_keys, load_build
from pipeline.store.wip import read_clips
from pipeline.store.writer import Stage, open_stage

# Used for a clip whose header does not say how long it is; only the size of the shards depends on it.
UNKNOWN_FRAMES = 300


class ClipTask(NamedTuple):  # made in a third of the time of a frozen dataclass
    """One clip to compute: its content address, where it lies, and how many frames its header promises.

    `points` are the persons x joints of a skeleton file.
    """

    key: str
    clip: Clip
    frames: int
    points: int = 1


@dataclass(frozen=True)
class StagePlan:
    """What one stage has and lacks. `state` is fresh, partial, stale or missing; `why` is one line."""

    stage: str
    key: str
    state: str
    why: str
    done: int
    quarantined: int
    pending: int
    rows: int  # rows to be written
    unfinished: int  # of the pending clips, those whose rows lie in the log of an unfinished shard


@dataclass(frozen=True)
class Group:
    """Clips decoded together; every stage in `missing` writes one shard of those clips it lacks.

    Batches are packed across clips, but not across the end of a block: `ends` has the last clip of each.
    """

    clips: tuple[ClipTask, ...]
    missing: Mapping[str, frozenset[str]]  # stage -> clip keys
    ends: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Counts:
    """manifest = done + quarantined + pending, in rows of the manifest."""

    manifest: int
    done: int
    quarantined: int
    pending: int


@dataclass(frozen=True)
class Plan:
    dataset: str
    preset: str
    clips: Counts
    stages: tuple[StagePlan, ...]
    jobs: tuple[Job, ...]  # begun by this build or another, and not finished
    groups: tuple[Group, ...]  # of the clips that no job has


@dataclass(frozen=True)
class StageContents:
    """Clip keys a stage has written, and those it lacks for good, each with the stage that failed ("decode" too)."""

    done: frozenset[str]
    refused: Mapping[str, str]


def rows_of(spec: StageSpec, frames: int, points: int = 1) -> int:
    """Rows a clip of so many frames takes in a stage; of skeletons, at most."""
    if isinstance(spec, SkeletonSpec):
        return frames * points
    if isinstance(spec, SemanticSpec):
        return spec.window_count(frames)
    if isinstance(spec, MotionSpec):
        return 1
    stride = spec.stride if isinstance(spec, SegmentSpec) else 1
    return -(-max(frames, 1) // stride)


def stage_rows(spec: PipelineSpec, stage: str, frames: int, points: int = 1) -> int:
    """rows_of, where the regions stage has a row for every segmented frame."""
    return rows_of(getattr(spec, "segment" if stage == "regions" else stage), frames, points)


def contents(stage: Stage | None) -> StageContents:
    """What a stage holds; nothing when it was never made."""
    if stage is None:
        return StageContents(frozenset(), {})
    done = committed_keys(stage.folder)
    entries = stage.quarantine()
    return StageContents(
        done, {entry.clip_key: entry.stage for entry in entries if entry.clip_key not in done}
    )


def with_source(manifest: Manifest, source: str) -> Manifest:
    """The clips that have a video, or those that have skeletons: stages of the other kind leave them alone."""
    if all(manifest.column(f"{source}_path")):
        return manifest
    return replace(manifest, clips=tuple(clip for clip in manifest.clips if clip.path(source)))


def clip_tasks(manifest: Manifest, media: Mapping[str, Media], source: str = "video") -> dict[str, ClipTask]:
    """Clip id -> task, for the clips whose file was read and can be used; in canonical order."""
    keys = clip_keys(manifest, media, source)
    return {
        clip.clip_id: _task(key, clip, media, source)
        for key, clip in zip(keys, manifest.clips, strict=True)
        if key is not None
    }


def _task(key: str, clip: Clip, media: Mapping[str, Media], source: str) -> ClipTask:
    file = media[clip.path(source) or ""]
    whole = file.n_frames or UNKNOWN_FRAMES
    end = whole if clip.end_frame is None else min(clip.end_frame, whole)
    return ClipTask(key, clip, max(end - (clip.start_frame or 0), 1), file.points or 1)


def all_of(holds: Mapping[str, StageContents]) -> StageContents:
    """The clips that every stage has written, and those that any has given up."""
    if not holds:
        return StageContents(frozenset(), {})
    done = frozenset[str].intersection(*(held.done for held in holds.values()))
    return StageContents(done, {key: by for held in holds.values() for key, by in held.refused.items()})


def count_clips(
    manifest: Manifest,
    media: Mapping[str, Media],
    keys: Sequence[str | None],
    held: StageContents,
    source: str = "video",
) -> Counts:
    """Account for every row of the manifest; keys as of `clip_keys`, held as of `all_of` the stages that matter."""
    done, quarantined = _count(held.done, keys), _count(held.refused.keys() - held.done, keys)
    if None in keys:
        for key, path in zip(keys, manifest.column(f"{source}_path"), strict=True):
            if key is None:
                file = media.get(path)
                quarantined += file is not None and file.code is not None
    total = len(keys)
    return Counts(total, done, quarantined, total - done - quarantined)


def _count(chosen: Set[str], keys: Iterable[str | None]) -> int:
    """How many of the keys are among the chosen; clips of equal content share a key, and each counts."""
    return sum(map(chosen.__contains__, keys)) if chosen else 0


@uncollected()
def make_plan(
    cache: Path,
    manifest: Manifest,
    media: Mapping[str, Media],
    spec: PipelineSpec,
    stages: Sequence[str],
    shard_clips: int,
) -> Plan:
    """Plan the given stages of a preset for the clips of a dataset that have what they read.

    A clip that could not be decoded is tried by no other stage, one that a stage refused by none that reads it.
    Clips with equal content are computed once.
    """
    specs = spec.stages()
    manifest = with_source(manifest, spec.source)
    # Before the receipts: a job that ends meanwhile is seen as a job, or else its receipts are.
    jobs = unfinished(cache, manifest.dataset, {name: specs[name].key for name in stages})
    open_stages = {name: open_stage(cache, name, specs[name].key) for name in specs}
    holds = {name: contents(stage) for name, stage in open_stages.items()}
    keys = clip_keys(manifest, media, spec.source)
    wanted = {name: holds[name] for name in stages}
    of_all = all_of(holds)
    complete = (of_all if len(wanted) == len(holds) else all_of(wanted)).done
    lacking = [(row, key) for row, key in enumerate(keys) if key is not None and key not in complete]
    lacked = frozenset(key for _, key in lacking)
    missing = {}
    for name, held in wanted.items():
        fatal = ("decode", name, *specs[name].upstream)
        refused = (key for other in holds.values() for key, by in other.refused.items() if by in fatal)
        missing[name] = lacked.difference(held.done, refused)
    to_do = frozenset[str]().union(*missing.values())
    many = 8 * len(lacking) > len(keys)  # then all are made at once, which is faster
    clips = manifest.clips[:] if many else manifest.clips
    tasks: dict[str, ClipTask] = {}
    for row, key in lacking:
        if key in to_do and key not in tasks:
            tasks[key] = _task(key, clips[row], media, spec.source)
    groups = _group(spec, _unclaimed(tasks, jobs), missing, open_stages, shard_clips)
    previous = _previous_stages(cache, manifest.dataset)
    whole = len(keys) - keys.count(None) - len(lacking)  # rows that no stage lacks
    plans = []
    for name, held in wanted.items():
        new = missing[name].difference(*(other.done for other in holds.values()))
        state, why = _judge(cache, specs[name], bool(held.done), missing[name], new, previous.get(name))
        rows = sum(stage_rows(spec, name, tasks[key].frames, tasks[key].points) for key in missing[name])
        done = whole + sum(key in held.done for _, key in lacking)
        pending = sum(key in missing[name] for _, key in lacking)
        plans.append(
            StagePlan(
                name, specs[name].key, state, why, done, len(keys) - done - pending, pending, rows,
                _logged(cache, jobs, name, specs[name].key, open_stages[name]),
            )
        )  # fmt: skip
    counts = count_clips(manifest, media, keys, StageContents(complete, of_all.refused), spec.source)
    return Plan(manifest.dataset, spec.preset, counts, tuple(plans), jobs, tuple(groups))


def unfinished(cache: Path, dataset: str, keys: Mapping[str, str]) -> tuple[Job, ...]:
    """The jobs of a dataset that lack a shard of one of these stages (name -> key), by number."""
    return tuple(
        job
        for job in load_jobs(cache)
        if job.dataset == dataset
        and any(keys.get(shard.stage) == shard.key and not is_committed(cache, shard) for shard in job.shards)
    )


def _unclaimed(tasks: Mapping[str, ClipTask], jobs: Sequence[Job]) -> Mapping[str, ClipTask]:
    """The tasks that no job has. Those of a job are left alone in every stage until it is done."""
    claimed = frozenset[str]().union(*(job.clips for job in jobs))
    return {key: task for key, task in tasks.items() if key not in claimed} if claimed else tasks


def _logged(cache: Path, jobs: Sequence[Job], stage: str, key: str, folder: Stage | None) -> int:
    """Clips of a stage whose rows lie in logs."""
    if folder is None:
        return 0
    shards = [
        (job, shard) for job in jobs for shard in job.shards if (shard.stage, shard.key) == (stage, key)
    ]
    return sum(
        bool(entry.n_rows)
        for job, shard in shards
        if not is_committed(cache, shard)
        for entry in read_clips(folder.folder, shard.shard, job.id, folder.arrays, check=False)
    )


def _group(
    spec: PipelineSpec,
    tasks: Mapping[str, ClipTask],
    missing: Mapping[str, frozenset[str]],
    stages: Mapping[str, Stage | None],
    shard_clips: int,
) -> list[Group]:
    """Fill groups in canonical order: at most shard_clips clips, and within the rows of existing stages."""
    groups: list[Group] = []
    current: list[ClipTask] = []
    rows = dict.fromkeys(missing, 0)

    def close() -> None:
        if current:
            keys = {task.key for task in current}
            lacking = {name: frozenset(keys & lacks) for name, lacks in missing.items() if keys & lacks}
            groups.append(Group(tuple(current), lacking))
            current.clear()
            rows.update(dict.fromkeys(rows, 0))

    wanted = frozenset[str]().union(*missing.values())
    for task in (task for key, task in tasks.items() if key in wanted):
        needs = {
            name: stage_rows(spec, name, task.frames, task.points)
            for name, lacks in missing.items()
            if task.key in lacks
        }
        overfull = any(
            stage is not None and rows[name] and rows[name] + needs[name] > stage.shard_rows
            for name in needs
            if (stage := stages[name]) is not None
        )
        if overfull or len(current) >= shard_clips:
            close()
        current.append(task)
        for name, n in needs.items():
            rows[name] += n
    close()
    return groups


def shard_rows(spec: PipelineSpec, stage: str, groups: Sequence[Group]) -> int:
    """Rows of a new stage's shards before they are rounded up to whole chunks: what the fullest group needs."""
    return max(
        sum(
            stage_rows(spec, stage, task.frames, task.points)
            for task in group.clips
            if task.key in group.missing[stage]
        )
        for group in groups
        if stage in group.missing
    )


def _judge(
    cache: Path,
    spec: StageSpec,
    begun: bool,
    missing: frozenset[str],
    new: frozenset[str],
    previous: str | None,
) -> tuple[str, str]:
    """State and reason of a stage that holds some clips or none; `new` are those that no stage of the preset holds."""
    if not missing:
        return "fresh", "nothing to do"
    if begun:
        counts = {"new": len(new), "unfinished": len(missing) - len(new)}
        return "partial", ", ".join(f"{_clips(n)} {word}" for word, n in counts.items() if n)
    if previous is not None and previous != spec.key:
        old = open_stage(cache, spec.stage, previous)
        if old is not None:
            lines = changes(old.facts, spec.facts())
            return "stale", "; ".join(lines[:3] + [f"{len(lines) - 3} more"] * (len(lines) > 3))
    return "missing", "never computed"


def _clips(n: int) -> str:
    return "1 clip" if n == 1 else f"{n} clips"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The declared facts of a stage that differ, one line each, e.g. `region padding 0.10 -> 0.15`."""
    label = str(new["stage"]).removesuffix("s")
    before, after = (_flat(json.loads(canonical_json(facts))) for facts in (old, new))
    lines = []
    for name in sorted(before.keys() | after.keys()):
        pair = before.get(name), after.get(name)
        if pair[0] == pair[1]:
            continue
        if name == "weights":
            lines.append("weights digest changed")
        elif name.startswith("reads."):
            lines.append(f"the {name.removeprefix('reads.')} stage it reads changed")
        else:
            lines.append(f"{label} {name} {' -> '.join(_alike(pair))}")
    return lines


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"config": {"depth": 4}} as {"config.depth": 4}."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _alike(values: tuple[Any, Any]) -> list[str]:
    """Text of two values; fractions with as many decimals as the longer one."""
    texts = [str(value) for value in values]
    if all(isinstance(value, float) and "e" not in text for value, text in zip(values, texts, strict=True)):
        decimals = max(len(text.partition(".")[2]) for text in texts)
        return [f"{value:.{decimals}f}" for value in values]
    return texts


def _previous_stages(cache: Path, dataset: str) -> Mapping[str, str]:
    return load_build(cache, dataset)["stages"] if build_path(cache, dataset).exists() else {}
