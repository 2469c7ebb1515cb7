"""Adapter `folder`: every video below the root, labels from class folders.

The rule, for any tree: a path is `[<split>/]<class>/<file>` when its first folder is (or is not) named train, val or
test (also training, valid, validation, validate, testing) and exactly one class folder remains. When EVERY video has
that form the class folders are the labels, numbered in code-point order or as in `labels.txt` at the root. When one
has not (files at the top, folders within folders), no video is labelled; where others have, a warning names it. The
split is taken from the first folder either way.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.datasets._source import SPLITS, VIDEO_SUFFIXES, Row, Source

OPTIONS: dict[str, object] = {}


def rows(source: Source) -> Iterable[Row]:
    """Rows sorted by path."""
    paths = sorted(source.files(*VIDEO_SUFFIXES))
    parts = [_parts(path) for path in paths]
    stray = [path for path, (_, class_name) in zip(paths, parts, strict=True) if class_name is None]
    labelled = not stray
    if 0 < len(stray) < len(paths):
        text = (
            f"the first of {len(stray)} videos that are not in [split/]class/, so that none of all {len(paths)} is "
            "labelled; move them into class folders, or out of the root, and import again"
        )
        source.warn("W_NO_LABELS", stray[0], text)
    for path, (split, class_name) in zip(paths, parts, strict=True):
        yield {"video_path": path, "split": split, "label_names": (class_name,) if labelled else None}


def _parts(path: str) -> tuple[str, str | None]:
    """(split, class folder or None when the path is not [split/]class/file)."""
    folders = PurePosixPath(path).parts[:-1]
    split = SPLITS.get(folders[0].lower()) if folders else None
    if split:
        folders = folders[1:]
    return split or "unsplit", folders[0] if len(folders) == 1 else None
