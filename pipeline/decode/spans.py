"""Frames of clips that have no room in memory: decoded again, span by span, where they are looked at."""

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline.decode.backends import backend_version
from pipeline.decode.process import AttemptError, Worker
from pipeline.errors import ClipError

READERS = (
    3  # clips looked at in turns: one being segmented, one being encoded, and one on its way between them
)

Span = tuple[int, int]
NOTHING = ((0, 0), np.empty(0, np.uint8))


class SpanReaders:
    """The processes that decode spans; each holds the span being looked at and decodes the next one meanwhile.

    Args:
        start: makes a worker.
        memory: bytes of all spans.
    """

    def __init__(self, start: Callable[[], Worker], memory: int) -> None:
        self._start, self._bytes = start, memory // (2 * READERS)
        self._readers: list[_Reader] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Kill them all. They start again where frames are looked at."""
        with self._lock:
            while self._readers:
                self._readers.pop().close()

    def of(self, frames: "SpanFrames") -> "_Reader":
        """The reader of a clip; the clip looked at longest ago loses its own where there are too many."""
        with self._lock:
            mine = [reader for reader in self._readers if reader.frames is frames]
            idle = [reader for reader in self._readers if reader.frames is None]
            if mine or idle:
                reader = (mine or idle)[0]
                self._readers.remove(reader)
            elif len(self._readers) < READERS:
                reader = _Reader(self._start())
            else:
                reader = self._readers.pop(0)
            self._readers.append(reader)  # the last is the latest
            if not mine:
                reader.turn_to(frames, max(self._bytes // math.prod(frames.shape[1:]), 1))
            return reader

    def drop(self, frames: "SpanFrames") -> None:
        """Nobody looks at this clip any more."""
        with self._lock:
            for reader in self._readers:
                if reader.frames is frames:
                    reader.turn_to(None, 0)


class SpanFrames:
    """Like the array uint8 [F, H, W, 3] of a clip's frames to those who index it by frame.

    Attributes:
        error: why frames could not be decoded again, though they could before. From then on they are zeros; what
            was made of them must not be kept.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, readers: SpanReaders, request: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        self.request, self.shape = dict(request), shape
        self.error: ClipError | None = None
        self._readers = readers

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Copies of the frames; an index is int64 [n], best rising."""
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        numbers = np.asarray(index, np.int64)
        wanted = numbers.reshape(-1)
        out = np.zeros((len(wanted), *self.shape[1:]), np.uint8)
        try:
            while self.error is None and not self._readers.of(self).fill(self, wanted, out):
                pass  # another clip took the reader
        except AttemptError as failure:
            backend = self.request["backend"]
            self.error = ClipError(
                "E_DECODE", f"{self.request['path']}: {backend} {failure}", backend_version(backend), 1
            )
            out[:] = 0
        except ClipError as error:
            self.error = error
            out[:] = 0
        return out.reshape(*numbers.shape, *self.shape[1:])

    def drop(self) -> None:
        """Let go of the spans in memory."""
        self._readers.drop(self)


class _Reader:
    """One worker, and of the clip it serves at most two spans: the one being looked at and the one that follows."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        worker.room = lambda _: lambda: None  # as much as was asked for
        # Linux ends a worker with the thread that started it.
        self._thread = ThreadPoolExecutor(1, "span")
        self._lock = threading.Lock()
        self.frames: SpanFrames | None = None
        self._size = 0  # frames of a span
        self._here: tuple[Span, np.ndarray] = NOTHING
        self._coming: tuple[Span, Future[np.ndarray]] | None = None

    def turn_to(self, frames: "SpanFrames | None", size: int) -> None:
        """Serve another clip, or none."""
        with self._lock:
            self._forget()
            self.frames, self._size = frames, size

    def fill(self, frames: "SpanFrames", wanted: np.ndarray, out: np.ndarray) -> bool:
        """Write the wanted frames of a clip to out; False when this serves another clip by now."""
        with self._lock:
            if self.frames is not frames:
                return False
            row = 0
            while row < len(wanted):
                (low, high), span = self._here
                inside = (wanted[row:] >= low) & (wanted[row:] < high)
                count = len(inside) if inside.all() else int(inside.argmin())
                if count:
                    out[row : row + count] = span[wanted[row : row + count] - low]
                    row += count
                else:
                    self._bring(frames, wanted[row:])
            return True

    def _forget(self) -> None:
        coming, self._coming, self._here = self._coming, None, NOTHING
        if coming is not None and not coming[1].cancel():
            coming[1].exception()  # until it ends

    def _bring(self, frames: "SpanFrames", wanted: np.ndarray) -> None:
        """Make the span that begins with the first wanted frame the one that is here."""
        first, count = int(wanted[0]), len(frames)
        scattered = len(wanted) > 1 and abs(int(wanted[-1]) - first) > len(wanted) * self._size
        coming = self._coming
        if coming is not None and coming[0][0] <= first < coming[0][1]:
            self._coming = None
            self._here = coming[0], coming[1].result()
        else:
            self._forget()
            span = first, first + 1 if scattered else min(first + self._size, count)
            self._here = span, self._thread.submit(self._decoded, frames.request, span).result()
        after = self._here[0][1]
        if not scattered and after < count:
            following = after, min(after + self._size, count)
            self._coming = following, self._thread.submit(self._decoded, frames.request, following)

    def _decoded(self, request: dict[str, Any], span: Span) -> np.ndarray:
        try:
            return self._ask(request, span)
        except AttemptError:  # a process that was killed, not a file that was refused: it was decoded before
            return self._ask(request, span)

    def _ask(self, request: dict[str, Any], span: Span) -> np.ndarray:
        frames, _ = self._worker.ask({**request, "span": span})
        if len(frames) != span[1] - span[0]:
            raise AttemptError(f"gave {len(frames)} frames instead of {span[1] - span[0]}")
        return frames

    def close(self) -> None:
        """Kill the worker."""
        self._worker.abort()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._worker.kill()
