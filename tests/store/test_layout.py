"""cache.json, stage.json, receipts and builds: what is refused, and in which words."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ClipError, UserError
from pipeline.store import layout
from pipeline.store.layout import ArraySpec, StageDir
from pipeline.store.records import QuarantineEntry, load_quarantine, load_record, to_bytes
from pipeline.store.writer import write_build
from tests.store.caches import FEATURES, fill, make_stage

KEY = "0123456789abcdef" * 4


def edit(path: Path, **changes: object) -> None:
    """Change a record and give it a good checksum: what a faulty program would write."""
    path.write_bytes(to_bytes({**load_record(path), **changes}))


def test_init_is_idempotent_and_survives_a_kill_in_it(tmp_path: Path) -> None:
    root = tmp_path / "a" / "cache"
    root.mkdir(parents=True)
    (root / ".cache.json.12ab.tmp").touch()
    layout.init_cache(root)
    before = (root / "cache.json").read_bytes()
    layout.init_cache(root)
    layout.check_cache(root)
    assert (root / "cache.json").read_bytes() == before


def test_init_refuses_what_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and is not a cache"):
        layout.init_cache(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        layout.init_cache(tmp_path / "thesis.tex")
    (tmp_path / "hurt" / "manifests").mkdir(parents=True)
    for look in (layout.check_cache, layout.init_cache):
        with pytest.raises(UserError, match=r"cache.json is missing; .* verify --cache .* --repair"):
            look(tmp_path / "hurt")
    with pytest.raises(UserError, match="is not a cache"):
        layout.check_cache(tmp_path)


def test_newer_formats_are_refused(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    edit(stage.folder.stage_json, format_version=3)
    with pytest.raises(UserError, match=r"stage\.json: format 3 is newer than 2"):
        layout.load_stage(stage.folder)
    edit(tmp_path / "cache.json", format_version=3)
    for check in (layout.init_cache, layout.check_cache):
        with pytest.raises(UserError, match=r"cache\.json: format 3 is newer than 2.*upgrade"):
            check(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 2}', "\xff", "[" * 100_000])
def test_damaged_cache_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "cache.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"cache\.json is damaged .*checksum.*; run `bmoe-cache verify --repair"
    ):
        layout.check_cache(tmp_path)
    (tmp_path / "cache.json").write_bytes(to_bytes({"format_version": True}))
    with pytest.raises(UserError, match=r"cache\.json is damaged .*'format_version'"):
        layout.check_cache(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../x"},
        {"name": "A"},
        {"dtype": "bfloat16"},
        {"dtype": "object"},
        {"row_shape": (0,)},
        {"row_shape": (True,)},
        {"chunk_rows": 0},
        {"codec": "gzip"},
        {"codec": "zstd"},
    ],
)
def test_array_spec_refuses(wrong: dict) -> None:
    good: dict[str, Any] = {
        "name": "a",
        "dtype": "float16",
        "row_shape": (5, 3),
        "chunk_rows": 4,
        "codec": "raw",
    }
    assert ArraySpec(**good).row_bytes == 30
    with pytest.raises(ValueError, match=r"array|name"):
        ArraySpec(**{**good, **wrong})


@pytest.mark.parametrize(
    ("stage", "key"), [("../x", KEY), ("semantic", KEY[:16]), ("semantic", "../" + KEY[3:])]
)
def test_stage_folder_stays_in_the_cache(tmp_path: Path, stage: str, key: str) -> None:
    with pytest.raises(UserError, match="is not a stage name and a key"):
        StageDir(tmp_path, stage, key)


def test_shard_files(tmp_path: Path) -> None:
    folder = StageDir(tmp_path, "semantic", KEY)
    top = tmp_path / "stages" / "semantic" / "0123456789abcdef" / "features.zarr"
    assert folder.shard_file(FEATURES, 12) == top / "features" / "c" / "12" / "0" / "0"
    assert folder.shard_file(ArraySpec("n", "int64", (), 1, "raw"), 3) == top / "n" / "c" / "3"


def test_stage_json_of_another_key_with_the_same_digits(tmp_path: Path) -> None:
    folder = make_stage(tmp_path).folder
    with pytest.raises(UserError, match="same first 16 digits"):
        layout.load_stage(StageDir(tmp_path, folder.stage, folder.key[:16] + "0" * 48))


def test_damaged_stage_json(tmp_path: Path) -> None:
    folder = make_stage(tmp_path).folder
    good = load_record(folder.stage_json)
    array = good["arrays"][0]
    for changes in (
        {"facts": {**good["facts"], "version": 2}},
        {"arrays": [{**array, "name": "../../x"}]},
        {"arrays": [{**array, "codec": "pickle"}]},
        {"arrays": [{**array, "extra": 1}]},
        {"arrays": [{**array, "chunk_rows": 3}]},
        {"arrays": 7},
        {"shard_rows": "16"},
        {"shard_rows": 0},
    ):
        folder.stage_json.write_bytes(to_bytes({**good, **changes}))
        with pytest.raises(UserError, match=r"stage\.json is damaged .*bmoe-cache verify --repair"):
            layout.load_stage(folder)


def test_receipts_round_trip(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    fill(stage, [3, 9, 5, 16, 1])
    receipts = stage.receipts()
    assert [(r.shard, r.rows, [c.row_start for c in r.clips]) for r in receipts] == [
        (0, 12, [0, 3]),
        (1, 5, [0]),
        (2, 16, [0]),
        (3, 1, [0]),
    ]
    for receipt in receipts:
        assert receipt.to_json() == load_record(stage.folder.receipt(receipt.shard))
        assert all(clip.shard == receipt.shard for clip in receipt.clips)
        assert [clip.position for clip in receipt.clips] == list(range(len(receipt.clips)))
    assert layout.committed_keys(stage.folder) == {clip.clip_key for r in receipts for clip in r.clips}


def test_damaged_receipts(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    fill(stage, [3, 9])
    path = stage.folder.receipt(0)
    whole, good = path.read_bytes(), load_record(path)
    key, file = good["clip_keys"][0], good["files"]["labels"]
    changes: dict[str, Any]
    for changes in (
        {"shard": 1},
        {"clip_keys": [key]},
        {"clip_keys": [key, key]},
        {"clip_ids": ["clip 0", 7]},
        {"n_rows": [3, 14]},
        {"n_rows": [12, 0]},
        {"n_rows": [3, 9.0]},
        {"n_rows": [3, True]},
        {"facts": [{}, None]},
        {name: [] for name in ("clip_keys", "clip_ids", "n_rows", "facts")},
        {"files": {}},
        {"files": {**good["files"], "labels": {**file, "bytes": -1.5}}},
        {"files": {**good["files"], "labels": {**file, "crc32": file["crc32"][:1]}}},
    ):
        path.write_bytes(to_bytes({**good, **changes}))
        with pytest.raises(UserError, match=r"receipts/0\.json is damaged .*bmoe-cache verify --repair"):
            stage.receipts()
    for damaged in (whole[:-9], b"", whole.replace(b"clip_keys", b"clip_kexs"), whole.upper()):
        path.write_bytes(damaged)
        for read in (stage.receipts, lambda: layout.committed_keys(stage.folder)):
            with pytest.raises(UserError, match=r"receipts/0\.json is damaged .*checksum"):
                read()
    path.write_bytes(to_bytes({"shard": 0, **good}))
    with pytest.raises(UserError, match="does not begin with its clips"):
        layout.committed_keys(stage.folder)


def test_only_receipts_count_as_receipts(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    fill(stage, [16, 16])
    for name in (".2.json.ab.tmp", "02.json", "x.json", "2.json~"):
        (stage.folder.receipts / name).touch()
    assert layout.committed_shards(stage.folder) == (0, 1)
    assert stage.next_shard == 2


def test_builds(tmp_path: Path) -> None:
    layout.init_cache(tmp_path)
    record = {"preset": "small", "stages": {"semantic": KEY}, "time": "now"}
    write_build(tmp_path, "ma-52", record)
    assert layout.load_build(tmp_path, "ma-52") == {**record, "presets": {"small": record["stages"]}}
    for preset, key in (("large", "1" * 64), ("large", "2" * 64)):
        write_build(tmp_path, "ma-52", {"preset": preset, "stages": {"semantic": key}})
    kept = {"small": {"semantic": KEY}, "large": {"semantic": "2" * 64}}  # of every preset, the last
    assert layout.load_build(tmp_path, "ma-52")["presets"] == kept
    with pytest.raises(UserError, match=r"imigue\.json is missing.*bmoe-cache build"):
        layout.load_build(tmp_path, "imigue")
    for name in ("../cache", ".x", "a/b", ""):
        with pytest.raises(UserError, match="dataset name"):
            write_build(tmp_path, name, record)
    with pytest.raises(ValueError, match="is not a stage and its key"):
        write_build(tmp_path, "ma-52", {"preset": "small", "stages": {"semantic": "../../x"}})
    for wrong in ({"stages": {"../x": KEY}}, {"presets": {"small": {"semantic": KEY[:16]}}}):
        edit(tmp_path / "builds" / "ma-52.json", **{**layout.load_build(tmp_path, "ma-52"), **wrong})
        with pytest.raises(UserError, match=r"ma-52\.json is damaged"):
            layout.load_build(tmp_path, "ma-52")
        edit(tmp_path / "builds" / "ma-52.json", stages={}, presets={})


def test_quarantine_file(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    assert load_quarantine(path) == ()
    entry = QuarantineEntry.of("k", "c", "motion", ClipError("E_DECODE", "torn\nline  end", "pyav 18", 2))
    stage = make_stage(tmp_path / "cache")
    stage.add_quarantine(entry)
    assert stage.quarantine() == (entry,)
    data = stage.folder.quarantine.read_bytes()
    wrong = to_bytes({**asdict(entry), "attempts": "2"})
    for damage in (b"{}\n", b"nope\n", b"[]\n", to_bytes({}), wrong, data.replace(b"motion", b"potion")):
        stage.folder.quarantine.write_bytes(data + damage)
        with pytest.raises(UserError, match=r"quarantine\.jsonl is damaged \(line 2: "):
            stage.quarantine()


PURE = {"numpy", "zarr", "numcodecs", "torch", "pyarrow", "pydantic"}


def imported(module: str) -> set[str]:
    """Top-level names that importing a module brings in."""
    command = [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return {name.split(".")[0] for name in run.stdout.split()}


def test_layout_is_pure() -> None:
    assert not PURE & imported("pipeline.store.layout")


def test_reader_and_writer_import_numpy_only() -> None:
    assert PURE & imported("pipeline.store.reader, pipeline.store.writer") == {"numpy"}
