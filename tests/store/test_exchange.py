"""Features out to other programs and in from them; names and files that would lead astray."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.manifest import Manifest, manifest_path, read_manifest, write_manifest
from pipeline.media import read_media, write_media
from pipeline.spec import VIEWS
from pipeline.store.export import LONGEST_NAME, WRITERS, export, file_name
from pipeline.store.imports import hdf5_source, import_features, load_declared, npy_source
from pipeline.store.reader import Cache, StageReader
from pipeline.store.verify import verify
from pipeline.store.writer import open_stage
from tests.store.caches import dataset_cache

CLIPS = 12  # of the 15 in the manifest; three have no features
DECLARED = {"model": "theirs", "stride": 4}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return dataset_cache(tmp_path / "cache")


def semantic(cache: Path) -> StageReader:
    return Cache(cache).stage("semantic", Cache(cache).builds("demo")["stages"]["semantic"])


def imported(cache: Path, key: str) -> StageReader:
    return Cache(cache, check=True).stage("imported", key)


def run_export(cache: Path, to: str) -> tuple[Path, dict]:
    out = cache.parent / f"out_{to}"
    record = export(cache, "demo", "semantic", to, out)
    assert (record["clips"], record["missing"]) == (CLIPS, 3)
    return out, json.loads((out / "features.json").read_text())


# ------------------------------------------------------------------------------------------------ export


def test_npy_in_the_layout_of_actionformer(cache: Path) -> None:
    out, about = run_export(cache, "npy")
    stage = semantic(cache)
    by_id = {clip.clip_id: key for key, clip in stage.clips.items()}
    for name, entry in about["database"].items():
        rows = stage.read(by_id[entry["clip_id"]], "features")
        for i, view in enumerate(VIEWS):
            found = np.load(out / "features" / view / f"{name}.npy")
            assert found.ndim == 2  # [T, D]
            np.testing.assert_array_equal(found, rows[:, i])
        assert np.load(out / "present" / f"{name}.npy").shape == (len(rows), 5)
        assert entry["subset"] in ("train", "val")
        assert len(entry["start_frames"]) == len(rows)
        assert [a["label_id"] for a in entry["annotations"]] == [int(name[1:])]
    assert sorted(about["missing"]) == ["lost", "pending", "refused"]
    assert about["key"] == Cache(cache).builds("demo")["stages"]["semantic"]


def test_npz_and_tar_and_parquet_hold_the_same(cache: Path) -> None:
    stage = semantic(cache)
    by_id = {clip.clip_id: key for key, clip in stage.clips.items()}
    npz, _ = run_export(cache, "npz")
    tar, _ = run_export(cache, "webdataset")
    hf, _ = run_export(cache, "hf")
    assert (hf / "README.md").read_text().startswith("---\nconfigs:\n- config_name: default")
    table = {
        row["clip_id"]: row
        for split in ("train", "val")
        for row in pq.read_table(hf / "data" / f"{split}.parquet").to_pylist()
    }
    assert set(table) == set(by_id)
    with tarfile.open(tar / "000000.tar") as file:
        members = {member.name: file.extractfile(member).read() for member in file.getmembers()}  # type: ignore[union-attr]
    assert len(members) == CLIPS * 3
    for name, key in by_id.items():
        for array in stage.arrays:
            rows = stage.read(key, array)
            np.testing.assert_array_equal(np.load(npz / f"{name}.npz")[array], rows)
            np.testing.assert_array_equal(np.load(io.BytesIO(members[f"{name}.{array}.npy"])), rows)
            np.testing.assert_array_equal(np.array(table[name][array], rows.dtype), rows)
        assert json.loads(members[f"{name}.json"])["clip_id"] == name
        assert table[name]["label_ids"] == [int(name[1:])]


def test_row_groups_of_parquet_hold_no_more_than_fits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip may be larger; the rows of all clips come out in their order, whatever the groups."""
    whole = cache.parent / "whole"
    export(cache, "demo", "semantic", "hf", whole)
    row = 5 * 3 * 2 + 5
    monkeypatch.setattr("pipeline.store.export.ROW_GROUP_BYTES", 6 * row)
    out, _ = run_export(cache, "hf")
    for split in ("train", "val"):
        file = pq.ParquetFile(out / "data" / f"{split}.parquet")
        groups = [file.read_row_group(i)["features"].to_pylist() for i in range(file.num_row_groups)]
        assert all(len(group) == 1 or sum(map(len, group)) <= 6 for group in groups)
        assert any(len(group) > 1 for group in groups)
        assert file.read() == pq.read_table(whole / "data" / f"{split}.parquet")


def test_a_tar_is_the_same_every_time(cache: Path) -> None:
    first, _ = run_export(cache, "webdataset")
    data = (first / "000000.tar").read_bytes()
    second = cache.parent / "again"
    export(cache, "demo", "semantic", "webdataset", second)
    assert (second / "000000.tar").read_bytes() == data


