"""A clip: one row of the clip table, its content address, and the path of its file.

Frames are 0-based and half-open [start_frame, end_frame), counted in the file as decoded.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import ClipError, UserError
from pipeline.spec import canonical_json

# One key box: frame of the file, then x1 y1 x2 y2 in pixels.
KeyBox = tuple[int, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Clip:
    """One row. None means unknown, or the whole file for times. Paths are POSIX, relative to the root.

    A clip has a `video_path`, a `skeleton_path`, or both. `label_ids` None = unknown or withheld, () = none of
    the classes (multi-label only). `subject_id` is who acts (scoped to the dataset, never a real name),
    `person_id` which of the persons in the picture or skeleton file the row is about, `camera_id` the view.
    Rows of one event (its views, its persons, its modalities; or the recording they were cut from) share
    `group_id` and belong into one split.

    `bbox_track` are key boxes (frame, x1, y1, x2, y2) of that person: frames of the file, increasing; pixels of
    the upright picture, origin at the top left, half-open. Between key boxes the pipeline interpolates, before
    the first and after the last it holds; one key box is a fixed box. `bbox_role` is person, initiator, target
    or full_frame; `aux_boxes` (JSON object) keeps boxes that crop nothing.

    `media_sha256`, `media_bytes`, `n_frames`, `width` and `height` are set only when the source states them, for
    validation to compare; what a file really is stands in the media table. `extra` is a JSON object.
    """

    clip_id: str
    dataset: str
    video_path: str | None = None
    media_sha256: str | None = None
    media_bytes: int | None = None
    stream_index: int | None = None
    start_frame: int | None = None
    end_frame: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    fps_num: int | None = None
    fps_den: int | None = None
    n_frames: int | None = None
    width: int | None = None
    height: int | None = None
    modality: str = "rgb"  # rgb | ir | nir | depth | skeleton | gray
    label_ids: tuple[int, ...] | None = None
    label_names: tuple[str, ...] | None = None
    coarse_ids: tuple[int, ...] | None = None
    label_space: str = "unlabelled"
    label_kind: str = "none"  # single | multi | none
    split: str = "unsplit"  # train | val | test | unsplit
    protocol: str = "custom"
    subject_id: str | None = None
    group_id: str | None = None
    camera_id: str | None = None
    person_id: str | None = None
    bbox_track: tuple[KeyBox, ...] | None = None
    bbox_role: str | None = None
    aux_boxes: str | None = None
    skeleton_path: str | None = None
    skeleton_format: str | None = None
    source_file: str | None = None
    source_line: int | None = None
    license_tag: str = "unknown"
    extra: str | None = None

    @property
    def media_path(self) -> str:
        """The file that addresses the clip: the video, else the skeleton file ("" for a row with neither)."""
        return self.video_path or self.skeleton_path or ""

    def path(self, source: str) -> str | None:
        """The file that stages reading `source` (video or skeleton) read."""
        return self.video_path if source == "video" else self.skeleton_path


# Column -> type. "word" is a string from a small set (dictionary-encoded in Parquet).
COLUMNS = {
    **dict.fromkeys((field.name for field in fields(Clip)), "text"),
    **dict.fromkeys(
        ("dataset", "modality", "label_space", "label_kind", "split", "protocol", "license_tag"), "word"
    ),
    **dict.fromkeys(("bbox_role", "skeleton_format"), "word"),
    **dict.fromkeys(("media_bytes", "start_frame", "end_frame", "n_frames", "source_line"), "int64"),
    **dict.fromkeys(("fps_num", "fps_den", "width", "height"), "int32"),
    **dict.fromkeys(("start_s", "end_s"), "float64"),
    **dict.fromkeys(("label_ids", "coarse_ids"), "ints"),
    "stream_index": "int16",
    "label_names": "texts",
    "bbox_track": "track",
}
REQUIRED = ("clip_id", "dataset")
NOT_NULL = frozenset(REQUIRED) | {field.name for field in fields(Clip) if isinstance(field.default, str)}
INTS = {"int16": 2**15, "int32": 2**31, "int64": 2**63}  # the first number that is too large
BOX_FIELDS = ("frame", "x1", "y1", "x2", "y2")  # of one key box in Parquet and JSONL

CLIP_ID = re.compile(r"[A-Za-z0-9._:@=+-]{1,200}")
DATASET = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")


def shown(text: str) -> str:
    """Text from outside as one printable line: control characters and lone surrogates are escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def check_dataset_name(name: str) -> str:
    """The name itself; UserError unless it is safe in file names and clip ids."""
    if not isinstance(name, str) or not DATASET.fullmatch(name):
        raise UserError(f"dataset name {shown(str(name))!r}: use 1 to 64 of a-z 0-9 - _, as in my_clips")
    return name


