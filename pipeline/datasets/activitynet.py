"""Adapter `activitynet`: JSON with the segments of every video, as ActivityNet and THUMOS loaders read it.

    {"database": {"VIDEO": {"subset": "training", "annotations": [{"label": "x", "segment": [1.5, 4.0]}]}}}

or the same without "database". Segments are seconds, so option `fps` must say how many frames the videos have a second.
A video VIDEO is looked for anywhere below the root. A video without annotations gives one unlabelled row.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

from pipeline.clip import shown
from pipeline.datasets._source import (
    SPLITS,
    VIDEO_SUFFIXES,
    Row,
    Source,
    frames_between,
    is_time,
    read_json,
    relative_path,
)

OPTIONS = {"file": None, "fps": None}


def rows(source: Source) -> Iterable[Row]:
    """Rows by video and segment, in the order of the file."""
    given = source.options["file"]
    files = [source.path(source.text(given, "file"))] if given else source.listed(".", ".json")
    if len(files) != 1 or not files[0].is_file():
        raise source.lost(
            f"want one *.json at its top, found {len(files)}; name it with --set file=NAME.json"
        )
    data = read_json(files[0])
    videos = data.get("database", data)
    name, fps = source.shown_path(files[0]), source.rate("fps")
    places = {PurePosixPath(path).stem: path for path in sorted(source.files(*VIDEO_SUFFIXES), reverse=True)}
    for video, facts in videos.items() if isinstance(videos, dict) else ():
        if not isinstance(facts, dict):
            source.refuse(f"{name}: {video}", "want an object with subset and annotations")
            continue
        try:
            path = places.get(video) or relative_path(f"{video}.mp4")  # validate names what is missing
            subset = str(facts.get("subset", "unsplit")).lower()
            shared = {
                "video_path": path,
                "split": SPLITS.get(subset, "unsplit"),
                "group_id": video,
                "source_file": name,
                "fps_num": fps.numerator,
                "fps_den": fps.denominator,
            }
            found = list(_segments(facts.get("annotations", []), fps))
        except ValueError as error:
            source.refuse(f"{name}: {video}", error)
            continue
        for segment in found or [{}]:
            yield {**shared, **segment}


def _segments(annotations: Any, fps: Fraction) -> Iterator[Row]:
    if not isinstance(annotations, list):
        raise ValueError("annotations must be a list")  # noqa: TRY004  one error for all that is wrong with a file
    for one in annotations:
        label, segment = (one.get("label"), one.get("segment")) if isinstance(one, dict) else (None, None)
        times = segment if isinstance(segment, list) and len(segment) == 2 else [None, None]
        if not isinstance(label, str) or not all(is_time(time) for time in times):
            raise ValueError(f"annotation {shown(str(one))[:60]}, want a label and [start, end]")
        start, end = frames_between(times[0], times[1], fps)
        if start is None or end is None or end <= start:
            raise ValueError(f"E_END_BEFORE_START segment {times} s")
        yield {"start_frame": start, "end_frame": end, "label_names": (label,)}
