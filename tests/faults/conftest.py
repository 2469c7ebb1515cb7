"""One server that forks builds of short clips, and a cache as an undisturbed build leaves it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.forks import Forks
from tests.run.worlds import import_clips


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="session")
def short_clips(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first window of every clip of the small world: a build of all takes about two seconds."""
    root = tmp_path_factory.mktemp("short")
    names = []
    for video in sorted((small_world / "videos").rglob("*.mp4")):
        names.append(f"{video.parent.name}_{video.name}")
        shutil.copy(video, root / names[-1])
    rows = (f"{name},0,16" for name in names)
    (root / "clips.csv").write_text("\n".join(["video_path,start_frame,end_frame", *rows]) + "\n")
    return root


@pytest.fixture(scope="session")
def undisturbed(short_clips: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in one go, with the small shards and blocks that all builds of `forks` have."""
    folder = tmp_path_factory.mktemp("undisturbed")
    import_clips(folder / "cache", short_clips, "demo", "csv")
    assert forks.wait(forks.start(folder / "cache", folder / "events")) == 0
    return folder / "cache"


@pytest.fixture
def cache(short_clips: Path, undisturbed: Path, tmp_path: Path) -> Path:
    """A cache that holds the dataset "demo", its files read, and no features."""
    import_clips(tmp_path / "cache", short_clips, "demo", "csv")
    media = "manifests/demo.media.parquet"
    (tmp_path / "cache" / media).write_bytes((undisturbed / media).read_bytes())
    return tmp_path / "cache"
