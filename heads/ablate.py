"""The paper's ablations as functions: Tab. 3 (streams) and Tab. 4 (one expert removed). No encoder runs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from heads import metrics, runs
from heads.config import load_config, variant_config
from heads.evaluate import restore
from heads.loop import predict, probabilities
from heads.options import Config
from heads.paper import SHOWN, shown, side_by_side, table_text
from heads.runs import Predictions
from heads.sweep import Job, Sweep, encoded, train_all
from pipeline.errors import UserError
from pipeline.store.reader import Cache


def ablate_streams(sweep: Sweep, config: Config) -> dict[str, Any]:
    """Tab. 3: semantic stream alone, motion stream alone, both.

    The paper's motion-only row is MANet itself. It is there as manet_cached where the cached scores are of the data
    set's classes; motion_only is this head without its semantic stream.

    Returns:
        the table of `heads.paper.side_by_side`, both_beats_each (mean of `score`, the first that tables show), and
        encoder_forwards: clips that had to be encoded for it.
    """
    before = encoded(sweep.cache, sweep.dataset)
    jobs = [
        Job(name, variant_config(config, name), name) for name in ("semantic_only", "motion_only", "full")
    ]
    if _own_scores(sweep):
        jobs.insert(2, Job("manet_cached", load_config("manet_cached"), "manet_cached"))
    results = train_all(sweep, jobs)
    rows = {
        ("both" if name == "full" else name): [r.scores for r in found] for name, found in results.items()
    }
    score = shown(rows["both"][0])[0]
    means = {name: fmean(run[score] for run in found) for name, found in rows.items()}
    return {
        **side_by_side("tab3", sweep.dataset, rows),
        "score": score,
        "both_beats_each": means["both"] > max(means["semantic_only"], means["motion_only"]),
        "encoder_forwards": encoded(sweep.cache, sweep.dataset) - before,
    }


def ablate_experts(sweep: Sweep, config: Config, retrain: bool = True) -> dict[str, Any]:
    """Tab. 4: every expert removed once. The paper does not say whether the rest is trained again.

    Args:
        sweep, config: what to train and from what.
        retrain: train the head anew without the expert, from the same stage-1 experts; False: leave the expert out
            of the trained head when it predicts.

    Returns:
        the table of `heads.paper.side_by_side`; costs: row -> expert -> share of the clips of that expert's classes
        (composites: of nobody's) that are no longer recognised, empty where no expert has classes with clips;
        own_costs_most: row of such an expert -> whether that is more for its classes than for those of any
        other; encoder_forwards as in `ablate_streams`.
    """
    if config.head != "bmoe" or not config.semantic.enabled:
        raise UserError("ablate experts needs a B-MoE with its semantic stream; choose such a head preset")
    before = encoded(sweep.cache, sweep.dataset)
    full = Job("full", variant_config(config, "full"))
    drops = {f"drop_{name}": name for name in config.experts}
    dropped = [Job(row, variant_config(config, row), row) for row in drops] if retrain else []
    results = train_all(sweep, [full, *dropped])
    found = {name: [runs.read_predictions(r.run_dir) for r in kept] for name, kept in results.items()}
    if not retrain:
        found |= {
            row: [_without(sweep, r.run_dir, name) for r in results["full"]] for row, name in drops.items()
        }
    info = runs.read_run(results["full"][0].run_dir)[1]
    rows = {("none" if name == "full" else name): kept for name, kept in found.items()}
    scores = {
        name: [metrics.scores(p.label, p.probabilities, info["coarse"]) for p in kept]
        for name, kept in rows.items()
    }
    costs = (
        {row: _costs(rows["none"], rows[row], _owned(config, info)) for row in drops}
        if not info["multi"]
        else {}
    )
    costs = {row: cost for row, cost in costs.items() if cost.keys() & config.experts.keys()}
    return {
        **side_by_side("tab4", sweep.dataset, scores),
        "retrained": retrain,
        "costs": costs,
        "own_costs_most": {
            row: _dearest(config, c) == drops[row] for row, c in costs.items() if drops[row] in c
        },
        "encoder_forwards": encoded(sweep.cache, sweep.dataset) - before,
    }


def _own_scores(sweep: Sweep) -> bool:
    """Whether the motion encoder scored the classes of the data set."""
    cache = Cache(sweep.cache)
    key = cache.builds(sweep.dataset)["stages"].get("motion")
    logits = cache.stage("motion", key).arrays.get("logits") if key else None
    return logits is not None and logits.row_shape == (len(cache.dataset(sweep.dataset).taxonomy.labels),)


def _without(sweep: Sweep, run_dir: Any, name: str) -> Predictions:
    """What a trained head predicts on val without one of its experts."""
    run = restore(run_dir, sweep.cache, device=sweep.device)
    run.model.silent = (name,)
    logits = predict(run.model, run.data)["logits"]
    label = run.data.label.cpu().numpy()
    return Predictions(run.data.clip_id, label, probabilities(logits, run.info.multi), None)


def _owned(config: Config, info: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Expert -> its classes of stage 1, and composites -> the classes of none."""
    chosen = config.expert_classes
    sets = info["expert_classes"][chosen] if isinstance(chosen, str) else chosen
    owned: dict[str, Sequence[int]] = {name: list(sets.get(name, ())) for name in config.experts}
    every = {c for ids in owned.values() for c in ids}
    return owned | {"composites": [c for c in range(len(info["classes"])) if c not in every]}


def _dearest(config: Config, costs: Mapping[str, float]) -> str:
    """The expert whose classes suffer most."""
    return max((name for name in config.experts if name in costs), key=lambda name: costs[name])


def _costs(
    full: Sequence[Predictions], dropped: Sequence[Predictions], owned: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    def recall(kept: Sequence[Predictions], classes: Sequence[int]) -> float:
        return fmean(
            float((p.probabilities.argmax(1) == p.label)[np.isin(p.label, classes)].mean()) for p in kept
        )

    present = {name: ids for name, ids in owned.items() if np.isin(full[0].label, ids).any()}
    return {name: recall(full, ids) - recall(dropped, ids) for name, ids in present.items()}


def streams_text(record: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    verdict = "beat" if record["both_beats_each"] else "do not beat"
    mean = f"mean {SHOWN[record['score']]}"
    return "\n".join(
        [
            table_text(record),
            f"both streams {verdict} each alone ({mean}); encoder forwards: {record['encoder_forwards']}",
        ]
    )


def experts_text(record: Mapping[str, Any]) -> str:
    """The table for a terminal, and the matrix of the costs."""
    how = "trained again without it" if record["retrained"] else "left out when predicting"
    lines = [table_text(record)]
    for number, (row, costs) in enumerate(record["costs"].items()):
        if not number:
            lines += ["", f"{'cost by classes of':<18}" + "".join(f"{name:>13}" for name in costs)]
        mark = "" if record["own_costs_most"].get(row, True) else "   not most on its own"
        lines.append(f"{row:<18}" + "".join(f"{100 * cost:13.2f}" for cost in costs.values()) + mark)
    if verdicts := record["own_costs_most"].values():
        some = " that have classes with clips" if len(verdicts) < len(record["costs"]) else ""
        lines.append(f"costs most on its own classes: {sum(verdicts)} of {len(verdicts)} experts{some}")
    return "\n".join([*lines, f"the expert is {how}; encoder forwards: {record['encoder_forwards']}"])
