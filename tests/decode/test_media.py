"""Scanning a dataset's files: facts for good ones, a code and a sentence for the others."""

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.media import Media, read_media, scan, sha256_file, write_media
from tests.decode.clips import write_sound, write_video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "sub").mkdir()
    write_video(root / "sub/good.mp4", frames=10)
    write_video(root / "turned.mp4", frames=3, rotation=90)
    write_sound(root / "sound.wav")
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("a note\n" * 30)
    (root / "secret.mp4").write_bytes(b"x" * 10)
    (root / "secret.mp4").chmod(0)
    (root / "link.mp4").symlink_to("/etc/hostname")
    return root


def test_scan_never_raises_for_a_file(root: Path) -> None:
    codes = {
        "sub/good.mp4": None,
        "turned.mp4": None,
        "sound.wav": "E_NO_VIDEO_STREAM",
        "empty.mp4": "E_EMPTY_FILE",
        "text.mp4": "E_NOT_A_VIDEO",
        "sub": "E_NOT_A_FILE",
        "missing.mp4": "E_MISSING_FILE",
        "link.mp4": "E_PATH_ESCAPE",
        "../outside.mp4": "E_PATH_ESCAPE",
        "sub/good.mp4/inner.mp4": "E_MISSING_FILE",
    }
    if os.geteuid():
        codes["secret.mp4"] = "E_UNREADABLE"
    seen = []
    table = scan(root, [*codes, "sub/good.mp4"], on_progress=lambda done, total: seen.append((done, total)))
    assert {path: media.code for path, media in table.items()} == codes
    assert list(table) == list(codes)
    assert seen == [(done, len(codes)) for done in range(1, len(codes) + 1)]
    assert all(bool(media.error) == bool(media.code) for media in table.values())
    good = table["sub/good.mp4"]
    data = (root / "sub/good.mp4").read_bytes()
    assert (good.sha256, good.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (good.width, good.height, good.n_frames, good.fps_num, good.fps_den) == (96, 64, 10, 25, 1)
    assert (table["turned.mp4"].width, table["turned.mp4"].height) == (64, 96)
    assert table["text.mp4"].sha256 == sha256_file(root / "text.mp4")


def test_unchanged_files_are_not_read_again(root: Path) -> None:
    path = root / "sub/good.mp4"
    status = path.stat()
    known = Media("sub/good.mp4", status.st_size, status.st_mtime_ns, sha256="0" * 64, n_frames=7)
    assert scan(root, ["sub/good.mp4"], {"sub/good.mp4": known}) == {"sub/good.mp4": known}
    for stale in (
        known._replace(bytes=known.bytes + 1),
        known._replace(mtime_ns=known.mtime_ns - 1),
        known._replace(code="E_DECODE", error="was damaged"),
    ):
        assert scan(root, ["sub/good.mp4"], {"sub/good.mp4": stale})["sub/good.mp4"].n_frames == 10


def test_table_round_trip(root: Path, tmp_path: Path) -> None:
    table = scan(root, ["sub/good.mp4", "missing.mp4", "text.mp4"])
    file = tmp_path / "manifests/demo.media.parquet"
    assert read_media(file) == {}
    write_media(file, {})
    assert read_media(file) == {}
    write_media(file, table)
    assert read_media(file) == table
    assert list(read_media(file)) == list(table)
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("content", [b"", b"PAR1 not at all", b"PAR1" + bytes(200) + b"PAR1"])
def test_damaged_table_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "demo.media.parquet"
    file.write_bytes(content)
    with pytest.raises(UserError, match="delete it to scan again") as error:
        read_media(file)
    assert "\n" not in str(error.value)


def test_foreign_table_is_a_user_error(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "demo.media.parquet"
    pq.write_table(pa.table({"path": ["a"]}), file)
    with pytest.raises(UserError, match="version missing"):
        read_media(file)
