"""The records a cache is made of: how they are framed, receipts and quarantine entries. Pure.

A record is one JSON object on one line whose first entry is the CRC-32 of everything behind it, so a flipped bit
never passes for a fact:

    {"crc32":"0a1b2c3d","clip_key":...}\\n
"""

import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from pipeline.errors import ClipError, UserError
from pipeline.spec import canonical_json
from pipeline.store import atomic

REPAIR = "run `bmoe-cache verify --repair`"
WITHDRAWN = "WITHDRAWN"  # code of a quarantine entry that takes the clip's earlier ones back

_QUARANTINE = {
    "clip_key": str,
    "clip_id": str,
    "stage": str,
    "code": str,
    "message": str,
    "attempts": int,
    "time": str,
}


# --------------------------------------------------------------------------------------------- the frame


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as it is stored: entries in the given order, their values canonical JSON.

    A file name that is not UTF-8 reaches Python as lone surrogates; they are stored as JSON escapes.
    """
    entries = "".join(f',"{name}":{canonical_json(value)}' for name, value in record.items())
    body = entries.encode(errors="backslashreplace") + b"}\n"
    return _head(body) + body


def check(data: bytes) -> None:
    """Raise ValueError when a byte of a framed record has changed."""
    if data[:_HEAD_BYTES] != _head(memoryview(data)[_HEAD_BYTES:]):
        raise ValueError("its checksum is wrong")


def from_bytes(data: bytes) -> dict[str, Any]:
    """The entries of a framed record. Raises ValueError when a byte of it has changed."""
    check(data)
    record: dict[str, Any] = json.loads(data.decode())
    del record["crc32"]
    return record


def load_record(path: Path) -> dict[str, Any]:
    """The record that a file holds; ValueError or TypeError when it is damaged."""
    return from_bytes(path.read_bytes())


def _head(body: bytes | memoryview) -> bytes:
    return b'{"crc32":"%08x"' % zlib.crc32(body)


_HEAD_BYTES = len(_head(b""))


def field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    """record[name], exactly of that type (True is no int)."""
    if type(record.get(name)) is not kind:
        raise ValueError(f"'{name}' is missing or not of type {kind.__name__}")
    return record[name]


@contextmanager
def damage(path: Path, remedy: str = REPAIR) -> Iterator[None]:
    """Turn what a damaged record raises into a UserError that names the file and the remedy."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error


