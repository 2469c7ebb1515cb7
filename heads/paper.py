"""The paper's numbers (manifests/paper.yaml), and tables that put them beside what was measured."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from heads.options import Config
from pipeline.own_yaml import load_own_yaml

PAPER = Path(__file__).resolve().parents[1] / "manifests" / "paper.yaml"
PUBLISHED = ("top1", "f1_macro")
# What tables show of measured scores, and its heading; clips with several labels have map in place of top1.
SHOWN = {"top1": "top-1", "map": "mAP", "f1_macro": "F1"}

Scores = Mapping[str, float]  # of one run: `heads.metrics.scores`


@lru_cache
def paper() -> dict[str, Any]:
    """manifests/paper.yaml."""
    return dict(load_own_yaml(PAPER))


def paper_row(dataset: str, config: Config, variant: str = "full") -> dict[str, Any] | None:
    """What the paper has for a head: percent, and the data set of the numbers; None where it has nothing.

    Another data set than the paper's gets the row of MA-52, whose name then says that the two do not compare.
    """
    tables = paper()["tables"]
    whole = config.head == "bmoe" and set(config.experts.values()) == {"full"}
    name = paper()["rows"].get("gs_moe_b" if whole else config.head)
    if name is None:
        return None
    row, among = (name, tables) if variant in ("full", config.head) else (variant, ("tab3", "tab4"))
    found = [tables[t] for t in among if row in tables[t]]
    table = next((t for t in found if t["dataset"] == dataset), found[0] if found else None)
    return {**table[row], "dataset": table["dataset"]} if table else None


def spread(values: Sequence[float]) -> dict[str, Any]:
    """mean, std (of the sample; 0 for a single value) and values."""
    return {
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def summary(runs: Sequence[Scores]) -> dict[str, dict[str, Any]]:
    """Score -> spread over the runs."""
    return {name: spread([run[name] for run in runs]) for name in runs[0]}


def shown(scores: Mapping[str, Any]) -> list[str]:
    """The names of the scores that tables show, the most important first."""
    return [name for name in SHOWN if name in scores]


def side_by_side(table: str, dataset: str, measured: Mapping[str, Sequence[Scores]]) -> dict[str, Any]:
    """A table of the paper with measured rows: the paper's percent where it has that row, and spreads of scores.

    `same_data` says whether the rows were measured on the data set of the table.
    """
    published = paper()["tables"][table]
    return {
        "table": table,
        "dataset": dataset,
        "paper_dataset": published["dataset"],
        "same_data": dataset == published["dataset"],
        "runs_per_row": len(next(iter(measured.values()))),
        "rows": [
            {"row": name, "paper": published.get(name), "scores": summary(runs)}
            for name, runs in measured.items()
        ],
    }


def table_text(record: Mapping[str, Any]) -> str:
    """The table for a terminal, in percent: mean and standard deviation over the seeds."""
    here = f"{record['dataset']} val, {record['runs_per_row']} seeds"
    names = shown(record["rows"][0]["scores"])
    lines = [
        f"{record['table']:<18}{'paper, ' + record['paper_dataset']:>16}  |{here:>32}",
        f"{'':<18}{'top-1':>8}{'F1':>8}  |{headings(names)}",
    ]
    for row in record["rows"]:
        published = row["paper"] or {}
        left = "".join(f"{published[name]:8.2f}" if name in published else f"{'-':>8}" for name in PUBLISHED)
        lines.append(f"{row['row']:<18}{left}  |{spread_text(row['scores'], names)}")
    if not record["same_data"]:
        lines.append(f"Two data sets: {record['dataset']} says nothing about {record['paper_dataset']}.")
    return "\n".join(lines)


def headings(names: Sequence[str]) -> str:
    """Over the columns of `spread_text`."""
    return "".join(f"{SHOWN[name]:>16}" for name in names)


def spread_text(scores: Mapping[str, Any], names: Sequence[str]) -> str:
    """Percent, 16 characters for every score."""
    spreads = [scores[name] for name in names]
    return "".join(f"{100 * s['mean']:9.2f} ± {100 * s['std']:4.2f}" for s in spreads)


def published_text(row: Mapping[str, Any] | None) -> str:
    """Percent of `paper_row` and their data set, for the end of a line."""
    return f"   {row['top1']:.2f}, {row['f1_macro']:.2f} ({row['dataset']})" if row else "   -"
