"""bfloat16 against float32 on the same inputs: cosine of features, share of pixels with the same label.

    python -m benchmarks.precision [--large] [--device cpu] [--out]

The demo encoders see rendered people. Synthetic weights are random numbers scaled like trained ones and see noise:
no class stands out there, so labels are hardest to keep. --large adds the models of real size (minutes on a CPU).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import arguments, report
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
from tests.encoders.parity import synthetic

SALT = "precision"


def demo_model(name: str) -> Any:
    """An embedded encoder."""
    entry = weights_entry(name)
    return load_encoder(entry.model, entry.config, resolve_weights(entry))


def synthetic_model(name: str, **config: Any) -> Any:
    """A model with the weights of the parity goldens' recipe."""
    with torch.device("meta"):
        model = create_model(name, **config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = {key: torch.from_numpy(np.asarray(v)) for key, v in synthetic.state_dict(shapes, SALT).items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    """A standard-normal input."""
    return torch.from_numpy(synthetic.array("input", shape, SALT))


def demo_clips() -> list[np.ndarray]:
    """Two clips of the demo world, uint8 [F, 192, 160, 3]."""
    plans = plan_world(per_class={"train": 1, "val": 1})
    return [render_clip(plans[index])[0] for index in (0, 9)]


def demo_videomae() -> tuple[Any, Tensor]:
    windows = [
        videomae_input(clip[start : start + 16], 64) for clip in demo_clips() for start in range(0, 24, 3)
    ]
    return demo_model("demo-videomaev2"), torch.stack(windows).transpose(1, 2)


def demo_manet() -> tuple[Any, Tensor]:
    clips = [manet_input(clip[manet_indices(len(clip))], 96, 96) for clip in demo_clips()]
    return demo_model("demo-manet"), torch.stack(clips)


def demo_segmenter() -> tuple[Any, Tensor]:
    frames = [sapiens_input(clip[::12], (192, 160), *normalisation("mmseg")) for clip in demo_clips()]
    return demo_model("demo-segmenter"), torch.cat(frames)


SMALL: dict[str, Callable[[], tuple[Any, Tensor]]] = {
    "demo-videomaev2": demo_videomae,
    "demo-manet": demo_manet,
    "demo-segmenter": demo_segmenter,
    "manet synthetic": lambda: (synthetic_model("manet"), noise(2, 8, 3, 224, 224)),
}
LARGE: dict[str, Callable[[], tuple[Any, Tensor]]] = {
    "videomaev2-base synthetic": lambda: (
        synthetic_model("videomaev2-base", num_classes=0),
        noise(4, 3, 16, 224, 224),
    ),
    "sapiens-seg-0.3b synthetic": lambda: (
        synthetic_model(
            "sapiens-seg-0.3b", image_size=[256, 192]
        ),  # a sixteenth of its own size, and of the time
        noise(2, 3, 256, 192),
    ),
}


def agreement(model: Any, x: Tensor, device: str = "cpu") -> dict[str, float]:
    """What bfloat16 keeps: {"cosine_mean", "cosine_min"} of features, or {"same_labels"}, a share of pixels."""
    model, x = model.to(device), x.to(device)
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast(device, torch.bfloat16):
            half = model(x)
    if "features" in exact or "segment_features" in exact:
        name = "features" if "features" in exact else "segment_features"
        cosines = F.cosine_similarity(exact[name].double(), half[name].double(), dim=-1)
        return {"cosine_mean": cosines.mean().item(), "cosine_min": cosines.min().item()}
    same = exact["logits"].argmax(1) == half["logits"].argmax(1)
    return {"same_labels": same.double().mean().item()}


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--large", action="store_true", help="also the models of real size")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    cases = SMALL | (LARGE if options.large else {})
    found = {name: agreement(*make(), options.device) for name, make in cases.items()}
    report("precision", {"device": options.device, "bfloat16": found}, options.out)


if __name__ == "__main__":
    main()
