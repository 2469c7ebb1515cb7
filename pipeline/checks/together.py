"""Rows together: repeats, leaks between splits, classes without rows, official counts (levels table and profile)."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial

from pipeline import splits
from pipeline.checks import Problem, problem
from pipeline.clip import Clip
from pipeline.manifest import Manifest
from pipeline.taxonomy import Expected, Range

_PLACEHOLDER_ROWS = 100  # more rows than this with one label is no real split


def duplicates(manifest: Manifest) -> Iterator[Problem]:
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
        who = (clip.bbox_track, clip.person_id, clip.camera_id, clip.modality, clip.label_space)
        first = seen.setdefault((*interval, *who), clip)
        if first is clip:
            continue
        if first.label_ids != clip.label_ids:
            text = f"same video and frames as {first.clip_id}, other labels"
            yield say("E_DUP_ROW", text, row, got=clip.label_ids, want=first.label_ids)
        elif first.split != clip.split and first.protocol == clip.protocol:
            text = f"same video and frames as {first.clip_id}, other split"
            yield say("E_SPLIT_LEAK_CONTENT", text, row, got=clip.split, want=first.split)


def leaks(manifest: Manifest) -> Iterator[Problem]:
    """Subjects, and groups of clips that belong together, in two splits of one protocol; each once.

    Protocol xview parts the views of an event on purpose: there a group is in both splits.
    """
    for code, column in (("W_SPLIT_LEAK_SUBJECT", "subject_id"), ("W_SPLIT_LEAK_GROUP", "group_id")):
        for position, earlier in splits.leaks(manifest.clips, column):
            clip, other = manifest.clips[position], manifest.clips[earlier]
            if column == "group_id" and clip.protocol == "xview":
                continue
            name = f"{column.removesuffix('_id')} {getattr(clip, column)}"
            text = f"{name} is in {clip.split} and, with {other.clip_id}, in {other.split}"
            yield problem(manifest, code, text, (position + 1, clip), level="table")


def classes(manifest: Manifest) -> Iterator[Problem]:
    """Splits whose labels are placeholders or lack, and classes that no clip trains or tests."""
    say = partial(problem, manifest, level="table")
    labels = manifest.taxonomy.labels
    held: dict[str, Counter[int]] = defaultdict(Counter)
    rows: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for clip in manifest.clips:
        if clip.label_ids is not None:
            rows[clip.split] += 1
            held[clip.split].update(clip.label_ids)
        else:
            without[clip.split] += 1
    for split in ("train", "val"):
        if rows and without[split]:
            text = f"{without[split]} of {without[split] + rows[split]} clips of {split} have no label"
            yield say("W_NO_LABEL", text, fix="heads leave them out; label them, or put them into split test")
    for split in sorted(held):
        if len(held[split]) == 1 and rows[split] > _PLACEHOLDER_ROWS and len(labels) > 1:
            text = f"all {rows[split]} labels of {split} are {next(iter(held[split]))}: placeholders?"
            yield say("W_LABEL_PLACEHOLDER", text, fix="drop the label column of that split")
    for label in labels:
        few = [
            f"{held[split][label.id]} {split}"
            for split, least in (("train", 1), ("val", 2))
            if split in held and held[split][label.id] < least
        ]
        if few:
            text = f"class {label.id} '{label.name}'"
            want = "1 train and 2 val rows"
            yield say("W_CLASS_EMPTY", text, got=f"{' and '.join(few)} rows", want=want)


def counts(manifest: Manifest) -> Iterator[Problem]:
    """Rows, videos and subjects of a described dataset against its official counts."""
    protocols = {clip.protocol for clip in manifest.clips}
    for protocol, profile in manifest.taxonomy.profiles.items():
        if protocol not in protocols:
            continue
        rows: Counter[str] = Counter()
        distinct: dict[tuple[str, str], set[str | None]] = defaultdict(set)
        for clip in manifest.clips:
            if clip.protocol == protocol:
                for split in (clip.split, "all"):
                    rows[split] += 1
                    distinct["videos", split].add(clip.media_path)
                    distinct["subjects", split].add(clip.subject_id)
        for what, expected in (
            ("rows", profile.rows),
            ("videos", profile.videos),
            ("subjects", profile.subjects),
        ):
            for split, want in expected.items():
                got = rows[split] if what == "rows" else len(distinct[what, split] - {None})
                if not _meets(got, want):
                    text = f"{what} of {split} under protocol {protocol} are not the official ones"
                    yield problem(
                        manifest, "W_PROFILE_COUNT", text, level="profile", got=got, want=_said(want)
                    )


def _meets(count: int, expected: Expected) -> bool:
    if isinstance(expected, Range):
        return expected.least <= count <= expected.most
    return count in expected if isinstance(expected, tuple) else count == expected


def _said(expected: Expected) -> str:
    if isinstance(expected, Range):
        return f"{expected.least} to {expected.most}"
    return " or ".join(map(str, expected)) if isinstance(expected, tuple) else str(expected)
