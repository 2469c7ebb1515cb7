"""What every head keeps to: the contract, with each of ours and with one from outside."""

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from heads import spec
from heads.config import load_config, variant_config
from heads.evaluate import evaluate
from heads.features import FeatureSet
from heads.layers import masked_mean
from heads.options import Config
from heads.spec import SEMANTIC, HeadInfo, HeadSpec
from heads.stack import Stack
from heads.train import train
from pipeline.errors import UserError
from pipeline.taxonomy import parse_taxonomy
from tests.heads.synthetic import synthetic

DATA = synthetic(train=48, val=24, dim=32, motion_dim=24, steps=4)


def with_logits(data: FeatureSet) -> FeatureSet:
    """Cached scores that are right in half of the clips."""
    splits = {}
    for name, split in data.splits.items():
        shift = (torch.arange(len(split.label)) % 2).to(torch.int64)
        logits = nn.functional.one_hot((split.label + shift) % 12, 12).float() * 3
        splits[name] = replace(split, tensors=split.tensors | {"motion_logits": logits})
    return replace(data, splits=splits)


class Gate(nn.Module):
    """A head from outside: a gate over the pooled views, with a loss term of its own."""

    def __init__(self, config: Config, info: HeadInfo) -> None:
        super().__init__()
        self.gate = nn.Linear(4 * info.dim, 4)
        self.classifier = nn.Linear(info.dim, len(info.classes))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        parts, valid = batch["sem_parts"], batch["sem_parts_valid"]
        views = torch.stack([masked_mean(parts[:, k], valid[:, k]) for k in range(4)], 1)
        weights = self.gate(views.flatten(1)).softmax(-1)
        mixed = (weights[:, None] @ views)[:, 0]
        attention = weights[:, None].expand(-1, parts.shape[2], -1)
        return {"logits": self.classifier(mixed), "attn": attention, "views": views}

    def loss(self, out: dict[str, Tensor], target: Tensor, criterion: Any) -> dict[str, Tensor]:
        ce, size = criterion(out["logits"], target), out["logits"].square().mean(-1)
        return {"loss": ce + 0.1 * size, "ce": ce, "size": size}


OUTSIDE = HeadSpec("gate", 1, "inspired", "", lambda config: SEMANTIC, Gate)


