"""SGP against the numbers of TriDet's block, a literal convolution, and its documented quirks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heads.sgp import SGP, wide_kernel

KEYS = [
    "convkw.bias", "convkw.weight", "convw.bias", "convw.weight", "fc.bias", "fc.weight", "global_fc.bias",
    "global_fc.weight", "gn.bias", "gn.weight", "ln.bias", "ln.weight", "mlp.0.bias", "mlp.0.weight",
    "mlp.2.bias", "mlp.2.weight", "psi.bias", "psi.weight",
]  # fmt: skip


def golden() -> tuple[SGP, Tensor]:
    """C 16, w 3, k 1.5, hidden 32, float64; the i-th tensor by sorted key is 0.5 sin(0.37 j + i)."""
    sgp = SGP(16, kernel=3, k=1.5, hidden=32).double()
    state = sgp.state_dict()
    for i, key in enumerate(sorted(state)):
        j = torch.arange(state[key].numel(), dtype=torch.float64)
        state[key].copy_((0.5 * torch.sin(0.37 * j + i)).view_as(state[key]))
    x = torch.cos(0.11 * torch.arange(96, dtype=torch.float64)).view(1, 16, 6)
    return sgp, x


@pytest.mark.parametrize(
    ("mask", "total", "absolute", "channel0"),
    [
        ([1, 1, 1, 1, 1, 0], -43.1846382180, 405.8161352167,
         [3.39958122, 3.42364821, 3.07013038, 3.14496869, 4.59489515, 5.24204873]),
        ([1, 1, 1, 1, 1, 1], -44.6987171575, None,
         [2.67951418, 3.4828082, 3.24945282, 3.09555578, 4.38895609, 6.73976496]),
    ],
)  # fmt: skip
def test_golden(mask: list[int], total: float, absolute: float | None, channel0: list[float]) -> None:
    sgp, x = golden()
    m = torch.tensor(mask, dtype=torch.bool).view(1, 1, 6)
    y, returned = sgp(x, m)
    assert y.sum().item() == pytest.approx(total, abs=5e-10)
    if absolute is not None:
        assert y.abs().sum().item() == pytest.approx(absolute, abs=5e-10)
    assert y[0, 0].tolist() == pytest.approx(channel0, abs=5e-9)
    assert returned is m


def test_state_dict_keys() -> None:
    assert sorted(SGP(16, hidden=8).state_dict()) == KEYS
    extra = set(SGP(16, hidden=8, path_pdrop=0.1).state_dict()) - set(KEYS)
    assert extra == {"drop_path_out.scale", "drop_path_mlp.scale"}
    assert SGP(16, hidden=8).state_dict()["ln.weight"].shape == (1, 16, 1)


@pytest.mark.parametrize(
    ("w", "k", "width"), [(1, 1.5, 3), (3, 1.5, 7), (1, 5, 11), (3, 1.2, 5), (1, 1.2, 3), (1, 2, 5)]
)
def test_wide_kernel(w: int, k: float, width: int) -> None:
    assert wide_kernel(w, k) == width
    assert SGP(16, kernel=w, k=k, hidden=8).convkw.weight.shape == (16, 1, width)


@pytest.mark.parametrize(("kernel", "k", "steps"), [(1, 1.5, 8), (3, 1.5, 5), (1, 5.0, 3), (1, 1.5, 1)])
def test_equals_convolutions(kernel: int, k: float, steps: int) -> None:
    """The taps and linears equal torch's convolutions, also where the kernel is wider than the clip."""
    torch.manual_seed(0)
    sgp = SGP(32, kernel, k, hidden=24, init_std=0.7).double()
    for p in sgp.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x, mask = torch.randn(3, 32, steps, dtype=torch.float64), torch.rand(3, 1, steps) > 0.3
    centred = x - x.mean(1, keepdim=True)
    z = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * sgp.ln.weight + sgp.ln.bias

    def conv(name: str, value: Tensor) -> Tensor:
        layer = getattr(sgp, name)
        return F.conv1d(value, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2, groups=32)

    instant = conv("fc", z) * F.relu(conv("global_fc", z.mean(-1, keepdim=True)))
    window = (conv("convw", z) + conv("convkw", z)) * conv("psi", z)
    h = x * mask + instant + window + z
    mlp: Any = sgp.mlp
    first, last = mlp[0], mlp[2]
    hidden = F.gelu(F.conv1d(F.group_norm(h, 16, sgp.gn.weight, sgp.gn.bias), first.weight, first.bias))
    expected = h + F.conv1d(hidden, last.weight, last.bias)
    torch.testing.assert_close(sgp(x, mask)[0], expected, rtol=1e-12, atol=1e-12)


def test_init_std_zero_is_dead() -> None:
    """With init_std 0 the branches are products of zeros: no gradient ever reaches them. 0.1 revives them."""
    names = ("fc", "global_fc", "psi", "convw", "convkw")
    for std, alive in ((0.0, False), (0.1, True)):
        torch.manual_seed(0)
        sgp = SGP(16, hidden=8, init_std=std)
        x = torch.randn(4, 16, 8)
        sgp(x, torch.ones(4, 1, 8, dtype=torch.bool))[0].square().sum().backward()
        for name in names:
            grad = getattr(sgp, name).weight.grad
            assert grad is not None
            assert bool(grad.any()) == alive, name


def test_padding_leaks_as_in_tridet() -> None:
    """Padded steps influence valid ones (mean, group norm, kernels): always pad to one T."""
    torch.manual_seed(0)
    sgp = SGP(16, hidden=8)
    x = torch.randn(1, 16, 7)
    alone, _ = sgp(x, torch.ones(1, 1, 7, dtype=torch.bool))
    mask = torch.arange(10)[None, None] < 7
    padded, _ = sgp(F.pad(x, (0, 3)), mask)
    assert (alone - padded[..., :7]).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [7, 10, 16])
def test_masked_variant_does_not_leak(steps: int) -> None:
    """The same clip padded to any length gives the same output, and zeros after it; unpadded it is TriDet's."""
    torch.manual_seed(0)
    sgp = SGP(32, kernel=3, hidden=8, masked=True)
    for p in sgp.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    plain = SGP(32, kernel=3, hidden=8)
    plain.load_state_dict(sgp.state_dict())
    x = torch.randn(2, 32, 7)
    alone, _ = sgp(x, torch.ones(2, 1, 7, dtype=torch.bool))
    torch.testing.assert_close(alone, plain(x, torch.ones(2, 1, 7, dtype=torch.bool))[0])
    mask = (torch.arange(steps) < 7).expand(2, 1, steps)
    padded, _ = sgp(torch.cat([x, torch.randn(2, 32, steps - 7)], -1), mask)
    torch.testing.assert_close(padded[..., :7], alone, rtol=1e-5, atol=1e-5)
    assert (padded[..., 7:] == 0).all()


def test_refuses_widths() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        SGP(24)
    with pytest.raises(ValueError, match="odd"):
        SGP(16, kernel=2)
