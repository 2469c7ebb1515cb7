"""What every window encoder promises, whoever wrote it (pipeline.encoders.contract.WindowEncoder)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.encoders import create_model
from pipeline.manifest import Clip
from pipeline.plan import ClipTask
from pipeline.stages.packing import Rows, packed
from pipeline.stages.work import Work

VIT = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_frames": 4, "num_classes": 0}
VIDEOMAE = {
    "image_size": 32, "num_frames": 4, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96,
}  # fmt: skip
VJEPA2 = {
    "crop_size": 32, "patch_size": 16, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
}  # fmt: skip
CLASSIFIER = {"architectures": ["VideoMAEForVideoClassification"]}


def mean(model: nn.Module, tokens: Tensor) -> Tensor:
    return tokens.mean((1, 2, 3))


def normed_mean(model: nn.Module, tokens: Tensor) -> Tensor:
    normed: Tensor = model.fc_norm(tokens.mean((1, 2, 3)))
    return normed


@dataclass(frozen=True)
class Case:
    family: str
    config: dict[str, Any]
    pooled: Callable[[nn.Module, Tensor], Tensor]  # how features come from tokens, as the model says


CASES = {
    "videomaev2": Case("videomaev2", VIT, normed_mean),
    "videomaev2-mae": Case("videomaev2", {**VIT, "final_norm": "norm"}, mean),
    "videomaev2-stretched": Case("videomaev2", {**VIT, "position": "interpolated"}, normed_mean),
    "videomae-hf": Case("videomae-hf", {"config": VIDEOMAE}, mean),
    "videomae-hf-classifier": Case("videomae-hf", {"config": {**VIDEOMAE, **CLASSIFIER}}, normed_mean),
    "vjepa2": Case("vjepa2", {"config": VJEPA2, "num_frames": 4}, mean),
}


def build(case: Case) -> nn.Module:
    """The encoder with random parameters: fresh ones hold too many zeros and ones."""
    torch.manual_seed(0)
    model = create_model(case.family, **case.config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


def windows(model: Any, count: int) -> Tensor:
    return torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case: Case) -> Any:
    return build(case)


def test_shapes_are_those_it_declares(model: Any) -> None:
    out = model(windows(model, 2), tokens=True)
    assert model.input_shape == (3, 4, 32, 32)
    assert model.token_shape == (2, 2, 2)
    assert out["features"].shape == (2, model.feature_dim)
    assert out["tokens"].shape == (2, *model.token_shape, model.feature_dim)
    assert "tokens" not in model(windows(model, 1))


def test_features_come_from_the_tokens_as_the_model_says(model: Any, case: Case) -> None:
    out = model(windows(model, 3), tokens=True)
    torch.testing.assert_close(case.pooled(model, out["tokens"]), out["features"], atol=1e-5, rtol=1e-5)


def test_every_window_and_every_token_is_looked_at(model: Any) -> None:
    x = windows(model, 1)
    before = model(x)["features"]
    for frame in range(x.shape[2]):
        for row, column in ((0, 0), (0, 16), (16, 0), (16, 16)):
            other = x.clone()
            other[:, :, frame, row : row + 16, column : column + 16] += 1
            assert (model(other)["features"] - before).abs().max() > 1e-4, (frame, row, column)


def test_a_batch_of_n_equals_n_batches_of_1(model: Any) -> None:
    x = windows(model, 3)
    together = model(x, tokens=True)
    for index in range(3):
        alone = model(x[index : index + 1], tokens=True)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index : index + 1], value, atol=1e-5, rtol=1e-5)


def test_a_padded_tail_changes_nothing(model: Any) -> None:
    x = windows(model, 5)
    work = Work(ClipTask("key", Clip("clip", "test", "x.mp4"), 5))
    rows = Rows(work, 5, lambda low, high: x[low:high])
    ((_, out),) = packed([rows], 4, lambda batch: model(batch, tokens=True))
    for name, value in model(x, tokens=True).items():
        torch.testing.assert_close(torch.from_numpy(out[name]), value, atol=1e-5, rtol=1e-5)


def test_the_same_window_gives_the_same_numbers(model: Any, case: Case) -> None:
    x = windows(model, 2)
    first = model(x, tokens=True)
    again = build(case)(x, tokens=True)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert torch.equal(first["features"], model(x)["features"])  # asking for tokens changes nothing else


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_gives_the_numbers_of_the_cpu(case: Case) -> None:
    model: Any = build(case)
    x = windows(model, 2)
    expected = model(x, tokens=True)
    found = model.cuda()(x.cuda(), tokens=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, atol=1e-4, rtol=1e-3)
