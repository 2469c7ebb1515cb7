"""Presets: YAML that names the encoders and their options -> the four linked stage specs.

A preset's weights must be on this machine, because their digest is part of every key; what is missing is said in
one line with how to get it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.encoders import stage_of
from pipeline.encoders.digests import file_sha256
from pipeline.encoders.weights import (
    Weights,
    parse_entries,
    resolve_weights,
    weights_digest,
    weights_entry,
    weights_table,
)
from pipeline.errors import UserError
from pipeline.options import Preset, RunOptions, SkeletonPreset, TokenOptions
from pipeline.overrides import blamed, keys_of, near, parse_override
from pipeline.spec import MotionSpec, PipelineSpec, RegionsSpec, SegmentSpec, SemanticSpec, SkeletonSpec

FOLDER = Path(__file__).resolve().parents[1] / "manifests" / "presets"


@dataclass(frozen=True)
class Recipe:
    """A preset made concrete: the specs, the files of the weights by stage and of the tokens' projection."""

    spec: PipelineSpec
    weights: Mapping[str, Path | None]  # None: the weights come in a package
    run: RunOptions
    projection: Path | None = None  # None: random, or no token maps


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: str, overrides: Sequence[str] = ()) -> Preset | SkeletonPreset:
    """The options of a preset by name, or of a YAML file by path, with overrides such as `regions.padding=0.15`.

    Raises UserError naming the file, or the override, and the field.
    """
    own_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if own_file else FOLDER / f"{name}.yaml"
    if not (path.is_file() if own_file else name in preset_names()):
        raise UserError(
            f"no preset '{name}'; choose one of {', '.join(preset_names())}, or give a .yaml file"
        )
    model: type[Preset] | type[SkeletonPreset] = Preset
    try:
        values = yaml.safe_load(path.read_text())
        for override in overrides if isinstance(values, dict) else ():
            _lay_over(values, override)
        if isinstance(values, dict) and isinstance(values.get("weights"), dict):
            values["weights"] = parse_entries(values["weights"], path)
        if isinstance(values, dict) and "skeleton" in values:
            model = SkeletonPreset
        return model.model_validate(values)
    except (ValidationError, yaml.YAMLError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            reason = f"{field}: {first['msg'].removeprefix('Value error, ')}"
            if wrong := blamed(overrides, first["loc"]):
                if first["type"] == "extra_forbidden":
                    key = wrong.partition("=")[0]
                    reason = f"unknown option{near(max(key, field, key=len), keys_of(model))}"
                raise UserError(f"--set {wrong}: {reason}") from None
        else:
            reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a preset ({reason}); see manifests/presets/demo.yaml") from None


def _lay_over(values: dict[str, Any], override: str) -> None:
    """Set one dotted field of a preset's values in place."""
    (*sections, leaf), value = parse_override(override, "regions.padding=0.15")
    for section in sections:
        inner = values.get(section)
        values[section] = dict(inner) if isinstance(inner, dict) else {}
        values = values[section]
    values[leaf] = value


def wanted_weights(preset: Preset | SkeletonPreset) -> dict[str, Weights]:
    """Stage -> the entry of its weights. Raises UserError for an unknown one, and for one of another stage."""
    if isinstance(preset, SkeletonPreset):
        return {}
    wanted = {}
    for stage in ("segment", "semantic", "motion"):
        entry = wanted[stage] = weights_entry(getattr(preset, stage).weights, preset.weights)
        if stage_of(entry.model) not in (stage, None):
            fit = (name for name, held in weights_table().items() if stage_of(held.model) == stage)
            raise UserError(
                f"{stage}.weights: {entry.name!r} is a {entry.model}, an encoder of the stage "
                f"{stage_of(entry.model)}; use one of {', '.join(fit)}"
            )
    return wanted


def find_all(name: str, entries: Mapping[str, Weights], given: Path | None = None) -> dict[str, Path | None]:
    """Stage -> the file or folder of its weights, looked up in ``given`` first (see ``resolve_weights``).

    ``given`` may also be a file where the preset wants only one that it does not bring itself. Raises UserError
    naming everything missing at once, a line for each.
    """
    outside = list(dict.fromkeys(entry.name for entry in entries.values() if entry.repo or entry.folder))
    check_given(given)
    if given is not None and given.is_file() and not outside:
        raise UserError(f"--weights {given} is one file, preset '{name}' wants none; leave --weights out")
    if given is not None and given.is_file() and len(outside) > 1:
        wants = ", ".join(outside)
        raise UserError(f"--weights {given} is one file, preset '{name}' wants {wants}; give their folder")
    files: dict[str, Path | None] = {}
    missing: dict[str, None] = {}
    for stage, entry in entries.items():
        try:
            files[stage] = resolve_weights(entry, given, alone=outside == [entry.name])
        except UserError as error:
            missing[str(error)] = None
    if missing:
        everything = f"all of it: `bmoe-cache weights fetch --preset {name}`"
        raise UserError("\n  ".join([f"preset '{name}' cannot run here:", *missing, everything]))
    return files


def check_given(path: Path | None) -> None:
    """Raises UserError where --weights names nothing."""
    if path is not None and not path.exists():
        raise UserError(f"--weights {path}: no such file or folder; check the path")


def locate_weights(
    name: str | None, preset: str | None, given: Path | None = None
) -> list[tuple[Weights, Path | None]]:
    """One entry by name, or those of a preset, and where they are. Raises UserError as ``find_all`` does."""
    entries = choose_weights(name, preset)
    check_given(given)
    if preset is None:
        return [(entry, resolve_weights(entry, given, alone=True)) for entry in entries]
    files = find_all(preset, {entry.name: entry for entry in entries}, given)
    return [(entry, files[entry.name]) for entry in entries]


def choose_weights(name: str | None, preset: str | None) -> list[Weights]:
    """One entry by name, or those of a preset. Raises UserError unless exactly one of the two is given."""
    if (name is None) == (preset is None):
        raise UserError("name one entry of `bmoe-cache weights list`, or a preset with --preset")
    if preset is None:
        return [weights_entry(str(name))]
    entries = wanted_weights(read_preset(preset)).values()
    return list({entry.name: entry for entry in entries}.values())


def load_recipe(name: str, weights: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Find the weights of a preset, take their digests, and link the specs.

    Args:
        weights: folder (or file) of weights, as ``find_all`` takes it.

    Raises UserError naming every missing file at once, each with how to get it and its licence.
    """
    preset = read_preset(name, overrides)
    entries = wanted_weights(preset)
    files = find_all(name, entries, weights)
    digests = {stage: weights_digest(entries[stage], path) for stage, path in files.items()}
    spec, projection = _linked(name, preset, entries, digests)
    return Recipe(spec, files, preset.run, projection)


def unweighted_spec(name: str, overrides: Sequence[str] = ()) -> PipelineSpec:
    """The specs of a preset without a look at its weights, for estimates; their keys mean nothing."""
    preset = read_preset(name, overrides)
    entries = wanted_weights(preset)
    return _linked(name, preset, entries, dict.fromkeys(entries, ""))[0]


def _linked(
    name: str, preset: Preset | SkeletonPreset, entries: Mapping[str, Weights], digests: Mapping[str, str]
) -> tuple[PipelineSpec, Path | None]:
    """The specs of a preset, and the file of its tokens' projection."""
    if isinstance(preset, SkeletonPreset):
        return PipelineSpec(name, (SkeletonSpec(),)), None
    from pipeline.encoders.preprocess import normalisation
    from pipeline.regions import load_parts

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
    return PipelineSpec(name, (segment, regions, semantic, motion)), projection


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
