"""The segment stage in a build: clips without landmarks, the stride option, carried regions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.demo.world import true_parts
from pipeline.encoders.sapiens2 import squash_antialiased
from pipeline.presets import load_recipe
from pipeline.regions import Boxes
from pipeline.report import describe
from pipeline.run.build import build
from pipeline.spec import RegionsSpec
from pipeline.stages.regions import carried
from pipeline.stages.work import Work
from pipeline.store.reader import Cache
from tests.encoders.segmenters import make_task, standing
from tests.run.worlds import bmoe, import_clips, receipts

PRESET = {
    "segment": {"weights": "landmarks", "label_size": [96, 80], "stride": 4},
    "semantic": {"weights": "demo-videomaev2", "stride": 16},
    "motion": {"weights": "demo-manet", "short_side": 96, "crop": 96},
}


def test_a_clip_without_its_landmarks_is_quarantined(small_world: Path, tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "landmarks"
    folder.mkdir()
    import_clips(cache, small_world)
    clips = Cache(cache).dataset("demo").clips
    for clip in clips[1:]:
        truth = true_parts(small_world, clip.media_path)
        assert truth is not None
        arrays = {
            **standing(len(truth)),
            "size": np.array(truth.shape[1:]),
            "person": (truth > 0) * np.uint8(255),
        }
        np.savez(folder / f"{Path(clip.media_path).stem}.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(PRESET))
    recipe = load_recipe(str(tmp_path / "preset.yaml"), tmp_path)
    result = build(cache, "demo", recipe, ("segment", "regions"))
    assert (result.clips.done, result.clips.quarantined) == (len(clips) - 1, 1)
    (entry,) = describe(cache, "demo")["quarantine"]
    assert (entry["clip_id"], entry["stage"], entry["code"]) == (clips[0].clip_id, "segment", "E_LANDMARKS")
    assert {facts["stride"] for facts in receipts(cache, "demo", "segment").values()} == {4}


def test_segment_stride_is_the_option_of_the_preset(built_cache: Path) -> None:
    options = ("--dataset", "demo", "--cache", built_cache, "--preset", "demo", "--json")
    planned = bmoe("plan", *options, "--segment-stride", "5")
    assert planned.returncode == 0, planned.stderr
    (segment,) = (stage for stage in json.loads(planned.stdout)["stages"] if stage["stage"] == "segment")
    assert segment["key"] == load_recipe("demo", overrides=["segment.stride=5"]).spec.segment.key
    assert segment["state"] != "fresh"
    assert bmoe("plan", *options, "--segment-stride", "0").returncode == 2


@pytest.mark.parametrize("carry", ["nearest", "blend"])
def test_carried_regions_of_chosen_frames(carry: str) -> None:
    labels = np.zeros((2, 20, 30), np.uint8)
    labels[0, 5:15, 2:10] = 2
    labels[1, 5:15, 18:26] = 2
    spec = RegionsSpec(
        reads={}, parts={"head": (2,), "body": (), "upper_limb": (), "lower_limb": ()}, carry=carry
    )
    box = np.zeros((2, 4, 4), np.float32)
    box[:, 0] = [[0.1, 0.2, 0.3, 0.8], [0.6, 0.2, 0.8, 0.8]]
    present = np.array([[1, 0, 0, 0]] * 2, np.uint8)
    boxes = Boxes(box, present.astype(np.float32), present)
    work = Work(make_task(), labels=labels, under=np.zeros_like(labels), boxes=boxes)
    held, maps = carried(work, spec, 4, np.array([0, 1, 4, 6]))
    assert maps.shape == (4, 20, 30)
    assert np.array_equal(maps[0], (labels[0] == 2).astype(np.uint8))
    assert np.array_equal(maps[2], maps[3])
    moved = pytest.approx(0.1 + (0.5 / 4 if carry == "blend" else 0))
    assert held.box[1, 0, 0] == moved


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_antialiased_squash_is_the_same_on_a_gpu() -> None:
    frames = torch.randint(0, 256, (2, 270, 200, 3), dtype=torch.uint8)
    host = squash_antialiased(frames, (128, 96)).float()
    assert (squash_antialiased(frames.cuda(), (128, 96)).cpu() - host).abs().max() <= 1
