"""Decoders that hang or crash in the middle of a build: one clip lost each, the others and the shards unharmed."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from pipeline.decode import DecodePool
from pipeline.report import describe
from pipeline.run import engine
from pipeline.run.build import build
from pipeline.store.verify import verify
from tests.decode.test_pool import fake_command
from tests.faults.forks import small_recipe
from tests.run.worlds import import_clips


def test_a_hang_and_a_crash_cost_one_clip_each(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = sorted((small_world / "videos").rglob("*.mp4"))[:5]
    names = ("a", "b-hang_all", "c-crash_all", "d-crash_decord", "e")
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    for video, name in zip(videos, names, strict=True):
        shutil.copy(video, root / f"{name}.mp4")
    (root / "clips.csv").write_text("\n".join(["video_path", *(f"{name}.mp4" for name in names)]) + "\n")
    import_clips(cache, root, "demo", "csv")
    monkeypatch.setattr(engine, "DecodePool", partial(DecodePool, timeout_s=3.0, command=fake_command()))
    result = build(cache, "demo", small_recipe(), ("motion",))
    assert (result.clips.done, result.clips.quarantined, result.clips.pending) == (3, 2, 0)
    refused = {
        line["clip_id"]: (line["code"], line["attempts"]) for line in describe(cache, "demo")["quarantine"]
    }
    assert set(refused.values()) == {("E_DECODE", 2)}
    assert {clip_id.split(":")[-1].removesuffix(".mp4") for clip_id in refused} == {
        "b-hang_all",
        "c-crash_all",
    }
    assert verify(cache).problems == ()
    assert not list(cache.glob("jobs/*"))
