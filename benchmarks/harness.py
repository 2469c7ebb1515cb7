"""What every benchmark shares: warm both sides, run them in turns, check the counts, print one JSON line.

The first contender of a process pays 2 to 2.5 times its price, and a machine drifts while it measures. So every
contender runs once before any clock starts, the rounds go A B A B, and ratios are taken within a round.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.versions import versions

RESULTS = Path(__file__).parent / "results"
VERSIONS = (
    "bmoe-cache",
    "torch",
    "numpy",
    "zarr",
    "av",
    "decord",
    "opencv-python-headless",
    "transformers",
    "h5py",
    "zarrs",
    "litdata",
    "webdataset",
)


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender, one entry per round."""

    rounds: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.rounds)

    def record(self, count: int) -> dict[str, Any]:
        """Median, fastest and slowest seconds, and items per second at the median."""
        return {**_spread(self.rounds), "per_second": float(f"{count / self.seconds:.5g}")}


def race(contenders: Mapping[str, Callable[[], int]], count: int, rounds: int = 5) -> dict[str, Timing]:
    """Time the contenders in turns, `rounds` times each after one run to warm up.

    Every contender returns how many items it made. SystemExit when that is not `count`: a fast run that
    dropped some must fail.
    """
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            made = run()
            seconds = time.perf_counter() - began
            if made != count:
                raise SystemExit(f"{name} made {made} items instead of {count}: its time means nothing")
            if number:
                spent[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in spent.items()}


def ratio(slow: Timing, fast: Timing) -> dict[str, float]:
    """How many times faster `fast` is: median, lowest and highest over the rounds."""
    return _spread([a / b for a, b in zip(slow.rounds, fast.rounds, strict=True)])


def _spread(values: list[float] | tuple[float, ...]) -> dict[str, float]:
    names = {"median": median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.4g}") for name, value in names.items()}


def arguments(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: --rounds and --out."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="timed runs of every contender")
    parser.add_argument(
        "--out", nargs="?", const=True, default=False, metavar="NAME",
        help="also write benchmarks/results/NAME.json; default: that of the benchmark",
    )  # fmt: skip
    return parser


def report(name: str, measured: Mapping[str, Any], out: bool | str = False) -> None:
    """Print one JSON line: the benchmark, what it measured, the command and the machine.

    ``out`` writes it to benchmarks/results too, under the benchmark's name or the one given.
    """
    command = " ".join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
    line = json.dumps({"benchmark": name, **measured, "command": command, "machine": machine()})
    print(line)
    if out:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name if out is True else out}.json").write_text(line + "\n")


def machine() -> dict[str, Any]:
    """Processor, memory, versions, and the GPU where torch is loaded."""
    record: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(*VERSIONS),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        record["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            record["gpu"] = torch.cuda.get_device_name()
    return record


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def import_intervals(
    cache: Path, folder: Path, places: Sequence[tuple[str, int]], frames: int, clips: int
) -> None:
    """Make a cache whose dataset "bench" is the first `clips` places: (file in folder/videos, first frame)."""
    from pipeline.datasets import import_dataset
    from pipeline.manifest import manifest_path, write_manifest
    from pipeline.store.layout import init_cache

    if len(places) < clips:
        raise SystemExit(f"the files hold {len(places)} clips, {clips} wanted; lower --clips")
    rows = (f"videos/{name},{start},{start + frames}" for name, start in places[:clips])
    (folder / "clips.csv").write_text("\n".join(["video_path,start_frame,end_frame", *rows]) + "\n")
    init_cache(cache)
    write_manifest(import_dataset("bench", folder, "csv"), manifest_path(cache, "bench"))
