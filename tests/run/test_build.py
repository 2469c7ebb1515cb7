"""The build from files to cache, with the demo encoders on a small demo world."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr

from pipeline.errors import UserError
from pipeline.media import Media
from pipeline.presets import FOLDER, Recipe, load_recipe
from pipeline.report import describe
from pipeline.run import build as build_module
from pipeline.run.build import build
from pipeline.spec import STAGES
from pipeline.store.jobs import Job, JobShard, create_job, load_jobs
from pipeline.store.reader import Cache
from tests.run.worlds import everything, import_clips, receipts


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("demo")


def small_shards(recipe: Recipe, clips: int) -> Recipe:
    return dataclasses.replace(recipe, run=recipe.run.model_copy(update={"shard_clips": clips}))


def test_every_clip_is_accounted_for(built_cache: Path) -> None:
    report = describe(built_cache, "demo")
    assert report["clips"] == {"manifest": 12, "done": 12, "quarantined": 0, "pending": 0}
    assert {name: stage["clips"] for name, stage in report["stages"].items()} == dict.fromkeys(STAGES, 12)
    assert report["quarantine"] == []


def test_receipts_say_what_happened(built_cache: Path) -> None:
    manifest = Cache(built_cache).dataset("demo")
    semantic, motion = receipts(built_cache, "demo", "semantic"), receipts(built_cache, "demo", "motion")
    for clip in manifest.clips:
        facts = semantic[clip.clip_id]
        starts = list(range(0, facts["frames"] - 15, 8))
        assert facts["start_frames"] == starts
        assert facts["repeated_frames"] == 0
        assert facts["fps"] == [30, 1]
        assert facts["decoder"].startswith(("decord", "pyav"))
        assert len(motion[clip.clip_id]["segment_frames"]) == 8


def test_shapes_and_absent_regions(built_cache: Path) -> None:
    reader = Cache(built_cache)
    semantic = reader.stage("semantic", reader.builds("demo")["stages"]["semantic"])
    absent = 0
    for key, rows in semantic.clips.items():
        features, present = semantic.read(key, "features"), semantic.read(key, "present")
        assert features.shape == (rows.n_rows, 5, 96)
        assert features.dtype == np.float16
        assert (present[:, 0] == 1).all()
        assert (features[present == 0] == 0).all()
        assert (features[present == 1] != 0).any(1).all()
        absent += int((present == 0).sum())
    assert absent > 0  # legs behind a desk


def test_zarr_opens_the_same_features(built_cache: Path) -> None:
    reader = Cache(built_cache)
    key = reader.builds("demo")["stages"]["semantic"]
    stage = reader.stage("semantic", key)
    group = zarr.open_group(built_cache / "stages" / "semantic" / key[:16] / "features.zarr", mode="r")
    array = np.asarray(group["features"][:])  # type: ignore[index]
    for clip_key, rows in stage.clips.items():
        start = rows.shard * stage.shard_rows + rows.row_start
        assert np.array_equal(array[start : start + rows.n_rows], stage.read(clip_key, "features"))


def test_second_build_recomputes_nothing(built_cache: Path, recipe: Recipe) -> None:
    before = {path: path.stat().st_mtime_ns for path in built_cache.glob("stages/**/*") if path.is_file()}
    result = build(built_cache, "demo", recipe)
    assert result.computed == dict.fromkeys(STAGES, 0)
    assert {stage.state for stage in result.before.stages} == {"fresh"}
    after = {path: path.stat().st_mtime_ns for path in built_cache.glob("stages/**/*") if path.is_file()}
    assert after == before


def test_segment_then_extract_equals_build(
    built_cache: Path, small_world: Path, tmp_path: Path, recipe: Recipe
) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    with pytest.raises(UserError, match="bmoe-cache segment"):
        build(cache, "demo", recipe, ("regions", "semantic", "motion"))
    assert build(cache, "demo", recipe, ("segment",)).computed == {"segment": 12}
    # Other shards than the whole build had: what a clip holds must not depend on its neighbours.
    result = build(cache, "demo", small_shards(recipe, 7), ("regions", "semantic", "motion"))
    assert result.computed == {"regions": 12, "semantic": 12, "motion": 12}
    whole, parts = everything(built_cache), everything(cache)
    assert whole.keys() == parts.keys()
    for name, rows in whole.items():
        if rows.dtype.kind == "f":
            np.testing.assert_allclose(
                parts[name].astype(np.float32), rows.astype(np.float32), atol=4e-3, err_msg=str(name)
            )
        else:
            assert np.array_equal(parts[name], rows), name


def test_motion_alone_equals_build(
    built_cache: Path, small_world: Path, tmp_path: Path, recipe: Recipe
) -> None:
    """Then only the frames that MANet sees are taken out of the decoder."""
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    assert build(cache, "demo", recipe, ("motion",)).computed == {"motion": 12}
    key = recipe.spec.motion.key
    whole, alone = (Cache(folder).stage("motion", key) for folder in (built_cache, cache))
    assert whole.clips.keys() == alone.clips.keys()
    for clip, there in whole.clips.items():
        assert alone.clips[clip].facts == there.facts
        for array in whole.arrays:
            assert np.array_equal(alone.read(clip, array), whole.read(clip, array)), (clip, array)


def test_a_job_of_which_nothing_is_left_ends(built_cache: Path, tmp_path: Path, recipe: Recipe) -> None:
    """Its clips came back another way: a build that knew less had claimed them."""
    cache = shutil.copytree(built_cache, tmp_path / "cache")
    key = recipe.spec.motion.key
    clips = tuple(Cache(cache).stage("motion", key).clips)
    shard = JobShard("motion", key, 9, clips, 64)
    assert create_job(cache, Job(0, "0" * 16, "demo", clips, (len(clips),), (shard,)))
    assert build(cache, "demo", recipe).clips.pending == 0
    assert not load_jobs(cache)


def test_changed_padding_recomputes_regions_and_semantic(built_cache: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built_cache, cache)
    preset = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    preset["regions"]["padding"] = 0.2
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(preset))
    result = build(cache, "demo", load_recipe(str(tmp_path / "wide.yaml")))
    assert result.computed == {"segment": 0, "regions": 12, "semantic": 12, "motion": 0}
    assert {stage.stage: stage.state for stage in result.before.stages} == {
        "segment": "fresh", "regions": "stale", "semantic": "stale", "motion": "fresh",
    }  # fmt: skip


def test_frames_beyond_the_header_find_another_shard(
    small_world: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headers promise 20 frames, the files hold 40 to 75: clips overflow their shard and are planned anew."""
    real_scan = build_module.scan

    def lying_scan(*args: object, **options: object) -> dict[str, Media]:
        media = real_scan(*args, **options)  # type: ignore[arg-type]
        return {path: file._replace(n_frames=20) for path, file in media.items()}

    monkeypatch.setattr(build_module, "scan", lying_scan)
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    result = build(cache, "demo", small_shards(recipe, 6))
    assert (result.clips.done, result.clips.pending) == (12, 0)
    report = describe(cache, "demo")
    assert report["stages"]["segment"]["shards"] > 3


