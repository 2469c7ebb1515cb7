"""Every code of the report, its message, the cap and the counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import Clip, Manifest
from pipeline.taxonomy import from_labels, parse_taxonomy
from pipeline.validate import CAP, Problem, problem, validate

TAXONOMY = from_labels("tiny", ["nod", "wave"])
GOOD = Clip(
    "tiny:train:a",
    "tiny",
    "a.mp4",
    label_ids=(1,),
    label_names=("wave",),
    coarse_ids=(0,),
    label_space="tiny2",
    label_kind="single",
    split="train",
)
WHOLE: dict[str, Any] = {"label_ids": None, "label_names": None, "coarse_ids": None}


def tiny(*clips: Clip, root: Path = Path("/videos")) -> Manifest:
    return Manifest("tiny", root, TAXONOMY, clips)


def other(**values: Any) -> Clip:
    return replace(GOOD, clip_id="tiny:train:b", video_path="b.mp4", **values)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"video_path": ""}, "E_NO_MEDIA"),
        ({"video_path": "/a.mp4"}, "E_PATH_ABSOLUTE"),
        ({"video_path": "x/../../a.mp4"}, "E_PATH_ESCAPE"),
        ({"clip_id": "a b"}, "E_SCHEMA_TYPE"),
        ({"clip_id": "é"}, "E_SCHEMA_TYPE"),
        ({"dataset": "demo"}, "E_SCHEMA_TYPE"),
        ({"modality": "sound"}, "E_SCHEMA_TYPE"),
        ({"fps_num": 30}, "E_SCHEMA_TYPE"),
        ({"fps_num": 30, "fps_den": 0}, "E_SCHEMA_TYPE"),
        ({"n_frames": 0}, "E_SCHEMA_TYPE"),
        ({"stream_index": -1}, "E_SCHEMA_TYPE"),
        ({"start_s": float("inf"), "start_frame": 0}, "E_SCHEMA_TYPE"),
        ({"extra": "[1]"}, "E_SCHEMA_TYPE"),
        ({"aux_boxes": "[[1,2,3,4]]"}, "E_SCHEMA_TYPE"),
        ({"bbox_role": "boss"}, "E_SCHEMA_TYPE"),
        ({"width": 0}, "E_SCHEMA_TYPE"),
        ({"media_bytes": 0}, "E_SCHEMA_TYPE"),
        ({"skeleton_path": "../a.skeleton"}, "E_PATH_ESCAPE"),
        ({"bbox_track": ()}, "E_BBOX_FRAMES"),
        ({"bbox_track": ((9, 0.0, 0.0, 5.0, 5.0),), "start_frame": 10}, "E_BBOX_FRAMES"),
        ({"bbox_track": ((30, 0.0, 0.0, 5.0, 5.0),), "end_frame": 30}, "E_BBOX_FRAMES"),
        ({"bbox_track": ((3, 0.0, 0.0, 5.0, 5.0), (3, 0.0, 0.0, 5.0, 5.0))}, "E_BBOX_FRAMES"),
        ({"bbox_track": ((9, 0.0, 0.0, 5.0, 5.0), (3, 0.0, 0.0, 5.0, 5.0))}, "E_BBOX_FRAMES"),
        ({"bbox_track": ((3, 5.0, 0.0, 5.0, 5.0),)}, "E_BBOX_ORDER"),
        ({"bbox_track": ((3, 0.0, 6.0, 5.0, 5.0),)}, "E_BBOX_ORDER"),
        ({"bbox_track": ((3, 0.0, 0.0, 5.0, float("nan")),)}, "E_BBOX_ORDER"),
        ({"bbox_track": ((3, 0.0, 0.0, float("inf"), 5.0),)}, "E_BBOX_ORDER"),
        ({"bbox_track": ((3, 0.0, 0.0, 5.0, 5.0), (64, 0.0, 0.0, 5.0, 5.0))}, "W_BBOX_GAP"),
        ({"extra": "{"}, "E_SCHEMA_TYPE"),
        ({"split": "dev"}, "E_SPLIT_UNKNOWN"),
        ({"label_kind": "some"}, "E_LABEL_KIND"),
        ({"label_kind": "none"}, "E_LABEL_KIND"),
        ({"label_ids": (0, 1), "label_names": None, "coarse_ids": None}, "E_LABEL_KIND"),
        ({"label_ids": (), "label_names": (), "coarse_ids": ()}, "E_LABEL_KIND"),
        ({"label_ids": (2,)}, "E_LABEL_RANGE"),
        ({"label_ids": (-1,)}, "E_LABEL_RANGE"),
        ({"label_names": ("nod",)}, "E_LABEL_NAME_MISMATCH"),
        ({"coarse_ids": (1,)}, "E_LABEL_NAME_MISMATCH"),
        ({"label_space": "demo12"}, "E_LABEL_NAME_MISMATCH"),
        ({"label_ids": None}, "E_LABEL_NAME_MISMATCH"),
        ({"label_kind": "multi", **WHOLE, "label_ids": (1, 0)}, "E_SCHEMA_TYPE"),
        ({"start_frame": -1}, "E_START_NEGATIVE"),
        ({"start_frame": 20, "end_frame": 20}, "E_END_BEFORE_START"),
        ({"end_frame": 0}, "E_END_BEFORE_START"),
        ({"start_frame": 5, "end_frame": 20}, "W_CLIP_TOO_SHORT"),
        ({"n_frames": 15}, "W_CLIP_TOO_SHORT"),
        ({"start_s": 1.0}, "E_TIME_UNRESOLVED"),
        ({"start_s": 1.0, "start_frame": 32, "fps_num": 30, "fps_den": 1}, "E_TIME_CONFLICT"),
        ({"end_s": 2.0, "end_frame": 58, "fps_num": 30, "fps_den": 1}, "E_TIME_CONFLICT"),
    ],
)
def test_one_fault_one_problem(values: dict[str, Any], code: str) -> None:
    report = validate(tiny(replace(GOOD, **values)), levels=("schema", "table"))
    assert {one: count for one, count in report.counts.items() if one != "W_CLASS_EMPTY"} == {code: 1}
    assert (report.errors, report.errors + report.warnings >= 1) == (int(code.startswith("E_")), True)


@pytest.mark.parametrize(
    "values",
    [
        {"start_frame": 0, "end_frame": 16},
        {"bbox_track": ((3, 0.0, 0.0, 5.0, 5.0), (63, 0.0, 0.0, 5.0, 5.0)), "bbox_role": "initiator"},
        {"video_path": None, "skeleton_path": "a.skeleton", "modality": "skeleton"},
        {"n_frames": 16},
        {"start_s": 1.0, "start_frame": 31, "fps_num": 30, "fps_den": 1},
        {"start_s": 1.0, "start_frame": 99},  # no fps: nothing to compare with
        {**WHOLE},
        {"label_kind": "multi", "label_ids": (), "label_names": (), "coarse_ids": ()},
        {"extra": '{"placeholder_label":0}'},
    ],
)
def test_sound_rows_have_no_problem(values: dict[str, Any]) -> None:
    report = validate(tiny(replace(GOOD, **values)), levels=("schema", "table"))
    assert set(report.counts) <= {"W_CLASS_EMPTY"}


def test_message_shape() -> None:
    (line,) = validate(tiny(replace(GOOD, split="dev")), levels=("table",)).lines()[:1]
    assert line == "E_SPLIT_UNKNOWN tiny:1 tiny:train:a: split (got dev, want train|val|test|unsplit)"
    listed = replace(GOOD, label_ids=(2,), source_file="train.txt", source_line=7)
    line = validate(tiny(listed), levels=("table",)).lines()[0]
    assert line == (
        "E_LABEL_RANGE train.txt:7 tiny:train:a: label_ids (got 2, want 0 to 1) [fix: labels count from 0]"
    )
    odd = validate(tiny(replace(GOOD, clip_id="a\n\x1b[31m")), levels=("schema",)).lines()[0]
    assert odd.isprintable()


def test_duplicates() -> None:
    assert validate(tiny(GOOD, GOOD), levels=("table",)).counts["E_DUP_CLIP_ID"] == 1
    twin = replace(GOOD, clip_id="tiny:train:z")
    relabelled = replace(twin, label_ids=(0,), label_names=("nod",))
    assert validate(tiny(GOOD, relabelled), levels=("table",)).counts["E_DUP_ROW"] == 1
    assert (
        validate(tiny(GOOD, replace(twin, split="val")), levels=("table",)).counts["E_SPLIT_LEAK_CONTENT"]
        == 1
    )
    changes: tuple[dict[str, Any], ...] = (
        {"start_frame": 3},
        {"person_id": "2"},
        {"camera_id": "c"},
        {"modality": "ir"},
    )
    for change in changes:
        moved = replace(relabelled, **change)
        assert "E_DUP_ROW" not in validate(tiny(GOOD, moved), levels=("table",)).counts
    assert "E_DUP_ROW" in validate(tiny(GOOD, replace(relabelled, start_frame=0)), levels=("table",)).counts


def test_subjects_in_two_splits() -> None:
    rows = [replace(GOOD, subject_id="s1"), other(subject_id="s1", split="val")]
    report = validate(tiny(*rows), levels=("table",))
    assert report.counts["W_SPLIT_LEAK_SUBJECT"] == 1
    assert report.errors == 0
    assert "W_SPLIT_LEAK_SUBJECT" not in validate(tiny(rows[0], replace(rows[1], split="train"))).counts
    assert "W_SPLIT_LEAK_SUBJECT" not in validate(tiny(rows[0], replace(rows[1], protocol="xsub"))).counts


def test_groups_in_two_splits() -> None:
    rows = [replace(GOOD, group_id="g"), other(group_id="g", split="val")]
    line = next(one for one in validate(tiny(*rows), levels=("table",)).lines() if "LEAK_GROUP" in one)
    assert (
        line == "W_SPLIT_LEAK_GROUP tiny:2 tiny:train:b: group g is in val and, with tiny:train:a, in train"
    )
    views = [replace(row, protocol="xview") for row in rows]
    assert "W_SPLIT_LEAK_GROUP" not in validate(tiny(*views), levels=("table",)).counts


def test_a_person_is_required_where_several_may_be_seen() -> None:
    taxonomy = TAXONOMY.model_copy(update={"need_person": True, "page": "docs/datasets/tiny.md"})
    box = ((0, 0.0, 0.0, 5.0, 5.0),)
    rows = [
        GOOD,
        other(bbox_track=box),
        replace(GOOD, clip_id="c", video_path="c.mp4", bbox_role="full_frame"),
        replace(GOOD, clip_id="d", video_path=None, skeleton_path="d.skeleton", modality="skeleton"),
    ]
    report = validate(Manifest("tiny", Path("/videos"), taxonomy, tuple(rows)), levels=("table",))
    assert report.counts["E_PERSON_REQUIRED"] == 1
    assert "tiny:train:a" in next(one for one in report.lines() if "E_PERSON_REQUIRED" in one)
    empty = next(one for one in report.lines() if one.startswith("W_CLASS_EMPTY"))
    assert empty.endswith("[fix: see `bmoe-cache dataset show tiny`]")


def test_two_persons_of_one_interval_are_no_repeat() -> None:
    left = replace(GOOD, bbox_track=((0, 0.0, 0.0, 5.0, 5.0),))
    right = replace(
        left, clip_id="z", bbox_track=((0, 9.0, 0.0, 15.0, 5.0),), label_ids=(0,), label_names=("nod",)
    )
    assert "E_DUP_ROW" not in validate(tiny(left, right), levels=("table",)).counts


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ({"train": 3}, None),
        ({"train": 2}, "(got 3, want 2)"),
        ({"train": [2, 3]}, None),
        ({"train": [1, 2]}, "(got 3, want 1 or 2)"),
        ({"train": {"least": 2, "most": 4}}, None),
        ({"train": {"least": 4, "most": 9}}, "(got 3, want 4 to 9)"),
        ({"all": 3, "val": 0}, None),
        ({"test": 5}, "(got 0, want 5)"),
    ],
)
def test_official_counts(rows: dict[str, Any], found: str | None) -> None:
    data = TAXONOMY.model_dump() | {
        "profiles": {"custom": {"rows": rows, "videos": {"train": 3}}, "xsub": {"rows": {"train": 9}}}
    }
    manifest = Manifest("tiny", Path("/videos"), parse_taxonomy(data, "test"), tuple(many(3)))
    lines = validate(manifest, levels=("profile",)).lines()
    assert ([line.split(": ", 1)[1] for line in lines] == []) == (found is None)
    assert all(line.startswith("W_PROFILE_COUNT tiny: rows of") and str(found) in line for line in lines)


def many(count: int, **values: Any) -> list[Clip]:
    return [replace(GOOD, clip_id=f"c{i}", video_path=f"{i}.mp4", **values) for i in range(count)]


def test_clips_of_train_and_val_without_a_label_are_counted() -> None:
    bare = [replace(clip, clip_id=f"n{i}", video_path=f"n{i}.mp4", **WHOLE) for i, clip in enumerate(many(2))]
    lines = validate(tiny(*many(3), *bare), levels=("table",)).lines()
    assert [line for line in lines if line.startswith("W_NO_LABEL")] == [
        "W_NO_LABEL tiny: 2 of 5 clips of train have no label [fix: heads leave them out; label them, or put them "
        "into split test]"
    ]
    hidden = [replace(clip, split="test") for clip in bare]
    for rows in ([*many(3), *hidden], bare):
        assert "W_NO_LABEL" not in validate(tiny(*rows), levels=("table",)).counts


def test_placeholders_and_empty_classes() -> None:
    assert "W_LABEL_PLACEHOLDER" in validate(tiny(*many(101)), levels=("table",)).counts
    assert "W_LABEL_PLACEHOLDER" not in validate(tiny(*many(100)), levels=("table",)).counts
    assert "W_LABEL_PLACEHOLDER" not in validate(tiny(*many(101, **WHOLE)), levels=("table",)).counts
    line = next(one for one in validate(tiny(*many(3)), levels=("table",)).lines() if "W_CLASS_EMPTY" in one)
    assert line == "W_CLASS_EMPTY tiny: class 0 'nod' (got 0 train rows, want 1 train and 2 val rows)"
    assert "W_CLASS_EMPTY" not in validate(tiny(*many(3, split="unsplit")), levels=("table",)).counts


def test_all_problems_are_counted_and_some_listed() -> None:
    report = validate(tiny(*many(CAP + 7, split="dev")), levels=("table",))
    assert report.counts["E_SPLIT_UNKNOWN"] == report.errors == CAP + 7
    assert sum(one.code == "E_SPLIT_UNKNOWN" for one in report.problems) == CAP
    assert report.lines()[-1] == "E_SPLIT_UNKNOWN: 7 more"


def test_problems_from_elsewhere_join() -> None:
    manifest = tiny(GOOD)
    deep = [problem(manifest, "E_DECODE", "3 of 50 frames", (1, GOOD), level="decode", fix="copy it again")]
    deep.append(Problem("W_VFR", "decode", "W_VFR tiny:1: ..."))
    report = validate(manifest, deep, levels=("schema",))
    assert (report.errors, report.warnings) == (1, 1)
    assert report.lines()[0] == "E_DECODE tiny:1 tiny:train:a: 3 of 50 frames [fix: copy it again]"


def test_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "good.mp4").write_bytes(b"x" * 2000)
    (root / "empty.mp4").touch()
    (root / "lfs.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (root / "folder.mp4").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "loop.mp4").symlink_to("loop.mp4")
    want = {
        "good.mp4": None,
        "empty.mp4": "E_EMPTY_FILE",
        "lfs.mp4": "W_LFS_POINTER",
        "folder.mp4": "E_MISSING_FILE",
        "gone.mp4": "E_MISSING_FILE",
        "good.mp4/x.mp4": "E_MISSING_FILE",
        "loop.mp4": "E_MISSING_FILE",
        "out.mp4": "E_PATH_ESCAPE",
        f"{'x' * 300}.mp4": "E_MISSING_FILE",
    }
    for path, code in want.items():
        report = validate(tiny(replace(GOOD, video_path=path), root=root), levels=("file",))
        assert report.counts == ({code: 1} if code else {}), path
    sized = validate(
        tiny(replace(GOOD, video_path="good.mp4", media_bytes=2001), root=root), levels=("file",)
    )
    assert sized.counts == {"E_SIZE_MISMATCH": 1}
    assert "(got 2000, want 2001)" in sized.lines()[0]
    right = replace(GOOD, video_path="good.mp4", media_bytes=2000, skeleton_path="gone.skeleton")
    assert validate(tiny(right, root=root), levels=("file",)).counts == {"E_MISSING_FILE": 1}
    gone = validate(tiny(replace(GOOD, video_path="gone.mp4"), root=root), levels=("file",)).lines()[0]
    assert str(root) in gone
    assert "gone.mp4" in gone
