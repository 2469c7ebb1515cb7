"""Batches packed across clips: every encoder call has the same shape, however short the clips are.

On a GPU three things go on at a time: a thread prepares the next batch on a stream of its own, the device
computes this one, and the results of the one before travel back. On a CPU every core computes already, so the
three happen in turn.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.stages.work import Work

Outputs = dict[str, np.ndarray]
Forward = Callable[[torch.Tensor], dict[str, torch.Tensor]]

CPU = torch.device("cpu")
REGROW = 32  # batches in a row that fit before a halved batch is doubled: a misjudgement costs 1 batch in 32


@dataclass
class Rows:
    """The inputs of one clip: n rows, made when asked for, so that a long clip never lies in memory whole."""

    work: Work
    n: int
    fetch: Callable[[int, int], torch.Tensor]  # rows low..high -> float32 [high - low, ...], on any device
    keep: Callable[[Outputs], None] | None = (
        None  # takes outputs as they come, in order; None: they are put together
    )
    parts: list[Outputs] = field(default_factory=list)
    left: int = 0


@dataclass
class Batch:
    """Rows low..high of some clips, padded to `size` by repeating the last one."""

    pieces: list[tuple[Rows, int, int]]
    size: int


def packed(
    clips: Iterable[Rows],
    batch: int,
    forward: Forward,
    precision: str = "float32",
    device: torch.device = CPU,
    overlap: bool | None = None,
) -> Iterator[tuple[Work, Outputs]]:
    """Run `forward` over the rows of all clips in batches of exactly `batch` and give each clip its outputs.

    With precision "bfloat16" matrix products run in bfloat16 (autocast); outputs are float32 either way.
    Clips come out in the order they came in, as soon as their last row is computed. A padded tail repeats the
    last row and is cut off. A clip of 0 rows, or one that keeps its outputs itself, comes out with none.

    Behind a clip that ends a block the open batch is padded and closed. So what a batch holds, and where in it a
    row lies, depends on the clips of its block alone: a run that begins at the start of a block computes the same
    bits as one that came there from the first clip (as long as memory was not lacking).

    A batch for which the device lacks memory is cut in halves and run again, and the smaller size is kept until
    REGROW batches have fitted: neither rows nor their order change.

    Args:
        device: where `forward` computes; rows fetched elsewhere are taken there.
        overlap: fetch rows in a thread, one batch ahead, and results one batch late; None: on a GPU only. Rows
            may then be fetched while a later clip is drawn.

    Raises:
        UserError: the device lacks memory for a single row.
        ValueError: forward gave another number of rows than it was given.
    """
    waiting: deque[Rows] = deque()
    overlap = device.type == "cuda" if overlap is None else overlap
    with _Runner(batch, forward, precision, device, overlap) as runner:
        for clip in clips:
            clip.left = clip.n
            waiting.append(clip)
            runner.add(clip)
            if clip.work.ends_block:
                runner.close_open()
            yield from _finished(waiting)
        runner.finish()
        yield from _finished(waiting)


class _Runner:
    """Cuts rows into batches and takes each through three steps, in order: prepare, launch, collect."""

    def __init__(
        self, batch: int, forward: Forward, precision: str, device: torch.device, overlap: bool
    ) -> None:
        self.forward, self.device = forward, device
        self.half = precision == "bfloat16"
        self.largest = self.size = batch
        self.fitted = 0  # batches since the size last changed
        self.behind = int(overlap)  # batches that stay prepared, and launched, while another is launched
        self.thread = ThreadPoolExecutor(1, "prepare") if overlap else None
        self.stream = torch.cuda.Stream(device) if overlap and device.type == "cuda" else None
        self.open = Batch([], 0)
        self.prepared: deque[tuple[Batch, Callable[[], torch.Tensor]]] = deque()
        self.launched: deque[tuple[Batch, Callable[[], Outputs]]] = deque()

    def __enter__(self) -> "_Runner":
        return self

    def __exit__(self, *_: object) -> None:
        if self.thread:
            self.thread.shutdown(cancel_futures=True)

    def add(self, clip: Rows) -> None:
        """Take all rows of a clip, running every batch that gets full."""
        low = 0
        while low < clip.n:
            high = min(clip.n, low + self.size - self.open.size)
            self.open.pieces.append((clip, low, high))
            self.open.size += high - low
            low = high
            if self.open.size == self.size:
                self._close()

    def close_open(self) -> None:
        """Pad the batch that is being filled, if there is one, and take it as it is."""
        if self.open.pieces:
            self._close()

    def finish(self) -> None:
        """Run what is left."""
        self.close_open()
        self._advance(0)

    def _close(self) -> None:
        batch, self.open = Batch(self.open.pieces, self.size), Batch([], 0)
        self.prepared.append((batch, self._prepare(batch)))
        self._advance(self.behind)

    def _advance(self, behind: int) -> None:
        while len(self.prepared) > behind:
            self._launch(*self.prepared.popleft())
        while len(self.launched) > behind:
            self._collect()

    def _prepare(self, batch: Batch) -> Callable[[], torch.Tensor]:
        """Begin to make the input of a batch; the result waits for it, on this thread and on its stream."""
        if self.thread is None:
            return lambda: self._made(batch)
        if self.stream is None:
            return self.thread.submit(self._made, batch).result
        stream, before = self.stream, torch.cuda.current_stream(self.device).record_event()
        return _handed_over(self.thread.submit(self._made_aside, batch, stream, before))

    def _made(self, batch: Batch) -> torch.Tensor:
        x = torch.cat([clip.fetch(low, high) for clip, low, high in batch.pieces])
        if len(x) < batch.size:
            x = torch.cat([x, x[-1:].expand(batch.size - len(x), *x.shape[1:])])
        if self.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)

    def _made_aside(
        self, batch: Batch, stream: torch.cuda.Stream, before: torch.cuda.Event
    ) -> tuple[torch.Tensor, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            stream.wait_event(before)  # fetch reads what the stages put on the device up to then
            return self._made(batch), stream.record_event()

    def _launch(self, batch: Batch, rows: Callable[[], torch.Tensor]) -> None:
        try:
            fetch = self._outputs(rows())
        except torch.OutOfMemoryError:
            fetch = None
        if (
            fetch is None
        ):  # outside the except clause, where the error would keep the tensors of the call alive
            del rows
            self._launch_halves(batch)
            return
        self.launched.append((batch, fetch))
        self.fitted += 1
        if self.fitted >= REGROW and self.size < self.largest:
            self.size, self.fitted = min(2 * self.size, self.largest), 0

    def _launch_halves(self, batch: Batch) -> None:
        while self.launched:
            self._collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if batch.size == 1:
            clip = batch.pieces[0][0].work.task.clip.clip_id
            raise UserError(
                f"{self.device} lacks the memory for a single row of clip {clip}; free it from other programs, choose "
                "a smaller encoder, or --set STAGE.precision=bfloat16"
            )
        self.size, self.fitted = min(self.size, batch.size // 2), 0
        for part in _cut(batch, self.size):
            self._launch(part, self._prepare(part))

    def _outputs(self, x: torch.Tensor) -> Callable[[], Outputs]:
        """Call forward and send its outputs on their way to the host; the result waits for their arrival."""
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            outputs = self.forward(x)
        for name, value in outputs.items():
            if len(value) != len(x):
                raise ValueError(f"forward gave {len(value)} rows of '{name}' for a batch of {len(x)}")
        host = {name: _to_host(value) for name, value in outputs.items()}
        arrived = torch.cuda.current_stream(self.device).record_event() if x.is_cuda else None

        def fetch() -> Outputs:
            if arrived is not None:
                arrived.synchronize()
            return {name: value.numpy() for name, value in host.items()}

        return fetch

    def _collect(self) -> None:
        """Give the clips of the oldest launched batch their outputs; the padding belongs to none."""
        batch, fetch = self.launched.popleft()
        outputs = fetch()
        start = 0
        for clip, low, high in batch.pieces:
            stop = start + high - low
            part = {name: value[start:stop] for name, value in outputs.items()}
            if clip.keep is None:
                clip.parts.append(part)
            else:
                clip.keep(part)
            clip.left -= high - low
            start = stop


def _handed_over(
    future: "Future[tuple[torch.Tensor, torch.cuda.Event]]",
) -> Callable[[], torch.Tensor]:
    """Wait for an input made on another stream, and let the current one wait for its last kernel."""

    def rows() -> torch.Tensor:
        x, made = future.result()
        stream = torch.cuda.current_stream(x.device)
        stream.wait_event(made)
        x.record_stream(stream)
        return x

    return rows


def _cut(batch: Batch, size: int) -> Iterator[Batch]:
    """The rows of a batch in batches of `size`."""
    part = Batch([], size)
    held = 0
    for clip, first, stop in batch.pieces:
        low = first
        while low < stop:
            high = min(stop, low + size - held)
            part.pieces.append((clip, low, high))
            held += high - low
            low = high
            if held == size:
                yield part
                part, held = Batch([], size), 0
    if held:
        yield part


def _to_host(value: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; from a GPU into pinned memory, without waiting."""
    value = value.float() if value.dtype == torch.bfloat16 else value
    if not value.is_cuda:
        return value
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value, non_blocking=True)


def _finished(waiting: deque[Rows]) -> Iterator[tuple[Work, Outputs]]:
    while waiting and waiting[0].left == 0:
        clip = waiting.popleft()
        names = clip.parts[0] if clip.parts else {}
        yield clip.work, {name: np.concatenate([part[name] for part in clip.parts]) for name in names}
