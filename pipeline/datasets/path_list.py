"""Adapter `list`: text files with one clip a line, as mmaction2, PyTorchVideo and SlowFast use them.

    path | path label | path nframes label | path offset nframes label

Fields are separated by TAB, else comma, else blanks, and numbers are split off from the right, so a path may hold
blanks and commas. Paths are relative to the root; UTF-8 with or without BOM, LF or CRLF; blank lines and lines that
begin with '#' are skipped. Labels are 0-based; -1 means unknown. A file is read when it lies at the root and is
`*list*.txt`; without such a file, every `*.txt` except readme, licence and label files. The split is the word train,
val or test in its name. Names of the labels come from `label_name.txt` or `labels.txt` at the root.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.clip import shown
from pipeline.datasets._source import LABEL_FILES, VIDEO_SUFFIXES, Row, Source, relative_path, split_of
from pipeline.errors import UserError

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_NOT_LISTS = re.compile(r"(readme|licen[cs]e|notice|requirements).*", re.IGNORECASE)
# The form of nearly every line, at a fifth of the cost of the general rule; both give the same.
_USUAL = re.compile(r"([^\s,#][^\s,]*\.(?:mp4|avi|mkv|mov|webm)) ([0-9]{1,6})")

OPTIONS: dict[str, object] = {}


def rows(source: Source) -> Iterable[Row]:
    """Rows of all lists in file and line order. Raises UserError where there is no list."""
    texts = source.listed(".", ".txt")
    texts = [path for path in texts if path.name not in LABEL_FILES and not _NOT_LISTS.fullmatch(path.name)]
    lists = [path for path in texts if "list" in path.stem.lower()] or texts
    if not lists:
        raise UserError(
            f"{source.root}: no list of clips (*.txt) here; put one beside the videos or choose another --as"
        )
    for path in lists:
        yield from read_list(source, path, split_of(path.stem))


def read_list(source: Source, path: Path, split: str, prefix: str = "") -> Iterator[Row]:
    """Rows of one list; `prefix` is put before every path. Lines that are none are refused at the source."""
    name = source.shown_path(path)
    labels: dict[str, tuple[int, ...]] = {}  # equal labels are one object: a million rows share a few tuples
    for number, line in source.lines(path):
        if line.startswith("#"):
            continue
        usual = _USUAL.fullmatch(line)
        try:
            if usual:
                text = usual[2]
                row: Row = {
                    "video_path": prefix + relative_path(usual[1]),
                    "label_ids": labels.get(text) or labels.setdefault(text, (int(text),)),
                }
            else:
                row = parse_line(line, prefix)
        except ValueError as error:
            source.refuse(f"{name}:{number}", error)
            continue
        row["split"] = split
        row["source_file"] = name
        row["source_line"] = number
        yield row


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
