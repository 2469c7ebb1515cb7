"""Training of a head from cached features: both stages, then the files of the run folder."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from heads import metrics, runs, spec
from heads.config import Config
from heads.features import FeatureSet, load_features
from heads.labels import LabelVectors, label_vectors
from heads.loop import Record, predict, seed_of
from heads.stages import Run, load_expert, stage1, stage2
from pipeline.errors import UserError


@dataclass(frozen=True)
class RunResult:
    """Scores of the best epoch (shares of 1, all of `heads.metrics.scores`) and what they cost.

    `split` is "val", or "train" when there is no val: then the last epoch counts and the scores prove
    nothing.
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

    @property
    def top1(self) -> float:
        """Share of clips whose best class is right."""
        return self.scores["top1"]

    @property
    def f1_macro(self) -> float:
        """Mean F1 over all classes."""
        return self.scores["f1_macro"]


def train(
    cache: Path,
    dataset: str,
    config: Config,
    run_dir: Path,
    seed: int = 0,
    *,
    variant: str = "full",
    features: FeatureSet | None = None,
    experts_from: Path | None = None,
    device: str = "cpu",
    on_epoch: Callable[[Record], None] | None = None,
) -> RunResult:
    """Trains a head on split "train", picks the epoch on "val" and writes the run folder (see `heads.runs`).

    The same seed on the same machine and number of threads gives the same bytes.

    Args:
        cache: the cache folder.
        dataset: name of the data set in it.
        config: from `heads.config.load_config`.
        run_dir: a new or empty folder.
        seed: of initialisation, order and dropout.
        variant: a name for the record, e.g. of `heads.config.VARIANTS`; the config is taken as it is.
        features: what `load_features` gave for the same config, to read the cache once for many runs.
        experts_from: folder of a run whose stage-1 experts are taken instead of training them.
        device: "cpu", "cuda", ...
        on_epoch: called with every record; `heads.runs.epoch_line` formats one.

    Raises:
        UserError: missing features, no clips, a width that does not fit, a run folder in use, a loss not
            finite.
    """
    began = time.perf_counter()
    needs = spec.needs(config)
    data = features or load_features(cache, dataset, config.t_len, config.t_mode, needs=needs)
    data = data.only(needs)
    if (data.t_len, data.t_mode) != (config.t_len, config.t_mode):
        raise UserError(
            f"features have {data.t_len} steps by {data.t_mode}, unlike the config; load them again"
        )
    if "train" not in data.splits:
        raise UserError(f"{dataset}: no usable clip in split train ({_reasons(data)}); build the cache first")
    if experts_from is not None:
        _check_source(experts_from, data)
    vectors = _vectors(data, config)
    info = data.info(vectors.vectors)
    if config.expert_classes is not None:
        info = replace(info, experts=_checked(config.expert_classes, len(info.classes)))
    splits = {name: split.to(device) for name, split in data.splits.items()}
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed_of(seed, "init"))
        model = spec.build(config, info).to(device)
        facts = {"dataset": data.dataset, "variant": variant, "seed": seed, "device": device}
        facts |= {"experts_from": experts_from and str(experts_from), **runs.facts(data, info, vectors)}
        runs.create_run(run_dir, config, facts)
        with runs.Recorder(run_dir, config.tensorboard, on_epoch) as record:
            run = Run(config, info, splits, seed, run_dir, record)
            if hasattr(model, "fit_normalisation"):
                model.fit_normalisation(splits["train"].tensors)
            for region in getattr(model, "experts", ()):
                if experts_from is None:
                    stage1(run, model, region)
                else:
                    load_expert(run, model, region, experts_from)
            fitted = stage2(run, model)
    runs.save_state(run_dir / "last.safetensors", fitted.last)
    runs.save_state(run_dir / "best.safetensors", fitted.best)
    model.load_state_dict(fitted.best)
    split = "val" if "val" in splits else "train"
    shown = splits[split]
    probabilities, attention, _ = predict(model, shown)
    label = shown.label.cpu().numpy()
    runs.write_predictions(run_dir, shown.clip_id, label, probabilities, attention, names=info.classes)
    result = RunResult(
        run_dir=run_dir,
        dataset=data.dataset,
        variant=variant,
        seed=seed,
        split=split,
        scores=metrics.scores(label, probabilities, info.coarse),
        best_epoch=fitted.best_epoch,
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=round(time.perf_counter() - began, 3),
    )
    runs.write_json(run_dir / "result.json", asdict(result) | {"run_dir": run_dir.name})
    return result


def _vectors(data: FeatureSet, config: Config) -> LabelVectors:
    rules = config.labels
    return label_vectors(
        [label.name for label in data.taxonomy.labels],
        Path(rules.glove) if rules.glove else None,
        drop_words=rules.drop_words,
        oov=rules.oov,
        overrides=rules.overrides,
    )


def _checked(classes: dict[str, tuple[int, ...]], count: int) -> dict[str, tuple[int, ...]]:
    for region, ids in classes.items():
        if not all(0 <= i < count for i in ids) or len(set(ids)) != len(ids):
            raise UserError(
                f"expert_classes.{region}: {list(ids)} must be distinct and within 0..{count - 1}"
            )
    return classes


def _check_source(source: Path, data: FeatureSet) -> None:
    """Experts are of use only on the features they were trained on."""
    stages = runs.read_run(source)[1]["stages"]
    if "semantic" in data.keys and stages.get("semantic") != data.keys["semantic"]:
        raise UserError(f"{source}: its experts were trained on other semantic features; train them here")


def _reasons(data: FeatureSet) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in data.counts.get("train", {}).items())
