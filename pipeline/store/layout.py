"""Where everything lies in a cache, and what tells so: cache.json, stage.json. Pure: standard library only.

docs/cache-format.md lists the folders and describes the format for other programs. Every reader here checks what it
reads and raises UserError with the file's name when a record is damaged. The attributes of the Zarr group repeat
stage.json, so that either can be restored from the other.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.collecting import uncollected
from pipeline.errors import UserError
from pipeline.manifest import check_dataset_name
from pipeline.spec import digest
from pipeline.store import atomic
from pipeline.store.records import (
    Receipt,
    damage,
    field,
    load_clip_keys,
    load_receipt,
    load_record,
    to_bytes,
    utc_now,
)

FORMAT_VERSION = 2
ITEM_BYTES = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8}
ITEM_BYTES |= {"uint64": 8, "float16": 2, "float32": 4, "float64": 8}

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # stages and arrays: they become folders
_KEY = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"([a-z][a-z0-9]+):/+(.+)")
_RECEIPT = re.compile(r"(0|[1-9][0-9]*)\.json")


# ---------------------------------------------------------------------------------------------- the cache


def init_cache(root: Path) -> None:
    """Make root a cache, or check that it is one.

    Raises UserError when root holds something else, or a cache of a newer format.
    """
    path = root / "cache.json"
    if path.exists() or (root / "manifests").is_dir():
        return check_cache(root)
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; choose an empty folder for the cache")
    if root.is_dir() and any(not entry.name.startswith(".cache.json.") for entry in root.iterdir()):
        raise UserError(f"{root} is not empty and is not a cache; choose an empty folder for the cache")
    return write_cache_record(root)


def write_cache_record(root: Path) -> None:
    """Write cache.json."""
    from pipeline.versions import program

    record = {"format_version": FORMAT_VERSION, "created_by": program(), "created": utc_now()}
    atomic.write_bytes(root / "cache.json", to_bytes(record))


def url_of(root: Path | str) -> str | None:
    """The URL given as a root, such as s3://bucket/cache (a Path keeps one slash of it); None for a folder."""
    found = _URL.fullmatch(str(root))
    if found is None:
        return None
    slashes = "///" if found[1] == "file" else "//"
    return f"{found[1]}:{slashes}{found[2]}".rstrip("/")


def check_cache(root: Path) -> None:
    """Raise UserError unless root is a local cache whose format this version reads."""
    if url := url_of(root):
        raise UserError(
            f"{url}: this command needs a cache on disk; run `bmoe-cache pull {url} --cache FOLDER` first"
        )
    path = root / "cache.json"
    if not path.is_file():
        if (root / "manifests").is_dir():
            raise UserError(f"{path} is missing; restore it with `bmoe-cache verify --cache {root} --repair`")
        raise UserError(f"{root} is not a cache (no cache.json); `bmoe-cache dataset import` makes one")
    with damage(path):
        _check_format(path, load_record(path))


def build_path(root: Path, dataset: str) -> Path:
    """CACHE/builds/<dataset>.json. Raises UserError when dataset is no plain name."""
    return root / "builds" / f"{check_dataset_name(dataset)}.json"


def events_path(root: Path, dataset: str) -> Path:
    """CACHE/builds/<dataset>.events.jsonl, what builds of a dataset tell while they run (pipeline.events)."""
    return build_path(root, dataset).with_suffix(".events.jsonl")