def test_export_refuses(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of npy, npz, hdf5, webdataset, hf"):
        export(cache, "demo", "semantic", "csv", tmp_path / "x")
    with pytest.raises(UserError, match="has no stage 'pose'; choose one of motion, segment, semantic"):
        export(cache, "demo", "pose", "npy", tmp_path / "x")
    with pytest.raises(UserError, match="is not an empty folder"):
        export(cache, "demo", "semantic", "npy", cache)
    assert not (tmp_path / "x").exists()


def test_a_damaged_cache_is_not_exported(cache: Path, tmp_path: Path) -> None:
    path = next(cache.glob("stages/semantic/*/features.zarr/features/c/0/0/0"))
    data = bytearray(path.read_bytes())
    data[99] ^= 1  # rows of 30 bytes: the fourth
    path.write_bytes(data)
    with pytest.raises(UserError, match="the checksum of clip c02 is wrong"):
        export(cache, "demo", "semantic", "npy", tmp_path / "x")
    assert not (tmp_path / "x" / "features.json").exists()


@pytest.mark.parametrize("to", list(WRITERS))
def test_names_cannot_leave_the_folder(cache: Path, to: str) -> None:
    """A manifest is data from outside: its clip ids and splits become names of files."""
    path = manifest_path(cache, "demo")
    manifest = read_manifest(path)
    hostile = {
        "c00": "../../c0",
        "c01": "/etc/c1",
        "c02": ".hidden",
        "c03": "a/b",
        "c04": "x" * 200,
    }
    clips = tuple(
        replace(clip, clip_id=hostile.get(clip.clip_id, clip.clip_id), split=f"../{clip.split}")
        for clip in manifest.clips
    )
    write_manifest(Manifest("demo", manifest.root, manifest.taxonomy, clips), path)
    before = set(cache.parent.rglob("*"))
    out, about = run_export(cache, to)
    assert all(found.is_relative_to(out) for found in set(cache.parent.rglob("*")) - before)
    assert {entry["clip_id"] for entry in about["database"].values()} >= set(hostile.values())
    if to in ("npy", "hdf5"):  # and back again
        source = npy_source(out / "features" / "full") if to == "npy" else hdf5_source(out / "features.h5")
        assert import_features(cache, "demo", source, DECLARED)["clips"] == CLIPS


@given(st.text(max_size=300), st.text(max_size=300))
def test_file_names(one: str, other: str) -> None:
    for name in (file_name(one), file_name(other)):
        assert 0 < len(name) <= LONGEST_NAME
        assert name.isascii()
        assert name[0] != "."
        assert not set("/\\\0 \n") & set(name)
    assert (file_name(one) == file_name(other)) == (one == other)


def test_plain_ids_are_their_own_name() -> None:
    assert file_name("demo:train:clip_1.v2=a+b@c-d") == "demo:train:clip_1.v2=a+b@c-d"


# ------------------------------------------------------------------------------------------------ import


def test_hdf5_round_trip(cache: Path) -> None:
    out, _ = run_export(cache, "hdf5")
    record = import_features(cache, "demo", hdf5_source(out / "features.h5"), DECLARED)
    assert (record["clips"], record["unknown"], record["refused"]) == (CLIPS, 0, 0)
    ours, theirs = semantic(cache), imported(cache, record["key"])
    assert theirs.facts["declared"] == DECLARED
    assert set(theirs.clips) == set(ours.clips)
    for key, clip in ours.clips.items():
        assert theirs.clips[key].facts == clip.facts  # the true start frames, not multiples of the stride
        for array in ours.arrays:
            np.testing.assert_array_equal(theirs.read(key, array), ours.read(key, array))
            assert theirs.arrays[array].dtype == ours.arrays[array].dtype
    assert verify(cache).problems == ()


def test_hdf5_file_is_what_h5py_reads(cache: Path) -> None:
    out, _ = run_export(cache, "hdf5")
    stage = semantic(cache)
    by_id = {clip.clip_id: key for key, clip in stage.clips.items()}
    with h5py.File(out / "features.h5") as file:
        assert file["arrays/features"].chunks is None  # contiguous
        for name, start, n in zip(file["clip_id"].asstr()[:], file["row_start"], file["n_rows"], strict=True):
            for array in stage.arrays:
                np.testing.assert_array_equal(
                    file["arrays"][array][start : start + n], stage.read(by_id[name], array)
                )


def test_npy_import_and_its_key(cache: Path, tmp_path: Path) -> None:
    out, _ = run_export(cache, "npy")
    folder = out / "features" / "full"
    first = import_features(cache, "demo", npy_source(folder), DECLARED)
    stage = imported(cache, first["key"])
    for key, clip in stage.clips.items():
        np.testing.assert_array_equal(
            stage.read(key, "features"), semantic(cache).read(key, "features")[:, 0]
        )
        assert clip.facts["start_frames"] == list(range(0, 4 * clip.n_rows, 4))
    before = sorted(path.stat().st_mtime_ns for path in stage._folder.path.rglob("*"))
    assert import_features(cache, "demo", npy_source(folder), DECLARED) == first  # known: nothing is written
    assert sorted(path.stat().st_mtime_ns for path in stage._folder.path.rglob("*")) == before
    other = import_features(cache, "demo", npy_source(folder), {**DECLARED, "stride": 8})
    assert other["key"] != first["key"]  # declared otherwise
    values = np.load(folder / "c07.npy")
    values[0, 0] += 1
    np.save(folder / "c07.npy", values)
    assert (
        import_features(cache, "demo", npy_source(folder), DECLARED)["key"] != first["key"]
    )  # other numbers


def test_one_dataset_per_clip(cache: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 11)).astype(">f4")
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["c03"] = rows
        file["c04"] = rows[:2]
        file["nobody"] = rows
    record = import_features(cache, "demo", hdf5_source(tmp_path / "theirs.h5"), {"model": "i3d"})
    assert (record["clips"], record["unknown"]) == (2, 1)
    stage = imported(cache, record["key"])
    (long,) = [key for key, clip in stage.clips.items() if clip.clip_id == "c03"]
    np.testing.assert_array_equal(stage.read(long, "features"), rows)
    assert stage.clips[long].facts == {}


