"""Presets: YAML that names the encoders and their options -> the four linked stage specs.

A preset's weights must be on this machine, because their digest is part of every key; what is missing is said in
one line with how to get it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from pipeline.encoders.weights import checked_sha256, file_sha256, resolve_weights, weights_entry
from pipeline.errors import UserError
from pipeline.spec import MotionSpec, PipelineSpec, RegionsSpec, SegmentSpec, SemanticSpec

FOLDER = Path(__file__).resolve().parents[1] / "manifests" / "presets"
DEFAULT = "base"


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Precision = Literal["float32", "bfloat16"]


class SegmentOptions(Options):
    weights: str
    label_size: tuple[int, int]
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


class Batch(Options):
    segment: int = Field(default=4, ge=1)
    semantic: int = Field(default=16, ge=1)
    motion: int = Field(default=8, ge=1)


class RunOptions(Options):
    """How to run, never what comes out: nothing here enters a key."""

    shard_clips: int = Field(default=256, ge=1)
    batch: Batch = Batch()


class Preset(Options):
    segment: SegmentOptions
    regions: RegionsOptions = RegionsOptions()
    semantic: SemanticOptions
    motion: MotionOptions
    run: RunOptions = RunOptions()


@dataclass(frozen=True)
class Recipe:
    """A preset made concrete: the specs, the files of the weights by stage and of the tokens' projection."""

    spec: PipelineSpec
    weights: Mapping[str, Path]
    run: RunOptions
    projection: Path | None = None  # None: random, or no token maps


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: str, overrides: Sequence[str] = ()) -> Preset:
    """The options of a preset by name, or of a YAML file by path, with overrides such as `regions.padding=0.15`.

    Raises UserError naming the file and the field.
    """
    own_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if own_file else FOLDER / f"{name}.yaml"
    if not (path.is_file() if own_file else name in preset_names()):
        raise UserError(
            f"no preset '{name}'; choose one of {', '.join(preset_names())}, or give a .yaml file"
        )
    try:
        values = yaml.safe_load(path.read_text())
        for override in overrides if isinstance(values, dict) else ():
            _lay_over(values, override)
        return Preset.model_validate(values)
    except (ValidationError, yaml.YAMLError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        else:
            reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a preset ({reason}); see manifests/presets/demo.yaml") from None


def _lay_over(values: dict[str, Any], override: str) -> None:
    """Set one dotted field of a preset's values in place; the value is YAML."""
    dotted, sign, text = override.partition("=")
    if not sign:
        raise UserError(f"--set {override}: write STAGE.OPTION=VALUE, e.g. regions.padding=0.15")
    *sections, leaf = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[leaf] = yaml.safe_load(text)


def load_recipe(name: str, weights_folder: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Find the weights of a preset, take their digests, and link the specs.

    Raises UserError naming every missing file at once, each with how to get it and its licence.
    """
    from pipeline.encoders.preprocess import normalisation
    from pipeline.regions import load_parts

    preset = read_preset(name, overrides)
    wanted = {stage: getattr(preset, stage).weights for stage in ("segment", "semantic", "motion")}
    files: dict[str, Path] = {}
    missing: list[str] = []
    for stage, weights in wanted.items():
        try:
            files[stage] = resolve_weights(weights, weights_folder)
        except UserError as error:
            missing.append(str(error))
    if missing:
        raise UserError(f"preset '{name}' cannot run here:\n  " + "\n  ".join(missing))
    digests = {stage: checked_sha256(wanted[stage], path) for stage, path in files.items()}
    entries = {stage: weights_entry(weights) for stage, weights in wanted.items()}
    mean, std = normalisation(preset.segment.normalisation)
    segment = SegmentSpec(
        model=entries["segment"].model,
        config=entries["segment"].config,
        weights=digests["segment"],
        label_size=preset.segment.label_size,
        mean=mean,
        std=std,
        stride=preset.segment.stride,
        parts=preset.regions.parts,
        crop=preset.segment.crop,
        precision=preset.segment.precision,
    )
    regions = RegionsSpec(
        reads={"segment": segment.key},
        parts=load_parts(preset.regions.parts).regions,
        **preset.regions.model_dump(exclude={"parts"}),
    )
    options = preset.semantic
    dense = options.sampling == "dense"
    tokens, projection = _tokens(options.tokens)
    semantic = SemanticSpec(
        reads={"segment": segment.key, "regions": regions.key},
        model=entries["semantic"].model,
        config=entries["semantic"].config,
        weights=digests["semantic"],
        stride=4 if options.stride is None and options.windows is None and dense else options.stride,
        windows=options.windows,
        sampling=options.sampling,
        normalisation=options.normalisation,
        tokens=tokens,
        precision=options.precision,
    )
    motion = MotionSpec(
        model=entries["motion"].model,
        config=entries["motion"].config,
        weights=digests["motion"],
        short_side=preset.motion.short_side,
        crop=preset.motion.crop,
        precision=preset.motion.precision,
    )
    spec = PipelineSpec(name, segment, regions, semantic, motion)
    return Recipe(spec, files, preset.run, projection)


def _tokens(options: TokenOptions | None) -> tuple[dict[str, Any] | None, Path | None]:
    """The facts of the token maps, a fitted projection named by its digest, and the file of that projection."""
    if options is None:
        return None, None
    facts = options.model_dump(mode="json")
    if options.width is None:
        return {**facts, "projection": None}, None
    if options.projection == "random":
        return facts, None
    path = Path(options.projection)
    if not path.is_file():
        raise UserError(
            f"{path}: no such projection; fit one with `bmoe-cache project`, or set semantic.tokens.projection=random"
        )
    return {**facts, "projection": file_sha256(path)}, path
