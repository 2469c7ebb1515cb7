"""Batches packed across clips: every encoder call has the same shape, however short the clips are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from pipeline.stages.work import Work

Outputs = dict[str, np.ndarray]


@dataclass
class Rows:
    """The inputs of one clip: n rows, made when asked for, so that a long clip never lies in memory whole."""

    work: Work
    n: int
    fetch: Callable[[int, int], torch.Tensor]  # rows low..high -> float32 [high - low, ...]
    parts: list[Outputs] = field(default_factory=list)
    left: int = 0


def packed(
    clips: Iterable[Rows],
    batch: int,
    forward: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    precision: str = "float32",
) -> Iterator[tuple[Work, Outputs]]:
    """Run `forward` over the rows of all clips in batches of exactly `batch` and give each clip its outputs.

    With precision "bfloat16" matrix products run in bfloat16 (autocast); outputs are float32 either way.
    Clips come out in the order they came in, as soon as their last row is computed. A padded tail repeats the
    last row and is cut off. A clip of 0 rows comes out with no outputs.
    """
    waiting: deque[Rows] = deque()
    buffer: list[tuple[Rows, int, int]] = []
    held = 0
    for clip in clips:
        clip.left = clip.n
        waiting.append(clip)
        low = 0
        while low < clip.n:
            high = min(clip.n, low + batch - held)
            buffer.append((clip, low, high))
            held += high - low
            low = high
            if held == batch:
                _run(buffer, batch, forward, precision)
                buffer, held = [], 0
        yield from _finished(waiting)
    if held:
        _run(buffer, batch, forward, precision)
    yield from _finished(waiting)


def _run(
    buffer: list[tuple[Rows, int, int]],
    batch: int,
    forward: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    precision: str,
) -> None:
    x = torch.cat([clip.fetch(low, high) for clip, low, high in buffer])
    rows = len(x)
    if rows < batch:
        x = torch.cat([x, x[-1:].expand(batch - rows, *x.shape[1:])])
    half = torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with torch.inference_mode(), half:
        outputs = {name: _host(value) for name, value in forward(x).items()}
    start = 0
    for clip, low, high in buffer:
        stop = start + high - low
        clip.parts.append({name: value[start:stop] for name, value in outputs.items()})
        clip.left -= high - low
        start = stop


def _host(value: torch.Tensor) -> np.ndarray:
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()


def _finished(waiting: deque[Rows]) -> Iterator[tuple[Work, Outputs]]:
    while waiting and waiting[0].left == 0:
        clip = waiting.popleft()
        names = clip.parts[0] if clip.parts else {}
        yield clip.work, {name: np.concatenate([part[name] for part in clip.parts]) for name in names}
