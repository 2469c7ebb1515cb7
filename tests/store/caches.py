"""Small caches for the tests of the store."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.clip import Clip, clip_key
from pipeline.errors import ClipError
from pipeline.manifest import Manifest, manifest_path, write_manifest
from pipeline.media import Media, write_media
from pipeline.spec import VIEWS, digest
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder, Stage, create_stage, write_build
from pipeline.taxonomy import load_taxonomy

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


def dataset_cache(root: Path, clips: int = 12, warning: str | None = None) -> Path:
    """A cache with a dataset "demo" of clips c00, c01, ... and its stages segment, semantic and motion.

    Clip i has i % 5 + 1 rows and label i; every third is val. Three more have no features: "lost" has no file,
    "pending" was not reached, "refused" is in the quarantine of segment. `warning` was given while c00 was decoded.
    """
    init_cache(root)
    names = [*(f"c{i:02d}" for i in range(clips)), "lost", "pending", "refused"]
    rows = [
        Clip(name, "demo", f"{name}.mp4", label_ids=(i % 12,), label_kind="single",
             label_space="demo12", split="train" if i % 3 else "val")
        for i, name in enumerate(names)
    ]  # fmt: skip
    media = {f"{name}.mp4": Media(f"{name}.mp4", 9, 1, digest(name), 60, 30, 1, 64, 48) for name in names}
    media["lost.mp4"] = Media("lost.mp4", 0, 0, code="E_MISSING_FILE", error="no such file")
    taxonomy = load_taxonomy("demo")
    assert taxonomy is not None
    path = manifest_path(root, "demo")
    write_manifest(Manifest("demo", root, taxonomy, tuple(rows)), path)
    write_media(path.with_suffix(".media.parquet"), media)

    keys = {clip.clip_id: clip_key(clip, digest(clip.clip_id)) for clip in rows}
    arrays = {"segment": [LABELS], "semantic": [FEATURES, PRESENT], "motion": [FEATURES]}
    stages: dict[str, Stage] = {}
    for number, (name, specs) in enumerate(arrays.items()):
        options = {"views": list(VIEWS), "stride": 4, "window": 16} if name == "semantic" else {}
        declared = facts(name, reads={read: stage.key for read, stage in stages.items()}, **options)
        stage = stages[name] = create_stage(root, declared, digest(declared), specs, 16, {"host": "here"})
        builder = ShardBuilder(stage, 0)
        for i in range(clips):
            n = i % 5 + 1
            if not builder.room_for(n):
                builder.commit()
                builder = ShardBuilder(stage, stage.next_shard)
            rows_of = {spec.name: random_rows(spec, n, 100 * number + i) for spec in specs}
            told: dict[str, object] = {
                "frames": 60,
                "fps": [30, 1],
                "start_frames": [4 * k + i for k in range(n)],
            }
            if warning and i == 0:
                told["warnings"] = [warning]
            builder.add(keys[names[i]], names[i], rows_of, told)
        builder.commit()
    error = ClipError("E_DECODE", "no frame could be decoded", "pyav 18", 2)
    stages["segment"].add_quarantine(QuarantineEntry.of(keys["refused"], "refused", "decode", error))
    write_build(
        root, "demo", {"preset": "tiny", "stages": {name: stage.key for name, stage in stages.items()}}
    )
    return root
