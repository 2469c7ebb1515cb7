"""M3E, the expert of one region (B-MoE section 3.2.1): self-attention over the whole clip, then SGP.

Also the two training-only outputs of an expert: class scores and the 300-d label embedding (section 3.4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.sgp import SGP

EMBEDDING = 300  # GloVe's width


class MHSA(nn.Module):
    """Multi-head self-attention with one projection for the query and one for key and value.

    Weights start as a truncated normal of std 0.02, biases at 0.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {dim}")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        for layer in (self.q, self.kv, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, d]; mask [B, T] bool, True where a step may be attended to (at least one per row)."""
        b, t, d = x.shape
        q = self.q(x).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).view(b, t, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    """One MHSA + SGP pair, with the pre-norm, the feed-forward net and the outer residual as options."""

    def __init__(
        self, dim: int, sgp: SGP, *, heads: int, prenorm: bool, ffn_ratio: float, outer_residual: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if prenorm else nn.Identity()
        self.attn = MHSA(dim, heads)
        hidden = int(dim * ffn_ratio)
        self.ffn = (
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            if hidden
            else None
        )
        self.sgp = sgp
        self.outer_residual = outer_residual

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x), mask)
        if self.ffn is not None:
            x = x + self.ffn(x)
        s = self.sgp(x.transpose(1, 2), mask[:, None])[0].transpose(1, 2)
        return x + s if self.outer_residual else s


class M3E(nn.Module):
    """The expert of one region.

    Args:
        dim_in: width D of the cached features.
        dim: width d inside; a Linear is put in front only when it differs from D.
        depth, heads, prenorm, ffn_ratio, outer_residual: see `heads.config.M3EConfig`.
        sgp: keyword arguments of `SGP` besides the channels.

    forward: x [B, T, D], valid [B, T] bool -> [B, T, d]. A clip without any valid step is attended to as if
    all its steps were valid; whoever uses the output must mask it (`Routing` does).
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        *,
        depth: int,
        heads: int,
        prenorm: bool,
        ffn_ratio: float,
        outer_residual: bool,
        sgp: dict,
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim_in, dim) if dim_in != dim else nn.Identity()
        self.layers = nn.ModuleList(
            Layer(
                dim,
                SGP(dim, **sgp),
                heads=heads,
                prenorm=prenorm,
                ffn_ratio=ffn_ratio,
                outer_residual=outer_residual,
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        mask = at_least_one(valid)
        x = self.in_proj(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class ExpertHeads(nn.Module):
    """What stage 1 trains on top of an M3E: class scores of the region's classes and a label embedding.

    Args:
        dim: width d of the expert's output.
        classes: number n of the region's classes.
        pool: "after": heads per step, then the mean (the authors' order); "before": mean first. The class
            scores are linear and equal either way, the embedding passes a tanh and is not.

    forward: z [B, T, d], valid [B, T] -> (logits [B, n], embedding [B, 300]).
    """

    def __init__(self, dim: int, classes: int, pool: str = "after") -> None:
        super().__init__()
        self.pool = pool
        self.fc_cls = nn.Linear(dim, classes)
        self.fc_emb = nn.Sequential(nn.Linear(dim, EMBEDDING), nn.Tanh(), nn.Linear(EMBEDDING, EMBEDDING))

    def forward(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if self.pool == "before":
            pooled = masked_mean(z, valid)
            return self.fc_cls(pooled), self.fc_emb(pooled)
        return masked_mean(self.fc_cls(z), valid), masked_mean(self.fc_emb(z), valid)


def at_least_one(valid: Tensor) -> Tensor:
    """valid [B, T] bool, rows without any True turned all True: a softmax over them is defined."""
    return valid | ~valid.any(-1, keepdim=True)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x [B, T, d] over the valid steps [B, T]; over all steps where none is valid."""
    weight = at_least_one(valid).to(x.dtype)
    return torch.einsum("btd,bt->bd", x, weight / weight.sum(-1, keepdim=True))
