"""Logs of unfinished shards: finished clips, so that a kill costs the clips in flight and no more.

    stages/<stage>/<key16>/wip/<shard>.<turn>.log

A log is a row of frames, appended and never changed. A frame is its head (20 bytes: little-endian uint32 length of
the JSON, uint64 length of the payload, CRC-32 of JSON and payload, CRC-32 of the 16 bytes before), the JSON, the
payload. The first frame says whose the log is; every other one is a clip: its facts, and its rows as a shard holds
them (raw bytes or zstd frames), array by array in the order of their names. A clip that has no rows, because it was
refused, has a frame too.

Whoever works on a shard writes a log of their own, numbered by the turn of their lease, which begins with the
number of clips they take from the logs before: nothing of others is touched, and what a frozen process still
appends to its own counts no more. A torn or damaged frame ends a log: the rest is computed again.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.spec import canonical_json
from pipeline.store import atomic
from pipeline.store.layout import StageDir
from pipeline.store.records import field

Buffer = bytes | memoryview
_HEAD = struct.Struct("<IQI")
HEAD_BYTES = _HEAD.size + 4


@dataclass(frozen=True)
class Origin:
    """The first frame: the job (its id) and shard of a log, and how many clips of earlier logs it goes on from."""

    job: str
    shard: int
    after: int


@dataclass(frozen=True)
class Entry:
    """A clip of a log. `sizes` are, by array, the bytes of its rows: one number, or one of every zstd frame."""

    clip_key: str
    clip_id: str
    n_rows: int
    facts: Mapping[str, Any]
    sizes: Mapping[str, list[int]]
    path: Path
    offset: int  # of the payload

    def payload(self) -> dict[str, list[Buffer]]:
        """The stored bytes by array."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return {name: [file.read(size) for size in self.sizes[name]] for name in sorted(self.sizes)}


class DamagedFrameError(ValueError):
    """A frame of a log is not what was written. `torn`: it is cut off, as by a kill in the middle of it."""

    def __init__(self, reason: str, torn: bool) -> None:
        super().__init__(reason)
        self.torn = torn


def log_path(folder: StageDir, shard: int, turn: int) -> Path:
    return folder.path / "wip" / f"{shard}.{turn}.log"


def logs(folder: StageDir, shard: int) -> dict[int, Path]:
    """Turn -> log of a shard, ascending."""
    parts = ((path.name.split("."), path) for path in (folder.path / "wip").glob(f"{shard}.*.log"))
    found = {int(turn): path for (_, turn, *_), path in parts if turn.isdecimal()}
    return dict(sorted(found.items()))


