"""Our bytes and metadata against zarr-python's own."""

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from pipeline.store import shard
from pipeline.store.layout import ITEM_BYTES, ArraySpec
from tests.store.caches import FEATURES, LABELS, random_rows


@st.composite
def shards(draw: st.DrawFn) -> tuple[ArraySpec, int, int]:
    """(spec, rows of a shard, rows used)."""
    codec = draw(st.sampled_from(["raw", "zstd"]))
    chunk_rows = 1 if codec == "zstd" else draw(st.integers(1, 6))
    shard_rows = chunk_rows * draw(st.integers(1, 9))
    row_shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    spec = ArraySpec("a", draw(st.sampled_from(list(ITEM_BYTES))), row_shape, chunk_rows, codec)
    return spec, shard_rows, draw(st.integers(1, shard_rows))


def foreign_array(store: MemoryStore | Path, spec: ArraySpec, shard_rows: int, count: int) -> zarr.Array:
    compressors = ZstdCodec(level=shard.ZSTD_LEVEL) if spec.codec == "zstd" else None
    return zarr.create_array(
        store,
        name=spec.name,
        shape=(count * shard_rows, *spec.row_shape),
        dtype=spec.dtype,
        chunks=(spec.chunk_rows, *spec.row_shape),
        shards=(shard_rows, *spec.row_shape),
        compressors=compressors,
        fill_value=0,
        config={"write_empty_chunks": True},
    )


def our_bytes(spec: ArraySpec, shard_rows: int, rows: np.ndarray) -> bytes:
    if spec.codec == "zstd":
        return shard.zstd_shard(spec, shard_rows, shard.compress_rows(spec, rows))
    file, view = shard.raw_shard(spec, shard_rows)
    view[: len(rows)] = rows
    return file.tobytes()


@settings(max_examples=40, deadline=None)
@given(shards(), st.integers(0, 3))
def test_bytes_equal_zarr_python(case: tuple[ArraySpec, int, int], number: int) -> None:
    spec, shard_rows, used = case
    rows = random_rows(spec, used, number)
    store = MemoryStore()
    array = foreign_array(store, spec, shard_rows, 4)
    if spec.codec == "zstd":  # zarr-python leaves the chunks out that were never written, as we do
        array[number * shard_rows : number * shard_rows + used] = rows
    else:
        whole = np.zeros((shard_rows, *spec.row_shape), spec.dtype)
        whole[:used] = rows
        array[number * shard_rows : (number + 1) * shard_rows] = whole
    name = "/".join(["a/c", str(number), *("0" for _ in spec.row_shape)])
    assert our_bytes(spec, shard_rows, rows) == store._store_dict[name].to_bytes()


def test_label_maps_are_compressed_at_the_declared_level() -> None:
    spec = ArraySpec("a", "uint8", (64, 64), 1, "zstd")
    y, x = np.mgrid[:64, :64]
    maps = [np.hypot(y - 30, x - 20 - n) / 7 + np.sin(x * n / 9) for n in range(4)]
    rows = np.stack(maps).astype("uint8")
    store = MemoryStore()
    foreign_array(store, spec, 4, 1)[:] = rows
    assert our_bytes(spec, 4, rows) == store._store_dict["a/c/0/0/0"].to_bytes()
    assert shard.compress_rows(spec, rows[:1]) != [Zstd(level=1).encode(rows[0].tobytes())]  # it could differ


@settings(max_examples=25, deadline=None)
@given(shards(), st.integers(0, 3))
def test_metadata_equals_zarr_python(case: tuple[ArraySpec, int, int], count: int) -> None:
    spec, shard_rows, _ = case
    store = MemoryStore()
    zarr.create_group(store, attributes={"stage": "s"})
    foreign_array(store, spec, shard_rows, count)
    assert shard.array_metadata(spec, shard_rows, count) == json.loads(
        store._store_dict["a/zarr.json"].to_bytes()
    )
    assert shard.group_metadata({"stage": "s"}) == json.loads(store._store_dict["zarr.json"].to_bytes())


@settings(max_examples=25, deadline=None)
@given(case=shards())
def test_open_gives_the_rows_and_the_fill_value(
    tmp_path_factory: pytest.TempPathFactory, case: tuple
) -> None:
    spec, shard_rows, used = case
    rows = random_rows(spec, used, 1)
    path = tmp_path_factory.mktemp("shard") / "0"
    data = our_bytes(spec, shard_rows, rows)
    path.write_bytes(data)
    found = shard.open_shard(spec, shard_rows, path, len(data))[0:shard_rows]
    np.testing.assert_array_equal(found[:used], rows)
    assert not found[used:].any()
    assert found.shape == (shard_rows, *spec.row_shape)
    assert found.flags.writeable == (spec.codec == "zstd")


