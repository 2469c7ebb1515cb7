"""The unit of work: one job (clips decoded together, a shard of every stage that lacks them), run to its end.

The contract, for whoever executes jobs:

- `Worker.run_shard(ticket) -> ShardResult`. A ticket is plain data from `Board.take`; a result is plain data. A worker
  is built once per process: it opens the encoders at its first job and keeps them.
- All state is on disk: the job (what becomes of which clips), its lease (who works on it), the logs (finished clips),
  the receipts (finished shards). A result is only a message: lose it, and nothing is lost.
- Any number of workers on any number of machines may run at once, and any of them may be killed or frozen at any
  moment. A kill costs the clips of the block in flight. Who was frozen until the lease ran out gets the result
  "lost" and has written nothing under a final name since.
- A job that was interrupted goes on at the first block that is not whole in every log of its stages. Batches are
  never packed across blocks, so the shards come out byte for byte as if nothing had happened.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ClipError, UserError
from pipeline.events import Event, Listener, silent
from pipeline.plan import ClipTask, Group
from pipeline.presets import Recipe
from pipeline.run.board import Ticket
from pipeline.run.provenance import provenance
from pipeline.sizes import MEMORY, size_text
from pipeline.store import lease
from pipeline.store.jobs import (
    Job,
    JobShard,
    first_missing,
    folder_of,
    is_committed,
    load_job,
    remove_job,
    remove_logs,
)
from pipeline.store.layout import committed_shards
from pipeline.store.records import QuarantineEntry
from pipeline.store.shard import ArraySpec
from pipeline.store.wip import Entry, LogWriter, Origin, read_clips
from pipeline.store.writer import ShardBuilder, Stage, StoredRows, create_stage, encode_rows, grow, open_stage

if TYPE_CHECKING:  # both import torch, and planning must not
    from pipeline.run.engine import Engine
    from pipeline.stages.skeleton import SkeletonEngine
    from pipeline.stages.work import Work

# The file itself cannot be read: this says nothing about its content, and the clip must not be refused for it.
FILE_IS_GONE = ("E_MISSING_FILE", "E_NOT_A_FILE", "E_UNREADABLE")


@dataclass
class ShardResult:
    """What became of a job.

    Attributes:
        state: "done"; "held" (another worker has it, or it is finished); "lost" (another took it over); "again"
            (a log was damaged while it was written: run the job again).
        shards: stage -> number of the shard committed, by this call.
        clips, rows: stage -> what was computed by this call, not taken from a log.
        gone: path of a source file that vanished -> code and reason; its clips stay pending.
        seconds: own time by layer, as `Engine.seconds`.
        frames: decoded.
    """

    job: int
    state: str
    shards: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    gone: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    frames: int = 0


class Worker(AbstractContextManager["Worker"]):
    """Runs jobs one after the other. `tasks` are the clips of the dataset that can be used, by key.

    `on_clip` is called with every clip as it passes, behind the last stage.
    """

    def __init__(
        self,
        cache: Path,
        root: Path,
        tasks: Iterable[ClipTask],
        recipe: Recipe,
        stages: Sequence[str],
        workers: int = 2,
        listen: Listener = silent,
        on_clip: "Callable[[Work], None]" = lambda _: None,
        memory: int = MEMORY,
    ) -> None:
        self.cache, self.root, self.recipe, self.stages = cache, root, recipe, tuple(stages)
        self.tasks = {task.key: task for task in tasks}
        self.workers, self.listen, self.on_clip, self.memory = workers, listen, on_clip, memory
        self._engine: Engine | SkeletonEngine | None = None

    def __exit__(self, *details: object) -> None:
        if self._engine is not None:
            self._engine.__exit__(*details)

    @property
    def engine(self) -> "Engine | SkeletonEngine":
        """The encoders and decoders; opened when first asked for, since torch takes seconds."""
        if self._engine is None:
            self._engine = _open_engine(
                self.cache, self.root, self.recipe, self.stages, self.workers, self.listen, self.memory
            )
        return self._engine

    @property
    def seconds(self) -> Mapping[str, float]:
        """Own time by layer so far, as `Engine.seconds`."""
        return {} if self._engine is None else self._engine.seconds

    @property
    def frames(self) -> int:
        """Frames decoded so far."""
        return 0 if self._engine is None else self._engine.frames

    def run_shard(self, ticket: Ticket) -> ShardResult:
        """Run a job: see the contract above. Raises UserError and OSError, with all that is finished kept."""
        result = ShardResult(ticket.job, "held")
        job = load_job(self.cache, ticket.job)
        if job is None or job.id != ticket.id:  # finished, and its number may be another's by now
            return result
        held = lease.take(folder_of(self.cache), ticket.job, ticket.turn)
        if held is None:
            return result
        try:
            with held:
                job = load_job(self.cache, ticket.job)
                if job is not None and job.id == ticket.id:
                    self._run(job, held, result)
        except lease.LeaseLostError as error:
            result.state = "lost"
            self.listen(Event("note", "building", text=f"{error}: another build goes on with it"))
        return result

    def _run(self, job: Job, held: lease.Lease, result: ShardResult) -> None:
        keys = {name: spec.key for name, spec in self.recipe.spec.stages().items() if name in self.stages}
        mine = [shard for shard in job.shards if keys.get(shard.stage) == shard.key]
        active = [shard for shard in mine if not is_committed(self.cache, shard)]
        stages = self._open_stages(job, active, held)
        start = _first_open_block(job, active, stages)
        if start < len(job.clips):
            self._compute(job, active, stages, start, held, result)
        result.state = "done"
        for shard in active:
            entries = _finished(job, shard, stages[shard.stage])
            if len(entries) < len(shard.clips):
                result.state = "again"
                return
            if commit(stages[shard.stage], shard, entries, held):
                result.shards[shard.stage] = shard.shard
        if all(is_committed(self.cache, shard) for shard in job.shards if shard not in mine):
            held.check()
            remove_job(self.cache, job)
            return
        for shard in mine:
            if is_committed(self.cache, shard):
                remove_logs(self.cache, shard)

    def _open_stages(self, job: Job, active: Sequence[JobShard], held: lease.Lease) -> dict[str, Stage]:
        """The folders to write to, made where they are not there. Raises UserError where memory is too little."""
        arrays = {shard.stage: self.engine.arrays(shard.stage) for shard in active}
        known = {shard.stage: open_stage(self.cache, shard.stage, shard.key) for shard in active}
        rows = {}
        for shard in active:
            stage, multiple = known[shard.stage], max(array.chunk_rows for array in arrays[shard.stage])
            rows[shard.stage] = stage.shard_rows if stage else -(-shard.rows // multiple) * multiple
        try:
            for name, count in rows.items():
                check_memory(name, count, arrays[name], self.memory)
        except UserError:
            if None in known.values():  # another run.shard_clips makes another job
                held.check()
                remove_job(self.cache, job)
            raise
        specs, stages = self.recipe.spec.stages(), {}
        for shard in active:
            name = shard.stage
            origin = provenance() | {"weights_differences": self.engine.differences.get(name, [])}
            facts = specs[name].facts()
            stages[name] = create_stage(self.cache, facts, shard.key, arrays[name], rows[name], origin)
        return stages

    def _compute(
        self,
        job: Job,
        active: Sequence[JobShard],
        stages: Mapping[str, Stage],
        start: int,
        held: lease.Lease,
        result: ShardResult,
    ) -> None:
        """Append every clip from position `start` on to the logs, and flush them at the end of each block.

        A block is flushed while the next one is computed, at most one at a time.
        """
        ends = {job.clips[end - 1] for end in job.ends}
        todo = job.clips[start:]
        with ExitStack() as stack:
            logs = {}
            for shard in active:
                before = sum(key in shard.clips for key in job.clips[:start])
                log = _ShardLog(stages[shard.stage], shard, before, job, held.turn)
                logs[shard.stage] = stack.enter_context(log)
            missing = {
                name: frozenset(log.shard.clips) & frozenset(todo) & self.tasks.keys()
                for name, log in logs.items()
            }
            writer = stack.enter_context(ThreadPoolExecutor(1, "writer"))
            flushed: Future[None] | None = None

            def flush() -> None:
                for log in logs.values():
                    log.writer.flush()

            known = tuple(self.tasks[key] for key in todo if key in self.tasks)
            works = self.engine.stream(Group(known, missing, _last_known(job, start, self.tasks)))
            for key in todo:
                work = next(works) if key in self.tasks else None
                for name, log in logs.items():
                    if key in log.wanted:
                        made = log.add(key, work)
                        result.clips[name] = result.clips.get(name, 0) + bool(made)
                        result.rows[name] = result.rows.get(name, 0) + made
                if work is not None:
                    self._settle(work, logs, result)
                if key in ends:
                    if flushed is not None:
                        flushed.result()
                    flushed = writer.submit(flush)
                    held.check()
            for _ in works:  # ends it: times are added up behind the last clip
                raise AssertionError("the engine gave more clips than the group has")
            if flushed is not None:
                flushed.result()

    def _settle(self, work: "Work", logs: "Mapping[str, _ShardLog]", result: ShardResult) -> None:
        """Note a refused clip, pass the work on, and let go of it."""
        if work.error is not None:
            stage, error = work.error
            clip = work.task.clip
            if error.code in FILE_IS_GONE:
                result.gone[clip.path(self.recipe.spec.source) or ""] = (error.code, error.message)
                self.listen(Event("warning", stage, text=f"{clip.clip_id} stays pending: {error}"))
            else:
                for log in logs.values():
                    if work.task.key in log.wanted and log.refused == work.task.key:
                        entry = QuarantineEntry.of(work.task.key, clip.clip_id, stage, error)
                        log.stage.add_quarantine(entry)
                self.listen(Event("warning", stage, text=f"quarantined {clip.clip_id}: {error}"))
        self.on_clip(work)
        work.release()


class _ShardLog(AbstractContextManager["_ShardLog"]):
    """The log of one shard of a job, from the clip at position `before` on."""

    def __init__(self, stage: Stage, shard: JobShard, before: int, job: Job, turn: int) -> None:
        self.stage, self.shard, self.wanted = stage, shard, frozenset(shard.clips)
        earlier = _finished(job, shard, stage)[:before]
        self.used = sum(entry.n_rows for entry in earlier)
        self.refused: str | None = None  # the last clip that was refused
        try:
            self.writer = LogWriter(stage.folder, turn, Origin(job.id, shard.shard, before))
        except FileExistsError:
            raise lease.LeaseLostError(f"job {job.number}: turn {turn} was another's") from None

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def add(self, key: str, work: "Work | None") -> int:
        """Append the clip's rows, or that it has none; the rows appended.

        A clip has none when it was refused (work.error tells), when its task is gone, or when there is no room
        left: then its file held more frames than its header said, and the next plan gives it another shard.
        """
        name = self.shard.stage
        if work is None:
            self.writer.add(key, "", 0, {}, {})
            return 0
        try:
            if name not in work.written:
                if work.error is None:
                    raise ClipError("E_NOTHING", f"stage {name} made nothing for this clip")
                raise work.error[1]
            arrays, facts = work.written[name]
            rows = encode_rows(self.stage, arrays)
        except ClipError as error:
            if work.error is None:
                work.error = (name, error)
            self.refused = key
            rows = StoredRows(0, {})
        if not rows.n_rows or self.used + rows.n_rows > self.stage.shard_rows:
            self.writer.add(key, work.task.clip.clip_id, 0, {}, {})
            return 0
        self.writer.add(key, work.task.clip.clip_id, rows.n_rows, facts, rows.stored)
        self.used += rows.n_rows
        return rows.n_rows


def commit(stage: Stage, shard: JobShard, entries: Sequence[Entry], held: lease.Lease) -> bool:
    """Make a shard of the clips of its logs; False when none of them has rows."""
    rows = [entry for entry in entries if entry.n_rows]
    if not rows:
        return False
    held.check()
    builder = ShardBuilder(stage, shard.shard)
    for entry in rows:
        builder.add_stored(
            entry.clip_key, entry.clip_id, StoredRows(entry.n_rows, entry.payload()), entry.facts
        )
    builder.commit(held.check)
    return True


def check_memory(stage: str, rows: int, arrays: Iterable[ArraySpec], memory: int) -> None:
    """Raise UserError where a shard of a stage would take more than an 8th of the memory of a worker.

    A clip may fill a shard; then its rows are there as float32, as they are stored, and in the log's frame.
    """
    size = rows * sum(spec.row_bytes for spec in arrays if spec.codec == "raw")
    if 8 * size > memory:
        raise UserError(
            f"--memory {size_text(memory)} is too little: a shard of stage {stage} takes {size_text(size)}; give "
            f"at least {size_text(8 * size)}, or, for a stage that is new, lower run.shard_clips"
        )


def heal_length(stage: Stage) -> None:
    """Let the arrays be as long as their shards: a frozen writer may have put a shorter length over a longer."""
    if committed_shards(stage.folder):
        grow(stage, stage.shards)


def _finished(job: Job, shard: JobShard, stage: Stage) -> list[Entry]:
    """The clips of a shard that its logs have, in order, up to the first that is missing or damaged."""
    entries = read_clips(stage.folder, shard.shard, job.id, stage.arrays)
    return entries[: first_missing(entries, shard.clips)]


def _first_open_block(job: Job, active: Sequence[JobShard], stages: Mapping[str, Stage]) -> int:
    """Where to go on: clips before the first block that some log of the job has not whole."""
    done = len(job.clips)
    for shard in active:
        have = len(_finished(job, shard, stages[shard.stage]))
        if have < len(shard.clips):
            done = min(done, job.clips.index(shard.clips[have]))
    if done == len(job.clips):
        return done
    return max((end for end in (0, *job.ends) if end <= done), default=0)


def _last_known(job: Job, start: int, tasks: Mapping[str, ClipTask]) -> frozenset[str]:
    """The last clip of every block from `start` on that has a task: behind it the batch is closed."""
    ends = []
    begin = start
    for end in job.ends:
        if end > start:
            known = [key for key in job.clips[begin:end] if key in tasks]
            ends += known[-1:]
            begin = end
    return frozenset(ends)


def _open_engine(
    cache: Path,
    root: Path,
    recipe: Recipe,
    needed: Sequence[str],
    workers: int,
    listen: Listener,
    memory: int,
) -> "Engine | SkeletonEngine":
    """Imported only when there is work: torch and the encoders take seconds."""
    if recipe.spec.source == "skeleton":
        from pipeline.stages.skeleton import SkeletonEngine

        return SkeletonEngine(root)
    from pipeline.run.engine import Engine

    return Engine(cache, root, recipe, needed, workers, listen, memory)
