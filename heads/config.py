"""Presets of manifests/heads, dotted overrides on top of them, and the variants of the paper's tables."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from heads.options import Config
from pipeline.errors import UserError
from pipeline.overrides import blamed, keys_of, near, parse_override

PRESETS = Path(__file__).resolve().parents[1] / "manifests" / "heads"


def load_config(preset: str, overrides: Iterable[str] = ()) -> Config:
    """The preset manifests/heads/<preset>.yaml with overrides such as ``m3e.depth=2`` laid over it.

    A preset of your own is given by its path, which ends in .yaml.

    Raises:
        UserError: unknown preset, unknown key (near names are listed), or a value of the wrong type or range.
    """
    path = Path(preset) if preset.endswith(".yaml") else PRESETS / f"{preset}.yaml"
    known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    if not preset.endswith(".yaml") and preset not in known:
        raise UserError(
            f"unknown head preset {preset!r}; known: {', '.join(known)}, or a file of your own, .yaml"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold keys and values, as manifests/heads/bmoe_tiny.yaml does")
    return parse_config(raw, overrides, origin=str(path))


def parse_config(raw: dict[str, Any], overrides: Iterable[str] = (), origin: str = "config") -> Config:
    """A config from plain values; `origin` names them in messages. Raises UserError as `load_config` does."""
    raw = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    overrides = list(overrides)
    for item in overrides:
        parts, value = parse_override(item, "m3e.depth=2")
        key = ".".join(parts)
        if key not in keys_of(Config):
            raise UserError(f"--set {item}: unknown key {key!r}{near(key, keys_of(Config))}")
        section, dot, leaf = key.partition(".")
        if dot:
            raw.setdefault(section, {})[leaf] = value
        else:
            raw[section] = value
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = near(where, keys_of(Config)) if first["type"] == "extra_forbidden" else ""
        message = "unknown key" if hint else first["msg"].removeprefix("Value error, ")
        if override := blamed(overrides, first["loc"]):
            origin = f"--set {override}"
        raise UserError(f"{origin}: {where + ': ' if where else ''}{message}{hint}") from None


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """The config with overrides laid over it. Raises UserError as `load_config` does."""
    return parse_config(config.model_dump(), overrides)


STREAMS = {
    "full": (),
    "semantic_only": ("motion.enabled=false",),
    "motion_only": ("semantic.enabled=false",),
}


def variant_config(config: Config, variant: str) -> Config:
    """The config of one row of the paper's tables 3 and 4: a name of `STREAMS`, or drop_<expert>.

    Raises UserError for another name.
    """
    if variant in STREAMS:
        return with_overrides(config, STREAMS[variant])
    drops = [f"drop_{name}" for name in config.experts]
    if variant not in drops:
        raise UserError(f"unknown variant {variant!r}; known: {', '.join([*STREAMS, *drops])}")
    kept = {name: view for name, view in config.experts.items() if f"drop_{name}" != variant}
    return parse_config(config.model_dump() | {"experts": kept})
