"""What `ls`, `info` and `failures` say of a cache."""

from pathlib import Path

import pytest

from pipeline.errors import ClipError
from pipeline.report import describe, list_stages, retry
from pipeline.store.layout import load_build
from pipeline.store.reader import Cache
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import open_stage, write_build
from tests.store.caches import dataset_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return dataset_cache(tmp_path / "cache")


def test_stages_of_a_cache(cache: Path) -> None:
    lines = {line["stage"]: line for line in list_stages(cache)}
    assert set(lines) == {"motion", "segment", "semantic"}
    assert lines["motion"]["clips"] == 12
    assert lines["motion"]["used_by"] == ["demo/tiny"]
    assert lines["segment"]["quarantined"] == 1
    for name, line in lines.items():
        assert Path(line["path"], "stage.json").exists()
        assert line["shards"] == len(list(Path(line["path"]).glob("receipts/*.json")))
        files = Path(line["path"]).glob("features.zarr/*/c/**/*")
        assert line["bytes"] == sum(path.stat().st_size for path in files if path.is_file()), name


def test_quarantine_is_told_and_taken_back(cache: Path) -> None:
    report = describe(cache, "demo")
    assert [q["clip_id"] for q in report["quarantine"]] == ["lost", "refused"]
    assert report["codes"] == {"E_DECODE": 1, "E_MISSING_FILE": 1}
    assert report["stages"]["semantic"]["rows"] > report["stages"]["semantic"]["clips"]
    assert retry(cache, "demo") == 1
    assert [q["clip_id"] for q in describe(cache, "demo")["quarantine"]] == ["lost"]
    assert describe(cache, "demo")["clips"]["pending"] == report["clips"]["pending"] + 1
    assert retry(cache, "demo") == 0


def test_warnings_are_told_once_by_whatever_stage_decoded_the_clip(tmp_path: Path) -> None:
    root = dataset_cache(tmp_path / "cache", warning="W_DAMAGED: 28 of 50 frames decoded")
    warned = [{"clip_id": "c00", "text": "W_DAMAGED: 28 of 50 frames decoded"}]
    assert describe(root, "demo")["warnings"] == warned
    build = load_build(root, "demo")
    write_build(root, "demo", {**build, "stages": {"segment": build["stages"]["segment"]}})
    assert describe(root, "demo")["warnings"] == warned


def test_other_datasets_keep_their_quarantine(cache: Path) -> None:
    stage = open_stage(cache, "segment", load_build(cache, "demo")["stages"]["segment"])
    assert stage is not None
    stage.add_quarantine(QuarantineEntry.of("f" * 64, "of another", "segment", ClipError("E_DECODE", "no")))
    assert "f" * 64 not in Cache(cache).clip_keys("demo").values()
    assert retry(cache, "demo") == 1
    assert [entry.clip_id for entry in stage.quarantine()] == ["of another"]
