"""Routing (B-MoE eq. 1): cross-attention from the full frame to the experts, step by step."""

import torch
from torch import Tensor, nn


class Routing(nn.Module):
    """z~ = sum_k a_k W_v z_k with a = softmax_k(W_q norm(z_g) . W_k z_k / sqrt(d)); one head, no projection
    after.

    Args:
        dim_query: width D of the full view's feature z_g.
        dim: width d of the experts.
        query_norm: "layernorm"; "none"; or "softmax" over the channels, the authors' choice, which leaves the
            query almost constant (another z_g moves the first weights by 5e-5, against 5.6e-2 for "none").
    """

    def __init__(self, dim_query: int, dim: int, query_norm: str = "layernorm") -> None:
        super().__init__()
        norms = {"layernorm": nn.LayerNorm(dim_query), "softmax": nn.Softmax(-1), "none": nn.Identity()}
        self.query_norm = norms[query_norm]
        self.q = nn.Linear(dim_query, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.scale = dim**-0.5

    def forward(self, full: Tensor, experts: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """full [B, T, D], experts [B, T, K, d], valid [B, T, K] bool -> (z~ [B, T, d], weights [B, T, K]).

        An absent expert has weight 0. Where all are absent the weights are uniform.
        """
        q = self.q(self.query_norm(full))
        scores = torch.einsum("btd,btkd->btk", q, self.k(experts)) * self.scale
        scores = scores.masked_fill(~valid, float("-inf"))
        # Rows of -inf only would make softmax and its gradient NaN.
        scores = torch.where(valid.any(-1, keepdim=True), scores, torch.zeros_like(scores))
        weights = scores.softmax(-1)
        return torch.einsum("btk,btkd->btd", weights, self.v(experts)), weights
