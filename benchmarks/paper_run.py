"""The paper's whole training on one GPU: 500 epochs of stage 2 at MA-52's size, and all models of tables 3 and 4.

    python -m benchmarks.paper_run
    python -m benchmarks.paper_run --smoke

Features are random, of MA-52's splits and bmoe_g1408's widths; the loop is the one `bmoe-cache train` runs, with its
validation after every epoch and its checkpoints. Measured are --epochs epochs after two to warm up (recording of the
step included there), and 500 are extrapolated from them. The eight models of the tables are the full one, each stream
alone, MANet's cached scores (nothing to train) and four without an expert, which train as one batched model, as
`bmoe-cache ablate` trains them.

--smoke is a small CPU run of the same code (bmoe_tiny, 60 clips): it shows that it works, and its times mean nothing.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.harness import arguments, report
from benchmarks.random_features import random_features
from heads import spec
from heads.config import STREAMS, load_config, variant_config
from heads.features import FeatureSet
from heads.options import Config
from heads.stages import Group, stage2
from heads.step import arithmetic
from heads.train import side_by_side_key
from pipeline.spec import REGIONS

EPOCHS = 500  # of the paper
WARM = 2
MOTION_DIM = 2048
CLIPS = {"train": 11_250, "val": 5_586}
WANTED = {"minutes_500_epochs": 10, "tables_over_one_run": 4}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="measured epochs")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    parser.add_argument("--smoke", action="store_true", help="small, on the CPU")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: this benchmark is about a GPU; --smoke runs its code on a CPU")
    if options.epochs < 20:
        raise SystemExit("--epochs: at least 20, or the extrapolation says little")
    device = "cpu" if options.smoke else "cuda"
    preset, clips = ("bmoe_tiny", {"train": 60, "val": 20}) if options.smoke else ("bmoe_g1408", CLIPS)
    changes = ["recipe=paper", f"precision={options.precision}", "tensorboard=false", "stage2.batch=10"]
    config = load_config(preset, changes)
    stage = config.stage2.model_copy(update={"epochs": WARM + options.epochs})
    config = config.model_copy(update={"stage2": stage})
    dim = 16 if options.smoke else 1408
    data = random_features(config.t_len, dim, MOTION_DIM, clips, device)
    units: dict[str, dict[str, Config]] = {}  # what trains side by side: name -> config
    for variant in (*STREAMS, *(f"drop_{region}" for region in REGIONS)):
        chosen = variant_config(config, variant)
        units.setdefault(side_by_side_key(chosen), {})[variant] = chosen
    seconds = {" + ".join(unit): epoch_seconds(list(unit.values()), data, device) for unit in units.values()}
    one, tables = seconds["full"], sum(seconds.values())
    trained = sum(map(len, units.values()))
    measured = {
        "preset": preset, "smoke": options.smoke, "precision": options.precision, "clips": clips,
        "batch": stage.batch, "measured_epochs": options.epochs,
        "seconds_per_epoch": {name: round(value, 4) for name, value in seconds.items()},
        "ms_per_step": round(1e3 * one / -(-clips["train"] // stage.batch), 4),
        "minutes_500_epochs": round(EPOCHS * one / 60, 3),
        "models": trained + 1, "tables_over_one_run": round(tables / one, 3), "wanted": WANTED,
    }  # fmt: skip
    report("paper_run", measured, options.out)


def epoch_seconds(configs: Sequence[Config], data: FeatureSet, device: str) -> float:
    """The median epoch of these models, trained side by side, after WARM others."""
    config = configs[0]
    own = data.only(spec.needs(config))
    info = own.info(np.zeros((len(own.taxonomy.labels), 300), np.float32))
    ends: list[float] = []

    def told(record: Any, again: bool = False) -> None:
        ends.append(time.perf_counter())

    def silent(record: Any, again: bool = False) -> None:
        pass

    with tempfile.TemporaryDirectory() as folder, arithmetic(config.precision, device):
        models = []
        for chosen in configs:
            torch.manual_seed(len(models))
            models.append(spec.build(chosen, info).to(device))
            models[-1].fit_normalisation(own.splits["train"].tensors)
        reports = [told, *[silent] * (len(models) - 1)]
        keys, seeds = [str(i) for i in range(len(models))], list(range(len(models)))
        group = Group(
            config, info, own, keys, seeds, reports, Path(folder), Path(folder) / "state", every_s=120.0
        )
        stage2(group, models)
    if len(ends) != config.stage2.epochs:
        raise SystemExit(f"{len(ends)} epochs instead of {config.stage2.epochs}: the times mean nothing")
    return median(np.diff(ends[WARM - 1 :]).tolist())


if __name__ == "__main__":
    main()
