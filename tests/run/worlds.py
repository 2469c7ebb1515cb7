"""Steps that many tests of the runner share."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets import import_dataset
from pipeline.manifest import manifest_path, write_manifest
from pipeline.spec import STAGES
from pipeline.store.layout import init_cache
from pipeline.store.reader import Cache


def import_clips(cache: Path, root: Path, name: str = "demo", adapter: str | None = None) -> None:
    """What `bmoe-cache dataset import` does."""
    init_cache(cache)
    write_manifest(import_dataset(name, root, adapter), manifest_path(cache, name))


def bmoe(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def everything(cache: Path, dataset: str = "demo") -> dict[tuple[str, str, str], np.ndarray]:
    """(stage, array, clip key) -> rows, for all a build recorded."""
    reader = Cache(cache)
    keys = reader.builds(dataset)["stages"]
    rows = {}
    for name in STAGES:
        stage = reader.stage(name, keys[name])
        for array in stage.arrays:
            for clip in stage.clips:
                rows[name, array, clip] = np.array(stage.read(clip, array))
    return rows


def receipts(cache: Path, dataset: str, stage: str) -> dict[str, dict[str, Any]]:
    """Clip id -> facts of its receipt."""
    reader = Cache(cache)
    found = reader.stage(stage, reader.builds(dataset)["stages"][stage])
    return {rows.clip_id: dict(rows.facts) for rows in found.clips.values()}


def made_files(cache: Path) -> dict[str, bytes]:
    """Every file of the stages, but for those that say when and where a stage was made."""
    told = ("stage.json", "features.zarr/zarr.json")
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in cache.glob("stages/**/*")
        if path.is_file() and not str(path).endswith(told)
    }
