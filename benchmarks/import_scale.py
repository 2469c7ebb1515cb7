"""Importing big lists: seconds and peak memory of `bmoe-cache dataset import`, a whole process each.

MA-52's lists are 22,422 rows in three CRLF files (generated names); "rows" is one "path label" list of --rows lines,
"intervals" a CSV of as many rows with frames, subject and group. No video exists: an import reads none.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from benchmarks.harness import arguments, report
from pipeline.manifest import manifest_path

CLASSES = 52
SPLITS = {"train": 11250, "val": 5586, "test": 5586}  # of MA-52
LIMITS = {"ma52": (3.0, None), "rows": (60.0, 2.0), "intervals": (60.0, 2.0)}  # seconds, GiB


def write_ma52(folder: Path) -> int:
    """Lists of the released form; the number of rows."""
    for split, count in SPLITS.items():
        names = (
            f"{i % 186:04d}_{i % 7:02d}_{i // 7 + 5000 * (split == 'val'):04d}.mp4 {i % CLASSES}"
            for i in range(count)
        )
        if split == "test":
            names = (f"test{i:04d}.mp4 0" for i in range(count))
        (folder / f"{split}_list_videos.txt").write_text("\r\n".join(names), newline="")
    return sum(SPLITS.values())


def write_list(folder: Path, count: int) -> int:
    """One long train list."""
    with (folder / "train_list.txt").open("w") as file:
        file.writelines(f"videos/{i // 1000:04d}/clip_{i:07d}.mp4 {i % CLASSES}\n" for i in range(count))
    return count


def write_table(folder: Path, count: int) -> int:
    """One long CSV: 20 intervals a recording, 5 recordings a subject."""
    with (folder / "clips.csv").open("w") as file:
        file.write("video_path,start_frame,end_frame,label_id,split,subject_id,group_id\n")
        file.writelines(
            f"videos/rec_{i // 20:06d}.mp4,{i % 20 * 100},{i % 20 * 100 + 64},{i % CLASSES},"
            f"{'val' if i % 10 == 0 else 'train'},s{i // 100:05d},rec_{i // 20:06d}\n"
            for i in range(count)
        )
    return count


def timed_import(name: str, root: Path, cache: Path, options: list[str]) -> tuple[float, float]:
    """(seconds, peak GiB) of one import in a process of its own."""
    words = ["dataset", "import", name, "--root", str(root), "--cache", str(cache), *options]
    command = [sys.executable, "-c", "import cli; cli.app()", *words]
    began = time.perf_counter()
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ])  # fmt: skip
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(words)} failed with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 2**20


def main() -> None:
    """Import each list --rounds times; counts are checked in the written tables."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, default=1_000_000, help="lines of the long lists")
    options = parser.parse_args()
    writers: dict[str, Any] = {
        "ma52": (write_ma52, [], ()),
        "rows": (write_list, ["--as", "list"], (options.rows,)),
        "intervals": (write_table, ["--as", "csv"], (options.rows,)),
    }
    measured: dict[str, Any] = {}
    for name, (write, words, sizes) in writers.items():
        with tempfile.TemporaryDirectory() as folder:
            root, cache = Path(folder, "root"), Path(folder, "cache")
            root.mkdir()
            count = write(root, *sizes)
            timed_import(name, root, cache, words)  # warm: byte code and page cache
            runs = [timed_import(name, root, cache, words) for _ in range(options.rounds)]
            # By the footer: a child's peak memory starts at that of its parent, which must stay small.
            found = pq.read_metadata(manifest_path(cache, name)).num_rows
        if found != count:
            raise SystemExit(f"{name}: {found} clips imported of {count}: its time means nothing")
        spent, memory = [seconds for seconds, _ in runs], max(gib for _, gib in runs)
        limit_s, limit_gib = LIMITS[name]
        measured[name] = {
            "rows": count,
            "seconds": round(median(spent), 2),
            "peak_gib": round(memory, 2),
            "limit_seconds": limit_s,
            "limit_gib": limit_gib,
        }
    report("import_scale", measured, options.out)


if __name__ == "__main__":
    main()
