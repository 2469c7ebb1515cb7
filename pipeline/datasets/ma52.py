"""Adapter `ma52`: the lists of MA-52 (github.com/VUT-HFUT/Micro-Action) beside the unpacked videos.

Where folders and lists may lie is data: `options` of manifests/datasets/ma52.yaml. The lists are `name label` with CRLF
line ends. Three test lists of one name are in circulation, told apart by their rows: 5586 (the original), 1138 (MAC
2025) and 0 (MAC 2024). All have the placeholder label 0: labels of a test list that holds only zeros become unknown.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.clip import shown
from pipeline.datasets._source import Row, Source, read_labels
from pipeline.datasets.path_list import read_list
from pipeline.errors import UserError
from pipeline.taxonomy import normalise_name

_TRAIN_NAME = re.compile(r"([0-9]{4})_[0-9]{2}_[0-9]{4}\.mp4")
_TEST_LISTS = {5586: "the original release", 1138: "the MAC 2025 challenge", 0: "the MAC 2024 challenge"}


def rows(source: Source) -> Iterable[Row]:
    """Rows of the lists that are there, in order. Raises UserError naming the accepted layouts."""
    options = source.options
    layout = _layout(source)
    lists = {split: _find(source, layout, name) for split, name in options["lists"].items()}
    if not any(lists.values()):
        where = "; ".join(f"{one['train']} with {one['lists']}/*.txt" for one in options["layouts"])
        names = ", ".join(options["lists"].values())
        raise source.lost(f"no list of MA-52 ({names}) found; accepted layouts under the root: {where}")
    _check_names(source, _find(source, layout, options["label_names"]))
    for split, path in lists.items():
        if path is not None:
            found = read_list(source, path, split, f"{layout[split]}/")
            yield from (
                _without_placeholders(source, list(found), path) if split == "test" else _with_subjects(found)
            )


def _layout(source: Source) -> dict[str, str]:
    """Folder of every split and of the lists: the layout with most video folders, then most lists, present.

    The first of equals. lists_dir and videos_dir replace what they name.
    """
    names = source.options["lists"]

    def present(layout: dict[str, str]) -> tuple[int, int]:
        folders = sum((source.root / layout[split]).is_dir() for split in names)
        return folders, sum((source.root / layout["lists"] / name).is_file() for name in names.values())

    layouts: list[dict[str, str]] = source.options["layouts"]
    best = max(layouts, key=present).copy()
    folders = source.options["videos_dir"]
    own = {**(folders if isinstance(folders, dict) else {}), "lists": source.options["lists_dir"]}
    best |= {key: source.text(value, "videos_dir.train") for key, value in own.items() if value is not None}
    for folder in best.values():
        source.path(folder)
    return best


def _find(source: Source, layout: Mapping[str, str], name: str) -> Path | None:
    """The file in the layout's own place for lists, else in that of any other layout."""
    places = [layout["lists"], *(other["lists"] for other in source.options["layouts"])]
    return next((path for place in places if (path := source.path(f"{place}/{name}")).is_file()), None)


def _check_names(source: Source, path: Path | None) -> None:
    """label_name.txt, where there, must name the classes we know: other names mean other ids."""
    if path is None or source.taxonomy is None:
        return
    names, labels = read_labels(path), source.taxonomy.labels
    if len(names) != len(labels):
        raise UserError(f"{path}: {len(names)} label names, want {len(labels)}; restore the file")
    for label, name in zip(labels, names, strict=True):
        if normalise_name(name).lower() != label.name:
            raise UserError(
                f"{path}: E_LABEL_NAME_MISMATCH label {label.id} is {shown(name)!r}, want {label.name!r}; "
                "restore the file, or import under another name with --as list"
            )


def _with_subjects(found: Iterable[Row]) -> Iterator[Row]:
    for row in found:
        match = _TRAIN_NAME.fullmatch(row["video_path"].rsplit("/", 1)[-1])
        row["subject_id"] = match[1] if match else None
        yield row


def _without_placeholders(source: Source, found: list[Row], path: Path) -> Iterator[Row]:
    if any(row.get("label_ids", (0,)) != (0,) for row in found):
        yield from found
        return
    which = _TEST_LISTS.get(len(found), "no release known")
    said = f"{len(found)} rows, the list of {which}; its labels are placeholders and become unknown"
    source.warn("W_LABEL_PLACEHOLDER", source.shown_path(path), said)
    for row in found:
        yield {**row, "label_ids": None, "extra": '{"placeholder_label":0}'}
