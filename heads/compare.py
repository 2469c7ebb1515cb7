"""Fig. 6: two runs class by class, with hits and the share of the class in training."""

from pathlib import Path
from typing import Any

import numpy as np

from heads import runs
from heads.figures import bars
from heads.paper import paper
from pipeline.errors import UserError

SHOWN = 10  # classes of the bar chart: those that differ most, as many as the paper shows


def compare_runs(a: Path, b: Path, out: Path | None = None) -> dict[str, Any]:
    """Accuracy of two runs on every class of val; with `out` also a bar chart (PNG) of what differs most.

    Returns:
        rows in the order of the classes: class, a, b and difference (shares of 1), a_hits, b_hits, clips,
        train_share, and paper (its row of Fig. 6, percent) where the data set is MA-52 and the class is there.

    Raises:
        UserError: no predictions, several labels, or predictions of different clips.
    """
    info = runs.read_run(a)[1]
    first, second = runs.read_predictions(a), runs.read_predictions(b)
    if first.label.ndim > 1:
        raise UserError(f"{a}: clips with several labels have no accuracy by class")
    if first.clip_id != second.clip_id or not np.array_equal(first.label, second.label):
        raise UserError(f"{b}: predicts other clips than {a}; compare runs on the same cache")
    train = np.array(info["clips_per_class"]["train"])
    published = paper()["fig6"] if info["dataset"] == "ma52" else {}
    rows = []
    for c, name in enumerate(info["classes"]):
        chosen = first.label == c
        clips = int(chosen.sum())
        hits = [int((p.probabilities[chosen].argmax(1) == c).sum()) for p in (first, second)]
        shares = [count / clips if clips else 0.0 for count in hits]
        rows.append(
            {
                "class": name,
                "a": shares[0],
                "b": shares[1],
                "difference": shares[0] - shares[1],
                "a_hits": hits[0],
                "b_hits": hits[1],
                "clips": clips,
                "train_share": float(train[c] / train.sum()),
                "paper": published.get(name),
            }
        )
    record: dict[str, Any] = {"a": str(a), "b": str(b), "dataset": info["dataset"], "rows": rows}
    if out is not None:
        most = sorted((r for r in rows if r["clips"]), key=lambda r: -abs(r["difference"]))[:SHOWN]
        out.parent.mkdir(parents=True, exist_ok=True)
        series = {a.name: [r["a"] for r in most], b.name: [r["b"] for r in most]}
        bars(out, [r["class"] for r in most], series, "accuracy by class, val, in percent")
        record["png"] = str(out)
    return record


def compare_text(record: dict[str, Any]) -> str:
    """The table for a terminal; the paper's columns where it has the class."""
    lines = [f"{'class':<32}{'A':>8}{'B':>8}{'A - B':>8}{'hits':>12}{'train':>8}   paper: A, B"]
    for row in record["rows"]:
        hits = f"{row['a_hits']}/{row['b_hits']}/{row['clips']}"
        shares = "".join(f"{100 * row[name]:8.2f}" for name in ("a", "b", "difference"))
        known = row["paper"]
        beside = f"   {known['a']:.2f}, {known['b']:.2f}" if known else ""
        lines.append(f"{row['class'][:31]:<32}{shares}{hits:>12}{100 * row['train_share']:7.2f}%{beside}")
    return "\n".join(lines)