@pytest.mark.parametrize("order", ["<", ">"])
def test_all_finite_knows_every_float16(order: str) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.dtype("f2").newbyteorder(order))
    assert [shard.all_finite(values[i : i + 1]) for i in range(2**16)] == np.isfinite(values).tolist()
    assert shard.all_finite(values[np.isfinite(values)].reshape(-1, 4)[:, ::2])
    assert not shard.all_finite(values)


@pytest.mark.parametrize("spec", [FEATURES, LABELS], ids=["raw", "zstd"])
def test_every_flipped_index_byte_is_found(tmp_path: Path, spec: ArraySpec) -> None:
    data = our_bytes(spec, 8, random_rows(spec, 5, 0))
    path = tmp_path / "0"
    for back in range(1, shard.index_bytes(spec, 8) + 1):
        damaged = bytearray(data)
        damaged[-back] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum of its index"):
            shard.open_shard(spec, 8, path, len(data))


def test_raw_index_with_a_good_checksum_but_a_hole_is_refused(tmp_path: Path) -> None:
    pairs = shard.dense_index(FEATURES, 8)
    data = our_bytes(FEATURES, 8, random_rows(FEATURES, 8, 0))[: -len(shard.encode_index(pairs))]
    for wrong in (pairs[::-1], np.full_like(pairs, shard.ABSENT), pairs + np.uint64(1)):
        path = tmp_path / "0"
        path.write_bytes(data + shard.encode_index(wrong))
        with pytest.raises(ValueError, match="in order and without gaps"):
            shard.open_shard(FEATURES, 8, path, path.stat().st_size)


def test_zstd_index_that_leaves_bytes_out_or_points_outside_is_refused(tmp_path: Path) -> None:
    none, all_of_it = (shard.ABSENT, shard.ABSENT), (0, 64)
    for first, second in (
        (none, none),
        (none, all_of_it),
        (all_of_it, (64, shard.ABSENT)),
        ((0, 10**6), none),
        ((0, 60), none),
        ((2**64 - 8, 72), none),
        ((4, 60), none),
        ((0, 40), (40, 25)),
        ((24, 40), (0, 24)),
        ((0, 2**63), (2**63, 2**63 + 64)),
    ):
        pairs = np.full((8, 2), shard.ABSENT, "<u8")
        pairs[:2] = first, second
        path = tmp_path / "0"
        path.write_bytes(bytes(64) + shard.encode_index(pairs))
        with pytest.raises(ValueError, match="in order and without gaps"):
            shard.open_shard(LABELS, 8, path, path.stat().st_size)


@pytest.mark.parametrize("content", [bytes(23), bytes(25), bytes(2**24)], ids=["short", "long", "bomb"])
def test_zstd_chunk_of_another_size_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "0"
    path.write_bytes(shard.zstd_shard(LABELS, 8, [Zstd(level=3).encode(content)]))
    rows = shard.open_shard(LABELS, 8, path, path.stat().st_size)
    with pytest.raises(ValueError, match="chunk 0 is not a row of 24 bytes"):
        rows[0:1]


def test_zstd_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0"
    chunk = bytearray(Zstd(level=3).encode(np.random.default_rng(0).bytes(12) * 2))
    chunk[-9:] = b"\xff" * 9
    path.write_bytes(shard.zstd_shard(LABELS, 8, [bytes(chunk)]))
    rows = shard.open_shard(LABELS, 8, path, path.stat().st_size)
    with pytest.raises(ValueError, match="Zstd"):
        rows[0:1]


@given(st.integers(0, 70_000))
def test_zstd_content_size(n: int) -> None:
    assert shard.zstd_content_size(Zstd(level=3).encode(bytes(n) or b"")) == n


def test_mapping_is_shared_not_copied(tmp_path: Path) -> None:
    data = our_bytes(FEATURES, 8, random_rows(FEATURES, 8, 0))
    path = tmp_path / "0"
    path.write_bytes(data)
    rows = shard.open_shard(FEATURES, 8, path, len(data))
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview | mmap.mmap)
