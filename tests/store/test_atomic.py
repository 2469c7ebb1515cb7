"""The order that makes a file whole or absent, and append-only files."""

import os
from pathlib import Path

import pytest

from pipeline.store import atomic


def test_flush_rename_flush_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().suffix or 'folder'}")
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        assert self.parent == target.parent
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    atomic.write_bytes(tmp_path / "new" / "file", b"x")
    assert events == ["fsync folder", "fsync .tmp", "rename", "fsync folder"]


def test_failed_write_leaves_the_old_file_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_sweep_takes_only_the_debris_of_its_file(tmp_path: Path) -> None:
    for name in ("0", ".0.abcd.tmp", ".10.abcd.tmp", "other.tmp"):
        (tmp_path / name).touch()
    atomic.sweep(tmp_path / "0")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".10.abcd.tmp", "0", "other.tmp"]


def test_append_cuts_off_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert atomic.whole_lines(path) == []
    atomic.append_line(path, b"one\n")
    with path.open("ab") as file:
        file.write("torn é".encode()[:-1])
    assert atomic.whole_lines(path) == [b"one\n"]
    atomic.append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert atomic.whole_lines(path) == [b"one\n", b"two\n"]
