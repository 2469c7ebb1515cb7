"""The training loop shared by both stages, and prediction over a split.

Batches are gathered on the device by an index tensor; nothing in a step is per sample, and the host waits for
the device once per epoch.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.config import StageConfig
from heads.features import SplitFeatures
from pipeline.errors import UserError

EVAL_BATCH = 512

Record = dict[str, Any]  # one epoch: stage, epoch, epochs, lr, loss, other parts of the loss, val_* scores
State = dict[str, Tensor]


@dataclass(frozen=True)
class Fitted:
    """State dicts of the best epoch (counted from 1; 0 = the untrained module) and of the last one."""

    best: State
    last: State
    best_epoch: int
    epochs: int


def seed_of(seed: int, name: str) -> int:
    """The seed of one part of a run, so that no part depends on how many numbers another one drew."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")


def fit(
    module: nn.Module,
    stage: str,
    config: StageConfig,
    *,
    clips: int,
    loss: Callable[[Tensor], dict[str, Tensor]],
    score: Callable[[], dict[str, float]] | None,
    select: str,
    seed: int,
    report: Callable[[Record], None],
) -> Fitted:
    """Trains all parameters of a module and returns its states; the module is left at the last epoch.

    Args:
        module: in training mode during an epoch, in evaluation mode for `score`.
        stage: name for records and messages.
        clips: number of training clips; index tensors are permutations of range(clips).
        loss: int64 index on the module's device -> scalar parts of the loss; the one named "loss" is
            minimised.
        score: validation scores after an epoch, or None: then the last epoch counts as the best.
        select: the score that picks the epoch; ties go to the lower "loss" in the scores.
        seed: of the order of the clips and of dropout.
        report: called with the record of every epoch.

    Raises:
        UserError: the loss is not finite.
    """
    device = next(module.parameters()).device
    order = torch.Generator().manual_seed(seed_of(seed, f"{stage} order"))
    torch.manual_seed(seed_of(seed, f"{stage} dropout"))
    optimizer = _optimizer(module, config)
    steps = max(1, math.ceil(clips / config.batch))
    best, best_rank, best_epoch, epoch = _snapshot(module), (-math.inf, -math.inf), 0, 0
    for epoch in range(1, config.epochs + 1):
        module.train()
        totals: dict[str, Tensor] = {}
        permutation = torch.randperm(clips, generator=order).to(device)
        for step, index in enumerate(permutation.split(config.batch)):
            lr = config.lr * _factor(config, epoch - 1 + step / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            parts = loss(index)
            optimizer.zero_grad(set_to_none=True)
            parts["loss"].backward()
            nn.utils.clip_grad_norm_(module.parameters(), config.clip)
            optimizer.step()
            for name, value in parts.items():
                totals[name] = totals.get(name, 0.0) + value.detach() * (len(index) / clips)
        record: Record = {"stage": stage, "epoch": epoch, "epochs": config.epochs, "lr": lr}
        record |= {name: float(value) for name, value in totals.items()}
        _check_finite(record["loss"], stage, epoch, config)
        rank: tuple[float, float] = (epoch, 0.0)
        if score is not None:
            module.eval()
            with torch.no_grad():
                found = score()
            _check_finite(found["loss"], stage, epoch, config)
            rank = (found[select], -found["loss"])
            record |= {f"val_{name}": value for name, value in found.items()}
        report(record)
        if rank > best_rank:
            best, best_rank, best_epoch = _snapshot(module), rank, epoch
        elif config.patience and epoch - best_epoch >= config.patience:
            break
    return Fitted(best, _snapshot(module), best_epoch, epoch)


@torch.no_grad()
def predict(model: nn.Module, split: SplitFeatures) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Softmax [N, C] float32, mean expert weights over valid steps [N, K] or None, and the cross entropy."""
    model.eval()
    logits, attention = [], []
    for index in torch.arange(len(split.label), device=split.label.device).split(EVAL_BATCH):
        batch = split.batch(index)
        out = model(batch)
        logits.append(out.logits)
        if out.attn is not None:
            valid = batch["sem_full_valid"].to(out.attn.dtype)
            attention.append((out.attn * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1))
    scores = torch.cat(logits)
    loss = float(nn.functional.cross_entropy(scores, split.label))
    return scores.softmax(-1).cpu().numpy(), torch.cat(attention).cpu().numpy() if attention else None, loss


def _check_finite(loss: float, stage: str, epoch: int, config: StageConfig) -> None:
    if not math.isfinite(loss):
        raise UserError(f"stage {stage}, epoch {epoch}: the loss is {loss}; lower lr (now {config.lr:g})")


def _snapshot(module: nn.Module) -> State:
    return copy.deepcopy(module.state_dict())


def _optimizer(module: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """Decay on matrices and kernels (two dimensions above 1) only."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if sum(size > 1 for size in p.shape) > 1]
    chosen = {id(p) for p in decayed}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in chosen], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, config.lr, fused=True)


def _factor(config: StageConfig, progress: float) -> float:
    """Learning rate as a share of config.lr after `progress` epochs."""
    if progress < config.warmup:
        return (progress + 0.1) / (config.warmup + 0.1)
    if config.schedule == "milestones":
        return config.gamma ** sum(progress >= m for m in config.milestones)
    if config.schedule == "cosine":
        span = max(config.epochs - config.warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - config.warmup) / span)))
    return 1.0
