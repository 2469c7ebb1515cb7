"""Importing a dataset: an adapter finds the rows, this module gives them ids, labels and a taxonomy.

An adapter is a module of this package with one function,

    rows(root: Path, taxonomy: Taxonomy | None) -> tuple[list[Row], Sequence[str]]

It returns the rows and, when the source declares them, the label names in id order. To add one, add its
file: `dataset import NAME` and `--as NAME` find the module by its name. No adapter looks at a video: files
that are missing are reported by `dataset validate` and quarantined by `build`.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.manifest import CLIP_ID, Clip, Manifest, check_dataset_name, path_problem, shown
from pipeline.spec import canonical_json
from pipeline.taxonomy import Taxonomy, from_labels, load_taxonomy

# Keyword arguments of Clip. The adapter sets video_path and what it knows, labels as label_ids or label_names
# (if both, they must agree). Dataset, coarse ids, label space, licence and a missing clip_id are added here.
Row = dict[str, Any]
Adapter = Callable[[Path, Taxonomy | None], tuple[list[Row], Sequence[str]]]

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_FILES = {"list": "path_list", "csv": "csv_table"}  # adapters whose own names would read like stdlib modules
_MODULE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_CLASSES = 100_000  # an unnamed label above this is a wrong column, not a class


def import_dataset(name: str, root: Path, adapter: str | None = None) -> Manifest:
    """Find the clips of a dataset under `root`.

    Args:
        name: dataset name; `manifests/datasets/<name>.yaml`, if there, gives labels and the default adapter.
        root: folder of the videos; every path of the manifest is relative to it.
        adapter: folder, list, csv or the name of a module of this package; None = the dataset's own.

    Raises UserError (file:line of up to ten problems) for a missing root, unknown adapter, unreadable table,
    unknown label, repeated clip, or when nothing was found.
    """
    check_dataset_name(name)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the videos with --root DIR")
    taxonomy = load_taxonomy(name)
    chosen = adapter or (taxonomy.adapter if taxonomy else None) or (name if _has_adapter(name) else None)
    if chosen is None:
        raise UserError(
            f"{name}: not a known dataset; say how it is laid out with --as {'|'.join(adapters())}"
        )
    read = _adapter(chosen)
    taxonomy = taxonomy or load_taxonomy(chosen)
    root = root.resolve()
    try:
        rows, names = read(root, taxonomy)
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    if not rows:
        raise UserError(
            f"{root}: no clips found; --as {chosen} looks for {', '.join(VIDEO_SUFFIXES)} files or lists"
        )
    taxonomy = taxonomy or _taxonomy_of(name, rows, names)
    ids = _clip_ids(name, rows)
    clips, bad = [], []
    for row, clip_id in zip(rows, ids, strict=True):
        try:
            clips.append(_clip(row, name, clip_id, taxonomy))
        except ValueError as error:
            bad.append(f"{place(row)}: {error}")
    first: dict[str, Row] = {}
    for row, clip_id in zip(rows, ids, strict=True):
        if (before := first.setdefault(clip_id, row)) is not row:
            bad.append(f"{place(row)}: clip {clip_id} is already there ({place(before)})")
    if bad:
        raise bad_lines(bad, "correct the lines or the --as option")
    return Manifest(name, root, taxonomy, tuple(clips))


def adapters() -> list[str]:
    """Names for --as, sorted."""
    names = {file: name for name, file in _FILES.items()}
    return sorted(names.get(module.name, module.name) for module in pkgutil.iter_modules(__path__))


def bad_lines(problems: Sequence[str], remedy: str) -> UserError:
    """One error for many lines: the first ten, how many more, and the remedy."""
    more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
    return UserError(f"{'; '.join(problems[:10])}{more}. Remedy: {remedy}")


def place(row: Row) -> str:
    """Where a row came from, for messages: file:line, else its path."""
    line = row.get("source_line")
    return shown(f"{row.get('source_file')}:{line}" if line else row["video_path"])


def read_text(path: Path) -> list[str]:
    """Lines of a text file: UTF-8 with or without BOM, LF or CRLF. Raises UserError for other encodings."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: E_ENCODING not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def split_of(name: str) -> str:
    """Split named by a word of a file or folder name (`train_list_videos` -> train), else unsplit."""
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), "unsplit")


def relative_path(text: str) -> str:
    """A path of a list or table in canonical form ('./a//b' -> 'a/b'); ValueError unless it is safe."""
    problem = path_problem(text)
    if problem:
        raise ValueError(f"{problem[0]} {shown(text)!r}: {problem[1]}, want a path relative to the root")
    return str(PurePosixPath(text))


def read_labels(path: Path) -> list[str]:
    """Label names in id order from lines `name` or `id name` (ids 0, 1, 2, ...), '#' comments apart."""
    lines = [line.strip() for line in read_text(path)]
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [re.fullmatch(r"([0-9]{1,9})[\s,]+(.*\S)", line) for line in lines]
    if not lines or not all(numbered):
        return lines
    pairs = sorted((int(match[1]), match[2]) for match in numbered if match)
    if [number for number, _ in pairs] != list(range(len(pairs))):
        raise UserError(
            f"{path}: label ids must run 0, 1, 2, ...; the file has {len(pairs)} ids from {pairs[0][0]}"
        )
    return [name for _, name in pairs]


# ---- adapters by name -------------------------------------------------------------------------------------


def _module_name(adapter: str) -> str | None:
    return f"{__name__}.{_FILES.get(adapter, adapter)}" if _MODULE.fullmatch(adapter) else None


