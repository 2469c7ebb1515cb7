"""SGP, the scalable-granularity perception layer of TriDet (Shi et al., CVPR 2023, MIT licence).

State-dict keys and arithmetic are TriDet's (18 tensors), so its weights load with strict=True. Three quirks
are kept because weights trained with them depend on them: the gate's mean and the GroupNorm's statistics
run over padded steps too, the mask multiplies the shortcut only, and the branches' residual is the
normalised input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 16  # of the GroupNorm; channels must be a multiple


class ChannelNorm(nn.Module):
    """LayerNorm over the channels: biased variance, eps inside the root. TriDet's parameters, [1, C, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        weight, bias = self.weight.flatten(), self.bias.flatten()
        return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


class Depthwise(nn.Conv1d):
    """A depthwise convolution of [B, T, C], padded to T, as one product per tap.

    For a few taps over 8 steps that is about twice as fast as the convolution kernels, backward above all.
    """

    bias: nn.Parameter

    def __init__(self, channels: int, width: int, std: float) -> None:
        super().__init__(channels, channels, width, padding=width // 2, groups=channels)
        nn.init.normal_(self.weight, 0.0, std)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        steps, width = x.shape[1], self.kernel_size[0]
        taps = self.weight[:, 0].unbind(-1)  # [C] each
        if width > 1:
            x = F.pad(x, (0, 0, width // 2, width // 2))
        y = torch.addcmul(self.bias, x[:, :steps], taps[0])
        for i in range(1, width):
            y = torch.addcmul(y, x[:, i : i + steps], taps[i])
        return y


class Pointwise(nn.Conv1d):
    """A convolution of width 1 of [B, T, C], computed as a linear layer."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, out]; on rows for the reason given in `heads.layers.Dense`."""
        rows = F.linear(x.reshape(-1, x.shape[-1]), self.weight[..., 0], self.bias)
        return rows.view(*x.shape[:-1], -1)


class AffineDropPath(nn.Module):
    """Stochastic depth per sample of [B, T, C], with a learned scale per channel that starts at 1e-4."""

    def __init__(self, channels: int, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.scale = nn.Parameter(torch.full((1, channels, 1), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale.flatten() * x
        if not self.training:
            return x
        keep = 1.0 - self.probability
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) < keep) / keep


def wide_kernel(kernel: int, k: float) -> int:
    """Width of the wide window: round((kernel + 1) * k) with ties to even, made odd by adding one."""
    width = round((kernel + 1) * k)
    return width if width % 2 else width + 1


class SGP(nn.Module):
    """Instant branch (gated by the mean over time) plus window branch (two depthwise kernels), then an MLP.

    Args:
        channels: C, a multiple of 16.
        kernel: width w of the narrow window, odd.
        k: the wide window spans about k (w + 1) steps.
        hidden: width of the MLP.
        init_std: standard deviation of the five depthwise convolutions. With 0 (the B-MoE authors' value)
            both branches are products of zeros: they get no gradient and stay zero for ever.
        path_pdrop: drop path; adds the two scale tensors to the state dict when above 0.
        masked: not TriDet's: padded steps take no part in means, statistics and kernels, and come out as 0.
            A clip then gives the same output however far it is padded.

    Raises:
        ValueError: channels not a multiple of 16, or an even kernel.
    """

    def __init__(
        self,
        channels: int,
        kernel: int = 1,
        k: float = 1.5,
        hidden: int = 768,
        init_std: float = 0.1,
        *,
        path_pdrop: float = 0.0,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.masked = masked
        if channels % GROUPS:
            raise ValueError(f"SGP needs a multiple of {GROUPS} channels, not {channels}")
        if kernel % 2 == 0:
            raise ValueError(f"SGP needs an odd kernel, not {kernel}")
        self.ln = ChannelNorm(channels)
        self.gn = nn.GroupNorm(GROUPS, channels)

        self.psi = Depthwise(channels, kernel, init_std)
        self.fc = Depthwise(channels, 1, init_std)
        self.convw = Depthwise(channels, kernel, init_std)
        self.convkw = Depthwise(channels, wide_kernel(kernel, k), init_std)
        self.global_fc = Depthwise(channels, 1, init_std)
        self.mlp = nn.Sequential(Pointwise(channels, hidden), nn.GELU(), Pointwise(hidden, channels))
        if path_pdrop > 0:
            self.drop_path_out: nn.Module = AffineDropPath(channels, path_pdrop)
            self.drop_path_mlp: nn.Module = AffineDropPath(channels, path_pdrop)
        else:
            self.drop_path_out = nn.Identity()
            self.drop_path_mlp = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, T] and mask [B, 1, T] bool -> (y [B, C, T], the same mask)."""
        x, shortcut = x.transpose(1, 2), mask.transpose(1, 2).to(x.dtype)
        z = self.ln(x)
        if self.masked:
            z = z * shortcut
            mean = z.sum(1, keepdim=True) / shortcut.sum(1, keepdim=True).clamp(min=1)
        else:
            mean = z.mean(1, keepdim=True)
        instant = self.fc(z) * F.relu(self.global_fc(mean))
        window = (self.convw(z) + self.convkw(z)) * self.psi(z)
        h = x * shortcut + self.drop_path_out(instant + window + z)
        normed = masked_group_norm(h, shortcut, self.gn) if self.masked else self._group_norm(h)
        y = h + self.drop_path_mlp(self.mlp(normed))
        return (y * shortcut if self.masked else y).transpose(1, 2), mask

    def _group_norm(self, x: Tensor) -> Tensor:
        return self.gn(x.transpose(1, 2)).transpose(1, 2)


def masked_group_norm(x: Tensor, mask: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of x [B, T, C] with the statistics of the steps where mask [B, T, 1] is 1."""
    groups = x.view(*x.shape[:2], norm.num_groups, -1)
    weight = mask[..., None] / (mask.sum(1, keepdim=True).clamp(min=1) * groups.shape[-1])[..., None]
    mean = (groups * weight).sum((1, 3), keepdim=True)
    variance = ((groups - mean).square() * weight).sum((1, 3), keepdim=True)
    return ((groups - mean) * (variance + norm.eps).rsqrt()).view(x.shape) * norm.weight + norm.bias
