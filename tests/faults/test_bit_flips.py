"""Flipped bits, one at a time, anywhere in a cache: verify finds each, a checking reader is never wrong."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ClipError, UserError
from pipeline.store.reader import Cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.verify import verify
from pipeline.store.writer import write_build
from tests.store.caches import fill, make_stage


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.fsync", lambda _: None)
    stage = make_stage(tmp_path / "cache")
    fill(stage, [3, 9, 5, 16, 1, 7])
    for key in ("a", "b", "c"):
        error = ClipError("E_DECODE", "no frame could be decoded", "pyav 18", 2)
        stage.add_quarantine(QuarantineEntry.of(key, f"clip {key}", "semantic", error))
    write_build(stage.folder.root, "demo", {"preset": "small", "stages": {"semantic": stage.key}})
    return stage.folder.root


def contents(root: Path) -> dict[str, object]:
    """Everything a program can learn from a cache."""
    cache = Cache(root, check=True)
    build = cache.builds("demo")
    stage = cache.stage("semantic", build["stages"]["semantic"])
    found: dict[str, object] = {
        "build": build,
        "facts": stage.facts,
        "quarantined": cache.quarantined("demo"),
    }
    for key, clip in stage.clips.items():
        found[key] = clip
        for array in stage.arrays:
            found[f"{key} {array}"] = stage.read(key, array).tobytes()
            rows, _ = stage.read_many([key], array)
            np.testing.assert_array_equal(rows, stage.read(key, array))
    return found


@pytest.mark.parametrize("flips", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flip_is_found_and_none_is_read(cache: Path, flips: int) -> None:
    truth, dice = contents(cache), random.Random(4)
    assert verify(cache).problems == ()
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    refused = 0
    for _ in range(flips):
        path = dice.choice(files)
        good = path.read_bytes()
        bit = dice.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        where = f"bit {bit} of {path.relative_to(cache)}"
        try:
            assert contents(cache) == truth, where
        except UserError:
            refused += 1
        assert [p.path for p in verify(cache).problems] == [path.relative_to(cache).as_posix()], where
        path.write_bytes(good)
    assert refused > flips / 3
    assert verify(cache).problems == ()
    assert contents(cache) == truth
