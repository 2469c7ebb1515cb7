"""The contract of a head: what it needs from the cache, what it is told, what it returns; and the registry.

A head is a module with two functions::

    needs(config: Config) -> tuple[FeatureReq, ...]     the cached arrays it reads
    build(config: Config, info: HeadInfo) -> nn.Module  forward(batch: dict[str, Tensor]) -> HeadOut

forward is a pure function of the batch and never sees labels. A batch holds, as far as the head needs them
(B clips, T time steps, K = 4 regions in the order of ``pipeline.spec.REGIONS``):

    sem_full [B, T, D] float32, sem_full_valid [B, T] bool, sem_parts [B, K, T, D] float32,
    sem_parts_valid [B, K, T] bool, motion [B, 8, Dm] float32, motion_logits [B, C'] float32

Two optional members of the module take part in training: ``fit_normalisation(tensors)`` is called once with
the whole train split; ``experts`` (a ModuleDict region -> M3E) and ``expert_input(batch, region)`` ask for
stage 1.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pipeline.errors import UserError

if TYPE_CHECKING:
    from heads.config import Config

HEADS = {"bmoe": "heads.bmoe"}


@dataclass(frozen=True)
class FeatureReq:
    """One cached array: stage, name of the array, and the rank of one row of it."""

    stage: str
    array: str
    rank: int


SEMANTIC = (FeatureReq("semantic", "features", 2), FeatureReq("semantic", "present", 1))
MOTION = (FeatureReq("motion", "features", 2),)
MOTION_LOGITS = (FeatureReq("motion", "logits", 1),)


@dataclass(frozen=True)
class HeadInfo:
    """What the data set and the cache decide, and a config therefore never repeats.

    Attributes:
        dim, motion_dim: widths D and Dm of the cached features; 0 when the head does not read them.
        classes: names; the position is the label of a clip.
        coarse: coarse class of every class, as a position in coarse_names.
        experts: region -> the classes its expert learns in stage 1.
        label_vectors: float32 [C, 300], rows as in `classes`.
    """

    dim: int
    motion_dim: int
    classes: tuple[str, ...]
    coarse: tuple[int, ...]
    coarse_names: tuple[str, ...]
    experts: Mapping[str, tuple[int, ...]]
    label_vectors: np.ndarray


@dataclass(frozen=True)
class HeadOut:
    """logits [B, C]; attn [B, T, K], weights over the experts if the head has any; aux, anything else."""

    logits: Tensor
    attn: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)


def head_module(name: str) -> Any:
    """The module of a registered head.

    Raises:
        UserError: unknown name.
    """
    if name not in HEADS:
        raise UserError(f"unknown head {name!r}; known: {', '.join(sorted(HEADS))}")
    return importlib.import_module(HEADS[name])


def needs(config: "Config") -> tuple[FeatureReq, ...]:
    """What the head of this config reads."""
    requirements: tuple[FeatureReq, ...] = head_module(config.head).needs(config)
    return requirements


def build(config: "Config", info: HeadInfo) -> Any:
    """The untrained head of this config, initialised from torch's global generator.

    Raises:
        UserError: the config does not fit the features, e.g. a width that is no multiple of 16.
    """
    try:
        return head_module(config.head).build(config, info)
    except ValueError as error:
        raise UserError(f"head {config.head} cannot be built: {error}; change it with --set") from None
