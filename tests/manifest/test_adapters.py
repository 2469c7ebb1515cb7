"""Generic adapters: folder trees, path lists and CSV tables."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.datasets import import_dataset
from pipeline.datasets.path_list import parse_line
from pipeline.errors import UserError
from pipeline.manifest import CLIP_ID, Manifest, read_manifest, write_manifest
from pipeline.validate import validate


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def ids(manifest: Manifest) -> list[str]:
    return [clip.clip_id for clip in manifest.clips]


# ---- folder -----------------------------------------------------------------------------------------------


def test_class_folders_give_labels(tmp_path: Path) -> None:
    touch(tmp_path, "train/wave/a.mp4", "train/nod/b.MKV", "Validation/nod/c.webm", "train/nod/notes.txt")
    touch(tmp_path, ".cache/nod/x.mp4", "train/nod/._b.mp4")
    manifest = import_dataset("mine", tmp_path, "folder")
    assert ids(manifest) == ["mine:train:a", "mine:train:b", "mine:val:c"]
    assert [clip.label_names for clip in manifest.clips] == [("wave",), ("nod",), ("nod",)]
    assert [clip.label_ids for clip in manifest.clips] == [(1,), (0,), (0,)]
    assert [clip.split for clip in manifest.clips] == ["train", "train", "val"]
    assert manifest.taxonomy.label_space == manifest.clips[0].label_space == "mine2"
    assert manifest.root == tmp_path.resolve()
    assert validate(manifest).errors == 0


def test_labels_txt_gives_the_order(tmp_path: Path) -> None:
    touch(tmp_path, "wave/a.mp4", "nod/b.mp4")
    (tmp_path / "labels.txt").write_bytes(b"0\twave\r\n1\tnod\r\n2\tsit still\r\n")
    manifest = import_dataset("mine", tmp_path, "folder")
    assert [label.name for label in manifest.taxonomy.labels] == ["wave", "nod", "sit still"]
    assert [clip.label_ids for clip in manifest.clips] == [(0,), (1,)]
    (tmp_path / "labels.txt").write_text("wave\n")
    with pytest.raises(UserError, match="unknown label 'nod'"):
        import_dataset("mine", tmp_path, "folder")
    (tmp_path / "labels.txt").write_text("1 wave\n2 nod\n")
    with pytest.raises(UserError, match="ids must run"):
        import_dataset("mine", tmp_path, "folder")


@pytest.mark.parametrize(
    "paths", [["a.mp4", "nod/b.mp4"], ["nod/x/y/a.mp4", "nod/b.mp4"], ["train/a.mp4", "train/nod/b.mp4"]]
)
def test_irregular_trees_are_unlabelled(tmp_path: Path, paths: list[str]) -> None:
    manifest = import_dataset("mine", touch(tmp_path, *paths), "folder")
    assert sorted(clip.video_path for clip in manifest.clips) == sorted(paths)
    assert {clip.label_ids for clip in manifest.clips} == {None}
    assert {(clip.label_space, clip.label_kind) for clip in manifest.clips} == {("unlabelled", "none")}
    assert validate(manifest).errors == 0


def test_a_stray_video_takes_all_labels_with_a_word(tmp_path: Path) -> None:
    touch(tmp_path, "nod/a.mp4", "wave/b.mp4")
    assert import_dataset("mine", tmp_path, "folder").warnings == ()
    manifest = import_dataset("mine", touch(tmp_path, "stray.mp4", "x/y/z.mp4"), "folder")
    assert {clip.label_ids for clip in manifest.clips} == {None}
    assert [line.split(";")[0] for line in manifest.warnings] == [
        "W_NO_LABELS stray.mp4: the first of 2 videos that are not in [split/]class/, so that none of all 4 is labelled"
    ]


def test_built_in_labels_apply_to_folders(tmp_path: Path) -> None:
    manifest = import_dataset("demo", touch(tmp_path, "val/touching face/a.mp4"), "folder")
    assert (manifest.clips[0].label_ids, manifest.clips[0].coarse_ids) == ((10,), (4,))
    touch(tmp_path, "val/juggling/b.mp4")
    with pytest.raises(UserError, match=r"val/juggling/b\.mp4: unknown label 'juggling'"):
        import_dataset("demo", tmp_path, "folder")


def test_ids_are_unique_and_plain(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "b/x.mp4", "b/x.mkv", "b/ü 1.mp4", "b/plain.mp4", f"c/{'n' * 230}.mp4")
    manifest = import_dataset("mine", tmp_path, "folder")
    found = ids(manifest)
    assert len(set(found)) == 6
    assert all(CLIP_ID.fullmatch(clip_id) for clip_id in found)
    assert "mine:unsplit:plain" in found
    assert "mine:unsplit:x" not in found
    assert ids(import_dataset("mine", tmp_path, "folder")) == found


def test_links(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "nod/a.mp4")
    outside = touch(tmp_path / "outside", "b.mp4")
    (root / "nod/inside.mp4").symlink_to("a.mp4")
    (root / "again").symlink_to("nod")
    (root / "README").symlink_to(outside / "b.mp4")  # not a video: nobody opens it
    manifest = import_dataset("mine", root, "folder")
    assert [clip.video_path for clip in manifest.clips] == ["nod/a.mp4", "nod/inside.mp4"]
    for target in (outside / "b.mp4", tmp_path / "missing.mp4"):
        (root / "nod/out.mp4").symlink_to(target)
        with pytest.raises(UserError, match=r"nod/out\.mp4: E_PATH_ESCAPE"):
            import_dataset("mine", root, "folder")
        (root / "nod/out.mp4").unlink()
    (root / "out").symlink_to(outside)
    with pytest.raises(UserError, match="out: E_PATH_ESCAPE"):
        import_dataset("mine", root, "folder")


def test_odd_trees(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clips found"):
        import_dataset("mine", tmp_path, "folder")
    touch(tmp_path, "folder.mp4/a.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [clip.video_path for clip in import_dataset("mine", tmp_path, "folder").clips] == [
        "folder.mp4/a.mp4"
    ]
    bad = os.fsdecode(b"\xff.mp4")
    touch(tmp_path, bad)
    with pytest.raises(UserError, match="not UTF-8"):
        import_dataset("mine", tmp_path, "folder")
    (tmp_path / bad).unlink()
    touch(tmp_path, "a\\b.mp4")
    with pytest.raises(UserError, match="backslash"):
        import_dataset("mine", tmp_path, "folder")


@pytest.mark.skipif("BMOE_DATA" not in os.environ, reason="set BMOE_DATA to a folder that holds clips/")
def test_real_clips(tmp_path: Path) -> None:
    manifest = import_dataset("clips", Path(os.environ["BMOE_DATA"]) / "clips", "folder")
    assert len(manifest.clips) == 32
    assert {clip.label_ids for clip in manifest.clips} == {None}
    assert sum(clip.video_path.startswith("asl/") for clip in manifest.clips) == 14
    assert validate(manifest).errors == 0
    write_manifest(manifest, tmp_path / "clips.parquet")
    assert read_manifest(tmp_path / "clips.parquet") == manifest


# ---- list -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("a.mp4", {"video_path": "a.mp4"}),
        ("a.mp4 3", {"video_path": "a.mp4", "label_ids": (3,)}),
        ("a.mp4\t3", {"video_path": "a.mp4", "label_ids": (3,)}),
        ("a.mp4,3", {"video_path": "a.mp4", "label_ids": (3,)}),
        ("a.mp4 , 3", {"video_path": "a.mp4", "label_ids": (3,)}),
        ("a.mp4 -1", {"video_path": "a.mp4"}),
        ("dir/a b.MP4   3", {"video_path": "dir/a b.MP4", "label_ids": (3,)}),
        ("a, b.mp4 3", {"video_path": "a, b.mp4", "label_ids": (3,)}),
        ("a 1, b 2.mp4\t3", {"video_path": "a 1, b 2.mp4", "label_ids": (3,)}),
        ("12 34.mp4", {"video_path": "12 34.mp4"}),
        ("./a//b.mp4 3", {"video_path": "a/b.mp4", "label_ids": (3,)}),
        ("frames/clip 3", {"video_path": "frames/clip", "label_ids": (3,)}),
        ("frames/clip 40 3", {"video_path": "frames/clip", "n_frames": 40, "label_ids": (3,)}),
        ("a.mp4 40 3", {"video_path": "a.mp4", "n_frames": 40, "label_ids": (3,)}),
        ("a.mp4 5 40 3", {"video_path": "a.mp4", "start_frame": 5, "end_frame": 45, "label_ids": (3,)}),
        (
            "clip 7.mp4 5 40 3",
            {"video_path": "clip 7.mp4", "start_frame": 5, "end_frame": 45, "label_ids": (3,)},
        ),
    ],
)
def test_list_grammar(line: str, row: dict[str, object]) -> None:
    assert parse_line(line) == row
    assert parse_line(f"{line}\r") == row


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4 nod", "no label"),
        ("a.mp4 1.5", "no label"),
        ("a.txt", "no label"),
        ("3", "no label"),
        ("a.mp4 -2", "label -2"),
        ("a.mp4 0 3", "0 frames"),
        ("a.mp4 -1 9 3", "offset -1"),
        ("a.mp4 1 2 3 4", "4 or more numbers"),
        ("/a.mp4 3", "E_PATH_ABSOLUTE"),
        ("../a.mp4 3", "E_PATH_ESCAPE"),
        ("a\\b.mp4 3", "E_PATH_ABSOLUTE"),
        ("a.mp4 99999999999999999999", "no label"),
    ],
)
def test_bad_list_lines(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_line(line, "videos/")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab 1-,\t./\\#é.mp4", max_size=20))
def test_any_list_line_is_a_row_or_a_reason(line: str) -> None:
    try:
        row = parse_line(line)
    except ValueError:
        return
    assert not row["video_path"].startswith("/")
    assert ".." not in row["video_path"].split("/")
    assert all(label >= 0 for label in row.get("label_ids", ()))


def test_lists_give_splits_names_and_lines(tmp_path: Path) -> None:
    (tmp_path / "train_list.txt").write_bytes(b"\xef\xbb\xbf# made by hand\r\n\r\nv/a.mp4 1\r\nv/b.mp4 0\r\n")
    (tmp_path / "my-validation-list.txt").write_text("v/c.mp4 -1\n")
    (tmp_path / "notes.txt").write_text("not a list at all\n")
    (tmp_path / "label_name.txt").write_bytes(b"0\tnod\r\n1\twave")
    manifest = import_dataset("mine", tmp_path, "list")
    assert ids(manifest) == ["mine:train:a", "mine:train:b", "mine:val:c"]
    assert [clip.label_names for clip in manifest.clips] == [("wave",), ("nod",), None]
    assert [(clip.source_file, clip.source_line) for clip in manifest.clips] == [
        ("train_list.txt", 3), ("train_list.txt", 4), ("my-validation-list.txt", 1),
    ]  # fmt: skip


def test_lists_without_names_or_labels(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("a.mp4 2\nb.mp4 0\n")
    manifest = import_dataset("mine", tmp_path, "list")
    assert [label.name for label in manifest.taxonomy.labels] == ["class 0", "class 1", "class 2"]
    (tmp_path / "all.txt").write_text("a.mp4\nb.mp4\n")
    assert import_dataset("mine", tmp_path, "list").taxonomy.label_kind == "none"
    (tmp_path / "all.txt").write_text("a.mp4 2000000000\n")
    with pytest.raises(UserError, match=r"all\.txt:1: label 2000000000"):
        import_dataset("mine", tmp_path, "list")


def test_bad_lines_are_collected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list of clips"):
        import_dataset("mine", tmp_path, "list")
    (tmp_path / "train.txt").write_text("a.mp4 0\n" + "b.mp4 x\n" * 12)
    with pytest.raises(UserError) as caught:
        import_dataset("mine", tmp_path, "list")
    message = str(caught.value)
    assert "train.txt:2: " in message
    assert "train.txt:11: " in message
    assert "train.txt:12: " not in message
    assert "(and 2 more)" in message
    assert "\n" not in message


def test_label_range_and_repeats_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a.mp4 12\n")
    with pytest.raises(UserError, match=r"train\.txt:1: E_LABEL_RANGE label 12 \(want 0 to 11 of demo12\)"):
        import_dataset("demo", tmp_path, "list")
    (tmp_path / "train.txt").write_text("a.mp4 1\na.mp4 1\n")
    with pytest.raises(UserError, match=r"train\.txt:2: .*train\.txt:1"):
        import_dataset("mine", tmp_path, "list")
    (tmp_path / "train.txt").write_bytes("ü.mp4 1\n".encode("latin-1"))
    with pytest.raises(UserError, match="E_ENCODING"):
        import_dataset("mine", tmp_path, "list")


# ---- csv --------------------------------------------------------------------------------------------------


def table(root: Path, text: str, name: str = "clips.csv") -> Path:
    (root / name).write_bytes(text.encode())
    return root


def test_csv_demo(tmp_path: Path) -> None:
    table(
        tmp_path,
        "\ufeffvideo_path,split,subject_id,label,seed\r\nv/a.mp4,train,s1,nodding,7\r\n"
        '"v/b, c.mp4",val,s2,touching face,\r\n',
    )
    manifest = import_dataset("demo", tmp_path)
    one, two = manifest.clips
    assert (one.clip_id, one.label_ids, one.label_names, one.coarse_ids) == (
        "demo:train:a",
        (2,),
        ("nodding",),
        (1,),
    )
    assert (one.split, one.subject_id, one.protocol, one.license_tag) == ("train", "s1", "official", "own")
    assert (one.label_space, one.label_kind, one.source_file, one.source_line) == (
        "demo12",
        "single",
        "clips.csv",
        2,
    )
    assert json.loads(one.extra or "") == {"seed": "7"}
    assert (two.video_path, two.label_ids, two.coarse_ids, two.extra) == ("v/b, c.mp4", (10,), (4,), None)
    assert CLIP_ID.fullmatch(two.clip_id)


def test_csv_times(tmp_path: Path) -> None:
    table(
        tmp_path,
        "video_path,start_s,end_s,start_frame,end_frame,fps\n"
        "a.mp4,1.0,2.0,,,30\n"
        "b.mp4,1.0,2.0,31,60,30\n"
        "c.mp4,1.001,,,,30000/1001\n"
        "d.mp4,,,5,,\n"
        "e.mp4,1.02,2.01,,,30\n"
        "f.mp4,0,1.1,,,30\n",
    )
    a, b, c, d, e, f = import_dataset("mine", tmp_path, "csv").clips
    assert (a.start_frame, a.end_frame, a.start_s, a.fps_num, a.fps_den) == (30, 60, 1.0, 30, 1)
    assert (b.start_frame, b.end_frame) == (31, 60)
    assert (c.start_frame, c.end_frame, c.fps_num, c.fps_den) == (30, None, 30000, 1001)
    assert (d.start_frame, d.end_frame, d.start_s) == (5, None, None)
    assert (e.start_frame, e.end_frame) == (30, 61)  # the frames that the seconds touch
    assert (f.start_frame, f.end_frame) == (0, 33)  # exact: the float nearest to 1.1 is a little more
    assert a.clip_id == "mine:unsplit:a:30-60"


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("start_s,start_frame,fps", "1.0,32,30", "E_TIME_CONFLICT start_s 1 s at 30 fps is frame 30.0"),
        ("end_s,end_frame,fps", "2.0,30,30", "E_TIME_CONFLICT end_s"),
        ("start_s", "1.0", "start_s without fps"),
        ("start_frame,end_frame", "5,5", "E_END_BEFORE_START"),
        ("start_s,end_s,fps", "2.0,1.0,25", "E_END_BEFORE_START"),
        ("start_frame", "-1", "start_frame '-1'"),
        ("start_frame", "1.5", "start_frame '1.5'"),
        ("start_s,fps", "nan,30", "start_s 'nan'"),
        ("start_s,fps", '"1,5",30', "start_s '1,5'"),
        ("start_s,fps", "1_0,30", "start_s '1_0'"),
        ("fps", "0", "fps '0'"),
        ("fps", "1e9", "fps '1e9'"),
        ("fps", "30/0", "fps '30/0'"),
        ("split", "dev", "E_SPLIT_UNKNOWN 'dev'"),
        ("label", "juggling", "unknown label 'juggling'"),
        ("label_id", "12", "E_LABEL_RANGE label 12"),
        ("label_id", "two", "label_id 'two'"),
        ("label,label_id", "nodding,3", "E_LABEL_NAME_MISMATCH"),
        ("label,label_id", "juggling,0", "E_LABEL_NAME_MISMATCH"),
        ("labels,label", "nodding,nodding", "both given"),
        ("labels", "nodding;waving", "E_LABEL_KIND 2 labels"),
        ("clip_id", "a b", "clip_id 'a b'"),
        ("n_frames", "5,6", "3 fields, want 2"),
    ],
)
def test_csv_conflicts(tmp_path: Path, header: str, row: str, message: str) -> None:
    table(tmp_path, f"video_path,{header}\na.mp4,{row}\n")
    with pytest.raises(UserError, match=r"clips\.csv:2: ") as caught:
        import_dataset("demo", tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.mp4,nod\n", "E_SCHEMA_MISSING_COLUMN video_path"),
        ("", "E_SCHEMA_MISSING_COLUMN video_path"),
        ("video_path,x,x\n", "'x' is there twice"),
        ("video_path\n\n", "no clips found"),
        ('video_path\n"a.mp4\n', "not CSV"),
        ("video_path,n\n,1\n", "E_NO_MEDIA"),
        ("video_path\n../a.mp4\n", "E_PATH_ESCAPE"),
        ("video_path\n/a.mp4\n", "E_PATH_ABSOLUTE"),
        ("video_path,clip_id\na.mp4,x\nb.mp4,x\n", "clips.csv:3"),
        ("video_path,labels\na.mp4,[1.5]\n", "want a list"),
        ("video_path,labels\na.mp4,[1\n", "clips.csv:2"),
        ("video_path,label,label_id\na.mp4,nod,0\nb.mp4,wave,0\n", "label 0 is 'wave', elsewhere 'nod'"),
        ("video_path,label,label_id\na.mp4,nod,0\nb.mp4,wave,\n", "some rows give label numbers"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        import_dataset("mine", table(tmp_path, text), "csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_must_be_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clips\.csv: no such table"):
        import_dataset("demo", tmp_path)
    table(tmp_path, "video_path\na.mp4\n", "one.csv")
    table(tmp_path, "video_path\na.mp4\n", "two.csv")
    with pytest.raises(UserError, match=r"found 2 \(one\.csv, two\.csv\)"):
        import_dataset("mine", tmp_path, "csv")


def test_csv_label_numbers_and_names_define_the_labels(tmp_path: Path) -> None:
    table(tmp_path, "video_path,label,label_id\na.mp4,wave,2\nb.mp4,nod,0\nc.mp4,,-1\n")
    manifest = import_dataset("mine", tmp_path, "csv")
    assert [label.name for label in manifest.taxonomy.labels] == ["nod", "class 1", "wave"]
    assert [clip.label_ids for clip in manifest.clips] == [(2,), (0,), None]


def test_csv_multi_label(tmp_path: Path) -> None:
    table(tmp_path, 'video_path,labels\na.mp4,wave; nod\nb.mp4,[]\nc.mp4,\nd.mp4,"[""nod""]"\n')
    manifest = import_dataset("mine", tmp_path, "csv")
    assert manifest.taxonomy.label_kind == "multi"
    assert [clip.label_ids for clip in manifest.clips] == [(0, 1), (), None, (0,)]
    assert manifest.clips[0].label_names == ("nod", "wave")
    assert validate(manifest, levels=("schema", "table")).errors == 0


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='av,"\n\r;[]01./ é\0-', max_size=40))
def test_any_csv_is_a_manifest_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    root = tmp_path_factory.mktemp("csv")
    (root / "t.csv").write_bytes(("video_path,labels,start_frame\n" + body).encode())
    with contextlib.suppress(UserError):  # anything else fails
        manifest = import_dataset("mine", root, "csv")
        report = validate(manifest, levels=("schema", "table"))
        assert set(report.counts) <= {"E_DUP_ROW", "W_CLASS_EMPTY", "W_CLIP_TOO_SHORT"}


def test_lines_of_old_macs_and_half_surrogates(tmp_path: Path) -> None:
    (tmp_path / "train_list.txt").write_bytes(b"a.mp4 0\rb.mp4 1\r")
    manifest = import_dataset("mine", tmp_path, "list")
    assert [clip.video_path for clip in manifest.clips] == ["a.mp4", "b.mp4"]
    assert [line.split()[0] for line in manifest.warnings] == ["W_CRLF"]
    (tmp_path / "a.json").write_text('{"v\\ud800": {"annotations": []}}')
    with pytest.raises(UserError, match=r"a\.json: not JSON.*surrogates"):
        import_dataset("mine", tmp_path, "activitynet", ["fps=25"])


def test_a_table_without_commas_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video_path;label\na.mp4;nod\n")
    with pytest.raises(
        UserError, match=r"E_SCHEMA_MISSING_COLUMN .*got video_path;label.*by semicolons: save"
    ):
        import_dataset("mine", tmp_path, "csv")
    (tmp_path / "a.csv").write_text("path,label\na.mp4,nod\n")
    with pytest.raises(UserError, match=r"with commas between them$"):
        import_dataset("mine", tmp_path, "csv")


def test_a_name_in_another_unicode_form_is_the_label_and_is_told(tmp_path: Path) -> None:
    """iMiGUE's class 13 has a full-width comma; copies of its tables have a plain one, and blanks at the end."""
    (tmp_path / "a.csv").write_text(
        'video_path,label\na.mp4,"Buckle button,pulling shirt collar, adjusting  tie "\nb.mp4,Head up\n'
    )
    manifest = import_dataset("imigue", tmp_path, "csv")
    assert [clip.label_ids for clip in manifest.clips] == [(13,), (27,)]
    assert [line.split()[0] for line in manifest.warnings] == ["W_NAME_NORMALISED"]
