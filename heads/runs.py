"""The run folder: everything needed to know, repeat and reload a training run.

config.json  info.json               written first
glove.300d.txt                       the word vectors the label vectors were made of
metrics.jsonl                        one record per epoch, both stages
state.safetensors                    of an unfinished stage 2: the same command goes on from it
best.safetensors last.safetensors    stage 2
predictions.npz confusion.csv        of the best epoch on the validation split
tensorboard/                         event file, unless switched off
result.json                          written last: a folder without it is not a finished run

Trained experts lie beside the runs, in experts/<name>-<key>.safetensors, and serve every run of the same features
and options; result.json names those of a run.
"""

import csv
import glob
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from heads import metrics
from heads.checkpoint import read_state
from heads.config import parse_config
from heads.features import FeatureSet
from heads.labels import LabelVectors
from heads.options import Config
from heads.progress import Record
from heads.spec import HeadInfo
from pipeline.errors import UserError
from pipeline.versions import versions


def open_run(run_dir: Path, config: Config, info: dict[str, Any], vectors: LabelVectors) -> None:
    """Makes the folder and writes what is known before training; an unfinished run of the same key goes on.

    Raises:
        UserError: the folder holds a finished run or something else, or cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if any(run_dir.iterdir()) and not _unfinished(run_dir, info["key"]):
            raise UserError(f"{run_dir}: the run folder is not empty; delete it or give another one")
        write_json(run_dir / "config.json", config.model_dump(mode="json"))
        write_json(run_dir / "info.json", info)
        vectors.write(run_dir / "glove.300d.txt")
        (run_dir / "metrics.jsonl").write_text("")  # an unfinished run tells its records again
        shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error}); give another run folder") from None


def _unfinished(run_dir: Path, key: str) -> bool:
    try:
        info = json.loads((run_dir / "info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return info.get("key") == key and not (run_dir / "result.json").exists()


def facts(data: FeatureSet, info: HeadInfo, vectors: LabelVectors) -> dict[str, Any]:
    """What info.json records about the features, the classes and the software."""
    per_class = {n: s.target(len(info.classes)).sum(0).int() for n, s in data.splits.items()}
    return {
        "stages": data.keys,
        "data": data.digest,
        "expert_classes": {
            name: {r: list(c) for r, c in sets.items()} for name, sets in info.experts.items()
        },
        "dim": data.dim,
        "motion_dim": data.motion_dim,
        "classes": info.classes,
        "coarse": info.coarse,
        "coarse_names": info.coarse_names,
        "multi": info.multi,
        "label_vectors": {"source": vectors.source, "oov": vectors.oov},
        "clips": data.counts,
        "clips_per_class": {name: counts.tolist() for name, counts in per_class.items()},
        "versions": versions("bmoe-cache", "torch") | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; NaN is refused with ValueError."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_run(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """config and info of a run folder. Raises UserError when it holds no run."""
    raw = []
    for name in ("config.json", "info.json"):
        try:
            raw.append(json.loads((run_dir / name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(f"{run_dir / name}: not a run folder ({error}); train first") from None
    return parse_config(raw[0], origin=str(run_dir / "config.json")), raw[1]


def runs_of(paths: Sequence[Path]) -> list[Path]:
    """Run folders; instead of one the name of a job stands for those of all its seeds, <name>-seed<n>.

    Raises UserError where there is neither.
    """
    found: list[Path] = []
    for path in paths:
        seeds = [
            p
            for p in path.parent.glob(f"{glob.escape(path.name)}-seed*")
            if p.name.rpartition("-seed")[2].isdecimal()
        ]
        if path.is_dir():
            found.append(path)
        elif seeds:
            found += sorted(seeds, key=lambda p: int(p.name.rpartition("-seed")[2]))
        else:
            raise UserError(f"{path}: no run folder, and no {path.name}-seed0 beside it; train first")
    return list(dict.fromkeys(found))


def read_result(run_dir: Path) -> dict[str, Any]:
    """result.json of a finished run. Raises UserError when there is none."""
    path = run_dir / "result.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); finish the run first") from None


def read_records(run_dir: Path) -> list[Record]:
    """metrics.jsonl. Raises UserError when a line of it is none of ours."""
    path = run_dir / "metrics.jsonl"
    records = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
                raise UserError(f"{path}, line {number}: no record of an epoch; train the run again")
            records.append(record)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the run again") from None
    return records


def load_state(path: Path, module: nn.Module) -> None:
    """Loads a checkpoint strictly.

    Raises:
        UserError: the run is not finished, or the file is missing, broken, or of another model; the message names
            the first difference.
    """
    found = read_state(path)
    if found is None:
        if not path.exists() and not (path.parent / "result.json").exists():
            raise UserError(f"{path.parent}: the run is not finished; run the same `train` command to go on")
        raise UserError(f"{path}: cannot be read; train the run again")
    state, own = found[0], module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        shapes = [tuple(s[name].shape) if name in s else "nothing" for s in (state, own)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path}: {name} is {shapes[0]}, the model has {shapes[1]}; use the run's own config"
            )
    module.load_state_dict(state)


def write_predictions(
    run_dir: Path,
    clip_id: tuple[str, ...],
    label: np.ndarray,
    probabilities: np.ndarray,
    attention: np.ndarray | None,
    *,
    names: tuple[str, ...],
    suffix: str = "",
) -> None:
    """predictions<suffix>.npz (clip_id, label, probabilities, attention), and confusion<suffix>.csv of single
    labels.
    """
    arrays = {"clip_id": np.array(clip_id), "label": label, "probabilities": probabilities}
    if attention is not None:
        arrays["attention"] = attention
    np.savez(run_dir / f"predictions{suffix}.npz", allow_pickle=False, **arrays)
    if label.ndim == 2:
        return
    with (run_dir / f"confusion{suffix}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        for name, row in zip(names, metrics.confusion(label, probabilities), strict=True):
            writer.writerow([name, *row.tolist()])


@dataclass(frozen=True)
class Predictions:
    """What `write_predictions` wrote: label [N] or [N, C], probabilities [N, C], attention [N, experts] or None."""

    clip_id: tuple[str, ...]
    label: np.ndarray
    probabilities: np.ndarray
    attention: np.ndarray | None


def read_predictions(run_dir: Path, suffix: str = "") -> Predictions:
    """The predictions of a run. Raises UserError when there are none."""
    path = run_dir / f"predictions{suffix}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            attention = arrays.get("attention")
            ids = tuple(arrays["clip_id"].tolist())
            return Predictions(ids, arrays["label"], arrays["probabilities"], attention)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path}: no predictions ({error}); finish the run first") from None


class Recorder:
    """Context manager that takes the record of every epoch to metrics.jsonl, TensorBoard and a callback."""

    def __init__(self, run_dir: Path, tensorboard: bool, on_epoch: Callable[[Record], None] | None) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.on_epoch = on_epoch
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run_dir / "tensorboard"))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def __call__(self, record: Record, again: bool = False) -> None:
        """Writes a record; the callback hears only of what is new, not of what is told `again`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self.writer is not None:
            for name, value in record.items():
                if name not in ("stage", "epoch", "epochs"):
                    self.writer.add_scalar(f"{record['stage']}/{name}", value, record["epoch"])
        if self.on_epoch is not None and not again:
            self.on_epoch(record)


def epoch_line(record: Record) -> str:
    """One line for a terminal: ``fusion 12/60  loss 0.812  val_top1 0.733``."""
    head = f"{record['stage']} {record['epoch']}/{record['epochs']}"
    shown = ("loss", "val_loss", "val_top1", "val_map", "val_f1_macro")
    return "  ".join([head, *(f"{name} {record[name]:.3f}" for name in shown if name in record)])
