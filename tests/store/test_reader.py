"""What is read is what was written, what zarr-python reads, and never a damaged file."""

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarrs import ZarrsCodecPipeline

from pipeline.errors import UserError
from pipeline.manifest import Clip, Manifest, clip_key, manifest_path, write_manifest
from pipeline.media import Media, write_media
from pipeline.store.layout import ITEM_BYTES, ArraySpec
from pipeline.store.reader import Cache, StageReader
from pipeline.store.writer import Stage, write_build
from pipeline.taxonomy import Taxonomy
from tests.store.caches import ARRAYS, FEATURES, LABELS, fill, foreign, make_stage


def reader_of(stage: Stage) -> StageReader:
    return Cache(stage.folder.root).stage(stage.name, stage.key)


@st.composite
def stages(draw: st.DrawFn) -> tuple[list[ArraySpec], int, list[int]]:
    """(arrays, rows of a shard, rows of each clip)."""
    chunk_rows = draw(st.integers(1, 4))
    shard_rows = chunk_rows * draw(st.integers(1, 6))
    codecs = draw(st.lists(st.sampled_from(["raw", "zstd"]), min_size=1, max_size=2))
    arrays = [
        ArraySpec(
            f"a{number}",
            draw(st.sampled_from(list(ITEM_BYTES))),
            tuple(draw(st.lists(st.integers(1, 4), max_size=3))),
            1 if codec == "zstd" else chunk_rows,
            codec,
        )
        for number, codec in enumerate(codecs)
    ]
    return arrays, shard_rows, draw(st.lists(st.integers(1, shard_rows), min_size=1, max_size=6))


@settings(max_examples=20, deadline=None)
@given(case=stages(), order=st.randoms(use_true_random=False))
def test_mapped_equals_zarr_python_and_zarrs(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[ArraySpec], int, list[int]], order: Random
) -> None:
    arrays, shard_rows, lengths = case
    root = tmp_path_factory.mktemp("cache")
    stage = make_stage(root, arrays, shard_rows)
    written = fill(stage, lengths)
    reader = reader_of(stage)
    assert set(reader.clips) == set(written)
    keys = list(written) * 2
    order.shuffle(keys)
    for spec in arrays:
        whole = foreign(stage, spec.name)
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            assert isinstance(
                zarr.open_array(stage.folder.zarr / spec.name).async_array.codec_pipeline, ZarrsCodecPipeline
            )
            np.testing.assert_array_equal(foreign(stage, spec.name), whole)
        for key, clip in reader.clips.items():
            rows = reader.read(key, spec.name)
            start = clip.shard * shard_rows + clip.row_start
            assert rows.dtype == spec.dtype
            np.testing.assert_array_equal(rows, written[key][spec.name])
            np.testing.assert_array_equal(rows, whole[start : start + clip.n_rows])
        rows, offsets = reader.read_many(keys, spec.name)
        np.testing.assert_array_equal(rows, np.concatenate([written[key][spec.name] for key in keys]))
        assert offsets.tolist() == [0, *np.cumsum([reader.clips[key].n_rows for key in keys])]