def check_build(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless record is {"preset": str, "stages": {stage: key}, "presets": {preset: stages}}.

    More entries are welcome.
    """
    field(record, "preset", str)
    for stages in (field(record, "stages", dict), *field(record, "presets", dict).values()):
        for stage, key in stages.items():
            if not _NAME.fullmatch(stage) or not isinstance(key, str) or not _KEY.fullmatch(key):
                raise ValueError(f"stages: '{stage}': '{key}' is not a stage and its key of 64 hex digits")


def load_build(root: Path, dataset: str) -> dict[str, Any]:
    """The record of the last build of a dataset: {"preset": str, "stages": {stage: key}, ...}, see `write_build`."""
    path = build_path(root, dataset)
    if not path.is_file():
        raise UserError(f"{path} is missing: '{dataset}' was not built in this cache; run `bmoe-cache build`")
    with damage(path, "delete it and run `bmoe-cache build` again"):
        record = load_record(path)
        check_build(record)
    return record


# ------------------------------------------------------------------------------------------------ a stage


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a stage. All arrays of a stage share the row axis.

    Attributes:
        name: folder inside features.zarr; lower case.
        dtype: numpy name, one of ITEM_BYTES; stored little-endian.
        row_shape: shape of one row; () for one number per row.
        chunk_rows: rows per Zarr chunk; divides the rows of a shard. 1 for zstd.
        codec: "raw" (uncompressed, mappable) or "zstd" (one compressed chunk per row).

    Raises ValueError when these do not fit together.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    chunk_rows: int
    codec: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "row_shape", tuple(self.row_shape))
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"'{self.name}' is not an array name (a-z, 0-9, _)")
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"array '{self.name}': dtype '{self.dtype}' is none of {', '.join(ITEM_BYTES)}")
        if any(type(n) is not int or n < 1 for n in (*self.row_shape, self.chunk_rows)):
            raise ValueError(f"array '{self.name}': row_shape and chunk_rows must be whole numbers from 1")
        if self.codec not in ("raw", "zstd") or (self.codec == "zstd" and self.chunk_rows != 1):
            raise ValueError(f"array '{self.name}': codec must be 'raw', or 'zstd' with chunk_rows 1")

    @property
    def row_bytes(self) -> int:
        """Bytes of one uncompressed row."""
        return math.prod(self.row_shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StageDir:
    """The paths of one stage folder, CACHE/stages/<stage>/<first 16 digits of key>/."""

    root: Path
    stage: str
    key: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.stage) or not _KEY.fullmatch(self.key):
            raise UserError(f"'{self.stage}' '{self.key}' is not a stage name and a key of 64 hex digits")

    @property
    def path(self) -> Path:
        return self.root / "stages" / self.stage / self.key[:16]

    @property
    def stage_json(self) -> Path:
        return self.path / "stage.json"

    @property
    def zarr(self) -> Path:
        return self.path / "features.zarr"

    @property
    def receipts(self) -> Path:
        return self.path / "receipts"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    def receipt(self, shard: int) -> Path:
        return self.receipts / f"{shard}.json"

    def shard_file(self, array: ArraySpec, shard: int) -> Path:
        """features.zarr/<array>/c/<shard>/0/0...: one 0 for each axis of a row."""
        return self.zarr.joinpath(array.name, "c", str(shard), *("0" for _ in array.row_shape))


@dataclass(frozen=True, slots=True)
class StageInfo:
    """stage.json. `facts` decide the output and hash to `key`; `provenance` tells how it came to be."""

    facts: Mapping[str, Any]
    key: str
    arrays: Mapping[str, ArraySpec]
    shard_rows: int
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if digest(self.facts) != self.key:
            raise ValueError("the key is not the digest of the facts")
        for array in self.arrays.values():
            if self.shard_rows < 1 or self.shard_rows % array.chunk_rows:
                raise ValueError(
                    f"array '{array.name}': {array.chunk_rows} rows do not divide {self.shard_rows}"
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "key": self.key,
            "facts": dict(self.facts),
            "shard_rows": self.shard_rows,
            "arrays": [asdict(array) for array in self.arrays.values()],
            "provenance": dict(self.provenance),
        }


def load_stage(folder: StageDir) -> StageInfo:
    """Read stage.json.

    Raises UserError when it is missing, damaged, of a newer format, or of another stage whose key begins with
    the same 16 digits.
    """
    if not folder.stage_json.is_file():
        raise UserError(
            f"{folder.stage_json} is missing: this stage was not built here; run `bmoe-cache build`"
        )
    info = _read_stage(folder.stage_json)
    if info.key != folder.key:
        raise UserError(
            f"{folder.stage_json} holds key {info.key}, not {folder.key}: same first 16 digits; use another cache"
        )
    return info


def load_folder(path: Path) -> tuple[StageDir, StageInfo]:
    """The stage whose folder is path, CACHE/stages/<stage>/<key16>. Raises UserError when it is none."""
    if not (path / "stage.json").is_file():
        raise UserError(f"{path} is not the folder of a stage; `bmoe-cache ls` shows those of a cache")
    info = _read_stage(path / "stage.json")
    return place(path, info), info


def place(path: Path, info: StageInfo) -> StageDir:
    """The StageDir of a stage that lies at path. Raises UserError when it belongs elsewhere."""
    folder = StageDir(path.absolute().parents[2], str(info.facts.get("stage")), info.key)
    if folder.path != path.absolute():
        raise UserError(f"{path} holds the stage of {folder.stage}/{folder.key[:16]}; move it back")
    return folder


def stage_folders(root: Path) -> list[Path]:
    """CACHE/stages/<stage>/<key16> of a cache, whatever is in them."""
    return sorted(path for path in root.glob("stages/*/*") if path.is_dir() and path.name[0] != ".")


def _read_stage(path: Path) -> StageInfo:
    with damage(path):
        record = load_record(path)
        _check_format(path, record)
        return parse_stage(record)


def parse_stage(record: Mapping[str, Any]) -> StageInfo:
    """The entries of a stage.json. Raises ValueError, TypeError and the like when they do not fit together."""
    arrays = [ArraySpec(**array) for array in field(record, "arrays", list)]
    return StageInfo(
        facts=field(record, "facts", dict),
        key=field(record, "key", str),
        arrays={array.name: array for array in arrays},
        shard_rows=field(record, "shard_rows", int),
        provenance=field(record, "provenance", dict),
    )


# ------------------------------------------------------------------------------------------ its receipts


def committed_shards(folder: StageDir) -> tuple[int, ...]:
    """The numbers of the shards that have a receipt, ascending."""
    if not folder.receipts.is_dir():
        return ()
    names = (_RECEIPT.fullmatch(path.name) for path in folder.receipts.iterdir())
    return tuple(sorted(int(name[1]) for name in names if name))


@uncollected()
def load_receipts(folder: StageDir, info: StageInfo) -> tuple[Receipt, ...]:
    """All receipts, by shard."""
    return tuple(
        load_receipt(folder.receipt(shard), shard, info.shard_rows, info.arrays)
        for shard in committed_shards(folder)
    )


def committed_keys(folder: StageDir) -> frozenset[str]:
    """The keys of all clips that have rows: what a plan needs of the receipts, in a tenth of the time."""
    receipts = folder.receipts
    return _union(tuple(load_clip_keys(receipts / f"{shard}.json") for shard in committed_shards(folder)))


@lru_cache(8)  # stages that were built together have the same clips in every shard, and then share one set
def _union(sets: tuple[frozenset[str], ...]) -> frozenset[str]:
    return frozenset().union(*sets)


def _check_format(path: Path, record: Mapping[str, Any]) -> None:
    version = field(record, "format_version", int)
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: format {version} is newer than {FORMAT_VERSION}, the newest known here; upgrade"
        )
