"""The manifest: the clip table of a dataset, kept as one Parquet file per dataset in the cache.

Parquet is the canonical form; `pipeline.jsonl` is the exchange form with the same field names. Both keep every
value. A box track is a list of {frame, x1, y1, x2, y2}. Rows are sorted by clip_id (code points).
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise, repeat
from operator import attrgetter, gt
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from pipeline.clip import (
    BOX_FIELDS,
    CLIP_ID,
    COLUMNS,
    DATASET,
    INTS,
    NOT_NULL,
    REQUIRED,
    Clip,
    canonical_extra,
    check_dataset_name,
    clip_key,
    path_problem,
    resolve,
    shown,
)
from pipeline.collecting import uncollected
from pipeline.errors import UserError
from pipeline.store.atomic import write_bytes
from pipeline.store.table import read_table, table_bytes

if TYPE_CHECKING:  # pydantic costs 150 ms: a plan that only needs clips does not pay it
    from pipeline.taxonomy import Taxonomy

__all__ = [
    "CLIP_ID",
    "COLUMNS",
    "Clip",
    "Manifest",
    "Rows",
    "canonical_extra",
    "check_columns",
    "check_dataset_name",
    "clip_key",
    "header_of",
    "manifest_path",
    "parse_header",
    "path_problem",
    "read_manifest",
    "reason",
    "resolve",
    "shown",
    "write_file",
    "write_manifest",
]

VERSION = 1
_REMEDY = "import the dataset again: bmoe-cache dataset import NAME --root DIR --cache CACHE"


@dataclass(frozen=True)
class Manifest:
    """All clips of a dataset; `clips` is sorted by clip_id whatever order it came in.

    `warnings` are what the import noticed in the source and the rows no longer show, as "CODE place: text".
    """

    dataset: str
    root: Path
    taxonomy: "Taxonomy"
    clips: Sequence[Clip]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids = self.column("clip_id")
        if not isinstance(self.clips, Rows) or any(map(gt, ids, ids[1:])):
            object.__setattr__(self, "clips", tuple(sorted(self.clips, key=lambda clip: clip.clip_id)))

    def column(self, name: str) -> Sequence[Any]:
        """One field of all clips."""
        if isinstance(self.clips, Rows):
            return self.clips.column(name)
        return [getattr(clip, name) for clip in self.clips]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the rows as canonical JSONL (`tail -n +2 FILE.jsonl | sha256sum` of an export)."""
        from pipeline.jsonl import row_lines

        lines = hashlib.sha256()
        for line in row_lines(self):
            lines.update(line)
        return lines.hexdigest()


