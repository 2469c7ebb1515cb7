"""A stack gives what its members give one by one, and so do runs that train side by side."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from heads.config import load_config, variant_config
from heads.layers import Dense, TransformerLayer
from heads.m3e import M3E
from heads.stack import NamedStack, Stack
from heads.train import RunPlan, train, train_group
from tests.heads.synthetic import synthetic
from tests.heads.test_m3e import M3E_TINY

SMALL = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4)
NO_DROPOUT = ("te.dropout=0", "stage1.epochs=2", "stage2.epochs=3", "stage2.batch=7")


def members(count: int = 3) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: M3E(16, 32, **M3E_TINY) for name in "abcd"[:count]}


def call(member: nn.Module, x: Tensor, valid: Tensor) -> Tensor:
    return member(x, valid)


def test_equals_its_members() -> None:
    """Outputs and gradients, where every member sees its own slice."""
    parts = members()
    stack = NamedStack(parts)
    x, valid = torch.randn(5, 3, 8, 16), torch.rand(5, 3, 8) > 0.3
    y = stack.map(call, x, valid, axes=(1, 1), out=2)
    expected = torch.stack([m(x[:, i], valid[:, i]) for i, m in enumerate(parts.values())], 2)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for path, parameter in stack.stacked.named_parameters():
        for i, member in enumerate(parts.values()):
            assert parameter.grad is not None
            torch.testing.assert_close(
                parameter.grad[i], member.get_parameter(path).grad, rtol=1e-3, atol=1e-4
            )


def test_state_dict_is_that_of_separate_modules() -> None:
    parts = members()
    stack = NamedStack(parts)
    state = stack.state_dict()
    assert set(state) == {f"{name}.{key}" for name, m in parts.items() for key in m.state_dict()}
    assert torch.equal(state["b.in_proj.weight"], parts["b"].state_dict()["in_proj.weight"])
    torch.manual_seed(1)
    other = NamedStack({name: M3E(16, 32, **M3E_TINY) for name in parts})
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), stack.parameters(), strict=True))
    del state["a.in_proj.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)
    other.load_member("c", parts["a"].state_dict())
    assert torch.equal(other.state_dict()["c.in_proj.weight"], stack.state_dict()["a.in_proj.weight"])


def test_tied_members_follow() -> None:
    parts = list(members(2).values())
    stack = Stack(parts, tie=True)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(1)
    own = parts[1].state_dict()
    assert all(torch.equal(own[path], p[1]) for path, p in stack.stacked.named_parameters())


def test_random_numbers_differ_between_members() -> None:
    layer = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5))
    stack = Stack([layer, layer])  # copies with the same weights
    y = stack.train().map(lambda member, x: member(x), torch.ones(3, 4), axes=(None,))
    assert not torch.equal(y[0], y[1])
    y = stack.eval().map(lambda member, x: member(x), torch.ones(3, 4), axes=(None,))
    assert torch.equal(y[0], y[1])


def test_dense_is_linear() -> None:
    torch.manual_seed(0)
    dense, x = Dense(6, 5), torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(dense(x), nn.functional.linear(x, dense.weight, dense.bias))


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layer_is_torchs(norm_first: bool) -> None:
    torch.manual_seed(0)
    own = TransformerLayer(16, 4, 32, 0.1, norm_first).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 4, 32, 0.1, "gelu", batch_first=True, norm_first=norm_first
    ).eval()
    theirs.self_attn.in_proj_weight.data = own.qkv.weight.data
    theirs.self_attn.in_proj_bias.data = torch.randn(48)
    own.qkv.bias.data = theirs.self_attn.in_proj_bias.data
    theirs.self_attn.out_proj.load_state_dict(own.out.state_dict())
    for name in ("linear1", "linear2", "norm1", "norm2"):
        getattr(theirs, name).load_state_dict(getattr(own, name).state_dict())
    x, valid = torch.randn(3, 8, 16), torch.rand(3, 8) > 0.3
    valid[:, 0] = True
    torch.testing.assert_close(own(x, valid), theirs(x, src_key_padding_mask=~valid), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in theirs.parameters())
    torch.manual_seed(0)
    assert own.train()(x, valid).std() > 0  # and dropout acts
    assert not torch.equal(own(x, valid), own(x, valid))


def test_side_by_side_is_one_by_one(tmp_path: Path) -> None:
    """Without dropout three seeds as one batched model learn what each learns alone, epoch by epoch."""
    config = load_config("bmoe_tiny", NO_DROPOUT)
    plans = [RunPlan(tmp_path / f"group{seed}", config, seed) for seed in (0, 1, 2)]
    together = train_group(Path("x"), "demo", plans, features=SMALL, experts=tmp_path / "e1")
    for seed, result in enumerate(together):
        alone = train(
            Path("x"),
            "demo",
            config,
            tmp_path / f"alone{seed}",
            seed,
            features=SMALL,
            experts=tmp_path / "e2",
        )
        assert result.experts == alone.experts
        lines = [(r.run_dir / "metrics.jsonl").read_text().splitlines() for r in (result, alone)]
        for a, b in zip(*(map(json.loads, found) for found in lines), strict=True):
            assert (a["stage"], a["epoch"]) == (b["stage"], b["epoch"])
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        states = [load_file(r.run_dir / "last.safetensors") for r in (result, alone)]
        assert states[0].keys() == states[1].keys()
        for name, tensor in states[0].items():
            np.testing.assert_allclose(tensor, states[1][name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_variants_side_by_side(tmp_path: Path) -> None:
    """Heads with other experts of the same number share one batched model, and each shared expert is trained once."""
    base = load_config("bmoe_tiny", NO_DROPOUT)
    variants = ("drop_head", "drop_body", "drop_lower_limb")
    configs = {variant: variant_config(base, variant) for variant in variants}
    plans = [RunPlan(tmp_path / v, config, 3, v) for v, config in configs.items()]
    together = train_group(Path("x"), "demo", plans, features=SMALL)
    kept = sorted(p.name.partition("-")[0] for p in (tmp_path / "experts").iterdir())
    assert kept == ["body", "head", "lower_limb", "upper_limb"]
    for (variant, config), result in zip(configs.items(), together, strict=True):
        alone = train(Path("x"), "demo", config, tmp_path / "alone" / variant, 3, features=SMALL)
        assert result.experts.keys() == config.experts.keys()
        assert result.experts == alone.experts
        assert result.scores["top1"] == pytest.approx(alone.scores["top1"], abs=0.1)
        losses = []
        for run in (result, alone):
            records = map(json.loads, (run.run_dir / "metrics.jsonl").read_text().splitlines())
            losses.append({(r["stage"], r["epoch"]): r["loss"] for r in records})
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ValueError, match="cannot train side by side"):
        train_group(Path("x"), "demo", [plans[0], RunPlan(tmp_path / "y", base)], features=SMALL)


def test_runs_stop_each_at_its_own_epoch(tmp_path: Path) -> None:
    """Early stopping is per run: a run that stopped is not moved by those that go on."""
    config = load_config(
        "bmoe_tiny", [*NO_DROPOUT, "stage2.epochs=12", "stage2.patience=1", "stage2.lr=0.03"]
    )
    plans = [RunPlan(tmp_path / f"group{seed}", config, seed) for seed in range(4)]
    together = train_group(Path("x"), "demo", plans, features=SMALL)
    epochs = []
    for result in together:
        records = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
        epochs.append(sum(r["stage"] == "fusion" for r in records))
        assert epochs[-1] == min(result.best_epoch + 1, 12)
    assert len(set(epochs)) > 1, epochs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_is_eager(tmp_path: Path) -> None:
    """Two seeds side by side with a compiled step: the losses of an eager one."""
    config = load_config("bmoe_tiny", [*NO_DROPOUT, "stage1.epochs=0"])
    losses = []
    for compiled in (False, True):
        plans = [RunPlan(tmp_path / f"{compiled}{seed}", config, seed) for seed in (0, 1)]
        results = train_group(Path("x"), "demo", plans, features=SMALL, compiled=compiled)
        texts = [(result.run_dir / "metrics.jsonl").read_text() for result in results]
        losses.append([json.loads(line)["loss"] for text in texts for line in text.splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
