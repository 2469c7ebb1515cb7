"""A training step of stage 2: ours against the published way, same model, same clips, same order.

    python -m benchmarks.head_step
    python -m benchmarks.head_step --device cuda

The published way is a DataLoader over one .npy file per clip and view, batch 10, eager, and a loss read by the host
in every step; DataLoader runs with 0 and with 2 workers and the faster counts. Ours gathers batches from resident
tensors and reads losses once per epoch; its step is compiled (--compile of `bmoe-cache train`) where there is a C++
compiler, and stands beside as ours_eager; on a GPU it is recorded as a CUDA graph instead. All drive the same module
from the same initial weights, and their losses must agree over 50 steps, or nothing is timed.

On a CPU also: which share of a step of bmoe_b768 is not arithmetic, at most. The same step 48 times narrower has the
same calls, copies and Python, and next to no arithmetic; its time over that of the full step is the bound.
On a GPU also: how far a step is from reading weights, gradients and momentum once at the measured bandwidth.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Timing, arguments, race, ratio, report
from benchmarks.random_features import random_features
from heads import spec
from heads.config import load_config
from heads.loop import Task, train_epoch
from heads.losses import make_criterion
from heads.optim import make_optimizer
from heads.options import Config
from heads.stages import weighted
from heads.step import Parts, Runs, Step
from pipeline.spec import VIEWS

BATCH = 10
CHECKED = 50  # steps whose losses must agree
TOLERANCE = 1e-4
MOTION_DIM = 2048
WANTED = {
    "cpu": {"times_ours_tiny": 4, "outside_b768": 0.03},
    "cuda": {"times_ours_g1408": 8, "times_bound": 2},
}


class World:
    """Random clips, as resident tensors and as files."""

    def __init__(
        self, folder: Path, config: Config, clips: int, dim: int, motion_dim: int, device: str
    ) -> None:
        data = random_features(config.t_len, dim, motion_dim, {"train": clips})
        self.info = data.info(np.zeros((len(data.taxonomy.labels), 300), np.float32))
        self.config, self.clips, self.device, self.folder = config, clips, device, folder
        split = data.splits["train"]
        self.label, self.split = split.label, split.to(device)
        for i in range(clips):
            views = [split.tensors["sem_full"][i], *split.tensors["sem_parts"][i]]
            for view, x in zip(VIEWS, views, strict=True):
                np.save(folder / f"{i}_{view}.npy", x.half().numpy())
            np.save(folder / f"{i}_motion.npy", split.tensors["motion"][i].half().numpy())

    def model(self) -> Any:
        """The head with its first weights, in training mode."""
        torch.manual_seed(0)
        return spec.build(self.config, self.info).to(self.device).train()


class NpyClips(Dataset[dict[str, Tensor]]):
    """Files of a clip, read when they are asked for."""

    def __init__(self, folder: Path, label: Tensor) -> None:
        self.folder, self.label = folder, label

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        views = [
            torch.from_numpy(np.load(self.folder / f"{i}_{view}.npy").astype(np.float32)) for view in VIEWS
        ]
        motion = torch.from_numpy(np.load(self.folder / f"{i}_motion.npy").astype(np.float32))
        valid = torch.ones(len(VIEWS), len(views[0]), dtype=torch.bool)
        return {
            "sem_full": views[0], "sem_full_valid": valid[0], "sem_parts": torch.stack(views[1:]),
            "sem_parts_valid": valid[1:], "motion": motion, "label": self.label[i],
        }  # fmt: skip


class Order:
    """A sampler: the clips in the order of the epoch, for both contenders the same."""

    def __init__(self, clips: int) -> None:
        self.clips, self.dice = clips, torch.Generator().manual_seed(1)

    def __iter__(self) -> Any:
        return iter(torch.randperm(self.clips, generator=self.dice).tolist())

    def __len__(self) -> int:
        return self.clips


class Published:
    """The loop of the published code, on our module."""

    def __init__(self, world: World, workers: int) -> None:
        self.world, self.model = world, world.model()
        stage = world.config.stage2
        self.clip = stage.clip
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=stage.lr, momentum=stage.momentum, weight_decay=stage.weight_decay
        )
        self.loader = DataLoader(
            NpyClips(world.folder, world.label), BATCH, sampler=Order(world.clips), num_workers=workers,
            drop_last=True, pin_memory=world.device != "cpu", persistent_workers=workers > 0,
        )  # fmt: skip

    def epoch(self, steps: int | None = None) -> list[float]:
        """The losses of an epoch, or of its first steps."""
        losses: list[float] = []
        for read in self.loader:
            batch = {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in read.items()}
            label = batch.pop("label")
            loss = nn.functional.cross_entropy(self.model(batch)["logits"], label)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            losses.append(loss.item())
            if len(losses) == steps:
                break
        return losses


class Ours:
    """`heads.loop`, as stage 2 uses it."""

    def __init__(self, world: World, compiled: bool = False) -> None:
        self.world, self.runs = world, Runs([world.model()])
        config, split = world.config, world.split
        target = split.target(len(world.info.classes))
        criterion = make_criterion(target, config.loss)

        def parts(model: nn.Module, index: Tensor, weight: Tensor) -> Parts:
            logits = model(split.batch(index))["logits"]
            return weighted({"loss": criterion(logits, target.index_select(0, index))}, weight)

        optimizer = make_optimizer(self.runs.whole, config.stage2)
        assert optimizer is not None
        self.task = Task("fusion", config.stage2, self.runs.modules, [0], world.clips, parts, None, "top1")
        self.step = Step(self.runs, parts, optimizer, config.stage2, compiled=compiled)
        self.dice = torch.Generator().manual_seed(1)

    def losses(self, steps: int) -> list[float]:
        """The first losses of an epoch, one by one."""
        order = torch.randperm(self.world.clips, generator=self.dice)[None].to(self.world.device)
        weight = torch.ones(BATCH, device=self.world.device)
        found = []
        for i in range(steps):
            self.step.start()
            self.step(order[:, i * BATCH : (i + 1) * BATCH], weight, BATCH)
            found.append(self.step.totals.tolist()[0][0])
        return found

    def epoch(self) -> float:
        """The mean loss of an epoch."""
        return train_epoch(self.task, self.runs, self.step, [self.dice], 0)[1][0][0]


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--clips", type=int, default=600)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: no CUDA device here; without it the CPU is measured")
    clips = options.clips // BATCH * BATCH  # whole batches: neither side pads
    if clips < CHECKED * BATCH:
        raise SystemExit(
            f"--clips: at least {CHECKED * BATCH}, for {CHECKED} steps whose losses are compared"
        )
    measured: dict[str, Any] = {
        "device": options.device,
        "batch": BATCH,
        "clips": clips,
        "wanted": WANTED[options.device],
    }
    if options.device == "cpu":
        measured["tiny"] = contest("bmoe_tiny", 16, clips, options.rounds, "cpu")
        measured["b768"] = outside("bmoe_b768", 768, 4, options.rounds)
    else:
        found = contest("bmoe_g1408", 1408, clips, options.rounds, "cuda")
        measured["g1408"] = found | bound(found)
    report("head_step" if options.device == "cpu" else "head_step_cuda", measured, options.out)


def configured(preset: str, *overrides: str) -> Config:
    """The preset with the paper's optimiser, and no dropout, whose random numbers two loops would share."""
    more = ("te.dropout=0", "stage2.milestones=[30, 60]", "stage2.schedule=milestones", "stage2.warmup=0")
    sgd = ("stage2.optimizer=sgd", "stage2.lr=0.00125", "stage2.momentum=0.9", "stage2.weight_decay=0")
    return load_config(preset, [*more, *sgd, "stage2.batch=10", *overrides])


