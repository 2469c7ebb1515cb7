"""Seconds and memory of `bmoe-cache plan` for 100,000 clips, 99 % of them cached, in a process of its own.

    python -m benchmarks.plan_100k

The cache is real but for its features, which a plan never opens: manifest, media table, receipts with the facts of
real stages, and 100,000 files of one byte. The plan must find exactly the 1 % that is new.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import arguments, race, report
from pipeline.clip import Clip, clip_key
from pipeline.manifest import Manifest, manifest_path, write_manifest
from pipeline.media import Media, write_media
from pipeline.presets import load_recipe
from pipeline.spec import STAGES, PipelineSpec
from pipeline.store import atomic
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.records import ClipRows, Receipt, ShardFile, to_bytes
from pipeline.store.writer import create_stage, write_build
from pipeline.taxonomy import load_taxonomy

SHARD_CLIPS = 256
FRAMES = 63
ARRAYS = (
    ArraySpec("features", "float16", (5, 768), 64, "raw"),
    ArraySpec("present", "uint8", (5,), 64, "raw"),
)


def clips_of(count: int) -> tuple[Clip, ...]:
    base = Clip("", "big", "", label_ids=(3,), label_space="demo12", label_kind="single", split="train")
    names = (f"video_{i:06d}" for i in range(count))
    paths = (f"{i // 1000:03d}/video_{i:06d}.mp4" for i in range(count))
    return tuple(
        replace(base, clip_id=f"big:train:{name}", video_path=path)
        for name, path in zip(names, paths, strict=True)
    )


def files_of(root: Path, clips: tuple[Clip, ...]) -> dict[str, Media]:
    """One byte each on disk; their table says that they are videos of 63 frames."""
    table = {}
    for folder in {Path(clip.video_path).parent for clip in clips}:
        (root / folder).mkdir(parents=True)
    for clip in clips:
        path = root / clip.video_path
        path.write_bytes(b"x")
        digest = sha256(clip.video_path.encode()).hexdigest()
        mtime_ns = path.stat().st_mtime_ns
        table[clip.video_path] = Media(clip.video_path, 1, mtime_ns, digest, FRAMES, 30, 1, 640, 360)
    return table


def receipts_of(clips: tuple[Clip, ...], keys: dict[str, str], stage: str) -> Iterator[Receipt]:
    facts: dict[str, Any] = {"decoder": "decord 0.6.0", "fps": [30, 1], "frames": FRAMES, "warnings": []}
    if stage == "semantic":
        facts |= {"repeated_frames": 0, "start_frames": list(range(0, FRAMES - 16, 4))}
    n = len(facts.get("start_frames", [0]))
    for shard, first in enumerate(range(0, len(clips), SHARD_CLIPS)):
        chosen = clips[first : first + SHARD_CLIPS]
        rows = tuple(
            ClipRows(keys[clip.clip_id], clip.clip_id, shard, i, i * n, n, facts)
            for i, clip in enumerate(chosen)
        )
        sums = tuple(range(2**31, 2**31 + len(rows)))
        yield Receipt(shard, rows, {array.name: ShardFile(1, sums) for array in ARRAYS})


def make_cache(folder: Path, count: int, spec: PipelineSpec) -> Path:
    cache, root = folder / "cache", folder / "videos"
    clips = clips_of(count)
    media = files_of(root, clips)
    taxonomy = load_taxonomy("demo")
    assert taxonomy is not None
    init_cache(cache)
    path = manifest_path(cache, "big")
    write_manifest(Manifest("big", root, taxonomy, clips), path)
    write_media(path.with_suffix(".media.parquet"), media)
    keys = {clip.clip_id: clip_key(clip, media[clip.video_path].sha256 or "") for clip in clips}
    for name in STAGES:
        declared = spec.stages()[name]
        stage = create_stage(cache, declared.facts(), declared.key, ARRAYS, SHARD_CLIPS * 64, {})
        for receipt in receipts_of(clips[: count - count // 100], keys, name):
            atomic.write_bytes(stage.folder.receipt(receipt.shard), to_bytes(receipt.to_json()))
    write_build(cache, "big", {"preset": "demo", "stages": {n: s.key for n, s in spec.stages().items()}})
    return cache


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--clips", type=int, default=100_000)
    options = parser.parse_args()
    os.fsync = lambda _: None  # making the cache is not what is measured
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder), options.clips, load_recipe("demo").spec)
        command = ["plan", "--dataset", "big", "--cache", str(cache), "--preset", "demo", "--json"]
        peaks, spent = [], []

        def plan() -> int:
            process = subprocess.Popen([sys.executable, "-m", "cli", *command], stdout=subprocess.PIPE)
            assert process.stdout is not None
            record = json.loads(process.stdout.read())
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            peaks.append(usage.ru_maxrss / 1024)
            spent.append(usage.ru_utime + usage.ru_stime)
            new = [stage["pending"] for stage in record["stages"]]
            if process.returncode or new != [options.clips // 100] * len(STAGES):
                raise SystemExit(f"exit status {process.returncode}; planned {new}")
            return int(record["clips"]["manifest"])

        timing = race({"plan": plan}, options.clips, options.rounds)["plan"]
    measured = {"clips": options.clips, "cached": options.clips - options.clips // 100,
                "plan": timing.record(options.clips), "cpu_seconds": round(median(spent), 3),
                "peak_mib": round(max(peaks)), "wanted": {"seconds": 2.0, "peak_mib": 1024}}  # fmt: skip
    report("plan_100k", measured, options.out)


if __name__ == "__main__":
    main()
