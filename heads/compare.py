"""Fig. 6: two runs class by class, with hits and the share of the class in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from heads import runs
from heads.figures import bars
from heads.paper import paper, spread
from heads.runs import Predictions
from pipeline.errors import UserError

SHOWN = 10  # classes of the bar chart: those that differ most, as many as the paper shows


def compare_runs(a: Sequence[Path], b: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Accuracy of two heads on every class of val; with `out` also a bar chart (PNG) of what differs most.

    It reads stored predictions and no cache, so it costs no forward of an encoder.

    Args:
        a, b: the runs of each head, one per seed.

    Returns:
        rows in the order of the classes: class, a, b and difference (shares of 1, means over the runs), a_std and
        b_std over the runs, a_hits, b_hits (means), clips, train_share, and paper (its row of Fig. 6, percent)
        where the data set is MA-52 and the class is there.

    Raises:
        UserError: no predictions, several labels, or predictions of different clips.
    """
    info = runs.read_run(a[0])[1]
    sides = [[runs.read_predictions(run) for run in side] for side in (a, b)]
    first = sides[0][0]
    if first.label.ndim > 1:
        raise UserError(f"{a[0]}: clips with several labels have no accuracy by class")
    for run, found in zip((*a, *b), (*sides[0], *sides[1]), strict=True):
        if found.clip_id != first.clip_id or not np.array_equal(found.label, first.label):
            raise UserError(f"{run}: predicts other clips than {a[0]}; compare runs on the same cache")
    published = paper()["fig6"] if info["dataset"] == "ma52" else {}
    rows = [
        {
            "class": one["class"],
            "a": one["share"],
            "b": other["share"],
            "difference": one["share"] - other["share"],
            "a_std": one["std"],
            "b_std": other["std"],
            "a_hits": one["hits"],
            "b_hits": other["hits"],
            "clips": one["clips"],
            "train_share": one["train_share"],
            "paper": published.get(one["class"]),
        }
        for one, other in zip(*(class_rows(info, side) for side in sides), strict=True)
    ]
    record: dict[str, Any] = {
        "a": [str(run) for run in a],
        "b": [str(run) for run in b],
        "dataset": info["dataset"],
        "rows": rows,
        "encoder_forwards": 0,
    }
    if out is not None:
        most = sorted((r for r in rows if r["clips"]), key=lambda r: -abs(r["difference"]))[:SHOWN]
        out.parent.mkdir(parents=True, exist_ok=True)
        series = {name: [r[side] for r in most] for side, name in (("a", _name(a)), ("b", _name(b)))}
        bars(out, [r["class"] for r in most], series, "accuracy by class, val, in percent")
        record["png"] = str(out)
    return record


def class_rows(info: Mapping[str, Any], predictions: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Every class of a head: class, clips, hits (mean over the runs), share (hits of clips), std, train_share."""
    train = np.array(info["clips_per_class"]["train"])
    rows = []
    for c, name in enumerate(info["classes"]):
        chosen = predictions[0].label == c
        clips = int(chosen.sum())
        hits = [int((p.probabilities[chosen].argmax(1) == c).sum()) for p in predictions]
        share = spread([count / clips if clips else 0.0 for count in hits])
        rows.append(
            {
                "class": name,
                "clips": clips,
                "hits": fmean(hits),
                "share": share["mean"],
                "std": share["std"],
                "train_share": float(train[c] / train.sum()),
            }
        )
    return rows


def _name(side: Sequence[Path]) -> str:
    """Of a chart's legend: the run, or what its seeds share."""
    return side[0].name if len(side) == 1 else side[0].name.rpartition("-seed")[0]


def compare_text(record: Mapping[str, Any]) -> str:
    """The table for a terminal; the paper's columns where it has the class."""
    lines = [f"{'class':<32}{'A':>14}{'B':>14}{'A - B':>8}{'hits':>16}{'train':>8}   paper: A, B"]
    for row in record["rows"]:
        hits = f"{row['a_hits']:.4g}/{row['b_hits']:.4g}/{row['clips']}"
        shares = "".join(f"{100 * row[s]:7.2f} ±{100 * row[s + '_std']:5.2f}" for s in ("a", "b"))
        known = row["paper"]
        beside = f"   {known['a']:.2f}, {known['b']:.2f}" if known else ""
        lines.append(
            f"{row['class'][:31]:<32}{shares}{100 * row['difference']:8.2f}{hits:>16}"
            f"{100 * row['train_share']:7.2f}%{beside}"
        )
    counts = f"A: {len(record['a'])} runs, B: {len(record['b'])}, from stored predictions"
    return "\n".join([*lines, f"{counts}; encoder forwards: {record['encoder_forwards']}"])
