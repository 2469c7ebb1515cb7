"""What the adapters of the papers' datasets make of small trees in their formats."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.clip import Clip
from pipeline.datasets import import_dataset
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.validate import validate
from tests.manifest.trees import OPTIONS, TREES, put


def imported(tmp_path: Path, name: str, *overrides: str, files: dict[str, str] | None = None) -> Manifest:
    tree = {**TREES[name], **(files or {})}
    return import_dataset(name, put(tmp_path / "root", tree), overrides=[*OPTIONS.get(name, ()), *overrides])


def facts(clips: tuple[Clip, ...], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(clip, name) for name in names) for clip in clips]


# ---- MPII GroupInteraction --------------------------------------------------------------------------------


def test_mpii_gi_cuts_intervals_from_every_view(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "mpii_gi")
    assert Counter((clip.split, clip.camera_id) for clip in manifest.clips) == {
        ("train", "frontal"): 3,
        ("train", "left"): 3,
        ("val", "frontal"): 1,
    }
    hands = [clip for clip in manifest.clips if clip.label_names == ("Hand-face",)]
    # 1.1 s and 2.2 s at 30 fps are frames 33 and 66, whatever a float makes of 1.1 * 30
    assert {(clip.start_frame, clip.end_frame) for clip in hands} == {(33, 66)}
    assert {clip.group_id for clip in hands} == {"recording07_pos2:33-66"}
    assert {clip.person_id for clip in hands} == {clip.subject_id for clip in hands} == {"recording07_pos2"}
    assert {clip.bbox_role for clip in manifest.clips} == {"full_frame"}
    assert json.loads(hands[0].extra or "") == {"declared_duration_s": 3.5}
    assert any("0 of 2 videos of the right view" in line for line in manifest.warnings)
    assert sum("annotated twice" in line for line in manifest.warnings) == 1
    (relax,) = (clip for clip in manifest.clips if clip.split == "val")
    assert (relax.label_ids, relax.start_frame, relax.end_frame) == ((15,), 0, 2)


def test_mpii_gi_says_when_one_interval_has_two_labels(tmp_path: Path) -> None:
    both = [{"label": "Gesture", "segment": [0, 2]}, {"label": "Fumble", "segment": [0, 2]}]
    text = json.dumps({"recording09_subjectPos1": {"subset": "Test", "annotations": both}})
    manifest = import_dataset("mpii_gi", put(tmp_path, {"a.json": text}))
    assert len(manifest.clips) == 2
    assert validate(manifest, levels=("table",)).counts["E_DUP_ROW"] == 1


def test_mpii_gi_names_what_it_cannot_read(tmp_path: Path) -> None:
    wrong = {
        "subjectPos2.video": {"subset": "Test", "annotations": []},
        "recording07_subjectPos1.video": {"subset": "Training", "annotations": []},
        "recording07_subjectPos2.video": {
            "subset": "Test",
            "annotations": [{"label": "Juggle", "segment": [0, 1]}, {"label": "Shrug", "segment": [2, 1]}, 7],
        },
    }
    with pytest.raises(UserError) as caught:
        import_dataset("mpii_gi", put(tmp_path, {"a.json": json.dumps(wrong)}))
    message = str(caught.value)
    for word in (
        "a.json: subjectPos2.video",
        "recordingNN_",
        "unknown label 'Juggle'",
        "E_END_BEFORE_START",
        "annotation 3",
    ):
        assert word in message


def test_mpii_gi_reads_the_lists_of_the_authors(tmp_path: Path) -> None:
    lists = {"train_list_videos_mpII.txt": "a.mp4 3\nb.mp4 18\n", "val_list_videos_mpII.txt": "c.mp4 0\n"}
    manifest = import_dataset("mpii_gi", put(tmp_path, lists))
    assert facts(manifest.clips, "video_path", "split", "label_ids", "bbox_role") == [
        ("clips/train/a.mp4", "train", (3,), "full_frame"),
        ("clips/train/b.mp4", "train", (18,), "full_frame"),
        ("clips/val/c.mp4", "val", (0,), "full_frame"),
    ]


def test_mpii_bbr_windows(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "mpii_bbr", "views=[frontal, left]")
    assert manifest.taxonomy.label_kind == "multi"
    train = [clip for clip in manifest.clips if clip.split == "train"]
    assert facts(tuple(train), "clip_id", "video_path", "camera_id") == [
        ("mpii_bbr:train:00042:frontal", "clips_train/clips_train/00042-video.mp4", "frontal"),
        ("mpii_bbr:train:00042:left", "clips_train/clips_train/00042-video1.mp4", "left"),
        ("mpii_bbr:train:00044:frontal", "clips_train/clips_train/00044-video.mp4", "frontal"),
        ("mpii_bbr:train:00044:left", "clips_train/clips_train/00044-video1.mp4", "left"),
    ]
    assert train[0].label_names == ("Gesture", "Settle")  # by name: the columns have another order
    assert train[2].label_ids == ()  # none of the behaviours, and known to be
    assert {clip.group_id for clip in train} == {"rec07:3000"}  # persons and views of one moment
    assert {clip.person_id for clip in train} == {"rec07_pos2", "rec07_pos3"}
    assert json.loads(train[0].extra or "") == {"start_ms": 3000.0, "end_ms": 5133.33}
    assert [clip.label_ids for clip in manifest.clips if clip.split == "test"] == [None, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,7,2,3000,5133" + ",0" * 14, "sample_id 'x'"),
        ("1,7,,3000,5133" + ",0" * 14, "subject_pos is empty"),
        ("1,7,2,3000,5133" + ",0" * 13 + ",2", "is '2', want 0 or 1"),
        ("1,7,2,3000,5133" + ",0" * 13 + ",", "no cell for Smearing hands"),
        ("1,7,2,3000,5133" + ",0" * 13, "18 fields, want 19"),
    ],
)
def test_mpii_bbr_names_bad_rows(tmp_path: Path, row: str, message: str) -> None:
    header = TREES["mpii_bbr"]["sample_lists/train_bbr.csv"].split("\n")[0]
    with pytest.raises(UserError, match=r"sample_lists/train\.csv:2: ") as caught:
        import_dataset("mpii_bbr", put(tmp_path, {"sample_lists/train.csv": f"{header}\n{row}\n"}))
    assert message in str(caught.value)


# ---- SocialGesture ----------------------------------------------------------------------------------------


def test_social_gesture_scales_boxes_to_the_video(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "social_gesture")
    by_label = {clip.label_names: clip for clip in manifest.clips}
    pointing = by_label[("pointing",)]
    assert (pointing.start_frame, pointing.end_frame, pointing.split) == (30, 90, "train")
    # one box of 640x360 holds for the whole clip, twice as large on 1280x720
    assert pointing.bbox_track == ((30, 20.0, 40.0, 200.0, 400.0),)
    assert json.loads(pointing.aux_boxes or "") == {
        "target": [[30, 2.0, 4.0, 6.0, 8.0], [60, 4.0, 6.0, 8.0, 10.0]]
    }
    giving = by_label[("giving",)]
    # annotation frames 4, 6, 99 are video frames 24, 36, 594: the first moves onto the clip's start, the last is out
    assert giving.bbox_track == ((30, 0.0, 0.0, 18.0, 18.0), (36, 2.0, 2.0, 18.0, 18.0))
    assert {clip.bbox_role for clip in manifest.clips} == {"initiator"}
    assert {(clip.width, clip.height) for clip in manifest.clips} == {(1280, 720)}
    assert {clip.group_id for clip in manifest.clips if clip.split == "train"} == {"one"}
    assert any("label from gesture" in line for line in manifest.warnings)


def test_social_gesture_columns_are_options(tmp_path: Path) -> None:
    files = {"a.csv": 'v,t0,t1,what,box\nclip.mp4,30,90,reaching,"[1,2,3,4]"\n'}
    names = ["video=v", "start=t0", "end=t1", "label=what", "initiator_bbox=box"]
    options = ["tables.train=a.csv", "times=frames", *(f"columns.{name}" for name in names)]
    (clip,) = import_dataset("social_gesture", put(tmp_path, files), overrides=options).clips
    assert (clip.start_frame, clip.end_frame, clip.label_names) == (30, 90, ("reaching",))
    assert clip.bbox_track == ((30, 2.0, 4.0, 6.0, 8.0),)
    with pytest.raises(UserError, match=r"a\.csv has no column for video.*columns\.video"):
        import_dataset("social_gesture", tmp_path, overrides=["tables.train=a.csv"])


def test_social_gesture_lists_lack_boxes(tmp_path: Path) -> None:
    files = {"train_labels_for_Social_gestures.txt": "a.mp4 3\n"}
    manifest = import_dataset("social_gesture", put(tmp_path, files))
    assert [line.split()[0] for line in manifest.warnings] == ["W_LABEL_ORDER"]
    report = validate(manifest, levels=("table",))
    assert report.counts["E_PERSON_REQUIRED"] == 1
    whole = import_dataset("social_gesture", tmp_path, overrides=["whole_frame=true"])
    assert "E_PERSON_REQUIRED" not in validate(whole, levels=("table",)).counts


# ---- micro-gestures ---------------------------------------------------------------------------------------


def test_imigue(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "imigue")
    assert facts(
        manifest.clips, "label_ids", "start_frame", "end_frame", "split", "group_id", "modality"
    ) == [
        ((31,), 10, 21, "train", "0001", "rgb"),
        ((2,), 30, 41, "train", "0001", "rgb"),
        ((0,), 5, 6, "val", "0002", "skeleton"),
    ]
    assert manifest.clips[0].video_path == "imigue_rgb_phase1/train_data/0001/0001.mp4"
    assert manifest.clips[0].skeleton_path == "imigue_skeleton_train/0001/0001_light_hand.csv"
    assert manifest.clips[2].skeleton_path == "imigue_skeleton_validate/0002/0002_light.csv"
    assert any("1 videos have no label file" in line for line in manifest.warnings)
    exclusive = imported(tmp_path, "imigue", "end_inclusive=false")
    assert exclusive.clips[0].end_frame == 20


def test_imigue_out_of_range_and_broken_lines(tmp_path: Path) -> None:
    files = {"train/0001/0001_label.csv": "33,1,20\n", "train/0001/0001.mp4": "x"}
    with pytest.raises(UserError, match=r"train/0001/0001_label\.csv:1: E_LABEL_RANGE label 32"):
        import_dataset("imigue", put(tmp_path, files))
    put(tmp_path, {"train/0001/0001_label.csv": "gesture,start,end\n1,20,10\n2,x,9\n"})
    with pytest.raises(UserError, match=r":2: E_END_BEFORE_START.*:3: '2,x,9'"):
        import_dataset("imigue", tmp_path)


def test_smg(tmp_path: Path) -> None:
    test, train = imported(tmp_path, "smg").clips
    assert (train.video_path, train.skeleton_path) == (
        "Sample0001/any name.mp4",
        "Sample0001/Sample0001_skeleton.csv",
    )
    assert (train.label_ids, train.start_frame, train.end_frame, train.split) == ((0,), 10, 21, "train")
    assert (train.fps_num, train.n_frames, train.subject_id, train.modality) == (29, 20000, "0001", "rgb")
    assert (test.label_ids, test.split, test.subject_id, test.modality) == ((16,), "test", "0036", "skeleton")
    assert (test.fps_num, test.n_frames) == (28, None)


# ---- actions ----------------------------------------------------------------------------------------------


def test_drive_and_act(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "drive_and_act")
    looking = ("looking_or_moving_around (e.g. searching)",)
    assert facts(manifest.clips, "video_path", "start_frame", "end_frame", "split", "label_names") == [
        ("kinect_color/vp5/run1_b.kinect_color.mp4", 0, 45, "test", ("writing",)),
        ("kinect_color/vp1/run1_a.kinect_color.mp4", 10, 55, "train", looking),
        ("kinect_color/vp1/run1_a.kinect_color.mp4", 55, 57, "train", ("eating",)),
    ]
    assert {(clip.fps_num, clip.fps_den) for clip in manifest.clips} == {(15, 1)}
    assert {clip.protocol for clip in manifest.clips} == {"split0"}
    (mirror,) = imported(tmp_path, "drive_and_act", "view=inner_mirror").clips
    assert (mirror.modality, mirror.fps_num, mirror.camera_id) == ("nir", 30, "inner_mirror")
    assert mirror.group_id == manifest.clips[2].group_id == "vp1/run1_a:3:1"
    with pytest.raises(UserError, match="split_2"):
        imported(tmp_path, "drive_and_act", "split=2")


@pytest.mark.parametrize("split", [1, 2])
def test_drive_and_act_has_three_splits(tmp_path: Path, split: int) -> None:
    """The tables of another split deal the same chunks anew."""
    deal = {"train": "test", "test": "train"}
    files = {}
    for name, text in TREES["drive_and_act"].items():
        part = name.rpartition(".split_0.")[2].removesuffix(".csv")
        if part in deal:
            files[name.replace(f"split_0.{part}", f"split_{split}.{deal[part]}")] = text
    first = imported(tmp_path, "drive_and_act")
    other = imported(tmp_path, "drive_and_act", f"split={split}", files=files)
    assert {clip.protocol for clip in other.clips} == {f"split{split}"}
    assert {(clip.group_id, clip.start_frame): clip.split for clip in other.clips} == {
        (clip.group_id, clip.start_frame): deal[clip.split] for clip in first.clips
    }


def test_drive_and_act_labels_are_the_sorted_names() -> None:
    from pipeline.taxonomy import load_taxonomy

    taxonomy = load_taxonomy("drive_and_act")
    assert taxonomy is not None
    names = [label.name for label in taxonomy.labels]
    assert names == sorted(names)


def test_ntu_joins_video_and_skeleton(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "ntu60")
    both, skeleton = sorted(manifest.clips, key=lambda clip: clip.media_path)
    assert (both.video_path, both.skeleton_path, both.modality) == (
        "rgb/S001C001P001R001A001_rgb.avi",
        "skeletons/S001C001P001R001A001.skeleton",
        "rgb",
    )
    assert (both.label_ids, both.split, both.subject_id, both.camera_id) == ((0,), "train", "P001", "C001")
    assert both.group_id == "S001P001R001A001"
    assert (skeleton.label_ids, skeleton.split, skeleton.modality) == ((59,), "test", "skeleton")
    assert any("W_SKEL_LISTED_MISSING" in line and "1 samples" in line for line in manifest.warnings)


@pytest.mark.parametrize(
    ("name", "protocol", "trains"),
    [
        ("ntu60", "xsub", {"A001"}),
        ("ntu60", "xview", {"A060"}),
        ("ntu120", "xsub", {"A001"}),
        ("ntu120", "xset", {"A060", "A061"}),
    ],
)
def test_ntu_protocols(tmp_path: Path, name: str, protocol: str, trains: set[str]) -> None:
    manifest = import_dataset(name, put(tmp_path, TREES["ntu60"]), overrides=[f"protocol={protocol}"])
    assert {clip.clip_id[-4:] for clip in manifest.clips if clip.split == "train"} == trains
    assert len(manifest.clips) == (2 if name == "ntu60" else 3)  # ntu60 has no action 61
    assert {clip.protocol for clip in manifest.clips} == {protocol}


def test_ntu_protocols_have_the_published_sizes() -> None:
    """Of all setups, cameras and performers, as many train as the papers say."""
    from pipeline.taxonomy import load_taxonomy

    for name, sizes in (("ntu60", {"xsub": 20, "xview": 2}), ("ntu120", {"xsub": 53, "xset": 16})):
        taxonomy = load_taxonomy(name)
        assert taxonomy is not None
        assert {protocol: len(set(ids)) for protocol, ids in taxonomy.options["train"].items()} == sizes
        assert set(taxonomy.profiles) == set(sizes)


def test_pku_mmd(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "pku_mmd")
    assert facts(
        manifest.clips, "label_ids", "start_frame", "end_frame", "split", "camera_id", "media_path"
    ) == [
        ((4,), 10, 31, "train", "L", "skeletons/0002-L.txt"),
        ((50,), 40, 42, "train", "L", "skeletons/0002-L.txt"),
        ((0,), 0, 21, "val", "R", "videos/0003-R.avi"),
    ]
    views = imported(tmp_path, "pku_mmd", "protocol=xview")
    assert Counter(clip.split for clip in views.clips) == {"val": 2, "train": 1}
    with pytest.raises(UserError, match=r"0009-M\.label.*neither half"):
        imported(tmp_path, "pku_mmd", files={"labels/0009-M.label": "1,0,20,2\n"})


def test_n_ucla_from_json(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "n_ucla")
    assert facts(manifest.clips, "label_ids", "split", "skeleton_path", "skeleton_format", "video_path") == [
        ((9,), "test", "all_sqe/a12_s02_e01_v03.json", "ucla_json", None),
        ((0,), "train", "all_sqe/a01_s01_e00_v01.json", "ucla_json", None),
    ]
    with pytest.raises(UserError, match="a07_s01_e00_v01: no name of the dataset"):
        imported(tmp_path, "n_ucla", files={"all_sqe/a07_s01_e00_v01.json": "{}"})


def pack(path: Path, names: list[str], offsets: list[int], rows: int) -> None:
    np.savez(path, xyz=np.zeros((rows, 20, 3), np.float32), offsets=np.array(offsets), name=np.array(names))


def test_n_ucla_from_one_file(tmp_path: Path) -> None:
    names = ["a01_s01_e00_v01", "a02_s01_e00_v03", "a02_s01_e01_v03"]
    pack(tmp_path / "all.npz", names, [0, 5, 9, 10], 10)
    manifest = import_dataset("n_ucla", tmp_path)
    assert facts(manifest.clips, "clip_id", "start_frame", "end_frame", "split") == [
        ("n_ucla:test:a02_s01_e00_v03", 5, 9, "test"),
        ("n_ucla:test:a02_s01_e01_v03", 9, 10, "test"),
        ("n_ucla:train:a01_s01_e00_v01", 0, 5, "train"),
    ]
    for offsets in ([0, 5, 9], [0, 5, 5, 10], [0, 9, 5, 10], [0, 5, 9, 11]):
        pack(tmp_path / "all.npz", names, offsets, 10)
        with pytest.raises(UserError, match="offsets must rise"):
            import_dataset("n_ucla", tmp_path)
    np.savez(tmp_path / "all.npz", xyz=np.array([{}], object))  # a pickle inside: never loaded
    with pytest.raises(UserError, match="E_PICKLE_UNSAFE"):
        import_dataset("n_ucla", tmp_path)
    np.savez(tmp_path / "all.npz", xyz=np.zeros(1))
    with pytest.raises(UserError, match="want the arrays"):
        import_dataset("n_ucla", tmp_path)
    (tmp_path / "all.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"not an \.npz file; restore the file"):
        import_dataset("n_ucla", tmp_path)


@pytest.mark.skipif("BMOE_DATA" not in os.environ, reason="set BMOE_DATA to a folder that holds nw_ucla.npz")
def test_n_ucla_has_the_published_counts(tmp_path: Path) -> None:
    (tmp_path / "nw_ucla.npz").write_bytes((Path(os.environ["BMOE_DATA"]) / "nw_ucla.npz").read_bytes())
    manifest = import_dataset("n_ucla", tmp_path)
    assert Counter(clip.split for clip in manifest.clips) == {"train": 1020, "test": 464}
    report = validate(manifest)
    assert report.errors == 0
    assert "W_PROFILE_COUNT" not in report.counts


# ---- general ----------------------------------------------------------------------------------------------


def test_kinetics(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "kinetics")
    assert facts(manifest.clips, "video_path", "split", "label_names", "group_id") == [
        ("train/yoga/-ab_1_000010_000020.mp4", "train", ("yoga",), "-ab_1"),
        ("val/qq_000000_000010.mkv", "val", None, "qq"),
    ]
    assert [line for line in manifest.warnings if "1 of its clips" in line]
    with pytest.raises(UserError, match=r"val\.csv:2: youtube_id '\.\./x'"):
        imported(tmp_path, "kinetics", files={"val.csv": "youtube_id,time_start,time_end\n../x,0,10\n"})


def test_activitynet(tmp_path: Path) -> None:
    manifest = imported(tmp_path, "activitynet")
    assert facts(manifest.clips, "video_path", "start_frame", "end_frame", "label_names", "split") == [
        ("v2.mp4", None, None, None, "test"),
        ("videos/v1.mkv", 37, 100, ("x",), "train"),
    ]
    assert validate(manifest, levels=("file",)).counts["E_MISSING_FILE"] == 1
    with pytest.raises(UserError, match="option fps is None"):
        import_dataset("activitynet", tmp_path / "root")
    bare = json.loads(TREES["activitynet"]["all.json"])["database"]
    plain = imported(tmp_path, "activitynet", files={"all.json": json.dumps(bare)})
    assert plain.clips == manifest.clips
    for wrong in (
        '{"v": 3}',
        '{"v": {"annotations": 3}}',
        '{"../v": {}}',
        '{"v": {"annotations": [{"label": "x"}]}}',
    ):
        with pytest.raises(UserError, match=r"all\.json: "):
            imported(tmp_path, "activitynet", files={"all.json": wrong})
