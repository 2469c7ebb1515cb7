"""The two training stages of B-MoE (section 3.4): each expert on its own classes, then the whole head.

Experts are kept beside the runs under a key of everything that decides them, so that ablations and later runs
take them instead of training them again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heads import metrics, spec
from heads.checkpoint import Checkpoint, read_state, write_state
from heads.features import FeatureSet, SplitFeatures
from heads.loop import EVAL_BATCH, Fitted, Reporter, Task, fit, predict, probabilities, seed_of
from heads.losses import chances, make_criterion
from heads.options import Config
from heads.step import Parts
from pipeline.spec import digest

FUSION = "fusion"  # name of stage 2 in the records; stage 1 is "expert:<name>"

# What of a config decides an expert; its classes and label vectors enter as they are.
OF_EXPERTS = {
    "d_model", "share_in_proj", "use_mask", "normalise", "expert_init_std", "emb_head", "emb_pool", "emb_reduction",
    "alpha", "select", "precision", "m3e", "sgp", "aug", "loss", "stage1",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs trained side by side.

    Attributes:
        config: of the first; others may differ in `experts` alone.
        data: the features, on the device.
        keys, seeds, reports: one per run; a key names everything that decides the run.
        experts: folder of the trained experts.
        state: file of an unfinished stage 2.
        every_s: seconds between two checkpoints.
    """

    config: Config
    info: spec.HeadInfo
    data: FeatureSet
    keys: Sequence[str]
    seeds: Sequence[int]
    reports: Sequence[Reporter]
    experts: Path
    state: Path
    compiled: bool = False
    every_s: float = 0.0

    @property
    def classes(self) -> int:
        """C."""
        return len(self.info.classes)

    @property
    def select(self) -> str:
        """The validation score that picks the epoch."""
        return self.config.select or ("map" if self.info.multi else "top1")


def expert_key(group: Group, name: str, expert: Any, seed: int) -> str:
    """SHA-256 of everything that decides a trained expert."""
    head = spec.head_spec(group.config.head)
    return digest(
        {
            "head": [head.name, head.version],
            "data": group.data.only(spec.SEMANTIC).digest,
            "expert": [name, expert.view, expert.assign.tolist()],
            "vectors": hashlib.sha256(expert.vectors.cpu().numpy().tobytes()).hexdigest(),
            "config": group.config.model_dump(mode="json", include=OF_EXPERTS),
            "seed": seed,
        }
    )


def stage1(group: Group, models: Sequence[Any], name: str) -> dict[int, str]:
    """Gives every model that has this expert a trained one: from the folder of experts where it is known.

    An expert learns from the clips of its classes in which its view is present; without any it keeps its
    initial weights. Returns run -> key of the expert.
    """
    device = group.data.splits["train"].label.device
    keys: dict[int, str] = {}
    untrained: dict[str, dict[int, Any]] = {}  # experts with the same clips -> run -> expert
    for i, (model, seed) in enumerate(zip(models, group.seeds, strict=True)):
        if name not in model.expert_names():
            continue
        torch.manual_seed(seed_of(seed, f"init expert:{name}"))
        expert = model.new_expert(name).to(device)
        key = expert_key(group, name, expert, seed)
        if key not in keys.values() and _known(group, name, key) is None:
            clips = digest([expert.view, expert.assign.tolist()])
            untrained.setdefault(clips, {})[i] = expert
        keys[i] = key
    trained = {i for experts in untrained.values() for i in _train_experts(group, name, experts, keys)}
    for i, key in list(keys.items()):
        known = _known(group, name, key)
        if known is None:  # no clips
            del keys[i]
            continue
        models[i].adopt(name, known[0])
        for record in () if i in trained else known[1]["records"]:
            group.reports[i](record, again=True)
    return keys


