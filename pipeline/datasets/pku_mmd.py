"""Adapter `pku_mmd`: PKU-MMD phase 1, every annotated instance of a recording and view is a clip.

A recording `0002-L` has a label file (lines label, start, end, confidence), and a video or a skeleton file (150 numbers
a line), or both, anywhere below the root. Label and skeleton files may both end in .txt; the first line tells them
apart. The split file has the names of the training recordings in its second line and of the others in its fourth.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pipeline.datasets._source import VIDEO_SUFFIXES, Row, Source
from pipeline.errors import UserError

_NAME = re.compile(r"([0-9]{4})-([LMR])")
_FPS = 30


def rows(source: Source) -> Iterable[Row]:
    """Rows by recording, view and line."""
    protocol = source.choice("protocol", tuple(source.options["lists"]))
    splits = _splits(source, source.text(source.options["lists"][protocol], f"lists.{protocol}"))
    labels, skeletons, videos = _files(source)
    if not labels:
        raise source.lost("no label files such as 0002-L.label (or .txt) found below it")
    inclusive = source.choice("end_inclusive", (True, False))
    for name, path in sorted(labels.items()):
        match = _NAME.fullmatch(name)
        assert match is not None
        if name not in splits:
            source.refuse(path, f"{name} is in neither half of the split file")
            continue
        skeleton = skeletons.get(name)
        video = videos.get(name) or (None if skeleton else f"{name}.avi")  # validate names what is missing
        for number, (label, start, end) in source.triples(source.path(path)):
            yield {
                "video_path": video,
                "skeleton_path": skeleton,
                "skeleton_format": "pku_line" if skeleton else None,
                "modality": "rgb" if video else "skeleton",
                "start_frame": start,
                "end_frame": end + inclusive,
                "fps_num": _FPS,
                "fps_den": 1,
                "label_ids": (label - 1,),
                "split": splits[name],
                "protocol": protocol,
                "camera_id": match[2],
                "group_id": match[1],
                "source_file": path,
                "source_line": number,
            }


def _splits(source: Source, name: str) -> dict[str, str]:
    """Recording and view -> train or val, from the split file."""
    path = next((path for path in (source.path(name), source.path(f"Split/{name}")) if path.is_file()), None)
    if path is None:
        raise source.lost(f"no {name} at the root or in Split/")
    lines = [line for _, line in source.lines(path)]
    if len(lines) != 4:
        raise UserError(f"{path}: {len(lines)} lines, want 4 (a header and a list, twice); restore the file")
    names = {split: _NAME.findall(line) for split, line in (("train", lines[1]), ("val", lines[3]))}
    return {f"{number}-{view}": split for split, found in names.items() for number, view in found}


def _files(source: Source) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Label, skeleton and video files by recording and view."""
    labels: dict[str, str] = {}
    skeletons: dict[str, str] = {}
    videos: dict[str, str] = {}
    for path in sorted(source.files(".label", ".skeleton", ".txt", *VIDEO_SUFFIXES)):
        name, suffix = PurePosixPath(path).stem, PurePosixPath(path).suffix.lower()
        if not _NAME.fullmatch(name):
            continue
        if suffix in VIDEO_SUFFIXES:
            videos[name] = path
        elif suffix == ".skeleton" or (suffix == ".txt" and _holds_skeletons(source.path(path))):
            skeletons[name] = path
        else:
            labels[name] = path
    return labels, skeletons, videos


def _holds_skeletons(path: Path) -> bool:
    with path.open("rb") as file:
        return len(re.split(rb"[\s,]+", file.readline(1 << 14).strip())) > 10
