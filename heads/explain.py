"""Fig. 5: what the routing attends to, class by class. It needs the predictions of runs, not the cache."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heads import runs
from heads.figures import heat_map
from pipeline.errors import UserError

PAPER_ORDER = ("head", "upper_limb", "body", "lower_limb")


def explain_attention(run_dirs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Mean weight of every expert over the clips of every true class, over runs; CSV and PNG.

    Args:
        run_dirs: runs of one data set with the same experts, e.g. several seeds.
        out: the CSV; the picture has the same name with .png.

    Returns:
        classes, experts (in the paper's order), attention [classes][experts] with rows that sum to 1, clips per
        class; and for the classes that a region owns alone or with others ("strict", "overlap"): own, how many
        there are, and own_peaks, in how many of them a region that owns the class has the largest weight.

    Raises:
        UserError: no predictions, a head without experts, several labels, or runs that do not belong together.
    """
    config, info = runs.read_run(run_dirs[0])
    names, classes = tuple(config.experts), info["classes"]
    order = [name for name in PAPER_ORDER if name in names]
    order += [name for name in names if name not in order]
    columns = [names.index(name) for name in order]
    means = []
    for run_dir in run_dirs:
        other, facts = runs.read_run(run_dir)
        if tuple(other.experts) != names or facts["classes"] != classes:
            raise UserError(f"{run_dir}: other experts or classes than {run_dirs[0]}; explain them apart")
        found = runs.read_predictions(run_dir)
        if found.attention is None or found.label.ndim > 1:
            raise UserError(f"{run_dir}: has no attention by class; give runs of a B-MoE with single labels")
        counts = np.bincount(found.label, minlength=len(classes))
        sums = np.stack([np.bincount(found.label, w, len(classes)) for w in found.attention.T[columns]], 1)
        means.append(sums / np.maximum(counts, 1)[:, None])
    attention = np.mean(means, 0)
    present = [c for c in range(len(classes)) if counts[c]]
    owners = _owners(info, present)
    peaks = {c: order[int(attention[c].argmax())] for c in owners}
    record = {
        "classes": [classes[c] for c in present],
        "experts": order,
        "attention": attention[present].tolist(),
        "clips": counts[present].tolist(),
        "runs": [str(run_dir) for run_dir in run_dirs],
        "own": len(owners),
        "own_peaks": sum(peaks[c] in regions for c, regions in owners.items()),
        "csv": str(out),
        "png": str(out.with_suffix(".png")),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "clips", *order])
        for c in present:
            writer.writerow([classes[c], counts[c], *(f"{v:.6f}" for v in attention[c])])
    heat_map(out.with_suffix(".png"), attention[present], record["classes"], order, "attention by class, val")
    return record


def _owners(info: dict[str, Any], present: Sequence[int]) -> dict[int, set[str]]:
    """Class -> the regions that own it, strictly or as a composite."""
    sets = info["expert_classes"]
    known = [sets[name] for name in ("strict", "overlap") if name in sets]
    owners = {c: {r for regions in known for r, ids in regions.items() if c in ids} for c in present}
    return {c: regions for c, regions in owners.items() if regions}


def attention_text(record: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'class':<34}{'clips':>6}" + "".join(f"{name:>12}" for name in record["experts"])]
    for name, clips, row in zip(record["classes"], record["clips"], record["attention"], strict=True):
        lines.append(f"{name[:33]:<34}{clips:>6}" + "".join(f"{value:12.3f}" for value in row))
    lines.append(f"largest at a region that owns the class: {record['own_peaks']} of {record['own']} classes")
    return "\n".join([*lines, f"{record['csv']}, {record['png']}"])
