"""Seeded people: body shape, clothes and colours. Lengths are in units of the standing height."""

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = ((255, 219, 188), (234, 192, 158), (198, 150, 110), (150, 104, 72), (98, 66, 46))
HAIRS: tuple[Colour, ...] = ((30, 24, 20), (72, 48, 30), (128, 88, 48), (196, 160, 96), (150, 150, 150))


@dataclass(frozen=True)
class Person:
    """What stays the same in all clips of one person."""

    height: float  # overall scale, 0.9 to 1.1
    shoulders: float  # half width of the shoulders
    hips: float  # half width of the hips
    torso: float  # hip to shoulder line
    head: tuple[float, float]  # half axes of the head ellipse
    arm: tuple[float, float]  # lengths of the upper and lower arm
    leg: tuple[float, float]  # lengths of the upper and lower leg
    girth: float  # limb thickness factor
    skin: Colour
    hair: Colour
    shirt: Colour
    stripes: Colour | None
    trousers: Colour
    shoes: Colour
    sleeves: str  # "long", "short", "none"
    legwear: str  # "trousers", "shorts", "skirt"
    hairstyle: str  # "short", "long", "bald"


def make_person(rng: np.random.Generator) -> Person:
    """Draw a person from the generator; equal generators give equal people."""

    def colour() -> Colour:
        r, g, b = np.clip(rng.integers(30, 226) + rng.integers(-60, 61, 3), 10, 245)
        return int(r), int(g), int(b)

    build = rng.uniform(0.85, 1.2)
    return Person(
        height=rng.uniform(0.92, 1.08),
        shoulders=0.105 * build * rng.uniform(0.92, 1.08),
        hips=0.075 * build * rng.uniform(0.92, 1.12),
        torso=rng.uniform(0.27, 0.31),
        head=(0.060 * rng.uniform(0.92, 1.08), 0.078 * rng.uniform(0.92, 1.08)),
        arm=(rng.uniform(0.155, 0.175), rng.uniform(0.14, 0.16)),
        leg=(rng.uniform(0.21, 0.24), rng.uniform(0.21, 0.24)),
        girth=build * rng.uniform(0.95, 1.1),
        skin=SKINS[rng.integers(len(SKINS))],
        hair=HAIRS[rng.integers(len(HAIRS))],
        shirt=colour(),
        stripes=colour() if rng.random() < 0.35 else None,
        trousers=colour(),
        shoes=colour(),
        sleeves=str(rng.choice(["long", "short", "none"], p=[0.4, 0.4, 0.2])),
        legwear=str(rng.choice(["trousers", "shorts", "skirt"], p=[0.6, 0.25, 0.15])),
        hairstyle=str(rng.choice(["short", "long", "bald"], p=[0.55, 0.35, 0.1])),
    )
