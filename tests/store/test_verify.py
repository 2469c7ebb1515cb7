"""What verify finds, and what a repair keeps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ClipError, UserError
from pipeline.store import repair
from pipeline.store.reader import Cache, StageReader
from pipeline.store.records import QuarantineEntry, load_record, to_bytes
from pipeline.store.verify import Report, verify
from pipeline.store.writer import ShardBuilder, Stage, open_stage
from tests.store.caches import FEATURES, LABELS, PRESENT, fill, make_stage, random_rows

Written = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return make_stage(tmp_path)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def found(report: Report) -> list[tuple[str, str]]:
    return [
        (problem.kind, problem.path.rpartition("stages/")[2].partition("/")[2][17:])
        for problem in report.problems
    ]


def reader_of(stage: Stage) -> StageReader:
    return Cache(stage.folder.root, check=True).stage(stage.name, stage.key)


def assert_holds(stage: Stage, written: Written) -> None:
    reader = reader_of(stage)
    assert set(reader.clips) == set(written)
    for key, arrays in written.items():
        assert reader.clips[key].facts["start_frames"] == list(range(0, 4 * reader.clips[key].n_rows, 4))
        for name, rows in arrays.items():
            np.testing.assert_array_equal(reader.read(key, name), rows)


def test_a_sound_cache(stage: Stage) -> None:
    fill(stage, [3, 9, 5])
    report = verify(stage.folder.root)
    assert report.sound
    assert report.problems == ()
    files = [path for path in stage.folder.root.rglob("*") if path.is_file()]
    assert report.files == len(files)
    assert report.bytes == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("array", [FEATURES, LABELS], ids=["raw", "zstd"])
def test_one_damaged_clip_costs_one_clip(stage: Stage, array) -> None:  # type: ignore[no-untyped-def]
    written = fill(stage, [3, 9, 2, 16])
    keys = list(written)
    clip = reader_of(stage).clips[keys[1]]
    path = stage.folder.shard_file(array, 0)
    offset = (
        clip.row_start * FEATURES.row_bytes
        if array is FEATURES
        else path.read_bytes().index(b"\x28\xb5\x2f\xfd", 60)
    )
    before = path.read_bytes()
    flip(path, offset + 8)
    damaged = path.read_bytes()
    report = verify(stage.folder.root)
    assert found(report) == [("damaged", path.relative_to(stage.folder.path).as_posix())]
    assert "of 3 clips have changed" in report.problems[0].reason
    assert not report.sound

    report = verify(stage.folder.root, repairing=True)
    assert report.sound
    assert "2 clips kept in a new shard, 1 to be computed again" in report.repaired[0]
    lost = [key for key in keys if key not in reader_of(stage).clips]
    assert len(lost) == 1
    assert_holds(stage, {key: rows for key, rows in written.items() if key not in lost})
    assert (stage.folder.path / "damaged" / "0" / array.name).read_bytes() == damaged != before
    assert verify(stage.folder.root).problems == ()


def test_all_arrays_of_a_shard_are_repaired_together(stage: Stage) -> None:
    written = fill(stage, [3, 9])
    flip(stage.folder.shard_file(FEATURES, 0), 0)
    flip(stage.folder.shard_file(PRESENT, 0), 5 * 11)
    report = verify(stage.folder.root, repairing=True)
    assert [kind for kind, _ in found(report)] == ["damaged", "damaged"]
    assert report.repaired[1] == "repaired with the other files of its shard"
    assert reader_of(stage).clips == {}
    assert set(written)  # both are pending now
    assert open_stage(stage.folder.root, stage.name, stage.key) == stage


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: folder.shard_file(FEATURES, 0).unlink(), "no such file"),
        (lambda folder: flip(folder.shard_file(FEATURES, 0), -6), "the checksum of its index is wrong"),
        (lambda folder: folder.shard_file(FEATURES, 0).write_bytes(b""), "it has 0 bytes, not 548"),
        (lambda folder: flip(folder.receipt(0), 50), "its checksum is wrong"),
        (lambda folder: folder.receipt(0).write_bytes(to_bytes({**load_record(folder.receipt(0)), "shard": 1})),
         "it says shard 1"),
    ],
)  # fmt: skip
def test_a_shard_beyond_use_is_set_aside(stage: Stage, harm: Callable, reason: str) -> None:
    written = fill(stage, [3, 9, 16])
    harm(stage.folder)
    report = verify(stage.folder.root, repairing=True)
    assert [problem.reason for problem in report.problems] == [reason]
    assert report.sound
    assert_holds(stage, dict(list(written.items())[2:]))
    assert (stage.folder.path / "damaged" / "0" / "receipt.json").exists()
    assert verify(stage.folder.root).problems == ()


def test_flipped_padding_costs_nothing(stage: Stage) -> None:
    written = fill(stage, [3])
    flip(stage.folder.shard_file(FEATURES, 0), 15 * FEATURES.row_bytes)
    report = verify(stage.folder.root, repairing=True)
    assert report.problems[0].reason == "there is something behind its last row"
    assert_holds(stage, written)
    assert verify(stage.folder.root).problems == ()


@pytest.mark.parametrize(
    "name", ["stage.json", "features.zarr/zarr.json", "features.zarr/labels/zarr.json", "../../../cache.json"]
)
@pytest.mark.parametrize(
    "harm", [lambda path: flip(path, 30), lambda path: path.unlink()], ids=["flip", "missing"]
)
def test_records_are_restored(stage: Stage, name: str, harm: Callable) -> None:
    written = fill(stage, [3, 9, 5])
    path = (stage.folder.path / name).resolve()
    before = path.read_bytes()
    harm(path)
    report = verify(stage.folder.root)
    assert len(report.problems) == 1
    assert not report.sound
    assert verify(stage.folder.root, repairing=True).sound
    if path.name != "cache.json":  # that one has a new time
        assert path.read_bytes() == before
    assert_holds(stage, written)
    assert verify(stage.folder.root).problems == ()


def test_damaged_lines_of_the_quarantine_are_set_aside(stage: Stage) -> None:
    for key in ("a", "b", "c"):
        stage.add_quarantine(QuarantineEntry.of(key, key, "semantic", ClipError("E_DECODE", "no")))
    flip(stage.folder.quarantine, 250)
    with pytest.raises(UserError, match=r"damaged \(line 2: .*verify --repair"):
        stage.quarantine()
    damaged = stage.folder.quarantine.read_bytes()
    report = verify(stage.folder.root, repairing=True)
    assert [problem.reason for problem in report.problems] == ["the checksum of line 2 is wrong"]
    assert [entry.clip_key for entry in stage.quarantine()] == ["a", "c"]
    assert (stage.folder.path / "damaged" / "quarantine.jsonl").read_bytes() == damaged


def test_leftovers_and_strangers(stage: Stage) -> None:
    fill(stage, [16, 16])
    folder = stage.folder
    (folder.receipts / ".2.json.12ab.tmp").write_bytes(b"{")
    folder.shard_file(FEATURES, 7).parent.mkdir(parents=True)
    folder.shard_file(FEATURES, 7).write_bytes(b"torn")
    folder.receipt(
        1
    ).unlink()  # its shard files are now of no shard, and the arrays are longer than the receipts say
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "wip").mkdir()
    (folder.path / "wip" / "2.1.log").write_bytes(b"x")
    folder.quarantine.write_bytes(b"torn")
    report = verify(folder.root)
    kinds = sorted(found(report))
    assert kinds[0] == ("extra", "notes.txt")
    assert {kind for kind, _ in kinds[1:]} == {"leftover"}
    assert sorted(name for _, name in kinds[1:]) == [
        *(f"features.zarr/{name}" for name in (
            "features/c/1/0/0", "features/c/7/0/0", "features/zarr.json", "labels/c/1/0/0", "labels/zarr.json",
            "present/c/1/0", "present/zarr.json")),
        "quarantine.jsonl",
        "receipts/.2.json.12ab.tmp",
        "wip/2.1.log",
    ]  # fmt: skip
    assert not report.sound
    (folder.path / "notes.txt").unlink()
    assert verify(folder.root).sound


def test_a_kill_in_the_middle_of_a_repair(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fill(stage, [3, 9])
    flip(stage.folder.shard_file(FEATURES, 0), 4 * FEATURES.row_bytes)
    with monkeypatch.context() as patch:
        patch.setattr(repair, "set_aside", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            verify(stage.folder.root, repairing=True)
    kept, lost = written
    reader = reader_of(stage)
    assert reader.clips[kept].shard == 1
    np.testing.assert_array_equal(reader.read(kept, "features"), written[kept]["features"])
    with pytest.raises(UserError, match="the checksum of clip clip 1 is wrong"):
        reader.read(lost, "features")
    assert verify(stage.folder.root, repairing=True).sound
    assert_holds(stage, {kept: written[kept]})


def test_a_shard_can_be_damaged_twice(stage: Stage) -> None:
    for _ in range(2):
        builder = ShardBuilder(stage, 0)
        builder.add("k", "c", {spec.name: random_rows(spec, 2, 0) for spec in stage.arrays.values()}, {})
        builder.commit()
        flip(stage.folder.receipt(0), 60)
        assert verify(stage.folder.root, repairing=True).sound
    assert sorted(path.name for path in (stage.folder.path / "damaged").iterdir()) == ["0", "0.1"]


def test_tables_and_builds_have_no_repair(stage: Stage) -> None:
    root = stage.folder.root
    for name in ("manifests/demo.parquet", "manifests/demo.media.parquet", "builds/demo.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"PAR1")
    report = verify(root, repairing=True)
    assert [problem.path for problem in report.problems] == [
        "builds/demo.json", "manifests/demo.media.parquet", "manifests/demo.parquet"]  # fmt: skip
    assert not report.sound
    assert report.repaired == {}


def test_newer_formats_and_strange_folders(stage: Stage, tmp_path: Path) -> None:
    record = load_record(stage.folder.stage_json)
    stage.folder.stage_json.write_bytes(to_bytes({**record, "format_version": 3}))
    report = verify(tmp_path, repairing=True)
    assert ["newer than 2" in problem.reason for problem in report.problems] == [True]
    assert not report.sound  # not taken for damage: it stays as it is
    stage.folder.stage_json.write_bytes(to_bytes(record))
    stage.folder.path.rename(stage.folder.path.with_name("0" * 16))
    report = verify(tmp_path, repairing=True)
    assert ["move it back" in problem.reason for problem in report.problems] == [True]
    (tmp_path / "cache.json").write_bytes(to_bytes({"format_version": 3}))
    with pytest.raises(UserError, match="newer"):
        verify(tmp_path)
    with pytest.raises(UserError, match="is not a cache"):
        verify(tmp_path / "stages")
