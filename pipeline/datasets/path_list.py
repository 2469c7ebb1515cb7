"""Adapter `list`: text files with one clip a line, as mmaction2, PyTorchVideo and SlowFast use them.

    path | path label | path nframes label | path offset nframes label

Fields are separated by TAB, else comma, else blanks, and numbers are split off from the right, so a path
may hold blanks and commas. Paths are relative to the root; UTF-8 with or without BOM, LF or CRLF; blank
lines and lines that begin with '#' are skipped. Labels are 0-based; -1 means unknown. A file is read when
it lies at the root and is `*list*.txt`; without such a file, every `*.txt` except readme, licence and label
files. The split is the word train, val or test in its name. Names of the labels come from `label_name.txt`
or `labels.txt` at the root.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets import VIDEO_SUFFIXES, Row, bad_lines, read_labels, read_text, relative_path, split_of
from pipeline.errors import UserError
from pipeline.manifest import shown
from pipeline.taxonomy import Taxonomy

LABEL_FILES = ("label_name.txt", "labels.txt")
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_NOT_LISTS = re.compile(r"(readme|licen[cs]e|notice|requirements).*", re.IGNORECASE)


def rows(root: Path, taxonomy: Taxonomy | None) -> tuple[list[Row], Sequence[str]]:
    """Rows of all lists in file and line order, and the label names. Raises UserError naming bad lines."""
    texts = sorted(
        path
        for path in root.iterdir()
        if path.suffix.lower() == ".txt" and path.is_file() and not path.name.startswith(".")
    )
    texts = [path for path in texts if path.name not in LABEL_FILES and not _NOT_LISTS.fullmatch(path.name)]
    lists = [path for path in texts if "list" in path.stem.lower()] or texts
    if not lists:
        raise UserError(
            f"{root}: no list of clips (*.txt) here; put one beside the videos or choose another --as"
        )
    found: list[Row] = []
    bad: list[str] = []
    for path in lists:
        more, wrong = read_list(path, path.name, split_of(path.stem))
        found += more
        bad += wrong
    if bad:
        raise bad_lines(bad, "every line is: path [[offset] nframes] label")
    labels = next((root / name for name in LABEL_FILES if (root / name).is_file()), None)
    return found, read_labels(labels) if labels else ()


def read_list(path: Path, name: str, split: str, prefix: str = "") -> tuple[list[Row], list[str]]:
    """(rows, problems as 'name:line: text') of one list; `prefix` is put before every path."""
    found: list[Row] = []
    bad: list[str] = []
    for number, line in enumerate(read_text(path), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            row = parse_line(line, prefix)
        except ValueError as error:
            bad.append(f"{shown(name)}:{number}: {error}")
        else:
            found.append({**row, "split": split, "source_file": name, "source_line": number})
    return found, bad


def parse_line(line: str, prefix: str = "") -> Row:
    """One line as a row (video_path and, where stated, label_ids, n_frames, start_frame, end_frame).

    Raises ValueError with the reason.
    """
    line = line.strip()
    head, numbers = line, list[int]()
    for separator in ("\t", ",", None):
        head, numbers = _peel(line, separator)
        if numbers:
            break
    if not numbers and not _is_video(line):
        raise ValueError(
            f"no label (a whole number) at the end of {shown(line)[:80]!r}, and no video file name either"
        )
    if len(numbers) > 3:
        raise ValueError(
            f"{len(numbers)} or more numbers after the path, want at most offset, nframes and label"
        )
    row: Row = {"video_path": prefix + relative_path(head)}
    if not numbers:
        return row
    *frames, label = numbers
    if label < -1:
        raise ValueError(f"label {label}, want 0 or more (-1 for unknown)")
    if frames and frames[-1] < 1:
        raise ValueError(f"{frames[-1]} frames, want 1 or more")
    if len(frames) == 2:
        if frames[0] < 0:
            raise ValueError(f"offset {frames[0]}, want 0 or more")
        row |= {"start_frame": frames[0], "end_frame": frames[0] + frames[1]}
    elif frames:
        row["n_frames"] = frames[0]
    if label >= 0:
        row["label_ids"] = (label,)
    return row


def _peel(line: str, separator: str | None) -> tuple[str, list[int]]:
    """Numbers taken from the right end until what is left is a video file name, or no number is left."""
    head, numbers = line, list[int]()
    while len(numbers) < 4 and not _is_video(head):
        parts = head.rsplit(separator, 1)
        if len(parts) < 2 or not parts[0].strip() or not _NUMBER.fullmatch(parts[1].strip()):
            break
        head = parts[0].strip()
        numbers.insert(0, int(parts[1]))
    return head, numbers


def _is_video(text: str) -> bool:
    return text.lower().endswith(VIDEO_SUFFIXES)
