"""Adapter `csv`: one clip a row, RFC 4180, header required, decimal point, UTF-8 with or without BOM.

Column `video_path` or `skeleton_path` (relative to the root) is required. Known otherwise: clip_id, split (train, val,
test, unsplit), label (name) or label_id, labels (several: names split by ';', or a JSON list of names or ids; `[]` =
none of the classes), start_frame, end_frame, start_s, end_s, fps (30, 29.97 or 30000/1001), n_frames, stream_index,
modality, protocol, subject_id, group_id, camera_id, person_id, bbox (`[x1, y1, x2, y2]` in pixels of the video for
the whole clip, or key boxes `[[frame, x1, y1, x2, y2], ...]`), bbox_role, skeleton_format. Every other column goes into
`extra` as text. An empty cell is unknown, and so is label_id -1. Seconds need fps and become the frames they touch;
where frames are given too they must agree within one frame. The file is option `file`, else the only *.csv at the root.
"""

import json
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.clip import CLIP_ID, canonical_extra, shown
from pipeline.datasets._boxes import parse_track
from pipeline.datasets._source import SPLITS, Row, Source, frames_between, relative_path, seconds, whole
from pipeline.errors import UserError

OPTIONS = {"file": None}

PATHS = ("video_path", "skeleton_path")
TEXTS = (
    "modality", "protocol", "subject_id", "group_id", "camera_id", "person_id", "bbox_role", "skeleton_format",
)  # fmt: skip
INTEGERS = ("start_frame", "end_frame", "n_frames", "stream_index")
OTHERS = frozenset(("label", "label_id", "labels", "start_s", "end_s", "fps", "bbox"))

_FPS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6})?|[0-9]{1,9}/[0-9]{1,9}")


def rows(source: Source) -> Iterable[Row]:
    """Rows in file order; lines that are none are refused at the source."""
    path = _table(source)
    name = source.shown_path(path)
    for number, cells in source.table(path, ["video_path|skeleton_path"]):
        try:
            row = _row(cells)
        except (ValueError, RecursionError) as error:
            source.refuse(f"{name}:{number}", error)
        else:
            row["source_file"] = name
            row["source_line"] = number
            yield row


def _table(source: Source) -> Path:
    declared = source.options.get("file")
    if declared is not None:
        path = source.path(source.text(declared, "file"))
        if not path.is_file():
            raise UserError(f"{path}: no such table; check --root")
        return path
    tables = source.listed(".", ".csv")
    if len(tables) != 1:
        names = ", ".join(shown(path.name) for path in tables[:5]) or "none"
        raise UserError(
            f"{source.root}: want one *.csv at the root, found {len(tables)} ({names}); leave only one there or "
            "name it with --set file=NAME.csv"
        )
    return tables[0]


def _row(cells: dict[str, str]) -> Row:
    row: Row = {}
    extra = {}
    for name, cell in cells.items():
        convert = _CONVERT.get(name)
        if convert:
            row[name] = convert(cell, name)
        elif name not in OTHERS:
            extra[name] = cell
    if "video_path" not in row and "skeleton_path" not in row:
        raise ValueError("E_NO_MEDIA neither video_path nor skeleton_path")
    row |= _times(cells, row)
    row |= _labels(cells)
    if "bbox" in cells:
        row["bbox_track"] = parse_track(cells["bbox"], row.get("start_frame", 0))
    if extra:
        row["extra"] = canonical_extra(extra)
    return row


def _clip_id(cell: str, _: str) -> str:
    if not CLIP_ID.fullmatch(cell):
        raise ValueError(f"clip_id {shown(cell)!r}, want 1 to 200 of A-Z a-z 0-9 . _ : @ = + -")
    return cell


def _split(cell: str, _: str) -> str:
    split = cell.lower()
    if split != "unsplit" and split not in SPLITS:
        raise ValueError(f"E_SPLIT_UNKNOWN {shown(split)!r} (want train, val, test or unsplit)")
    return SPLITS.get(split, "unsplit")


_CONVERT: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(PATHS, lambda cell, _: relative_path(cell)),
    **dict.fromkeys(TEXTS, lambda cell, _: cell),
    **dict.fromkeys(INTEGERS, whole),
    "clip_id": _clip_id,
    "split": _split,
}


def _times(cells: dict[str, str], row: Row) -> Row:
    """fps_num, fps_den, start_s, end_s and the frames they give; checks the order and any disagreement."""
    times: Row = {}
    fps = None
    if "fps" in cells:
        if (
            not _FPS.fullmatch(cells["fps"])
            or cells["fps"].endswith("/0")
            or not (fps := Fraction(cells["fps"]))
        ):
            raise ValueError(f"fps {shown(cells['fps'])!r}, want a rate such as 30, 29.97 or 30000/1001")
        times |= {"fps_num": fps.numerator, "fps_den": fps.denominator}
    for seconds_name, frame_name in (("start_s", "start_frame"), ("end_s", "end_frame")):
        if seconds_name not in cells:
            continue
        times[seconds_name] = at = seconds(cells[seconds_name], seconds_name)
        frame = row.get(frame_name)
        if fps is None and frame is None:
            raise ValueError(f"{seconds_name} without fps: add a column fps or give {frame_name}")
        if fps is not None and frame is not None and abs(at * fps - frame) > 1:
            raise ValueError(
                f"E_TIME_CONFLICT {seconds_name} {at:g} s at {float(fps):g} fps is frame "
                f"{at * fps:.1f} (got {frame_name} {frame}, want within 1)"
            )
    if fps is not None:
        touched = frames_between(times.get("start_s"), times.get("end_s"), fps)
        for frame_name, frame in zip(("start_frame", "end_frame"), touched, strict=True):
            if frame is not None and frame_name not in row:
                times[frame_name] = frame
    end = times.get("end_frame", row.get("end_frame"))
    start = times.get("start_frame", row.get("start_frame", 0))
    if end is not None and end <= start:
        raise ValueError(
            f"E_END_BEFORE_START frames {start} to {end} (the end is the first frame not in the clip)"
        )
    return times


def _labels(cells: dict[str, str]) -> Row:
    if "labels" in cells:
        if "label" in cells or "label_id" in cells:
            raise ValueError("labels and label (or label_id) are both given, want one of them")
        return _several(cells["labels"])
    row: Row = {}
    if "label_id" in cells:
        label = whole(cells["label_id"], "label_id", -1)
        if label < 0:
            return row
        row["label_ids"] = (label,)
    if "label" in cells:
        row["label_names"] = (cells["label"],)
    return row


def _several(text: str) -> Row:
    if not text.startswith("["):
        return {"label_names": tuple(name.strip() for name in text.split(";") if name.strip())}
    values = json.loads(text)
    if all(type(value) is int and 0 <= value < 2**31 for value in values):
        return {"label_ids": tuple(sorted(set(values)))}
    if all(isinstance(value, str) for value in values):
        return {"label_names": tuple(values)}
    raise ValueError(f"labels {shown(text)[:60]!r}, want a list of names or of ids")
