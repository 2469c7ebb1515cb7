"""One HTML page about runs, that needs nothing else: where the data came from, curves, tables, worst clips.

It is made from run folders; the cache adds how its stages were made, and pictures of the clips. Whatever a data set
or a cache names (classes, clips, files) is text to escape, and the page forbids a browser to load anything.
"""

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from heads import metrics, runs
from heads.compare import class_rows
from heads.explain import attention_by_class
from heads.options import Config
from heads.paper import paper_row, summary
from heads.runs import Predictions
from heads.stages import FUSION
from pipeline.errors import ClipError, UserError
from pipeline.store.reader import Cache

WORST = 6
PICTURE_WIDTH = 1400  # pixels of a preview in the page
Previews = Callable[[Sequence[str]], Mapping[str, Path]]


@dataclass(frozen=True)
class Job:
    """The runs of one config, one per seed, with what they wrote."""

    name: str
    folders: list[Path]
    config: Config
    info: dict[str, Any]
    results: list[dict[str, Any]]
    predictions: list[Predictions]
    records: list[list[dict[str, Any]]]  # of every run, by epoch


def write_report(
    run_dirs: Sequence[Path], out: Path, cache: Path | None = None, previews: Previews | None = None
) -> dict[str, Any]:
    """Writes the page.

    Args:
        run_dirs: finished runs of one data set. Those of one config count as seeds of each other; the first config is
            looked at class by class.
        out: the page, UTF-8.
        cache: adds what the stages of the cache were made with.
        previews: clip ids -> pictures of them; without it the worst clips are only named.

    Returns:
        html, bytes, runs, configs, worst (clip ids), pictures.

    Raises:
        UserError: an unfinished run, runs of several data sets, or a cache without their stages.
    """
    jobs = _jobs(run_dirs)
    first = jobs[0]
    worst = _worst(first)
    pictures: Mapping[str, str] = {}
    missing = ""
    if previews is not None and worst:
        try:
            found = previews([row["clip_id"] for row in worst])
            pictures = {clip_id: _picture(path) for clip_id, path in found.items()}
        except (UserError, ClipError) as error:  # videos may be gone; the report is still worth having
            missing = str(error)
    elif worst:
        missing = "no cache was given"
    for row in worst:
        row["picture"] = pictures.get(row["clip_id"])
    single = first.predictions[0].label.ndim == 1
    attended = single and first.predictions[0].attention is not None
    context = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "info": first.info,
        "config": json.dumps(first.config.model_dump(mode="json"), indent=1, ensure_ascii=False),
        "stages": _stages(first.info, cache),
        "splits": _splits(first.info),
        "jobs": [_job_row(job) for job in jobs],
        "scores": [
            name
            for name in first.results[0]["scores"]
            if not ((single and name.endswith("micro")) or name.endswith(("_low", "_high")))
        ],
        "curves": [chart for job in jobs for chart in _charts(job, FUSION)],
        "expert_curves": [chart for job in jobs for chart in _charts(job, "expert:")],
        "classes": class_rows(first.info, first.predictions) if single else [],
        "attention": attention_by_class(first.folders) if attended else None,
        "confusion": _confusion(first) if single else None,
        "worst": worst,
        "missing": missing,
        "first": first.name,
        "split": first.results[0]["split"],
    }
    environment = Environment(
        loader=PackageLoader("heads"), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shade"] = _shade
    page = environment.get_template("report.html").render(context)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return {
        "html": str(out),
        "bytes": out.stat().st_size,
        "runs": len(run_dirs),
        "configs": len(jobs),
        "worst": [row["clip_id"] for row in worst],
        "pictures": len(pictures),
    }


def _jobs(run_dirs: Sequence[Path]) -> list[Job]:
    jobs: dict[str, Job] = {}
    dataset = None
    for folder in run_dirs:
        config, info = runs.read_run(folder)
        result, records = runs.read_result(folder), runs.read_records(folder)
        dataset = dataset or info["dataset"]
        if info["dataset"] != dataset:
            raise UserError(
                f"{folder}: a run on {info['dataset']}, the first is on {dataset}; report them apart"
            )
        key = config.model_dump_json() + info["data"] + info["variant"]
        name = folder.name.rpartition("-seed")[0] or folder.name
        job = jobs.setdefault(key, Job(name, [], config, info, [], [], []))
        job.folders.append(folder)
        job.results.append(result)
        job.predictions.append(runs.read_predictions(folder))
        job.records.append(records)
    return list(jobs.values())


def _job_row(job: Job) -> dict[str, Any]:
    known = paper_row(job.info["dataset"], job.config, job.info["variant"])
    return {
        "name": job.name,
        "variant": job.info["variant"],
        "seeds": [result["seed"] for result in job.results],
        "epochs": [result["best_epoch"] for result in job.results],
        "parameters": job.results[0]["parameters"],
        "scores": summary([result["scores"] for result in job.results]),
        "paper": known,
    }


def _stages(info: Mapping[str, Any], cache: Path | None) -> list[dict[str, str]]:
    opened = Cache(cache) if cache is not None else None
    found = []
    for stage, key in info["stages"].items():
        facts = dict(opened.stage(stage, key).facts) if opened else {}
        made = json.dumps(facts, indent=1, ensure_ascii=False) if facts else ""
        found.append({"stage": stage, "key": key, "facts": made})
    return found


def _splits(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every clip accounted for: used, and the others by reason."""
    return [
        {"split": split, "used": counts.get("used", 0), "clips": sum(counts.values()),
         "others": {reason: n for reason, n in counts.items() if reason != "used" and n}}
        for split, counts in info["clips"].items()
    ]  # fmt: skip


def _charts(job: Job, start: str) -> list[dict[str, Any]]:
    """A chart per stage (of those that begin so) and quantity: losses in training and on val, scores on val."""
    charts = []
    stages = dict.fromkeys(record["stage"] for records in job.records for record in records)
    for stage in (name for name in stages if name.startswith(start)):
        for title, names in (
            ("loss", ("loss", "val_loss")),
            ("val", ("val_top1", "val_map", "val_f1_macro")),
        ):
            lines = []
            for name in names:
                for records in job.records:
                    values = [r[name] for r in records if r["stage"] == stage and name in r]
                    if values:
                        lines.append((name, values))
            if lines:
                charts.append({"title": f"{job.name}, {stage}", "what": title, **_chart(lines)})
    return charts


def _chart(
    lines: Sequence[tuple[str, Sequence[float]]], width: int = 300, height: int = 130
) -> dict[str, Any]:
    """Polylines in a box of width x height, and the values at its edges; one colour per name."""
    every = [value for _, values in lines for value in values]
    low, high = min(every), max(every)
    count = max(len(values) for _, values in lines)
    names = list(dict.fromkeys(name for name, _ in lines))
    drawn = []
    for name, values in lines:
        points = [
            (width * i / max(count - 1, 1), height * (1 - (v - low) / ((high - low) or 1.0)))
            for i, v in enumerate(values)
        ]
        drawn.append(
            {"class": f"s{names.index(name)}", "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points)}
        )
    return {
        "lines": drawn,
        "names": names,
        "low": low,
        "high": high,
        "epochs": count,
        "width": width,
        "height": height,
    }


def _confusion(job: Job) -> dict[str, Any]:
    """Counts summed over the runs, with the share of the row."""
    matrix = np.sum([metrics.confusion(p.label, p.probabilities) for p in job.predictions], 0)
    present = [c for c in range(len(matrix)) if matrix[c].any() or matrix[:, c].any()]
    names = [job.info["classes"][c] for c in present]
    matrix = matrix[np.ix_(present, present)]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return {"names": names, "counts": matrix.tolist(), "shares": shares.tolist()}


def _worst(job: Job) -> list[dict[str, Any]]:
    """The clips whose truth was least expected: mean log loss over the runs."""
    first = job.predictions[0]
    if any(p.clip_id != first.clip_id for p in job.predictions):
        raise UserError(f"{job.folders[0]}: its seeds predict other clips; train them on the same cache")
    mean = np.mean([p.probabilities for p in job.predictions], 0).clip(1e-7, 1 - 1e-7)
    names = job.info["classes"]
    if first.label.ndim == 1:
        loss = -np.log(mean[np.arange(len(mean)), first.label])
        truth = [[int(c)] for c in first.label]
    else:
        loss = -np.where(first.label > 0, np.log(mean), np.log(1 - mean)).mean(1)
        truth = [np.flatnonzero(row > 0).tolist() for row in first.label]
    rows = []
    for i in np.argsort(-loss, kind="stable")[:WORST]:
        best = np.argsort(-mean[i], kind="stable")[:3]
        guesses = [{"class": names[c], "probability": float(mean[i, c])} for c in best]
        true = ", ".join(names[c] for c in truth[i]) or "none"
        of_truth = float(mean[i, truth[i]].mean()) if truth[i] else float((1 - mean[i]).mean())
        rows.append({"clip_id": first.clip_id[i], "true": true, "probability": of_truth, "guesses": guesses})
    return rows


def _picture(path: Path) -> str:
    """A picture as a data: URL, JPEG of at most PICTURE_WIDTH."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shade(share: float, top: float = 1.0) -> str:
    """The style of a cell of a heat map: white at 0, dark blue at `top`."""
    x = min(max(share / (top or 1.0), 0.0), 1.0)
    red, green, blue = (round(247 + (8 - 247) * x), round(250 + (62 - 250) * x), round(253 + (124 - 253) * x))
    return html.escape(f"background:rgb({red},{green},{blue});color:{'#fff' if x > 0.55 else '#1e1e1e'}")
