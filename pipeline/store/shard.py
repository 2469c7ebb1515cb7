"""Bytes of a shard: one file of Zarr v3's `sharding_indexed` codec, encoded and decoded without zarr.

A shard of S rows is its chunks one behind the other, then the index: (offset, nbytes) of every chunk as
little-endian uint64 pairs, then the CRC-32C of those as uint32 (Zarr v3 core, codec "sharding_indexed", index
at the end, index codecs bytes + crc32c).

raw    chunks of chunk_rows rows, uncompressed, all present, in order. So the file is a C-order array of S
       rows and then an index that depends on its shape only; unused rows are zeros. It can be mapped.
zstd   one compressed chunk per row, in order and without gaps. An unused row has no chunk: its pair is 2^64-1
       twice, it reads as zero.

tests/store/test_shard.py proves both equal, byte for byte, to what zarr-python writes. Mapped, a read of a
clip is as cheap as np.memmap's, where zarr-python takes about a millisecond.
"""

import mmap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.spec import canonical_json
from pipeline.store.layout import ArraySpec

ZSTD_LEVEL = 3
ABSENT = 2**64 - 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def dtype_of(spec: ArraySpec) -> np.dtype[Any]:
    """The stored (little-endian) dtype."""
    return np.dtype(spec.dtype).newbyteorder("<")


# ------------------------------------------------------------------------------------------------- index


def index_bytes(spec: ArraySpec, shard_rows: int) -> int:
    """Size of the index with its checksum."""
    return shard_rows // spec.chunk_rows * 16 + 4


def encode_index(pairs: np.ndarray) -> bytes:
    """Index from uint64 [chunks, 2] (offset, nbytes)."""
    import google_crc32c

    data = pairs.astype("<u8").tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def decode_index(data: bytes) -> np.ndarray:
    """uint64 [chunks, 2] from an index; ValueError when its checksum is wrong."""
    import google_crc32c

    if google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("the checksum of its index is wrong")
    return np.frombuffer(data[:-4], "<u8").reshape(-1, 2)