def _known(group: Group, name: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A trained expert: its state, and its facts."""
    found = read_state(_path(group, name, key))
    return found if found and found[1].get("key") == key else None


def _train_experts(group: Group, name: str, experts: dict[int, Any], keys: dict[int, str]) -> list[int]:
    """Trains the experts of these runs side by side and keeps them; without clips it does nothing.

    Returns the runs whose expert was trained.
    """
    task = _expert_task(group, name, experts)
    if task is None:
        return []
    wanted = [keys[i] for i in experts]
    checkpoint = Checkpoint(_path(group, name, wanted[0]).with_suffix(".part"), digest(wanted), group.every_s)
    fitted = fit(task, [group.reports[i] for i in experts], checkpoint)
    for key, result in zip(wanted, fitted, strict=True):
        facts = {"key": key, "best_epoch": result.best_epoch, "records": result.records}
        write_state(_path(group, name, key), result.best, facts)
    checkpoint.remove()
    return list(experts)


def _expert_task(group: Group, name: str, experts: dict[int, Any]) -> Task | None:
    config, multi = group.config, group.info.multi
    any_expert = next(iter(experts.values()))
    inputs, targets, local = {}, {}, {}
    for split, data in group.data.splits.items():
        target = data.target(group.classes)
        seen = any_expert.inputs(data.tensors)
        rows = (any_expert.local(target).any(-1) & seen["valid"].any(-1)).nonzero()[:, 0]
        if len(rows):
            inputs[split] = {name: tensor.index_select(0, rows) for name, tensor in seen.items()}
            targets[split] = target[rows]
            local[split] = any_expert.local(targets[split])
    if "train" not in inputs:
        return None
    criterion = make_criterion(local["train"], config.loss, config.stage1.label_smoothing, multi)
    plain = make_criterion(
        local["train"], config.loss.model_copy(update={"logit_adjustment": 0.0}), 0.0, multi
    )

    def parts(expert: Any, index: Tensor, weight: Tensor) -> Parts:
        out = expert({name: tensor.index_select(0, index) for name, tensor in inputs["train"].items()})
        return weighted(expert.loss(out, targets["train"].index_select(0, index), criterion), weight)

    def score(expert: Any) -> dict[str, float]:
        count = len(targets["val"])
        batches = (
            {n: t[i : i + EVAL_BATCH] for n, t in inputs["val"].items()} for i in range(0, count, EVAL_BATCH)
        )
        logits = torch.cat([expert(batch)["logits"] for batch in batches])
        truth = local["val"] if multi else local["val"].argmax(-1)
        found = metrics.scores(truth.cpu().numpy(), probabilities(logits, multi))
        return found | {"loss": float(plain(logits, local["val"]).mean())}

    return Task(
        stage=f"expert:{name}",
        config=config.stage1,
        modules=list(experts.values()),
        seeds=[group.seeds[i] for i in experts],
        clips=len(targets["train"]),
        parts=parts,
        score=score if "val" in inputs else None,
        select=group.select,
        chances=chances(local["train"], config.loss),
        precision=config.precision,
        compiled=group.compiled,
    )


def stage2(group: Group, models: Sequence[Any]) -> list[Fitted]:
    """Trains the whole heads, with cross entropy alone unless a head has a loss of its own."""
    config, multi = group.config, group.info.multi
    split = group.data.splits["train"]
    target = split.target(group.classes)
    criterion = make_criterion(target, config.loss, config.stage2.label_smoothing, multi)

    def parts(model: Any, index: Tensor, weight: Tensor) -> Parts:
        out, wanted = model(split.batch(index)), target.index_select(0, index)
        own = getattr(model, "loss", None)
        losses = own(out, wanted, criterion) if own else {"loss": criterion(out["logits"], wanted)}
        return weighted(losses, weight)

    task = Task(
        stage=FUSION,
        config=config.stage2,
        modules=models,
        seeds=group.seeds,
        clips=len(target),
        parts=parts,
        score=_scorer(group, group.data.splits["val"]) if "val" in group.data.splits else None,
        select=group.select,
        chances=chances(target, config.loss),
        precision=config.precision,
        compiled=group.compiled,
    )
    checkpoint = Checkpoint(group.state, digest(list(group.keys)), group.every_s)
    fitted = fit(task, group.reports, checkpoint)
    checkpoint.remove()
    return fitted


def _scorer(group: Group, split: SplitFeatures) -> Any:
    multi, target = group.info.multi, split.target(group.classes)
    plain = make_criterion(target, group.config.loss.model_copy(update={"logit_adjustment": 0.0}), 0.0, multi)
    truth = split.label.cpu().numpy()

    def score(model: nn.Module) -> dict[str, float]:
        logits = predict(model, split)["logits"]
        found = metrics.scores(truth, probabilities(logits, multi), group.info.coarse)
        return found | {"loss": float(plain(logits, target).mean())}

    return score


def weighted(losses: dict[str, Tensor], weight: Tensor) -> Parts:
    """Means over the clips of a batch [B] that count."""
    return {name: (value * weight).sum() / weight.sum() for name, value in losses.items()}


def _path(group: Group, name: str, key: str) -> Path:
    return group.experts / f"{name}-{key[:16]}.safetensors"
