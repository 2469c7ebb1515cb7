"""kill -9 of a real writer at random moments: no torn file, every receipt holds, the next run completes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import zarr

from pipeline.store.layout import StageDir
from pipeline.store.reader import StageReader
from pipeline.store.shard import open_shard
from pipeline.store.writer import Stage
from tests.store.caches import make_stage
from tests.store.committer import ARRAYS, SHARD_ROWS, expected

KILLS = 10


def start(root: Path, shards: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store.committer", str(root), str(shards)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def whole_shards(stage: Stage) -> int:
    """The number of committed shards, after checking every file that has its final name."""
    folder = StageDir(stage.folder.root, stage.name, stage.key)
    receipts, reader = stage.receipts(), StageReader(folder, check=True)
    for spec in ARRAYS:
        for path in (folder.zarr / spec.name / "c").rglob("*"):
            if path.is_file() and not path.name.startswith("."):  # with a receipt or without
                open_shard(spec, SHARD_ROWS, path, path.stat().st_size)
        assert zarr.open_array(folder.zarr / spec.name, mode="r").shape[0] >= len(receipts) * SHARD_ROWS
        for receipt in receipts:
            rows = reader.read(f"clip {receipt.shard}", spec.name)
            np.testing.assert_array_equal(rows, expected(receipt.shard)[spec.name])
    return len(receipts)


def test_kill_at_random_moments(tmp_path: Path) -> None:
    root, dice = tmp_path / "cache", random.Random(20)
    before = interrupted = 0
    for _ in range(KILLS):
        process = start(root, 10**6)  # more than it can do before it is killed
        assert process.stdout is not None
        assert process.stdout.readline() == f"{before}\n"  # past its imports: from here on it writes
        time.sleep(dice.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        stage = make_stage(root, ARRAYS, SHARD_ROWS)
        now = whole_shards(stage)
        assert now > before
        started = len(stage.quarantine())  # one entry precedes every shard
        assert now <= started
        interrupted += started > now
        before = now
    assert interrupted > 0  # or the kills came between two shards, and this test showed nothing
    shards = before + 4
    final = start(root, shards)
    final.communicate()
    assert final.returncode == 0
    assert whole_shards(stage) == shards
    assert {entry.clip_key for entry in stage.quarantine()} == {f"bad {number}" for number in range(shards)}
    assert not [path for path in stage.folder.zarr.rglob("c/**/.*.tmp") if path.is_file()]
