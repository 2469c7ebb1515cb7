"""Peak memory of a build of 50 and of 500 demo clips: it must not grow with the number of clips.

    python -m benchmarks.memory [--small 50 --large 500] [--memory 1GiB] [--set segment.stride=12] [--out]

Memory is that of the whole tree of processes, the build and its decoders. `rss`: the largest resident size that each
ever had, as the kernel keeps it, added up as if all had it at the same time, shared pages counted for each. `pss`: the
largest sum at one time, looked at twice a second, shared pages divided among those who have them.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import arguments, import_intervals, report
from pipeline.demo.world import plan_world, render_world

FRAMES = 32  # of a clip
EVERY_S = 0.5


def make_cache(folder: Path, clips: int, videos: int = 72) -> Path:
    """A cache whose dataset "bench" is so many intervals of rendered clips of the demo world, all different."""
    world, cache = folder / f"world{videos}", folder / f"cache{clips}"
    each = videos // 24  # 12 classes in train and in val
    render_world(world, plan_world(per_class={"train": each, "val": each}))
    files = sorted((world / "videos").iterdir())
    starts = range(40 - FRAMES + 1)  # no video is shorter than 40
    import_intervals(cache, world, [(path.name, start) for start in starts for path in files], FRAMES, clips)
    return cache


def measure(cache: Path, clips: int, memory: str, overrides: list[str]) -> dict[str, Any]:
    """Build it in a process of its own; SystemExit when a clip is missing."""
    command = [sys.executable, "-m", "cli", "build", "--dataset", "bench", "--cache", str(cache)]
    command += ["--preset", "demo", "--memory", memory, "--json"]
    for override in ("run.shard_clips=25", *overrides):
        command += ["--set", override]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    largest: dict[int, int] = {}  # process -> its largest resident size
    together = 0
    while process.poll() is None:
        now = 0
        for pid in _tree(process.pid):
            with contextlib.suppress(OSError):  # it ended meanwhile
                largest[pid] = max(largest.get(pid, 0), _kib(Path(f"/proc/{pid}/status"), "VmHWM"))
                now += _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss")
        together = max(together, now)
        time.sleep(EVERY_S)
    assert process.stdout
    done = json.loads(process.stdout.read())["clips"]["done"]
    if done != clips:
        raise SystemExit(f"{done} of {clips} clips are done: the numbers mean nothing")
    return {
        "clips": clips,
        "seconds": round(time.perf_counter() - began, 1),
        "processes": len(largest),
        "peak_rss_mib": round(sum(largest.values()) / 1024, 1),
        "peak_pss_mib": round(together / 1024, 1),
    }


def _tree(pid: int) -> list[int]:
    """A process and those it started, and so on."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
    return found


def _kib(path: Path, name: str) -> int:
    """A number of a file of /proc; 0 where it has none."""
    lines = path.read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--small", type=int, default=50)
    parser.add_argument("--large", type=int, default=500)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="option of the demo preset"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/memory"))
    options = parser.parse_args()
    sides = {}
    for name in ("small", "large"):
        clips = getattr(options, name)
        cache = make_cache(options.folder, clips)
        sides[name] = measure(cache, clips, options.memory, options.overrides)
        shutil.rmtree(cache)
    ratios = {
        f"{kind}_ratio": round(sides["large"][f"peak_{kind}_mib"] / sides["small"][f"peak_{kind}_mib"], 3)
        for kind in ("rss", "pss")
    }
    measured = {"budget": options.memory, "set": options.overrides, **sides, **ratios, "wanted_at_most": 1.1}
    report("memory", measured, options.out)


if __name__ == "__main__":
    main()
