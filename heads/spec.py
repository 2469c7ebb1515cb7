"""The contract of a head: what it needs from the cache, what it is told, what it returns; and the registry.

A head is a HeadSpec, a constant of its module. `HEADS` names ours; others are found through the entry-point group
``bmoe_cache.heads`` (name -> "module:CONSTANT"). What `build` returns is a module::

    forward(batch: dict[str, Tensor]) -> dict[str, Tensor]

a pure function of the batch that never sees labels and also runs under torch.func.vmap. A batch holds, as far as
the head needs them (B clips, T time steps, K = 4 regions in the order of ``pipeline.spec.REGIONS``):

    sem_full [B, T, D] float32, sem_full_valid [B, T] bool, sem_parts [B, K, T, D] float32,
    sem_parts_valid [B, K, T] bool, motion [B, 8, Dm] float32, motion_logits [B, C'] float32

and for any other array of one row per clip, named in `HeadSpec.needs`, <stage>_<array> [B, ...] float32.

The result has "logits" [B, C]; "attn" [B, T, experts] if the head weighs experts; and whatever its loss needs.

Optional members of the module, all used by `heads.bmoe` and `heads.expert`:

    loss(out, target [B, C], criterion) -> dict of losses per clip [B]; "loss" is minimised, the others are
        recorded. Without it "loss" is criterion(out["logits"], target).
    fit_normalisation(tensors): called once with the whole train split.
    expert_names() -> names of what stage 1 trains, each by itself; new_expert(name) -> an `heads.expert.Expert`
        or a module with its members; adopt(name, state_dict) puts the trained one into the head. Without them
        there is no stage 1.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from heads.options import Config
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from pipeline.taxonomy import Taxonomy

HEADS = {
    "bmoe": "heads.bmoe:HEAD",
    "linear_probe": "heads.probes:LINEAR",
    "attn_pool_probe": "heads.probes:ATTENTION",
    "manet_cached": "heads.probes:CACHED",
}
ENTRY_POINTS = "bmoe_cache.heads"


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
        experts: variant ("strict", ...) -> region -> the classes its expert learns in stage 1.
        label_vectors: float32 [C, 300], rows as in `classes`.
        multi: a clip may have several labels, or none.
    """

    dim: int
    motion_dim: int
    classes: tuple[str, ...]
    coarse: tuple[int, ...]
    coarse_names: tuple[str, ...]
    experts: Mapping[str, Mapping[str, tuple[int, ...]]]
    label_vectors: np.ndarray
    multi: bool = False


def head_info(taxonomy: "Taxonomy", dim: int, motion_dim: int, vectors: np.ndarray) -> HeadInfo:
    """What a head is told about a taxonomy and features of these widths."""
    return HeadInfo(
        dim=dim,
        motion_dim=motion_dim,
        classes=tuple(label.name for label in taxonomy.labels),
        coarse=tuple(label.coarse for label in taxonomy.labels),
        coarse_names=tuple(group.name for group in taxonomy.coarse),
        experts={"strict": taxonomy.experts, **taxonomy.expert_variants},
        label_vectors=vectors,
        multi=taxonomy.label_kind == "multi",
    )


@dataclass(frozen=True)
class HeadSpec:
    """A head.

    Attributes:
        name: as in HEADS and in the config.
        version: to be raised when the same config gives another module; experts of other versions are not
            reused.
        status: how close it is to what it is named after: "exact", "author-code", "reconstruction", "inspired",
            or "own".
        citation: whom to cite.
        needs: the cached arrays it reads.
        build: the untrained module, initialised from torch's global generator.
    """

    name: str
    version: int
    status: Literal["exact", "author-code", "reconstruction", "inspired", "own"]
    citation: str
    needs: Callable[[Config], tuple[FeatureReq, ...]]
    build: Callable[[Config, HeadInfo], "nn.Module"]


def head_spec(name: str) -> HeadSpec:
    """A registered head.

    Raises:
        UserError: unknown name.
    """
    target = HEADS.get(name)
    if target is None:
        found = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
        if name not in found:
            known = ", ".join(sorted({*HEADS, *found}))
            raise UserError(f"unknown head {name!r}; known: {known}")
        target = found[name]
    module, _, constant = target.partition(":")
    spec: HeadSpec = getattr(importlib.import_module(module), constant)
    return spec


def stream_needs(config: Config) -> tuple[FeatureReq, ...]:
    """Semantic features unless semantic.enabled is false, motion features unless motion.enabled is."""
    return (SEMANTIC if config.semantic.enabled else ()) + (MOTION if config.motion.enabled else ())


def needs(config: Config) -> tuple[FeatureReq, ...]:
    """What the head of this config reads."""
    return head_spec(config.head).needs(config)


def build(config: Config, info: HeadInfo) -> Any:
    """The untrained head of this config, initialised from torch's global generator.

    Raises:
        UserError: the config does not fit the features, e.g. a width that is no multiple of 16.
    """
    if config.d_in and info.dim and config.d_in != info.dim:
        raise UserError(
            f"the head wants features of width {config.d_in}, the cache has {info.dim}; build the cache with the "
            "matching encoder, choose another head preset, or --set d_in=null"
        )
    try:
        return head_spec(config.head).build(config, info)
    except ValueError as error:
        raise UserError(f"head {config.head} cannot be built: {error}; change it with --set") from None
