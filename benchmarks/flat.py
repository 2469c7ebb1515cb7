"""The cache that the read benchmarks share: clips of 4 to 36 rows, float16 [768], and the same rows in one array."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.spec import digest
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.reader import Cache, StageReader
from pipeline.store.writer import ShardBuilder, Stage, create_stage


@dataclass(frozen=True)
class World:
    """A stage, and its rows in one flat array; clip i has rows offsets[i] to offsets[i + 1]."""

    stage: Stage
    reader: StageReader
    keys: list[str]
    offsets: np.ndarray
    rows: np.ndarray


def make_world(
    root: Path, clips: int, low: int = 4, high: int = 36, dim: int = 768, shard_bytes: int = 64 * 2**20
) -> World:
    """Clips of low to high rows, in order, in whole shards."""
    dice = np.random.default_rng(0)
    counts = dice.integers(low, high, clips, endpoint=True)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    rows = dice.standard_normal((int(offsets[-1]), dim), np.float32).astype(np.float16)
    init_cache(root)
    facts = {"stage": "semantic", "version": 1, "clips": clips, "dim": dim}
    spec = ArraySpec("features", "float16", (dim,), 64, "raw")
    wanted = min(int(offsets[-1]), shard_bytes // spec.row_bytes)
    shard_rows = -(-max(wanted, high) // 64) * 64
    stage = create_stage(root, facts, digest(facts), [spec], shard_rows, {})
    keys = [digest(i) for i in range(clips)]
    builder = ShardBuilder(stage, 0)
    for i, key in enumerate(keys):
        clip = rows[offsets[i] : offsets[i + 1]]
        if not builder.room_for(len(clip)):
            builder.commit()
            builder = ShardBuilder(stage, stage.next_shard)
        builder.add(key, f"clip{i}", {"features": clip}, {})
    builder.commit()
    return World(stage, Cache(root).stage("semantic", stage.key), keys, offsets, rows)
