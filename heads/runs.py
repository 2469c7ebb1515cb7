"""The run folder: everything needed to know, repeat and reload a training run.

config.json  info.json               written first
metrics.jsonl                        one record per epoch
experts/<region>.safetensors         stage 1, best epochs
best.safetensors last.safetensors    stage 2
predictions.npz confusion.csv        of the best epoch on the validation split
tensorboard/                         event file, unless switched off
result.json                          written last: a folder without it is not a finished run
"""

import csv
import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from heads import metrics
from heads.config import Config, parse_config
from heads.features import FeatureSet
from heads.labels import LabelVectors
from heads.loop import Record
from heads.spec import HeadInfo
from pipeline.errors import UserError


def create_run(run_dir: Path, config: Config, info: dict[str, Any]) -> None:
    """Makes the folder and writes config.json and info.json.

    Raises:
        UserError: the folder exists and is not empty, or cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if any(run_dir.iterdir()):
            raise UserError(f"{run_dir}: the run folder is not empty; delete it or give another one")
        write_json(run_dir / "config.json", config.model_dump(mode="json"))
        write_json(run_dir / "info.json", info)
        (run_dir / "metrics.jsonl").touch()
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error}); give another run folder") from None


def facts(data: FeatureSet, info: HeadInfo, vectors: LabelVectors) -> dict[str, Any]:
    """What info.json records about the features, the classes and the software."""
    classes = len(info.classes)
    per_class = {n: np.bincount(s.label.cpu().numpy(), minlength=classes) for n, s in data.splits.items()}
    try:
        version = importlib.metadata.version("bmoe-cache")
    except importlib.metadata.PackageNotFoundError:
        version = "source"
    return {
        "stages": data.keys,
        "dim": data.dim,
        "motion_dim": data.motion_dim,
        "classes": info.classes,
        "coarse": info.coarse,
        "coarse_names": info.coarse_names,
        "experts": {region: list(ids) for region, ids in info.experts.items()},
        "label_vectors": {"source": vectors.source, "oov": vectors.oov},
        "clips": data.counts,
        "clips_per_class": {name: counts.tolist() for name, counts in per_class.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "bmoe-cache": version},
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


def save_state(path: Path, state: dict[str, Tensor]) -> None:
    """A state dict as safetensors, in the order of its names."""
    path.parent.mkdir(exist_ok=True)
    save_file({name: state[name].contiguous().cpu() for name in sorted(state)}, path)


def load_state(path: Path, module: nn.Module) -> None:
    """Loads a checkpoint strictly.

    Raises:
        UserError: the file is missing, broken, or of another model; the message names the first difference.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the run again") from None
    own = module.state_dict()
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
    """predictions<suffix>.npz (clip_id, label, probabilities, attention) and confusion<suffix>.csv."""
    arrays = {"clip_id": np.array(clip_id), "label": label, "probabilities": probabilities}
    if attention is not None:
        arrays["attention"] = attention
    np.savez(run_dir / f"predictions{suffix}.npz", allow_pickle=False, **arrays)
    with (run_dir / f"confusion{suffix}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        for name, row in zip(names, metrics.confusion(label, probabilities), strict=True):
            writer.writerow([name, *row.tolist()])


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

    def __call__(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        if self.writer is not None:
            for name, value in record.items():
                if name not in ("stage", "epoch", "epochs"):
                    self.writer.add_scalar(f"{record['stage']}/{name}", value, record["epoch"])
        if self.on_epoch is not None:
            self.on_epoch(record)


def epoch_line(record: Record) -> str:
    """One line for a terminal: ``fusion 12/60  loss 0.812  val_top1 0.733``."""
    head = f"{record['stage']} {record['epoch']}/{record['epochs']}"
    shown = ("loss", "val_loss", "val_top1", "val_f1_macro")
    return "  ".join([head, *(f"{name} {record[name]:.3f}" for name in shown if name in record)])
