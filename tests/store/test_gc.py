"""What gc would delete, and what it must never touch."""

import os
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.spec import digest
from pipeline.store.gc import GRACE_S, find_waste, reached, remove
from pipeline.store.jobs import Job, JobShard, create_job, folder_of
from pipeline.store.layout import init_cache
from pipeline.store.lease import Lease, take
from pipeline.store.reader import Cache
from pipeline.store.verify import verify
from pipeline.store.wip import LogWriter, Origin
from pipeline.store.writer import Stage, create_stage, write_build
from tests.store.caches import FEATURES, facts, fill


def make(root: Path, name: str, **options: object) -> Stage:
    init_cache(root)
    declared = facts(name, **options)
    stage = create_stage(root, declared, digest(declared), [FEATURES], 16, {})
    fill(stage, [3, 9, 16])
    return stage


def later(root: Path) -> list[tuple[str, str]]:
    """What is waste when every file is old."""
    return [(item.kind, item.path) for item in find_waste(root, time.time() + GRACE_S + 1)]


def test_only_stages_that_no_build_reaches(tmp_path: Path) -> None:
    segment = make(tmp_path, "segment")
    regions = make(tmp_path, "regions", reads={"segment": segment.key})
    first = make(tmp_path, "semantic", stride=4, reads={"regions": regions.key})
    second = make(tmp_path, "semantic", stride=8, reads={"regions": regions.key})
    waste = make(tmp_path, "semantic", stride=16, reads={"regions": regions.key})
    foreign = make(tmp_path, "imported", model="theirs")
    for dataset, preset, stage in (("a", "base", first), ("a", "paper", second), ("b", "paper", second)):
        write_build(tmp_path, dataset, {"preset": preset, "stages": {"semantic": stage.key}})
    assert reached(tmp_path) == {
        first.key: ["a/base"],
        second.key: ["a/paper", "b/paper"],
        regions.key: ["a/base", "a/paper", "b/paper"],
        segment.key: ["a/base", "a/paper", "b/paper"],
    }
    (item,) = find_waste(tmp_path)
    assert (item.kind, item.path) == ("stage", f"stages/semantic/{waste.key[:16]}")
    assert item.bytes == sum(path.stat().st_size for path in waste.folder.path.rglob("*") if path.is_file())
    assert waste.folder.path.exists()  # so far nothing was touched
    remove(tmp_path, item)
    assert not waste.folder.path.exists()
    assert find_waste(tmp_path) == []
    assert verify(tmp_path).problems == ()
    for stage in (segment, regions, first, second, foreign):
        assert len(Cache(tmp_path).stage(stage.name, stage.key).clips) == 3


def test_a_superseded_option_is_waste_and_another_preset_is_not(tmp_path: Path) -> None:
    old, new = make(tmp_path, "motion", crop=96), make(tmp_path, "motion", crop=112)
    for stage in (old, new):
        write_build(tmp_path, "a", {"preset": "base", "stages": {"motion": stage.key}})
    assert [path for _, path in later(tmp_path)] == [f"stages/motion/{old.key[:16]}"]


def test_leftovers_of_killed_builds(tmp_path: Path) -> None:
    stage = make(tmp_path, "motion")
    write_build(tmp_path, "a", {"preset": "base", "stages": {"motion": stage.key}})
    folder = stage.folder
    names = {
        tmp_path / "builds" / ".a.json.12ab.tmp": "leftover",
        tmp_path / "stages" / "motion" / "abcdefabcdefabcd" / "features.zarr" / "zarr.json": "leftover",
        tmp_path / "stages" / "motion" / ".0123012301230123.gc" / "stage.json": "leftover",
        folder.receipts / ".9.json.12ab.tmp": "leftover",
        folder.shard_file(FEATURES, 9): "leftover",
        folder.path / "damaged" / "0" / "receipt.json": "set aside",
        folder.path / "wip" / "0.1.log": "wip",
        folder.path / "wip" / "8.1.log": "wip",
        folder.path / "wip" / "9.1.log": None,  # of a shard that is still to come
        tmp_path / "jobs" / "4.2.lease": "leftover",
    }
    shard = JobShard("motion", stage.key, 9, ("k",), 16)
    assert create_job(tmp_path, Job(7, "a", "a", ("k",), (1,), (shard,)))
    for path in names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"xyz")
    assert [item.kind for item in find_waste(tmp_path)] == ["set aside"]  # the others may be in use right now
    found = later(tmp_path)
    assert len(found) == 9
    for item in find_waste(tmp_path, time.time() + GRACE_S + 1):
        remove(tmp_path, item)
    assert [path for path in names if path.exists()] == [folder.path / "wip" / "9.1.log"]
    assert later(tmp_path) == []
    assert len(Cache(tmp_path).stage("motion", stage.key).clips) == 3


def test_what_a_living_build_writes_is_never_waste(tmp_path: Path) -> None:
    """Not even where no build record reaches its stage any more; when it is dead, its job goes, then the rest."""
    stage = make(tmp_path, "motion")
    shard = JobShard("motion", stage.key, 9, ("k",), 16)
    assert create_job(tmp_path, Job(7, "a", "a", ("k",), (1,), (shard,)))
    log = LogWriter(stage.folder, 1, Origin("a", 9, 0))
    log.close()
    with taken(tmp_path):
        assert later(tmp_path) == []
    assert [path for _, path in later(tmp_path)] == ["jobs/7.json", f"stages/motion/{stage.key[:16]}"]
    write_build(tmp_path, "a", {"preset": "base", "stages": {"motion": stage.key}})
    assert later(tmp_path) == []  # the next build goes on with it
    (tmp_path / "jobs" / "7.json").unlink()
    assert [item.kind for item in find_waste(tmp_path, time.time() + GRACE_S + 1)] == ["wip"]


def taken(root: Path) -> Lease:
    held = take(folder_of(root), 7, 1)
    assert held is not None
    return held


def test_nothing_is_waste_where_a_build_record_is_damaged(tmp_path: Path) -> None:
    stage = make(tmp_path, "motion")
    write_build(tmp_path, "a", {"preset": "base", "stages": {"motion": stage.key}})
    (tmp_path / "builds" / "a.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"builds/a\.json is damaged"):
        find_waste(tmp_path)


def test_a_damaged_stage_is_left_to_verify(tmp_path: Path) -> None:
    stage = make(tmp_path, "motion")
    stage.folder.stage_json.write_bytes(b"{}")
    assert later(tmp_path) == []


def test_a_kill_while_a_stage_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make(tmp_path, "motion")
    (item,) = find_waste(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove(tmp_path, item)
    assert not stage.folder.path.exists()
    assert verify(tmp_path).problems == ()
    for kind, path in later(tmp_path):
        assert kind == "leftover"
        assert path.endswith(".gc")
