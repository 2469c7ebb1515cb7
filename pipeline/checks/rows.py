"""One row at a time, no I/O: column values (level schema), labels, times and boxes (level table)."""

import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from pipeline.checks import IMPORTED, Problem, Row, problem
from pipeline.clip import CLIP_ID, Clip, path_problem
from pipeline.manifest import Manifest

SPLITS = ("train", "val", "test", "unsplit")
MODALITIES = ("rgb", "ir", "nir", "depth", "skeleton", "gray")
BOX_ROLES = ("person", "initiator", "target", "full_frame")
MIN_FRAMES = 16  # one window of the semantic stage
MAX_GAP = 60  # frames between two key boxes; a person can cross the picture in 2 s
_LEAST = {"n_frames": 1, "stream_index": 0, "source_line": 1, "width": 1, "height": 1, "media_bytes": 1}


def schema(manifest: Manifest) -> Iterator[Problem]:
    """Values that their column does not allow, and what the import noticed."""
    for line in manifest.warnings:
        code = line.partition(" ")[0]
        yield Problem(code, IMPORTED.get(code, "schema"), line)
    for row in enumerate(manifest.clips, 1):
        yield from _schema(manifest, row)


def _schema(manifest: Manifest, row: Row) -> Iterator[Problem]:
    say = partial(problem, manifest, row=row, level="schema")
    clip = row[1]
    if not CLIP_ID.fullmatch(clip.clip_id):
        want = "1 to 200 of A-Z a-z 0-9 . _ : @ = + -"
        yield say("E_SCHEMA_TYPE", "clip_id", got=repr(clip.clip_id)[:60], want=want)
    if clip.dataset != manifest.dataset:
        yield say("E_SCHEMA_TYPE", "dataset", got=clip.dataset, want=manifest.dataset)
    if clip.modality not in MODALITIES:
        yield say("E_SCHEMA_TYPE", "modality", got=clip.modality, want="|".join(MODALITIES))
    if clip.bbox_role is not None and clip.bbox_role not in BOX_ROLES:
        yield say("E_SCHEMA_TYPE", "bbox_role", got=clip.bbox_role, want="|".join(BOX_ROLES))
    for path in (clip.video_path, clip.skeleton_path):
        if path and (bad := path_problem(path)):
            yield say(*bad, got=repr(path)[:80], fix="give paths relative to the root")
    if not clip.media_path:
        yield say("E_NO_MEDIA", "neither video_path nor skeleton_path", fix="name the file of the clip")
    if (clip.fps_num is None) != (clip.fps_den is None) or not all(
        value is None or value > 0 for value in (clip.fps_num, clip.fps_den)
    ):
        yield say("E_SCHEMA_TYPE", "fps", got=f"{clip.fps_num}/{clip.fps_den}", want="two numbers from 1")
    for name, least in _LEAST.items():
        value = getattr(clip, name)
        if value is not None and value < least:
            yield say("E_SCHEMA_TYPE", name, got=value, want=f"{least} or more")
    for name, seconds in (("start_s", clip.start_s), ("end_s", clip.end_s)):
        if seconds is not None and not math.isfinite(seconds):
            yield say("E_SCHEMA_TYPE", name, got=seconds, want="seconds")
    for name, text in (("extra", clip.extra), ("aux_boxes", clip.aux_boxes)):
        if text is not None and not _is_object(text):
            yield say("E_SCHEMA_TYPE", name, got=text[:60], want="a JSON object")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def table(manifest: Manifest) -> Iterator[Problem]:
    """Labels, times, split and boxes of every row."""
    sound: set[tuple[object, ...]] = set()  # labels looked at: a million rows share a few
    for row in enumerate(manifest.clips, 1):
        clip = row[1]
        labels = (clip.label_ids, clip.label_names, clip.coarse_ids, clip.label_space, clip.label_kind)
        if labels not in sound:
            found = list(_labels(manifest, row))
            yield from found
            if not found:
                sound.add(labels)
        yield from _times(manifest, row)
        if clip.split not in SPLITS:
            want = "|".join(SPLITS)
            yield problem(manifest, "E_SPLIT_UNKNOWN", "split", row, level="table", got=clip.split, want=want)
        if clip.bbox_track is not None:
            yield from _boxes(manifest, row)
        elif manifest.taxonomy.need_person and clip.bbox_role != "full_frame" and clip.video_path:
            text = "several persons may be in the picture and no bbox_track says which"
            fix = "give a bbox_track, or bbox_role full_frame when the picture holds this person alone"
            yield problem(manifest, "E_PERSON_REQUIRED", text, row, level="table", fix=fix)


