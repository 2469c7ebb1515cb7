"""The engine: decoding in the shadow of the encoders, overlap and lack of memory that change nothing."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.decode import DecodePool
from pipeline.errors import UserError
from pipeline.manifest import Clip
from pipeline.plan import ClipTask, Group
from pipeline.presets import Recipe, load_recipe
from pipeline.run import compiled
from pipeline.run.build import plan_dataset
from pipeline.run.engine import Engine, _ahead
from pipeline.stages import motion, segment, semantic
from pipeline.stages.packing import packed
from pipeline.stages.work import Work
from tests.run.worlds import import_clips

Written = dict[str, dict[str, np.ndarray]]  # "stage/array" -> clip key -> rows
STAGES = ("segment", "regions", "semantic", "motion")


def planned(world: Path, cache: Path, recipe: Recipe, stages: tuple[str, ...], clips: int) -> Group:
    """The first clips of the small world, lacking the given stages."""
    import_clips(cache, world)
    plan, _, _ = plan_dataset(cache, "demo", recipe, stages)
    tasks = plan.groups[0].clips[:clips]
    return Group(tasks, dict.fromkeys(stages, frozenset(task.key for task in tasks)))


def run(engine: Engine, group: Group) -> Written:
    written: Written = {}
    for work in engine.stream(group):
        assert work.error is None
        for stage, (arrays, _) in work.written.items():
            for name, rows in arrays.items():
                written.setdefault(f"{stage}/{name}", {})[work.task.key] = np.array(rows)
        work.release()
    assert {len(clips) for clips in written.values()} == {len(group.clips)}
    return written


def test_overlap_and_lack_of_memory_change_no_result(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("demo")
    group = planned(small_world, tmp_path / "cache", recipe, STAGES, 2)
    with Engine(tmp_path / "cache", small_world, recipe, STAGES) as engine:
        plain = run(engine, group)
        assert not engine.overlap or engine.device.type == "cuda"
        engine.overlap = True
        for module in (segment, semantic, motion):
            monkeypatch.setattr(module, "packed", partial(packed, overlap=True))
        overlapped = run(engine, group)
        refused = []

        def refuse(_: Any, inputs: tuple[torch.Tensor]) -> None:
            if len(inputs[0]) > 3:
                refused.append(len(inputs[0]))
                raise torch.OutOfMemoryError("injected")

        engine.models["semantic"].register_forward_pre_hook(refuse)
        halved = run(engine, group)
    assert refused
    assert plain.keys() == overlapped.keys() == halved.keys()
    for name, clips in plain.items():
        for key, rows in clips.items():
            assert np.array_equal(overlapped[name][key], rows), name
            np.testing.assert_allclose(halved[name][key], rows, atol=2e-5, err_msg=name)


def test_frames_are_decoded_while_an_encoder_computes(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, decoded, changed = 2, [], threading.Condition()
    decode = DecodePool._decode_clip

    def watched(self: DecodePool, worker: Any, job: Any) -> Any:
        frames = decode(self, worker, job)
        with changed:
            decoded.append(job.key)
            changed.notify_all()
        return frames

    monkeypatch.setattr(DecodePool, "_decode_clip", watched)
    recipe = load_recipe("demo", overrides=["run.batch.motion=1"])
    group = planned(small_world, tmp_path / "cache", recipe, ("motion",), 8)
    seen = []

    def compute(*_: object) -> None:
        if not seen:  # the first clip is in the encoder: others arrive meanwhile, but only so many
            with changed:
                assert changed.wait_for(lambda: len(decoded) >= 1 + workers, 30)
            time.sleep(0.3)
            assert len(decoded) <= 1 + workers + 1
        seen.append(len(decoded))

    with Engine(tmp_path / "cache", small_world, recipe, ("motion",), workers) as engine:
        engine.models["motion"].register_forward_pre_hook(compute)
        run(engine, group)
        assert engine.frames > 8 * 16
    assert len(seen) == 8


def works(count: int) -> Iterator[Work]:
    for i in range(count):
        yield Work(ClipTask(str(i), Clip(str(i), "test", "x.mp4"), 1))


def test_ahead_keeps_order_and_steps_once_with_each() -> None:
    stepped: list[str] = []
    passed = [work.task.key for work in _ahead(works(5), lambda work: stepped.append(work.task.key))]
    assert passed == stepped == ["0", "1", "2", "3", "4"]


def test_ahead_draws_one_while_another_is_held_and_passes_errors_on() -> None:
    drawn = threading.Event()

    def step(work: Work) -> None:
        if work.task.key == "1":
            drawn.set()
        if work.task.key == "2":
            raise ValueError("step failed")

    stream = _ahead(works(4), step)
    assert next(stream).task.key == "0"
    assert drawn.wait(20)
    assert next(stream).task.key == "1"
    with pytest.raises(ValueError, match="step failed"):
        next(stream)


def test_compiling_without_a_compiler_is_refused_at_once(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    recipe = load_recipe("demo", overrides=["run.compile=true"])
    with pytest.raises(UserError, match=r"run\.compile needs a C\+\+ compiler"):
        Engine(tmp_path, small_world, recipe, ("motion",))


def test_compiled_code_lies_beside_the_cache(tmp_path: Path) -> None:
    assert compiled.code_folder(tmp_path / "ma52") == tmp_path.resolve() / "ma52.compiled"


def test_a_model_that_is_not_of_its_stage_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    spec, manet = recipe.spec, recipe.spec.motion
    wrong = spec.replaced(replace(spec.semantic, model=manet.model, config=manet.config))
    weights = {**recipe.weights, "semantic": recipe.weights["motion"]}
    with pytest.raises(UserError, match="a manet is no WindowEncoder"):
        Engine(tmp_path, tmp_path, replace(recipe, spec=wrong, weights=weights), ("semantic",))
