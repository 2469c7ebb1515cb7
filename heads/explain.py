"""Fig. 5: what the routing attends to, class by class. It needs the predictions of runs, not the cache."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heads import runs
from heads.figures import heat_map
from heads.paper import paper
from pipeline.errors import UserError

PAPER_ORDER = ("head", "upper_limb", "body", "lower_limb")


def explain_attention(run_dirs: Sequence[Path], out: Path) -> dict[str, Any]:
    """`attention_by_class` of runs as CSV and PNG; `out` is the CSV, the picture has the same name with .png.

    Returns the record of `attention_by_class` with csv and png. Raises UserError as it does.
    """
    record = attention_by_class(run_dirs) | {"csv": str(out), "png": str(out.with_suffix(".png"))}
    names, experts = record["classes"], record["experts"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "clips", *experts, *(f"{name}_std" for name in experts)])
        for name, clips, mean, std in zip(
            names, record["clips"], record["attention"], record["std"], strict=True
        ):
            writer.writerow([name, clips, *(f"{v:.6f}" for v in (*mean, *std))])
    values = np.array(record["attention"])
    heat_map(out.with_suffix(".png"), values, names, experts, "attention by class, val")
    return record


def attention_by_class(run_dirs: Sequence[Path]) -> dict[str, Any]:
    """Mean weight of every expert over the clips of every true class, over runs.

    It reads stored predictions and no cache, so it costs no forward of an encoder.

    Args:
        run_dirs: runs of one data set with the same experts, e.g. several seeds.

    Returns:
        classes, experts (in the paper's order), attention and std over the runs [classes][experts], with rows of
        attention that sum to 1, top (the largest weight), clips per class, paper (per class the experts that are
        largest in the paper's figure, or None); and for the classes that a region owns alone or with others
        ("strict", "overlap"): own, how many there are, and own_peaks, in how many of them a region that owns the
        class has the largest weight.

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
    std = np.std(means, 0, ddof=1) if len(means) > 1 else np.zeros_like(attention)
    present = [c for c in range(len(classes)) if counts[c]]
    owners = _owners(info, present)
    peaks = {c: order[int(attention[c].argmax())] for c in owners}
    published = paper()["fig5"]["largest"] if info["dataset"] == "ma52" else {}
    return {
        "classes": [classes[c] for c in present],
        "experts": order,
        "attention": attention[present].tolist(),
        "std": std[present].tolist(),
        "top": float(attention.max()),
        "clips": counts[present].tolist(),
        "paper": [published.get(classes[c]) for c in present],
        "runs": [str(run_dir) for run_dir in run_dirs],
        "own": len(owners),
        "own_peaks": sum(peaks[c] in regions for c, regions in owners.items()),
        "encoder_forwards": 0,
    }


def _owners(info: dict[str, Any], present: Sequence[int]) -> dict[int, set[str]]:
    """Class -> the regions that own it, strictly or as a composite."""
    sets = info["expert_classes"]
    known = [sets[name] for name in ("strict", "overlap") if name in sets]
    owners = {c: {r for regions in known for r, ids in regions.items() if c in ids} for c in present}
    return {c: regions for c, regions in owners.items() if regions}


def attention_text(record: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'class':<34}{'clips':>6}" + "".join(f"{name:>14}" for name in record["experts"])]
    for i, name in enumerate(record["classes"]):
        cells = zip(record["attention"][i], record["std"][i], strict=True)
        row = "".join(f"{mean:7.3f} ± {std:.3f}"[:14].rjust(14) for mean, std in cells)
        largest = f"   paper: {', '.join(record['paper'][i])}" if record["paper"][i] else ""
        lines.append(f"{name[:33]:<34}{record['clips'][i]:>6}{row}{largest}")
    lines.append(f"largest at a region that owns the class: {record['own_peaks']} of {record['own']} classes")
    lines.append(
        f"over {len(record['runs'])} runs, from stored predictions; encoder forwards: {record['encoder_forwards']}"
    )
    return "\n".join([*lines, f"{record['csv']}, {record['png']}"])
