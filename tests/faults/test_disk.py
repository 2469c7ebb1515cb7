"""A full disk, a disk that cannot be written to, files that vanish, a cache of a newer version."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from pipeline.events import Event
from pipeline.presets import load_recipe
from pipeline.report import describe
from pipeline.run.build import build
from pipeline.store.records import load_record, to_bytes
from pipeline.store.verify import verify
from tests.faults.forks import ROOT, receipts_of
from tests.run.worlds import import_clips
from tests.skeletons.files import write_ucla
from tests.test_cli import run

CLIPS = 36
OPTIONS = ("--preset", "skeleton", "--set", "run.shard_clips=9")


def make_root(root: Path, clips: int = CLIPS) -> None:
    """Sequences of 20 kB each in the cache."""
    for i in range(clips):
        write_ucla(root / "all_sqe" / f"a01_s01_e{i:02d}_v01.json", 60 + i)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not mount a small file system: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def of_dataset(command: str, cache: Path, *more: str) -> tuple[int, str, str]:
    return run(command, "--dataset", "n_ucla", "--cache", cache, *more)


def one_line(done: tuple[int, str, str]) -> str:
    """The line that a refusal ends with; progress may come before."""
    status, _, said = done
    assert status == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert lines == said.splitlines()[-1:]
    return lines[0]


def test_full_disk_loses_nothing_and_the_next_run_goes_on(small_disk: Path, tmp_path: Path) -> None:
    make_root(tmp_path / "root")
    cache = small_disk / "cache"
    import_clips(cache, tmp_path / "root", "n_ucla")
    full = of_dataset("build", cache, *OPTIONS)
    assert "No space left on device" in one_line(full)
    assert str(small_disk) in one_line(full)
    kept = {path: path.read_bytes() for path in receipts_of(cache)}
    assert kept
    assert {problem.kind for problem in verify(cache).problems} <= {"leftover"}
    assert one_line(of_dataset("build", cache, *OPTIONS))  # still full: the same line, and nothing worse
    mount("-o", "remount,size=16m", small_disk)
    assert of_dataset("build", cache, *OPTIONS)[0] == 0
    assert {path: path.read_bytes() for path in kept} == kept
    assert describe(cache, "n_ucla")["clips"]["done"] == CLIPS
    assert verify(cache).problems == ()


def test_a_disk_that_cannot_be_written_to(small_disk: Path, tmp_path: Path) -> None:
    make_root(tmp_path / "root", 6)
    cache = small_disk / "cache"
    import_clips(cache, tmp_path / "root", "n_ucla")
    assert of_dataset("build", cache, *OPTIONS)[0] == 0
    make_root(tmp_path / "root", 8)
    import_clips(cache, tmp_path / "root", "n_ucla")
    mount("-o", "remount,ro", small_disk)
    assert "Read-only file system" in one_line(of_dataset("build", cache, *OPTIONS))
    for command in ("info", "failures"):
        assert of_dataset(command, cache)[0] == 0
    for command in ("ls", "verify", "gc"):
        assert run(command, "--cache", cache)[0] == 0
    mount("-o", "remount,rw", small_disk)
    assert of_dataset("build", cache, *OPTIONS)[0] == 0
    assert describe(cache, "n_ucla")["clips"]["done"] == 8


@pytest.mark.skipif(os.geteuid() == 0 and not which("setpriv"), reason="root may write everywhere")
def test_a_folder_of_others(tmp_path: Path) -> None:
    make_root(tmp_path / "root", 3)
    cache = tmp_path / "cache"
    import_clips(cache, tmp_path / "root", "n_ucla")
    without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*without, sys.executable, "-m", "cli", "build", "--dataset", "n_ucla", "--cache", str(cache)]

    def as_a_user() -> tuple[int, str, str]:
        done = subprocess.run([*command, *OPTIONS], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    cache.chmod(0o555)
    said = one_line(as_a_user())
    assert "Permission denied" in said
    assert str(cache) in said
    cache.chmod(0o755)
    assert as_a_user()[0] == 0
    assert describe(cache, "n_ucla")["clips"]["done"] == 3


def test_a_source_file_that_vanishes(tmp_path: Path) -> None:
    """Its clip is not refused: nothing is wrong with its content. It is computed when the file is back."""
    make_root(tmp_path / "root", 6)
    cache, recipe = tmp_path / "cache", load_recipe("skeleton")
    import_clips(cache, tmp_path / "root", "n_ucla")
    lost = sorted((tmp_path / "root" / "all_sqe").iterdir())[4]
    texts: list[str] = []

    def listen(event: Event) -> None:
        texts.append(event.text)
        if event.stage == "building" and event.kind == "step" and event.done == 1:
            lost.rename(tmp_path / "elsewhere")

    result = build(cache, "n_ucla", recipe, listen=listen)
    assert (result.clips.done, result.clips.quarantined, result.clips.pending) == (5, 1, 0)
    assert any("stays pending" in text and "does not exist" in text for text in texts)
    (line,) = describe(cache, "n_ucla")["quarantine"]
    assert (line["stage"], line["code"]) == ("files", "E_MISSING_FILE")
    assert build(cache, "n_ucla", recipe).clips.quarantined == 1  # still away
    (tmp_path / "elsewhere").rename(lost)
    result = build(cache, "n_ucla", recipe)
    assert (result.clips.done, result.computed) == (6, {"skeleton": 1})


def test_a_cache_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    make_root(tmp_path / "root", 3)
    cache = tmp_path / "cache"
    import_clips(cache, tmp_path / "root", "n_ucla")
    assert of_dataset("build", cache, *OPTIONS)[0] == 0
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    (stage_json,) = cache.glob("stages/*/*/stage.json")
    for path in (cache / "cache.json", stage_json):
        newer = to_bytes({**load_record(path), "format_version": 99})
        path.write_bytes(newer)
        for done in (
            of_dataset("build", cache, *OPTIONS),
            of_dataset("info", cache),
            run("ls", "--cache", cache),
        ):
            assert "is newer than" in one_line(done)
            assert "upgrade" in one_line(done)
        assert path.read_bytes() == newer
        path.write_bytes(before[path])
    job = cache / "jobs" / "0.json"
    job.parent.mkdir(exist_ok=True)
    job.write_bytes(to_bytes({"format_version": 99, "id": "x"}))
    assert "newer" in one_line(of_dataset("build", cache, *OPTIONS))
    job.unlink()
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads(of_dataset("info", cache, "--json")[1])["clips"]["done"] == 3
