"""Checks of a manifest before any GPU time is spent: schema (no I/O), table (rows together), file (stat).

Nothing is decoded and nothing is changed. Every problem is one line,

    CODE manifest:line clip_id: text (got ..., want ...) [fix: ...]

where manifest:line is the list or table the row came from, or the dataset and the 1-based row in clip_id
order. Codes that begin with E_ are errors, W_ warnings.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG

from pipeline.errors import ClipError
from pipeline.manifest import CLIP_ID, Clip, Manifest, path_problem, resolve, shown

SPLITS = ("train", "val", "test", "unsplit")
MODALITIES = ("rgb", "ir", "nir", "depth", "skeleton", "gray")
MIN_FRAMES = 16  # one window of the semantic stage
CAP = 50  # problems listed per code; the rest is counted
_PLACEHOLDER_ROWS = 100  # more rows than this with one label is no real split
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Problem:
    """One line of a report; `level` is schema, table, file, hash, decode or profile."""

    code: str
    level: str
    message: str


@dataclass(frozen=True)
class Report:
    """Problems in the order found, at most CAP of a code, and how many there are of each code."""

    problems: tuple[Problem, ...]
    counts: dict[str, int]

    @property
    def errors(self) -> int:
        """Number of errors, unlisted ones included."""
        return sum(count for code, count in self.counts.items() if code.startswith("E_"))

    @property
    def warnings(self) -> int:
        """Number of warnings, unlisted ones included."""
        return sum(count for code, count in self.counts.items() if code.startswith("W_"))

    def lines(self) -> list[str]:
        """Messages, then one line for every code with more than CAP problems."""
        hidden = [f"{code}: {count - CAP} more" for code, count in self.counts.items() if count > CAP]
        return [*(problem.message for problem in self.problems), *hidden]


def validate(
    manifest: Manifest, extra: Iterable[Problem] = (), levels: Iterable[str] = ("schema", "table", "file")
) -> Report:
    """Check a manifest; `extra` are problems found elsewhere (by hashing, decoding) that join the report."""
    listed: list[Problem] = []
    counts: Counter[str] = Counter()

    def keep(found: Iterable[Problem]) -> None:
        for one in found:
            counts[one.code] += 1
            if counts[one.code] <= CAP:
                listed.append(one)

    for level in levels:
        keep(_LEVELS[level](manifest))
    keep(extra)
    return Report(tuple(listed), dict(counts))


def problem(
    manifest: Manifest,
    code: str,
    text: str,
    row: tuple[int, Clip] | None = None,
    *,
    level: str,
    got: object = None,
    want: object = None,
    fix: str = "",
) -> Problem:
    """A Problem in the common form. `row` is (1-based row number, clip), None for the whole manifest."""
    where = manifest.dataset
    if row:
        number, clip = row
        named = clip.source_file is not None and clip.source_line is not None
        line = f"{clip.source_file}:{clip.source_line}" if named else f"{manifest.dataset}:{number}"
        where = f"{line} {clip.clip_id}"
    facts = [f"{word} {value}" for word, value in (("got", got), ("want", want)) if value is not None]
    tail = f" ({', '.join(facts)})" if facts else ""
    return Problem(code, level, shown(f"{code} {where}: {text}{tail}{f' [fix: {fix}]' if fix else ''}"))


# ---- schema: one row at a time, no I/O --------------------------------------------------------------------


def _schema(manifest: Manifest) -> Iterator[Problem]:
    say = partial(problem, manifest, level="schema")
    for row in enumerate(manifest.clips, 1):
        clip = row[1]
        if not CLIP_ID.fullmatch(clip.clip_id):
            want = "1 to 200 of A-Z a-z 0-9 . _ : @ = + -"
            yield say("E_SCHEMA_TYPE", "clip_id", row, got=repr(clip.clip_id)[:60], want=want)
        if clip.dataset != manifest.dataset:
            yield say("E_SCHEMA_TYPE", "dataset", row, got=clip.dataset, want=manifest.dataset)
        if clip.modality not in MODALITIES:
            want = "|".join(MODALITIES)
            yield say("E_SCHEMA_TYPE", "modality", row, got=clip.modality, want=want)
        for path in (clip.video_path, clip.skeleton_path):
            if path and (bad := path_problem(path)):
                fix = "give paths relative to the root"
                yield say(bad[0], bad[1], row, got=repr(path)[:80], fix=fix)
        if not clip.media_path:
            yield say("E_NO_MEDIA", "neither video_path nor skeleton_path", row)
        if (clip.fps_num is None) != (clip.fps_den is None) or not all(
            value is None or value > 0 for value in (clip.fps_num, clip.fps_den)
        ):
            got = f"{clip.fps_num}/{clip.fps_den}"
            yield say("E_SCHEMA_TYPE", "fps", row, got=got, want="two numbers from 1")
        for name, least in (("n_frames", 1), ("stream_index", 0), ("source_line", 1)):
            value = getattr(clip, name)
            if value is not None and value < least:
                yield say("E_SCHEMA_TYPE", name, row, got=value, want=f"{least} or more")
        for name in ("start_s", "end_s"):
            value = getattr(clip, name)
            if value is not None and not math.isfinite(value):
                yield say("E_SCHEMA_TYPE", name, row, got=value, want="seconds")
        if clip.extra is not None and not _is_object(clip.extra):
            yield say("E_SCHEMA_TYPE", "extra", row, got=clip.extra[:60], want="a JSON object")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# ---- table: rows together ---------------------------------------------------------------------------------


def _table(manifest: Manifest) -> Iterator[Problem]:
    say = partial(problem, manifest, level="table")
    for row in enumerate(manifest.clips, 1):
        yield from _labels(manifest, row)
        yield from _times(manifest, row)
        if row[1].split not in SPLITS:
            want = "|".join(SPLITS)
            yield say("E_SPLIT_UNKNOWN", "split", row, got=row[1].split, want=want)
    yield from _duplicates(manifest)
    yield from _subjects(manifest)
    yield from _classes(manifest)


def _labels(manifest: Manifest, row: tuple[int, Clip]) -> Iterator[Problem]:
    say = partial(problem, manifest, level="table")
    clip, taxonomy = row[1], manifest.taxonomy
    ids, n_classes = clip.label_ids, len(taxonomy.labels)
    if clip.label_kind not in ("single", "multi", "none"):
        yield say("E_LABEL_KIND", "label_kind", row, got=clip.label_kind, want="single|multi|none")
    elif clip.label_kind == "none" and ids is not None:
        yield say("E_LABEL_KIND", "label_kind none with labels", row, got=list(ids), want="null")
    elif clip.label_kind == "single" and ids is not None and len(ids) != 1:
        yield say("E_LABEL_KIND", "single-label clip", row, got=f"{len(ids)} labels", want="one")
    if ids is None:
        if clip.label_names or clip.coarse_ids:
            yield say("E_LABEL_NAME_MISMATCH", "names or groups without label_ids", row)
        return
    wrong = [label for label in ids if not 0 <= label < n_classes]
    if wrong:
        fix = "labels count from 0" if wrong == [n_classes] else "correct the label or the taxonomy"
        want = f"0 to {n_classes - 1}" if n_classes else f"no label: {taxonomy.label_space}"
        yield say("E_LABEL_RANGE", "label_ids", row, got=wrong[0], want=want, fix=fix)
        return
    if clip.label_space != taxonomy.label_space:
        want = taxonomy.label_space
        yield say("E_LABEL_NAME_MISMATCH", "label_space", row, got=clip.label_space, want=want)
    names = tuple(taxonomy.labels[label].name for label in ids)
    if clip.label_names is not None and clip.label_names != names:
        got: object = list(clip.label_names)
        yield say("E_LABEL_NAME_MISMATCH", f"label {list(ids)}", row, got=got, want=list(names))
    coarse = tuple(taxonomy.labels[label].coarse for label in ids)
    if clip.coarse_ids is not None and clip.coarse_ids != coarse:
        got = list(clip.coarse_ids)
        yield say("E_LABEL_NAME_MISMATCH", "coarse_ids", row, got=got, want=list(coarse))
    if list(ids) != sorted(set(ids)):
        yield say("E_SCHEMA_TYPE", "label_ids", row, got=list(ids), want="sorted and unique")


def _times(manifest: Manifest, row: tuple[int, Clip]) -> Iterator[Problem]:
    say = partial(problem, manifest, level="table")
    clip = row[1]
    start, end = clip.start_frame or 0, clip.end_frame
    if start < 0:
        yield say("E_START_NEGATIVE", "start_frame", row, got=start, want="0 or more")
    if end is not None and end <= start:
        yield say("E_END_BEFORE_START", "end_frame", row, got=end, want=f"more than {start}")
    last = end if end is not None else clip.n_frames
    if last is not None and 0 <= start < last and last - start < MIN_FRAMES:
        text = "shorter than one window; its last frame will be repeated"
        yield say("W_CLIP_TOO_SHORT", text, row, got=last - start, want=MIN_FRAMES)
    for name, seconds, frame in (
        ("start", clip.start_s, clip.start_frame),
        ("end", clip.end_s, clip.end_frame),
    ):
        if seconds is None or not math.isfinite(seconds):
            continue
        if frame is None:
            fix = f"give {name}_frame"
            yield say("E_TIME_UNRESOLVED", f"{name}_s and no frame", row, got=seconds, fix=fix)
        elif clip.fps_num and clip.fps_den and abs(seconds * clip.fps_num / clip.fps_den - frame) > 1:
            want = f"{seconds * clip.fps_num / clip.fps_den:.1f} within 1"
            yield say("E_TIME_CONFLICT", f"{name}_s and {name}_frame", row, got=frame, want=want)


def _duplicates(manifest: Manifest) -> Iterator[Problem]:
    """Repeated ids, and one piece of video with two labels or in two splits."""
    say = partial(problem, manifest, level="table")
    before: Clip | None = None
    seen: dict[tuple[object, ...], Clip] = {}
    for row in enumerate(manifest.clips, 1):
        clip = row[1]
        if before is not None and before.clip_id == clip.clip_id:
            fix = "give every clip its own clip_id"
            yield say("E_DUP_CLIP_ID", "clip_id is there twice", row, fix=fix)
        before = clip
        interval = (clip.media_path, clip.stream_index, clip.start_frame or 0, clip.end_frame)
        who = (clip.person_id, clip.camera_id, clip.modality, clip.label_space)
        first = seen.setdefault((*interval, *who), clip)
        if first is clip:
            continue
        if first.label_ids != clip.label_ids:
            text = f"same video and frames as {first.clip_id}, other labels"
            yield say("E_DUP_ROW", text, row, got=clip.label_ids, want=first.label_ids)
        elif first.split != clip.split and first.protocol == clip.protocol:
            text = f"same video and frames as {first.clip_id}, other split"
            yield say("E_SPLIT_LEAK_CONTENT", text, row, got=clip.split, want=first.split)


def _subjects(manifest: Manifest) -> Iterator[Problem]:
    say = partial(problem, manifest, level="table")
    first: dict[tuple[str, str], tuple[str, str]] = {}
    reported: set[tuple[str, str]] = set()
    for row in enumerate(manifest.clips, 1):
        clip = row[1]
        if clip.subject_id is None or clip.split == "unsplit":
            continue
        subject = (clip.protocol, clip.subject_id)
        split, clip_id = first.setdefault(subject, (clip.split, clip.clip_id))
        if split != clip.split and subject not in reported:
            reported.add(subject)
            text = f"subject {clip.subject_id} is in {clip.split} and, with {clip_id}, in {split}"
            yield say("W_SPLIT_LEAK_SUBJECT", text, row)


def _classes(manifest: Manifest) -> Iterator[Problem]:
    say = partial(problem, manifest, level="table")
    labels = manifest.taxonomy.labels
    splits: dict[str, Counter[int]] = defaultdict(Counter)
    rows: Counter[str] = Counter()
    for clip in manifest.clips:
        if clip.label_ids is not None:
            rows[clip.split] += 1
            splits[clip.split].update(clip.label_ids)
    for split in sorted(splits):
        if len(splits[split]) == 1 and rows[split] > _PLACEHOLDER_ROWS and len(labels) > 1:
            text = f"all {rows[split]} labels of {split} are {next(iter(splits[split]))}: placeholders?"
            yield say("W_LABEL_PLACEHOLDER", text, fix="drop the label column of that split")
    for label in labels:
        few = [
            f"{splits[split][label.id]} {split}"
            for split, least in (("train", 1), ("val", 2))
            if split in splits and splits[split][label.id] < least
        ]
        if few:
            text = f"class {label.id} '{label.name}'"
            want = "1 train and 2 val rows"
            yield say("W_CLASS_EMPTY", text, got=f"{' and '.join(few)} rows", want=want)


# ---- file: stat -------------------------------------------------------------------------------------------


def _file(manifest: Manifest) -> Iterator[Problem]:
    say = partial(problem, manifest, level="file")
    known: dict[str, tuple[str, str, str] | None] = {}
    for row in enumerate(manifest.clips, 1):
        path = row[1].media_path
        if path_problem(path):  # reported by level schema
            continue
        if path not in known:
            known[path] = _state(manifest.root, path)
        state = known[path]
        if state:
            yield say(state[0], state[1], row, fix=state[2])


def _state(root: Path, video_path: str) -> tuple[str, str, str] | None:
    """(code, text, fix) of an unusable file."""
    try:
        path = resolve(root, video_path)
        facts = path.stat()
        if not S_ISREG(facts.st_mode):
            return "E_MISSING_FILE", f"{video_path} under {root} is not a file", "correct video_path"
        if facts.st_size == 0:
            return "E_EMPTY_FILE", f"{video_path} has 0 bytes", "copy it again"
        if facts.st_size < 1024:  # pointers of Git LFS are about 130 bytes
            with path.open("rb") as file:
                if file.read(len(_LFS)) == _LFS:
                    return "W_LFS_POINTER", f"{video_path} is a Git LFS pointer, not a video", "git lfs pull"
    except ClipError as error:
        return error.code, error.message, "copy the file into the root"
    except OSError as error:
        fix = "check --root and the list"
        return "E_MISSING_FILE", f"{video_path} under {root}: {(error.strerror or 'unreadable').lower()}", fix
    return None


_LEVELS: dict[str, Callable[[Manifest], Iterator[Problem]]] = {
    "schema": _schema,
    "table": _table,
    "file": _file,
}
