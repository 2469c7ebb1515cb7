"""Shared fixtures: a small demo world and a cache built from it, made once per run of the suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Test processes run side by side: with two OpenMP threads each, four threads on two cores spin at every barrier and
# the suite takes three times as long. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")

WORLD_CLIPS = 12  # every second class, once in train and once in val; four clips hide the legs


@pytest.fixture(scope="session", autouse=True)
def _own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees or changes what the user's cache folder holds: downloaded weights, remembered digests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))
        patch.delenv("HF_HOME", raising=False)
        patch.delenv("HF_HUB_CACHE", raising=False)
        yield


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `bmoe-cache demo` renders it, of 12 clips."""
    from pipeline.demo.world import plan_world, render_world

    root = tmp_path_factory.mktemp("world")
    assert render_world(root, plan_world(per_class={"train": 1, "val": 1})[::2]) == WORLD_CLIPS
    return root


@pytest.fixture(scope="session")
def built_cache(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache holding the small world under the demo preset. Tests must not write to it."""
    from pipeline.presets import load_recipe
    from pipeline.run.build import build
    from tests.run.worlds import import_clips

    cache = tmp_path_factory.mktemp("built") / "cache"
    import_clips(cache, small_world)
    result = build(cache, "demo", load_recipe("demo"))
    assert result.clips.done == WORLD_CLIPS
    return cache
