"""Sapiens (v1) body-part segmentation: a ViT backbone and a transposed-convolution head, 28 part classes.

Khirodkar et al., "Sapiens: Foundation for Human Vision Models", ECCV 2024 (arXiv 2408.12569); parameter names
are those of github.com/facebookresearch/sapiens, so its files load with ``strict=True``.

The head's InstanceNorm uses the statistics of the image at hand in evaluation too: padding, cropping or
tiling an input changes its labels, so every frame goes through whole.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pipeline.encoders.preprocess import sapiens_input
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.plan import ClipTask
    from pipeline.spec import SegmentSpec

EPS = 1e-6  # of every LayerNorm (torch's default is 1e-5)
PATCH = 16


class PatchEmbed(nn.Module):
    """Patches of 16 by 16 pixels to tokens, row-major."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, N, D]."""
        tokens: Tensor = self.projection(x).flatten(2).transpose(1, 2)
        return tokens


class Attention(nn.Module):
    """Multi-head self-attention with a fused, fully biased projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim)
        out: Tensor = self.proj(mixed)
        return out


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; nested because the original names are ``layers.0.0`` and ``layers.1``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        out: Tensor = self.layers(x)
        return out


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads)
        self.ln2 = nn.LayerNorm(dim, eps=EPS)
        self.ffn = FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class Backbone(nn.Module):
    """ViT without class token; one learned position per patch of the fixed input size."""

    def __init__(self, dim: int, depth: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.layers = nn.ModuleList(Layer(dim, num_heads) for _ in range(depth))
        self.ln1 = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to the normalised map [B, D, H / 16, W / 16]."""
        x = self.patch_embed(x) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        return self.ln1(x).transpose(1, 2).unflatten(2, self.grid)


def _normalised(convolution: nn.Module, channels: int) -> list[nn.Module]:
    # In place, because one map of the full-size head is 604 MB: 768 channels of 512 x 384 float32.
    return [convolution, nn.InstanceNorm2d(channels), nn.SiLU(inplace=True)]


class VitHead(nn.Module):
    """Three transposed convolutions (x8), three 1x1 convolutions, one classifier."""

    def __init__(self, dim: int, channels: int, num_classes: int) -> None:
        super().__init__()
        deconvs: list[nn.Module] = []
        convs: list[nn.Module] = []
        for i in range(3):
            up = nn.ConvTranspose2d(dim if i == 0 else channels, channels, 4, stride=2, padding=1, bias=False)
            deconvs += _normalised(up, channels)
            convs += _normalised(nn.Conv2d(channels, channels, 1), channels)
        self.deconv_layers = nn.Sequential(*deconvs)
        self.conv_layers = nn.Sequential(*convs)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] to logits [B, classes, 8 h, 8 w]."""
        out: Tensor = self.conv_seg(self.conv_layers(self.deconv_layers(x)))
        return out


class SapiensSeg(nn.Module):
    """Sapiens body-part segmentation of any size; the defaults are the 0.3b model.

    Args:
        embed_dim, depth, num_heads: width D, number of layers, attention heads.
        image_size: (height, width) of the input, multiples of 16; fixed, since positions are learned.
        head_channels: width of the head.
        num_classes: part classes, background included.
    """

    parts = "sapiens28"

    def __init__(
        self,
        *,
        embed_dim: PositiveInt = 1024,
        depth: NonNegativeInt = 24,
        num_heads: PositiveInt = 16,
        image_size: tuple[PositiveInt, PositiveInt] = (1024, 768),
        head_channels: PositiveInt = 768,
        num_classes: PositiveInt = 28,
    ) -> None:
        super().__init__()
        if image_size[0] % PATCH or image_size[1] % PATCH or embed_dim % num_heads:
            raise UserError(
                f"sapiens-seg: image_size {list(image_size)} must be [height, width] in multiples of {PATCH} "
                f"and embed_dim {embed_dim} a multiple of num_heads {num_heads}"
            )
        height, width = image_size
        self.image_size = (height, width)
        self.backbone = Backbone(embed_dim, depth, num_heads, (height // PATCH, width // PATCH))
        self.decode_head = VitHead(embed_dim, head_channels, num_classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised RGB [B, 3, H, W] to logits [B, classes, H / 2, W / 2]; the part is their argmax."""
        if x.shape[1:] != (3, *self.image_size):
            raise ValueError(f"sapiens-seg expects [B, 3, {self.image_size}], got {tuple(x.shape)}")
        return {"logits": self.decode_head(self.backbone(x))}

    def inputs(
        self, frames: Tensor, spec: "SegmentSpec", task: "ClipTask", index: np.ndarray
    ) -> Callable[[int, int], Tensor]:
        """Squashed to the input size and normalised; see contract.Segmenter."""

        def rows(low: int, high: int) -> Tensor:
            chosen = frames[torch.from_numpy(index[low:high])]
            return sapiens_input(chosen, self.image_size, spec.mean, spec.std)

        return rows
