"""What a stage takes: multiply-adds and bytes of a row, in closed form from the configs. No torch, no weights.

A row is what `pipeline.plan.stage_rows` counts: a segmented frame (segment, regions), a window (semantic), a clip
(motion). One multiply-add (MAC) is two floating-point operations (FLOP). Counted are matrix products and
convolutions, as torch's FlopCounterMode does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.encoders import SIZES, family_of
from pipeline.person import LOOKS
from pipeline.spec import PipelineSpec, SemanticSpec

# Compressed label maps cost what their outlines are long. Labels and under of the demo's rendered people together take
# 4.5 bytes per pixel of height + width.
LABEL_BYTES = 4.5
REGION_SECONDS = 2e-8  # per label pixel, on one core of a 2.5 GHz Xeon: boxes need no encoder
REGION_BYTES = 4 * (4 * 4 + 4 + 1)  # box and area in float32, present; of each of the four regions


def videomaev2_macs(
    *,
    img_size: int = 224,
    patch_size: int = 16,
    embed_dim: int = 768,
    depth: int = 12,
    num_frames: int = 16,
    num_classes: int = 710,
    mlp_ratio: float = 4.0,
    **_: Any,
) -> int:
    """Of one window of one view."""
    tokens = num_frames // 2 * (img_size // patch_size) ** 2
    patches = tokens * 3 * 2 * patch_size**2 * embed_dim
    blocks = depth * _block_macs(tokens, embed_dim, round(embed_dim * mlp_ratio))
    return patches + blocks + embed_dim * num_classes


def sapiens_macs(
    *,
    embed_dim: int = 1024,
    depth: int = 24,
    image_size: Sequence[int] = (1024, 768),
    head_channels: int = 768,
    num_classes: int = 28,
    **_: Any,
) -> int:
    """Of one frame. The head works at up to half the input's size: two fifths of the 0.3b model's work."""
    tokens = image_size[0] // 16 * (image_size[1] // 16)
    patches = tokens * 3 * 16**2 * embed_dim
    blocks = depth * _block_macs(tokens, embed_dim, 4 * embed_dim)
    up = sum(  # three transposed 4 x 4 convolutions, each from 4**i times the tokens
        tokens * 4**i * 16 * (head_channels if i else embed_dim) * head_channels for i in range(3)
    )
    pixels = tokens * 4**3
    return patches + blocks + up + pixels * head_channels * (3 * head_channels + num_classes)


def manet_macs(
    *,
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    num_classes: int = 52,
    embed_dim: int = 300,
    segments: int = 8,
    crop: int = 224,
    **_: Any,
) -> int:
    """Of one clip of `segments` frames, crop x crop pixels each."""
    size = math.ceil(crop / 2)
    macs = size**2 * 7 * 7 * 3 * width
    size = math.ceil(size / 2)
    channels = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        for block in range(depth):
            out = math.ceil(size / 2) if block == 0 and stage > 0 else size
            macs += 2 * channels * (channels // 4)  # the gate
            macs += size**2 * channels * planes + out**2 * (9 * planes**2 + 4 * planes**2)
            if block == 0:
                macs += out**2 * channels * 4 * planes
            size, channels = out, 4 * planes
    head = channels * (num_classes + embed_dim) + embed_dim**2
    return segments * (macs + head)


def _block_macs(tokens: int, dim: int, hidden: int) -> int:
    return 4 * tokens * dim**2 + 2 * tokens * dim * hidden + 2 * tokens**2 * dim


ENCODER_MACS: Mapping[str, Callable[..., int]] = {
    "videomaev2": videomaev2_macs,
    "sapiens-seg": sapiens_macs,
    "manet": manet_macs,
}


def encoder_macs(model: str, config: Mapping[str, Any]) -> int | None:
    """Multiply-adds of one forward of one item; None for a family whose arithmetic is not written down here."""
    count = ENCODER_MACS.get(family_of(model))
    return count(**_options(model, config)) if count else None


def forwards(spec: PipelineSpec, stage: str, rows: int, clips: int) -> int:
    """How often the encoder of a stage runs for so many rows of so many clips; at most, where clips are short."""
    looks = LOOKS if stage == "segment" and spec.segment.crop == "person" else 0
    return rows + looks * clips


def row_macs(spec: PipelineSpec, stage: str) -> int | None:
    """Multiply-adds of one row of a stage, every view of a window counted; None where unknown."""
    if stage == "segment":
        return encoder_macs(spec.segment.model, spec.segment.config)
    if stage == "semantic":
        one = encoder_macs(spec.semantic.model, spec.semantic.config)
        return one and one * len(spec.semantic.views)
    if stage == "motion":
        return encoder_macs(spec.motion.model, {**spec.motion.config, "crop": spec.motion.crop})
    return 0


def row_bytes(spec: PipelineSpec, stage: str) -> int | None:
    """Bytes on disk of one row of a stage, about; None where a config does not say how wide its outputs are."""
    if stage == "segment":
        return round(LABEL_BYTES * sum(spec.segment.label_size))
    if stage == "regions":
        return REGION_BYTES
    if stage == "skeleton":
        return 16  # a joint: x, y, z, confidence
    if stage == "motion":
        return _motion_bytes(**_options(spec.motion.model, spec.motion.config))
    return _semantic_bytes(spec.semantic) if stage == "semantic" else None


def _semantic_bytes(spec: SemanticSpec) -> int | None:
    if family_of(spec.model) != "videomaev2":
        return None
    dim = _options(spec.model, spec.config).get("embed_dim", 768)
    numbers = len(spec.views) * dim
    if spec.tokens:
        places = len(spec.tokens["views"]) * spec.window // 2 * math.prod(spec.tokens["grid"])
        numbers += places * (spec.tokens["width"] or dim)
    return 2 * numbers + len(spec.views)  # float16, and a byte for every view: present or not


def _motion_bytes(
    *,
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    num_classes: int = 52,
    embed_dim: int = 300,
    segments: int = 8,
    **_: Any,
) -> int:
    channels = width * 2 ** (len(depths) - 1) * 4
    return 2 * segments * channels + 4 * num_classes + 4 * embed_dim


def _options(model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {**(SIZES[model][1] if model in SIZES else {}), **config}
