"""The MA-52 adapter on generated trees of the released form (CRLF lists, invented names)."""

import json
import time
from pathlib import Path

import pytest

from pipeline.datasets import import_dataset
from pipeline.errors import UserError
from pipeline.manifest import Clip, Manifest
from pipeline.taxonomy import load_taxonomy
from pipeline.validate import validate

GROUPS = [sum(i >= t for t in (5, 11, 24, 32, 38, 48)) for i in range(52)]


def names(count: int, session: int) -> list[str]:
    """Rows as in the release: 52 labels, 186 subjects, the middle field is the body-level group."""
    return [
        f"{i % 186 + 3:04d}_{GROUPS[i % 52]:02d}_{i + 10_000 * session % 9999:04d}.mp4 {i % 52}"
        for i in range(count)
    ]


def write_lists(folder: Path, train: int, val: int, test: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_list_videos.txt").write_bytes("".join(f"{row}\r\n" for row in names(train, 0)).encode())
    (folder / "val_list_videos.txt").write_bytes("".join(f"{row}\r\n" for row in names(val, 1)).encode())
    (folder / "test_list_videos.txt").write_bytes(
        "\r\n".join(f"test{i:04d}.mp4 0" for i in range(test)).encode()
    )
    taxonomy = load_taxonomy("ma52")
    assert taxonomy is not None
    labels = "\r\n".join(f"{label.id}\t{label.name}" for label in taxonomy.labels)
    (folder / "label_name.txt").write_bytes(labels.encode())


def by_split(manifest: Manifest, split: str) -> list[Clip]:
    return [clip for clip in manifest.clips if clip.split == split]


def tree(root: Path, folders: str, lists: str) -> Path:
    for split in ("train", "val", "test"):
        (root / folders.format(split)).mkdir(parents=True)
    write_lists(root / lists, 60, 55, 8)
    return root


@pytest.mark.parametrize(
    ("folders", "lists"), [("videos_{}", "."), ("raw_videos/{}", "."), ("{}", "annotations"), ("{}", ".")]
)
def test_layouts(tmp_path: Path, folders: str, lists: str) -> None:
    manifest = import_dataset("ma52", tree(tmp_path, folders, lists))
    train = by_split(manifest, "train")
    assert (len(train), len(by_split(manifest, "val")), len(by_split(manifest, "test"))) == (60, 55, 8)
    one = next(clip for clip in train if clip.source_line == 10)
    assert one.video_path == f"{folders.format('train')}/0012_01_0009.mp4"
    assert (one.clip_id, one.subject_id, one.label_ids) == ("ma52:train:0012_01_0009", "0012", (9,))
    assert (one.label_names, one.coarse_ids, one.label_space) == (("nodding",), (1,), "ma52_v1")
    assert (one.protocol, one.license_tag) == ("official", "gated-noncommercial")
    assert one.source_file == str(Path(lists) / "train_list_videos.txt")
    assert all("\r" not in clip.video_path for clip in manifest.clips)


def test_test_labels_are_unknown(tmp_path: Path) -> None:
    for clip in by_split(import_dataset("ma52", tree(tmp_path, "videos_{}", ".")), "test"):
        assert clip.label_ids is clip.label_names is clip.coarse_ids is clip.subject_id is None
        assert json.loads(clip.extra or "") == {"placeholder_label": 0}
    (tmp_path / "test_list_videos.txt").write_text("x0.mp4 0\nx1.mp4 7\n")  # real labels, once released
    test = by_split(import_dataset("ma52", tmp_path), "test")
    assert [(clip.label_ids, clip.extra) for clip in test] == [((0,), None), ((7,), None)]


@pytest.mark.parametrize("rows", [5586, 1138, 0])
def test_all_test_lists_are_accepted(tmp_path: Path, rows: int) -> None:
    write_lists(tmp_path, 2, 2, rows)
    assert len(by_split(import_dataset("ma52", tmp_path), "test")) == rows


def test_full_size_is_quick(tmp_path: Path) -> None:
    write_lists(tmp_path, 9000, 5586, 5586)
    start = time.process_time()
    manifest = import_dataset("ma52", tmp_path)
    assert len(manifest.clips) == 9000 + 5586 + 5586
    assert time.process_time() - start < 3


def test_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no list of MA-52.*videos_train with \./\*\.txt.*annotations"):
        import_dataset("ma52", tmp_path)
    write_lists(tmp_path, 3, 3, 0)
    (tmp_path / "train_list_videos.txt").unlink()
    assert len(import_dataset("ma52", tmp_path).clips) == 3  # no videos, no train list: validate says so


def test_bad_lists(tmp_path: Path) -> None:
    write_lists(tmp_path, 3, 3, 3)
    (tmp_path / "val_list_videos.txt").write_bytes(b"0003_00_0001.mp4 52\r\n")
    with pytest.raises(UserError, match=r"val_list_videos\.txt:1: E_LABEL_RANGE label 52"):
        import_dataset("ma52", tmp_path)
    (tmp_path / "val_list_videos.txt").write_bytes(b"../0003_00_0001.mp4 2\r\n/a.mp4 1\r\n")
    with pytest.raises(UserError, match=r"val_list_videos\.txt:1: E_PATH_ESCAPE.*:2: E_PATH_ABSOLUTE"):
        import_dataset("ma52", tmp_path)


def test_other_label_names_are_refused(tmp_path: Path) -> None:
    write_lists(tmp_path, 3, 3, 3)
    path = tmp_path / "label_name.txt"
    path.write_bytes(path.read_bytes().replace(b"nodding", b"sleeping"))
    with pytest.raises(UserError, match="E_LABEL_NAME_MISMATCH label 9 is 'sleeping', want 'nodding'"):
        import_dataset("ma52", tmp_path)
    path.write_text("0 a\n1 b\n")
    with pytest.raises(UserError, match="2 label names, want 52"):
        import_dataset("ma52", tmp_path)


def test_linked_video_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_lists(root, 3, 3, 3)
    (root / "pool").mkdir()
    (root / "videos_train").symlink_to("pool")
    import_dataset("ma52", root)
    (tmp_path / "elsewhere").mkdir()
    (root / "videos_val").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"videos_val: E_PATH_ESCAPE"):
        import_dataset("ma52", root)


