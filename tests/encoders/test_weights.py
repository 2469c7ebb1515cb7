"""Weights files: found, refused, unwrapped, and fitted strictly."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.encoders import create_model, weights
from pipeline.errors import UserError

VIT = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 5}
SEG = {"embed_dim": 32, "depth": 1, "num_heads": 2, "image_size": [48, 32], "head_channels": 8}
MANET = {"width": 16, "depths": [1, 1, 1, 1]}
GIANT = "vit_g_hybrid_pt_1200e_k710_ft.pth"


class RunsCode:
    """Unpickling it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = create_model("videomaev2", **VIT)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return {key: value.clone() for key, value in model.state_dict().items()}


def loads(path: Path, expected: dict[str, Tensor]) -> None:
    model = create_model("videomaev2", **VIT)
    weights.load_weights(model, path)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def message(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ---------------------------------------------------------------------------------------------


def test_safetensors_and_plain_checkpoints(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    torch.save(OrderedDict(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pth", "old.pth"):
        loads(tmp_path / name, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "meta": {"epoch": 40, "config": "text"}, "optimizer": {"state": {}}},
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"module": s, "dp_world_size": 8},
        lambda s: {"model": {"module": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"model.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {f"backbone.{k}": v for k, v in s.items()},
        lambda s: {f"encoder.{k}": v for k, v in s.items()},
    ],
)
def test_wrappers_and_prefixes_come_off(
    tmp_path: Path, state: dict[str, Tensor], wrap: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.save(wrap(state), tmp_path / "w.pth")
    loads(tmp_path / "w.pth", state)


@pytest.mark.parametrize(("name", "config"), [("sapiens-seg", SEG), ("manet", MANET)])
def test_backbone_is_part_of_the_names_of_the_other_families(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    model = create_model(name, **config)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "m.pth")
    loaded = weights.load_encoder(name, config, tmp_path / "m.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


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
    loads(path, {key: value.float() for key, value in lower.items()})
    encoder = weights.load_encoder("videomaev2", VIT, path)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_integer_buffers_stay_integers(tmp_path: Path) -> None:
    torch.save(create_model("manet", **MANET).half().state_dict(), tmp_path / "m.pth")
    state = weights.load_state_dict(tmp_path / "m.pth")
    assert {v.dtype for v in state.values()} == {torch.float32, torch.int64}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_gives_its_tensors_without_the_preprocessor(tmp_path: Path) -> None:
    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = create_model("sapiens-seg", **SEG)
            self.backbone = model.get_submodule("backbone")
            self.decode_head = model.get_submodule("decode_head")
            self.data_preprocessor = nn.Module()
            self.data_preprocessor.register_buffer("mean", torch.ones(3, 1, 1), persistent=False)
            self.data_preprocessor.register_buffer("std", torch.ones(3, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            preprocessor = self.data_preprocessor
            x = (x - preprocessor.get_buffer("mean")) / preprocessor.get_buffer("std")
            logits: Tensor = self.decode_head(self.backbone(x))
            return logits

    exported = Exported().eval()
    x = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        torch.jit.trace(exported, x, check_trace=False).save(str(tmp_path / "seg_torchscript.pt2"))
        expected = exported(x + 1)
        encoder = weights.load_encoder("sapiens-seg", SEG, tmp_path / "seg_torchscript.pt2")
        torch.testing.assert_close(encoder(x)["logits"], expected, atol=1e-5, rtol=1e-5)


def test_encoders_are_frozen_and_real(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "a.pth")
    encoder = weights.load_encoder("videomaev2", VIT, tmp_path / "a.pth")
    assert not encoder.training
    assert not any(p.requires_grad or p.is_meta for p in encoder.parameters())
    reference = create_model("videomaev2", **VIT).eval()
    reference.load_state_dict(state)
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.inference_mode():
        assert torch.equal(encoder(x)["features"], reference(x)["features"])


# --- refusing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    payload = {"meta": RunsCode(mark), "state_dict": {"a": torch.zeros(1)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    reason = message(lambda: weights.load_state_dict(path))
    assert "without running code" in reason
    assert "evil.pth" in reason
    assert f"it asks for {os.name}.mkdir" in reason
    assert not mark.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert mark.exists(), "the file of this test must be one that does harm when trusted"


def test_damaged_foreign_and_empty_files_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    (tmp_path / "bfloat16.pt2").write_bytes(buffer.getvalue())
    names = (
        "cut.pth",
        "empty.pth",
        "text.pth",
        "text.safetensors",
        "list.pth",
        "numbers.pth",
        "bfloat16.pt2",
    )
    for name in (*names, "absent.pth"):
        assert name in message(lambda name=name: weights.load_state_dict(tmp_path / name))  # type: ignore[misc]
    assert "not weights" in message(lambda: weights.load_state_dict(tmp_path / "bfloat16.pt2"))


def test_a_file_of_another_model_says_which_and_what_differs(tmp_path: Path) -> None:
    torch.save(create_model("sapiens-seg", **SEG).state_dict(), tmp_path / "seg.pth")
    reason = message(lambda: weights.load_encoder("videomaev2", VIT, tmp_path / "seg.pth"))
    assert "looks like Sapiens segmentation of depth 1 and width 32" in reason
    assert "VideoMAEv2" in reason
    assert "32 missing: patch_embed.proj.weight, patch_embed.proj.bias, blocks.0.norm1.weight" in reason
    assert reason.count("blocks.") == weights.SHOWN - 2
    assert reason.count("decode_head.") <= weights.SHOWN

    torch.save(create_model("manet", **MANET).state_dict(), tmp_path / "manet.pth")
    assert "looks like MANet" in message(
        lambda: weights.load_encoder("sapiens-seg", SEG, tmp_path / "manet.pth")
    )


def test_a_named_size_is_recognised(tmp_path: Path) -> None:
    with torch.device("meta"):
        small = create_model("videomaev2-small").state_dict()
    state = {
        key: torch.zeros(1).expand(value.shape) for key, value in small.items()
    }  # strides 0: a small file
    torch.save(state, tmp_path / "small.pth")
    assert (tmp_path / "small.pth").stat().st_size < 200_000
    reason = message(lambda: weights.load_encoder("videomaev2", VIT, tmp_path / "small.pth"))
    assert "looks like videomaev2-small" in reason
    assert "patch_embed.proj.weight (384, 3, 2, 16, 16) not (48, 3, 2, 16, 16)" in reason


def test_other_options_show_in_shapes_and_one_name_is_enough(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save(state, tmp_path / "a.pth")
    other = {**VIT, "num_classes": 4}
    reason = message(lambda: weights.load_encoder("videomaev2", other, tmp_path / "a.pth"))
    assert "2 other shape: head.weight (5, 48) not (4, 48), head.bias (5,) not (4,)" in reason
    torch.save({k: v for k, v in state.items() if k != "blocks.1.attn.v_bias"}, tmp_path / "b.pth")
    assert "1 missing: blocks.1.attn.v_bias" in message(
        lambda: weights.load_encoder("videomaev2", VIT, tmp_path / "b.pth")
    )
    torch.save({**state, "norm.weight": torch.zeros(48)}, tmp_path / "c.pth")
    assert "1 unexpected: norm.weight" in message(
        lambda: weights.load_encoder("videomaev2", VIT, tmp_path / "c.pth")
    )


def test_a_pretraining_checkpoint_is_named(tmp_path: Path, state: dict[str, Tensor]) -> None:
    encoder = {f"encoder.{k}": v for k, v in state.items() if not k.startswith(("fc_norm", "head"))}
    pretraining = {**encoder, "mask_token": torch.zeros(1), "encoder_to_decoder.weight": torch.zeros(2, 48)}
    torch.save({"model": pretraining}, tmp_path / "mae.pth")
    reason = message(lambda: weights.load_encoder("videomaev2", VIT, tmp_path / "mae.pth"))
    assert "pre-training checkpoint" in reason
    assert "4 missing: fc_norm.weight" in reason


# --- finding ---------------------------------------------------------------------------------------------


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    return hub


def test_every_entry_is_complete_and_builds() -> None:
    table = weights.weights_table()
    assert {"demo-segmenter", "demo-videomaev2", "demo-manet"} <= table.keys()
    assert {"sapiens-seg-0.3b", "sapiens-seg-0.6b", "sapiens-seg-1b", "manet-ma52"} <= table.keys()
    assert {"videomaev2-small-k710", "videomaev2-base-k710", "videomaev2-giant-k710"} <= table.keys()
    for entry in table.values():
        with torch.device("meta"):
            create_model(entry.model, **entry.config)
        assert entry.licence
        assert entry.citation
        assert entry.trained_on
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
    assert "demo-manet" in message(lambda: weights.weights_entry("demo"))


def test_a_missing_file_says_what_to_get_and_its_licence(tmp_path: Path, empty_hub: Path) -> None:
    reason = message(lambda: weights.resolve_weights("sapiens-seg-1b", tmp_path))
    file = "sapiens_1b_goliath_best_goliath_mIoU_7994_epoch_151.pth"
    for part in (
        f"hf download facebook/sapiens-seg-1b {file}",
        "--weights FOLDER",
        "CC-BY-NC-4.0",
        str(tmp_path),
    ):
        assert part in reason
    assert not empty_hub.exists() or not any(empty_hub.iterdir())


def test_a_folder_is_searched_by_file_name_or_repository_path(tmp_path: Path, empty_hub: Path) -> None:
    flat, tree = tmp_path / "flat", tmp_path / "tree"
    (tree / "mae-g").mkdir(parents=True)
    flat.mkdir()
    (flat / GIANT).write_bytes(b"1")
    (flat / f"{GIANT}.part").write_bytes(b"2")
    (tree / "mae-g" / GIANT).write_bytes(b"3")
    assert weights.resolve_weights("videomaev2-giant-k710", flat) == flat / GIANT
    assert weights.resolve_weights("videomaev2-giant-k710", tree) == tree / "mae-g" / GIANT
    assert "vit_b_k710" in message(lambda: weights.resolve_weights("videomaev2-base-k710", flat))


def test_the_hub_cache_is_searched(empty_hub: Path) -> None:
    commit = "0" * 40
    repo = empty_hub / "models--OpenGVLab--VideoMAE2"
    file = repo / "snapshots" / commit / "mae-g" / GIANT
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert weights.resolve_weights("videomaev2-giant-k710") == file


def test_embedded_weights_are_under_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MANIFESTS", tmp_path)
    assert "demo-manet" in message(lambda: weights.resolve_weights("demo-manet"))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "manet.safetensors").write_bytes(b"1")
    assert weights.resolve_weights("demo-manet") == tmp_path / "demo" / "manet.safetensors"


@pytest.mark.parametrize(
    "fields",
    [
        "{model: manet, path: ../m.safetensors}",
        "{model: manet, path: /m.safetensors}",
        "{model: manet}",
        "{model: manet, repo: a/b}",
        "{model: manet, path: m, repo: a/b, file: f}",
        "{model: unheard-of, path: m}",
        "{model: manet, path: m, colour: red}",
        "[manet]",
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, fields: str) -> None:
    path = tmp_path / "weights.yaml"
    rest = ", licence: MIT, citation: c, trained_on: t}"
    path.write_text(f"mine: {fields[:-1] + rest if fields.endswith('}') else fields}\n")
    reason = message(lambda: weights.weights_table(path))
    assert "'mine'" in reason
    assert str(path) in reason


def test_digests_are_those_of_the_bytes_and_pins_are_kept(tmp_path: Path) -> None:
    file = tmp_path / GIANT
    file.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert weights.file_sha256(file) == abc
    assert weights.checked_sha256("manet-ma52", file) == abc  # nothing pinned
    assert GIANT in message(lambda: weights.checked_sha256("videomaev2-giant-k710", file))
