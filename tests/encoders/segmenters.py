"""Small segmenters and what they need, shared by tests of the segment stage."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clip import Clip
from pipeline.encoders import create_model
from pipeline.encoders.contract import Segmenter
from pipeline.encoders.landmarks import LandmarkSegmenter
from pipeline.encoders.preprocess import normalisation
from pipeline.plan import ClipTask
from pipeline.spec import SegmentSpec
from pipeline.stages.work import Work

HEIGHT, WIDTH, FRAMES = 120, 96, 7  # of the test clips
LABEL_SIZE = (60, 48)
SAPIENS = {"embed_dim": 32, "depth": 1, "num_heads": 2, "image_size": [64, 48], "head_channels": 8}
SAPIENS2 = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_attention_heads": 1, "num_first_full_attention_layers": 1, "num_last_full_attention_layers": 0,
    "image_size": [64, 48], "patch_size": 16, "num_register_tokens": 2, "num_labels": 29,
    "head_config": {"upsample_out_channels": [16, 16], "conv_out_channels": [16]},
}  # fmt: skip
NAMES = ("sapiens-seg", "sapiens2-seg", "landmarks")

# A person facing us: x and y of the 33 landmarks as shares; their right side is on our left.
STANDING = {
    0: (0.50, 0.16), 2: (0.52, 0.14), 5: (0.48, 0.14), 7: (0.54, 0.15), 8: (0.46, 0.15), 9: (0.51, 0.18),
    10: (0.49, 0.18), 11: (0.62, 0.27), 12: (0.38, 0.27), 13: (0.70, 0.40), 14: (0.30, 0.40), 15: (0.72, 0.53),
    16: (0.28, 0.53), 17: (0.73, 0.57), 18: (0.27, 0.57), 19: (0.72, 0.57), 20: (0.28, 0.57), 23: (0.57, 0.53),
    24: (0.43, 0.53), 25: (0.58, 0.70), 26: (0.42, 0.70), 27: (0.58, 0.87), 28: (0.42, 0.87), 29: (0.58, 0.90),
    30: (0.42, 0.90), 31: (0.61, 0.92), 32: (0.39, 0.92),
}  # fmt: skip


def standing(frames: int = FRAMES, step: float = 0.01) -> dict[str, np.ndarray]:
    """The arrays of a landmark file: someone standing who moves to the right, hands not found."""
    pose = np.zeros((frames, 33, 4), np.float32)
    for joint in range(33):
        pose[:, joint, :2] = STANDING.get(joint, STANDING[0])
    pose[:, :, 0] += step * np.arange(frames)[:, None]
    pose[:, :, 3] = 1
    person = np.zeros((frames, HEIGHT, WIDTH), np.uint8)
    person[:, 5:-4, 20:-14] = 255
    hands = np.full((frames, 21, 4), np.nan, np.float32)
    size = np.array([HEIGHT, WIDTH])
    return {"pose": pose, "left_hand": hands, "right_hand": hands, "person": person, "size": size}


def make_segmenter(name: str, folder: Path) -> Segmenter:
    """A segmenter with random weights, or with the file of the clip that make_work gives."""
    torch.manual_seed(0)
    if name == "landmarks":
        np.savez(folder / "walk.npz", **standing())  # type: ignore[arg-type]
        return LandmarkSegmenter.from_files(folder).eval()
    config: dict[str, Any] = SAPIENS if name == "sapiens-seg" else {"config": SAPIENS2}
    return create_model(name, **config).eval()  # type: ignore[return-value]


def make_spec(segmenter: Segmenter, **options: Any) -> SegmentSpec:
    mean, std = normalisation("mmseg")
    values = {"label_size": LABEL_SIZE, "parts": segmenter.parts, **options}
    return SegmentSpec(model="test", config={}, weights="a" * 64, mean=mean, std=std, **values)


def make_task(key: str = "walk", **fields: Any) -> ClipTask:
    return ClipTask(key, Clip("walk", "test", "some/walk.mp4", **fields), FRAMES)


def make_work(frames: int = FRAMES, seed: int = 0, key: str = "walk") -> Work:
    """A clip of noise, a bright patch moving over it."""
    pixels = np.random.default_rng(seed).integers(0, 120, (frames, HEIGHT, WIDTH, 3), np.uint8)
    for t in range(frames):
        pixels[t, 30:90, 20 + 3 * t : 50 + 3 * t] += 100
    return Work(make_task(key), frames=pixels, facts={"frames": frames})
