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
