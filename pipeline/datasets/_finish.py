"""From the rows of an adapter to finished clips: one column at a time, because datasets come with a million rows."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import repeat
from typing import Any

from pipeline.clip import CLIP_ID, Clip, shown
from pipeline.datasets._source import Row, Source
from pipeline.errors import UserError
from pipeline.manifest import Rows
from pipeline.spec import canonical_json
from pipeline.taxonomy import Taxonomy, from_labels

Columns = dict[str, list[Any]]
Labels = tuple[tuple[int, ...] | None, tuple[str, ...] | None, tuple[int, ...] | None]  # ids, names, coarse

_FIELDS = frozenset(field.name for field in fields(Clip))
_MAX_CLASSES = 100_000  # an unnamed label above this is a wrong column, not a class
# What tells two clips of one file apart.
_CONTENT = (
    "video_path", "skeleton_path", "stream_index", "start_frame", "end_frame", "bbox_track", "person_id", "camera_id",
    "modality", "label_ids", "label_names",
)  # fmt: skip


def gather(rows: Iterable[Row]) -> tuple[Columns, int]:
    """Rows as columns (None where a row does not have a field), and how many there are."""
    columns: Columns = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = [None] * count
            column.append(value)
        count += 1
        if len(row) < len(columns):
            for column in columns.values():
                if len(column) < count:
                    column.append(None)
    if unknown := columns.keys() - _FIELDS:
        raise TypeError(f"an adapter gave fields that clips do not have: {sorted(unknown)}")
    return columns, count


def finished(
    source: Source, columns: Columns, count: int, declared: Sequence[str]
) -> tuple[tuple[Clip, ...], Taxonomy]:
    """The clips, and the taxonomy of their labels: the source's, else one made of `declared` or of the rows.

    Rows that do not fit are refused at the source. Raises UserError for labels that contradict each other.
    """
    taxonomy = source.taxonomy or _taxonomy_of(source.name, columns, count, declared)
    ids, names, coarse = _labels(source, columns, count, taxonomy)
    columns |= {
        "clip_id": _clip_ids(source.name, columns, count),
        "label_ids": ids,
        "label_names": names,
        "coarse_ids": coarse,
        "dataset": [source.name] * count,
        "label_space": [taxonomy.label_space] * count,
        "label_kind": [taxonomy.label_kind] * count,
    }
    _refuse_repeats(source, columns)
    for name, default in (
        ("split", "unsplit"),
        ("modality", "rgb"),
        ("protocol", taxonomy.protocol),
        ("license_tag", taxonomy.licence.tag),
    ):
        given = columns.get(name, repeat(None, count))
        columns[name] = [default if value is None else value for value in given]
    return Rows(columns, count)[:], taxonomy


def _cells(columns: Columns, name: str, count: int) -> Iterable[Any]:
    return columns.get(name) or repeat(None, count)


def _place(columns: Columns, row: int) -> str:
    """Where a row came from: file:line, else its path."""
    file, line, video, skeleton = (
        columns[name][row] if name in columns else None
        for name in ("source_file", "source_line", "video_path", "skeleton_path")
    )
    return shown(f"{file}:{line}" if line else video or skeleton or f"row {row + 1}")


# ---- labels -----------------------------------------------------------------------------------------------


def _labels(
    source: Source, columns: Columns, count: int, taxonomy: Taxonomy
) -> tuple[list[Any], list[Any], list[Any]]:
    """Columns label_ids, label_names and coarse_ids; every distinct pair of ids and names is looked at once."""
    known: dict[tuple[Any, Any], Labels | ValueError] = {}
    found: list[Labels] = []
    pairs = zip(_cells(columns, "label_ids", count), _cells(columns, "label_names", count), strict=True)
    for row, pair in enumerate(pairs):
        labels = known.get(pair)
        if labels is None:
            labels = known[pair] = _resolved(source, *pair, taxonomy)
        if isinstance(labels, ValueError):
            source.refuse(_place(columns, row), labels)
            labels = (None, None, None)
        found.append(labels)
    ids, names, coarse = (list(column) for column in zip(*found, strict=True))
    return ids, names, coarse


def _resolved(
    source: Source, ids: tuple[int, ...] | None, names: tuple[str, ...] | None, taxonomy: Taxonomy
) -> Labels | ValueError:
    """Labels of the taxonomy, or why the source's are none."""
    if ids is None and names is None:
        return None, None, None
    if ids is None:
        by_name = {name: taxonomy.id_of(name) for name in names or ()}
        unknown = [name for name, label in by_name.items() if label is None]
        if unknown:
            return ValueError(f"unknown label {shown(unknown[0])!r} (not in {taxonomy.label_space})")
        ids = tuple(label for label in by_name.values() if label is not None)
    ids = tuple(sorted(set(ids)))
    last = len(taxonomy.labels) - 1
    wrong = [label for label in ids if not 0 <= label <= last]
    if wrong:
        return ValueError(f"E_LABEL_RANGE label {wrong[0]} (want 0 to {last} of {taxonomy.label_space})")
    if names is not None and {taxonomy.id_of(name) for name in names} != set(ids):
        return ValueError(f"E_LABEL_NAME_MISMATCH label {list(ids)} is not {shown(', '.join(names))!r}")
    if taxonomy.label_kind == "single" and len(ids) != 1:
        return ValueError(
            f"E_LABEL_KIND {len(ids)} labels, want one ({taxonomy.label_space} is single-label)"
        )
    own = tuple(taxonomy.labels[label].name for label in ids)
    for name in set(names or ()) - set(own):
        source.warn("W_NAME_NORMALISED", source.name, f"label {name!r} is read as one of {', '.join(own)}")
    return ids, own, tuple(taxonomy.labels[label].coarse for label in ids)


