"""Small caches for the tests of the store."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.spec import digest
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.writer import ShardBuilder, Stage, create_stage

FEATURES = ArraySpec("features", "float16", (5, 3), 4, "raw")
PRESENT = ArraySpec("present", "uint8", (5,), 8, "raw")
LABELS = ArraySpec("labels", "uint8", (4, 6), 1, "zstd")
ARRAYS = (FEATURES, PRESENT, LABELS)


def facts(stage: str = "semantic", **options: object) -> dict[str, object]:
    return {"stage": stage, "version": 1, **options}


def make_stage(root: Path, arrays: Sequence[ArraySpec] = ARRAYS, shard_rows: int = 16) -> Stage:
    init_cache(root)
    declared = facts(arrays=[array.name for array in arrays])
    return create_stage(root, declared, digest(declared), arrays, shard_rows, {"host": "here"})


def random_rows(spec: ArraySpec, n: int, seed: int) -> np.ndarray:
    """n rows of any bit pattern that is a finite number."""
    rng = np.random.default_rng(seed)
    shape = (n, *spec.row_shape)
    if spec.dtype.startswith("float"):
        return rng.normal(size=shape).astype(spec.dtype)
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    limits = np.iinfo(spec.dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=spec.dtype, endpoint=True)


def foreign(stage: Stage, array: str) -> np.ndarray:
    """A whole array, unused rows included, as zarr-python reads it."""
    import zarr  # not above: processes that are killed while they write start sooner

    return np.asarray(zarr.open_array(stage.folder.zarr / array, mode="r")[:])


def fill(stage: Stage, lengths: Sequence[int], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Commit clips of these lengths, as many shards as they need: clip_key -> array name -> rows."""
    written: dict[str, dict[str, np.ndarray]] = {}
    builder = ShardBuilder(stage, stage.next_shard)
    for number, n in enumerate(lengths):
        if not builder.room_for(n):
            builder.commit()
            builder = ShardBuilder(stage, stage.next_shard)
        key = digest([seed, number])
        arrays = {spec.name: random_rows(spec, n, seed * 1000 + number) for spec in stage.arrays.values()}
        builder.add(key, f"clip {number}", arrays, {"start_frames": list(range(0, 4 * n, 4))})
        written[key] = arrays
    builder.commit()
    return written
