"""One training step, with as little around its arithmetic as possible.

Batches are gathered on the device and have one fixed shape: the last batch of an epoch is filled up with clips of
weight 0. On a GPU the step is recorded once as a CUDA graph and replayed, so the host says three words per step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from heads.optim import clip_gradients
from heads.options import StageConfig
from heads.stack import Stack

Parts = dict[str, Tensor]
PartsOf = Callable[[nn.Module, Tensor, Tensor], Parts]  # module, index [B], weight [B] -> scalar losses

EAGER_STEPS = 3  # before the recording: they allocate the optimiser's state and warm the libraries


class Runs:
    """Modules that train side by side: one as it is, several as one stack."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.whole = self.modules[0] if len(self.modules) == 1 else Stack(self.modules, tie=True)

    def __len__(self) -> int:
        return len(self.modules)

    def train(self, mode: bool) -> None:
        """Sets the mode of the modules and of their stack."""
        for module in (self.whole, *self.modules):
            module.train(mode)

    def parts(self, parts_of: PartsOf, index: Tensor, weight: Tensor) -> Parts:
        """Losses [R] of index [R, B], weight [B]."""
        if len(self) == 1:
            return {name: value[None] for name, value in parts_of(self.whole, index[0], weight).items()}
        assert isinstance(self.whole, Stack)
        found: Parts = self.whole.map(parts_of, index, weight, axes=(0, None))
        return found

    def parameters(self) -> dict[str, Tensor]:
        """What trains, as tensors [R, ...] that share their memory with the modules."""
        trained = {n: p.detach() for n, p in self.whole.named_parameters() if p.requires_grad}
        return trained if len(self) > 1 else {name: tensor[None] for name, tensor in trained.items()}


class Step:
    """Updates all runs by one batch; `totals` sums the losses weighted by their share of the epoch, [parts, R]."""

    totals: Tensor

    def __init__(
        self,
        runs: Runs,
        parts_of: PartsOf,
        optimizer: torch.optim.Optimizer,
        config: StageConfig,
        *,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        self.runs, self.optimizer, self.config = runs, optimizer, config
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.trained[0].device
        self.precision = precision
        self.parts_of = parts_of
        self.losses: Callable[..., Parts] = torch.compile(self._losses) if compiled else self._losses
        self.names: tuple[str, ...] = ()
        self.cuda = self.device.type == "cuda"
        if self.cuda:
            self.stream = torch.cuda.Stream()
            self.graph: torch.cuda.CUDAGraph | None = None
            self.eager = 0

    def start(self) -> None:
        """Begins an epoch: the totals are 0 again."""
        if self.names:
            self.totals.zero_()

    def __call__(self, index: Tensor, weight: Tensor, clips: int) -> None:
        """index int64 [R, B], weight float32 [B], on the device; clips of the whole epoch."""
        if not self.cuda:
            self._update(index, weight, clips)
            return
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            if self.eager < EAGER_STEPS:
                self._update(index, weight, clips)
                self.eager += 1
            else:
                if self.graph is None:
                    self._record(index, weight, clips)
                assert self.graph is not None
                self.index.copy_(index)
                self.weight.copy_(weight)
                self.graph.replay()
        here.wait_stream(self.stream)

    def _record(self, index: Tensor, weight: Tensor, clips: int) -> None:
        """Recording runs nothing: this batch is computed by the replay that follows."""
        self.index, self.weight = index.clone(), weight.clone()
        self.optimizer.zero_grad(set_to_none=True)  # the graph owns its gradients
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self._update(self.index, self.weight, clips)

    def _update(self, index: Tensor, weight: Tensor, clips: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.losses(index, weight)
        parts["loss"].sum().backward()
        clip_gradients(self.trained, self.config.clip, len(self.runs))
        self.optimizer.step()
        values = torch.stack([value.detach().float() for value in parts.values()])
        if not self.names:
            self.names, self.totals = tuple(parts), torch.zeros_like(values)
        self.totals += values * (weight.sum() / clips)

    def _losses(self, index: Tensor, weight: Tensor) -> Parts:
        with autocast(self.precision, self.device):
            return self.runs.parts(self.parts_of, index, weight)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 for what profits from it, when precision is bf16."""
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # a graph cannot hold the cache


@contextmanager
def arithmetic(precision: str, device: str) -> Iterator[None]:
    """Within it float32 products use TF32 when precision is tf32, and algorithms repeat to the bit."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=True)
