"""Decoding a file to its end and keeping nothing: what only a full decode can tell (`dataset validate --deep`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pipeline.decode.backends import BACKENDS, Outcome
from pipeline.decode.probe import Probe, open_container

NO_FRAME = 1 << 62  # a start behind every end: frames are decoded and none is converted


@dataclass(frozen=True)
class Whole:
    """What a full decode found.

    Attributes:
        frames: frames delivered, until the end or the first damage.
        good: leading frames that no damage can have touched; equals frames without damage.
        damage: what is wrong with the file, or None.
        width, height: of the upright picture.
        fps_num, fps_den: average rate the container states, or None.
        warnings: ``CODE: sentence`` each: those of a Probe, W_HEADER_COUNT, W_SAR, W_NO_DURATION.
    """

    frames: int
    good: int
    damage: str | None
    width: int
    height: int
    fps_num: int | None
    fps_den: int | None
    warnings: tuple[str, ...]

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        """What `asdict` gave, after a trip through JSON. Raises TypeError for anything else."""
        return cls(**{**facts, "warnings": tuple(facts["warnings"])})


def decode_whole(path: Path, facts: Probe, alive: Callable[[], None]) -> Whole:
    """Decode every frame with PyAV from the file's beginning; calls alive() for each."""
    steps = BACKENDS["pyav"](path, replace(facts, index=None), NO_FRAME, None, None)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            break
        alive()
    warnings = [*facts.warnings, *_shape_warnings(path, facts)]
    if outcome.damage is None and outcome.delivered != facts.packets:
        warnings.append(f"W_HEADER_COUNT: {facts.packets} packets gave {outcome.delivered} frames")
    size = (facts.width, facts.height)
    rate = (facts.fps_num, facts.fps_den)
    return Whole(outcome.delivered, outcome.good, outcome.damage, *size, *rate, tuple(warnings))


def _shape_warnings(path: Path, facts: Probe) -> Iterator[str]:
    with open_container(path) as container:
        stream = container.streams[facts.stream]
        shape = stream.sample_aspect_ratio
        if shape and shape != 1:
            yield f"W_SAR: pixels are {shape.numerator}:{shape.denominator} as wide as high; they are used as squares"
        if not (stream.duration or container.duration):
            yield "W_NO_DURATION: the file does not say how long it is; its frames are counted"
