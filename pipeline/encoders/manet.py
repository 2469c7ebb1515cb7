"""MANet, the MA-52 baseline: ResNet-50 with a channel gate and a temporal shift in front of every block.

Guo et al., "Benchmarking Micro-action Recognition: Dataset, Methods, and Applications", IEEE TCSVT 2024
(arXiv 2403.05234); parameter names are those of github.com/VUT-HFUT/Micro-Action (an mmaction2 fork), so its
files load with ``strict=True``. The shift is TSM (Lin et al., ICCV 2019), the gate squeeze-and-excitation.

A clip is 8 segments of one frame each. Segments of one clip lie next to each other in the batch, because the
shift exchanges channels between neighbours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from pipeline.errors import UserError

EXPANSION = 4  # output channels of a bottleneck over its planes
REDUCTION = 4  # of the gate
SHIFT_DIV = 8  # one eighth of the channels looks forward, one eighth back


class GatedShift(nn.Module):
    """Channel gate per frame, temporal shift, then the 1x1 convolution it wraps.

    The three ``action_p2_*`` modules take no part in the forward pass of the original either; they are
    declared because its checkpoints hold them (10 951 424 parameters at full width).
    """

    def __init__(self, in_channels: int, planes: int, segments: int) -> None:
        super().__init__()
        squeezed = in_channels // REDUCTION
        self.segments = segments
        self.fold = in_channels // SHIFT_DIV
        self.net = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.action_p2_squeeze = nn.Conv2d(in_channels, squeezed, 1, bias=False)
        self.action_p2_conv1 = nn.Conv1d(squeezed, squeezed, 3, padding=1, bias=False)
        self.action_p2_expand = nn.Conv2d(squeezed, in_channels, 1, bias=False)
        self.fcce = nn.Sequential(
            nn.Linear(in_channels, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, in_channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B * segments, C, H, W] to [B * segments, planes, H, W]."""
        x = x * self.fcce(x.mean((2, 3)))[:, :, None, None]
        clips = x.unflatten(0, (-1, self.segments))
        following = F.pad(clips[:, 1:, : self.fold], (0, 0, 0, 0, 0, 0, 0, 1))
        preceding = F.pad(clips[:, :-1, self.fold : 2 * self.fold], (0, 0, 0, 0, 0, 0, 1, 0))
        shifted = torch.cat((following, preceding, clips[:, :, 2 * self.fold :]), dim=2)
        out: Tensor = self.net(shifted.flatten(0, 1))
        return out


class ConvBN(nn.Module):
    """A bias-free convolution and its batch norm."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, channels, H', W']."""
        out: Tensor = self.bn(self.conv(x))
        return out


class Bottleneck(nn.Module):
    """ResNet bottleneck, stride on the 3x3; gate and shift touch the residual branch, never the identity."""

    def __init__(self, in_channels: int, planes: int, stride: int, project: bool, segments: int) -> None:
        super().__init__()
        out_channels = planes * EXPANSION
        conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.conv1 = ConvBN(GatedShift(in_channels, planes, segments), planes)
        self.conv2 = ConvBN(conv2, planes)
        self.conv3 = ConvBN(nn.Conv2d(planes, out_channels, 1, bias=False), out_channels)
        self.downsample = None
        if project:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = ConvBN(shortcut, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 4 * planes, H / stride, W / stride]."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.conv1(x))
        out = F.relu(self.conv2(out))
        return F.relu(self.conv3(out) + identity)


class ResNetTSM(nn.Module):
    """The trunk: stem and four stages."""

    def __init__(self, width: int, depths: Sequence[int], segments: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), width)
        channels = width
        self.stages = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks = []
            for block in range(depth):
                stride = 2 if block == 0 and stage > 0 else 1
                blocks.append(Bottleneck(channels, planes, stride, block == 0, segments))
                channels = planes * EXPANSION
            self.add_module(self.stages[stage], nn.Sequential(*blocks))
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, out_channels, H / 32, W / 32]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, padding=1)
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        return x


class MANetHead(nn.Module):
    """Action logits and the 300-number embedding that training pulls towards the label's word vector."""

    def __init__(self, channels: int, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(channels, num_classes)
        self.fc_emb = nn.Linear(channels, embed_dim)
        self.fc_emb_t = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Segment features [B, segments, C] to logits [B, classes] and embedding [B, embed_dim]."""
        embedding = self.fc_emb_t(torch.tanh(self.fc_emb(x)))
        return self.fc_cls(x).mean(1), embedding.mean(1)


class MANet(nn.Module):
    """MANet with its head; the defaults are the released MA-52 model.

    Args:
        width: planes of the first stage (64). Smaller widths keep every key name; a multiple of 8, so that
            the gate and the shift have channels to work on.
        depths: bottlenecks per stage.
        num_classes: actions (52 in MA-52).
        embed_dim: length of the word-vector embedding.
        segments: frames per clip, fixed at build time as in the original.
    """

    def __init__(
        self,
        *,
        width: PositiveInt = 64,
        depths: Sequence[PositiveInt] = (3, 4, 6, 3),
        num_classes: PositiveInt = 52,
        embed_dim: PositiveInt = 300,
        segments: PositiveInt = 8,
    ) -> None:
        super().__init__()
        if width % SHIFT_DIV or not 1 <= len(depths) <= 4:
            raise UserError(
                f"manet: width {width} must be a multiple of {SHIFT_DIV} and depths {list(depths)} one to four "
                "numbers"
            )
        self.segments = segments
        self.backbone = ResNetTSM(width, depths, segments)
        self.feature_dim = self.backbone.out_channels
        self.cls_head = MANetHead(self.feature_dim, num_classes, embed_dim)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised RGB [B, segments, 3, H, W] to segment_features [B, segments, C], logits and embedding.

        C is 2048 at full width; logits [B, classes] and embedding [B, embed_dim] are means over the segments.
        """
        if x.ndim != 5 or x.shape[1] != self.segments:
            raise ValueError(f"manet expects [B, {self.segments}, 3, H, W], got {tuple(x.shape)}")
        features = self.backbone(x.flatten(0, 1)).mean((2, 3)).unflatten(0, (-1, self.segments))
        logits, embedding = self.cls_head(features)
        return {"segment_features": features, "logits": logits, "embedding": embedding}
