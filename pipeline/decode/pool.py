"""DecodePool: clips in, frames out, in order. Owns the worker processes and the policy about decoders.

Policy for one clip: decord first. When it refuses, hangs, crashes, gives another number of frames than the
file has packets, or its FFmpeg reports damage, PyAV decides: it keeps the frames before the first damage and
says so (W_DAMAGED). When none are left, or PyAV hangs or crashes as well, the clip is ClipError E_DECODE.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from pipeline.decode.backends import backend_version
from pipeline.decode.probe import Probe, check_file
from pipeline.decode.process import AttemptError, Worker, worker_command
from pipeline.decode.room import Room
from pipeline.decode.spans import SpanFrames, SpanReaders
from pipeline.decode.whole import Whole
from pipeline.errors import ClipError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class DecodeJob:
    """One clip: frames start_frame to end_frame - 1 (None: from the first, to the last) of a video file.

    With a box (x1, y1, x2, y2 in pixels of the upright picture, half-open, cut at its edges) of that part only. With
    `only`, which gives the numbers of the wanted frames of a clip of n frames (int64), of those frames only;
    `frames` is the likely n: where it is wrong, the clip is decoded twice.
    """

    key: str
    path: Path
    stream_index: int | None = None
    start_frame: int | None = None
    end_frame: int | None = None
    box: tuple[int, int, int, int] | None = None
    only: Callable[[int], np.ndarray] | None = None
    frames: int = 1


class FewFrames:
    """Like the array uint8 [F, H, W, 3] of a clip to those who ask for frames that were decoded for them."""

    def __init__(self, numbers: np.ndarray, array: np.ndarray, count: int) -> None:
        self._numbers, self._array, self.shape = numbers, array, (count, *array.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """Copies of the frames of an index (int64 [n]). Raises IndexError where one of them is not there."""
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        rows = np.searchsorted(self._numbers, index)
        if not np.array_equal(self._numbers.take(rows, mode="clip"), index):
            raise IndexError(f"of frames {index}, only {self._numbers} are there")
        return self._array[rows]


Pictures = np.ndarray | SpanFrames | FewFrames


@dataclass(frozen=True)
class Frames:
    """The frames of a clip.

    Attributes:
        array: uint8 [F, H, W, 3], RGB, upright; of a clip without room in memory, what decodes its frames again; of
            one of which few were wanted, those.
        decoder: name and version of the decoder that served it, e.g. ``decord 0.6.0``.
        fps_num, fps_den: average frame rate the container states, or None.
        warnings: ``CODE: sentence`` each: W_DAMAGED, W_HEADER_COUNT, W_END_PAST_EOF, W_ROTATION, W_VFR,
            W_PTS_NON_MONOTONIC, W_START_OFFSET, W_MULTI_VIDEO_STREAM.
        decoded: frames that were decoded to give these: from a key frame on, to a little after the last.
        crop: the box (x1, y1, x2, y2) of the picture that these frames show, or None for all of it.
    """

    array: Pictures
    decoder: str
    fps_num: int | None
    fps_den: int | None
    warnings: tuple[str, ...]
    decoded: int
    crop: tuple[int, int, int, int] | None = None


class DecodePool:
    """Decodes clips in `workers` processes. A context manager: leaving it kills them all.

    Args:
        workers: processes, each driven by one thread; they decode single-threaded.
        timeout_s: longest silence of a worker before it is killed. It counts from the last sign of life: a
            block of frames, or 32 skipped ones. A long clip on a slow disk may take its time, a hang may not.
        memory: bytes of the frames of all clips in flight: those decoding or waiting, and those the caller holds. A
            clip above a fifth of it, and one for which the caller leaves no room, comes as SpanFrames.
        backends: decoders in the order they are tried; decord is left out where it is not installed.
        index: folder that keeps where the frames of long recordings lie, so that each is passed over once.
        command: starts a worker in place of the real one (tests of hangs and crashes).
    """

    def __init__(
        self,
        workers: int = 2,
        timeout_s: float = 60.0,
        memory: int = 4 << 30,
        backends: Sequence[str] = ("decord", "pyav"),
        index: Path | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.workers = workers
        self.timeout_s = timeout_s
        self.index = str(index.absolute()) if index else None
        self.backends = tuple(name for name in backends if name != "decord" or find_spec("decord"))
        start = command or worker_command()
        self._room = Room(memory * 4 // 5)
        self._spans = SpanReaders(partial(Worker, start, timeout_s), memory // 5)
        self._numbers = itertools.count()  # of all that was ever asked for
        self._all = [Worker(start, timeout_s) for _ in range(workers)]
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        # Linux ends a worker with the THREAD that started it, so these threads live as long as the pool.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every worker and join every thread. The pool cannot be used again."""
        for worker in self._all:
            worker.abort()
        self._room.want(next(self._numbers))  # nobody may go on waiting for room
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._spans.close()
        for worker in self._all:
            worker.kill()  # reaps those that were idle

    def decode(
        self, jobs: Iterable[DecodeJob]
    ) -> Generator[tuple[DecodeJob, Frames | ClipError], None, None]:
        """Every job with its frames or its error, in order. At most workers + 1 clips are decoded ahead.

        Jobs are drawn as they are needed. Leaving the loop early kills the workers that still decode for it.
        """
        return self._ordered(self._decode_clip, jobs)

    def probe(self, jobs: Iterable[DecodeJob]) -> Generator[tuple[DecodeJob, Probe | ClipError], None, None]:
        """Every job with the facts of its stream, or its error, in order, without decoding the clip."""
        return self._ordered(self._probe_clip, jobs)

    def whole(self, jobs: Iterable[DecodeJob]) -> Generator[tuple[DecodeJob, Whole | ClipError], None, None]:
        """Every job with what a full decode of its file found, or its error, in order. No frames are kept."""
        return self._ordered(self._whole_file, jobs)

    def _ordered(
        self, work: Callable[[Worker, T], R | ClipError], items: Iterable[T]
    ) -> Generator[tuple[T, R | ClipError], None, None]:
        waiting: deque[tuple[int, T, Future[R | ClipError]]] = deque()
        remaining = iter(items)
        exhausted = False
        try:
            while True:
                while not exhausted and len(waiting) <= self.workers:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        exhausted = True
                        break
                    number = next(self._numbers)
                    self._room.enter(number)
                    waiting.append((number, item, self._threads.submit(self._run, work, item, number)))
                if not waiting:
                    return
                number, item, future = waiting.popleft()
                self._room.want(number)
                yield item, future.result()
        finally:
            self._abandon({number: future for number, _, future in waiting})

    def _run(self, work: Callable[[Worker, T], R | ClipError], item: T, number: int) -> R | ClipError:
        worker = self._idle.get()
        worker.room = partial(self._room.take, number)
        try:
            return work(worker, item)
        except ClipError as error:
            return error
        finally:
            self._room.leave(number)
            self._idle.put(worker)

    def _abandon(self, futures: Mapping[int, Future[Any]]) -> None:
        """Stop work nobody waits for; idle workers stay."""
        busy = [future for future in futures.values() if not future.cancel() and not future.done()]
        for number in futures:
            self._room.leave(number)
        if busy:
            self._room.want(max(futures))
            for worker in self._all:
                worker.abort()
            for future in busy:
                with contextlib.suppress(Exception):
                    future.result()
            for worker in self._all:
                worker.revive()

    def _probe_clip(self, worker: Worker, job: DecodeJob) -> Probe | ClipError:
        return Probe.from_json(self._facts(worker, job, "probing", {}))

    def _whole_file(self, worker: Worker, job: DecodeJob) -> Whole | ClipError:
        return Whole.from_json(self._facts(worker, job, "decoding", {"whole": True}))

    def _facts(self, worker: Worker, job: DecodeJob, doing: str, more: dict[str, Any]) -> dict[str, Any]:
        check_file(job.path)
        try:
            facts = worker.ask({**self._request(job), **more})[1]
        except AttemptError as failure:
            raise ClipError(
                "E_DECODE", f"{job.path}: {doing} {failure}", backend_version("pyav"), 1
            ) from None
        facts.pop("type")
        return facts

    def _request(self, job: DecodeJob) -> dict[str, Any]:
        return {"path": str(job.path), "stream": job.stream_index, "index": self.index}

    def _decode_clip(self, worker: Worker, job: DecodeJob) -> Frames | ClipError:
        check_file(job.path)
        start, end = job.start_frame or 0, job.end_frame
        if start < 0:
            raise ClipError("E_START_NEGATIVE", f"{job.path}: start_frame is {start}, want 0 or more")
        if end is not None and end <= start:
            raise ClipError(
                "E_END_BEFORE_START", f"{job.path}: end_frame {end} is not after start_frame {start}"
            )
        request = {**self._request(job), "start": start, "end": end, "box": job.box}
        failures: list[str] = []
        for attempt, backend in enumerate(self.backends, start=1):
            try:
                array, facts = self._ask(worker, job, {**request, "backend": backend})
            except AttemptError as failure:
                failures.append(f"{backend} {failure}")
            except ClipError as error:
                error.attempts = attempt if error.decoder else attempt - 1
                raise
            else:
                return Frames(
                    array,
                    facts["decoder"],
                    facts["fps_num"],
                    facts["fps_den"],
                    tuple(facts["warnings"]),
                    facts["decoded"],
                    tuple(facts["crop"]) if facts["crop"] else None,
                )
        message = f"{job.path}: {'; '.join(failures) or 'no decoder is installed'}"
        decoder = backend_version(self.backends[-1]) if failures else None
        raise ClipError("E_DECODE", message, decoder, len(failures))

    def _ask(
        self, worker: Worker, job: DecodeJob, request: dict[str, Any]
    ) -> tuple[Pictures, dict[str, Any]]:
        """The frames of a clip through one decoder, and its reply. Raises AttemptError, ClipError."""
        numbers = np.unique(job.only(job.frames)) if job.only else None
        array, facts = worker.ask({**request, "only": numbers if numbers is None else numbers.tolist()})
        if job.only and facts["frames"] != job.frames:
            count = facts["frames"]
            numbers = np.unique(job.only(count))
            array, facts = worker.ask({**request, "only": numbers.tolist()})
            if facts["frames"] != count:
                raise AttemptError(f"gave {count} frames, and {facts['frames']} of the same file")
        count = facts["frames"]
        if array.strides[0] == 0:  # the shape alone
            return SpanFrames(self._spans, request, (count, *array.shape[1:])), facts
        return (array if numbers is None else FewFrames(numbers, array, count)), facts