def clip_key(clip: Clip, sha256: str, source: str = "video") -> str:
    """Content address of a clip inside every stage that reads its video, or its skeletons: 64 hex digits.

    Args:
        clip: the row.
        sha256: of the file at `clip.path(source)`.
        source: video or skeleton.

    It depends on the bytes of that file and the frame interval; for a video on the stream and the box track, for
    skeletons on their format and the person. So a renamed, relabelled or resplit clip keeps it, and skeletons
    that join a video later leave the video's address alone. A clip from frame None is one from frame 0.
    """
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"a digest must be 64 lower-case hex digits, got {sha256!r}")
    return key_of(source, sha256, *(getattr(clip, column) for column in KEY_COLUMNS[source]))


KEY_COLUMNS = {
    "video": ("start_frame", "end_frame", "stream_index", "bbox_track"),
    "skeleton": ("start_frame", "end_frame", "skeleton_format", "person_id"),
}


def key_of(source: str, sha256: str, start: int | None, end: int | None, what: Any, whom: Any) -> str:
    """`clip_key` from the columns KEY_COLUMNS[source] of a clip.

    The text hashed is the canonical JSON of {media, stream, start, end, track} or {media, format, person, start,
    end}, written out because 100,000 calls of json.dumps take a second.
    """
    first, last = start or 0, "null" if end is None else end
    what = "null" if what is None else canonical_json(what)
    whom = "null" if whom is None else canonical_json(whom)
    if source == "skeleton":
        text = f'{{"end":{last},"format":{what},"media":"{sha256}","person":{whom},"start":{first}}}'
    else:
        text = f'{{"end":{last},"media":"{sha256}","start":{first},"stream":{what},"track":{whom}}}'
    return hashlib.sha256(text.encode()).hexdigest()


def path_problem(video_path: str) -> tuple[str, str] | None:
    """(code, reason) when the text is not a relative POSIX path that stays inside its root. No I/O."""
    if not video_path:
        return "E_NO_MEDIA", "the path is empty"
    if video_path.startswith("/") or "\\" in video_path or _DRIVE.match(video_path):
        return "E_PATH_ABSOLUTE", "the path is absolute or holds a backslash"
    if "\0" in video_path or ".." in video_path.split("/"):
        return "E_PATH_ESCAPE", "the path holds '..' or NUL"
    return None


def resolve(root: Path, video_path: str) -> Path:
    """Real path of a clip's file. Raises ClipError (E_PATH_ESCAPE, ...) for anything that leaves the root.

    Links are followed as long as they end inside the root. The file need not exist.
    """
    problem = path_problem(video_path)
    if problem:
        raise ClipError(problem[0], f"{shown(video_path)}: {problem[1]}; give a path relative to the root")
    real_root = os.path.realpath(root)
    try:
        real = os.path.realpath(PurePosixPath(real_root, video_path))
    except (OSError, ValueError) as error:
        raise ClipError("E_PATH_ESCAPE", f"{shown(video_path)}: cannot be resolved ({error})") from None
    if os.path.commonpath((real, real_root)) != real_root:
        raise ClipError(
            "E_PATH_ESCAPE", f"{shown(video_path)}: a link leads outside the root {root}; copy the files in"
        )
    return Path(real)


def canonical_extra(values: Mapping[str, Any]) -> str | None:
    """Text of the column extra, or None when there is nothing to keep."""
    return canonical_json(values) if values else None