def test_killed_build_goes_on_where_it_was(
    built_cache: Path, small_world: Path, tmp_path: Path, recipe: Recipe
) -> None:
    cache = tmp_path / "cache"
    import_clips(cache, small_world)
    program = (
        "import dataclasses, sys\nfrom pathlib import Path\nfrom pipeline.presets import load_recipe\n"
        "from pipeline.run.build import build\nrecipe = load_recipe('demo')\n"
        "run = recipe.run.model_copy(update={'shard_clips': 6})\n"
        "build(Path(sys.argv[1]), 'demo', dataclasses.replace(recipe, run=run))\n"
    )
    receipts_of_motion = cache / "stages" / "motion"
    process = subprocess.Popen([sys.executable, "-c", program, str(cache)], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(receipts_of_motion.glob("*/receipts/0.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.read_bytes() for path in cache.glob("stages/*/*/receipts/*.json")}
    assert kept
    half = describe(cache, "demo")["clips"]
    assert half["done"] >= 6
    assert half["pending"] > 0
    result = build(cache, "demo", small_shards(recipe, 6))
    assert result.clips.done == 12
    assert 12 - half["done"] <= result.computed["motion"] <= half["pending"]
    assert {path: path.read_bytes() for path in kept} == kept
    whole, resumed = everything(built_cache), everything(cache)
    assert whole.keys() == resumed.keys()
    for name, rows in whole.items():
        np.testing.assert_allclose(resumed[name].astype(np.float32), rows.astype(np.float32), atol=4e-3)


def test_missing_root_is_one_error(small_world: Path, tmp_path: Path, recipe: Recipe) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(small_world, moved)
    cache = tmp_path / "cache"
    import_clips(cache, moved)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="dataset import demo"):
        build(cache, "demo", recipe)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize(
    ("precision", "cosine", "same_labels"), [("float32", 0.99999, 0.999), ("bfloat16", 0.99, 0.99)]
)
def test_gpu_agrees_with_the_float32_of_the_cpu(
    precision: str,
    cosine: float,
    same_labels: float,
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(device: str, precision: str) -> dict[tuple[str, str, str], np.ndarray]:
        monkeypatch.setattr("pipeline.run.engine.pick_device", lambda: torch.device(device))
        import_clips(tmp_path / device, small_world)
        stages = ("segment", "semantic", "motion")
        build(
            tmp_path / device,
            "demo",
            load_recipe("demo", overrides=[f"{s}.precision={precision}" for s in stages]),
        )
        return everything(tmp_path / device)

    cosines = []
    fast = made("cuda", precision)
    for (stage, array, clip), rows in made("cpu", "float32").items():
        other = fast[stage, array, clip]
        if array == "labels":
            assert (other == rows).mean() >= same_labels
        elif array in ("features", "logits", "embedding"):
            a, b = (x.reshape(-1).astype(np.float64) for x in (rows, other))
            cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
            assert cosines[-1] >= cosine, (stage, array, clip)
    assert np.mean(cosines) >= 0.999
