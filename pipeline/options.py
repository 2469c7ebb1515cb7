"""What a preset file may say: one class per section, every field with its default."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipeline.encoders.weights import Weights


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Precision = Literal["float32", "bfloat16"]


class SegmentOptions(Options):
    weights: str
    label_size: tuple[PositiveInt, PositiveInt]
    normalisation: Literal["mmseg", "lite"] = "mmseg"
    stride: int = Field(default=1, ge=1)
    crop: Literal["none", "person"] = "none"
    precision: Precision = "float32"


class RegionsOptions(Options):
    parts: str = "sapiens28"
    box: Literal["clip", "frame"] = "clip"
    padding: float = Field(default=0.10, ge=0, le=1)
    smoothing: int = Field(default=1, ge=1)
    min_area: float = Field(default=0.0005, ge=0, lt=1)
    clothing: Literal["keep", "reassign"] = "keep"
    mask: bool = True
    carry: Literal["nearest", "blend"] = "nearest"


class TokenOptions(Options):
    """Token maps kept beside the features, pooled to `grid` and projected to `width` in the same pass."""

    views: tuple[Literal["full", "head", "body", "upper_limb", "lower_limb"], ...] = ("full",)
    grid: tuple[PositiveInt, PositiveInt] = (7, 7)
    width: PositiveInt | None = 256  # None keeps the encoder's own width
    projection: str = "random"  # seeded orthogonal, or a file that `bmoe-cache project` has fitted

    @model_validator(mode="after")
    def _projection_has_a_width(self) -> Self:
        if not self.views or (self.width is None and self.projection != "random"):
            raise ValueError("give at least one view, and a width to the projection of a file")
        return self


class SemanticOptions(Options):
    weights: str
    stride: int | None = Field(default=None, ge=1)  # 4 where neither stride nor windows nor sampling is given
    windows: int | None = Field(default=None, ge=1)
    sampling: Literal["dense", "uniform"] = "dense"
    normalisation: Literal["imagenet", "none"] = "imagenet"
    tokens: TokenOptions | None = None
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [self.stride is not None, self.windows is not None, self.sampling == "uniform"]
        if sum(given) > 1:
            raise ValueError(
                "give one of stride, windows, and sampling: uniform (stride: null takes a stride back)"
            )
        return self


class MotionOptions(Options):
    weights: str
    short_side: int = Field(default=256, ge=1)
    crop: int = Field(default=224, ge=1)
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.short_side:
            raise ValueError(f"crop {self.crop} is more than the short_side {self.short_side} it is cut from")
        return self


class Batch(Options):
    segment: int = Field(default=4, ge=1)
    semantic: int = Field(default=16, ge=1)
    motion: int = Field(default=8, ge=1)


class RunOptions(Options):
    """How to run, never what comes out: nothing here enters a key."""

    shard_clips: int = Field(default=256, ge=1)
    batch: Batch = Batch()
    compile: bool = False  # torch.compile, the code kept beside the cache: docs/performance.md


class SkeletonOptions(Options):
    """Nothing to choose: joints are kept as the files have them."""


class SkeletonPreset(Options):
    skeleton: SkeletonOptions
    run: RunOptions = RunOptions()


class Preset(Options):
    segment: SegmentOptions
    regions: RegionsOptions = RegionsOptions()
    semantic: SemanticOptions
    motion: MotionOptions
    run: RunOptions = RunOptions()
    weights: dict[str, Weights] = {}  # entries of the preset's own, beside those of manifests/weights.yaml
