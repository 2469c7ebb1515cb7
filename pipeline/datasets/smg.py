"""Adapter `smg`: micro-gestures inside the recordings of SMG, video and Kinect skeletons.

Every folder SampleNNNN holds SampleNNNN_finelabels.csv (label from 1, first frame, last frame; no header). The number
of a sample is its subject; option `test` names the test subjects.
"""

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path, PurePosixPath

from pipeline.datasets._source import VIDEO_SUFFIXES, Row, Source

_LABELS = re.compile(r"(?:.*/)?Sample([0-9]{4})_finelabels\.csv")


def rows(source: Source) -> Iterable[Row]:
    """Rows by sample and line."""
    files = sorted(source.files(".csv", *VIDEO_SUFFIXES))
    videos: dict[str, str] = {}
    for path in files:
        if path.lower().endswith(VIDEO_SUFFIXES):
            videos.setdefault(str(PurePosixPath(path).parent), path)
    labelled = [(match, path) for path in files if (match := _LABELS.fullmatch(path))]
    if not labelled:
        raise source.lost("no SampleNNNN_finelabels.csv found below it")
    inclusive = source.choice("end_inclusive", (True, False))
    present = set(files)
    for match, path in labelled:
        stem = path.removesuffix("_finelabels.csv")
        skeleton = f"{stem}_skeleton.csv" if f"{stem}_skeleton.csv" in present else None
        video = videos.get(str(PurePosixPath(path).parent)) or (None if skeleton else f"{stem}.mp4")
        fps, frames = _timeline(source, source.path(f"{stem}_data.csv"))
        for number, (label, start, end) in source.triples(source.path(path)):
            yield {
                "video_path": video,
                "skeleton_path": skeleton,
                "skeleton_format": "smg_csv" if skeleton else None,
                "modality": "rgb" if video else "skeleton",
                "start_frame": start,
                "end_frame": end + inclusive,
                "fps_num": fps.numerator,
                "fps_den": fps.denominator,
                "n_frames": frames,
                "label_ids": (label - 1,),
                "split": "test" if int(match[1]) in source.options["test"] else "train",
                "subject_id": match[1],
                "group_id": f"Sample{match[1]}",
                "source_file": path,
                "source_line": number,
            }


def _timeline(source: Source, path: Path) -> tuple[Fraction, int | None]:
    """Frame rate and frames of a recording, as its data file has them."""
    if path.is_file():
        for _, (frames, fps, *_) in source.numbers(path, 2):
            if frames and fps:
                return Fraction(fps), frames
    return source.rate("fps"), None
