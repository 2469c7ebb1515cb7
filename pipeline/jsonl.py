"""The exchange form of a manifest: JSON Lines, a header and then one clip per line, nulls left out.

For eyes, diffs and edits by hand; `bmoe-cache dataset export` writes it and `dataset import --as FILE.jsonl` takes
it back. The rows are canonical JSON (sorted keys, no blanks, UTF-8), in clip_id order.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.clip import BOX_FIELDS, COLUMNS, INTS, NOT_NULL, Clip, shown
from pipeline.errors import UserError
from pipeline.manifest import Manifest, check_columns, header_of, parse_header, reason, write_file

_LISTED = 10  # bad lines named in one error; the rest is counted
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def write_jsonl(manifest: Manifest, path: Path) -> None:
    """Write header and rows, all or nothing. Raises UserError."""
    try:
        data = (_encode(header_of(manifest)) + "\n").encode() + b"".join(row_lines(manifest))
    except ValueError as error:
        raise UserError(
            f"{path}: a clip holds a value that JSON cannot ({reason(error)}); correct it"
        ) from None
    write_file(path, data)


def row_lines(manifest: Manifest) -> Iterator[bytes]:
    """The rows as they stand in the file, newlines included. ValueError for what JSON cannot hold."""
    for clip in manifest.clips:
        row = {name: value for name in COLUMNS if (value := getattr(clip, name)) is not None}
        if clip.bbox_track is not None:
            row["bbox_track"] = [dict(zip(BOX_FIELDS, box, strict=True)) for box in clip.bbox_track]
        yield (_encode(row) + "\n").encode()


def read_jsonl(path: Path) -> Manifest:
    """Read it back. Raises UserError naming the lines (the first ten) that are no rows."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    lines = enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    _, first = next(lines)
    header = _json_object(first, f"{path}:1")
    parse_header(header, f"{path}:1")
    clips, bad = [], []
    for number, line in lines:
        try:
            if line.strip():
                clips.append(_clip(line, f"{path}:{number}"))
        except UserError as error:
            bad.append(str(error))
    if bad:
        more = f" (and {len(bad) - _LISTED} more lines)" if len(bad) > _LISTED else ""
        raise UserError("; ".join(bad[:_LISTED]) + more)
    return parse_header(header, f"{path}:1", clips)


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise UserError(f"{where}: E_ENCODING not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({reason(error)}); correct the line") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object; every line holds one")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _clip(line: bytes, where: str) -> Clip:
    row = _json_object(line, where)
    check_columns(row, where)
    values = {}
    for name, value in row.items():
        if value is None and name not in NOT_NULL:
            continue
        try:
            values[name] = _value(value, COLUMNS[name])
        except (TypeError, ValueError, OverflowError):
            got = shown(json.dumps(value))[:60]
            raise UserError(
                f"{where}: E_SCHEMA_TYPE field {name} (got {got}, want {COLUMNS[name]})"
            ) from None
    return Clip(**values)


def _value(value: Any, kind: str) -> Any:
    if kind in ("ints", "texts") and isinstance(value, list):
        return tuple(_value(item, "int32" if kind == "ints" else "text") for item in value)
    if kind == "track" and isinstance(value, list):
        return tuple(_key_box(box) for box in value)
    if kind in ("text", "word") and isinstance(value, str):
        value.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
        return value
    if kind in INTS and type(value) is int and -INTS[kind] <= value < INTS[kind]:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "float64" and number and math.isfinite(value):
        return float(value)
    raise TypeError(kind)


def _key_box(box: Any) -> tuple[Any, ...]:
    if not isinstance(box, dict) or box.keys() != set(BOX_FIELDS):
        raise TypeError("a key box is {frame, x1, y1, x2, y2}")
    frame, *corners = (box[name] for name in BOX_FIELDS)
    return _value(frame, "int64"), *(_value(corner, "float64") for corner in corners)