class LogWriter:
    """A log being written. Appends are buffered by nobody: a kill of the process loses the last frame at most."""

    def __init__(self, folder: StageDir, turn: int, origin: Origin) -> None:
        self.path = log_path(folder, origin.shard, turn)
        atomic.make_folder(self.path.parent)
        with atomic.naming(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            self._file = open(descriptor, "ab", buffering=0)  # noqa: PTH123, SIM115  (a descriptor; closed below)
        self._append(vars(origin), b"")
        atomic.sync_folder(self.path.parent)

    def add(
        self,
        clip_key: str,
        clip_id: str,
        n_rows: int,
        facts: Mapping[str, Any],
        stored: Mapping[str, list[Buffer]],
    ) -> None:
        """Append a clip: its rows by array as `encode_rows` stores them; none where it was refused."""
        sizes = {name: [len(part) for part in parts] for name, parts in stored.items()}
        meta = {"clip_key": clip_key, "clip_id": clip_id, "n_rows": n_rows, "facts": facts, "sizes": sizes}
        self._append(meta, b"".join(part for name in sorted(stored) for part in stored[name]))

    def flush(self) -> None:
        """On disk when this returns."""
        with atomic.naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what cannot be flushed is computed again
            os.fsync(self._file.fileno())
        self._file.close()

    def _append(self, meta: Mapping[str, Any], payload: bytes) -> None:
        text = canonical_json(meta).encode(errors="backslashreplace")
        with atomic.naming(self.path):
            atomic.write_all(self._file, b"".join([head_of(text, payload), text, payload]))


def head_of(text: bytes, payload: bytes) -> bytes:
    head = _HEAD.pack(len(text), len(payload), zlib.crc32(payload, zlib.crc32(text)))
    return head + zlib.crc32(head).to_bytes(4, "little")


def frames(path: Path, check: bool = True) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Of every frame its JSON, and offset and length of its payload.

    With check=False payloads are passed over and only heads and JSON are looked at.

    Raises DamagedFrameError behind the last good frame when there is something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            yield _frame(file, size, check)


def _frame(file: BinaryIO, size: int, check: bool) -> tuple[dict[str, Any], int, int]:
    begin = file.tell()
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        raise DamagedFrameError(f"the frame at byte {begin} is torn", torn=True)
    if zlib.crc32(head[:-4]) != int.from_bytes(head[-4:], "little"):
        raise DamagedFrameError(f"the head of the frame at byte {begin} has changed", torn=False)
    text_bytes, payload_bytes, crc = _HEAD.unpack(head[:-4])
    offset = begin + HEAD_BYTES + text_bytes
    if offset + payload_bytes > size:
        raise DamagedFrameError(f"the frame at byte {begin} is torn", torn=True)
    text = file.read(text_bytes)
    if check and zlib.crc32(file.read(payload_bytes), zlib.crc32(text)) != crc:
        raise DamagedFrameError(f"the frame at byte {begin} has changed", torn=False)
    file.seek(offset + payload_bytes)
    try:
        meta = json.loads(text)
    except ValueError:
        raise DamagedFrameError(f"the frame at byte {begin} has changed", torn=False) from None
    return meta, offset, payload_bytes


def read_clips(
    folder: StageDir, shard: int, job: str, arrays: Mapping[str, Any], check: bool = True
) -> list[Entry]:
    """The finished clips of a shard, over all its logs, in order.

    Args:
        job: id of the job they must belong to; logs of another one are ignored.
        arrays: names of the stage's arrays.
        check: compare checksums of the rows as well; without, it is a count.
    """
    entries: list[Entry] = []
    for path in logs(folder, shard).values():
        with suppress(FileNotFoundError):
            _read_log(path, shard, job, arrays, check, entries)
    return entries


def _read_log(
    path: Path, shard: int, job: str, arrays: Mapping[str, Any], check: bool, entries: list[Entry]
) -> None:
    """Append the clips of a log to `entries`, after those that it goes on from."""
    with suppress(*DAMAGE):
        coming = frames(path, check)
        first = next(coming, None)
        if first is None:
            return
        origin = parse_origin(first[0])
        if (origin.job, origin.shard) != (job, shard) or origin.after > len(entries):
            return
        del entries[origin.after :]
        for meta, offset, size in coming:
            entry = parse_entry(meta, path, offset, size)
            if entry.n_rows and entry.sizes.keys() != arrays.keys():
                return
            entries.append(entry)


DAMAGE = (
    DamagedFrameError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)  # what a damaged log may raise


def parse_origin(meta: Mapping[str, Any]) -> Origin:
    """Raises ValueError when these are not the entries of a first frame."""
    return Origin(field(meta, "job", str), field(meta, "shard", int), field(meta, "after", int))


def parse_entry(meta: Mapping[str, Any], path: Path, offset: int, size: int) -> Entry:
    """Raises ValueError when these are not the entries of a clip with so many bytes of rows."""
    sizes = field(meta, "sizes", dict)
    if sum(sum(parts) for parts in sizes.values()) != size:
        raise ValueError("the sizes of its rows are not those of the frame")
    key, clip_id = field(meta, "clip_key", str), field(meta, "clip_id", str)
    return Entry(key, clip_id, field(meta, "n_rows", int), field(meta, "facts", dict), sizes, path, offset)
