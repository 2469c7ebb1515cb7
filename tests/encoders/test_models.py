"""Sizes, names, options and the traps of each architecture."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders import MODELS, create_model
from pipeline.encoders.manet import GatedShift
from pipeline.encoders.videomaev2 import Attention, interpolated_table, position_table
from pipeline.errors import UserError

# name -> parameters, entries of the state dict; counted on the original implementations
COUNTS = {
    "videomaev2-small": (22_153_286, 162),
    "videomaev2-base": (86_773_190, 162),
    "videomaev2-large": (304_588_486, 318),
    "videomaev2-huge": (632_516_550, 422),
    "videomaev2-giant": (1_012_611_142, 526),
    "sapiens-seg-0.3b": (339_495_196, 304),
    "sapiens-seg-0.6b": (670_993_436, 400),
    "sapiens-seg-1b": (1_178_705_692, 496),
    "sapiens-seg-2b": (2_176_203_676, 592),
    "manet": (42_424_128 + 811_548, 404),
}
TINY_VIT = {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 4, "num_frames": 4, "num_classes": 5}
TINY_SEG = {"embed_dim": 32, "depth": 1, "num_heads": 2, "image_size": [48, 32], "head_channels": 8}
TINY_MANET = {"width": 16, "depths": [1, 1, 1, 1], "num_classes": 12}


def build_on_meta(name: str, **config: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **config)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_originals(name: str) -> None:
    model = build_on_meta(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == COUNTS[name]
    assert name in MODELS


def test_giant_has_the_rounded_mlp_width_and_patch_14() -> None:
    state = build_on_meta("videomaev2-giant").state_dict()
    assert state["blocks.0.mlp.fc1.weight"].shape == (6144, 1408)
    assert state["patch_embed.proj.weight"].shape == (1408, 3, 2, 14, 14)


def test_headless_videomae_has_no_head_and_gives_no_logits() -> None:
    # The encoder-only files of the hub: 86 227 200 parameters for base.
    assert sum(p.numel() for p in build_on_meta("videomaev2-base", num_classes=0).parameters()) == 86_227_200
    model = create_model("videomaev2", **{**TINY_VIT, "num_classes": 0})
    assert set(model(torch.zeros(1, 3, 4, 32, 32))) == {"features"}


def test_encoders_of_the_self_supervised_stage_norm_every_token() -> None:
    base = build_on_meta("videomaev2-base", num_classes=0, final_norm="norm")
    assert sum(p.numel() for p in base.parameters()) == 86_227_200
    assert {key for key in base.state_dict() if "norm." in key and "blocks" not in key} == {
        "norm.weight",
        "norm.bias",
    }
    torch.manual_seed(0)
    model = create_model("videomaev2", **TINY_VIT, final_norm="norm")
    nn.init.normal_(model.norm.weight)  # type: ignore[arg-type, union-attr]
    out = model(torch.randn(1, 3, 4, 32, 32), tokens=True)
    scaled = out["tokens"] / model.norm.weight  # type: ignore[operator, union-attr]
    torch.testing.assert_close(scaled.var(-1, correction=0), torch.ones(1, 2, 2, 2), atol=1e-3, rtol=1e-3)
    assert torch.equal(out["features"], out["tokens"].mean((1, 2, 3)))


def test_tokens_keep_time_rows_and_columns_apart() -> None:
    torch.manual_seed(0)
    model = create_model(
        "videomaev2", **{**TINY_VIT, "depth": 0}
    )  # without attention a token sees its own tubelet
    x = torch.randn(1, 3, 4, 32, 32)
    before = model(x, tokens=True)["tokens"]
    x[:, :, 2:, 16:, :16] += 1
    moved = (model(x, tokens=True)["tokens"] - before).abs().amax(-1)[0] > 1e-4
    assert moved.nonzero().tolist() == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("tokens", "dim", "total"),
    [
        (1568, 768, 245744.9896),
        (1568, 384, 122425.8579),
        (1568, 1024, 327909.2066),
        (1568, 1280, 410130.2600),
        (2048, 1408, 543941.7399),
    ],
)
def test_position_table_sums_are_those_of_the_original(tokens: int, dim: int, total: float) -> None:
    table = position_table(tokens, dim)
    assert table.shape == (1, tokens, dim)
    assert table.dtype == torch.float32
    assert table.double().sum().item() == pytest.approx(total, abs=1e-3)


def test_position_table_entries_are_those_of_the_original() -> None:
    table = position_table(1568, 768)[0]
    assert table[1, :4].tolist() == pytest.approx([0.841471, 0.540302, 0.828431, 0.560091], abs=1e-6)
    assert table[-1, -2:].tolist() == pytest.approx([0.159816, 0.987147], abs=1e-6)


def test_interpolated_table_is_the_computed_one_at_16_x_224_x_224() -> None:
    for patch_size, side in ((16, 14), (14, 16)):
        assert torch.equal(interpolated_table(8, side, 48, patch_size), position_table(8 * side**2, 48))


def test_interpolated_table_is_bicubic_in_space_and_linear_in_time() -> None:
    home = position_table(8 * 14 * 14, 48).view(8, 14, 14, 48)
    halved = interpolated_table(4, 14, 48, 16).view(4, 14, 14, 48)
    torch.testing.assert_close(halved, (home[0::2] + home[1::2]) / 2)
    # Halving in space weighs the four nearest rows and columns -3, 19, 19, -3 thirty-seconds (a = -0.75).
    small = interpolated_table(8, 7, 48, 16).view(8, 7, 7, 48)
    weights = torch.tensor([-3.0, 19.0, 19.0, -3.0]) / 32
    expected = torch.einsum("i,j,tijd->td", weights, weights, home[:, 3:7, 5:9])
    torch.testing.assert_close(small[:, 2, 3], expected, atol=1e-5, rtol=1e-5)


def test_position_table_is_real_on_meta_and_not_in_the_state_dict() -> None:
    model = build_on_meta("videomaev2", **TINY_VIT)
    assert not dict(model.named_buffers())["position"].is_meta
    assert not [key for key in model.state_dict() if "position" in key or "pos_embed" in key]


def test_keys_of_videomae_attention_have_no_bias() -> None:
    attention = Attention(8, 2)
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = (
        part.view(2, 5, 2, 4).transpose(1, 2) for part in (x @ attention.qkv.weight.T).chunk(3, dim=-1)
    )
    q = q + attention.q_bias.view(2, 1, 4)
    v = v + attention.v_bias.view(2, 1, 4)
    mixed = ((q * 4**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    expected = attention.proj(mixed.transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize(
    ("name", "config", "eps"),
    [
        ("videomaev2", TINY_VIT, {nn.LayerNorm: 1e-6}),
        ("videomaev2", {**TINY_VIT, "final_norm": "norm"}, {nn.LayerNorm: 1e-6}),
        ("sapiens-seg", TINY_SEG, {nn.LayerNorm: 1e-6, nn.InstanceNorm2d: 1e-5}),
        ("manet", TINY_MANET, {nn.BatchNorm2d: 1e-5}),
    ],
)
def test_the_eps_of_every_norm_is_that_of_the_original(
    name: str, config: dict[str, object], eps: dict[type[nn.Module], float]
) -> None:
    modules = build_on_meta(name, **config).modules()
    assert {(type(norm), norm.eps) for norm in modules if hasattr(norm, "eps")} == set(eps.items())


def test_features_ignore_what_layer_norm_takes_away() -> None:
    """A constant added to every channel of every token passes the residual stream, and no norm lets it out."""
    torch.manual_seed(0)
    model = create_model("videomaev2", **TINY_VIT)
    x = torch.randn(1, 3, 4, 32, 32)
    before = model(x)["features"]
    model.patch_embed.proj.bias.data += 3.0  # type: ignore[operator, union-attr]
    torch.testing.assert_close(model(x)["features"], before, atol=1e-5, rtol=1e-5)


def test_features_do_not_depend_on_the_order_of_tokens() -> None:
    """Tubelets swapped together with their places in the position table: the mean of the tokens stays."""
    torch.manual_seed(0)
    model = create_model("videomaev2", **{**TINY_VIT, "depth": 2})
    x = torch.randn(1, 3, 4, 32, 32)
    before = model(x)["features"]
    times = model.position.view(1, 2, 4, -1)  # type: ignore[operator, union-attr]
    model.position = times.flip(1).reshape(1, 8, -1)
    assert (model(x)["features"] - before).abs().max() > 1e-3
    swapped = torch.cat([x[:, :, 2:], x[:, :, :2]], 2)
    torch.testing.assert_close(model(swapped)["features"], before, atol=1e-5, rtol=1e-5)


def test_manet_played_backwards_is_manet_with_its_shifts_swapped() -> None:
    torch.manual_seed(0)
    model = create_model("manet", **TINY_MANET).eval()
    x = torch.randn(1, 8, 3, 64, 64)
    forwards = model(x)["segment_features"]
    for (
        layer
    ) in model.modules():  # the input channels that look forward and those that look back trade places
        if isinstance(layer, GatedShift):
            fold = layer.fold
            order = torch.cat(
                [torch.arange(fold, 2 * fold), torch.arange(fold), torch.arange(2 * fold, 8 * fold)]
            )
            layer.swapped = order  # type: ignore[assignment]
            layer.register_forward_pre_hook(lambda layer, inputs: (inputs[0][:, layer.swapped],))
            layer.net.weight.data = layer.net.weight.data[:, order]
            layer.fcce[0].weight.data = layer.fcce[0].weight.data[:, order]  # type: ignore[index, operator, union-attr]
            layer.fcce[2].weight.data = layer.fcce[2].weight.data[order]  # type: ignore[index, operator, union-attr]
    backwards = model(x.flip(1))["segment_features"].flip(1)
    torch.testing.assert_close(backwards, forwards, atol=1e-5, rtol=1e-5)


def test_shift_moves_one_eighth_each_way_and_fills_ends_with_zeros() -> None:
    layer = GatedShift(16, 16, segments=8)
    nn.init.zeros_(layer.get_parameter("fcce.2.weight"))  # sigmoid(0): every channel is halved
    layer.net.weight.data = torch.eye(16)[:, :, None, None]
    frames = torch.arange(1.0, 17.0)[:, None, None, None].expand(16, 16, 2, 2)  # two clips of 8: 1..8, 9..16
    out = 2 * layer(frames)[:, :, 0, 0]
    for clip in (0, 1):
        own = [8.0 * clip + t for t in range(1, 9)]
        for channel in range(16):
            expected = [*own[1:], 0.0] if channel < 2 else [0.0, *own[:-1]] if channel < 4 else own
            assert out[8 * clip : 8 * clip + 8, channel].tolist() == expected, (clip, channel)


def test_unused_manet_parameters_change_nothing() -> None:
    model = create_model("manet", **TINY_MANET).eval()
    x = torch.randn(1, 8, 3, 32, 32)
    before = model(x)["segment_features"]
    for name, parameter in model.named_parameters():
        if "action_p2" in name:
            nn.init.normal_(parameter)
    assert torch.equal(before, model(x)["segment_features"])


@pytest.mark.parametrize(
    ("name", "config", "shape", "outputs"),
    [
        ("videomaev2", TINY_VIT, (2, 3, 4, 32, 32), {"features": (2, 48), "logits": (2, 5)}),
        ("sapiens-seg", TINY_SEG, (2, 3, 48, 32), {"logits": (2, 28, 24, 16)}),
        (
            "manet",
            TINY_MANET,
            (2, 8, 3, 64, 64),
            {"segment_features": (2, 8, 512), "logits": (2, 12), "embedding": (2, 300)},
        ),
    ],
)
def test_outputs_and_independence_of_the_batch(
    name: str, config: dict[str, object], shape: tuple[int, ...], outputs: dict[str, tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    model = create_model(name, **config).eval()
    x = torch.randn(shape)
    with torch.inference_mode():
        both: dict[str, Tensor] = model(x)
        second: dict[str, Tensor] = model(x[1:])
    assert {key: tuple(value.shape) for key, value in both.items()} == outputs
    for key, value in second.items():
        torch.testing.assert_close(both[key][1:], value, atol=1e-5, rtol=1e-5)
        assert (both[key][0] - both[key][1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("videomae", {}, ["videomaev2-base", "sapiens-seg-1b", "manet"]),
        ("manet", {"widht": 16}, ["widht", "width", "depths", "segments"]),
        ("videomaev2-base", {"image_size": 64}, ["image_size", "img_size"]),
        ("videomaev2", {"img_size": 60}, ["img_size 60", "patch_size 16"]),
        ("videomaev2", {"num_frames": 15}, ["num_frames 15"]),
        ("videomaev2", {"final_norm": "fc"}, ["final_norm 'fc'", "'fc_norm'", "'norm'"]),
        ("videomaev2", {"position": "learned"}, ["position 'learned'", "'interpolated'"]),
        ("sapiens-seg", {"image_size": [100, 96]}, ["image_size [100, 96]", "16"]),
        ("manet", {"width": 12}, ["width 12", "8"]),
        ("manet", {"depths": []}, ["depths []"]),
        ("manet", {"depths": 3}, ["depths 3"]),
        ("manet", {"depths": [1, 0]}, ["depths [1, 0]"]),
        ("manet", {"width": 0}, ["width 0"]),
        ("manet", {"segments": 0}, ["segments 0", "greater than 0"]),
        ("sapiens-seg", {"image_size": 768}, ["image_size 768"]),
        ("sapiens-seg", {"image_size": [0, 0]}, ["image_size [0, 0]"]),
        ("sapiens-seg", {"image_size": [1024]}, ["image_size [1024]"]),
        ("videomaev2", {"num_heads": 0}, ["num_heads 0"]),
        ("videomaev2", {"patch_size": 0}, ["patch_size 0"]),
        ("videomaev2", {"num_classes": -1}, ["num_classes -1"]),
        ("videomaev2", {"embed_dim": "x"}, ["embed_dim 'x'", "integer"]),
        ("videomaev2", {"depth": -1}, ["depth -1"]),
        ("videomaev2", {"img_size": 0}, ["img_size 0"]),
        ("videomaev2", {"num_frames": 0}, ["num_frames 0"]),
        ("videomaev2", {"mlp_ratio": 0}, ["mlp_ratio 0"]),
        ("vjepa2", {"num_frames": 0}, ["num_frames 0"]),
    ],
)
def test_mistakes_name_the_choices(name: str, config: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        create_model(name, **config)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("videomaev2", TINY_VIT, (1, 3, 4, 32, 48)),
        ("sapiens-seg", TINY_SEG, (1, 3, 32, 48)),
        ("manet", TINY_MANET, (1, 7, 3, 32, 32)),
    ],
)
def test_inputs_of_another_size_are_refused(
    name: str, config: dict[str, object], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="expects"):
        create_model(name, **config)(torch.zeros(shape))
