"""Skeleton files in the formats of the datasets, with joints that are known."""

import json
from pathlib import Path

import numpy as np


def joints(frames: int, persons: int, count: int, seed: int = 0) -> np.ndarray:
    """float32 [frames, persons, count, 3], metres, written with 7 digits as Kinect's tools do."""
    numbers = np.random.default_rng(seed).normal(0, 1, (frames, persons, count, 3))
    return np.round(numbers, 7).astype(np.float32)


def ntu_text(xyz: np.ndarray, present: np.ndarray, bodies: list[str], states: np.ndarray) -> str:
    """A .skeleton file; present bool [F, P], states 0 to 2 [F, P, 25]."""
    lines = [str(len(xyz))]
    for frame, there in enumerate(present):
        lines.append(str(int(there.sum())))
        for person in np.flatnonzero(there):
            lines += [f"{bodies[person]} 0 1 1 1 1 0 0.1 -0.2 2", "25"]
            for point, state in zip(xyz[frame, person], states[frame, person], strict=True):
                x, y, z = (f"{value:.7f}" for value in point)
                lines.append(f"{x} {y} {z} 300.1 200.2 1000.5 500.5 -1.#IND 0 0 0 {state}")
    return "\n".join(lines) + "\n"


def write_ntu(path: Path, frames: int = 6, bodies: tuple[str, ...] = ("72057594037931101",)) -> np.ndarray:
    """Every body in every frame, all joints tracked; returns xyz [F, P, 25, 3]."""
    xyz = joints(frames, len(bodies), 25)
    present = np.ones((frames, len(bodies)), bool)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ntu_text(xyz, present, list(bodies), np.full(xyz.shape[:3], 2)))
    return xyz


def write_pku(path: Path, frames: int, second_from: int) -> np.ndarray:
    """The second body comes in frame second_from; returns xyz [F, 2, 25, 3]."""
    xyz = joints(frames, 2, 25)
    xyz[:second_from, 1] = 0
    lines = (" ".join(f"{value:.7f}" for value in frame.reshape(-1)) for frame in xyz)
    path.write_text("\n".join(lines) + "\n")
    return xyz


def write_ucla(path: Path, frames: int) -> np.ndarray:
    """Returns xyz [F, 20, 3]."""
    xyz = joints(frames, 1, 20)[:, 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"file_name": path.stem, "skeletons": xyz.astype(float).tolist()}))
    return xyz
