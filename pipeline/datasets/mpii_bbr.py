"""Adapter `mpii_bbr`: sample lists and cut clips of the MultiMediate bodily behaviour challenge.

A row of sample_lists/*.csv is a window of 64 frames with one column per behaviour, 1 where it is there; the columns are
matched by name, whatever their order and capitals. The clip files hold just that window, so a row is a whole file and
the times of the recording (milliseconds) go into `extra`. A list without the columns gives unknown labels.
"""

from collections.abc import Iterable, Iterator

from pipeline.clip import canonical_extra, shown
from pipeline.datasets._source import Row, Source, seconds, split_of, whole
from pipeline.errors import UserError

_SUFFIXES = {"frontal": "", "left": "1", "right": "2"}  # of NNNNN-video.mp4
_MEMBERS = ("sample_id", "rec_no", "subject_pos", "start_time")
_FPS = 30


def rows(source: Source) -> Iterable[Row]:
    """Rows of every list, one per sample and wanted view."""
    lists = source.listed("sample_lists", ".csv")
    known = [(path, split_of(path.stem)) for path in lists if split_of(path.stem) != "unsplit"]
    if not known:
        raise source.lost("no sample_lists/train*.csv or val*.csv here")
    views = source.options["views"]
    if not views or not set(views) <= set(_SUFFIXES):
        raise UserError(
            f"option views is {views}, want some of {', '.join(_SUFFIXES)}: --set views=[frontal, left]"
        )
    for path, split in known:
        folder = _folder(source, split)
        for number, cells in source.table(path, _MEMBERS):
            name = source.shown_path(path)
            try:
                row = _row(source, {column.lower(): cell for column, cell in cells.items()})
                sample = whole(cells["sample_id"], "sample_id")
            except (KeyError, ValueError) as error:
                source.refuse(
                    f"{name}:{number}", f"{error.args[0]} is empty" if isinstance(error, KeyError) else error
                )
                continue
            for view in views:
                video = f"{folder}/{sample:05d}-video{_SUFFIXES[view]}.mp4"
                yield {
                    "video_path": video,
                    **row,
                    "clip_id": f"{source.name}:{split}:{sample:05d}:{view}",
                    "camera_id": view,
                    "split": split,
                    "source_file": name,
                    "source_line": number,
                }


def _folder(source: Source, split: str) -> str:
    """The folder of a split's clips; unpacking may have nested it twice."""
    name = f"clips_{split}"
    nested = source.path(f"{name}/{name}")
    return f"{name}/{name}" if nested.is_dir() else name


def _row(source: Source, cells: dict[str, str]) -> Row:
    recording = f"rec{whole(cells['rec_no'], 'rec_no'):02d}"
    person = f"{recording}_pos{whole(cells['subject_pos'], 'subject_pos')}"
    start = seconds(cells["start_time"], "start_time")
    times = {"start_ms": start} | (
        {"end_ms": seconds(cells["end_time"], "end_time")} if "end_time" in cells else {}
    )
    return {
        "label_ids": tuple(_labels(source, cells)) if _labelled(source, cells) else None,
        "subject_id": person,
        "person_id": person,
        "group_id": f"{recording}:{round(start)}",  # the persons and views of one moment
        "bbox_role": "full_frame",
        "fps_num": _FPS,
        "fps_den": 1,
        "extra": canonical_extra(times),
    }


def _labelled(source: Source, cells: dict[str, str]) -> bool:
    assert source.taxonomy is not None
    missing = [label.name for label in source.taxonomy.labels if label.name.lower() not in cells]
    if missing and len(missing) < len(source.taxonomy.labels):
        raise ValueError(f"no cell for {', '.join(missing)}")
    return not missing


def _labels(source: Source, cells: dict[str, str]) -> Iterator[int]:
    assert source.taxonomy is not None
    for label in source.taxonomy.labels:
        cell = cells[label.name.lower()]
        if cell not in ("0", "1", "0.0", "1.0"):
            raise ValueError(f"{label.name} is {shown(cell)[:20]!r}, want 0 or 1")
        if cell.startswith("1"):
            yield label.id