def utc_now() -> str:
    """Now, as in every record: 2026-01-31T12:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---------------------------------------------------------------------------------------------- receipts


@dataclass(frozen=True, slots=True)
class ClipRows:
    """The rows of one clip: row_start to row_start + n_rows of its shard, in every array of the stage.

    `position` counts the clips of the shard. `facts` is what the stage tells about the clip (a JSON object:
    start frames, decoder, ...).
    """

    clip_key: str
    clip_id: str
    shard: int
    position: int
    row_start: int
    n_rows: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ShardFile:
    """The file of one array of a shard: its size, and of every clip the CRC-32 of the clip's stored bytes."""

    bytes: int
    crc32: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A committed shard. Its clips lie one behind the other from row 0; rows behind them are unused."""

    shard: int
    clips: tuple[ClipRows, ...]
    files: Mapping[str, ShardFile]

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.clips[-1].row_start + self.clips[-1].n_rows

    def to_json(self) -> dict[str, Any]:
        """Columns. The keys of the clips come first: `clip_keys` reads no further."""
        return {
            "clip_keys": [clip.clip_key for clip in self.clips],
            "clip_ids": [clip.clip_id for clip in self.clips],
            "n_rows": [clip.n_rows for clip in self.clips],
            "facts": [clip.facts for clip in self.clips],
            "files": {
                name: {"bytes": file.bytes, "crc32": list(file.crc32)} for name, file in self.files.items()
            },
            "shard": self.shard,
        }


def load_receipt(path: Path, shard: int, shard_rows: int, arrays: Collection[str]) -> Receipt:
    """Read and check the receipt of a shard; UserError names the file when it is damaged."""
    with damage(path):
        return parse_receipt(path.read_bytes(), shard, shard_rows, arrays)


def parse_receipt(data: bytes, shard: int, shard_rows: int, arrays: Collection[str]) -> Receipt:
    """The receipt of a shard from its bytes. Raises ValueError and the like when it is damaged."""
    record = from_bytes(data)
    if field(record, "shard", int) != shard:
        raise ValueError(f"it says shard {record['shard']}")
    keys, ids = _column(record, "clip_keys", str), _column(record, "clip_ids", str)
    n_rows, facts = _column(record, "n_rows", int), _column(record, "facts", dict)
    if not len(keys) == len(ids) == len(n_rows) == len(facts) > 0 or len(set(keys)) < len(keys):
        raise ValueError("its columns do not describe the same clips")
    ends = list(accumulate(n_rows))
    if min(n_rows) < 1 or ends[-1] > shard_rows:
        raise ValueError(f"its clips have {ends[-1]} rows")
    files = {}
    for name in arrays:
        file = field(field(record, "files", dict), name, dict)
        sums = _column(file, "crc32", int)
        if len(sums) != len(keys):
            raise ValueError(f"it has {len(sums)} checksums of '{name}' for {len(keys)} clips")
        files[name] = ShardFile(field(file, "bytes", int), tuple(sums))
    starts = (end - n for end, n in zip(ends, n_rows, strict=True))
    numbers, same = range(len(keys)), [shard] * len(keys)
    return Receipt(shard, tuple(map(ClipRows, keys, ids, same, numbers, starts, n_rows, facts)), files)


def load_clip_keys(path: Path) -> frozenset[str]:
    """The clip keys of a receipt alone, for plans: a twentieth of the time of all of it."""
    with damage(path):
        data, first = path.read_bytes(), b'"clip_keys":'
        check(data)
        if not data.startswith(first, _HEAD_BYTES + 1):
            raise ValueError("it does not begin with its clips")
        begin = _HEAD_BYTES + 1 + len(first)
        return _key_set(data[begin : data.index(b"]", begin) + 1])


@lru_cache(4096)  # the stages of a build have shards of the same clips
def _key_set(column: bytes) -> frozenset[str]:
    return frozenset(_column({"clip_keys": json.loads(column)}, "clip_keys", str))


def _column(record: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values: list[Any] = field(record, name, list)
    if not set(map(type, values)) <= {kind}:
        raise ValueError(f"'{name}' holds something else than {kind.__name__}")
    return values


# -------------------------------------------------------------------------------------------- quarantine


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """A clip that cannot be used by a stage. A receipt overrules it: a clip with rows is done."""

    clip_key: str
    clip_id: str
    stage: str
    code: str
    message: str
    decoder: str | None
    attempts: int
    time: str  # UTC, ISO 8601

    @classmethod
    def of(cls, clip_key: str, clip_id: str, stage: str, error: ClipError) -> "QuarantineEntry":
        """The entry for an error that a clip met just now."""
        fields = (error.code, error.message, error.decoder, error.attempts, utc_now())
        return cls(clip_key, clip_id, stage, *fields)


def parse_quarantine(line: bytes) -> QuarantineEntry:
    """One line of quarantine.jsonl, newline included. Raises ValueError and the like when it is damaged."""
    record = from_bytes(line)
    values = {name: field(record, name, kind) for name, kind in _QUARANTINE.items()}
    decoder = None if record["decoder"] is None else field(record, "decoder", str)
    return QuarantineEntry(**values, decoder=decoder)


def load_quarantine(path: Path) -> tuple[QuarantineEntry, ...]:
    """The last entry of every clip key, in order of first appearance; () when there is no file.

    Withdrawn clips are left out, and so is a torn last line (no newline: the writer was killed). Raises UserError
    when another line is damaged.
    """
    entries: dict[str, QuarantineEntry] = {}
    for number, line in enumerate(atomic.whole_lines(path), 1):
        with damage(path):
            try:
                entry = parse_quarantine(line)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"line {number}: {error}") from error
        entries[entry.clip_key] = entry
    return tuple(entry for entry in entries.values() if entry.code != WITHDRAWN)
