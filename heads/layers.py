"""Layers the heads share. All of them also run under torch.func.vmap, which `heads.stack` needs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dense(nn.Linear):
    """nn.Linear over the last axis, computed on rows.

    Under vmap the weights differ from copy to copy. Rows times such weights is one batched product; more axes
    would copy the weights once for every clip of the batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(width)) v over the last two axes; mask True where a key may be seen.

    Written out because torch's fused kernels have no rule for vmap and run copy after copy.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, T, d] -> [B, heads, T, d / heads]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class TransformerLayer(nn.Module):
    """torch's TransformerEncoderLayer with GELU: same arithmetic, initialisation and number of parameters.

    Args:
        width: d, a multiple of `heads`.
        hidden: width of the feed-forward net.
        dropout: of the attention weights, of both branches, and inside the feed-forward net.
        norm_first: normalise before a branch instead of after its residual.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.heads, self.norm_first, self.attention_dropout = heads, norm_first, dropout
        self.qkv = Dense(width, 3 * width)
        self.out = Dense(width, width)
        self.linear1 = Dense(width, hidden)
        self.linear2 = Dense(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """x [B, T, d]; valid [B, T] bool, True where a step may be attended to (at least one per row)."""
        if self.norm_first:
            x = x + self._attention(self.norm1(x), valid)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attention(x, valid))
        return self.norm2(x + self._feed_forward(x))

    def _attention(self, x: Tensor, valid: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        dropout = self.attention_dropout if self.training else 0.0
        y = attend(q, k, v, valid[:, None, None, :], dropout)
        return self.dropout(self.out(y.transpose(1, 2).reshape(x.shape)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x)))))


def at_least_one(valid: Tensor) -> Tensor:
    """valid [B, T] bool, rows without any True turned all True: a softmax over them is defined."""
    return valid | ~valid.any(-1, keepdim=True)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x [B, T, d] over the valid steps [B, T]; over all steps where none is valid."""
    weight = at_least_one(valid).to(x.dtype)
    return ((weight / weight.sum(-1, keepdim=True))[:, None] @ x)[:, 0]


def sinusoid(steps: int, width: int) -> Tensor:
    """[T, d] fixed positions: sin in the first half of the channels, cos in the second; periods from 2 pi."""
    rates = torch.exp(torch.arange(width // 2) * (-math.log(10000.0) / (width // 2)))
    angles = torch.arange(steps)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
