"""Who runs the jobs of a build: this process (serial), processes of this machine, or Dask workers (dask_crew).

A crew is given tickets and gives back results. All of them call the same `Worker.run_shard`, and all state is on
disk, so any member may be killed, and so may the process that holds the crew: what was finished stays, and the job of
the dead is taken over with its next ticket.
"""

import multiprocessing
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import UserError
from pipeline.events import Event, EventFile, Listener
from pipeline.manifest import manifest_path, read_manifest
from pipeline.media import media_path, read_media
from pipeline.plan import clip_tasks
from pipeline.presets import Recipe
from pipeline.run.board import Board, Ticket
from pipeline.run.worker import ShardResult, Worker
from pipeline.sizes import MEMORY, size_text

if TYPE_CHECKING:  # imports torch, and planning must not
    from pipeline.stages.work import Work

POLL_S = 1.0  # seconds between two looks at what other builds do
LEAST_MEMORY = 256 << 20
EXECUTORS = ("serial", "process", "dask")
DEATHS = 3  # members that die before they finish one job, one after the other, until the build gives up


@dataclass(frozen=True)
class Running:
    """How a build runs; nothing here changes a result.

    Attributes:
        executor: "serial", "process" or "dask".
        workers: members of the crew; None: one a GPU, without one 2.
        decoders: decode processes of each.
        memory: bytes of each: docs/running.md says what they cover.
        scheduler: address of a running Dask scheduler.
        slurm: YAML file of the SLURM jobs that are the Dask workers.

    Raises UserError where they do not fit together.
    """

    executor: str = "serial"
    workers: int | None = None
    decoders: int = 2
    memory: int = MEMORY
    scheduler: str | None = None
    slurm: Path | None = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"no executor '{self.executor}'; choose one of {', '.join(EXECUTORS)}")
        if self.executor == "serial" and (self.workers or 1) > 1:
            raise UserError(f"--workers {self.workers} needs --executor process or dask")
        if self.executor != "dask" and (self.scheduler or self.slurm):
            raise UserError("--scheduler and --slurm need --executor dask")
        if self.scheduler and self.slurm:
            raise UserError("give --scheduler or --slurm, not both")
        if self.memory < LEAST_MEMORY:
            raise UserError(f"--memory {size_text(self.memory)} is too little; give at least 256MiB")


@dataclass(frozen=True)
class WorkerSpec:
    """What makes a worker in any process: plain data, a few kB. Clips and media are read from the cache there.

    Attributes:
        stages: those that some clip lacks.
        decoders: decode processes of each worker.
        memory: bytes of each worker, see docs/running.md.
        events: the file it tells what it does.
    """

    cache: Path
    dataset: str
    recipe: Recipe
    stages: tuple[str, ...]
    decoders: int
    memory: int
    events: Path


class Member(AbstractContextManager["Member"]):
    """A worker, and what it tells of its progress. The encoders are opened at its first job and kept."""

    def __init__(self, spec: WorkerSpec, listen: Listener) -> None:
        manifest = read_manifest(manifest_path(spec.cache, spec.dataset))
        media = read_media(media_path(spec.cache, spec.dataset))
        tasks = clip_tasks(manifest, media, spec.recipe.spec.source).values()
        self._listen, self._done = listen, 0
        self._clips = dict.fromkeys(spec.stages, 0)
        self._worker = Worker(
            spec.cache,
            manifest.root,
            tasks,
            spec.recipe,
            spec.stages,
            spec.decoders,
            listen,
            self._passed,
            spec.memory,
        )

    def __exit__(self, *details: object) -> None:
        self._worker.__exit__(*details)

    def run(self, ticket: Ticket) -> ShardResult:
        """`Worker.run_shard`, with the time and the frames it took."""
        seconds, frames = dict(self._worker.seconds), self._worker.frames
        result = self._worker.run_shard(ticket)
        result.seconds = {
            name: spent - seconds.get(name, 0.0) for name, spent in self._worker.seconds.items()
        }
        result.frames = self._worker.frames - frames
        self._tell(self._done)
        return result

    def _passed(self, work: "Work") -> None:
        self._done += 1
        for name in self._clips:
            self._clips[name] += name in work.written
        self._tell(self._done + 1)

    def _tell(self, total: int) -> None:
        """Say how much is done; with a total of as much, at the end of a job, it is sure to be written."""
        spent = self._worker.seconds
        stages = {
            name: {"clips": clips, "seconds": round(spent.get(name, 0.0), 3)}
            for name, clips in self._clips.items()
        }
        self._listen(Event("work", "building", self._done, total, stages=stages))


class Crew(AbstractContextManager["Crew"], Protocol):
    """Runs tickets."""

    @property
    def idle(self) -> int:
        """Members without a job."""
        ...

    def start(self, ticket: Ticket) -> None:
        """Give a ticket to an idle member."""
        ...

    def finished(self, seconds: float) -> list[tuple[int, ShardResult | None]]:
        """Jobs that ended, waiting at most so long for one: their results, or None where the member died."""
        ...


class SerialCrew:
    """This process."""

    def __init__(self, spec: WorkerSpec, listen: Listener) -> None:
        self._spec, self._listen = spec, listen
        self._member: Member | None = None
        self._ended: list[tuple[int, ShardResult | None]] = []

    def __enter__(self) -> "SerialCrew":
        return self

    def __exit__(self, *details: object) -> None:
        if self._member is not None:
            self._member.__exit__(*details)

    @property
    def idle(self) -> int:
        return 1 - len(self._ended)

    def start(self, ticket: Ticket) -> None:
        if self._member is None:
            self._member = Member(self._spec, self._listen)
        self._ended.append((ticket.job, self._member.run(ticket)))

    def finished(self, seconds: float) -> list[tuple[int, ShardResult | None]]:
        ended, self._ended = self._ended, []
        return ended


