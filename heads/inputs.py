"""What happens to cached features on their way into a head: standardisation and the training regularisers."""

import torch
from torch import Tensor, nn

from heads.config import AugConfig

CHUNK = 512  # clips per step of the statistics: bounds the float64 copies


class Standardise(nn.Module):
    """(x - mean) / std per channel and view; the statistics are buffers and so part of the checkpoint.

    A fresh module is the identity. Absent steps become zeros, after `fit` the mean of the present ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, views: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(views, 1, dim))
        self.register_buffer("std", torch.ones(views, 1, dim))

    def forward(self, x: Tensor, valid: Tensor, views: slice = slice(None)) -> Tensor:
        """x [B, V, T, D], valid [B, V, T] bool -> [B, V, T, D]; `views` picks their statistics."""
        return ((x - self.mean[views]) / self.std[views]) * valid[..., None].to(x.dtype)

    @torch.no_grad()
    def fit(self, x: Tensor, valid: Tensor) -> None:
        """Takes the statistics of the valid steps of x [N, V, T, D]. A constant channel is only centred."""
        count = valid.sum((0, 2)).clamp(min=1).double()[:, None, None]  # [V, 1, 1]
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        square = torch.zeros_like(total)
        for part, keep in zip(x.split(CHUNK), valid.split(CHUNK), strict=True):
            total += (part.double() * keep[..., None]).sum((0, 2))[:, None]
        mean = total / count
        for part, keep in zip(x.split(CHUNK), valid.split(CHUNK), strict=True):
            square += ((part.double() - mean).square() * keep[..., None]).sum((0, 2))[:, None]
        std = (square / count).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-4, std, torch.ones_like(std)))


def regularise(x: Tensor, aug: AugConfig) -> Tensor:
    """x [B, V, T, D] with noise added and channels of a view dropped over all steps alike."""
    if aug.noise:
        x = x + aug.noise * torch.randn_like(x)
    if aug.feature_dropout:
        keep = 1.0 - aug.feature_dropout
        x = x * torch.empty(*x.shape[:2], 1, x.shape[3], device=x.device).bernoulli_(keep) / keep
    return x


def drop_views(valid: Tensor, share: float) -> Tensor:
    """valid [B, K, T] with regions turned absent at random; a clip that would lose every region keeps all."""
    if not share:
        return valid
    kept = valid & (torch.rand(valid.shape[:2], device=valid.device) >= share)[..., None]
    return torch.where(kept.any((1, 2), keepdim=True), kept, valid)


def drop_steps(valid: Tensor, share: float) -> Tensor:
    """valid [B, T] with time steps turned absent at random; a clip that would lose every step keeps them."""
    if not share:
        return valid
    kept = valid & (torch.rand(valid.shape, device=valid.device) >= share)
    return torch.where(kept.any(-1, keepdim=True), kept, valid)
