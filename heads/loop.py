"""The training loop of both stages, for one run or several side by side; and prediction over a split.

Nothing in an epoch is per sample, and the host waits for the device once per epoch.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from heads.checkpoint import Checkpoint, stop_between_epochs
from heads.features import SplitFeatures
from heads.optim import make_optimizer, set_rate
from heads.options import StageConfig
from heads.progress import Progress, Record, State
from heads.step import PartsOf, Runs, Step
from pipeline.errors import UserError

EVAL_BATCH = 512


class Reporter(Protocol):
    """Takes the record of every epoch; `again` marks those of an interrupted run, told a second time."""

    def __call__(self, record: Record, again: bool = False) -> None: ...


@dataclass(frozen=True)
class Task:
    """What a stage trains.

    Attributes:
        stage: name for records and messages.
        config: of the stage.
        modules: the same module, once per run; all their parameters train unless frozen.
        seeds: of the order of the clips and of dropout, one per run.
        clips: number of training clips; an index counts within them.
        parts: losses of a batch; "loss" is minimised, weight says how much a clip counts.
        score: validation scores of a module after an epoch, or None: then the last epoch counts as the best.
        select: the score that picks the epoch; ties go to the lower "loss" in the scores.
        chances: float [clips], how often a clip is drawn, with replacement; None = every clip once per epoch.
        precision, compiled: of the step.
    """

    stage: str
    config: StageConfig
    modules: Sequence[nn.Module]
    seeds: Sequence[int]
    clips: int
    parts: PartsOf
    score: Callable[[nn.Module], dict[str, float]] | None
    select: str
    chances: Tensor | None = None
    precision: str = "fp32"
    compiled: bool = False


@dataclass(frozen=True)
class Fitted:
    """State dicts of the best epoch (counted from 1; 0 = the untrained module) and of the last one."""

    best: State
    last: State
    best_epoch: int
    records: list[Record]


def seed_of(seed: int, name: str) -> int:
    """The seed of one part of a run, so that no part depends on how many numbers another one drew."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "little")


def fit(task: Task, report: Sequence[Reporter], checkpoint: Checkpoint | None = None) -> list[Fitted]:
    """Trains the modules and returns their states; the modules are left at the best epoch.

    Args:
        task: what to train.
        report: called with the record of every epoch, one per run.
        checkpoint: where to go on from, and to save to.

    Raises:
        UserError: the loss is not finite, nothing matches an entry of `freeze`, or there is no score `select`.
    """
    config, runs = task.config, Runs(task.modules)
    optimizer = make_optimizer(runs.whole, config)
    if optimizer is None:  # nothing to train
        return [Fitted(state, state, 0, []) for state in map(_state, task.modules)]
    orders = [torch.Generator().manual_seed(seed_of(seed, f"{task.stage} order")) for seed in task.seeds]
    torch.manual_seed(seed_of(task.seeds[0], f"{task.stage} dropout"))
    progress = Progress(runs.parameters(), optimizer, orders)
    if checkpoint is not None and (found := checkpoint.load()):
        progress.restore(*found)
        for tell, run in zip(report, progress.runs, strict=True):
            for known in run.records:
                tell(known, again=True)
    step = Step(runs, task.parts, optimizer, config, precision=task.precision, compiled=task.compiled)
    with stop_between_epochs() as stopping:
        while progress.epoch < config.epochs and not all(run.stopped for run in progress.runs):
            lr, totals = train_epoch(task, runs, step, orders, progress.epoch)
            progress.epoch += 1
            _close_epoch(task, runs, progress, report, {"lr": lr}, dict(zip(step.names, totals, strict=True)))
            if checkpoint is not None and (stopping or checkpoint.due()):
                checkpoint.save(*progress.state())
            if stopping:
                break
    fitted = []
    for i, (module, run) in enumerate(zip(task.modules, progress.runs, strict=True)):
        progress.take(progress.last, i)
        last = _state(module)
        progress.take(progress.best, i)
        fitted.append(Fitted(_state(module), last, run.best_epoch, run.records))
    return fitted


