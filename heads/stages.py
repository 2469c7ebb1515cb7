"""The two training stages of B-MoE (section 3.4): each expert on its own classes, then the whole head."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads import metrics, runs
from heads.config import Config
from heads.features import SplitFeatures
from heads.loop import EVAL_BATCH, Fitted, Record, fit, predict, seed_of
from heads.m3e import ExpertHeads
from heads.spec import HeadInfo
from pipeline.spec import REGIONS

FUSION = "fusion"  # name of stage 2 in the records; stage 1 is "expert:<region>"


@dataclass(frozen=True)
class Run:
    """What both stages share."""

    config: Config
    info: HeadInfo
    splits: dict[str, SplitFeatures]
    seed: int
    run_dir: Path
    record: Callable[[Record], None]


class Expert(nn.Module):
    """An M3E with the heads of stage 1, seen as one trainable module."""

    def __init__(self, m3e: nn.Module, heads: ExpertHeads) -> None:
        super().__init__()
        self.m3e = m3e
        self.heads = heads

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, D], valid [B, T] -> (logits [B, n], embedding [B, 300])."""
        logits, embedding = self.heads(self.m3e(x, valid), valid)
        return logits, embedding


def stage1(run: Run, model: Any, region: str) -> None:
    """Trains the expert of one region on the clips of its classes in which the region is present.

    Loss: cross entropy over those classes + alpha x the mean squared error of the 300-d label embedding (the
    mean over clips and dimensions, as in the authors' code; a sum would weigh it 300 times more).
    """
    config, splits = run.config, run.splits
    device = splits["train"].label.device
    classes = torch.tensor(run.info.experts.get(region, ()), dtype=torch.int64, device=device)
    chosen = {name: _clips_of(split, region, classes) for name, split in splits.items()}
    if len(chosen["train"]) == 0:
        return  # the expert keeps its initial weights and gets no checkpoint
    local = torch.full((len(run.info.classes),), -1, dtype=torch.int64, device=device)
    local[classes] = torch.arange(len(classes), device=device)
    targets = torch.from_numpy(run.info.label_vectors).to(device)
    torch.manual_seed(seed_of(run.seed, f"init expert:{region}"))
    expert = _expert(run, model, region).to(device)

    def outputs(split: SplitFeatures, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        names = ("sem_parts", "sem_parts_valid")
        batch = {name: split.tensors[name].index_select(0, index) for name in names}
        if model.training != expert.training:  # for the regularisers of the input
            model.train(expert.training)
        logits, embedding = expert(*model.expert_input(batch, region))
        return logits, embedding, split.label[index]

    def loss(index: Tensor) -> dict[str, Tensor]:
        logits, embedding, label = outputs(splits["train"], chosen["train"][index])
        ce = F.cross_entropy(logits, local[label], label_smoothing=config.stage1.label_smoothing)
        emb = F.mse_loss(embedding, targets[label])
        return {"loss": ce + config.alpha * emb, "ce": ce, "emb": emb}

    def score() -> dict[str, float]:
        parts = [outputs(splits["val"], index) for index in chosen["val"].split(EVAL_BATCH)]
        logits = torch.cat([p[0] for p in parts])
        truth = local[torch.cat([p[2] for p in parts])]
        found = metrics.scores(truth.cpu().numpy(), logits.cpu().numpy())
        return found | {"loss": float(F.cross_entropy(logits, truth))}

    fitted = fit(
        expert,
        f"expert:{region}",
        config.stage1,
        clips=len(chosen["train"]),
        loss=loss,
        score=score if len(chosen.get("val", ())) else None,
        select=config.select,
        seed=run.seed,
        report=run.record,
    )
    expert.load_state_dict(fitted.best)
    runs.save_state(run.run_dir / "experts" / f"{region}.safetensors", fitted.best)


def stage2(run: Run, model: Any) -> Fitted:
    """Trains the whole head with cross entropy alone."""
    split, smoothing = run.splits["train"], run.config.stage2.label_smoothing

    def loss(index: Tensor) -> dict[str, Tensor]:
        logits = model(split.batch(index)).logits
        return {"loss": F.cross_entropy(logits, split.label[index], label_smoothing=smoothing)}

    def score() -> dict[str, float]:
        probabilities, _, value = predict(model, run.splits["val"])
        truth = run.splits["val"].label.cpu().numpy()
        return metrics.scores(truth, probabilities, run.info.coarse) | {"loss": value}

    return fit(
        model,
        FUSION,
        run.config.stage2,
        clips=len(split.label),
        loss=loss,
        score=score if "val" in run.splits else None,
        select=run.config.select,
        seed=run.seed,
        report=run.record,
    )


def _expert(run: Run, model: Any, region: str) -> Expert:
    width = model.routing.k.in_features
    heads = ExpertHeads(width, len(run.info.experts.get(region, ())), run.config.emb_pool)
    return Expert(model.experts[region], heads)


def load_expert(run: Run, model: Any, region: str, source: Path) -> None:
    path = source / "experts" / f"{region}.safetensors"
    if path.exists() or not (source / "result.json").exists():
        runs.load_state(path, _expert(run, model, region).to(next(model.parameters()).device))
    # else: a finished run without this expert had no clips for it either


def _clips_of(split: SplitFeatures, region: str, classes: Tensor) -> Tensor:
    """Index of the clips whose label is among the classes and whose region is present at some step."""
    seen = split.tensors["sem_parts_valid"][:, REGIONS.index(region)].any(-1)
    return (torch.isin(split.label, classes) & seen).nonzero()[:, 0]