def test_clips_that_cannot_be_imported_are_quarantined(cache: Path, tmp_path: Path) -> None:
    good = np.ones((3, 8), np.float32)
    files = {"c00": good, "c01": good[:, :7], "c02": good.astype(np.float64), "c03": good[:0],
             "c04": good * np.nan, "c05": np.array(object())}  # fmt: skip
    for name, rows in files.items():
        np.save(tmp_path / f"{name}.npy", rows, allow_pickle=True)
    (tmp_path / "c06.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "notes.txt").touch()
    record = import_features(cache, "demo", npy_source(tmp_path), DECLARED)
    assert (record["clips"], record["refused"], record["unknown"]) == (1, 6, 0)
    stage = open_stage(cache, "imported", record["key"])
    assert stage is not None
    codes = {entry.clip_id: entry.code for entry in stage.quarantine()}
    assert codes == {
        "c01": "E_SHAPE", "c02": "E_SHAPE", "c03": "E_SHAPE",
        "c04": "E_NON_FINITE", "c05": "E_UNREADABLE", "c06": "E_UNREADABLE",
    }  # fmt: skip


def test_what_cannot_be_imported_at_all(cache: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "nobody.npy", np.ones((2, 3)))
    with pytest.raises(
        UserError, match=r"none of the 1 files is named after one of the 14 readable clips of 'demo'"
    ):
        import_features(cache, "demo", npy_source(tmp_path), DECLARED)
    np.save(tmp_path / "c00.npy", np.ones(()))
    with pytest.raises(UserError, match=r"no clip can be used; the first: E_SHAPE: shape \[\] is not"):
        import_features(cache, "demo", npy_source(tmp_path), DECLARED)
    with pytest.raises(UserError, match="declare stride 0; give the frames between two windows"):
        import_features(cache, "demo", npy_source(tmp_path), {"stride": 0})
    with pytest.raises(UserError, match="not a folder"):
        npy_source(tmp_path / "none")
    with pytest.raises(UserError, match="not a readable HDF5"):
        hdf5_source(tmp_path / "c00.npy")
    assert not list(cache.glob("stages/imported/*"))


def test_hdf5_that_points_to_other_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(48))
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("c00", (4, 3), "f4", external=[(str(secret), 0, 48)])
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = np.zeros((4, 3))
    layout = h5py.VirtualLayout((4, 3), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "data.h5"), "x", (4, 3))
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("c00", layout)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["c00"] = h5py.ExternalLink("data.h5", "x")
    for name in ("outside", "virtual"):
        with pytest.raises(UserError, match="'c00' lies in another file"):
            hdf5_source(tmp_path / f"{name}.h5")
    assert hdf5_source(tmp_path / "link.h5") == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "model", "{", "when: 2020-01-01", "a: .nan", "!!python/object:x {}"]
)
def test_declared_facts_are_plain(tmp_path: Path, text: str) -> None:
    path = tmp_path / "facts.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"facts\.yaml: "):
        load_declared(path)
    path.write_text("model: x\nmean: [0.5, 1]\n")
    assert load_declared(path) == {"model": "x", "mean": [0.5, 1]}


def test_clips_with_equal_content_are_imported_once(cache: Path, tmp_path: Path) -> None:
    path = manifest_path(cache, "demo").with_suffix(".media.parquet")
    media = read_media(path)
    media["c01.mp4"] = media["c01.mp4"]._replace(sha256=media["c00.mp4"].sha256)
    write_media(path, media)
    for name in ("c00", "c01"):
        np.save(tmp_path / f"{name}.npy", np.ones((2, 3), np.float32))
    assert import_features(cache, "demo", npy_source(tmp_path), DECLARED)["clips"] == 1
