"""Compare two stages clip by clip: the same key on two machines, or two precisions of one encoder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.events import Event, Listener, silent
from pipeline.plan import changes
from pipeline.store import layout
from pipeline.store.reader import StageReader


@dataclass
class _Distance:
    """What is known so far of how far two arrays lie apart. Vectors run along the last axis of a row."""

    numbers: int = 0
    equal: int = 0
    total: float = 0.0
    largest: float = 0.0
    cosines: list[np.ndarray] = field(default_factory=list)

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        x, y = a.astype(np.float64), b.astype(np.float64)
        apart = np.abs(x - y)
        self.numbers += apart.size
        self.equal += int(np.count_nonzero(a == b))
        self.total += float(apart.sum())
        self.largest = max(self.largest, float(apart.max()))
        if x.ndim > 1 and a.dtype.kind == "f":
            norms = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
            both = norms > 0  # an absent region is a vector of zeros, and has no direction
            self.cosines.append((x * y).sum(-1)[both] / norms[both])

    def record(self) -> dict[str, Any]:
        cosines = np.concatenate([np.ravel(c) for c in self.cosines]) if self.cosines else np.empty(0)
        found = cosines.size > 0
        return {
            "equal": self.equal / self.numbers if self.numbers else None,
            "max_abs": self.largest if self.numbers else None,
            "mean_abs": self.total / self.numbers if self.numbers else None,
            "mean_cosine": float(cosines.mean()) if found else None,
            "min_cosine": float(cosines.min()) if found else None,
        }


def diff(first: Path, second: Path, listen: Listener = silent) -> dict[str, Any]:
    """How far apart two stages are.

    Args:
        first, second: their folders, CACHE/stages/<stage>/<key16>; of one cache or of two.

    Returns {"facts": [what was declared otherwise], "clips": {"both", "only_first", "only_second", "other_rows"},
    "arrays": {name: {"equal": share of equal numbers, "max_abs", "mean_abs", "mean_cosine", "min_cosine"}}}.
    Raises UserError when a folder is no stage, or no array of both has rows of the same shape.
    """
    opened = [layout.load_folder(path) for path in (first, second)]
    a, b = (StageReader(folder) for folder, _ in opened)
    names = [n for n in a.arrays if n in b.arrays and a.arrays[n].row_shape == b.arrays[n].row_shape]
    if not names:
        raise UserError(f"{first} and {second} have no array in common that has rows of one shape")
    both = [key for key in a.clips if key in b.clips]
    alike: list[str] = []
    other: list[str] = []
    for key in both:
        (alike if a.clips[key].n_rows == b.clips[key].n_rows else other).append(key)
    distances = {name: _Distance() for name in names}
    for number, key in enumerate(alike, 1):
        for name, distance in distances.items():
            distance.add(a.read(key, name), b.read(key, name))
        listen(Event("step", "comparing", number, len(alike)))
    return {
        "facts": changes(a.facts, b.facts),
        "clips": {
            "both": len(both),
            "only_first": [clip.clip_id for key, clip in a.clips.items() if key not in b.clips],
            "only_second": [clip.clip_id for key, clip in b.clips.items() if key not in a.clips],
            "other_rows": [a.clips[key].clip_id for key in other],
        },
        "arrays": {name: distance.record() for name, distance in distances.items()},
    }