class Rows(Sequence[Clip]):
    """The clips of a table, made when they are asked for: a plan needs a few columns of all, and few clips.

    `columns` holds the fields that some clip has; all clips have the default of the others.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], count: int) -> None:
        self._columns, self._count = columns, count

    def column(self, name: str) -> Sequence[Any]:
        return self._columns[name] if name in self._columns else [DEFAULTS[name]] * self._count

    @cached_property
    def _clips(self) -> tuple[Clip, ...]:
        """All of them, one field of all at a time.

        The generated __init__ of a frozen class costs 6 us per clip with 36 fields; filling the slots through
        their descriptors keeps the loops in C and takes a fifth of that.
        """
        clips = tuple(object.__new__(Clip) for _ in range(self._count))
        for field in fields(Clip):
            values = self._columns.get(field.name, repeat(field.default, self._count))
            deque(map(getattr(Clip, field.name).__set__, clips, values), maxlen=0)
        return clips

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        if isinstance(index, slice) or "_clips" in vars(self):
            return self._clips[index]
        return Clip(**{name: values[index] for name, values in self._columns.items()})

    def __iter__(self) -> Iterator[Clip]:
        return iter(self._clips)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows | tuple) and self._clips == tuple(other)

    def __hash__(self) -> int:
        return hash(self._clips)


DEFAULTS = {field.name: field.default for field in fields(Clip)}


def manifest_path(cache: Path, dataset: str) -> Path:
    """CACHE/manifests/<dataset>.parquet."""
    return cache / "manifests" / f"{check_dataset_name(dataset)}.parquet"


# ---- the header: everything but the rows ------------------------------------------------------------------


def header_of(manifest: Manifest) -> dict[str, Any]:
    """What precedes the rows in both forms, as JSON values. Raises UserError for a root that is not UTF-8."""
    root = str(manifest.root)
    if any("\ud800" <= letter <= "\udfff" for letter in root):
        raise UserError(f"{shown(root)}: the folder's name is not UTF-8; rename it")
    return {
        "manifest_version": VERSION,
        "dataset": check_dataset_name(manifest.dataset),
        "root": root,
        "taxonomy": manifest.taxonomy.model_dump(mode="json"),
        "warnings": list(manifest.warnings),
    }


def parse_header(header: Mapping[str, Any], where: str, clips: Sequence[Clip] = ()) -> Manifest:
    """The manifest with this header and these clips. Raises UserError naming `where` for a wrong header."""
    from pipeline.taxonomy import parse_taxonomy

    version = header.get("manifest_version")
    if type(version) is not int or version < 1:
        raise UserError(
            f"{where}: not a manifest: it must begin with manifest_version, dataset, root, taxonomy"
        )
    if version > VERSION:
        raise UserError(
            f"{where}: E_VERSION manifest version {version}, this bmoe-cache reads {VERSION}; upgrade it"
        )
    root, dataset, warnings = header.get("root"), header.get("dataset"), header.get("warnings", [])
    if not isinstance(root, str) or not root or "\0" in root:
        raise UserError(f"{where}: the header's root must be the folder of the videos; correct it")
    if not isinstance(dataset, str) or not DATASET.fullmatch(dataset):
        raise UserError(f"{where}: the header's dataset must be a plain name such as my_clips; correct it")
    if not isinstance(warnings, list) or not all(isinstance(line, str) for line in warnings):
        raise UserError(f"{where}: the header's warnings must be a list of texts; correct it")
    taxonomy = parse_taxonomy(header.get("taxonomy"), where)
    return Manifest(dataset, Path(root), taxonomy, clips, tuple(warnings))


def check_columns(names: Iterable[str], where: str) -> None:
    """Raises UserError unless every name is a column and no required column is missing."""
    names = set(names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise UserError(f"{where}: E_SCHEMA_MISSING_COLUMN {', '.join(missing)}; every clip needs it")
    unknown = sorted(names - COLUMNS.keys())
    if unknown:
        raise UserError(
            f"{where}: E_SCHEMA_TYPE unknown column {shown(unknown[0])!r}; move it into the JSON of extra"
        )


def reason(error: BaseException) -> str:
    """An error of a library as one short printable line."""
    return shown(" ".join(str(error).split()))[:160] or type(error).__name__


def write_file(path: Path, data: Any) -> None:
    """Write bytes, all or nothing. Raises UserError."""
    try:
        write_bytes(path, data)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None


# ---- Parquet ----------------------------------------------------------------------------------------------


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the canonical Parquet file, all or nothing.

    Raises UserError for rows that could not be addressed later: a repeated clip_id, seconds without frames, a
    number that is not finite or too large for its column.
    """
    import pyarrow as pa

    _check_addressable(manifest)
    header = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in header_of(manifest).items()
    }
    try:
        arrays, columns = [], []
        for name, kind in COLUMNS.items():
            arrays.append(
                pa.array(map(attrgetter(name), manifest.clips), _arrow_type(kind), size=len(manifest.clips))
            )
            columns.append(pa.field(name, _arrow_type(kind), nullable=name not in NOT_NULL))
        data = table_bytes(pa.Table.from_arrays(arrays, schema=pa.schema(columns, header)))
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise UserError(
            f"{path}: a clip holds a value that its column cannot ({reason(error)}); correct it"
        ) from None
    write_file(path, data)


