"""Adapter `kinetics`: CSV lists of Kinetics (label, youtube_id, time_start, time_end, split) and cut clips.

The clip of a row is `{youtube_id}_{start:06d}_{end:06d}.mp4`, looked for anywhere below the root; the first place found
counts. Every *.csv at the root is read. Rows without a split take the word train, val or test of the file's name, rows
without a label are unlabelled. Rows whose clip is not there give one warning, not a row each: much of Kinetics has left
YouTube.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.clip import shown
from pipeline.datasets._source import SPLITS, VIDEO_SUFFIXES, Row, Source, split_of, whole

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

OPTIONS: dict[str, object] = {}


def rows(source: Source) -> Iterable[Row]:
    """Rows of all lists in file and line order."""
    tables = source.listed(".", ".csv")
    if not tables:
        raise source.lost("no *.csv at its top")
    places = {PurePosixPath(path).stem: path for path in sorted(source.files(*VIDEO_SUFFIXES), reverse=True)}
    for path in tables:
        name, gone = source.shown_path(path), 0
        for number, cells in source.table(path, ("youtube_id", "time_start", "time_end")):
            try:
                stem, split = _stem(cells), _split(cells, path.stem)
            except ValueError as error:
                source.refuse(f"{name}:{number}", error)
                continue
            if stem not in places:
                gone += 1
                continue
            yield {
                "video_path": places[stem],
                "split": split,
                "label_names": (cells["label"],) if "label" in cells else None,
                "group_id": cells["youtube_id"],
                "source_file": name,
                "source_line": number,
            }
        if gone:
            source.warn(
                "W_MISSING_CLIPS", name, f"{gone} of its clips are not below the root and give no row"
            )


def _stem(cells: dict[str, str]) -> str:
    video = cells.get("youtube_id", "")
    if not _ID.fullmatch(video):
        raise ValueError(f"youtube_id {shown(video)!r}, want letters, digits, - and _")
    start, end = (whole(cells.get(key, ""), key) for key in ("time_start", "time_end"))
    return f"{video}_{start:06d}_{end:06d}"


def _split(cells: dict[str, str], file: str) -> str:
    if "split" not in cells:
        return split_of(file)
    if cells["split"].lower() not in SPLITS:
        raise ValueError(f"E_SPLIT_UNKNOWN {shown(cells['split'])!r} (want train, val or test)")
    return SPLITS[cells["split"].lower()]
