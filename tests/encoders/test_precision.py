"""bfloat16 against float32 (autocast on the CPU): features point the same way, labels are the same.

The bounds are those of docs/encoders.md, which says what was measured.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.demo.world import plan_world, render_clip
from pipeline.encoders import create_model
from pipeline.encoders.checkpoints import load_encoder
from pipeline.encoders.preprocess import (
    manet_indices,
    manet_input,
    normalisation,
    sapiens_input,
    videomae_input,
)
from pipeline.encoders.weights import resolve_weights, weights_entry

from .parity import synthetic


def demo_model(name: str) -> Any:
    entry = weights_entry(name)
    return load_encoder(entry.model, entry.config, resolve_weights(entry))


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Two clips of the demo world, uint8 [F, 192, 160, 3]."""
    plans = plan_world(per_class={"train": 1, "val": 1})
    return [render_clip(plans[index])[0] for index in (0, 9)]


def both(model: Any, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
    return exact, {name: value.float() for name, value in half.items()}


def cosines(exact: Tensor, half: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(exact.double(), half.double(), dim=-1)


def check(found: Tensor) -> None:
    assert found.mean() >= 0.999
    assert found.min() >= 0.99
    assert found.max() < 1  # it did run in another precision


def test_features_of_the_demo_videomae(frames: list[np.ndarray]) -> None:
    windows = [videomae_input(clip[start : start + 16], 64) for clip in frames for start in range(0, 24, 3)]
    exact, half = both(demo_model("demo-videomaev2"), torch.stack(windows).transpose(1, 2))
    check(cosines(exact["features"], half["features"]))


def test_features_of_the_demo_manet(frames: list[np.ndarray]) -> None:
    clips = torch.stack([manet_input(clip[manet_indices(len(clip))], 96, 96) for clip in frames])
    exact, half = both(demo_model("demo-manet"), clips)
    check(cosines(exact["segment_features"], half["segment_features"]))


def test_labels_of_the_demo_segmenter(frames: list[np.ndarray]) -> None:
    x = torch.cat([sapiens_input(clip[::12], (192, 160), *normalisation("mmseg")) for clip in frames])
    exact, half = both(demo_model("demo-segmenter"), x)
    same = (exact["logits"].argmax(1) == half["logits"].argmax(1)).float().mean().item()
    assert same >= 0.99
    assert not torch.equal(exact["logits"], half["logits"])


@pytest.mark.slow
def test_features_of_base_with_synthetic_weights() -> None:
    with torch.device("meta"):
        model = create_model("videomaev2-base", num_classes=0)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    state = {
        key: torch.from_numpy(np.asarray(v)) for key, v in synthetic.state_dict(shapes, "precision").items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    x = torch.from_numpy(synthetic.array("windows", [4, 3, 16, 224, 224], "precision"))
    exact, half = both(model.eval(), x)
    check(cosines(exact["features"], half["features"]))