def _has_adapter(adapter: str) -> bool:
    module = _module_name(adapter)
    return module is not None and importlib.util.find_spec(module) is not None


def _adapter(adapter: str) -> Adapter:
    module = _module_name(adapter)
    if module is None or not _has_adapter(adapter):
        raise UserError(f"no adapter {shown(adapter)!r}; choose one with --as {'|'.join(adapters())}")
    read: Adapter = importlib.import_module(module).rows
    return read


# ---- ids and labels ---------------------------------------------------------------------------------------


def _clip_ids(name: str, rows: Sequence[Row]) -> list[str]:
    """{dataset}:{split}:{stem}[:{start}-{end}][:{person}][:{camera}] where that is unique and plain.

    Where it is not, the path with odd characters replaced plus a short hash of the row's content. Ids never
    depend on the order of the rows.
    """
    ids = [row.get("clip_id") or _plain_id(name, row) for row in rows]
    counts = Counter(ids)
    return [
        clip_id
        if row.get("clip_id") or (counts[clip_id] == 1 and CLIP_ID.fullmatch(clip_id))
        else _hashed_id(name, row)
        for clip_id, row in zip(ids, rows, strict=True)
    ]


def _plain_id(name: str, row: Row) -> str:
    start, end = row.get("start_frame"), row.get("end_frame")
    parts = [name, row.get("split", "unsplit"), PurePosixPath(row["video_path"]).stem]
    if start is not None or end is not None:
        parts.append(f"{start or 0}-{'end' if end is None else end}")
    return ":".join([*parts, *(row[key] for key in ("person_id", "camera_id") if row.get(key))])


def _hashed_id(name: str, row: Row) -> str:
    keys = ("video_path", "stream_index", "start_frame", "end_frame", "person_id", "camera_id", "modality")
    tail = "-" + hashlib.sha256(canonical_json([row.get(key) for key in keys]).encode()).hexdigest()[:10]
    stem = str(PurePosixPath(row["video_path"]).with_suffix(""))
    head = f"{name}:{row.get('split', 'unsplit')}:{re.sub(r'[^A-Za-z0-9.@=+-]+', '_', stem)}"
    return head[: 200 - len(tail)] + tail


def _taxonomy_of(name: str, rows: Sequence[Row], names: Sequence[str]) -> Taxonomy:
    """Labels of a dataset nobody described: those declared, else those seen (names in code-point order)."""
    several = False
    by_id: dict[int, str | None] = {}
    seen: set[str] = set()
    for row in rows:
        ids, row_names = row.get("label_ids"), row.get("label_names")
        if ids is None:
            several |= row_names is not None and len(row_names) != 1
            seen.update(row_names or ())
            continue
        several |= len(ids) != 1
        for label, text in zip(ids, row_names or repeat(None)):  # noqa: B905  repeat has no end
            if label >= _MAX_CLASSES:
                raise UserError(
                    f"{place(row)}: label {label}: more than {_MAX_CLASSES} classes; check the columns"
                )
            before = by_id.setdefault(label, text)
            if text is not None and before not in (None, text):
                raise UserError(
                    f"{place(row)}: label {label} is {shown(text)!r}, before it was {shown(str(before))!r}"
                )
            by_id[label] = before if text is None else text
    if not names and by_id and seen:
        raise UserError(
            f"{name}: some rows give label numbers, others only names; give one of them everywhere"
        )
    if not names and by_id:
        names = [by_id.get(label) or f"class {label}" for label in range(max(by_id) + 1)]
    return from_labels(name, names or sorted(seen), "multi" if several else "single")


def _clip(row: Row, name: str, clip_id: str, taxonomy: Taxonomy) -> Clip:
    """The finished row. Raises ValueError with the reason when its labels are not in the taxonomy."""
    ids, names = row.get("label_ids"), row.get("label_names")
    if ids is None and names is not None:
        ids = tuple(_known(taxonomy.id_of(label), label, taxonomy) for label in names)
    coarse = label_names = None
    if ids is not None:
        ids = tuple(sorted(set(ids)))
        wrong = [label for label in ids if not 0 <= label < len(taxonomy.labels)]
        if wrong:
            last = len(taxonomy.labels) - 1
            raise ValueError(f"E_LABEL_RANGE label {wrong[0]} (want 0 to {last} of {taxonomy.label_space})")
        if names is not None and {taxonomy.id_of(text) for text in names} != set(ids):
            raise ValueError(f"E_LABEL_NAME_MISMATCH label {list(ids)} is not {shown(', '.join(names))!r}")
        if taxonomy.label_kind == "single" and len(ids) != 1:
            raise ValueError(
                f"E_LABEL_KIND {len(ids)} labels, want one ({taxonomy.label_space} is single-label)"
            )
        label_names = tuple(taxonomy.labels[label].name for label in ids)
        coarse = tuple(taxonomy.labels[label].coarse for label in ids)
    known = {
        "protocol": taxonomy.protocol,
        "license_tag": taxonomy.licence.tag,
        **row,
        "clip_id": clip_id,
        "label_ids": ids,
        "label_names": label_names,
        "coarse_ids": coarse,
        "label_space": taxonomy.label_space,
        "label_kind": taxonomy.label_kind,
    }
    return Clip(dataset=name, **known)


def _known(label: int | None, text: str, taxonomy: Taxonomy) -> int:
    if label is None:
        raise ValueError(f"unknown label {shown(text)!r} (not in {taxonomy.label_space})")
    return label
