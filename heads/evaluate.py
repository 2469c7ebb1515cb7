"""Finished runs reloaded from their checkpoint, on the cache they were trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heads import grouped, runs, spec
from heads.features import FeatureSet, SplitFeatures, load_features
from heads.loop import predict, probabilities
from heads.options import Config
from heads.spec import HeadInfo
from pipeline.errors import UserError


@dataclass(frozen=True)
class Restored:
    """A trained head and the clips of a split it can read, both on the device."""

    config: Config
    info: HeadInfo
    model: Any
    data: SplitFeatures


def restore(
    run_dir: Path,
    cache: Path,
    split: str = "val",
    *,
    checkpoint: str = "best",
    features: FeatureSet | None = None,
    unlabelled: bool = False,
    device: str = "cpu",
) -> Restored:
    """Reloads a run together with a split.

    Args:
        run_dir, cache, split: what and on what.
        checkpoint: "best" or "last".
        features: what `load_features` gave, instead of reading the cache.
        unlabelled: also read clips without a label.
        device: "cpu", "cuda", ...

    Raises:
        UserError: no run there, no clips, or a cache with other features or classes than the run was
            trained on.
    """
    config, info = runs.read_run(run_dir)
    needs = spec.needs(config)
    data = features or load_features(
        cache,
        info["dataset"],
        config.t_len,
        config.t_mode,
        needs=needs,
        splits=(split,),
        unlabelled=unlabelled,
    )
    data = data.only(needs)
    for stage, key in info["stages"].items():
        if data.keys.get(stage) != key:
            now = data.keys.get(stage, "nothing")[:16]
            raise UserError(
                f"{run_dir}: trained on {stage} {key[:16]}, the cache has {now}; train again or use its cache"
            )
    head_info = data.info(np.zeros((len(data.taxonomy.labels), 300), np.float32))
    if list(head_info.classes) != list(info["classes"]):
        raise UserError(f"{run_dir}: trained on other classes than {data.dataset} has now; train again")
    if split not in data.splits:
        if unknown := data.counts.get(split, {}).get("unlabelled"):
            raise UserError(
                f"{data.dataset}: E_EVAL_NO_LABELS the labels of all {unknown} clips of split {split} are withheld or "
                "unknown, so nothing can be scored; `bmoe-cache predict` writes predictions"
            )
        raise UserError(
            f"{data.dataset}: no usable clip in split {split}; choose another split or build the cache"
        )
    model = spec.build(config, head_info)
    runs.load_state(run_dir / f"{checkpoint}.safetensors", model)
    return Restored(config, head_info, model.to(device), data.splits[split].to(device))


def evaluate(run_dir: Path, cache: Path, split: str = "val", **options: Any) -> dict[str, float]:
    """Scores a run on a split (all of `heads.grouped.scores`); options and errors as `restore`.

    For another split than val, predictions and confusion matrix are added to the run folder under its name.
    """
    run = restore(run_dir, cache, split, **options)
    out = predict(run.model, run.data)
    found, label = probabilities(out["logits"], run.info.multi), run.data.label.cpu().numpy()
    if split != "val":
        attention = out["attn"].cpu().numpy() if "attn" in out else None
        runs.write_predictions(
            run_dir, run.data.clip_id, label, found, attention, names=run.info.classes, suffix=f"_{split}"
        )
    return grouped.scores(run.data, found, run.info.coarse)
