"""Optimisers as the recipes want them: parameter groups, the learning rate over time, and clipping per run."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from heads.options import StageConfig
from pipeline.errors import UserError


def make_optimizer(module: nn.Module, config: StageConfig) -> torch.optim.Optimizer | None:
    """The optimiser of a stage, fused; None when nothing is left to train.

    On a GPU rates are tensors and counters stay there, so that a step can be recorded as a CUDA graph.

    Raises:
        UserError: an entry of `freeze` that no parameter begins with.
    """
    for start in config.freeze:
        chosen = [p for name, p in module.named_parameters() if f"{_plain(name)}.".startswith(f"{start}.")]
        if not chosen:
            known = sorted({_plain(name).partition(".")[0] for name, _ in module.named_parameters()})
            raise UserError(f"freeze: no parameter begins with {start!r}; they begin with {', '.join(known)}")
        for parameter in chosen:
            parameter.requires_grad_(False)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}  # (rate, decay) -> parameters
    for parameter, rate, decay in _rules(module, config):
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        return None
    cuda = next(iter(groups.values()))[0].is_cuda
    described = [
        {
            "params": parameters,
            "rate": rate,
            "weight_decay": decay,
            "lr": torch.tensor(config.lr, device=parameters[0].device) if cuda else config.lr,
        }
        for (rate, decay), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(described, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(described, fused=True, capturable=cuda)


def set_rate(optimizer: torch.optim.Optimizer, config: StageConfig, progress: float) -> float:
    """Sets the learning rate after `progress` epochs; returns that of rate 1."""
    lr = config.lr * rate_at(config, progress)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr * group["rate"])
        else:
            group["lr"] = lr * group["rate"]
    return lr


def rate_at(config: StageConfig, progress: float) -> float:
    """Learning rate as a share of config.lr after `progress` epochs."""
    if progress < config.warmup:
        return (progress + 0.1) / (config.warmup + 0.1)
    if config.schedule == "milestones":
        return config.gamma ** sum(progress >= m for m in config.milestones)
    if config.schedule == "cosine":
        span = max(config.epochs - config.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - config.warmup) / span)))
    return 1.0


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, runs: int) -> None:
    """Scales the gradients of every run down to a global L2 norm of `limit`.

    With several runs the first axis of every parameter is the run.
    """
    if runs == 1:
        nn.utils.clip_grad_norm_(parameters, limit)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    scale = (limit / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _rules(module: nn.Module, config: StageConfig) -> Iterator[tuple[nn.Parameter, float, float]]:
    """(parameter, share of the learning rate, weight decay) for everything that trains.

    "tsm" is the constructor of TSM's code: biases learn twice as fast, the last linear layer five times and its
    bias ten times; what is neither layer nor bias (norms) does not decay.
    """
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    last = next((m for m in reversed(layers) if isinstance(m, nn.Linear)), None)
    tsm = config.param_groups == "tsm"
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            weight = owner in layers and name == "weight"
            rate = 1.0
            if tsm and owner in layers:
                rate = (1.0 if weight else 2.0) * (5.0 if owner is last else 1.0)
            yield parameter, rate, config.weight_decay if weight else 0.0


def _plain(name: str) -> str:
    """The name of a parameter without the levels a stack adds."""
    return name.replace("stacked.", "")
