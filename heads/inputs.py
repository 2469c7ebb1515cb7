"""What happens to cached features on their way into a head: standardisation and the training regularisers."""

import torch
from torch import Tensor, nn

from heads.options import AugConfig
from pipeline.spec import REGIONS

CHUNK = 512  # clips per step of the statistics: bounds the float64 copies


def view_of(tensors: dict[str, Tensor], view: str) -> tuple[Tensor, Tensor]:
    """(features [B, T, D], valid [B, T]) of one view: full, or a region."""
    if view == "full":
        return tensors["sem_full"], tensors["sem_full_valid"]
    region = REGIONS.index(view)
    return tensors["sem_parts"][:, region], tensors["sem_parts_valid"][:, region]


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

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, V, T, D], valid [B, V, T] bool -> [B, V, T, D]."""
        return ((x - self.mean) / self.std) * valid[..., None].to(x.dtype)

    @torch.no_grad()
    def fit(self, view: int, x: Tensor, valid: Tensor) -> None:
        """Takes the statistics of one view over the valid steps [N, T] of x [N, T, D].

        A constant channel is only centred. Sums are in float64, CHUNK clips at a time.
        """
        count = valid.sum().clamp(min=1).double()
        mean = sum((p.double() * k[..., None]).sum((0, 1)) for p, k in _chunks(x, valid)) / count
        square = sum(((p.double() - mean).square() * k[..., None]).sum((0, 1)) for p, k in _chunks(x, valid))
        std = (square / count).sqrt()
        self.mean[view, 0] = mean.float()
        self.std[view, 0] = torch.where(std > 1e-4, std, torch.ones_like(std)).float()


def _chunks(x: Tensor, valid: Tensor) -> zip:
    return zip(x.split(CHUNK), valid.split(CHUNK), strict=True)


def regularise(x: Tensor, aug: AugConfig) -> Tensor:
    """x [B, V, T, D] with noise added and channels of a view dropped over all steps alike."""
    if aug.noise:
        x = x + aug.noise * torch.randn_like(x)
    if aug.feature_dropout:
        keep = 1.0 - aug.feature_dropout
        x = x * (torch.rand(*x.shape[:2], 1, x.shape[3], device=x.device) < keep) / keep
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
