"""Presets: YAML that names the encoders and their options -> the four linked stage specs.

A preset's weights must be on this machine, because their digest is part of every key; what is missing is said in
one line with how to get it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.encoders.weights import checked_sha256, resolve_weights, weights_entry
from pipeline.errors import UserError
from pipeline.spec import MotionSpec, PipelineSpec, RegionsSpec, SegmentSpec, SemanticSpec

FOLDER = Path(__file__).resolve().parents[1] / "manifests" / "presets"
DEFAULT = "base"


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SegmentOptions(Options):
    weights: str
    label_size: tuple[int, int]
    normalisation: Literal["mmseg", "lite"] = "mmseg"
    stride: int = Field(default=1, ge=1)


class RegionsOptions(Options):
    parts: str = "sapiens28"
    box: Literal["clip", "frame"] = "clip"
    padding: float = Field(default=0.10, ge=0, le=1)
    smoothing: int = Field(default=1, ge=1)
    min_area: float = Field(default=0.0005, ge=0, lt=1)
    clothing: Literal["keep", "reassign"] = "keep"
    mask: bool = True


class SemanticOptions(Options):
    weights: str
    stride: int = Field(default=4, ge=1)
    normalisation: Literal["imagenet", "none"] = "imagenet"


class MotionOptions(Options):
    weights: str
    short_side: int = Field(default=256, ge=1)
    crop: int = Field(default=224, ge=1)


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
    """A preset made concrete: the specs, the files of the weights by stage, and how to run."""

    spec: PipelineSpec
    weights: Mapping[str, Path]
    run: RunOptions


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """The options of a preset by name, or of a YAML file by path. UserError names the file and the field."""
    own_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if own_file else FOLDER / f"{name}.yaml"
    if not (path.is_file() if own_file else name in preset_names()):
        raise UserError(
            f"no preset '{name}'; choose one of {', '.join(preset_names())}, or give a .yaml file"
        )
    try:
        return Preset.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        else:
            reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a preset ({reason}); see manifests/presets/demo.yaml") from None


def load_recipe(name: str, weights_folder: Path | None = None) -> Recipe:
    """Find the weights of a preset, take their digests, and link the specs.

    Raises UserError naming every missing file at once, each with how to get it and its licence.
    """
    from pipeline.encoders.preprocess import normalisation
    from pipeline.regions import load_parts

    preset = read_preset(name)
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
    )
    regions = RegionsSpec(
        reads={"segment": segment.key},
        parts=load_parts(preset.regions.parts).regions,
        **preset.regions.model_dump(exclude={"parts"}),
    )
    semantic = SemanticSpec(
        reads={"segment": segment.key, "regions": regions.key},
        model=entries["semantic"].model,
        config=entries["semantic"].config,
        weights=digests["semantic"],
        stride=preset.semantic.stride,
        normalisation=preset.semantic.normalisation,
    )
    motion = MotionSpec(
        model=entries["motion"].model,
        config=entries["motion"].config,
        weights=digests["motion"],
        short_side=preset.motion.short_side,
        crop=preset.motion.crop,
    )
    spec = PipelineSpec(name, segment, regions, semantic, motion)
    return Recipe(spec, files, preset.run)
