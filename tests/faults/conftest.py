"""One server that forks builds, and a cache as an undisturbed build leaves it."""

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
def undisturbed(small_world: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in one go, with the small shards and blocks that all builds of `forks` have."""
    folder = tmp_path_factory.mktemp("undisturbed")
    import_clips(folder / "cache", small_world)
    assert forks.wait(forks.start(folder / "cache", folder / "events")) == 0
    return folder / "cache"


@pytest.fixture
def cache(small_world: Path, undisturbed: Path, tmp_path: Path) -> Path:
    """A cache that holds the dataset "demo", its files read, and no features."""
    import_clips(tmp_path / "cache", small_world)
    media = "manifests/demo.media.parquet"
    (tmp_path / "cache" / media).write_bytes((undisturbed / media).read_bytes())
    return tmp_path / "cache"