def _close_epoch(
    task: Task,
    runs: Runs,
    progress: Progress,
    report: Sequence[Reporter],
    rate: dict[str, float],
    losses: dict[str, list[float]],
) -> None:
    """Score every run that goes on, tell of it, and keep its weights where they are the best or the last."""
    config = task.config
    for i, run in enumerate(progress.runs):
        if run.stopped:
            continue
        record: Record = {"stage": task.stage, "epoch": progress.epoch, "epochs": config.epochs, **rate}
        record |= {name: values[i] for name, values in losses.items()}
        rank = _judge(task, runs, i, record)
        run.records.append(record)
        report[i](record)
        if rank > run.best_rank:
            run.best_rank, run.best_epoch = rank, progress.epoch
            progress.keep(progress.best, i)
        run.stopped = bool(config.patience) and progress.epoch - run.best_epoch >= config.patience
        if run.stopped or progress.epoch == config.epochs:
            progress.keep(progress.last, i)


def train_epoch(
    task: Task, runs: Runs, step: Step, orders: Sequence[torch.Generator], done: int
) -> tuple[float, list[list[float]]]:
    """Trains one epoch after `done` others: the last learning rate, and the losses [parts][runs]."""
    runs.train(True)
    step.start()
    batch = task.config.batch
    steps = max(1, math.ceil(task.clips / batch))
    index = torch.zeros(len(runs), steps * batch, dtype=torch.int64)
    for row, order in zip(index, orders, strict=True):
        row[: task.clips] = _shuffled(task, order)
    index = index.to(step.device)
    weight = (torch.arange(steps * batch) < task.clips).float().to(step.device)
    lr = 0.0
    for number in range(steps):
        lr = set_rate(step.optimizer, task.config, done + number / steps)
        chosen = slice(number * batch, (number + 1) * batch)
        step(index[:, chosen], weight[chosen], task.clips)
    return lr, step.totals.tolist()


def _shuffled(task: Task, order: torch.Generator) -> Tensor:
    if task.chances is None:
        return torch.randperm(task.clips, generator=order)
    return torch.multinomial(task.chances, task.clips, replacement=True, generator=order)


def _judge(task: Task, runs: Runs, i: int, record: Record) -> tuple[float, float]:
    """The rank of this epoch; the validation scores are added to the record."""
    _check_finite(record["loss"], task, record["epoch"])
    if task.score is None:
        return (record["epoch"], 0.0)
    runs.train(False)
    with torch.no_grad():
        found = task.score(runs.modules[i])
    _check_finite(found["loss"], task, record["epoch"])
    if task.select not in found:
        raise UserError(f"select={task.select}: scores of these labels are {', '.join(found)}")
    record |= {f"val_{name}": value for name, value in found.items()}
    return (found[task.select], -found["loss"])


def _check_finite(loss: float, task: Task, epoch: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"stage {task.stage}, epoch {epoch}: the loss is {loss}; lower lr (now {task.config.lr:g})"
        )


def _state(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def predict(model: nn.Module, split: SplitFeatures) -> dict[str, Tensor]:
    """logits [N, C]; attn [N, K], the mean expert weights over valid steps, if the head weighs experts."""
    model.eval()
    found: dict[str, list[Tensor]] = {}
    device = next(iter(split.tensors.values())).device
    for index in torch.arange(len(split.clip_id), device=device).split(EVAL_BATCH):
        batch = split.batch(index)
        out = model(batch)
        found.setdefault("logits", []).append(out["logits"])
        if "attn" in out:
            valid = batch["sem_full_valid"].to(out["attn"].dtype)[..., None]
            mean = (out["attn"] * valid).sum(1) / valid.sum(1).clamp(min=1)
            found.setdefault("attn", []).append(mean)
    return {name: torch.cat(values) for name, values in found.items()}


def probabilities(logits: Tensor, multi: bool) -> np.ndarray:
    """Float32 [N, C]: softmax, or sigmoids where a clip may have several labels."""
    return (logits.sigmoid() if multi else logits.softmax(-1)).cpu().numpy()