@pytest.fixture(autouse=True)
def _outside(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("gate", "tests.heads.test_heads:OUTSIDE", spec.ENTRY_POINTS)
    monkeypatch.setattr(spec, "entry_points", lambda group: [point] if group == spec.ENTRY_POINTS else [])


CONFIGS = {
    "bmoe": load_config("bmoe_tiny"),
    "shared": load_config("bmoe_tiny", ["share_in_proj=true", "gate_expert=true", "query=gate"]),
    "author": load_config(
        "bmoe_g1408_author",
        ["d_in=32", "d_model=16", "t_len=4", "m3e.heads=2", "te.heads=2", "sgp.hidden=8",
         "stage1.epochs=2", "stage2.epochs=2", "stage2.lr=0.01", "tensorboard=false"],
    ),
    "gs_moe_b": load_config(
        "gs_moe_b",
        ["d_in=32", "d_model=16", "t_len=4", "m3e.heads=2", "te.heads=2", "sgp.hidden=8", "query=gate",
         "experts={a: full, b: full}", "expert_classes={a: [0, 1, 2], b: [3, 4]}",
         "stage1.epochs=2", "stage2.epochs=2", "tensorboard=false"],
    ),
    "linear": load_config("linear_probe", ["t_len=4", "stage2.epochs=20", "tensorboard=false"]),
    "attention": load_config("attn_pool_probe", ["t_len=4", "stage2.epochs=20", "tensorboard=false"]),
    "cached": load_config("manet_cached", ["t_len=4", "tensorboard=false"]),
    "outside": load_config("bmoe_tiny", ["head=gate"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_contract(name: str, tmp_path: Path) -> None:
    """Declares what it reads, is a pure function of the batch, runs stacked, trains, reloads."""
    config = CONFIGS[name]
    data = replace(with_logits(DATA), t_mode=config.t_mode)
    needs = spec.needs(config)
    own = data.only(needs)
    info = own.info(np.zeros((12, 300), np.float32))
    torch.manual_seed(0)
    models = [spec.build(config, info).eval() for _ in range(2)]
    batch = own.splits["train"].batch(torch.arange(5))
    out = models[0](batch)
    assert out["logits"].shape == (5, 12)
    alone = models[0]({key: tensor[2:3] for key, tensor in batch.items()})
    torch.testing.assert_close(alone["logits"][0], out["logits"][2], rtol=1e-4, atol=1e-5)
    if list(models[0].parameters()):
        logits = Stack(models).map(lambda m, i: m(own.splits["train"].batch(i))["logits"],
                                   torch.arange(5), axes=(None,))  # fmt: skip
        torch.testing.assert_close(logits[1], models[1](batch)["logits"], rtol=1e-4, atol=1e-5)
    if "attn" in out:
        torch.testing.assert_close(out["attn"].sum(-1), torch.ones(5, 4))
    result = train(Path("x"), "demo", config, tmp_path / "run", features=data)
    assert evaluate(result.run_dir, Path("x"), features=data) == result.scores
    records = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    stages = {r["stage"] for r in records}
    expected = {
        "bmoe": {"fusion", "expert:head", "expert:body", "expert:upper_limb", "expert:lower_limb"},
        "author": {"fusion", *(f"expert:{n}" for n in ("head", "body", "upper_limb", "lower_limb", "gate"))},
        "gs_moe_b": {"fusion", "expert:a", "expert:b", "expert:gate"},
        "cached": set(),
        "shared": {"fusion", *(f"expert:{n}" for n in ("head", "body", "upper_limb", "lower_limb", "gate"))},
    }
    assert stages == expected.get(name, {"fusion"})
    if name == "outside":
        fusion = records[-1]
        assert fusion["loss"] == pytest.approx(fusion["ce"] + 0.1 * fusion["size"], rel=1e-5)


def test_every_part_of_a_loss_teaches() -> None:
    """Each part of each loss of stage 1 moves a parameter, in every variant of the options."""
    for changes in ((), ("emb_pool=before", "emb_head=linear", "emb_reduction=sum"), ("gate_expert=true",)):
        config = load_config("bmoe_tiny", changes)
        data = DATA.only(spec.needs(config))
        model = spec.build(config, data.info(np.ones((12, 300), np.float32)))
        split = data.splits["train"]
        target = split.target(12)
        for name in model.expert_names():
            expert = model.new_expert(name)
            out = expert(expert.inputs(split.tensors))
            rows = expert.local(target).any(-1)

            def criterion(logits: Tensor, wanted: Tensor) -> Tensor:
                return -(wanted * logits.log_softmax(-1)).sum(-1)

            for part, value in expert.loss(out, target, criterion).items():
                expert.zero_grad()
                value[rows].mean().backward(retain_graph=True)
                assert any(p.grad is not None and p.grad.any() for p in expert.parameters()), (name, part)


def test_gate_expert() -> None:
    """Its groups are the experts' classes and the rest; unused it is frozen, asked it moves the weights."""
    config = load_config("bmoe_tiny", ["gate_expert=true"])
    info = DATA.info(np.eye(12, 300, dtype=np.float32))
    model = spec.build(config, info)
    assert model.groups["gate"] == ((2, 3, 4), (0, 1), (5, 6, 7), (8, 9), (10, 11))
    assert not any(p.requires_grad for p in model.gate.parameters())
    expert = model.new_expert("gate")
    assert expert.view == "full"
    torch.testing.assert_close(expert.vectors[0, :6], torch.tensor([0, 0, 1, 1, 1, 0]) / 3)
    assert expert.local(torch.eye(12)).argmax(1).tolist() == [1, 1, 0, 0, 0, 2, 2, 2, 3, 3, 4, 4]
    asked = spec.build(load_config("bmoe_tiny", ["gate_expert=true", "query=gate"]), info)
    batch = DATA.splits["train"].batch(torch.arange(6))
    asked(batch)["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in asked.gate.parameters())


def test_shared_input_projection(tmp_path: Path) -> None:
    """One Linear before all experts: frozen while an expert trains alone, trained with the whole head."""
    config = load_config("bmoe_tiny", ["share_in_proj=true"])
    result = train(Path("x"), "demo", config, tmp_path / "run", features=DATA)
    own = train(Path("x"), "demo", CONFIGS["bmoe"], tmp_path / "own", features=DATA)
    assert own.parameters - result.parameters == 3 * (32 * 16 + 16)
    best = load_file(tmp_path / "run" / "best.safetensors")
    assert [name for name in best if "in_proj" in name] == ["in_proj.bias", "in_proj.weight"]
    kept = [load_file(tmp_path / f"experts/{n}-{key[:16]}.safetensors") for n, key in result.experts.items()]
    first = kept[0]["shared.weight"]
    assert all(torch.equal(state["shared.weight"], first) for state in kept)
    assert not torch.equal(best["in_proj.weight"], first)
    drop = variant_config(config, "drop_body")  # takes the same experts
    other = train(Path("x"), "demo", drop, tmp_path / "drop", features=DATA)
    assert other.experts.items() <= result.experts.items()


def test_cached_scores_are_the_motion_encoders(tmp_path: Path) -> None:
    result = train(Path("x"), "demo", CONFIGS["cached"], tmp_path / "run", features=with_logits(DATA))
    assert (result.scores["top1"], result.parameters, result.best_epoch) == (0.5, 0, 0)
    data = with_logits(DATA)
    narrow = {
        n: replace(s, tensors=s.tensors | {"motion_logits": s.tensors["motion_logits"][:, :7]})
        for n, s in data.splits.items()
    }
    with pytest.raises(UserError, match="scores 7 classes, the data set has 12"):
        train(Path("x"), "demo", CONFIGS["cached"], tmp_path / "n", features=replace(data, splits=narrow))


def several_labels() -> FeatureSet:
    """The synthetic clips with a second label in a third of them and none in a sixth."""
    taxonomy = DATA.taxonomy.model_dump()
    splits = {}
    for name, split in DATA.splits.items():
        target = nn.functional.one_hot(split.label, 12).float()
        order = torch.arange(len(target))
        target[order % 3 == 1, 11] = 1
        target[order % 6 == 5] = 0
        splits[name] = replace(split, label=target)
    return replace(DATA, splits=splits, taxonomy=parse_taxonomy(taxonomy | {"label_kind": "multi"}, "test"))


def test_several_labels(tmp_path: Path) -> None:
    """Binary cross entropy, mAP, and an epoch picked by it."""
    config = load_config("bmoe_tiny", ["stage2.epochs=6", "stage2.lr=0.01", "loss.sampler=balanced"])
    data = several_labels()
    result = train(Path("x"), "demo", config, tmp_path / "run", features=data)
    assert set(result.scores) == {"map", "f1_macro", "f1_micro"}
    records = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    fusion = [r for r in records if r["stage"] == "fusion"]
    assert (
        fusion[result.best_epoch - 1]["val_map"] == max(r["val_map"] for r in fusion) == result.scores["map"]
    )
    assert fusion[-1]["loss"] < fusion[0]["loss"]
    assert evaluate(result.run_dir, Path("x"), features=data) == result.scores
    assert not (result.run_dir / "confusion.csv").exists()
    with np.load(result.run_dir / "predictions.npz", allow_pickle=False) as arrays:
        assert arrays["label"].shape == arrays["probabilities"].shape == (24, 12)
        assert not np.allclose(arrays["probabilities"].sum(1), 1)
    info = json.loads((result.run_dir / "info.json").read_text())
    assert info["clips_per_class"]["train"] == data.splits["train"].label.sum(0).int().tolist()


def test_precision_is_reported(tmp_path: Path) -> None:
    """bf16 trains; the checkpoint is used in fp32, and how far bf16 would be from that is on record."""
    full = train(Path("x"), "demo", CONFIGS["bmoe"], tmp_path / "fp32", features=DATA)
    assert full.difference == {}
    config = load_config("bmoe_tiny", ["precision=bf16"])
    low = train(Path("x"), "demo", config, tmp_path / "bf16", features=DATA)
    assert 0 < low.difference["probability_max"] < 0.05
    assert abs(low.difference["top1"]) < 0.2
    before = torch.get_float32_matmul_precision()
    config = load_config("bmoe_tiny", ["precision=tf32", "stage1.epochs=1", "stage2.epochs=1"])
    assert "top1" in train(Path("x"), "demo", config, tmp_path / "tf32", features=DATA).difference
    assert torch.get_float32_matmul_precision() == before
