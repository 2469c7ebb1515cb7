"""Losses per clip, for one label or several, and the two remedies for rare classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from heads.expert import Criterion
from heads.options import LossConfig
from pipeline.errors import UserError


def make_criterion(
    target: Tensor, config: LossConfig, smoothing: float = 0.0, multi: bool = False
) -> Criterion:
    """Cross entropy, or with `multi` binary cross entropy (mean over the classes): (logits, target) -> [B].

    Args:
        target: [N, n] of 0 and 1, all training clips: their shares are the prior of the logit adjustment, which
            adds tau log prior to the scores in training (Menon et al., Long-tail learning via logit
            adjustment, ICLR 2021).
        config: of the run.
        smoothing: share of the target spread over all classes.
        multi: a clip may have several labels.

    Raises:
        UserError: logit adjustment of several labels, which has no meaning.
    """
    if multi and config.logit_adjustment:
        raise UserError("loss.logit_adjustment needs one label per clip; use loss.sampler=balanced")
    shift = config.logit_adjustment * (target.sum(0).clamp(min=1) / len(target)).log()
    classes = target.shape[1]

    def one(logits: Tensor, target: Tensor) -> Tensor:
        wanted = target * (1 - smoothing) + smoothing / classes
        return -(wanted * F.log_softmax(logits.float() + shift, -1)).sum(-1)

    def several(logits: Tensor, target: Tensor) -> Tensor:
        wanted = target * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean(-1)

    return several if multi else one


def chances(target: Tensor, config: LossConfig) -> Tensor | None:
    """How often to draw each clip [N] so that every class comes as often; None for a plain shuffle.

    A clip with several labels counts for the rarest; clips without any are one more class.
    """
    if config.sampler == "shuffle":
        return None
    none = 1.0 - target.amax(1, keepdim=True)
    every = torch.cat([target, none], 1).cpu()
    return (every / every.sum(0).clamp(min=1)).amax(1)
