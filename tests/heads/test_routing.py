"""Routing against a loop over the steps, and its masks."""

import math

import pytest
import torch

from heads.routing import Routing


@pytest.mark.parametrize("norm", ["layernorm", "softmax", "none"])
def test_equals_a_loop_over_steps(norm: str) -> None:
    torch.manual_seed(0)
    routing = Routing(12, 16, norm).double()
    full, z = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 5, 4, 16, dtype=torch.float64)
    valid = torch.rand(2, 5, 4) > 0.3
    valid[..., 1] = True
    out, attn = routing(full, z, valid)
    for b in range(2):
        for t in range(5):
            query = {
                "layernorm": lambda g: (g - g.mean()) / (g.var(correction=0) + 1e-5).sqrt(),
                "softmax": lambda g: g.softmax(0),
                "none": lambda g: g,
            }[norm](full[b, t])
            present = valid[b, t].nonzero()[:, 0].tolist()
            scores = torch.stack([routing.q(query) @ routing.k(z[b, t, k]) / math.sqrt(16) for k in present])
            weights = scores.softmax(0)
            expected = sum(w * routing.v(z[b, t, k]) for w, k in zip(weights, present, strict=True))
            torch.testing.assert_close(out[b, t], expected)
            torch.testing.assert_close(attn[b, t][present], weights)
    assert (attn[~valid] == 0).all()


def test_pooled_and_sequence() -> None:
    """Pooled asks once per clip, about means over the valid steps; sequence asks about all steps at once."""
    torch.manual_seed(0)
    full, z, valid = torch.randn(2, 3, 12), torch.randn(2, 3, 4, 16), torch.rand(2, 3, 4) > 0.4
    valid[:, 0, 1] = True
    routing = Routing(12, 16, "none", "pooled")
    out, attn = routing(full, z, valid)
    assert (out[:, :1] == out).all()
    assert (attn[:, :1] == attn).all()
    for b in range(2):
        present = valid[b].any(0).nonzero()[:, 0].tolist()
        means = torch.stack([z[b, valid[b, :, k], k].mean(0) for k in present])
        weights = (routing.k(means) @ routing.q(full[b].mean(0)) / 4).softmax(0)
        torch.testing.assert_close(attn[b, 0, present], weights)
        torch.testing.assert_close(out[b, 0], weights @ routing.v(means))
    routing = Routing(12, 16, "none", "sequence")
    out, attn = routing(full, z, valid)
    for b in range(2):
        keys = z[b][valid[b]]
        weights = (routing.q(full[b]) @ routing.k(keys).T / 4).softmax(-1)
        torch.testing.assert_close(out[b], weights @ routing.v(keys))
        expert = valid[b].nonzero()[:, 1]
        for k in range(4):
            torch.testing.assert_close(attn[b, :, k], weights[:, expert == k].sum(-1))


def test_heads_and_output_projection() -> None:
    """Several heads are torch's attention, with the weights averaged over the heads."""
    torch.manual_seed(0)
    routing = Routing(16, 16, "none", heads=4, out_proj=True)
    own = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    own.in_proj_weight.data = torch.cat([m.weight.data for m in (routing.q, routing.k, routing.v)])
    own.in_proj_bias.data = torch.cat([m.bias.data for m in (routing.q, routing.k, routing.v)])
    own.out_proj.load_state_dict(routing.out.state_dict())
    full, z, valid = torch.randn(2, 3, 16), torch.randn(2, 3, 4, 16), torch.rand(2, 3, 4) > 0.3
    valid[..., 0] = True
    rows = (full.view(6, 1, 16), z.view(6, 4, 16))
    expected, weights = own(*rows, rows[1], key_padding_mask=~valid.view(6, 4))
    out, attn = routing(full, z, valid)
    torch.testing.assert_close(out.view(6, 1, 16), expected)
    torch.testing.assert_close(attn.view(6, 1, 4), weights)
    with pytest.raises(ValueError, match="5 heads of fusion"):
        Routing(16, 16, heads=5)


def test_all_absent_is_uniform_with_finite_gradients() -> None:
    torch.manual_seed(0)
    routing = Routing(8, 8)
    z = torch.randn(1, 2, 4, 8, requires_grad=True)
    out, attn = routing(torch.randn(1, 2, 8), z, torch.tensor([False, True])[None, :, None].expand(1, 2, 4))
    assert attn[0, 0].tolist() == [0.25] * 4
    out.square().sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in routing.parameters())


def test_permuting_experts_permutes_the_weights() -> None:
    torch.manual_seed(0)
    routing = Routing(8, 8)
    full, z, valid = torch.randn(2, 3, 8), torch.randn(2, 3, 4, 8), torch.rand(2, 3, 4) > 0.3
    order = [2, 0, 3, 1]
    out, attn = routing(full, z, valid)
    out2, attn2 = routing(full, z[:, :, order], valid[..., order])
    torch.testing.assert_close(out2, out)
    torch.testing.assert_close(attn2, attn[..., order])
