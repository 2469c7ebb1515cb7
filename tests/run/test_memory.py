"""A small memory budget changes how frames come, and not one bit of what is made of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.decode.spans import SpanFrames
from pipeline.errors import UserError
from pipeline.presets import Recipe, load_recipe
from pipeline.run import crew
from pipeline.run.build import build
from pipeline.run.engine import Engine
from pipeline.run.worker import check_memory
from pipeline.stages.work import compressed, raw
from pipeline.store.jobs import load_jobs
from pipeline.store.shard import PackedRows
from tests.conftest import WORLD_CLIPS
from tests.run.test_engine import STAGES, planned
from tests.run.worlds import import_clips

MIB = 1 << 20
Made = dict[tuple[str, str, str], Any]


def made(world: Path, cache: Path, recipe: Recipe, memory: int, stages: tuple[str, ...] = STAGES) -> Made:
    """(stage, array or "facts", clip key) -> rows or facts of 2 clips."""
    group = planned(world, cache, recipe, stages, 2)
    found: Made = {}
    with Engine(cache, world, recipe, stages, memory=memory) as engine:
        for work in engine.stream(group):
            assert work.error is None
            for stage, (arrays, facts) in work.written.items():
                found[stage, "facts", work.task.key] = facts
                for name, rows in arrays.items():
                    packed = isinstance(rows, PackedRows)
                    assert packed == (stage == "segment" and memory < 64 * MIB)
                    found[stage, name, work.task.key] = rows[:]
            work.release()
        assert engine.pool._room.held == 0
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "segment.crop=person",
            "segment.stride=2",
            "regions.carry=blend",
            "regions.box=frame",
            "semantic.stride=3",
        ],
        [
            "semantic.stride=null",
            "semantic.windows=3",
            "semantic.tokens={grid: [2, 2], width: 8, views: [head, full]}",
        ],
    ],
)
def test_clips_decoded_in_spans_give_the_same_bits(
    small_world: Path, tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("demo", overrides=overrides)
    plain = made(small_world, tmp_path / "cache", recipe, 1024 * MIB)
    seen = []
    real = SpanFrames.__getitem__

    def watched(self: SpanFrames, index: Any) -> np.ndarray:
        frames = real(self, index)
        seen.append(len(frames))
        return frames

    monkeypatch.setattr(SpanFrames, "__getitem__", watched)
    tight = made(small_world, tmp_path / "cache", recipe, 8 * MIB)
    assert seen
    assert max(seen) <= 16  # never a whole clip
    assert plain.keys() == tight.keys()
    for name, value in plain.items():
        if name[1] == "facts":
            assert tight[name] == value, name
        else:
            assert tight[name].dtype == value.dtype
            assert np.array_equal(tight[name], value), name


def test_shards_that_do_not_fit_the_budget_are_refused() -> None:
    arrays = [raw("features", "float16", 1024, chunk_rows=64), compressed("labels", "uint8", 9, 9)]
    check_memory("semantic", 64, arrays, MIB)  # 128 KiB
    with pytest.raises(UserError, match=r"--memory 1023KiB .* takes 128KiB; give at least 1MiB, or"):
        check_memory("semantic", 64, arrays, MIB - 1024)


def test_with_smaller_shards_a_refused_build_goes_on(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "LEAST_MEMORY", 64 * MIB)
    cache, running = tmp_path / "cache", crew.Running(memory=64 * MIB)
    import_clips(cache, small_world)
    wide = ["semantic.stride=1", "semantic.tokens={grid: [4, 4], width: 96, views: [full, head]}"]
    with pytest.raises(UserError, match=r"stage semantic takes .*, or, .* lower run.shard_clips"):
        build(cache, "demo", load_recipe("demo", overrides=wide), running=running)
    assert not load_jobs(cache)
    assert not list(cache.glob("stages/*/*"))
    fewer = load_recipe("demo", overrides=[*wide, "run.shard_clips=1"])
    assert build(cache, "demo", fewer, running=running).clips.done == WORLD_CLIPS
