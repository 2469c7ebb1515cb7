"""How far a stage is: weights now, at the best and at the last epoch, optimiser, generators, records."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

Record = dict[str, Any]  # one epoch: stage, epoch, epochs, lr, loss, other parts of the loss, val_* scores
State = dict[str, Tensor]


@dataclass
class RunProgress:
    """How far one run is. `best_epoch` counts from 1; 0 = the untrained module."""

    best_rank: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    stopped: bool = False
    records: list[Record] = field(default_factory=list)


class Progress:
    """Progress of runs that train side by side.

    Attributes:
        now, best, last: what trains, [runs, ...]; `now` shares its memory with the modules.
        runs: one entry per run.
        epoch: the last finished one.
    """

    def __init__(
        self, weights: State, optimizer: torch.optim.Optimizer, orders: Sequence[torch.Generator]
    ) -> None:
        self.now = weights
        self.best = {name: tensor.clone() for name, tensor in weights.items()}
        self.last = {name: tensor.clone() for name, tensor in weights.items()}
        self.optimizer, self.orders = optimizer, orders
        self.device = next(iter(weights.values())).device
        self.runs = [RunProgress() for _ in orders]
        self.epoch = 0

    def keep(self, store: State, run: int) -> None:
        """Copies the weights of one run into `best` or `last`."""
        for name, tensor in store.items():
            tensor[run].copy_(self.now[name][run])

    def take(self, store: State, run: int) -> None:
        """Puts those of `best` or `last` into the module of one run."""
        for name, tensor in self.now.items():
            tensor[run].copy_(store[name][run])

    def state(self) -> tuple[State, dict[str, Any]]:
        """Everything the next epoch depends on, as tensors and facts."""
        tensors = {
            f"{store}/{name}": tensor for store, kept in self._stores() for name, tensor in kept.items()
        }
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{k}": value for k, value in values.items() if value is not None}
        tensors |= {f"order/{i}": order.get_state() for i, order in enumerate(self.orders)}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors, {"epoch": self.epoch, "runs": [asdict(run) for run in self.runs]}

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        for store, kept in self._stores():
            for name, tensor in kept.items():
                tensor.copy_(tensors[f"{store}/{name}"])
        moments: dict[int, State] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        for i, order in enumerate(self.orders):
            order.set_state(tensors[f"order/{i}"])
        torch.set_rng_state(tensors["random/cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self.device)
        self.runs = [
            RunProgress(tuple(r["best_rank"]), r["best_epoch"], r["stopped"], r["records"])
            for r in facts["runs"]
        ]
        self.epoch = int(facts["epoch"])

    def _stores(self) -> tuple[tuple[str, State], ...]:
        return (("now", self.now), ("best", self.best), ("last", self.last))