class ProcessCrew:
    """Processes of this machine, each with the encoders of its own. One that dies is replaced."""

    def __init__(self, spec: WorkerSpec, count: int) -> None:
        self._spec, self._count = spec, count
        self._context = multiprocessing.get_context("spawn")
        self._places = deque(range(count))  # of members to come: who gets which GPU
        self._idle: list[_Process] = []
        self._busy: list[_Process] = []
        self._deaths = 0

    def __enter__(self) -> "ProcessCrew":
        return self

    def __exit__(self, *_: object) -> None:
        for member in (*self._idle, *self._busy):
            member.process.terminate()
        for member in (*self._idle, *self._busy):
            member.process.join()
            member.channel.close()

    @property
    def idle(self) -> int:
        return self._count - len(self._busy)

    def start(self, ticket: Ticket) -> None:
        member = self._idle.pop() if self._idle else self._made()
        member.ticket = ticket
        with suppress(BrokenPipeError):  # it died while it was idle: `finished` tells
            member.channel.send(ticket)
        self._busy.append(member)

    def finished(self, seconds: float) -> list[tuple[int, ShardResult | None]]:
        ready = wait([member.channel for member in self._busy], seconds)
        ended: list[tuple[int, ShardResult | None]] = []
        for member in [member for member in self._busy if member.channel in ready]:
            self._busy.remove(member)
            assert member.ticket is not None
            try:
                result = member.channel.recv()
            except (EOFError, ConnectionError):
                ended.append((member.ticket.job, None))
                self._bury(member)
                continue
            if isinstance(result, Exception):
                raise result
            self._deaths = 0
            self._idle.append(member)
            ended.append((member.ticket.job, result))
        return ended

    def _made(self) -> "_Process":
        place = self._places.popleft()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(self._spec, theirs, place, self._count, os.getpid()),
            name=f"bmoe-cache {place}",
        )
        process.start()
        theirs.close()
        return _Process(process, ours, place)

    def _bury(self, member: "_Process") -> None:
        member.process.join()
        member.channel.close()
        self._places.append(member.place)
        self._deaths += 1
        if self._deaths >= DEATHS * self._count:
            raise UserError(
                f"worker processes die before they finish a job (the last with status {member.process.exitcode}); "
                "lower --memory or --workers, or see `dmesg` for who killed them"
            )


@dataclass
class _Process:
    process: Any
    channel: "Connection[Any, Any]"
    place: int
    ticket: Ticket | None = None


def _serve(spec: WorkerSpec, channel: "Connection[Any, Any]", place: int, count: int, parent: int) -> None:
    """A member's process: tickets in, results out, until the channel closes."""
    from pipeline.decode.worker import die_with_parent

    die_with_parent(parent)
    see_gpu(place)
    try:
        import torch

        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
        with Member(spec, EventFile(spec.events)) as member:
            while True:
                channel.send(member.run(channel.recv()))
    except (EOFError, ConnectionError):
        sys.exit(0)
    except (UserError, OSError) as error:
        channel.send(error)
    except Exception:  # ours: the process that raises it again shows where it came from
        channel.send(RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may hold, one entry a GPU; asked without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def see_gpu(place: int) -> None:
    """Let this process see one GPU, before torch looks."""
    if found := gpus():
        os.environ["CUDA_VISIBLE_DEVICES"] = found[place % len(found)]


def make_crew(spec: WorkerSpec, running: Running, listen: Listener) -> Crew:
    """The crew that was asked for. `listen` hears what the work in this process tells; others write to spec.events."""
    if running.executor == "serial":
        return SerialCrew(spec, listen)
    count = running.workers or len(gpus()) or 2
    if running.executor == "process":
        return ProcessCrew(spec, count)
    from pipeline.run.dask_crew import DaskCrew

    return DaskCrew(spec, count, running.scheduler, running.slurm)


def run_jobs(board: Board, crew: Crew, tell: Listener, tick: Callable[[], None]) -> Iterator[ShardResult]:
    """Hand out jobs until none is left, here or in other builds; gives their results.

    A job whose member died is handed out again, and so is one of a build that died. `tick` is called now and then.
    """
    out: set[int] = set()
    asked = -POLL_S  # when there was last nothing to hand out
    waiting = False
    while True:
        while crew.idle > 0 and time.monotonic() - asked >= POLL_S:
            ticket = board.take(out)
            if ticket is None:
                asked = time.monotonic()
            else:
                out.add(ticket.job)
                crew.start(ticket)
        if not out and board.done:
            return
        if not out:
            if not waiting:
                waiting = True
                text = "the rest is being computed by other builds; waiting for them"
                tell(Event("note", "building", text=text))
            time.sleep(POLL_S)
        for job, result in crew.finished(POLL_S) if out else ():
            out.discard(job)
            asked = -POLL_S
            tick()
            if result is None:
                tell(Event("warning", "building", text="a worker died; the next takes its job over"))
                continue
            for path, (code, reason) in result.gone.items():
                board.file_is_gone(path, code, reason)
            yield result
        tick()


def add_up(total: dict[str, Any], more: Mapping[str, float]) -> None:
    """Add the numbers of one mapping to those of another."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value
