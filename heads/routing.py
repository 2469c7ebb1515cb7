"""Routing (B-MoE eq. 1): cross-attention from the full view to the experts."""

import torch
from torch import Tensor, nn

from heads.layers import Dense, masked_mean, split_heads


class Routing(nn.Module):
    """z~ = sum_k a_k W_v z_k with a = softmax_k(W_q norm(z_g) . W_k z_k / sqrt(d)).

    Args:
        dim_query: width of the full view's feature z_g.
        dim: width d of the experts.
        query_norm: "layernorm"; "none"; or "softmax" over the channels, the authors' choice, which leaves the
            query almost constant (another z_g moves the first weights by 5e-5, against 5.6e-2 for "none").
        mode: "step", every step of z_g asks the experts of the same step; "pooled", the means over time ask and
            are asked once per clip; "sequence", every step asks all steps of all experts.
        heads: attention heads, a divisor of d.
        out_proj: a Linear after the sum.

    Raises:
        ValueError: heads do not divide d.
    """

    def __init__(
        self,
        dim_query: int,
        dim: int,
        query_norm: str = "layernorm",
        mode: str = "step",
        heads: int = 1,
        out_proj: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads of fusion do not divide a width of {dim}")
        norms = {"layernorm": nn.LayerNorm(dim_query), "softmax": nn.Softmax(-1), "none": nn.Identity()}
        self.query_norm = norms[query_norm]
        self.mode, self.heads = mode, heads
        self.q = Dense(dim_query, dim)
        self.k = Dense(dim, dim)
        self.v = Dense(dim, dim)
        self.out = Dense(dim, dim) if out_proj else nn.Identity()

    def forward(self, full: Tensor, experts: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """full [B, T, D], experts [B, T, K, d], valid [B, T, K] bool -> (z~ [B, T, d], weights [B, T, K]).

        An absent expert has weight 0. Where all are absent the weights are uniform. The weights of several
        heads are averaged, those of several steps (mode sequence) summed.
        """
        b, t, count, dim = experts.shape
        if self.mode == "step":
            rows = (
                full.reshape(b * t, 1, -1),
                experts.reshape(b * t, count, dim),
                valid.reshape(b * t, count),
            )
            z, weights = self._attend(*rows)
            return z.view(b, t, dim), weights.view(b, t, count)
        if self.mode == "pooled":
            columns = experts.transpose(1, 2).reshape(b * count, t, dim)
            means = masked_mean(columns, valid.transpose(1, 2).reshape(b * count, t))
            z, weights = self._attend(full.mean(1, keepdim=True), means.view(b, count, dim), valid.any(1))
            return z.expand(b, t, dim), weights.expand(b, t, count)
        z, weights = self._attend(full, experts.reshape(b, t * count, dim), valid.reshape(b, t * count))
        return z, weights.view(b, t, t, count).sum(2)

    def _attend(self, query: Tensor, keys: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """query [N, Q, D], keys [N, M, d], valid [N, M] -> (z~ [N, Q, d], weights [N, Q, M])."""
        q = split_heads(self.q(self.query_norm(query)), self.heads)
        k, v = (split_heads(layer(keys), self.heads) for layer in (self.k, self.v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [N, heads, Q, M]
        scores = scores.masked_fill(~valid[:, None, None], float("-inf"))
        # Rows of -inf only would make softmax and its gradient NaN.
        some = valid.any(-1)[:, None, None, None]
        weights = torch.where(some, scores, torch.zeros_like(scores)).softmax(-1)
        z = (weights @ v).transpose(1, 2).reshape(*query.shape[:2], -1)
        return self.out(z), weights.mean(1)
