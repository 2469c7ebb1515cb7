"""Adapter `drive_and_act`: 3 s chunks of fine-grained activities (midlevel), one of three splits, one view.

activities_3s/<view>/midlevel.chunks_90.split_<k>.<train|val|test>.csv names participant, file, annotation, chunk and
frames of the view's own video, the end exclusive. Two views of a chunk share `group_id`.
"""

from collections.abc import Iterable
from fractions import Fraction

from pipeline.clip import shown
from pipeline.datasets._source import Row, Source, relative_path, whole

_COLUMNS = ("participant_id", "file_id", "annotation_id", "frame_start", "frame_end", "activity", "chunk_id")
_MODALITIES = {
    "kinect_color": "rgb",
    "kinect_depth": "depth",
    "kinect_ir": "ir",
}  # the other views are near infrared
_NIR_FPS = 30


def rows(source: Source) -> Iterable[Row]:
    """Rows of the split's tables."""
    view = source.text(source.options["view"], "view")
    split = source.choice("split", (0, 1, 2))
    fps = Fraction(str(source.options["fps"].get(view, _NIR_FPS)))
    found = False
    for part in ("train", "val", "test"):
        path = source.path(f"activities_3s/{view}/midlevel.chunks_90.split_{split}.{part}.csv")
        if not path.is_file():
            continue
        found = True
        name = source.shown_path(path)
        for number, cells in source.table(path, _COLUMNS):
            try:
                row = _row(view, {column: cells[column] for column in _COLUMNS})
            except (KeyError, ValueError) as error:
                said = f"{error.args[0]} is empty" if isinstance(error, KeyError) else error
                source.refuse(f"{name}:{number}", said)
                continue
            place = {"split": part, "protocol": f"split{split}", "source_file": name, "source_line": number}
            yield {**row, **place, "camera_id": view, "fps_num": fps.numerator, "fps_den": fps.denominator}
    if not found:
        raise source.lost(f"no activities_3s/{view}/midlevel.chunks_90.split_{split}.*.csv here")


def _row(view: str, cells: dict[str, str]) -> Row:
    file = relative_path(cells["file_id"])
    start, end = whole(cells["frame_start"], "frame_start"), whole(cells["frame_end"], "frame_end")
    if end <= start:
        raise ValueError(f"E_END_BEFORE_START frames {start} to {end}")
    run = file.rsplit(".", 1)[0]  # without the view, which is the last part of a file id
    participant = shown(cells["participant_id"])
    return {
        "video_path": f"{view}/{file}.mp4",
        "modality": _MODALITIES.get(view, "nir"),
        "start_frame": start,
        "end_frame": end,
        "label_names": (cells["activity"],),
        "subject_id": f"vp{participant}",
        "group_id": f"{run}:{cells['annotation_id']}:{cells['chunk_id']}",
    }
