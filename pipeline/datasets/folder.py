"""Adapter `folder`: every video below the root, labels from class folders.

The rule, for any tree: a path is `[<split>/]<class>/<file>` when its first folder is (or is not) named
train, val or test (also training, valid, validation, testing) and exactly one class folder remains. When
EVERY video has that form the class folders are the labels, numbered in code-point order or as in
`labels.txt` at the root. When one has not (files at the top, folders within folders), no video is labelled.
The split is taken from the first folder either way. Hidden files and folders are skipped; links to files
inside the root count as files, links to folders inside the root are not followed (their videos are found
where they are); a link that leaves the root is refused.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipeline.datasets import SPLITS, VIDEO_SUFFIXES, Row, read_labels
from pipeline.errors import UserError
from pipeline.manifest import shown
from pipeline.taxonomy import Taxonomy


def rows(root: Path, taxonomy: Taxonomy | None) -> tuple[list[Row], Sequence[str]]:
    """Rows sorted by path, and the class names in id order (empty when unlabelled). Raises UserError."""
    paths = sorted(_videos(root))
    parts = [_parts(path) for path in paths]
    labelled = all(class_name is not None for _, class_name in parts)
    found: list[Row] = [
        {"video_path": path, "split": split, "label_names": (class_name,) if labelled else None}
        for path, (split, class_name) in zip(paths, parts, strict=True)
    ]
    labels = root / "labels.txt"
    return found, read_labels(labels) if labelled and labels.is_file() else ()


def _parts(path: str) -> tuple[str, str | None]:
    """(split, class folder or None when the path is not [split/]class/file)."""
    folders = PurePosixPath(path).parts[:-1]
    split = SPLITS.get(folders[0].lower()) if folders else None
    if split:
        folders = folders[1:]
    return split or "unsplit", folders[0] if len(folders) == 1 else None


def _videos(root: Path) -> Iterator[str]:
    """Relative POSIX paths, in no particular order."""
    real_root = os.path.realpath(root)
    stack = [""]
    while stack:
        folder = stack.pop()
        with os.scandir(os.path.join(real_root, folder)) as entries:  # noqa: PTH118  Path costs 5 times the walk
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                video = entry.name.lower().endswith(VIDEO_SUFFIXES)
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink() and (video or entry.is_dir()):
                    _refuse_outside(path, entry.path, real_root)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(path)
                elif video and (entry.is_file() or (entry.is_symlink() and not entry.is_dir())):
                    _refuse_odd(path, root)
                    yield path


def _refuse_outside(path: str, link: str, real_root: str) -> None:
    if os.path.commonpath((os.path.realpath(link), real_root)) != real_root:
        raise UserError(
            f"{shown(path)}: E_PATH_ESCAPE this link leads outside {real_root}; copy the files in"
        )


def _refuse_odd(path: str, root: Path) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{root}: the file name {shown(path)} is not UTF-8; rename it") from None
    if "\\" in path:
        raise UserError(f"{root}: the file name {shown(path)} holds a backslash; rename it")
