"""Stages, shards and quarantine as they are written."""

import json
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.errors import ClipError, UserError
from pipeline.spec import digest
from pipeline.store import atomic
from pipeline.store.layout import ArraySpec, init_cache, parse_stage
from pipeline.store.records import QuarantineEntry
from pipeline.store.writer import ShardBuilder, Stage, create_stage, open_stage
from tests.store.caches import ARRAYS, FEATURES, facts, fill, foreign, make_stage, random_rows


def clip(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {spec.name: random_rows(spec, n, seed) for spec in ARRAYS}


def entry(key: str, code: str = "E_DECODE", attempts: int = 1) -> QuarantineEntry:
    return QuarantineEntry.of(key, f"clip {key}", "semantic", ClipError(code, "no", "pyav", attempts))


def test_zarr_python_reads_the_group(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    group = zarr.open_group(stage.folder.zarr, mode="r")
    assert sorted(group.array_keys()) == ["features", "labels", "present"]
    assert foreign(stage, "features").shape == (0, 5, 3)
    assert parse_stage(dict(group.attrs)) == stage.info  # what they are stands beside the numbers
    written = fill(stage, [3, 9, 5, 16, 1])
    for spec in ARRAYS:
        array = foreign(stage, spec.name)
        assert array.shape == (4 * 16, *spec.row_shape)
        assert array.dtype == spec.dtype
        for receipt in stage.receipts():
            for rows in receipt.clips:
                start = receipt.shard * 16 + rows.row_start
                found = array[start : start + rows.n_rows]
                np.testing.assert_array_equal(found, written[rows.clip_key][spec.name])
            assert not array[receipt.shard * 16 + receipt.rows : (receipt.shard + 1) * 16].any()


def test_receipt_tells_the_files(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    fill(stage, [3, 9, 16])
    for receipt in stage.receipts():
        for spec in ARRAYS:
            data = stage.folder.shard_file(spec, receipt.shard).read_bytes()
            told = receipt.files[spec.name]
            assert told.bytes == len(data)
            if spec.codec == "raw":  # clips lie one behind the other, so their bytes do
                ends = [(clip.row_start + clip.n_rows) * spec.row_bytes for clip in receipt.clips]
                pieces = [data[start:end] for start, end in pairwise([0, *ends])]
                assert told.crc32 == tuple(map(zlib.crc32, pieces))


def test_commit_order_receipt_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(tmp_path)
    builder = ShardBuilder(stage, 0)
    builder.add("k", "c", clip(2), {})
    order: list[str] = []
    whole = atomic._whole

    def record(path: Path, data: bytes | memoryview) -> Any:
        order.append(path.relative_to(stage.folder.path).as_posix())
        return whole(path, data)

    monkeypatch.setattr(atomic, "_whole", record)
    builder.commit()
    arrays = ["features/c/0/0/0", "present/c/0/0", "labels/c/0/0/0"]
    metadata = ["features/zarr.json", "present/zarr.json", "labels/zarr.json"]
    assert order == [*(f"features.zarr/{name}" for name in arrays + metadata), "receipts/0.json"]


def test_later_shards_leave_earlier_files_alone(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    fill(stage, [16])
    files = [stage.folder.shard_file(spec, 0) for spec in ARRAYS] + [stage.folder.receipt(0)]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files]
    fill(stage, [16, 16], seed=1)
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in files] == before


def test_length_never_shrinks(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    for number in (4, 1):
        builder = ShardBuilder(stage, number)
        builder.add(f"k{number}", "c", clip(2), {})
        builder.commit()
    assert foreign(stage, "present").shape == (5 * 16, 5)
    assert stage.next_shard == 5


def test_create_again_opens(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    fill(stage, [2])
    again = make_stage(tmp_path, shard_rows=32)
    assert again == stage
    assert again.shard_rows == 16
    assert len(again.receipts()) == 1
    assert open_stage(tmp_path, "semantic", stage.key) == stage
    assert open_stage(tmp_path, "motion", stage.key) is None
    assert json.loads(stage.folder.stage_json.read_text())["provenance"]["host"] == "here"


def test_create_refuses(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    declared = dict(stage.facts)
    with pytest.raises(UserError, match=r"other arrays \(features, present, labels\)"):
        create_stage(tmp_path, declared, stage.key, ARRAYS[:2], 16, {})
    with pytest.raises(ValueError, match="not the digest"):
        create_stage(tmp_path, {**declared, "version": 2}, stage.key, ARRAYS, 16, {})
    with pytest.raises(ValueError, match="do not divide 18"):
        create_stage(tmp_path, facts("x"), digest(facts("x")), ARRAYS, 18, {})
    with pytest.raises(ValueError, match="own name"):
        create_stage(tmp_path, facts("x"), digest(facts("x")), [FEATURES, FEATURES], 16, {})
    with pytest.raises(UserError, match="is not a cache"):
        create_stage(tmp_path / "other", declared, stage.key, ARRAYS, 16, {})
    fill(stage, [2])
    stage.folder.stage_json.unlink()
    with pytest.raises(
        UserError, match=r"is missing though there are receipts; .* verify --cache .* --repair"
    ):
        make_stage(tmp_path)
    with pytest.raises(UserError, match="is missing though there are receipts"):
        open_stage(tmp_path, "semantic", stage.key)


def test_facts_with_tuples_keep_their_key(tmp_path: Path) -> None:
    init_cache(tmp_path)
    declared = facts(mean=(0.5, 0.25), views=("full", "head"))
    stage = create_stage(tmp_path, declared, digest(declared), [FEATURES], 16, {})
    opened = open_stage(tmp_path, "semantic", stage.key)
    assert opened is not None
    assert opened.facts == stage.facts


def test_room_and_order(tmp_path: Path) -> None:
    builder = ShardBuilder(make_stage(tmp_path), 0)
    assert builder.room_for(16)
    assert not builder.room_for(17)
    builder.add("a", "clip a", clip(10), {"frames": 4})
    assert builder.room_for(6)
    assert not builder.room_for(7)
    with pytest.raises(ValueError, match="no room for 7 rows after 10"):
        builder.add("b", "clip b", clip(7), {})
    with pytest.raises(ClipError, match="E_TOO_LONG"):
        builder.add("b", "clip b", clip(17), {})
    with pytest.raises(ValueError, match="added before"):
        builder.add("a", "clip a", clip(1), {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": np.zeros((2, 5, 4), "float16")},
        {"features": np.zeros((2, 5, 3), "int16")},
        {"features": np.zeros((3, 5, 3), "float16")},
        {"present": np.zeros((2, 5), "bool")},
        {"present": np.uint8(1)},
        {"other": np.zeros(2)},
    ],
)
def test_add_refuses_wrong_arrays(tmp_path: Path, wrong: dict) -> None:
    builder = ShardBuilder(make_stage(tmp_path), 0)
    with pytest.raises(ValueError, match=r"array"):
        builder.add("k", "c", {**clip(2), **wrong}, {})
    with pytest.raises(ValueError, match="at least 1"):
        builder.add("k", "c", clip(0), {})
    with pytest.raises(TypeError):
        builder.add("k", "c", clip(2), {"frames": np.int64(3)})
    with pytest.raises(ValueError, match="no clips"):
        builder.commit()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, -70000.0])
def test_float16_guard(tmp_path: Path, dtype: str, value: float) -> None:
    stage = make_stage(tmp_path)
    builder = ShardBuilder(stage, 0)
    good = clip(3)
    bad = {name: rows.copy() for name, rows in good.items()}
    bad["features"] = bad["features"].astype(dtype)
    with np.errstate(over="ignore"):
        bad["features"][2, 4, 1] = value
    with pytest.raises(ClipError, match="E_NON_FINITE"):
        builder.add("bad", "bad", bad, {})
    builder.add("good", "good", good, {})  # the refused clip left nothing behind
    builder.commit()
    assert [rows.clip_key for rows in stage.receipts()[0].clips] == ["good"]
    for name in ("features", "labels"):
        np.testing.assert_array_equal(foreign(stage, name)[:3], good[name])
        assert not foreign(stage, name)[3:].any()


def test_largest_float16_is_kept_and_float32_is_rounded(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, [FEATURES, ArraySpec("logits", "float32", (2,), 4, "raw")])
    builder = ShardBuilder(stage, 0)
    values = np.full((1, 5, 3), 0.1)
    values[0, 0] = (65504, -65504, 0)
    builder.add("k", "c", {"features": values, "logits": np.full((1, 2), 1e38, "float32")}, {})
    with pytest.raises(ClipError, match="'logits' reaches nan"):
        builder.add("l", "c", {"features": values, "logits": np.full((1, 2), np.nan, "float32")}, {})
    beyond = np.where(values == 65504, 65504.5, values)  # float16 would round it down to 65504
    with pytest.raises(ClipError, match=r"'features' reaches 65504\.5"):
        builder.add("l", "c", {"features": beyond, "logits": np.zeros((1, 2), "float32")}, {})
    builder.commit()
    np.testing.assert_array_equal(foreign(stage, "features")[0], values[0].astype("float16"))


def test_a_committed_shard_is_never_written_again(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    first, second = ShardBuilder(stage, 0), ShardBuilder(stage, 0)
    for builder in (first, second):
        builder.add("k", "c", clip(2), {})
    first.commit()
    before = stage.folder.shard_file(FEATURES, 0).stat().st_ino
    with pytest.raises(UserError, match=r"receipts/0\.json exists"):
        second.commit()
    with pytest.raises(UserError, match=r"receipts/0\.json exists"):
        ShardBuilder(stage, 0)
    with pytest.raises(ValueError, match="is committed"):
        first.commit()
    with pytest.raises(ValueError, match="is committed"):
        first.add("l", "c", clip(1), {})
    assert stage.folder.shard_file(FEATURES, 0).stat().st_ino == before


def test_commit_sweeps_what_a_kill_left(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    path = stage.folder.shard_file(FEATURES, 0)
    path.parent.mkdir(parents=True)
    (path.parent / ".0.abcd.tmp").write_bytes(b"torn")
    fill(stage, [2])
    assert [found.name for found in path.parent.iterdir()] == ["0"]


def test_quarantine_later_entries_win(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    for item in (entry("a"), entry("b"), entry("a", "E_TOO_SMALL", 2)):
        stage.add_quarantine(item)
    assert [(item.clip_key, item.code, item.attempts) for item in stage.quarantine()] == [
        ("a", "E_TOO_SMALL", 2),
        ("b", "E_DECODE", 1),
    ]
    assert len(stage.folder.quarantine.read_text().splitlines()) == 3
    stage.drop_quarantine({"a", "never seen"})
    assert [item.clip_key for item in stage.quarantine()] == ["b"]
    stage.add_quarantine(entry("a", "E_DECODE", 3))  # tried again, and failed again
    assert [item.attempts for item in stage.quarantine()] == [3, 1]


def test_quarantine_torn_at_every_byte(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    stage.add_quarantine(entry("a"))
    whole = stage.folder.quarantine.read_bytes()
    stage.add_quarantine(entry("b"))
    both = stage.folder.quarantine.read_bytes()
    for end in range(len(whole), len(both)):
        stage.folder.quarantine.write_bytes(both[:end])
        assert [item.clip_key for item in stage.quarantine()] == ["a"]
    stage.add_quarantine(entry("c"))
    assert [item.clip_key for item in stage.quarantine()] == ["a", "c"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    stage: Stage = make_stage(tmp_path)
    name = b"caf\xe9.mp4".decode(errors="surrogateescape")
    stage.add_quarantine(QuarantineEntry.of("k", name, "semantic", ClipError("E_DECODE", name)))
    assert stage.quarantine()[0].clip_id == name
    builder = ShardBuilder(stage, 0)
    builder.add("k", name, clip(1), {})
    builder.commit()
    assert stage.receipts()[0].clips[0].clip_id == name
