"""Three controls for every table: a linear probe, an attention-pooling probe, and MANet's own cached scores."""

import torch
from torch import Tensor, nn

from heads.inputs import Standardise, regularise, view_of
from heads.layers import Dense, at_least_one, masked_mean
from heads.options import Config
from heads.spec import MOTION_LOGITS, HeadInfo, HeadSpec, stream_needs
from pipeline.errors import UserError
from pipeline.spec import VIEWS


class Probe(nn.Module):
    """One Linear on pooled features. A probe that fails says that the cache is wrong, not the head.

    Pooled are the five views (semantic stream) and the motion segments: by their mean over time, view by view
    (5 D + Dm numbers), or by attention with one learned query per stream (D + Dm).
    """

    def __init__(self, config: Config, info: HeadInfo, attention: bool) -> None:
        super().__init__()
        self.config, self.attention = config, attention
        width = 0
        if config.semantic.enabled:
            self.sem_norm = Standardise(len(VIEWS), info.dim)
            self.sem_query = nn.Parameter(torch.zeros(info.dim), requires_grad=attention)
            width += info.dim * (1 if attention else len(VIEWS))
        if config.motion.enabled:
            self.motion_norm = Standardise(1, info.motion_dim)
            self.motion_query = nn.Parameter(torch.zeros(info.motion_dim), requires_grad=attention)
            width += info.motion_dim
        self.classifier = Dense(width, len(info.classes))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `heads.spec`."""
        pooled = []
        if self.config.semantic.enabled:
            x, valid = self._views(batch)
            pooled.append(self._pool(self.sem_norm, x, valid, self.sem_query))
        if self.config.motion.enabled:
            motion = batch["motion"][:, None]
            valid = torch.ones(motion.shape[:3], dtype=torch.bool, device=motion.device)
            pooled.append(self._pool(self.motion_norm, motion, valid, self.motion_query))
        return {"logits": self.classifier(torch.cat(pooled, -1))}

    def _views(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        views = [view_of(batch, view) for view in VIEWS]
        valid = torch.stack([v for _, v in views], 1)
        return torch.stack([x for x, _ in views], 1), valid if self.config.use_mask else torch.ones_like(
            valid
        )

    def _pool(self, norm: Standardise, x: Tensor, valid: Tensor, query: Tensor) -> Tensor:
        """x [B, V, T, D], valid [B, V, T] -> [B, D] by attention, [B, V D] by means; absent views are zeros."""
        x = norm(x, valid)
        if self.training:
            x = regularise(x, self.config.aug)
        if not self.attention:
            means = masked_mean(x.flatten(0, 1), valid.flatten(0, 1))
            return means.view(len(x), -1)
        x, valid = x.flatten(1, 2), at_least_one(valid.flatten(1, 2))
        scores = (x @ query) * x.shape[-1] ** -0.5
        weights = scores.masked_fill(~valid, float("-inf")).softmax(-1)
        return (weights[:, None] @ x)[:, 0]

    def fit_normalisation(self, tensors: dict[str, Tensor]) -> None:
        """Takes the statistics of the train split; does nothing with normalise = none."""
        if self.config.normalise == "none":
            return
        if self.config.semantic.enabled:
            for row, view in enumerate(VIEWS):
                self.sem_norm.fit(row, *view_of(tensors, view))
        if self.config.motion.enabled:
            motion = tensors["motion"]
            self.motion_norm.fit(0, motion, torch.ones_like(motion[..., 0], dtype=torch.bool))


class Cached(nn.Module):
    """The scores the motion encoder gave itself: nothing to train. With MANet and MA-52 this is MANet."""

    def __init__(self, config: Config, info: HeadInfo) -> None:
        super().__init__()
        self.classes = len(info.classes)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """motion_logits [B, C]. Raises UserError when the encoder knows another number of classes."""
        logits = batch["motion_logits"]
        if logits.shape[-1] != self.classes:
            raise UserError(
                f"the motion encoder of the cache scores {logits.shape[-1]} classes, the data set has "
                f"{self.classes}; train a head of your own, e.g. linear_probe"
            )
        return {"logits": logits}


CITATION = "Guo et al., Benchmarking Micro-action Recognition, IEEE TCSVT 34(7), 2024"

LINEAR = HeadSpec(
    "linear_probe", 1, "own", "", stream_needs, lambda config, info: Probe(config, info, attention=False)
)
ATTENTION = HeadSpec(
    "attn_pool_probe", 1, "own", "", stream_needs, lambda config, info: Probe(config, info, attention=True)
)
CACHED = HeadSpec("manet_cached", 1, "exact", CITATION, lambda config: MOTION_LOGITS, Cached)
