"""Adapter `imigue`: gestures inside the recordings of iMiGUE, video and OpenPose skeletons.

Every recording NNNN has NNNN_label.csv (gesture, first frame, last frame; no header), beside its skeletons or its
video. Gesture 99, illustrative gestures, counts as 32. The split is the word train, validate or test in a folder above.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.datasets._source import VIDEO_SUFFIXES, Row, Source, split_of

_LABELS = "_label.csv"
_SKELETONS = ("_light_hand.csv", "_light.csv")
_ILLUSTRATIVE = 99


def rows(source: Source) -> Iterable[Row]:
    """Rows by recording and line."""
    files = set(source.files(_LABELS, *_SKELETONS, *VIDEO_SUFFIXES))
    videos = {
        PurePosixPath(path).stem: path
        for path in sorted(files, reverse=True)
        if path.lower().endswith(VIDEO_SUFFIXES)
    }
    labelled = sorted(path for path in files if path.endswith(_LABELS))
    if not labelled:
        raise source.lost("no NNNN_label.csv found below it")
    fps, inclusive = source.rate("fps"), source.choice("end_inclusive", (True, False))
    for path in labelled:
        stem = path.removesuffix(_LABELS)
        recording = PurePosixPath(stem).name
        skeleton = next((stem + suffix for suffix in _SKELETONS if stem + suffix in files), None)
        video = videos.get(recording) or (
            None if skeleton else f"{stem}.mp4"
        )  # validate names what is missing
        for number, (gesture, start, end) in source.triples(source.path(path)):
            yield {
                "video_path": video,
                "skeleton_path": skeleton,
                "skeleton_format": "imigue_csv" if skeleton else None,
                "modality": "rgb" if video else "skeleton",
                "start_frame": start,
                "end_frame": end + inclusive,
                "fps_num": fps.numerator,
                "fps_den": fps.denominator,
                "label_ids": ((32 if gesture == _ILLUSTRATIVE else gesture) - 1,),
                "split": split_of(path),
                "group_id": recording,
                "source_file": path,
                "source_line": number,
            }
    without = len(videos.keys() - {PurePosixPath(path).name.removesuffix(_LABELS) for path in labelled})
    if without:
        source.warn("W_NO_LABELS", source.name, f"{without} videos have no label file and give no row")