def _labels(manifest: Manifest, row: Row) -> Iterator[Problem]:
    say = partial(problem, manifest, row=row, level="table")
    clip, taxonomy = row[1], manifest.taxonomy
    ids, n_classes = clip.label_ids, len(taxonomy.labels)
    if clip.label_kind not in ("single", "multi", "none"):
        yield say("E_LABEL_KIND", "label_kind", got=clip.label_kind, want="single|multi|none")
    elif clip.label_kind == "none" and ids is not None:
        yield say("E_LABEL_KIND", "label_kind none with labels", got=list(ids), want="null")
    elif clip.label_kind == "single" and ids is not None and len(ids) != 1:
        yield say("E_LABEL_KIND", "single-label clip", got=f"{len(ids)} labels", want="one")
    if ids is None:
        if clip.label_names or clip.coarse_ids:
            yield say("E_LABEL_NAME_MISMATCH", "names or groups without label_ids")
        return
    wrong = [label for label in ids if not 0 <= label < n_classes]
    if wrong:
        fix = "labels count from 0" if wrong == [n_classes] else "correct the label or the taxonomy"
        want = f"0 to {n_classes - 1}" if n_classes else f"no label: {taxonomy.label_space}"
        yield say("E_LABEL_RANGE", "label_ids", got=wrong[0], want=want, fix=fix)
        return
    if clip.label_space != taxonomy.label_space:
        want = taxonomy.label_space
        yield say("E_LABEL_NAME_MISMATCH", "label_space", got=clip.label_space, want=want)
    names = tuple(taxonomy.labels[label].name for label in ids)
    if clip.label_names is not None and clip.label_names != names:
        got: object = list(clip.label_names)
        yield say("E_LABEL_NAME_MISMATCH", f"label {list(ids)}", got=got, want=list(names))
    coarse = tuple(taxonomy.labels[label].coarse for label in ids)
    if clip.coarse_ids is not None and clip.coarse_ids != coarse:
        got = list(clip.coarse_ids)
        yield say("E_LABEL_NAME_MISMATCH", "coarse_ids", got=got, want=list(coarse))
    if list(ids) != sorted(set(ids)):
        yield say("E_SCHEMA_TYPE", "label_ids", got=list(ids), want="sorted and unique")


def _times(manifest: Manifest, row: Row) -> Iterator[Problem]:
    clip = row[1]
    start, end = clip.start_frame or 0, clip.end_frame
    last = end if end is not None else clip.n_frames
    if start == 0 and last is None and clip.start_s is None and clip.end_s is None:
        return
    say = partial(problem, manifest, row=row, level="table")
    if start < 0:
        yield say("E_START_NEGATIVE", "start_frame", got=start, want="0 or more")
    if end is not None and end <= start:
        yield say("E_END_BEFORE_START", "end_frame", got=end, want=f"more than {start}")
    if last is not None and 0 <= start < last and last - start < MIN_FRAMES:
        text = "shorter than one window; its last frame will be repeated"
        yield say("W_CLIP_TOO_SHORT", text, got=last - start, want=MIN_FRAMES)
    for name, seconds, frame in (
        ("start", clip.start_s, clip.start_frame),
        ("end", clip.end_s, clip.end_frame),
    ):
        if seconds is None or not math.isfinite(seconds):
            continue
        if frame is None:
            yield say("E_TIME_UNRESOLVED", f"{name}_s and no frame", got=seconds, fix=f"give {name}_frame")
        elif clip.fps_num and clip.fps_den and abs(seconds * clip.fps_num / clip.fps_den - frame) > 1:
            want = f"{seconds * clip.fps_num / clip.fps_den:.1f} within 1"
            yield say("E_TIME_CONFLICT", f"{name}_s and {name}_frame", got=frame, want=want)


def _boxes(manifest: Manifest, row: Row) -> Iterator[Problem]:
    say = partial(problem, manifest, row=row, level="table")
    clip: Clip = row[1]
    track = clip.bbox_track or ()
    bad = next((box for box in track if not (box[3] > box[1] and box[4] > box[2])), None)
    if bad or not all(math.isfinite(corner) for box in track for corner in box[1:]):
        yield say("E_BBOX_ORDER", "bbox_track", got=bad, want="x1 < x2 and y1 < y2, all finite")
    frames = [box[0] for box in track]
    first, last = clip.start_frame or 0, math.inf if clip.end_frame is None else clip.end_frame
    if not any(first <= frame < last for frame in frames):
        text = "no key box inside the clip"
        yield say("E_BBOX_FRAMES", text, got=f"frames {frames[:3]}", want=f"{first} to {last}")
    steps = [after - before for before, after in pairwise(frames)]
    if steps and min(steps) <= 0:
        yield say("E_BBOX_FRAMES", "key boxes are not in the order of their frames", got=frames[:8])
    elif steps and max(steps) > MAX_GAP:
        yield say("W_BBOX_GAP", "frames between two key boxes", got=max(steps), want=f"at most {MAX_GAP}")