def _taxonomy_of(name: str, columns: Columns, count: int, declared: Sequence[str]) -> Taxonomy:
    """Labels of a dataset nobody described: those declared, else those seen (names in code-point order)."""
    pairs = set(zip(_cells(columns, "label_ids", count), _cells(columns, "label_names", count), strict=True))
    pairs.discard((None, None))
    if not pairs:
        return from_labels(name, ())
    by_id: dict[int, str | None] = {}
    seen: set[str] = set()
    several = False
    for ids, names in sorted(pairs, key=repr):
        several |= len(names if ids is None else ids) != 1
        if ids is None:
            seen.update(names)
        for label, text in zip(ids or (), names or repeat(None), strict=False):
            if label >= _MAX_CLASSES:
                row = columns["label_ids"].index(ids)
                raise UserError(
                    f"{_place(columns, row)}: label {label}: more than {_MAX_CLASSES} classes; check the columns"
                )
            before = by_id.setdefault(label, text)
            if text is not None and before not in (None, text):
                row = columns["label_names"].index(names)
                raise UserError(
                    f"{_place(columns, row)}: label {label} is {shown(text)!r}, elsewhere {shown(str(before))!r}"
                )
            by_id[label] = before if text is None else text
    if not declared and by_id and seen:
        raise UserError(
            f"{name}: some rows give label numbers, others only names; give one of them everywhere"
        )
    if not declared and by_id:
        declared = [by_id.get(label) or f"class {label}" for label in range(max(by_id) + 1)]
    return from_labels(name, declared or sorted(seen), "multi" if several else "single")


# ---- ids --------------------------------------------------------------------------------------------------


def _clip_ids(name: str, columns: Columns, count: int) -> list[str]:
    """{dataset}:{split}:{stem}[:{start}-{end}][:{person}][:{camera}] where that is unique and plain.

    Where it is not, the path with odd characters replaced plus a short hash of the row's content. Ids never
    depend on the order of the rows. Ids the source gives are kept.
    """
    plain = list(_plain_ids(name, columns, count))
    seen: set[str] = set()
    twice = {one for one in plain if one in seen or seen.add(one)}  # type: ignore[func-returns-value]
    given = _cells(columns, "clip_id", count)
    return [
        own or (one if one not in twice and CLIP_ID.fullmatch(one) else _hashed_id(name, columns, row))
        for row, (own, one) in enumerate(zip(given, plain, strict=True))
    ]


def _plain_ids(name: str, columns: Columns, count: int) -> Iterator[str]:
    wanted = ("split", "video_path", "skeleton_path", "start_frame", "end_frame", "person_id", "camera_id")
    for split, video, skeleton, start, end, person, camera in zip(
        *(_cells(columns, column, count) for column in wanted), strict=True
    ):
        one = f"{name}:{split or 'unsplit'}:{_stem(video or skeleton or '')}"
        if start is not None or end is not None:
            one += f":{start or 0}-{'end' if end is None else end}"
        if person:
            one += f":{person}"
        yield f"{one}:{camera}" if camera else one


def _stem(path: str) -> str:
    base = path[path.rfind("/") + 1 :]
    dot = base.rfind(".")
    return base[:dot] if dot > 0 else base


def _hashed_id(name: str, columns: Mapping[str, list[Any]], row: int) -> str:
    content = [columns[key][row] if key in columns else None for key in _CONTENT]
    tail = "-" + hashlib.sha256(canonical_json(content).encode()).hexdigest()[:10]
    path = content[0] or content[1] or ""
    split = (columns["split"][row] if "split" in columns else None) or "unsplit"
    folder = path[: path.rfind("/") + 1]
    head = f"{name}:{split}:{re.sub(r'[^A-Za-z0-9.@=+-]+', '_', folder + _stem(path))}"
    return head[: 200 - len(tail)] + tail


def _refuse_repeats(source: Source, columns: Columns) -> None:
    ids = columns["clip_id"]
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for row, clip_id in enumerate(ids):
        before = first.setdefault(clip_id, row)
        if before != row:
            source.refuse(
                _place(columns, row), f"clip {clip_id} is already there ({_place(columns, before)})"
            )
