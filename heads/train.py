"""Training of a head from cached features: both stages, then the files of the run folder."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heads import grouped, metrics, runs, spec
from heads.checkpoint import EVERY_S, write_state
from heads.features import FeatureSet, load_features
from heads.labels import LabelVectors, label_vectors
from heads.loop import Fitted, predict, probabilities, seed_of
from heads.options import Config
from heads.progress import Record
from heads.stages import Group, stage1, stage2
from heads.step import arithmetic, autocast
from pipeline.errors import UserError
from pipeline.spec import digest


@dataclass(frozen=True)
class RunResult:
    """Scores of the best epoch (shares of 1, all of `heads.grouped.scores`) and what they cost.

    `split` is "val", or "train" when there is no val: then the last epoch counts and the scores prove nothing.
    `seconds` are shared by runs that were trained side by side. `experts` are the keys of its stage-1 experts.
    `difference` says how far predictions in a lower
    precision are from these, which are made in fp32 (empty for an fp32 run).
    """

    run_dir: Path
    dataset: str
    variant: str
    seed: int
    split: str
    scores: dict[str, float]
    best_epoch: int
    parameters: int
    seconds: float
    experts: dict[str, str] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Share of clips whose best class is right."""
        return self.scores["top1"]

    @property
    def f1_macro(self) -> float:
        """Mean F1 over all classes."""
        return self.scores["f1_macro"]


@dataclass(frozen=True)
class RunPlan:
    """A run to be trained.

    Attributes:
        folder: a new folder, or that of the interrupted run.
        config: from `heads.config.load_config`.
        seed: of initialisation, order and dropout.
        variant: a name for the record, e.g. of `heads.config.variant_config`; the config is taken as it is.
    """

    folder: Path
    config: Config
    seed: int = 0
    variant: str = "full"


def train(
    cache: Path,
    dataset: str,
    config: Config,
    run_dir: Path,
    seed: int = 0,
    *,
    variant: str = "full",
    **options: Any,
) -> RunResult:
    """One run; see `train_group` for the options."""
    return train_group(cache, dataset, [RunPlan(run_dir, config, seed, variant)], **options)[0]


def train_group(
    cache: Path,
    dataset: str,
    plans: Sequence[RunPlan],
    *,
    features: FeatureSet | None = None,
    experts: Path | None = None,
    device: str = "cpu",
    compiled: bool = False,
    every_s: float = EVERY_S,
    on_epoch: Callable[[Record], None] | None = None,
) -> list[RunResult]:
    """Trains heads on split "train", picks the epoch on "val" and writes run folders (see `heads.runs`).

    Several runs train side by side as one batched model: faster on a GPU, and on a CPU for narrow models. The
    same runs on the same machine and number of threads give the same bytes. An interrupted call goes on where
    it was, and gives the bytes of an uninterrupted one.

    Args:
        cache: the cache folder.
        dataset: name of the data set in it.
        plans: the runs. Their configs are equal but for the names and views of as many experts.
        features: what `load_features` gave for the same config, to read the cache once for many runs.
        experts: folder where trained experts are kept and found; default: beside the first run.
        device: "cpu", "cuda", ...
        compiled: compile the step with torch.compile, which takes a minute and pays for long runs.
        every_s: seconds between two checkpoints of an unfinished stage; 0 = every epoch.
        on_epoch: called with every record; `heads.runs.epoch_line` formats one.

    Raises:
        UserError: missing features, no clips, a width that does not fit, a run folder in use, a loss not
            finite.
        ValueError: configs that cannot train side by side.
    """
    began = time.perf_counter()
    config, first = plans[0].config, plans[0].folder
    if len({side_by_side_key(plan.config) for plan in plans}) > 1:
        raise ValueError("configs that differ in more than their experts cannot train side by side")
    needs = spec.needs(config)
    data = features or load_features(cache, dataset, config.t_len, config.t_mode, needs=needs)
    data = data.only(needs)
    if (data.t_len, data.t_mode) != (config.t_len, config.t_mode):
        raise UserError(
            f"features have {data.t_len} steps by {data.t_mode}, unlike the config; load them again"
        )
    if "train" not in data.splits:
        raise UserError(f"{dataset}: no usable clip in split train ({_reasons(data)}); build the cache first")
    vectors = _vectors(data, config)
    info = data.info(vectors.vectors)
    data = data.to(device)
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda), arithmetic(config.precision, device), ExitStack() as stack:
        models = _models(plans, info, data, device)
        reports, run_keys = [], []
        for plan in plans:
            facts = {"dataset": dataset, "variant": plan.variant, "seed": plan.seed, "device": device}
            facts["key"] = digest([plan.seed, plan.config.model_dump(mode="json"), data.digest])
            runs.open_run(plan.folder, plan.config, facts | runs.facts(data, info, vectors), vectors)
            reports.append(stack.enter_context(runs.Recorder(plan.folder, config.tensorboard, on_epoch)))
            run_keys.append(str(facts["key"]))
        group = Group(
            config, info, data, run_keys, [plan.seed for plan in plans], reports,
            experts or first.parent / "experts", first / "state.safetensors", compiled, every_s,
        )  # fmt: skip
        names = dict.fromkeys(n for model in models for n in getattr(model, "expert_names", tuple)())
        keys = {name: stage1(group, models, name) for name in names}
        fitted = stage2(group, models)
    results = []
    for i, (plan, model, fit) in enumerate(zip(plans, models, fitted, strict=True)):
        scores, difference = _write(group, model, fit, plan.folder)
        result = RunResult(
            run_dir=plan.folder,
            dataset=dataset,
            variant=plan.variant,
            seed=plan.seed,
            split=_shown(data),
            scores=scores,
            best_epoch=fit.best_epoch,
            parameters=sum(p.numel() for p in model.parameters()),
            seconds=round(time.perf_counter() - began, 3),
            experts={name: found[i] for name, found in keys.items() if i in found},
            difference=difference,
        )
        runs.write_json(plan.folder / "result.json", asdict(result) | {"run_dir": plan.folder.name})
        results.append(result)
    return results


