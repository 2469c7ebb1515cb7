"""Scores of a finished run, from its checkpoint and the cache it was trained on."""

from pathlib import Path

import numpy as np

from heads import metrics, runs, spec
from heads.features import FeatureSet, load_features
from heads.loop import predict
from pipeline.errors import UserError


def evaluate(
    run_dir: Path,
    cache: Path,
    split: str = "val",
    *,
    checkpoint: str = "best",
    features: FeatureSet | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Reloads a run and scores it on a split (all of `heads.metrics.scores`).

    For another split than val, predictions and confusion matrix are added to the run folder under its name.

    Raises:
        UserError: no run there, no clips, or a cache with other features or classes than the run was
            trained on.
    """
    config, info = runs.read_run(run_dir)
    needs = spec.needs(config)
    data = features or load_features(
        cache, info["dataset"], config.t_len, config.t_mode, needs=needs, splits=(split,)
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
        raise UserError(
            f"{data.dataset}: no usable clip in split {split}; choose another split or build the cache"
        )
    model = spec.build(config, head_info)
    runs.load_state(run_dir / f"{checkpoint}.safetensors", model)
    model.to(device)
    chosen = data.splits[split].to(device)
    probabilities, attention, _ = predict(model, chosen)
    label = chosen.label.cpu().numpy()
    if split != "val":
        names, suffix = head_info.classes, f"_{split}"
        runs.write_predictions(
            run_dir, chosen.clip_id, label, probabilities, attention, names=names, suffix=suffix
        )
    return metrics.scores(label, probabilities, head_info.coarse)
