"""`--set KEY=VALUE`, as every command spells it."""

from typing import Any

import yaml

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