def contest(preset: str, dim: int, clips: int, rounds: int, device: str) -> dict[str, Any]:
    """Seconds per step of both, and how many times faster ours is. SystemExit when the losses differ."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), configured(preset), clips, dim, MOTION_DIM, device)
        compiled = compiles(device)
        began = time.perf_counter()
        ours = {"ours": Ours(world, compiled)} | ({"ours_eager": Ours(world)} if compiled else {})
        first = Published(world, 0).epoch(CHECKED)
        curves = [loop.losses(CHECKED) for loop in ours.values()]
        prepared = time.perf_counter() - began
        apart = max(abs(x - y) for curve in curves for x, y in zip(first, curve, strict=True))
        if apart > TOLERANCE:
            raise SystemExit(
                f"{preset}: losses differ by {apart:.2e} within {CHECKED} steps: not the same training"
            )
        theirs = {f"published_{n}_workers": Published(world, n) for n in (0, 2)}

        def made(epoch: Callable[[], Any]) -> Callable[[], int]:
            def run() -> int:
                epoch()
                return clips // BATCH

            return run

        contenders = {name: made(loop.epoch) for name, loop in ours.items()}
        contenders |= {name: (lambda loop=loop: len(loop.epoch())) for name, loop in theirs.items()}
        times = race(contenders, clips // BATCH, rounds)
        fastest = min(theirs, key=lambda name: times[name].seconds)
        parameters = sum(p.numel() for p in ours["ours"].runs.modules[0].parameters())
    return {
        "preset": preset,
        "parameters": parameters,
        "compiled": compiled,
        "seconds_to_prepare": round(prepared, 1),
        "losses_apart": float(f"{apart:.2e}"),
        "first_and_last_loss": [round(first[0], 4), round(first[-1], 4)],
        "ms_per_step": {name: round(1e3 * t.seconds / (clips // BATCH), 3) for name, t in times.items()},
        "published": fastest,
        "times_ours": ratio(times[fastest], times["ours"]),
    }


def outside(preset: str, dim: int, steps: int, rounds: int) -> dict[str, Any]:
    """The share of a step that is not arithmetic, at most: the step of the same calls on 16 channels."""
    spent: dict[str, list[float]] = {}
    compiled = compiles("cpu")
    narrow = (f"d_in={dim // 48}", f"sgp.hidden={dim // 48}")
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "full": (
                Ours(
                    World(Path(folder), configured(preset), BATCH * steps, dim, MOTION_DIM, "cpu"), compiled
                ),
                1,
            ),
            "narrow": (
                Ours(
                    World(Path(folder), configured(preset, *narrow), BATCH * steps, dim // 48, 16, "cpu"),
                    compiled,
                ),
                10,
            ),
        }
        for number in range(rounds + 1):
            for name, (loop, times) in sides.items():
                began = time.perf_counter()
                for _ in range(times):
                    loop.epoch()
                if number:
                    spent.setdefault(name, []).append((time.perf_counter() - began) / times)
    timings = {name: Timing(tuple(values)) for name, values in spent.items()}
    return {
        "preset": preset,
        "compiled": compiled,
        "ms_per_step": {name: round(1e3 * t.seconds / steps, 3) for name, t in timings.items()},
        "outside": ratio(timings["narrow"], timings["full"]),
    }


def compiles(device: str) -> bool:
    """Whether ours is compiled: on a CPU with a C++ compiler."""
    return device == "cpu" and any(map(shutil.which, ("g++", "clang++")))


def bound(found: dict[str, Any]) -> dict[str, Any]:
    """How far our step is from moving weights, gradients and momentum once at the bandwidth of a copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(source)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    copy.copy_(source)
    start.record()
    for _ in range(20):
        copy.copy_(source)
    stop.record()
    torch.cuda.synchronize()
    bandwidth = 20 * 2 * 2**30 / (start.elapsed_time(stop) / 1e3)
    ms = 1e3 * 3 * 4 * found["parameters"] / bandwidth
    return {
        "gb_per_s": round(bandwidth / 1e9, 1),
        "bound_ms": round(ms, 4),
        "times_bound": round(found["ms_per_step"]["ours"] / ms, 3),
    }


if __name__ == "__main__":
    main()
