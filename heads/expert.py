"""Stage 1 of B-MoE (section 3.4): one expert with the two outputs it is trained by, as a module of its own."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from heads.inputs import Standardise, regularise, view_of
from heads.m3e import M3E, ExpertHeads
from heads.options import Config

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits [B, n], target [B, n] -> loss per clip [B]


class Expert(nn.Module):
    """An M3E on one view, its class scores and its label embedding.

    Args:
        m3e, heads: trained here.
        norm, shared: what its input passes first: the statistics of the view, and the projection that all experts
            share (else the identity).
        view: what it sees.
        groups: the classes behind each of the n scores: one class each, or several for coarse groups.
        vectors: float32 [C, 300] label vectors. A score's own is the mean of its classes'.
        config: for alpha, emb_reduction, use_mask and the regularisers.
    """

    assign: Tensor
    vectors: Tensor

    def __init__(
        self,
        m3e: M3E,
        heads: ExpertHeads,
        norm: Standardise,
        shared: nn.Module,
        view: str,
        groups: tuple[tuple[int, ...], ...],
        vectors: np.ndarray,
        config: Config,
    ) -> None:
        super().__init__()
        self.m3e, self.heads, self.norm, self.shared = m3e, heads, norm, shared
        self.view, self.config = view, config
        assign = torch.zeros(len(vectors), len(groups))
        for score, classes in enumerate(groups):
            assign[list(classes), score] = 1
        means = (assign.T @ torch.from_numpy(vectors)) / assign.sum(0).clamp(min=1)[:, None]
        self.register_buffer("assign", assign, persistent=False)
        self.register_buffer("vectors", means, persistent=False)

    def inputs(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What it reads of a split: x [N, T, D] and valid [N, T] of its view, without a copy."""
        x, valid = view_of(tensors, self.view)
        return {"x": x, "valid": valid}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """logits [B, n], embedding [B, 300], for clips of `inputs`."""
        x, valid = batch["x"], batch["valid"]
        if not self.config.use_mask:
            valid = torch.ones_like(valid)
        x = self.norm(x[:, None], valid[:, None])
        if self.training:
            x = regularise(x, self.config.aug)
        logits, embedding = self.heads(self.m3e(self.shared(x[:, 0]), valid), valid)
        return {"logits": logits, "embedding": embedding}

    def local(self, target: Tensor) -> Tensor:
        """Targets [N, C] of 0 and 1 -> [N, n]; all 0 for a clip of none of the expert's classes."""
        return (target @ self.assign).clamp(max=1)

    def loss(self, out: dict[str, Tensor], target: Tensor, criterion: Criterion) -> dict[str, Tensor]:
        """Cross entropy over the expert's classes + alpha x the squared error of the label embedding.

        The error is the mean over the 300 dimensions, as in the authors' code; the sum that eq. 3 writes weighs
        300 times more. For a clip with several labels the mean of their vectors is the target.
        """
        local = self.local(target)
        wanted = (local @ self.vectors) / local.sum(-1, keepdim=True).clamp(min=1)
        error = (out["embedding"] - wanted).square()
        emb = error.mean(-1) if self.config.emb_reduction == "mean" else error.sum(-1)
        ce = criterion(out["logits"], local)
        return {"loss": ce + self.config.alpha * emb, "ce": ce, "emb": emb}