def _check_addressable(manifest: Manifest) -> None:
    before = None
    for clip in manifest.clips:
        if clip.clip_id == before:
            raise UserError(
                f"{manifest.dataset}: clip {shown(clip.clip_id)} is in the manifest twice; give every clip "
                "its own clip_id"
            )
        before = clip.clip_id
        if clip.start_s is None and clip.end_s is None:
            continue
        for seconds, frame in ((clip.start_s, clip.start_frame), (clip.end_s, clip.end_frame)):
            if seconds is not None and not (math.isfinite(seconds) and frame is not None):
                name = shown(clip.clip_id)
                raise UserError(
                    f"{manifest.dataset}: clip {name} gives {seconds} s and no frame; give the frame too"
                )


@uncollected()
def read_manifest(path: Path) -> Manifest:
    """Read a Parquet manifest (100,000 clips in about half a second). Raises UserError for anything else."""
    import pyarrow as pa

    if not path.is_file():
        raise UserError(_unknown(path))
    try:
        table = read_table(path.read_bytes())
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if "manifest_version" not in metadata:
            raise UserError(f"{path}: a Parquet file, but not a manifest of bmoe-cache; {_REMEDY}")
        packed = ("manifest_version", "taxonomy", "warnings")
        header = {**metadata, **{name: json.loads(metadata[name]) for name in packed}}
        manifest = parse_header(header, str(path))
        check_columns(table.column_names, str(path))
        columns = {}
        for name in table.column_names:
            columns[name] = _arrow_values(table.column(name), COLUMNS[name])
            if name in NOT_NULL and None in columns[name]:
                raise UserError(f"{path}: E_SCHEMA_TYPE column {name} has empty cells; {_REMEDY}")
        return replace(manifest, clips=Rows(columns, table.num_rows))
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(f"{path}: a damaged manifest ({reason(error)}); {_REMEDY}") from None


def _unknown(path: Path) -> str:
    """Of a dataset that is not there: those that are."""
    known = [other.stem for other in path.parent.glob("*.parquet") if DATASET.fullmatch(other.stem)]
    there = f"those there are: {', '.join(sorted(known))}; or " if known else ""
    return (
        f"{path}: no dataset '{shown(path.stem)}' in this cache; {there}import it: "
        f"bmoe-cache dataset import {shown(path.stem)} --root DIR --cache CACHE"
    )


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    types: dict[str, Callable[[], Any]] = {
        "text": pa.string,
        "word": lambda: pa.dictionary(pa.int32(), pa.string()),
        "int16": pa.int16,
        "int32": pa.int32,
        "int64": pa.int64,
        "float64": pa.float64,
        "ints": lambda: pa.list_(pa.int32()),
        "texts": lambda: pa.list_(pa.string()),
        "track": lambda: pa.list_(
            pa.struct([(name, pa.int64() if name == "frame" else pa.float64()) for name in BOX_FIELDS])
        ),
    }
    return types[kind]()


def _arrow_values(column: Any, kind: str) -> Any:
    """Python values of a column. Whole arrays: cell by cell (to_pylist) is many times slower."""

    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if column.type != _arrow_type(kind):  # never in our own files: cast imports pyarrow.compute, 60 ms
        column = column.cast(_arrow_type(kind))
    if column.null_count == len(column):
        return [None] * len(column)
    if kind in ("ints", "texts", "track"):
        parts = column.values.flatten() if kind == "track" else [column.values]
        if column.values.null_count or any(part.null_count for part in parts):
            raise ValueError("an empty cell inside a list")
        lists = [part.to_numpy(zero_copy_only=False).tolist() for part in parts]
        values = list(zip(*lists, strict=True)) if kind == "track" else lists[0]
        ends = column.offsets.to_numpy().tolist()
        tuples = [tuple(values[start:end]) for start, end in pairwise(ends)]
        if not column.null_count:
            return tuples
        valid = column.is_valid().to_pylist()
        return [value if ok else None for value, ok in zip(tuples, valid, strict=True)]
    if kind in INTS and not column.null_count:
        return column.to_numpy().tolist()
    if kind == "word":
        words = dict(enumerate(column.dictionary.to_pylist()))
        indices = column.indices
        return list(
            map(words.get, indices.to_pylist() if indices.null_count else indices.to_numpy().tolist())
        )
    if kind == "text":
        return column.to_numpy(zero_copy_only=False).tolist()
    return column.to_pylist()
