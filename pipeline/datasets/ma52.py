"""Adapter `ma52`: the lists of MA-52 (github.com/VUT-HFUT/Micro-Action) beside the unpacked videos.

Where folders and lists may lie is data: `options` of manifests/datasets/ma52.yaml. The lists are `name
label` with CRLF line ends. Three test lists of one name are in circulation (5586, 1138 or 0 rows), all with
the placeholder label 0: labels of a test list that holds only zeros become unknown. No video is
looked at: 22,422 rows take about a second.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.datasets import Row, bad_lines, read_labels, relative_path
from pipeline.datasets.path_list import read_list
from pipeline.errors import UserError
from pipeline.manifest import canonical_extra, shown
from pipeline.taxonomy import Taxonomy, load_taxonomy, normalise_name

_TRAIN_NAME = re.compile(r"([0-9]{4})_[0-9]{2}_[0-9]{4}\.mp4")


def rows(root: Path, taxonomy: Taxonomy | None) -> tuple[list[Row], Sequence[str]]:
    """Rows of the lists that are there, in order. UserError names bad lines or the accepted layouts."""
    if taxonomy is None or "layouts" not in taxonomy.options:
        taxonomy = load_taxonomy("ma52") or taxonomy
    if taxonomy is None:
        raise UserError("manifests/datasets/ma52.yaml is missing; install bmoe-cache again")
    options = taxonomy.options
    layout = _layout(root, options)
    lists = {split: _find(root, layout, options, name) for split, name in options["lists"].items()}
    if not any(lists.values()):
        where = "; ".join(f"{one['train']} with {one['lists']}/*.txt" for one in options["layouts"])
        names = ", ".join(options["lists"].values())
        raise UserError(f"{root}: no list of MA-52 ({names}) found; accepted layouts under the root: {where}")
    _check_names(_find(root, layout, options, options["label_names"]), taxonomy)
    found: list[Row] = []
    bad: list[str] = []
    for split, path in lists.items():
        if path is None:
            continue
        more, wrong = read_list(path, path.relative_to(root).as_posix(), split, f"{layout[split]}/")
        bad += wrong
        if split == "test" and all(row.get("label_ids", (0,)) == (0,) for row in more):
            more = [_without_label(row) for row in more]
        found += [_with_subject(row) for row in more]
    if bad:
        raise bad_lines(bad, "restore the lists of the release")
    return found, ()


def _layout(root: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """The layout with most video folders, then most lists, present; the first of equals."""

    def present(layout: dict[str, str]) -> tuple[int, int]:
        folders = sum((root / layout[split]).is_dir() for split in options["lists"])
        return folders, sum((root / layout["lists"] / name).is_file() for name in options["lists"].values())

    layouts: list[dict[str, str]] = options["layouts"]
    best = max(layouts, key=present)
    for split in options["lists"]:
        folder = root / relative_path(best[split])
        if folder.exists() and not folder.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{folder}: E_PATH_ESCAPE this link leads outside {root}; move the videos there or "
                "give a --root that holds both lists and videos"
            )
    return best


def _find(root: Path, layout: Mapping[str, str], options: Mapping[str, Any], name: str) -> Path | None:
    """The file in the layout's own place for lists, else in that of any other layout."""
    places = [layout["lists"], *(other["lists"] for other in options["layouts"])]
    return next((root / place / name for place in places if (root / place / name).is_file()), None)


def _check_names(path: Path | None, taxonomy: Taxonomy) -> None:
    """label_name.txt, where there, must name the classes we know: other names mean other ids."""
    if path is None:
        return
    names = read_labels(path)
    if len(names) != len(taxonomy.labels):
        raise UserError(f"{path}: {len(names)} label names, want {len(taxonomy.labels)}; restore the file")
    for label, name in zip(taxonomy.labels, names, strict=True):
        if normalise_name(name).lower() != label.name:
            raise UserError(
                f"{path}: E_LABEL_NAME_MISMATCH label {label.id} is {shown(name)!r}, want {label.name!r}; "
                "restore the file, or import under another name with --as list"
            )


def _without_label(row: Row) -> Row:
    row = dict(row)
    label = row.pop("label_ids", None)
    return row | {"extra": canonical_extra({"placeholder_label": label[0]})} if label else row


def _with_subject(row: Row) -> Row:
    match = _TRAIN_NAME.fullmatch(row["video_path"].rsplit("/", 1)[-1])
    return row | {"subject_id": match[1]} if match and row["split"] != "test" else row
