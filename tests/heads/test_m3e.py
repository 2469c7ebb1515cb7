"""The expert: attention against its formula and against torch's own, masks, pooling."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heads.layers import masked_mean
from heads.m3e import M3E, MHSA, ExpertHeads
from heads.sgp import SGP

SGP_TINY = {"kernel": 1, "k": 1.5, "hidden": 8, "init_std": 0.1, "path_pdrop": 0.0}
M3E_TINY: dict[str, Any] = {
    "depth": 1,
    "heads": 2,
    "qkv_bias": True,
    "prenorm": True,
    "ffn_ratio": 0.0,
    "outer_residual": True,
    "sgp": SGP_TINY,
}


def some_mask(*shape: int) -> Tensor:
    mask = torch.rand(*shape) > 0.4
    mask[..., 0] = True
    return mask


def test_mhsa_equals_formula_and_torch() -> None:
    torch.manual_seed(0)
    mhsa = MHSA(24, 4).double()
    for p in mhsa.parameters():
        p.data.normal_(std=0.3)
    x, mask = torch.randn(3, 8, 24, dtype=torch.float64), some_mask(3, 8)
    q = mhsa.q(x)
    k, v = mhsa.kv(x).chunk(2, -1)
    heads = []
    for part in torch.arange(24).split(6):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(6)
        heads.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1) @ v[..., part])
    expected = mhsa.out(torch.cat(heads, -1))
    torch.testing.assert_close(mhsa(x, mask), expected, rtol=1e-9, atol=1e-9)

    own = nn.MultiheadAttention(24, 4, batch_first=True).double()
    own.in_proj_weight.data = torch.cat([mhsa.q.weight, mhsa.kv.weight])
    own.in_proj_bias.data = torch.cat([mhsa.q.bias, mhsa.kv.bias])
    own.out_proj.load_state_dict(mhsa.out.state_dict())
    torch.testing.assert_close(mhsa(x, mask), own(x, x, x, key_padding_mask=~mask)[0], rtol=1e-9, atol=1e-9)


def test_m3e_is_attention_then_sgp() -> None:
    torch.manual_seed(0)
    x, valid = torch.randn(2, 6, 16), some_mask(2, 6)
    for prenorm in (True, False):
        for outer in (True, False):
            m3e = M3E(16, 16, **(M3E_TINY | {"prenorm": prenorm, "outer_residual": outer}))
            layer: Any = m3e.layers[0]
            h = x + layer.attn(nn.functional.layer_norm(x, (16,)) if prenorm else x, valid)
            s = layer.sgp(h.transpose(1, 2), valid[:, None])[0].transpose(1, 2)
            torch.testing.assert_close(m3e(x, valid), h + s if outer else s)
    deep = M3E(12, 32, **(M3E_TINY | {"depth": 3, "ffn_ratio": 2.0}))
    assert deep(torch.randn(2, 6, 12), valid).shape == (2, 6, 32)
    assert sum(isinstance(m, SGP) for m in deep.modules()) == 3


def test_m3e_survives_an_absent_region() -> None:
    torch.manual_seed(0)
    m3e = M3E(16, 16, **M3E_TINY)
    valid = torch.tensor([[False] * 4, [True] * 4])
    out = m3e(torch.zeros(2, 4, 16), valid)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m3e.parameters())


def test_pooling_before_or_after() -> None:
    """The class scores do not care; the embedding passes a tanh and does."""
    torch.manual_seed(0)
    after, before = ExpertHeads(16, 3, "after"), ExpertHeads(16, 3, "before")
    before.load_state_dict(after.state_dict())
    z, valid = torch.randn(4, 8, 16), some_mask(4, 8)
    torch.testing.assert_close(after(z, valid)[0], before(z, valid)[0])
    assert (after(z, valid)[1] - before(z, valid)[1]).abs().max() > 1e-3
    kept = z[0][valid[0]]
    torch.testing.assert_close(after(z, valid)[1][0], after.fc_emb(kept).mean(0))
    assert after(z, valid)[1].shape == (4, 300)


def test_masked_mean() -> None:
    x = torch.arange(8.0).view(1, 4, 2)
    assert masked_mean(x, torch.tensor([[True, False, True, False]])).tolist() == [[2.0, 3.0]]
    assert masked_mean(x, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[3.0, 4.0]]


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        M3E(16, 16, **(M3E_TINY | {"heads": 3}))
