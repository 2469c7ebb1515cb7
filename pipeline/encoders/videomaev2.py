"""VideoMAE-V2 fine-tune vision transformer: 16 frames in, one feature vector and class logits out.

Wang et al., "VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking", CVPR 2023 (arXiv 2303.16727);
parameter names are those of github.com/OpenGVLab/VideoMAEv2, so its files load with ``strict=True``.

Three things differ from a textbook ViT: the attention bias is stored as ``q_bias`` and ``v_bias`` (the keys
have none), the position table is one sinusoid over the flattened token index and not in the checkpoint, and
fine-tuned models average the tokens first and normalise (``fc_norm``) second. Encoders of the self-supervised
stage (MAE) have ``norm`` instead, which normalises every token before they are averaged.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from pipeline.errors import UserError

EPS = 1e-6  # of every LayerNorm, fc_norm included (torch's default is 1e-5)
TUBELET = 2  # frames per token


def position_table(tokens: int, dim: int) -> Tensor:
    """Sinusoid over the flattened token index: float32 [1, tokens, dim], computed in float64.

    Entry (n, j) is sin (even j) or cos (odd j) of n / 10000^(2 * floor(j / 2) / dim).
    """
    angle = np.arange(tokens)[:, None] / np.power(10000.0, 2 * (np.arange(dim) // 2) / dim)
    angle[:, 0::2] = np.sin(angle[:, 0::2])
    angle[:, 1::2] = np.cos(angle[:, 1::2])
    return torch.from_numpy(angle.astype(np.float32))[None]  # stays real even under torch.device("meta")


def interpolated_table(times: int, side: int, dim: int, patch_size: int) -> Tensor:
    """The table of 16 x 224 x 224 stretched to times x side x side tokens: float32 [1, tokens, dim].

    The rule of the original's loader for position tables: bicubic in space within every time step, then linear
    in time, corners not aligned.
    """
    home_times, home_side = 16 // TUBELET, 224 // patch_size
    table = position_table(home_times * home_side**2, dim).view(home_times, home_side, home_side, dim)
    table = F.interpolate(table.permute(0, 3, 1, 2), (side, side), mode="bicubic")
    table = table.permute(2, 3, 1, 0).flatten(0, 1)  # [side * side, dim, 8]
    table = F.interpolate(table, times, mode="linear")
    return table.permute(2, 0, 1).reshape(1, times * side**2, dim)


class PatchEmbed(nn.Module):
    """Tubelets of 2 frames by patch by patch pixels to tokens, time slowest, then rows, then columns."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        size = (TUBELET, patch_size, patch_size)
        self.proj = nn.Conv3d(3, dim, kernel_size=size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, T, H, W] to [B, N, D]."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention whose fused projection has a bias on queries and values only."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        batch, tokens, dim = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        out: Tensor = self.proj(mixed)
        return out


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VideoMAEv2(nn.Module):
    """VideoMAE-V2 of any size; the defaults are the base model with its Kinetics-710 head.

    Args:
        img_size: side of the square input, pixels; a multiple of patch_size.
        patch_size: side of a patch, pixels (16; 14 for giant).
        embed_dim, depth, num_heads: width D, number of blocks, attention heads.
        num_frames: frames per window, even.
        num_classes: outputs of the head; 0 builds no head and returns no logits.
        mlp_ratio: hidden width of the MLP over D.
        final_norm: "fc_norm", of the mean token, as fine-tuned models have it; "norm", of every token before
            the mean, as encoders of the self-supervised stage have it.
        position: for inputs other than 16 x 224 x 224. "computed": the sinusoid over the new token index, which
            is what the original code ends up with; "interpolated": the table the weights have seen, stretched.
    """

    def __init__(
        self,
        *,
        img_size: PositiveInt = 224,
        patch_size: PositiveInt = 16,
        embed_dim: PositiveInt = 768,
        depth: NonNegativeInt = 12,
        num_heads: PositiveInt = 12,
        num_frames: PositiveInt = 16,
        num_classes: NonNegativeInt = 710,
        mlp_ratio: PositiveFloat = 4.0,
        final_norm: Literal["fc_norm", "norm"] = "fc_norm",
        position: Literal["computed", "interpolated"] = "computed",
    ) -> None:
        super().__init__()
        if img_size % patch_size or num_frames % TUBELET or embed_dim % num_heads:
            raise UserError(
                f"videomaev2: img_size {img_size} must be a multiple of patch_size {patch_size}, num_frames "
                f"{num_frames} even and embed_dim {embed_dim} a multiple of num_heads {num_heads}"
            )
        self.input_shape = (3, num_frames, img_size, img_size)
        self.feature_dim = embed_dim
        hidden = round(embed_dim * mlp_ratio)  # rounded because 1408 * (48 / 11) is 6144 only up to rounding
        times, side = num_frames // TUBELET, img_size // patch_size
        self.token_shape = (times, side, side)
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.position: Tensor
        if position == "computed":
            table = position_table(times * side**2, embed_dim)
        else:
            table = interpolated_table(times, side, embed_dim, patch_size)
        self.register_buffer("position", table, persistent=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=EPS) if final_norm == "norm" else nn.Identity()
        self.fc_norm = nn.LayerNorm(embed_dim, eps=EPS) if final_norm == "fc_norm" else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else None

    def forward(self, x: Tensor, tokens: bool = False) -> dict[str, Tensor]:
        """RGB [B, 3, num_frames, img_size, img_size], normalised, to named outputs.

        features [B, D]; logits [B, classes] where there is a head; when asked for, tokens [B, T', H', W', D],
        T' = num_frames / 2: what the features are the mean of (followed by fc_norm, if the model has that).
        """
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"videomaev2 expects [B, {self.input_shape}], got {tuple(x.shape)}")
        x = self.patch_embed(x)
        x = x + self.position.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        outputs = {"features": self.fc_norm(x.mean(1))}
        if self.head is not None:
            outputs["logits"] = self.head(outputs["features"])
        if tokens:
            outputs["tokens"] = x.unflatten(1, self.token_shape)
        return outputs
