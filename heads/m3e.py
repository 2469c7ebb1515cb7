"""M3E, the expert of one region (B-MoE section 3.2.1): self-attention over the whole clip, then SGP.

Also the two training-only outputs of an expert: class scores and the 300-d label embedding (section 3.4).
"""

from torch import Tensor, nn

from heads.layers import Dense, at_least_one, attend, masked_mean, split_heads
from heads.sgp import SGP

EMBEDDING = 300  # GloVe's width


class MHSA(nn.Module):
    """Multi-head self-attention with one projection for the query and one for key and value.

    Weights start as a truncated normal of std 0.02, biases at 0; `bias` is that of the two projections.
    """

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {dim}")
        self.heads = heads
        self.q = Dense(dim, dim, bias)
        self.kv = Dense(dim, 2 * dim, bias)
        self.out = Dense(dim, dim)
        for layer in (self.q, self.kv, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, d]; mask [B, T] bool, True where a step may be attended to (at least one per row)."""
        q = split_heads(self.q(x), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.kv(x).chunk(2, -1))
        y = attend(q, k, v, None if mask is None else mask[:, None, None, :])
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    """One MHSA + SGP pair, with the pre-norm, the feed-forward net and the outer residual as options."""

    def __init__(self, dim: int, attn: MHSA, sgp: SGP, prenorm: bool, ffn_ratio: float, outer: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if prenorm else nn.Identity()
        self.attn = attn
        hidden = int(dim * ffn_ratio)
        self.ffn = (
            nn.Sequential(nn.LayerNorm(dim), Dense(dim, hidden), nn.GELU(), Dense(hidden, dim))
            if hidden
            else None
        )
        self.sgp = sgp
        self.outer_residual = outer

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
        depth, heads, qkv_bias, prenorm, ffn_ratio, outer_residual: see `heads.options.M3EConfig`.
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
        qkv_bias: bool,
        prenorm: bool,
        ffn_ratio: float,
        outer_residual: bool,
        sgp: dict,
    ) -> None:
        super().__init__()
        self.in_proj = Dense(dim_in, dim) if dim_in != dim else nn.Identity()
        self.layers = nn.ModuleList(
            Layer(dim, MHSA(dim, heads, qkv_bias), SGP(dim, **sgp), prenorm, ffn_ratio, outer_residual)
            for _ in range(depth)
        )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        mask = at_least_one(valid)
        x = self.in_proj(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class ExpertHeads(nn.Module):
    """What stage 1 trains on top of an M3E: class scores of the expert's classes and a label embedding.

    Args:
        dim: width d of the expert's output.
        classes: number n of the expert's classes.
        pool: "after": heads per step, then the mean (the authors' order); "before": mean first. The class
            scores are linear and equal either way, the embedding passes a tanh and is not.
        embedding: "mlp": Linear, tanh, Linear; "linear": one Linear.
        init_std: of all weights, with zero biases; None = torch's initialisation.

    forward: z [B, T, d], valid [B, T] -> (logits [B, n], embedding [B, 300]).
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        pool: str = "after",
        embedding: str = "mlp",
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.fc_cls = Dense(dim, classes)
        deeper = [nn.Tanh(), Dense(EMBEDDING, EMBEDDING)] if embedding == "mlp" else []
        self.fc_emb = nn.Sequential(Dense(dim, EMBEDDING), *deeper)
        for layer in self.modules():
            if init_std and isinstance(layer, Dense):
                nn.init.normal_(layer.weight, std=init_std)
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if self.pool == "before":
            pooled = masked_mean(z, valid)
            return self.fc_cls(pooled), self.fc_emb(pooled)
        return masked_mean(self.fc_cls(z), valid), masked_mean(self.fc_emb(z), valid)
