"""Checkpoints into models: strict, and clear about what does not fit and what was left out."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import encoders
from pipeline.encoders import checkpoints, create_model
from pipeline.encoders.checkpoints import check, load_encoder, load_weights, open_encoder
from tests.encoders.checkpoint_files import MANET, SEG, VIT, random_state, refusal

MAE = {**VIT, "num_classes": 0, "final_norm": "norm"}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state("videomaev2", **VIT)


@pytest.fixture(scope="module")
def pretraining() -> dict[str, Tensor]:
    """A MAE checkpoint as the original names it: encoder with token-wise norm, decoder, mask token."""
    encoder = random_state("videomaev2", **MAE)
    rest = {
        "mask_token": torch.zeros(1, 1, 24),
        "encoder_to_decoder.weight": torch.zeros(24, 48),
        "decoder.blocks.0.attn.q_bias": torch.zeros(24),
        "decoder.norm.weight": torch.zeros(24),
        "decoder.head.bias": torch.zeros(1536),
    }
    return {**{f"encoder.{key}": value for key, value in encoder.items()}, **rest}


def assert_loaded(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


# --- fitting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "backbone.", "encoder.", "module.backbone.", "model.", "_orig_mod.", "_orig_mod.backbone.",
        "backbone._orig_mod.", "encoder._orig_mod.",
    ],
)  # fmt: skip
def test_prefixes_of_the_original_loader_come_off(
    tmp_path: Path, state: dict[str, Tensor], prefix: str
) -> None:
    torch.save({"model": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    model = create_model("videomaev2", **VIT)
    assert load_weights(model, tmp_path / "a.pth") == ()
    assert_loaded(model, state)


@pytest.mark.parametrize(("name", "config"), [("sapiens-seg", SEG), ("manet", MANET)])
def test_backbone_is_part_of_the_names_of_the_other_families(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    held = random_state(name, **config)
    torch.save({"state_dict": {f"module.{key}": value for key, value in held.items()}}, tmp_path / "m.pth")
    assert_loaded(load_encoder(name, config, tmp_path / "m.pth"), held)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_floats_become_float32(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype, suffix: str
) -> None:
    lower = {key: value.to(dtype) for key, value in state.items()}
    path = tmp_path / f"half.{suffix}"
    if suffix == "pth":
        torch.save({"module": lower}, path)
    else:
        save_file(lower, path)
    encoder = load_encoder("videomaev2", VIT, path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert_loaded(encoder, {key: value.float() for key, value in lower.items()})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_refused(
    tmp_path: Path, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    torch.save({**state, "fc_norm.bias": state["fc_norm.bias"].to(dtype)}, tmp_path / "a.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "a.pth"))
    assert f"fc_norm.bias is {str(dtype).removeprefix('torch.')}, not float32" in reason


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, state: dict[str, Tensor], number: float
) -> None:
    broken = state["blocks.1.attn.proj.weight"].clone()
    broken[3, 5] = number
    torch.save({**state, "blocks.1.attn.proj.weight": broken}, tmp_path / "a.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "a.pth"))
    assert "blocks.1.attn.proj.weight holds NaN or infinity" in reason


@pytest.mark.parametrize("prefixes", [("", "backbone."), ("backbone.", "encoder."), ("encoder.", "")])
def test_two_tensors_of_one_name_are_refused(
    tmp_path: Path, state: dict[str, Tensor], prefixes: tuple[str, str]
) -> None:
    first, second = (f"{prefix}fc_norm.weight" for prefix in prefixes)
    held = {f"{prefixes[0]}{key}": value for key, value in state.items()}
    torch.save({**held, second: state["fc_norm.weight"] + 1}, tmp_path / "a.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "a.pth"))
    assert f"holds fc_norm.weight twice, as {first} and {second};" in reason


def test_integer_buffers_stay_integers(tmp_path: Path) -> None:
    torch.save(create_model("manet", **MANET).half().state_dict(), tmp_path / "m.pth")
    encoder = load_encoder("manet", MANET, tmp_path / "m.pth")
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32, torch.int64}


def test_encoders_are_frozen_and_real(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "a.pth")
    encoder = load_encoder("videomaev2", VIT, tmp_path / "a.pth")
    assert not encoder.training
    assert not any(p.requires_grad or p.is_meta for p in encoder.parameters())
    reference = create_model("videomaev2", **VIT).eval()
    reference.load_state_dict(state)
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        assert torch.equal(encoder(x)["features"], reference(x)["features"])


# --- what may differ -------------------------------------------------------------------------------------


def test_a_pretraining_checkpoint_gives_its_encoder_and_says_what_it_dropped(
    tmp_path: Path, pretraining: dict[str, Tensor]
) -> None:
    torch.save({"model": pretraining}, tmp_path / "mae.pth")
    encoder, (dropped,) = open_encoder("videomaev2", MAE, tmp_path / "mae.pth")
    assert_loaded(
        encoder, {k.removeprefix("encoder."): v for k, v in pretraining.items() if k.startswith("encoder.")}
    )
    assert dropped.what == "dropped"
    assert set(dropped.names) == {key for key in pretraining if not key.startswith("encoder.")}
    assert "5 tensors dropped, mask_token, encoder_to_decoder.weight, ...: the decoder" in str(dropped)


def test_the_norm_a_file_has_is_asked_for(
    tmp_path: Path, state: dict[str, Tensor], pretraining: dict[str, Tensor]
) -> None:
    torch.save({"model": pretraining}, tmp_path / "mae.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "mae.pth"))
    assert "looks like a VideoMAE pre-training checkpoint" in reason
    assert "4 missing: fc_norm.weight, fc_norm.bias, head.weight, head.bias" in reason
    assert "2 unexpected: norm.weight, norm.bias" in reason
    assert reason.endswith("needs the config {final_norm: norm, num_classes: 0}")
    bare = {key: value for key, value in pretraining.items() if not key.startswith("encoder.norm.")}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "bare.pth"))
    assert "4 missing: fc_norm.weight" in reason
    assert "needs the config" not in reason  # no norm at all: no config would fit
    torch.save(state, tmp_path / "tuned.pth")
    reason = refusal(lambda: load_encoder("videomaev2", MAE, tmp_path / "tuned.pth"))
    assert reason.endswith("needs the config {final_norm: fc_norm}")


def test_a_head_that_is_not_built_is_dropped_and_a_missing_one_is_not_made_up(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save(state, tmp_path / "a.pth")
    without = {**VIT, "num_classes": 0}
    encoder, (dropped,) = open_encoder("videomaev2", without, tmp_path / "a.pth")
    assert dropped.names == ("head.weight", "head.bias")
    assert "num_classes: 0" in dropped.why
    torch.save(encoder.state_dict(), tmp_path / "b.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "b.pth"))
    assert reason.endswith("needs the config {num_classes: 0}")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_preprocessor_of_a_torchscript_file_is_dropped(tmp_path: Path) -> None:
    from tests.encoders.test_tensors import Exported

    exported, x = Exported().eval(), torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        torch.jit.trace(exported, x, check_trace=False).save(str(tmp_path / "seg_torchscript.pt2"))
        encoder, (dropped,) = open_encoder("sapiens-seg", SEG, tmp_path / "seg_torchscript.pt2")
        assert set(dropped.names) == {"data_preprocessor.mean", "data_preprocessor.std"}
        expected = exported(x + 1)
        torch.testing.assert_close(encoder(x)["logits"], expected, atol=1e-5, rtol=1e-5)


def test_manet_does_without_its_unused_tensors_but_not_without_one_more(tmp_path: Path) -> None:
    held = random_state("manet", **MANET)
    lean = {key: value for key, value in held.items() if "action_p2_" not in key}
    torch.save(lean, tmp_path / "lean.pth")
    encoder, (absent,) = open_encoder("manet", MANET, tmp_path / "lean.pth")
    assert (absent.what, len(absent.names)) == ("absent", 3 * 4)
    assert not any(value.is_meta for value in encoder.state_dict().values())
    torch.save(held, tmp_path / "whole.pth")
    whole = load_encoder("manet", MANET, tmp_path / "whole.pth")
    x = torch.randn(1, 8, 3, 32, 32)
    with torch.inference_mode():
        for name, value in whole(x).items():
            assert torch.equal(encoder(x)[name], value), name
    first = next(iter(absent.names))
    torch.save({key: value for key, value in held.items() if key != first}, tmp_path / "hole.pth")
    assert f"1 missing: {first}" in refusal(lambda: load_encoder("manet", MANET, tmp_path / "hole.pth"))
    torch.save({k: v for k, v in lean.items() if k != "cls_head.fc_cls.bias"}, tmp_path / "headless.pth")
    assert "13 missing: " in refusal(  # one more than it may lack, so all are named
        lambda: load_encoder("manet", MANET, tmp_path / "headless.pth")
    )


def test_a_build_says_what_was_left_out(tmp_path: Path) -> None:
    from pipeline.events import Event
    from pipeline.presets import FOLDER, load_recipe
    from pipeline.run.engine import Engine

    torch.save(random_state("videomaev2", **VIT), tmp_path / "vit.pth")
    preset = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    preset["semantic"]["weights"] = "mine"
    about = {"licence": "MIT", "citation": "c", "trained_on": "t"}
    config = {**VIT, "num_classes": 0}
    preset["weights"] = {"mine": {"model": "videomaev2", "config": config, "path": "vit.pth", **about}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    heard: list[Event] = []
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    with Engine(tmp_path, tmp_path, recipe, ("semantic",), workers=1, listen=heard.append) as engine:
        (told,) = engine.differences["semantic"]
    assert told.startswith("2 tensors dropped, head.weight, head.bias")
    assert [event.text for event in heard] == [f"weights of videomaev2: {told}"]


# --- what does not fit -----------------------------------------------------------------------------------


def test_a_file_of_another_model_says_which_and_what_differs(tmp_path: Path) -> None:
    torch.save(create_model("sapiens-seg", **SEG).state_dict(), tmp_path / "seg.pth")
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "seg.pth"))
    assert "looks like Sapiens segmentation of depth 1 and width 32" in reason
    assert "VideoMAEv2" in reason
    assert "32 missing: patch_embed.proj.weight, patch_embed.proj.bias, blocks.0.norm1.weight" in reason
    assert reason.count("blocks.") == checkpoints.SHOWN - 2
    assert reason.count("decode_head.") <= checkpoints.SHOWN
    assert "needs the config" not in reason

    torch.save(create_model("manet", **MANET).state_dict(), tmp_path / "manet.pth")
    assert "looks like MANet" in refusal(lambda: load_encoder("sapiens-seg", SEG, tmp_path / "manet.pth"))


def test_a_file_that_is_not_the_pinned_one_says_what_it_holds(tmp_path: Path) -> None:
    from pipeline.encoders.weights import weights_entry

    entry, path = weights_entry("demo-manet"), tmp_path / "other.safetensors"
    save_file(random_state("sapiens-seg", **SEG), path)
    reason = refusal(lambda: check(entry, path))
    assert "weights 'demo-manet' pin d8afcc37de615782" in reason
    assert "looks like Sapiens segmentation of depth 1 and width 32" in reason
    assert "missing: backbone.conv1.conv.weight" in reason
    save_file(random_state("manet", **entry.config), path)
    assert refusal(lambda: check(entry, path)).endswith("its names and shapes are those of manet")


def test_a_named_size_is_recognised(tmp_path: Path) -> None:
    with torch.device("meta"):
        small = create_model("videomaev2-small").state_dict()
    # strides of 0 make a small file
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in small.items()}, tmp_path / "s.pth")
    assert (tmp_path / "s.pth").stat().st_size < 200_000
    reason = refusal(lambda: load_encoder("videomaev2", VIT, tmp_path / "s.pth"))
    assert "looks like videomaev2-small" in reason
    assert "patch_embed.proj.weight (384, 3, 2, 16, 16) not (48, 3, 2, 16, 16)" in reason


def test_other_options_show_in_shapes_and_one_name_is_enough(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save(state, tmp_path / "a.pth")
    reason = refusal(lambda: load_encoder("videomaev2", {**VIT, "num_classes": 4}, tmp_path / "a.pth"))
    assert "2 other shape: head.weight (5, 48) not (4, 48), head.bias (5,) not (4,)" in reason
    torch.save({k: v for k, v in state.items() if k != "blocks.1.attn.v_bias"}, tmp_path / "b.pth")
    assert "1 missing: blocks.1.attn.v_bias" in refusal(
        lambda: load_encoder("videomaev2", VIT, tmp_path / "b.pth")
    )
    torch.save({**state, "extra.weight": torch.zeros(48)}, tmp_path / "c.pth")
    assert "1 unexpected: extra.weight" in refusal(
        lambda: load_encoder("videomaev2", VIT, tmp_path / "c.pth")
    )


def test_a_model_without_files_of_its_own_needs_a_file() -> None:
    assert "not a package" in refusal(lambda: load_encoder("manet", MANET, None))


# --- models of other packages ----------------------------------------------------------------------------


class Echo(nn.Module):
    """A third party's encoder that reads its own files."""

    def __init__(self, *, width: int = 1) -> None:
        super().__init__()
        self.width = width
        self.told = ""

    @classmethod
    def from_files(cls, path: Path, width: int = 1) -> "Echo":
        model = cls(width=width)
        model.told = path.read_text()
        return model


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("echo", f"{__name__}:Echo", encoders.ENTRY_POINTS)
    others = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: others.select(group=group))


@pytest.mark.usefixtures("installed")
def test_other_packages_bring_models_that_read_their_own_files(tmp_path: Path) -> None:
    (tmp_path / "echo.txt").write_text("hello")
    encoder, differences = open_encoder("echo", {"width": 3}, tmp_path / "echo.txt")
    assert isinstance(encoder, Echo)
    assert (encoder.told, encoder.width, encoder.training, differences) == ("hello", 3, False, ())
    assert isinstance(create_model("echo", width=2), Echo)
    assert "use one of width" in refusal(lambda: load_encoder("echo", {"depth": 3}, tmp_path / "echo.txt"))
    assert "echo" in refusal(lambda: create_model("echoo"))
