"""B-MoE: one expert per region, routed by the full frame, fused with the motion stream (sections 3.2, 3.3).

z_k = M3E_k(parts_k);  z~ = Routing(full; z_1..K);  u = z~ + W_m motion;  logits = MLP(mean_t TE(u))
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.config import Config
from heads.inputs import Standardise, drop_steps, drop_views, regularise
from heads.m3e import M3E, at_least_one, masked_mean
from heads.routing import Routing
from heads.spec import MOTION, SEMANTIC, FeatureReq, HeadInfo, HeadOut
from pipeline.spec import REGIONS


def needs(config: Config) -> tuple[FeatureReq, ...]:
    """Semantic features unless semantic.enabled is false, motion features unless motion.enabled is."""
    return (SEMANTIC if config.semantic.enabled else ()) + (MOTION if config.motion.enabled else ())


def build(config: Config, info: HeadInfo) -> "BMoE":
    """The head, initialised from torch's global generator. Raises ValueError when a width does not fit."""
    return BMoE(config, info)


class BMoE(nn.Module):
    """The fused model. `experts` maps region -> M3E; stage 1 trains them, stage 2 everything.

    Raises:
        ValueError: the width is no multiple of 16 or of the numbers of attention heads.
    """

    def __init__(self, config: Config, info: HeadInfo) -> None:
        super().__init__()
        self.config = config
        self.index = [REGIONS.index(r) for r in config.regions]
        width = config.d_model or info.dim or info.motion_dim
        if width % config.te.heads and config.te.layers:
            raise ValueError(f"{config.te.heads} heads of te do not divide a width of {width}")
        if config.pos == "sinusoid" and width % 2:
            raise ValueError(f"sinusoid positions need an even width, not {width}")
        self.experts = nn.ModuleDict()
        if config.semantic.enabled:
            m3e = config.m3e.model_dump() | {"sgp": config.sgp.model_dump()}
            self.experts.update({r: M3E(info.dim, width, **m3e) for r in config.regions})
            self.routing = Routing(info.dim, width, config.query_norm)
            self.full_norm = Standardise(1, info.dim)
            self.parts_norm = Standardise(len(self.index), info.dim)
        if config.motion.enabled:
            self.motion_norm = Standardise(1, info.motion_dim)
            self.motion_dropout = nn.Dropout(config.motion.dropout)
            self.w_m = nn.Linear(info.motion_dim, width)
        te = config.te
        self.te = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, te.heads, int(width * te.ff_ratio), te.dropout, "gelu",
                batch_first=True, norm_first=te.norm_first,
            )
            for _ in range(te.layers)
        )  # fmt: skip
        hidden = config.cls.hidden
        mlp = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
        self.classifier = nn.Sequential(
            nn.Dropout(config.cls.dropout), *mlp, nn.Linear(hidden or width, len(info.classes))
        )
        positions = sinusoid(config.t_len, width) if config.pos == "sinusoid" else torch.zeros(1, width)
        self.register_buffer("positions", positions, persistent=False)

    def fit_normalisation(self, tensors: dict[str, Tensor]) -> None:
        """Takes the statistics of the train split; does nothing with normalise = none."""
        if self.config.normalise == "none":
            return
        if self.config.semantic.enabled:
            self.full_norm.fit(tensors["sem_full"][:, None], tensors["sem_full_valid"][:, None])
            for row, region in enumerate(self.index):
                single = Standardise(1, tensors["sem_parts"].shape[-1]).to(tensors["sem_parts"].device)
                chosen = slice(region, region + 1)
                single.fit(tensors["sem_parts"][:, chosen], tensors["sem_parts_valid"][:, chosen])
                self.parts_norm.mean[row] = single.mean[0]
                self.parts_norm.std[row] = single.std[0]
        if self.config.motion.enabled:
            motion = tensors["motion"][:, None]
            self.motion_norm.fit(motion, torch.ones(motion.shape[:3], dtype=torch.bool, device=motion.device))

    def expert_input(self, batch: dict[str, Tensor], region: str) -> tuple[Tensor, Tensor]:
        """(x [B, T, D], valid [B, T]) of one region, as its expert sees it."""
        row = self.config.regions.index(region)
        chosen = slice(self.index[row], self.index[row] + 1)
        valid = self._mask(batch["sem_parts_valid"][:, chosen])
        x = self.parts_norm(batch["sem_parts"][:, chosen], valid, slice(row, row + 1))
        return (regularise(x, self.config.aug) if self.training else x)[:, 0], valid[:, 0]

    def forward(self, batch: dict[str, Tensor]) -> HeadOut:
        """See `heads.spec` for the batch. aux: expert_feat [B, T, K, d] when the semantic stream is on."""
        aug = self.config.aug
        attn, aux = None, {}
        if self.config.semantic.enabled:
            valid = self._mask(batch["sem_full_valid"])
            parts_valid = self._mask(batch["sem_parts_valid"][:, self.index])
            if self.training:
                valid, parts_valid = (
                    drop_steps(valid, aug.time_mask),
                    drop_views(parts_valid, aug.view_dropout),
                )
            full = self.full_norm(batch["sem_full"][:, None], valid[:, None])
            parts = self.parts_norm(batch["sem_parts"][:, self.index], parts_valid)
            if self.training:
                full, parts = regularise(full, aug), regularise(parts, aug)
            z = torch.stack(
                [expert(parts[:, k], parts_valid[:, k]) for k, expert in enumerate(self.experts.values())], 2
            )
            u, attn = self.routing(full[:, 0], z, parts_valid.transpose(1, 2))
            aux["expert_feat"] = z
            u = u + self._motion(batch["motion"]) if self.config.motion.enabled else u
        else:
            u = self._motion(batch["motion"])
            valid = torch.ones(u.shape[:2], dtype=torch.bool, device=u.device)
        h = u + self.positions
        padding = ~at_least_one(valid)
        for layer in self.te:
            h = layer(h, src_key_padding_mask=padding)
        return HeadOut(self.classifier(masked_mean(h, valid)), attn, aux)

    def _motion(self, motion: Tensor) -> Tensor:
        """motion [B, T_m, Dm] -> [B, T, d]; first and last step stay aligned when T_m differs from T."""
        present = torch.ones(motion.shape[:2], dtype=torch.bool, device=motion.device)[:, None]
        x = self.motion_norm(motion[:, None], present)
        if self.training:
            x = regularise(x, self.config.aug)
        x, steps = x[:, 0], self.config.t_len
        if x.shape[1] != steps:
            x = F.interpolate(x.transpose(1, 2), steps, mode="linear", align_corners=steps > 1).transpose(
                1, 2
            )
        return self.w_m(self.motion_dropout(x))

    def _mask(self, valid: Tensor) -> Tensor:
        return valid if self.config.use_mask else torch.ones_like(valid)


def sinusoid(steps: int, width: int) -> Tensor:
    """[T, d] fixed positions: sin in the first half of the channels, cos in the second; periods from 2 pi."""
    rates = torch.exp(torch.arange(width // 2) * (-math.log(10000.0) / (width // 2)))
    angles = torch.arange(steps)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
