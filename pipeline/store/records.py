"""The records a stage folder is made of: receipts and quarantine entries, checked when read. Pure."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import ClipError, UserError
from pipeline.spec import canonical_json
from pipeline.store import atomic

_QUARANTINE = {
    "clip_key": str,
    "clip_id": str,
    "stage": str,
    "code": str,
    "message": str,
    "attempts": int,
    "time": str,
}


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """A JSON record as it is stored: canonical, one line.

    A file name that is not UTF-8 reaches Python as lone surrogates; they are stored as JSON escapes.
    """
    return canonical_json(record).encode(errors="backslashreplace") + b"\n"


def utc_now() -> str:
    """Now, as in every record: 2026-01-31T12:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def load_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError or TypeError when it holds none."""
    record = json.loads(path.read_bytes())
    if not isinstance(record, dict):
        raise TypeError("not a JSON object")
    return record


def field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    """record[name], exactly of that type (True is no int)."""
    if type(record.get(name)) is not kind:
        raise ValueError(f"'{name}' is missing or not of type {kind.__name__}")
    return record[name]


@contextmanager
def damage(path: Path, remedy: str) -> Iterator[None]:
    """Turn what a damaged record raises into a UserError that names the file and the remedy."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error


@dataclass(frozen=True, slots=True)
class ClipRows:
    """The rows of one clip: row_start to row_start + n_rows of its shard, in every array of the stage.

    `facts` is what the stage tells about the clip (a JSON object: start frames, decoder, ...).
    """

    clip_key: str
    clip_id: str
    shard: int
    row_start: int
    n_rows: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A committed shard. Its clips lie one behind the other from row 0; rows after `rows` are unused.

    `files` maps each array to {"bytes", "index_bytes", "sha256"} of its shard file; the index with its
    CRC-32C is the last index_bytes of the file.
    """

    shard: int
    rows: int
    clips: tuple[ClipRows, ...]
    files: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        names = ("clip_key", "clip_id", "row_start", "n_rows", "facts")
        return {
            "shard": self.shard,
            "rows": self.rows,
            "clips": [{name: getattr(clip, name) for name in names} for clip in self.clips],
            "files": self.files,
        }


def load_receipt(path: Path, shard: int, shard_rows: int, arrays: Collection[str]) -> Receipt:
    """Read and check the receipt of a shard; UserError names the file when it is damaged."""
    with damage(path, "delete it and run `bmoe-cache build`: the clips of this shard are computed again"):
        record = load_object(path)
        if field(record, "shard", int) != shard:
            raise ValueError(f"it says shard {record['shard']}")
        clips: list[ClipRows] = []
        row = 0
        for clip in field(record, "clips", list):
            key, clip_id, facts = clip["clip_key"], clip["clip_id"], clip["facts"]
            start, n = clip["row_start"], clip["n_rows"]
            typed = (
                type(key) is type(clip_id) is str and type(start) is type(n) is int and type(facts) is dict
            )
            if not (typed and start == row and n > 0):
                raise ValueError(f"clip {len(clips)} does not follow the rows before it")
            clips.append(ClipRows(key, clip_id, shard, start, n, facts))
            row += n
        if field(record, "rows", int) != row or row > shard_rows:
            raise ValueError(f"its clips have {row} rows")
        files = field(record, "files", dict)
        for array in arrays:
            entry = field(files, array, dict)
            for name, kind in (("bytes", int), ("index_bytes", int), ("sha256", str)):
                field(entry, name, kind)
    return Receipt(shard, row, tuple(clips), files)


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


def load_quarantine(path: Path) -> tuple[QuarantineEntry, ...]:
    """The last entry of every clip key, in order of first appearance; () when there is no file.

    A torn last line (no newline: the writer was killed) is ignored. Raises UserError when another is damaged.
    """
    entries: dict[str, QuarantineEntry] = {}
    with damage(path, "delete it and run `bmoe-cache build`: its clips are tried again"):
        for number, line in enumerate(atomic.whole_lines(path), 1):
            try:
                record = json.loads(line)
                values = {name: field(record, name, kind) for name, kind in _QUARANTINE.items()}
                decoder = None if record["decoder"] is None else field(record, "decoder", str)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"line {number}: {error}") from error
            entries[values["clip_key"]] = QuarantineEntry(**values, decoder=decoder)
    return tuple(entries.values())
