"""Many runs from one cache: grids and seeds, side by side as one model or in processes, finished ones read back."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import product
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from heads import spec
from heads.features import FeatureSet, load_features
from heads.options import Config
from heads.train import RunPlan, RunResult, side_by_side_key, train_group
from pipeline.errors import UserError
from pipeline.store.reader import Cache

# Up to this width a CPU trains seeds faster side by side than one by one.
NARROW = 64

Needs = tuple[spec.FeatureReq, ...]


def silent(done: int, total: int) -> None:
    """A sweep that tells nobody."""


@dataclass(frozen=True)
class Job:
    """A config to train from several seeds; the run folders are <name>-seed<seed>."""

    name: str
    config: Config
    variant: str = "full"


@dataclass(frozen=True)
class Sweep:
    """Where runs come from and go to.

    Attributes:
        cache, dataset: the features.
        folder: of the run folders, and of the trained experts they share.
        seeds: of every job.
        device, compiled: as in `heads.train.train_group`.
        workers: processes on a CPU, each with its share of the cores.
        overwrite: train again what the folder holds of another config or other features, instead of refusing.
        progress: called with (runs done, runs to train).
    """

    cache: Path
    dataset: str
    folder: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    compiled: bool = False
    workers: int = 1
    overwrite: bool = False
    progress: Callable[[int, int], None] = silent

    def path(self, job: Job, seed: int) -> Path:
        """Folder of one run."""
        return self.folder / f"{job.name}-seed{seed}"


def train_all(sweep: Sweep, jobs: Sequence[Job]) -> dict[str, list[RunResult]]:
    """Trains what is not there yet: name of the job -> results in the order of the seeds.

    Stage-1 experts are shared by all runs of the folder. On a CPU processes train run after run, since two threads
    in one small model mostly wait for each other; on a GPU, and for narrow models, runs that differ in their seed or
    in which experts they have train as one batched model.

    Raises:
        UserError: as `heads.train.train_group`; also when a folder holds a run of another config or of other
            features.
    """
    _load.cache_clear()  # a build may have run since
    needs = tuple(
        dict.fromkeys(need for job in jobs for need in spec.needs(job.config))
    )  # the same clips for all
    units: dict[str, list[tuple[Job, int]]] = {}  # what trains side by side
    for job in jobs:
        for seed in sweep.seeds:
            if _finished(sweep, job, seed, needs) is None:
                alone = not _together(job.config, sweep)
                beside = f"{job.name} {seed}" if alone else side_by_side_key(job.config)
                units.setdefault(beside, []).append((job, seed))
    total, done = sum(map(len, units.values())), 0
    sweep.progress(0, total)
    workers = min(sweep.workers, len(units))
    if workers <= 1 or sweep.device.startswith("cuda"):
        for unit in units.values():
            _train(sweep, unit, needs)
            sweep.progress(done := done + len(unit), total)
    else:
        threads = max(1, (os.cpu_count() or 1) // workers)
        quiet = replace(sweep, progress=silent)  # a listener does not travel to another process
        # Ctrl-C goes to all processes of a terminal; this one ends the others, which would each print where they were.
        deaf = (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, deaf) as pool:
            try:
                running = {
                    pool.submit(_train_alone, threads, quiet, unit, needs): len(unit)
                    for unit in units.values()
                }
                for future in as_completed(running):
                    future.result()
                    sweep.progress(done := done + running[future], total)
            except KeyboardInterrupt:
                for process in active_children():
                    process.terminate()
                raise
    found = {job.name: [_finished(sweep, job, seed, needs) for seed in sweep.seeds] for job in jobs}
    return {name: [result for result in results if result] for name, results in found.items()}


def grid(base: Sequence[str], vary: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(name, overrides) for every combination of ``key=a,b,c`` axes on top of the base overrides.

    Raises:
        UserError: an axis without values.
    """
    axes = []
    for axis in vary:
        key, sign, values = axis.partition("=")
        if not sign or not all(values.split(",")):
            raise UserError(f"--vary {axis}: write KEY=A,B,..., e.g. stage2.lr=1e-4,3e-4")
        axes.append([f"{key}={value}" for value in values.split(",")])
    return [("_".join(chosen) or "base", (*base, *chosen)) for chosen in product(*axes)]


def encoded(cache: Path, dataset: str) -> int:
    """Clips whose features the cache holds, over its encoder stages: what a command adds to it, it encoded."""
    opened = Cache(cache)
    stages: Mapping[str, str] = opened.builds(dataset)["stages"]
    wanted = [name for name in ("semantic", "motion") if name in stages]
    return sum(len(opened.stage(name, stages[name]).clips) for name in wanted)


def _together(config: Config, sweep: Sweep) -> bool:
    return sweep.device.startswith("cuda") or bool(config.d_model and config.d_model <= NARROW)


def _train(sweep: Sweep, unit: Sequence[tuple[Job, int]], needs: Needs) -> None:
    plans = [RunPlan(sweep.path(job, seed), job.config, seed, job.variant) for job, seed in unit]
    train_group(
        sweep.cache, sweep.dataset, plans,
        features=_features(sweep, unit[0][0], needs), experts=sweep.folder / "experts",
        device=sweep.device, compiled=sweep.compiled,
    )  # fmt: skip


def _train_alone(threads: int, sweep: Sweep, unit: Sequence[tuple[Job, int]], needs: Needs) -> None:
    """`_train` in a process of its own."""
    import torch

    torch.set_num_threads(threads)
    _train(sweep, unit, needs)


def _features(sweep: Sweep, job: Job, needs: Needs) -> FeatureSet:
    return _load(sweep.cache, sweep.dataset, job.config.t_len, job.config.t_mode, needs, sweep.device)


@lru_cache(maxsize=2)
def _load(cache: Path, dataset: str, t_len: int, t_mode: str, needs: Needs, device: str) -> FeatureSet:
    return load_features(cache, dataset, t_len, t_mode, needs=needs).to(device)


def _finished(sweep: Sweep, job: Job, seed: int, needs: Needs) -> RunResult | None:
    """The result of a finished run of this job; None when there is none yet.

    Raises:
        UserError: the folder holds something else, and is not to be overwritten.
    """
    folder = sweep.path(job, seed)
    if not folder.exists():
        return None
    data = _features(sweep, job, needs).only(spec.needs(job.config))
    config, info = (_json(folder / name) for name in ("config.json", "info.json"))
    if config != job.config.model_dump(mode="json") or info.get("data") != data.digest:
        if not sweep.overwrite:
            raise UserError(
                f"{folder}: holds a run of another config or other features; delete it or give another folder"
            )
        shutil.rmtree(folder)
        return None
    known = {f.name for f in fields(RunResult)}
    result = {name: value for name, value in _json(folder / "result.json").items() if name in known}
    return RunResult(**result | {"run_dir": folder}) if result else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
