"""`--set KEY=VALUE`, as every command spells it."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from pipeline.clip import shown
from pipeline.errors import UserError


def parse_override(text: str, example: str) -> tuple[list[str], Any]:
    """`a.b=VALUE` -> (["a", "b"], VALUE read as YAML).

    Raises UserError, with an example, where there is no "=" or no YAML.
    """
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"--set {shown(text)}: write KEY=VALUE, e.g. {example}")
    try:
        return key.split("."), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date or number that is none
        raise UserError(f"--set {shown(text)}: {shown(value)!r} is not a YAML value; quote it") from None


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys that overrides of a model may have, leaves only; a section that may be left out is one too."""
    for name, info in model.model_fields.items():
        kinds = get_args(info.annotation) or (info.annotation,)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        for section in sections:
            yield from keys_of(section, f"{prefix}{name}.")
        if len(sections) < len(kinds):
            yield prefix + name


def near(key: str, keys: Iterable[str]) -> str:
    """What may have been meant by an unknown key, for the end of a message."""
    keys = list(keys)
    leaf = key.rpartition(".")[2]
    found = [k for k in keys if k.rpartition(".")[2] == leaf] + difflib.get_close_matches(key, keys, 3, 0.5)
    return f"; near: {', '.join(dict.fromkeys(found))}" if found else f"; known: {', '.join(keys)}"


def blamed(overrides: Iterable[str], field: Sequence[object]) -> str | None:
    """The last KEY=VALUE that wrote a wrong field, something in it or what it lies in; None: a file did.

    Without a field the values do not go together, and all of KEY=VALUE have a part in it.
    """
    if not field:
        return " --set ".join(map(shown, overrides)) or None
    found = None
    for item in overrides:
        key = item.partition("=")[0].split(".")
        if all(part == str(other) for part, other in zip(key, field, strict=False)):
            found = shown(item)
    return found