def dense_index(spec: ArraySpec, shard_rows: int) -> np.ndarray:
    """The only index a raw shard may have: every chunk present, in order, without gaps."""
    size = spec.chunk_rows * spec.row_bytes
    offsets = np.arange(shard_rows // spec.chunk_rows, dtype="<u8") * np.uint64(size)
    return np.stack([offsets, np.full_like(offsets, size)], axis=1)


def zstd_index(sizes: np.ndarray, shard_rows: int) -> np.ndarray:
    """The only index a zstd shard may have: chunks of these sizes (uint64), in order, without gaps, then none."""
    pairs = np.full((shard_rows, 2), ABSENT, "<u8")
    pairs[: len(sizes), 0] = np.cumsum(sizes) - sizes
    pairs[: len(sizes), 1] = sizes
    return pairs


# ------------------------------------------------------------------------------------------------ encode


def raw_shard(spec: ArraySpec, shard_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """An empty raw shard to fill in: (uint8 [bytes of the file], its rows [shard_rows, *row_shape]).

    The rows are a view of the file's bytes and the index is in place, so nothing is copied at commit.
    """
    size = shard_rows * spec.row_bytes
    file = np.zeros(size + index_bytes(spec, shard_rows), np.uint8)
    file[size:] = np.frombuffer(encode_index(dense_index(spec, shard_rows)), np.uint8)
    return file, file[:size].view(dtype_of(spec)).reshape(shard_rows, *spec.row_shape)


def compress_rows(spec: ArraySpec, rows: np.ndarray) -> list[bytes]:
    """One zstd chunk for each of rows [n, *row_shape]."""
    from numcodecs.zstd import Zstd

    encode = Zstd(level=ZSTD_LEVEL, checksum=False).encode
    return [encode(row.tobytes()) for row in rows.astype(dtype_of(spec), copy=False)]


def all_finite(values: np.ndarray) -> bool:
    """Whether no float16 is NaN or infinite, by its bits: numpy computes with float16 at a fiftieth of the speed."""
    infinity = np.uint16(0x7C00)
    bits = values.view(np.dtype(np.uint16).newbyteorder(values.dtype.byteorder))
    return bool(((bits & np.uint16(0x7FFF)) < infinity).all())


class PackedRows:
    """Rows in memory, each compressed as a zstd array stores it; slices decompress into new arrays [n, *row_shape]."""

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        self.chunks: list[bytes] = []

    def append(self, rows: np.ndarray) -> None:
        """Add rows [n, *row_shape] of the array's dtype."""
        self.chunks += compress_rows(self.spec, rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.chunks), *self.spec.row_shape

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, rows: slice) -> np.ndarray:
        from numcodecs.zstd import Zstd

        decode, chosen = Zstd().decode, self.chunks[rows]
        out = np.empty((len(chosen), self.spec.row_bytes), np.uint8)
        for chunk, row in zip(chosen, out, strict=True):
            decode(chunk, row)
        return out.view(dtype_of(self.spec)).reshape(len(chosen), *self.spec.row_shape)


def zstd_shard(spec: ArraySpec, shard_rows: int, chunks: Sequence[bytes | memoryview]) -> bytes:
    """The file of a zstd shard whose first rows are chunks and whose others are unused."""
    sizes = np.array([len(chunk) for chunk in chunks], "<u8")
    return b"".join([*chunks, encode_index(zstd_index(sizes, shard_rows))])


# ------------------------------------------------------------------------------------------------ decode


class CompressedRows:
    """The rows of a zstd shard; slicing decompresses them into a new array [n, *row_shape].

    Raises ValueError when the index leaves bytes of the file out, or (at slicing) when a chunk is damaged.
    """

    def __init__(self, spec: ArraySpec, file: bytes | mmap.mmap, pairs: np.ndarray) -> None:
        sizes = pairs[pairs[:, 1] != ABSENT, 1]
        limit = len(file) - len(pairs) * 16 - 4
        whole = np.all(sizes <= limit)  # so that their sum cannot wrap round
        if not (whole and sizes.sum() == limit and np.array_equal(pairs, zstd_index(sizes, len(pairs)))):
            raise ValueError("its chunks are not all there, in order and without gaps")
        self._spec, self._file, self._pairs = spec, file, pairs
        self._edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def __len__(self) -> int:
        """Rows in use."""
        return len(self._edges) - 1

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Where the compressed bytes of the used rows from start to stop lie in the file."""
        return int(self._edges[start]), int(self._edges[stop])

    def stored(self, start: int, stop: int) -> bytes:
        """The compressed bytes of the used rows from start to stop."""
        return self._file[slice(*self.span(start, stop))]

    def __getitem__(self, rows: slice) -> np.ndarray:
        from numcodecs.zstd import Zstd

        decode, size = Zstd().decode, self._spec.row_bytes
        pairs = self._pairs[rows].tolist()
        out = np.zeros((len(pairs), size), np.uint8)
        for number, (offset, nbytes) in enumerate(pairs):
            if offset == ABSENT:
                continue
            chunk = self._file[offset : offset + nbytes]
            # Known before decoding, so a hostile chunk cannot make numcodecs allocate what its header claims.
            if zstd_content_size(chunk) != size:
                raise ValueError(
                    f"chunk {range(len(self._pairs))[rows][number]} is not a row of {size} bytes"
                )
            try:
                decode(chunk, out[number])
            except RuntimeError as error:
                raise ValueError(str(error)) from error
        return out.view(dtype_of(self._spec)).reshape(len(pairs), *self._spec.row_shape)


def zstd_content_size(chunk: bytes) -> int | None:
    """Bytes a zstd frame says it holds (RFC 8878, 3.1.1.1); None when it is no frame or does not say."""
    if chunk[:4] != _ZSTD_MAGIC or len(chunk) < 6:
        return None
    flag, single, dictionary = chunk[4] >> 6, chunk[4] >> 5 & 1, chunk[4] & 3
    width = (single, 2, 4, 8)[flag]
    start = 5 + (1 - single) + (0, 1, 2, 4)[dictionary]
    if width == 0 or len(chunk) < start + width:
        return None
    return int.from_bytes(chunk[start : start + width], "little") + (256 if width == 2 else 0)


def open_shard(spec: ArraySpec, shard_rows: int, path: Path, nbytes: int) -> np.ndarray | CompressedRows:
    """Map a shard file of nbytes (as its receipt says) once and check its index once.

    Returns its rows: for raw a read-only view [shard_rows, *row_shape] of the map, for zstd something whose
    slices are decompressed copies. The map lives as long as any view of it. Raises ValueError when the file
    has another size or its index is damaged, OSError when it cannot be opened.
    """
    with path.open("rb") as file:
        found = file.seek(0, 2)
        if found != nbytes or found == 0:  # an empty file cannot be mapped
            raise ValueError(f"it has {found} bytes, not {nbytes}")
        return decode_shard(spec, shard_rows, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def decode_shard(spec: ArraySpec, shard_rows: int, file: bytes | mmap.mmap) -> np.ndarray | CompressedRows:
    """The rows of a shard whose file is in memory or mapped, as `open_shard` returns them."""
    size = index_bytes(spec, shard_rows)
    if len(file) < size:
        raise ValueError(f"it has {len(file)} bytes, less than its index")
    pairs = decode_index(file[len(file) - size :])
    if spec.codec == "zstd":
        return CompressedRows(spec, file, pairs)
    if len(file) != shard_rows * spec.row_bytes + size or not np.array_equal(
        pairs, dense_index(spec, shard_rows)
    ):
        raise ValueError("its chunks are not all there, in order and without gaps")
    rows = np.frombuffer(file, dtype_of(spec), count=shard_rows * spec.row_bytes // dtype_of(spec).itemsize)
    return rows.reshape(shard_rows, *spec.row_shape)


def span(spec: ArraySpec, rows: np.ndarray | CompressedRows, start: int, stop: int) -> tuple[int, int]:
    """First and last byte (half open) of rows start to stop in the file of an open shard."""
    if isinstance(rows, CompressedRows):
        return rows.span(start, stop)
    return start * spec.row_bytes, stop * spec.row_bytes


def checksum(rows: np.ndarray | CompressedRows, start: int, stop: int) -> int:
    """CRC-32 of the bytes that store rows start to stop of an open shard."""
    return zlib.crc32(rows.stored(start, stop) if isinstance(rows, CompressedRows) else rows[start:stop].data)


# ---------------------------------------------------------------------------------------------- metadata


def metadata_bytes(metadata: Mapping[str, Any]) -> bytes:
    """A zarr.json as it is stored."""
    return canonical_json(metadata).encode(errors="backslashreplace") + b"\n"


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """zarr.json of the group."""
    return {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}


def array_metadata(spec: ArraySpec, shard_rows: int, shards: int) -> dict[str, Any]:
    """zarr.json of an array of shards * shard_rows rows, as zarr.create_array(..., shards=...) makes it."""
    little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    # One-byte types have no byte order, and zarr-python then leaves the configuration out.
    codecs: list[dict[str, Any]] = [little if dtype_of(spec).itemsize > 1 else {"name": "bytes"}]
    if spec.codec == "zstd":
        codecs.append({"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}})
    sharding = {
        "chunk_shape": [spec.chunk_rows, *spec.row_shape],
        "codecs": codecs,
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "shape": [shards * shard_rows, *spec.row_shape],
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *spec.row_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": np.zeros((), spec.dtype).item(),
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
