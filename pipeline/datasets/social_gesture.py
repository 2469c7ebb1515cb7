"""Adapter `social_gesture`: gestures with the box of who makes them, in tables whose columns the options name.

How the release spells its columns is unconfirmed, so every field has a list of usual names and the import says which
column it took. Boxes are in pixels and frames of annotation frames (640x360 at 5 fps) and are brought to those of the
video (1280x720 at 30 fps). Without tables, B-MoE's lists of "path label" are read, whose rows lack boxes.
"""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath

from pipeline.clip import KeyBox, canonical_extra, shown
from pipeline.datasets._boxes import parse_track, scaled
from pipeline.datasets._source import Row, Source, frames_between, relative_path, seconds, whole
from pipeline.datasets.path_list import read_list

_USUAL = {
    "video": ("video", "video_path", "file_name", "filename", "video_name", "clip", "clip_name", "video_id"),
    "start": ("start", "start_time", "start_s", "start_frame"),
    "end": ("end", "end_time", "end_s", "end_frame"),
    "label": ("label", "gesture", "gesture_type", "class", "type"),
    "person": ("person", "person_id", "initiator", "initiator_id"),
    "initiator_bbox": ("initiator_bbox", "initiator_box", "bbox"),
    "target_bbox": ("target_bbox", "target_box"),
}


def rows(source: Source) -> Iterable[Row]:
    """Rows of the tables that are there, else of the lists."""
    tables, lists = _paths(source, "tables"), _paths(source, "lists")
    if any(path.is_file() for path in tables.values()):
        for split, path in tables.items():
            if path.is_file():
                yield from _table(source, split, path)
    elif any(path.is_file() for path in lists.values()):
        folder = relative_path(source.text(source.options["list_videos"], "list_videos"))
        for split, path in lists.items():
            if path.is_file():
                _warn_of_order(source, path)
                for row in read_list(source, path, split, f"{folder}/"):
                    role = "full_frame" if source.choice("whole_frame", (True, False)) else None
                    yield {**row, "group_id": PurePosixPath(row["video_path"]).stem, "bbox_role": role}
    else:
        names = ", ".join((*source.options["tables"].values(), *source.options["lists"].values()))
        raise source.lost(f"none of {names} here; name your tables with --set tables.train=FILE.csv")


def _paths(source: Source, option: str) -> dict[str, Path]:
    names = source.options[option].items()
    return {split: source.path(source.text(name, f"{option}.{split}")) for split, name in names}


def _table(source: Source, split: str, path: Path) -> Iterator[Row]:
    columns = _columns(source, path)
    name = source.shown_path(path)
    numbered = False
    for number, cells in source.table(path, (columns["video"], columns["label"])):
        fields = {field: cells[column] for field, column in columns.items() if column in cells}
        try:
            row = _row(source, fields)
        except ValueError as error:
            source.refuse(f"{name}:{number}", error)
            continue
        if fields["label"].isdecimal() and not numbered:
            numbered = True
            _warn_of_order(source, path)
        yield {**row, "split": split, "source_file": name, "source_line": number}


def _columns(source: Source, path: Path) -> dict[str, str]:
    """Field -> column of this table."""
    header = source.header(path)
    columns = {}
    for field, usual in _USUAL.items():
        given = source.options["columns"].get(field)
        found = given if given is not None else next((name for name in usual if name in header), None)
        if found is not None:
            columns[field] = source.text(found, f"columns.{field}")
    missing = [field for field in ("video", "label") if field not in columns]
    if missing:
        field = missing[0]
        raise source.lost(
            f"{path.name} has no column for {field} (it has {shown(', '.join(header))}); --set columns.{field}=NAME"
        )
    if any(source.options["columns"].get(field) is None for field in columns):
        took = ", ".join(f"{field} from {column}" for field, column in columns.items())
        source.warn(
            "W_COLUMNS", source.shown_path(path), f"took {took}; settle it with --set columns.FIELD=NAME"
        )
    return columns


def _row(source: Source, fields: Mapping[str, str]) -> Row:
    folder = relative_path(source.text(source.options["videos"], "videos"))
    video = relative_path(f"{folder}/{fields.get('video', '')}")
    fps = source.rate("fps")
    frames = fps / source.rate("box_fps")  # of the video per annotation frame
    start, end = _interval(source, fields, fps)
    width, height = source.pair("video_size")
    row: Row = {
        "video_path": video,
        "start_frame": start,
        "end_frame": end,
        "fps_num": fps.numerator,
        "fps_den": fps.denominator,
        "width": width,
        "height": height,
        "label_ids": (_label(source, fields.get("label", "")),),
        "person_id": fields.get("person", "initiator"),
        "group_id": PurePosixPath(video).stem,
    }
    first = (start or 0) // frames
    if source.choice("whole_frame", (True, False)):
        row["bbox_role"] = "full_frame"
    elif "initiator_bbox" in fields:
        track = _scaled(source, parse_track(fields["initiator_bbox"], first), float(frames), start or 0, end)
        row |= {"bbox_track": track, "bbox_role": "initiator"}
    if "target_bbox" in fields:
        target = _scaled(source, parse_track(fields["target_bbox"], first), float(frames), start or 0, end)
        row["aux_boxes"] = canonical_extra({"target": target})
    return row


def _interval(source: Source, fields: Mapping[str, str], fps: Fraction) -> tuple[int | None, int | None]:
    if source.choice("times", ("s", "frames")) == "frames":
        start, end = (whole(fields[key], key) if key in fields else None for key in ("start", "end"))
    else:
        times = [seconds(fields[key], key) if key in fields else None for key in ("start", "end")]
        start, end = frames_between(times[0], times[1], fps)
    if end is not None and end <= (start or 0):
        raise ValueError(f"E_END_BEFORE_START frames {start} to {end}")
    return start, end


def _scaled(
    source: Source, track: tuple[KeyBox, ...], frames: float, start: int, end: int | None
) -> tuple[KeyBox, ...]:
    (width, height), (box_width, box_height) = source.pair("video_size"), source.pair("box_size")
    return scaled(track, width / box_width, height / box_height, frames, start, end)


def _label(source: Source, text: str) -> int:
    assert source.taxonomy is not None
    label = int(text) if text.isdecimal() and len(text) < 9 else source.taxonomy.id_of_any_case(text)
    if label is None:
        raise ValueError(f"unknown label {shown(text)!r} (not in {source.taxonomy.label_space})")
    return label


def _warn_of_order(source: Source, path: Path) -> None:
    assert source.taxonomy is not None
    names = ", ".join(label.name for label in source.taxonomy.labels)
    source.warn("W_LABEL_ORDER", source.shown_path(path), f"label numbers are read as {names}: unconfirmed")
