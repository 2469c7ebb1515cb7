"""VideoMAE and V-JEPA 2 of transformers: equal to what transformers answers, and VideoMAE to our own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from pipeline.encoders import create_model
from pipeline.encoders.checkpoints import load_encoder
from pipeline.errors import UserError

from .test_window_encoders import VIDEOMAE, VJEPA2


def randomised(model: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval().requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- ours against transformers, the same weights under both names --------------------------------------------

SIZES = [
    {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_frames": 4},
    {"img_size": 42, "patch_size": 14, "embed_dim": 88, "depth": 3, "num_heads": 4, "num_frames": 2}
    | {"mlp_ratio": 48 / 11},
    {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_frames": 6},
]  # fmt: skip
BASE = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "num_frames": 16}


def transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the original VideoMAE-V2 files to those of transformers' VideoMAEModel (5.7 and later)."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("patch_embed."):
            renamed[key.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = value
        elif key.startswith("norm."):
            renamed[f"layernorm.{key.removeprefix('norm.')}"] = value
        elif key.startswith("blocks."):
            _, block, rest = key.split(".", 2)
            layer = f"encoder.layer.{block}"
            if rest == "attn.qkv.weight":
                for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    renamed[f"{layer}.attention.attention.{name}.weight"] = part
                continue
            for old, new in (
                ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("attn.proj", "attention.output.dense"),
                ("attn.q_bias", "attention.attention.query.bias"), ("attn.v_bias", "attention.attention.value.bias"),
                ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
            ):  # fmt: skip
                rest = rest.replace(old, new)
            renamed[f"{layer}.{rest}"] = value
    return renamed


def compare(size: dict[str, Any], final_norm: str, tolerance: float) -> None:
    ours = randomised(create_model("videomaev2", **size, num_classes=0, final_norm=final_norm))
    theirs = VideoMAEModel(
        VideoMAEConfig(
            image_size=size["img_size"], patch_size=size["patch_size"], num_frames=size["num_frames"],
            hidden_size=size["embed_dim"], num_hidden_layers=size["depth"], num_attention_heads=size["num_heads"],
            intermediate_size=round(size["embed_dim"] * size.get("mlp_ratio", 4)), layer_norm_eps=1e-6,
            use_mean_pooling=final_norm == "fc_norm",
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(transformers_names(ours.state_dict()), strict=True)
    x = noise(2, *ours.input_shape)
    with torch.inference_mode():
        out = ours(x, tokens=True)
        expected = theirs(x.transpose(1, 2)).last_hidden_state
    scale = expected.abs().max()
    assert ((out["tokens"].flatten(1, 3) - expected).abs().max() / scale).item() <= tolerance
    features = ours.fc_norm(expected.mean(1)) if final_norm == "fc_norm" else expected.mean(1)
    assert ((out["features"] - features).abs().max() / features.abs().max()).item() <= tolerance


@pytest.mark.parametrize("final_norm", ["fc_norm", "norm"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size['embed_dim']}x{size['depth']}")
def test_videomaev2_equals_transformers_videomae(size: dict[str, Any], final_norm: str) -> None:
    compare(size, final_norm, 1e-5)


@pytest.mark.slow
def test_videomaev2_base_equals_transformers_videomae() -> None:
    compare(BASE, "fc_norm", 1e-4)


# --- the wrappers against transformers, from folders as the hub has them --------------------------------------


def test_videomae_from_a_base_folder(tmp_path: Path) -> None:
    model = randomised(VideoMAEModel(VideoMAEConfig(**VIDEOMAE)))
    model.save_pretrained(tmp_path)
    x = noise(2, 3, 4, 32, 32)
    expected = model(x.transpose(1, 2)).last_hidden_state
    for path in (tmp_path, tmp_path / "model.safetensors"):
        out = load_encoder("videomae-hf", {}, path)(x, tokens=True)
        assert torch.equal(out["tokens"], expected.view(2, 2, 2, 2, 48))
        assert torch.equal(out["features"], expected.mean(1))


def test_videomae_from_a_classifier_folder(tmp_path: Path) -> None:
    model = randomised(VideoMAEForVideoClassification(VideoMAEConfig(**VIDEOMAE, num_labels=7)))
    model.save_pretrained(tmp_path)
    x = noise(2, 3, 4, 32, 32)
    features = load_encoder("videomae-hf", {}, tmp_path)(x)["features"]
    torch.testing.assert_close(model.classifier(features), model(x.transpose(1, 2)).logits)


def test_videomae_from_a_pretraining_folder(tmp_path: Path) -> None:
    config = VideoMAEConfig(
        **VIDEOMAE, use_mean_pooling=False, decoder_hidden_size=24, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=48,
    )  # fmt: skip
    model = randomised(VideoMAEForPreTraining(config))
    model.save_pretrained(tmp_path)
    x = noise(2, 3, 4, 32, 32)
    expected = model.videomae(x.transpose(1, 2)).last_hidden_state
    out = load_encoder("videomae-hf", {}, tmp_path)(x, tokens=True)
    assert torch.equal(out["features"], expected.mean(1))


@pytest.mark.parametrize("half", [False, True])
def test_both_spellings_of_the_biases_load(tmp_path: Path, half: bool) -> None:
    """Until transformers 5.6 they were attention.attention.q_bias; some later releases then loaded zeros."""
    model = randomised(VideoMAEModel(VideoMAEConfig(**VIDEOMAE)))
    model.save_pretrained(tmp_path)
    state = {key: value.half() if half else value for key, value in model.state_dict().items()}
    spellings = [("query.bias", "q_bias"), ("value.bias", "v_bias")]
    for new, old in spellings:
        state = {key.replace(f"attention.{new}", f"attention.{old}"): value for key, value in state.items()}
    assert any(key.endswith("q_bias") for key in state)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load_encoder("videomae-hf", {}, tmp_path).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[f"videomae.{key}"], value.half().float() if half else value), key


def test_vjepa2_from_a_base_folder(tmp_path: Path) -> None:
    model = randomised(VJEPA2Model(VJEPA2Config(**VJEPA2)))
    model.save_pretrained(tmp_path)
    x = noise(2, 3, 6, 32, 32)
    out = load_encoder("vjepa2", {"num_frames": 6}, tmp_path)(x, tokens=True)
    expected = model.get_vision_features(x.transpose(1, 2))
    assert torch.equal(out["tokens"], expected.view(2, 3, 2, 2, 48))
    assert torch.equal(out["features"], expected.mean(1))


def test_vjepa2_from_a_classifier_folder(tmp_path: Path) -> None:
    model = randomised(
        VJEPA2ForVideoClassification(VJEPA2Config(**VJEPA2, num_pooler_layers=1, num_labels=3))
    )
    model.save_pretrained(tmp_path)
    x = noise(1, 3, 16, 32, 32)
    expected = model.vjepa2.get_vision_features(x.transpose(1, 2)).mean(1)
    assert torch.equal(load_encoder("vjepa2", {}, tmp_path)(x)["features"], expected)


@pytest.mark.parametrize("family", ["videomae-hf", "vjepa2"])
@pytest.mark.parametrize(
    "damage", ["no config", "no weights", "bad json", "other model", "one tensor less", "shape"]
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path: Path, family: str, damage: str) -> None:
    own, other = VideoMAEModel(VideoMAEConfig(**VIDEOMAE)), VJEPA2Model(VJEPA2Config(**VJEPA2))
    if family == "vjepa2":
        own, other = other, own
    own.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "bad json":
        config.write_text("{")
    elif damage == "other model":
        other.save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").rename(weights)
    elif damage == "shape":
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 96}))
    else:
        state = load_file(weights)
        state.pop(next(key for key in state if key.startswith("encoder.layer.0.")))
        save_file(state, weights)
    with pytest.raises(UserError) as caught:
        load_encoder(family, {}, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
