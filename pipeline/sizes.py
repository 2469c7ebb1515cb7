"""Sizes as people write them: 8GiB, 512MiB, 1.5GB, 1000000."""

import re

from pipeline.errors import UserError

MEMORY = 8 << 30  # bytes of a worker where nobody says otherwise: docs/running.md

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}iB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_LOWER = {unit.lower(): value for unit, value in _UNITS.items()}


def parse_size(text: str) -> int:
    """Bytes of a size. Raises UserError when it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _LOWER:
        raise UserError(f"'{text}' is no size; write one such as 8GiB, 512MiB or 1.5GB")
    return int(float(found[1]) * _LOWER[found[2]])


def size_text(size: int) -> str:
    """1610612736 as 1.5GiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.4g}{unit}"
    return f"{size}B"
