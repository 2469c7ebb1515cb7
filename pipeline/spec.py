"""Stage specs: frozen dataclasses whose canonical JSON is the identity of what a stage writes.

A stage's key is the SHA-256 of canonical JSON holding only declared facts: the stage name, its VERSION, every
option that changes its output, the digest of its weights and the keys of the stages it reads. Paths, times and
comments never enter, so a key changes exactly when the output could.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from pipeline.errors import UserError

Spec = TypeVar("Spec", bound="StageSpec")

REGIONS = ("head", "body", "upper_limb", "lower_limb")
VIEWS = ("full", *REGIONS)
STAGES = ("segment", "regions", "semantic", "motion")

# The pool tries decord, then PyAV. They agree bit for bit on 8-bit 4:2:0 video of even size and differ at colour
# edges elsewhere, so the family is part of the key and the decoder that served a clip stands in its receipt.
DECODER = "decord+pyav"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks, UTF-8; NaN and infinities are refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (64 lower-case hex digits) of the canonical JSON of value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class StageSpec:
    """What every stage declares. `reads` maps the name of an upstream stage to its key."""

    stage: ClassVar[str]
    version: ClassVar[int]
    source: ClassVar[str] = "video"  # the file of a clip that it reads, and addresses it by

    def facts(self) -> dict[str, Any]:
        """Everything that decides the output, as JSON values."""
        return {"stage": self.stage, "version": self.version, **asdict(self)}

    @property
    def upstream(self) -> tuple[str, ...]:
        """The stages it reads."""
        return tuple(getattr(self, "reads", ()))

    @property
    def key(self) -> str:
        """SHA-256 of the facts; folders use its first 16 digits."""
        return digest(self.facts())


@dataclass(frozen=True)
class SegmentSpec(StageSpec):
    """Part labels of every stride-th frame: uint8 [frames, *label_size] in the squashed frame of the model."""

    stage: ClassVar[str] = "segment"
    version: ClassVar[int] = 1
    model: str
    config: Mapping[str, Any]
    weights: str  # SHA-256 of the weights file
    label_size: tuple[int, int]  # (height, width) of the stored label maps
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride: int = 1
    parts: str = "sapiens28"  # part list the labels are ids of
    crop: str = "none"  # "person": the model sees a crop around the person instead of the whole frame
    precision: str = "float32"  # or "bfloat16"
    decoder: str = DECODER


@dataclass(frozen=True)
class RegionsSpec(StageSpec):
    """Boxes of the four regions for every segmented frame."""

    stage: ClassVar[str] = "regions"
    version: ClassVar[int] = 1
    reads: Mapping[str, str]
    parts: Mapping[str, tuple[int, ...]]  # region -> class ids
    box: str = "clip"  # "clip": union over the frames; "frame": one box per frame
    padding: float = 0.10  # share of the box's own width and height added on every side
    smoothing: int = 1  # frames of the moving average over per-frame boxes; 1 = off
    min_area: float = 0.0005  # a region with a smaller share of the frame is absent in that frame
    clothing: str = "keep"  # "keep", or "reassign": sleeves and trousers go to the limb under them
    mask: bool = True  # crop, then keep only the region's own pixels
    carry: str = "nearest"  # how frames between segmented ones get boxes and masks: "nearest" or "blend"


@dataclass(frozen=True)
class SemanticSpec(StageSpec):
    """VideoMAE-V2 features of 16-frame windows, one per view."""

    stage: ClassVar[str] = "semantic"
    version: ClassVar[int] = 1
    reads: Mapping[str, str]
    model: str
    config: Mapping[str, Any]
    weights: str
    window: int = 16
    stride: int | None = 4  # frames between window starts; None where `windows` says how many
    windows: int | None = None  # so many windows, evenly spread over the clip
    sampling: str = "dense"  # consecutive frames; "uniform": one window whose frames span the clip
    normalisation: str = "imagenet"
    views: tuple[str, ...] = VIEWS
    tokens: Mapping[str, Any] | None = None  # token maps: presets.TokenOptions, a fitted projection by digest
    precision: str = "float32"
    decoder: str = DECODER

    @property
    def needs_regions(self) -> bool:
        """Whether any view is a crop."""
        return any(view in REGIONS for view in self.views)

    def window_count(self, frames: int) -> int:
        """Windows of a clip of so many frames, at least 1."""
        if self.sampling == "uniform":
            return 1
        if self.windows is not None:
            return self.windows
        return max(frames - self.window, 0) // int(self.stride or 1) + 1


@dataclass(frozen=True)
class MotionSpec(StageSpec):
    """MANet segment features, logits and embedding of 8 sampled frames."""

    stage: ClassVar[str] = "motion"
    version: ClassVar[int] = 1
    model: str
    config: Mapping[str, Any]
    weights: str
    short_side: int = 256
    crop: int = 224
    precision: str = "float32"
    decoder: str = DECODER


@dataclass(frozen=True)
class SkeletonSpec(StageSpec):
    """The joints of skeleton files as they are."""

    stage: ClassVar[str] = "skeleton"
    version: ClassVar[int] = 1
    source: ClassVar[str] = "skeleton"


@dataclass(frozen=True)
class PipelineSpec:
    """The stages of one preset, upstream first, keys linked: the four of videos, or that of skeletons alone."""

    preset: str
    specs: tuple[StageSpec, ...]

    def stages(self) -> dict[str, StageSpec]:
        """Stage name -> spec, upstream first."""
        return {spec.stage: spec for spec in self.specs}

    def replaced(self, spec: StageSpec) -> "PipelineSpec":
        """With another spec of that stage; the keys of others do not follow."""
        return replace(self, specs=tuple(spec if old.stage == spec.stage else old for old in self.specs))

    @property
    def source(self) -> str:
        """What its stages read: video or skeleton."""
        return self.specs[0].source

    # Cached, and not __getattr__: a plan of 100,000 clips asks often, and types stay known.
    @cached_property
    def segment(self) -> SegmentSpec:
        return self._of(SegmentSpec)

    @cached_property
    def regions(self) -> RegionsSpec:
        return self._of(RegionsSpec)

    @cached_property
    def semantic(self) -> SemanticSpec:
        return self._of(SemanticSpec)

    @cached_property
    def motion(self) -> MotionSpec:
        return self._of(MotionSpec)

    @cached_property
    def skeleton(self) -> SkeletonSpec:
        return self._of(SkeletonSpec)

    def _of(self, kind: type[Spec]) -> Spec:
        for spec in self.specs:
            if isinstance(spec, kind):
                return spec
        stages = ", ".join(self.stages())
        raise UserError(f"preset '{self.preset}' has no stage {kind.stage}; it has {stages}")