def test_views_are_read_only_and_share_one_map(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    first, second = fill(stage, [3, 4])
    reader = reader_of(stage)
    rows = reader.read(first, "features")
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    assert rows.base is reader.read(second, "features").base
    assert reader.read(first, "labels").flags.writeable  # a copy of the caller's own


def test_rows_of_a_shard(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    written = fill(stage, [9, 5, 4])
    reader = reader_of(stage)
    for name in ("features", "labels"):
        expected = np.concatenate([rows[name] for rows in written.values()])
        np.testing.assert_array_equal(np.concatenate([reader.rows(name, 0), reader.rows(name, 1)]), expected)
    with pytest.raises(KeyError, match="no shard 2"):
        reader.rows("features", 2)


def test_no_clips_at_once(tmp_path: Path) -> None:
    rows, offsets = reader_of(make_stage(tmp_path)).read_many([], "features")
    assert rows.shape == (0, 5, 3)
    assert offsets.tolist() == [0]


def test_facts_reach_the_reader(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    (key,) = fill(stage, [3])
    reader = reader_of(stage)
    assert reader.clips[key].facts == {"start_frames": [0, 4, 8]}
    assert reader.facts["stage"] == "semantic"
    assert reader.arrays["features"] == FEATURES


def test_what_is_not_there(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    (key,) = fill(stage, [3])
    reader = reader_of(stage)
    with pytest.raises(KeyError, match="has no clip 00; it is pending or quarantined"):
        reader.read("00", "features")
    with pytest.raises(KeyError, match="has no array 'logits', only features, present, labels"):
        reader.read(key, "logits")
    with pytest.raises(UserError, match=r"stage\.json is missing: this stage was not built"):
        Cache(tmp_path).stage("semantic", "0" * 64)
    with pytest.raises(UserError, match="is not a cache"):
        Cache(tmp_path / "x")


def test_a_shard_without_a_receipt_does_not_exist(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    first, second = fill(stage, [16, 16])
    stage.folder.receipt(0).unlink()
    assert list(reader_of(stage).clips) == [second]
    with pytest.raises(KeyError):
        reader_of(stage).read(first, "features")


@pytest.mark.parametrize("spec", [FEATURES, LABELS], ids=["raw", "zstd"])
def test_missing_short_long_and_damaged_files(tmp_path: Path, spec: ArraySpec) -> None:
    stage = make_stage(tmp_path)
    (key,) = fill(stage, [3])
    path = stage.folder.shard_file(spec, 0)
    data = path.read_bytes()
    index_damage = bytearray(data)
    index_damage[-6] ^= 1
    cases = {
        "it is missing": None,
        f"has {len(data) - 1} bytes, not {len(data)}": data[:-1],
        f"has {len(data) + 1} bytes": data + b"x",
        "has 0 bytes": b"",
        "checksum of its index": bytes(index_damage),
    }
    for reason, content in cases.items():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        reader = reader_of(stage)
        with pytest.raises(
            UserError,
            match=rf"{spec.name}/c/0/0/0 is damaged: .*{reason}.*; run `bmoe-cache verify --repair`",
        ):
            reader.read(key, spec.name)
        with pytest.raises(UserError, match=reason):
            reader.read_many([key], spec.name)
    path.write_bytes(data)
    assert len(reader.read(key, spec.name)) == 3


def test_damaged_zstd_chunk(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    (key,) = fill(stage, [3])
    path = stage.folder.shard_file(LABELS, 0)
    data = bytearray(path.read_bytes())
    data[:4] = b"nope"
    path.write_bytes(data)
    with pytest.raises(UserError, match="chunk 0 is not a row of 24 bytes; run"):
        reader_of(stage).read(key, "labels")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(tmp_path)
    (key,) = fill(stage, [3])
    reader = reader_of(stage)

    def no_descriptor(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", no_descriptor)
    with pytest.raises(UserError, match="Too many open files; check its permissions and `ulimit -n`"):
        reader.read(key, "features")


def test_views_outlive_their_reader_and_its_file(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    written = fill(stage, [3])
    (key,) = written
    rows = reader_of(stage).read(key, "features")
    stage.folder.shard_file(FEATURES, 0).unlink()
    np.testing.assert_array_equal(rows, written[key]["features"])


def test_builds(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    write_build(tmp_path, "demo", {"preset": "small", "stages": {"semantic": stage.key}})
    stages = {"semantic": stage.key}
    assert Cache(tmp_path).builds("demo") == {
        "preset": "small",
        "stages": stages,
        "presets": {"small": stages},
    }
    assert json.loads((tmp_path / "builds" / "demo.json").read_text())["preset"] == "small"
    assert len(ARRAYS) == len(reader_of(stage).arrays)


def test_dataset_and_clip_keys(tmp_path: Path) -> None:
    make_stage(tmp_path)
    taxonomy = Taxonomy(name="demo", label_space="demo", label_kind="none")
    paths = {"one": "a.mp4", "two": "a.mp4", "three": "gone.mp4", "four": "unknown.mp4", "five": "text.mp4"}
    clips = tuple(Clip(name, "demo", path, end_frame=len(name)) for name, path in paths.items())
    manifest = Manifest("demo", tmp_path, taxonomy, clips)
    write_manifest(manifest, manifest_path(tmp_path, "demo"))
    media = {
        "a.mp4": Media("a.mp4", 9, 1, sha256="ab" * 32, n_frames=8),
        "gone.mp4": Media("gone.mp4", 0, 0, code="E_MISSING_FILE", error="no such file"),
        "text.mp4": Media("text.mp4", 9, 1, sha256="cd" * 32, code="E_NOT_A_VIDEO", error="no video"),
    }
    write_media(tmp_path / "manifests" / "demo.media.parquet", media)
    cache = Cache(tmp_path)
    assert cache.dataset("demo").clips == manifest.clips
    keys = {clip.clip_id: clip_key(clip, "ab" * 32) for clip in clips if clip.video_path == "a.mp4"}
    assert cache.clip_keys("demo") == keys
    assert keys["one"] == keys["two"]  # the same frames of the same file: computed once
