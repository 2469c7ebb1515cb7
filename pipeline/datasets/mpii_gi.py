"""Adapter `mpii_gi`: annotated intervals of MPII GroupInteraction, one row per interval and view.

The JSON maps `recordingNN_subjectPosM.video` to {subset, duration, annotations: [{label, segment: [start, end]}]}, in
seconds. Labels are read by name: the files of 12, 13 and 15 classes number them differently. Durations in the public
file are wrong, so they only go into `extra`, for `validate --deep` to compare. Where B-MoE's lists of "path label"
exist, they are read instead.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from pipeline.clip import canonical_extra, shown
from pipeline.datasets._source import Row, Source, frames_between, is_time, read_json, relative_path
from pipeline.datasets.path_list import read_list
from pipeline.errors import UserError

_KEY = re.compile(r"(recording[0-9]{2})_(subjectPos[0-9])(?:\.video)?")


def rows(source: Source) -> Iterable[Row]:
    """Rows of the lists, where they are, else of the interval JSON."""
    lists = [(split, one, source.path(one["file"])) for split, one in source.options["lists"].items()]
    if any(path.is_file() for _, _, path in lists):
        for split, one, path in lists:
            if path.is_file():
                for row in read_list(source, path, split, f"{one['videos']}/"):
                    yield {**row, "bbox_role": "full_frame"}
        return
    yield from _intervals(source)


def _intervals(source: Source) -> Iterator[Row]:
    name, videos = _annotations(source)
    fps = source.rate("fps")
    found: dict[str, int] = {}
    for key, video in videos.items():
        match = _KEY.fullmatch(key)
        subset = video.get("subset") if isinstance(video, dict) else None
        split = source.options["subsets"].get(subset) if isinstance(subset, str) else None
        if not match or split is None or not isinstance(video.get("annotations"), list):
            source.refuse(f"{name}: {key}", "want recordingNN_subjectPosM.video with subset and annotations")
            continue
        recording, subject = match.groups()
        views = _views(source, recording, subject)
        for view, path in views.items():
            found[view] = found.get(view, 0) + (source.root / path).is_file()
        extra = canonical_extra(
            {"declared_duration_s": video["duration"]} if is_time(video.get("duration")) else {}
        )
        person = f"{recording}_{subject.replace('subjectPos', 'pos')}"
        shared = {
            "split": split,
            "subject_id": person,
            "person_id": person,
            "bbox_role": "full_frame",
            "source_file": name,
            "fps_num": fps.numerator,
            "fps_den": fps.denominator,
            "extra": extra,
        }
        for interval in _read(source, f"{name}: {key}", video["annotations"], fps):
            group = f"{person}:{interval['start_frame']}-{interval['end_frame']}"
            for view, path in views.items():
                if view == "frontal" or (source.root / path).is_file():
                    yield {"video_path": path, **shared, **interval, "group_id": group, "camera_id": view}
    for view, count in found.items():
        if view != "frontal" and count < len(videos):
            said = f"{count} of {len(videos)} videos of the {view} view are there; the others give no row"
            source.warn("W_PROFILE_COUNT", name, said)


def _annotations(source: Source) -> tuple[str, dict[str, Any]]:
    """Name of the JSON and what it says of every video."""
    given = source.options["annotations"]
    paths = [source.path(source.text(given, "annotations"))] if given else source.listed(".", ".json")
    if len(paths) != 1 or not paths[0].is_file():
        names = ", ".join(shown(path.name) for path in paths[:5]) or "none"
        raise source.lost(
            f"want one *.json with intervals, or B-MoE's lists (found: {names}); --set annotations=FILE"
        )
    data = read_json(paths[0])
    videos = data.get("database", data)
    if not isinstance(videos, dict):
        raise UserError(f"{paths[0]}: want a JSON object of videos; restore the file")
    return source.shown_path(paths[0]), videos


def _views(source: Source, recording: str, subject: str) -> dict[str, str]:
    """View -> relative path of its video."""
    paths = {}
    for view, pattern in source.options["views"].items():
        text = (
            source.text(pattern, f"views.{view}")
            .replace("{recording}", recording)
            .replace("{subject}", subject)
        )
        try:
            paths[view] = relative_path(text)
        except ValueError as error:
            raise UserError(f"option views.{view}: {error}") from None
    return paths


def _read(source: Source, where: str, annotations: list[Any], fps: Fraction) -> Iterator[Row]:
    """Start, end and label of every interval; one that is there twice is taken once."""
    assert source.taxonomy is not None
    seen = set()
    for number, one in enumerate(annotations, 1):
        segment = one.get("segment") if isinstance(one, dict) else None
        name = one.get("label") if isinstance(one, dict) else None
        label = source.taxonomy.id_of_any_case(name) if isinstance(name, str) else None
        if label is None:
            source.refuse(f"{where} annotation {number}", f"unknown label {shown(str(name))!r}")
            continue
        if not isinstance(segment, list) or len(segment) != 2 or not all(is_time(time) for time in segment):
            source.refuse(
                f"{where} annotation {number}", f"segment {shown(str(segment))[:40]}, want [start, end]"
            )
            continue
        start, end = frames_between(segment[0], segment[1], fps)
        if start is None or end is None or end <= start:
            source.refuse(f"{where} annotation {number}", f"E_END_BEFORE_START segment {segment} s")
            continue
        if (start, end, label) in seen:
            source.warn(
                "W_DUP_ROW", where, f"{name} from frame {start} to {end} is annotated twice; taken once"
            )
            continue
        seen.add((start, end, label))
        yield {"start_frame": start, "end_frame": end, "label_ids": (label,)}
