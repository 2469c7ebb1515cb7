"""The fused head: the equations with the parts replaced by hand, masks, streams, variants, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heads import spec
from heads.bmoe import BMoE
from heads.config import load_config, parse_config, variant_config
from heads.layers import TransformerLayer, masked_mean, sinusoid
from heads.options import Config
from heads.spec import HeadInfo, needs
from pipeline.errors import UserError
from pipeline.spec import REGIONS
from tests.heads.synthetic import synthetic

DATA = synthetic(train=24, val=12, dim=32, motion_dim=24, steps=4, absent=0.3)
BATCH = DATA.splits["train"].batch(torch.arange(12))


def info_for(config: Config) -> HeadInfo:
    return DATA.only(needs(config)).info(torch.zeros(12, 300).numpy())


def model_for(*overrides: str) -> BMoE:
    torch.manual_seed(0)
    config = load_config("bmoe_tiny", overrides)
    model = spec.build(config, info_for(config)).eval()
    assert isinstance(model, BMoE)
    return model


def z_of(model: BMoE, name: str, batch: dict[str, Tensor]) -> Tensor:
    """What one expert of the model makes of its view, outside of the stack."""
    expert = model.new_expert(name).eval()
    state = model.state_dict()
    prefix = f"experts.{name}."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    expert.m3e.load_state_dict(own)
    inputs = expert.inputs(batch)
    return expert.m3e(expert.norm(inputs["x"][:, None], inputs["valid"][:, None])[:, 0], inputs["valid"])


def test_forward_is_the_equations() -> None:
    model = model_for("d_model=16")
    model.fit_normalisation(DATA.splits["train"].tensors)
    last = torch.arange(4) == 3  # absent in the full view: what comes after the routing never sees it
    out = model(BATCH | {"sem_full_valid": (~last).expand(12, 4)})
    z = torch.stack([z_of(model, r, BATCH) for r in REGIONS], 2)
    norm = model.full_norm
    full = (BATCH["sem_full"] - norm.mean[0]) / norm.std[0]
    fused, attn = model.routing(full, z, BATCH["sem_parts_valid"].transpose(1, 2))
    motion = (BATCH["motion"] - model.motion_norm.mean[0]) / model.motion_norm.std[0]
    ends = torch.linspace(0, 7, 4)
    low = ends.floor().long().clamp(max=6)
    share = (ends - low)[:, None]
    u = fused + model.w_m(motion[:, low] * (1 - share) + motion[:, low + 1] * share) + sinusoid(4, 16)
    u = u[:, :3]
    layer: Any
    for layer in model.te:  # post-norm: attention, then feed-forward with GELU
        q, k, v = layer.qkv(u).view(12, 3, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(12, 3, 16)
        u = layer.norm1(u + layer.out(mixed))
        u = layer.norm2(u + layer.linear2(F.gelu(layer.linear1(u))))
    torch.testing.assert_close(out["logits"], model.classifier(u.mean(1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["attn"][:, :3], attn[:, :3])
    assert (attn.transpose(1, 2)[~BATCH["sem_parts_valid"]] == 0).all()
    torch.testing.assert_close(out["experts"], z)


def test_te_follows_the_config() -> None:
    layer = model_for("te.layers=3", "te.ff_ratio=4", "te.dropout=0.3", "te.norm_first=true").te
    assert len(layer) == 3
    first = layer[0]
    assert isinstance(first, TransformerLayer)
    assert (first.linear1.out_features, first.dropout.p, first.norm_first) == (64, 0.3, True)
    assert first.attention_dropout == 0.3
    assert load_config("bmoe_b768").te == load_config("bmoe_demo").te
    assert load_config("bmoe_b768").te.model_dump() == {
        "layers": 2, "heads": 4, "ff_ratio": 2.0, "norm_first": False, "dropout": 0.1,
    }  # fmt: skip


def test_absent_steps_of_the_full_view_do_not_matter() -> None:
    model = model_for()
    batch = {name: tensor.clone() for name, tensor in BATCH.items()}
    batch["sem_full_valid"][:, 2:] = False
    first = model(batch)["logits"]
    batch["sem_full"][:, 2:] = 7.0
    torch.testing.assert_close(model(batch)["logits"], first)
    unmasked = model_for("use_mask=false")
    assert (unmasked(batch)["logits"] - unmasked(BATCH)["logits"]).abs().max() > 1e-4


def test_an_absent_region_does_not_matter() -> None:
    model = model_for()
    batch = {name: tensor.clone() for name, tensor in BATCH.items()}
    batch["sem_parts_valid"][:, 0] = False
    first = model(batch)
    batch["sem_parts"][:, 0] = torch.randn_like(batch["sem_parts"][:, 0])
    torch.testing.assert_close(model(batch)["logits"], first["logits"])
    assert (first["attn"][..., 0][batch["sem_parts_valid"][:, 1:].any(1)] == 0).all()


def test_permutation_of_experts() -> None:
    """The same experts in another order give the same scores and permuted weights."""
    model = model_for()
    order = [2, 0, 3, 1]
    other = model_for(f"experts=[{', '.join(REGIONS[i] for i in order)}]")
    other.load_state_dict(model.state_dict())
    a, b = model(BATCH), other(BATCH)
    torch.testing.assert_close(a["logits"], b["logits"])
    torch.testing.assert_close(a["attn"][..., order], b["attn"])


def test_variants_read_only_their_streams() -> None:
    config = load_config("bmoe_tiny")
    semantic = {"sem_full", "sem_full_valid", "sem_parts", "sem_parts_valid"}
    for variant, names in (
        ("semantic_only", semantic),
        ("motion_only", {"motion"}),
        ("drop_body", set(BATCH)),
    ):
        chosen = variant_config(config, variant)
        data = DATA.only(needs(chosen))
        model = spec.build(chosen, data.info(torch.zeros(12, 300).numpy())).eval()
        batch = data.splits["train"].batch(torch.arange(3))
        assert set(batch) == names
        out = model(batch)
        assert out["logits"].shape == (3, 12)
        assert "attn" not in out if variant == "motion_only" else out["attn"].shape[-1] == len(chosen.experts)
    with pytest.raises(
        UserError, match="unknown variant 'both'; known: full, semantic_only, motion_only, drop_head"
    ):
        variant_config(config, "both")


def test_every_part_learns() -> None:
    """Cross entropy alone reaches every parameter of the default head."""
    model = model_for().train()
    F.cross_entropy(model(BATCH)["logits"], DATA.splits["train"].label[:12]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_regularisers_act_in_training_only() -> None:
    names = (
        "aug.feature_dropout=0.5",
        "aug.noise=1",
        "aug.view_dropout=0.5",
        "aug.time_mask=0.5",
        "motion.dropout=0.5",
    )
    model = model_for(*names)
    torch.testing.assert_close(model(BATCH)["logits"], model_for()(BATCH)["logits"])
    for name in names:
        model = model_for(name, "te.dropout=0").train()
        torch.manual_seed(0)
        first = model(BATCH)["logits"]
        assert not torch.equal(model(BATCH)["logits"], first), name
        torch.manual_seed(0)
        assert torch.equal(model(BATCH)["logits"], first), name


def test_standardise_uses_valid_steps() -> None:
    model = model_for("experts=[lower_limb, head]")
    model.fit_normalisation(DATA.splits["train"].tensors)
    tensors = DATA.splits["train"].tensors
    for row, region in enumerate((3, 0)):
        kept = tensors["sem_parts"][:, region][tensors["sem_parts_valid"][:, region]].double()
        torch.testing.assert_close(model.parts_norm.mean[row, 0].double(), kept.mean(0), rtol=1e-5, atol=1e-5)
        deviation = kept.std(0, correction=0)
        torch.testing.assert_close(model.parts_norm.std[row, 0].double(), deviation, rtol=1e-5, atol=1e-5)
    expert = model.new_expert("head")
    inputs = expert.inputs(BATCH)
    x = expert.norm(inputs["x"][:, None], inputs["valid"][:, None])[:, 0]
    assert (x[~inputs["valid"]] == 0).all()
    kept = tensors["sem_parts"][:, 0][tensors["sem_parts_valid"][:, 0]]
    torch.testing.assert_close(expert.norm.mean[0, 0], kept.mean(0), rtol=1e-4, atol=1e-5)
    off = model_for("normalise=none")
    off.fit_normalisation(tensors)
    assert torch.equal(off.full_norm.mean, torch.zeros(1, 1, 32))


def test_sinusoid_tells_steps_apart() -> None:
    table: Tensor = sinusoid(8, 16)
    assert table.shape == (8, 16)
    assert torch.cdist(table, table).add(torch.eye(8)).min() > 0.5
    torch.testing.assert_close(table[3, [0, 8]], torch.tensor([3.0]).sin().new_tensor([0.14112, -0.98999]))
    assert masked_mean(table[None], torch.ones(1, 8, dtype=torch.bool)).shape == (1, 16)


@pytest.mark.parametrize(
    ("override", "message"),
    [("d_model=24", "multiple of 16"), ("te.heads=3", "3 heads of te"), ("m3e.heads=5", "5 attention heads")],
)
def test_refuses_widths(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_for(override)


@pytest.mark.parametrize(("d", "millions"), [(768, 27.05), (1024, 45.25), (1408, 81.14)])
def test_parameters_of_the_authors_structure(d: int, millions: float) -> None:
    """Four experts, routing, W_m, TE and classifier for 52 classes: the closed form, and the count decoded
    from the paper, which leaves out the biases of q and kv (12 d).
    """
    config = parse_config({"m3e": {"prenorm": False}, "query_norm": "softmax"})
    info = HeadInfo(
        d, 2048, ("x",) * 52, (0,) * 52, ("all",), {"strict": {}}, np.zeros((52, 300), np.float32)
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in spec.build(config, info).parameters())
    m3e = 4 * d * d + 4 * d + 2 * d * 768 + 768 + d + 4 * d + 7 * d + 5 * d
    te = 2 * (8 * d * d + 4 * d + 3 * d + 4 * d)
    assert count == 4 * m3e + 3 * (d * d + d) + 2048 * d + d + te + 52 * d + 52
    assert (count - 12 * d) / 1e6 == pytest.approx(millions, abs=0.011)


def test_unknown_head() -> None:
    with pytest.raises(UserError, match="unknown head 'gsmoe'; known: attn_pool_probe, bmoe, linear_probe"):
        spec.needs(load_config("bmoe_tiny", ["head=gsmoe"]))
