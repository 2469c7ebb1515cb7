"""The manifest: one row per clip, and its files.

Parquet is the canonical form, JSONL the exchange form with the same field names; both keep every value. A box
track is a list of {frame, x1, y1, x2, y2}. Rows are sorted by clip_id (code points).
"""

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.clip import (
    BOX_FIELDS,
    CLIP_ID,
    COLUMNS,
    DATASET,
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
from pipeline.errors import UserError
from pipeline.store.atomic import write_bytes

if TYPE_CHECKING:  # pydantic costs 150 ms: a plan that only needs clips does not pay it
    from pipeline.taxonomy import Taxonomy

__all__ = [
    "CLIP_ID",
    "COLUMNS",
    "Clip",
    "Manifest",
    "canonical_extra",
    "check_dataset_name",
    "clip_key",
    "manifest_path",
    "path_problem",
    "read_jsonl",
    "read_manifest",
    "resolve",
    "shown",
    "write_jsonl",
    "write_manifest",
]

VERSION = 1
_INTS = {"int16": 2**15, "int32": 2**31, "int64": 2**63}
_REMEDY = "import the dataset again: bmoe-cache dataset import NAME --root DIR --cache CACHE"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True)
class Manifest:
    """All clips of a dataset; `clips` is sorted by clip_id whatever order it came in."""

    dataset: str
    root: Path
    taxonomy: "Taxonomy"
    clips: tuple[Clip, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "clips", tuple(sorted(self.clips, key=lambda clip: clip.clip_id)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the rows as canonical JSONL (`tail -n +2 FILE.jsonl | sha256sum` of an export)."""
        lines = hashlib.sha256()
        for line in _row_lines(self):
            lines.update(line)
        return lines.hexdigest()


def manifest_path(cache: Path, dataset: str) -> Path:
    """CACHE/manifests/<dataset>.parquet."""
    return cache / "manifests" / f"{check_dataset_name(dataset)}.parquet"


# ---- writing ----------------------------------------------------------------------------------------------


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the canonical Parquet file, all or nothing.

    Raises UserError for rows that could not be addressed later: a repeated clip_id, seconds without frames, a
    number that is not finite or too large for its column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_addressable(manifest)
    clips = manifest.clips
    try:
        arrays = [
            pa.array([getattr(clip, name) for clip in clips], _arrow_type(kind))
            for name, kind in COLUMNS.items()
        ]
        metadata = {
            name: value if isinstance(value, str) else _encode(value)
            for name, value in _header(manifest).items()
        }
        schema = pa.schema(
            [
                pa.field(name, _arrow_type(kind), nullable=name not in NOT_NULL)
                for name, kind in COLUMNS.items()
            ],
            metadata,
        )
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd", write_page_checksum=True
        )
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise UserError(
            f"{path}: a clip holds a value that its column cannot ({_reason(error)}); correct it"
        ) from None
    _write(path, sink.getvalue())


def write_jsonl(manifest: Manifest, path: Path) -> None:
    """Write the exchange form: a header line, then one clip per line, nulls left out. All or nothing."""
    try:
        data = (_encode(_header(manifest)) + "\n").encode() + b"".join(_row_lines(manifest))
    except ValueError as error:
        raise UserError(
            f"{path}: a clip holds a value that JSON cannot ({_reason(error)}); correct it"
        ) from None
    _write(path, data)


def _header(manifest: Manifest) -> dict[str, Any]:
    root = str(manifest.root)
    if any("\ud800" <= letter <= "\udfff" for letter in root):
        raise UserError(f"{shown(root)}: the folder's name is not UTF-8; rename it")
    return {
        "manifest_version": VERSION,
        "dataset": check_dataset_name(manifest.dataset),
        "root": root,
        "taxonomy": manifest.taxonomy.model_dump(mode="json"),
    }


def _row_lines(manifest: Manifest) -> Iterator[bytes]:
    for clip in manifest.clips:
        row = {name: value for name in COLUMNS if (value := getattr(clip, name)) is not None}
        if clip.bbox_track is not None:
            row["bbox_track"] = [dict(zip(BOX_FIELDS, box, strict=True)) for box in clip.bbox_track]
        yield (_encode(row) + "\n").encode()


def _check_addressable(manifest: Manifest) -> None:
    before = None
    for clip in manifest.clips:
        name = shown(clip.clip_id)
        if clip.clip_id == before:
            raise UserError(
                f"{manifest.dataset}: clip {name} is in the manifest twice; give every clip its own clip_id"
            )
        before = clip.clip_id
        for seconds, frame in ((clip.start_s, clip.start_frame), (clip.end_s, clip.end_frame)):
            if seconds is not None and not (math.isfinite(seconds) and frame is not None):
                raise UserError(
                    f"{manifest.dataset}: clip {name} gives {seconds} s and no frame; give the frame too"
                )


def _write(path: Path, data: Any) -> None:
    try:
        write_bytes(path, data)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None


# ---- reading ----------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> Manifest:
    """Read a Parquet manifest (100,000 clips in about half a second). Raises UserError for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: no such manifest; {_REMEDY}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = {
                key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()
            }
            if "manifest_version" not in metadata:
                raise UserError(f"{path}: a Parquet file, but not a manifest of bmoe-cache; {_REMEDY}")
            header = {
                **metadata,
                **{name: json.loads(metadata[name]) for name in ("manifest_version", "taxonomy")},
            }
            dataset, root, taxonomy = _read_header(header, str(path))
            table = file.read()
        _check_columns(table.column_names, str(path))
        columns: list[Iterable[Any]] = []
        for field in fields(Clip):
            if field.name not in table.column_names:
                columns.append(repeat(field.default, table.num_rows))
                continue
            column = _arrow_values(table.column(field.name), COLUMNS[field.name])
            if field.name in NOT_NULL and None in column:
                raise UserError(f"{path}: E_SCHEMA_TYPE column {field.name} has empty cells; {_REMEDY}")
            columns.append(column)
        clips = _clips_from_columns(columns, table.num_rows)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(f"{path}: a damaged manifest ({_reason(error)}); {_REMEDY}") from None
    return Manifest(dataset, root, taxonomy, clips)


def _clips_from_columns(columns: Iterable[Iterable[Any]], n_rows: int) -> tuple[Clip, ...]:
    """One Clip per row, one field of all rows at a time.

    The generated __init__ of a frozen class costs 6 us per clip with 27 fields; filling the slots through
    their descriptors keeps the loops in C and takes a fifth of that.
    """
    clips = tuple(object.__new__(Clip) for _ in range(n_rows))
    for field, column in zip(fields(Clip), columns, strict=True):
        deque(map(getattr(Clip, field.name).__set__, clips, column), maxlen=0)
    return clips


def read_jsonl(path: Path) -> Manifest:
    """Read the exchange form. Raises UserError naming the line for anything that is not one of its rows."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    _, first = next(lines)
    head = _json_object(first, f"{path}:1")
    dataset, root, taxonomy = _read_header(head, f"{path}:1")
    return Manifest(
        dataset,
        root,
        taxonomy,
        tuple(_clip(line, f"{path}:{number}") for number, line in lines if line.strip()),
    )


def _read_header(header: Mapping[str, Any], where: str) -> tuple[str, Path, "Taxonomy"]:
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
    root = header.get("root")
    if not isinstance(root, str) or not root or "\0" in root:
        raise UserError(f"{where}: the header's root must be the folder of the videos; correct it")
    dataset = header.get("dataset")
    if not isinstance(dataset, str) or not DATASET.fullmatch(dataset):
        raise UserError(f"{where}: the header's dataset must be a plain name such as my_clips; correct it")
    return dataset, Path(root), parse_taxonomy(header.get("taxonomy"), where)


def _check_columns(names: Iterable[str], where: str) -> None:
    names = set(names)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise UserError(f"{where}: E_SCHEMA_MISSING_COLUMN {', '.join(missing)}; every clip needs it")
    unknown = sorted(names - COLUMNS.keys())
    if unknown:
        raise UserError(
            f"{where}: E_SCHEMA_TYPE unknown column {shown(unknown[0])!r}; move it into the JSON of extra"
        )


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise UserError(f"{where}: E_ENCODING not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({_reason(error)}); correct the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; every line holds one")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _clip(line: bytes, where: str) -> Clip:
    row = _json_object(line, where)
    _check_columns(row, where)
    values = {}
    for name, value in row.items():
        if value is None and name not in NOT_NULL:
            continue
        try:
            values[name] = _json_value(value, COLUMNS[name])
        except (TypeError, ValueError, OverflowError):
            got = shown(json.dumps(value))[:60]
            raise UserError(
                f"{where}: E_SCHEMA_TYPE field {name} (got {got}, want {COLUMNS[name]})"
            ) from None
    return Clip(**values)


def _json_value(value: Any, kind: str) -> Any:
    if kind in ("ints", "texts") and isinstance(value, list):
        return tuple(_json_value(item, "int32" if kind == "ints" else "text") for item in value)
    if kind == "track" and isinstance(value, list):
        return tuple(_key_box(box) for box in value)
    if kind in ("text", "word") and isinstance(value, str):
        value.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
        return value
    if kind in _INTS and type(value) is int and -_INTS[kind] <= value < _INTS[kind]:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float64" and number and math.isfinite(value):
        return float(value)
    raise TypeError(kind)


def _key_box(box: Any) -> tuple[Any, ...]:
    if not isinstance(box, dict) or box.keys() != set(BOX_FIELDS):
        raise TypeError("a key box is {frame, x1, y1, x2, y2}")
    frame, *corners = (box[name] for name in BOX_FIELDS)
    return _json_value(frame, "int64"), *(_json_value(corner, "float64") for corner in corners)


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
    import pyarrow as pa

    column = column.cast(pa.string() if kind == "word" else _arrow_type(kind))
    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
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
    if kind in _INTS and not column.null_count:
        return column.to_numpy().tolist()
    if kind in ("text", "word"):
        return column.to_numpy(zero_copy_only=False).tolist()
    return column.to_pylist()


def _reason(error: BaseException) -> str:
    return shown(" ".join(str(error).split()))[:160] or type(error).__name__