def test_another_name(tmp_path: Path) -> None:
    write_lists(tmp_path, 3, 3, 3)
    manifest = import_dataset("ma52_copy", tmp_path, "ma52")
    assert manifest.clips[0].clip_id.startswith("ma52_copy:")
    assert manifest.taxonomy.name == "ma52"
    assert validate(manifest, levels=("schema", "table")).errors == 0


def test_known_defects_are_warnings(tmp_path: Path) -> None:
    write_lists(tmp_path, 600, 300, 3)
    report = validate(import_dataset("ma52", tmp_path))
    assert report.counts == {
        "W_CRLF": 3,
        "W_LABEL_PLACEHOLDER": 1,
        "W_SPLIT_LEAK_SUBJECT": 186,
        "E_MISSING_FILE": 903,
        "W_PROFILE_COUNT": 3,
    }
    assert any(
        "test_list_videos.txt: 3 rows, the list of no release known" in line for line in report.lines()
    )
    warnings = [one.message for one in report.problems if one.code.startswith("W_")]
    assert all("docs/datasets/ma52.md" in line for line in warnings)


def test_own_folders(tmp_path: Path) -> None:
    write_lists(tmp_path / "meta", 3, 3, 0)
    (tmp_path / "pool/a").mkdir(parents=True)
    own = ["lists_dir=meta", "videos_dir.train=pool/a"]
    manifest = import_dataset("ma52", tmp_path, overrides=own)
    assert {clip.video_path.rsplit("/", 1)[0] for clip in manifest.clips if clip.video_path} == {
        "pool/a",
        "videos_val",
    }
    for wrong in ("videos_dir.train=../pool", "videos_dir.train=/pool", "lists_dir=.."):
        with pytest.raises(UserError, match="E_PATH_"):
            import_dataset("ma52", tmp_path, overrides=[wrong])