def side_by_side_key(config: Config) -> str:
    """Equal for configs whose runs can train side by side."""
    return digest(config.model_dump(mode="json") | {"experts": len(config.experts)})


def _models(plans: Sequence[RunPlan], info: spec.HeadInfo, data: FeatureSet, device: str) -> list[Any]:
    """Untrained heads, one per run, with the statistics of the train split."""
    models: list[Any] = []
    fitted: dict[str, torch.nn.Module] = {}  # experts -> a model with the statistics of their views
    for plan in plans:
        torch.manual_seed(seed_of(plan.seed, "init"))
        model = spec.build(plan.config, info).to(device)
        views = digest(plan.config.experts)
        if views in fitted:
            model.load_state_dict(dict(fitted[views].named_buffers()), strict=False)
        elif hasattr(model, "fit_normalisation"):
            model.fit_normalisation(data.splits["train"].tensors)
            fitted[views] = model
        models.append(model)
    return models


def _write(
    group: Group, model: torch.nn.Module, fit: Fitted, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Checkpoints, predictions and confusion matrix of one run; its scores, and what low precision changes."""
    write_state(folder / "last.safetensors", fit.last)
    write_state(folder / "best.safetensors", fit.best)
    split, multi, precision = group.data.splits[_shown(group.data)], group.info.multi, group.config.precision
    out = predict(model, split)
    found, label = probabilities(out["logits"], multi), split.label.cpu().numpy()
    attention = out["attn"].cpu().numpy() if "attn" in out else None
    runs.write_predictions(folder, split.clip_id, label, found, attention, names=group.info.classes)
    scores = grouped.scores(split, found, group.info.coarse)
    if precision == "fp32":
        return scores, {}
    device = split.label.device
    with arithmetic(precision, device.type), autocast(precision, device):
        low = probabilities(predict(model, split)["logits"].float(), multi)
    others = metrics.scores(label, low, group.info.coarse)
    difference = {name: value - scores[name] for name, value in others.items()}
    return scores, difference | {"probability_max": float(np.abs(low - found).max())}


def _shown(data: FeatureSet) -> str:
    return "val" if "val" in data.splits else "train"


def _vectors(data: FeatureSet, config: Config) -> LabelVectors:
    rules = config.labels
    return label_vectors(
        [label.name for label in data.taxonomy.labels],
        Path(rules.glove) if rules.glove else None,
        drop_words=rules.drop_words,
        oov=rules.oov,
        overrides=rules.overrides,
    )


def _reasons(data: FeatureSet) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in data.counts.get("train", {}).items())
