"""Twelve micro-actions as functions of time over one pose vector.

A pose is a dict of float arrays [frames], in units of the standing height (lengths) or radians (angles):
root_x, lean, shrug_l, shrug_r, pitch, yaw, roll (head), hand targets relative to their shoulder (x outward,
y down), knee_l/r (sideways), shin_l/r (angle outward), lift_l/r (knee up).
"""

from collections.abc import Callable

import numpy as np

FPS = 30
Pose = dict[str, np.ndarray]

CHANNELS = (
    "root_x", "lean", "shrug_l", "shrug_r", "pitch", "yaw", "roll",
    "hand_l_x", "hand_l_y", "hand_r_x", "hand_r_y",
    "knee_l", "knee_r", "shin_l", "shin_r", "lift_l", "lift_r",
)  # fmt: skip

# How far each channel drifts when nothing happens; about a tenth of what an action does.
IDLE = {
    "root_x": 0.004, "lean": 0.012, "shrug_l": 0.002, "shrug_r": 0.002, "pitch": 0.07, "yaw": 0.07, "roll": 0.025,
    "hand_l_x": 0.004, "hand_l_y": 0.004, "hand_r_x": 0.004, "hand_r_y": 0.004,
    "knee_l": 0.003, "knee_r": 0.003, "shin_l": 0.015, "shin_r": 0.015, "lift_l": 0.001, "lift_r": 0.001,
}  # fmt: skip


def smooth(x: np.ndarray) -> np.ndarray:
    """Smoothstep: 0 below 0, 1 above 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def envelope(rng: np.random.Generator, n: int, rise: float = 0.3) -> np.ndarray:
    """[n] in [0, 1]: starts within the first fifth, lasts most of the clip, rises and falls in about `rise` s."""
    t = np.arange(n) / FPS
    length = n / FPS
    start = rng.uniform(0.02, 0.2) * length
    stop = rng.uniform(0.85, 1.05) * length
    rise = rise * rng.uniform(0.8, 1.3)
    return smooth((t - start) / rise) * smooth((stop - t) / rise)


def wave(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """[n] sinusoid of unit amplitude, frequency between low and high Hz, slightly irregular."""
    t = np.arange(n) / FPS
    phase = rng.uniform(0, 2 * np.pi)
    frequency = rng.uniform(low, high)
    wobble = 0.35 * np.sin(2 * np.pi * rng.uniform(0.3, 0.7) * t + rng.uniform(0, 6))
    return np.sin(2 * np.pi * frequency * t + phase + wobble)


def sides(rng: np.random.Generator, both: float) -> tuple[str, ...]:
    """Which hand or leg acts; `both` is the probability that both do."""
    return ("l", "r") if rng.random() < both else (str(rng.choice(["l", "r"])),)


def idle(rng: np.random.Generator, n: int, strength: float = 1.0) -> Pose:
    """Slow drift of every channel, the base that an action is added to."""
    pose = {}
    for name in CHANNELS:
        drift = 0.7 * wave(rng, n, 0.15, 0.4) + 0.3 * wave(rng, n, 0.5, 1.0)
        pose[name] = strength * IDLE[name] * drift
    return pose


def shaking_body(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    swing = envelope(rng, n) * wave(rng, n, 1.0, 1.8) * gain
    pose["lean"] += 0.13 * swing
    pose["root_x"] += 0.012 * swing


def shrugging(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    t = np.arange(n) / FPS
    bumps = np.zeros(n)
    for centre in np.linspace(0.3, 0.7, rng.integers(1, 3)) * n / FPS + rng.uniform(-0.1, 0.1):
        width = rng.uniform(0.3, 0.45)
        bumps += smooth(1 - np.abs(t - centre) / width)
    for side in sides(rng, 0.8):
        pose[f"shrug_{side}"] += 0.045 * gain * np.minimum(bumps, 1)


def nodding(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    pose["pitch"] += 0.8 * gain * envelope(rng, n) * wave(rng, n, 1.4, 2.4)


def shaking_head(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    pose["yaw"] += 0.9 * gain * envelope(rng, n) * wave(rng, n, 1.4, 2.4)


def tilting_head(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    pose["roll"] += rng.choice([-1, 1]) * 0.42 * gain * envelope(rng, n, 0.45)


def waving(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    (side,) = sides(rng, 0)
    up = envelope(rng, n, 0.35)
    move_hand(pose, side, up, rng.uniform(0.10, 0.17), rng.uniform(-0.20, -0.12))
    pose[f"hand_{side}_x"] += 0.05 * gain * up * wave(rng, n, 2.0, 3.2)


def stretching_arms(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    out = envelope(rng, n, 0.5)
    for side in sides(rng, 0.6):
        move_hand(pose, side, out, rng.uniform(0.26, 0.30), rng.uniform(-0.06, 0.08) / gain)


def putting_hands_together(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    close, height = envelope(rng, n, 0.4), rng.uniform(0.12, 0.2)
    rub = 0.008 * gain * close * wave(rng, n, 1.5, 2.5)
    for side, sign in (("l", 1), ("r", -1)):
        move_hand(pose, side, close, -0.088, height)  # just short of the middle line
        pose[f"hand_{side}_y"] += sign * rub


def shaking_legs(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    shake = envelope(rng, n, 0.2) * wave(rng, n, 2.8, 4.5) * gain
    for side in sides(rng, 0.6):
        pose[f"knee_{side}"] += 0.026 * shake
        pose[f"lift_{side}"] += 0.008 * shake


def stretching_feet(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    out = envelope(rng, n, 0.5)
    for side in sides(rng, 0.3):
        pose[f"shin_{side}"] += rng.uniform(0.55, 0.8) * gain * out


def touching_face(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    (side,) = sides(rng, 0)
    up = envelope(rng, n, 0.4)
    move_hand(pose, side, up, rng.uniform(-0.09, -0.06), rng.uniform(-0.125, -0.085))
    scratch = up * wave(rng, n, 2.0, 3.5) * gain
    pose[f"hand_{side}_y"] += 0.01 * scratch
    pose["roll"] += (1 if side == "l" else -1) * 0.12 * up
    pose["pitch"] += 0.12 * scratch


def patting_legs(rng: np.random.Generator, n: int, pose: Pose, gain: float) -> None:
    active = envelope(rng, n, 0.25)
    pat = np.abs(wave(rng, n, 1.0, 1.7)) * active * gain
    for side in sides(rng, 0.5):
        pose[f"hand_{side}_y"] -= 0.075 * pat
        pose[f"lift_{side}"] += 0.012 * (active - pat) * (pat < 0.3)


def move_hand(pose: Pose, side: str, amount: np.ndarray, x: float, y: float) -> None:
    """Blend the hand from its rest (pose holds offsets from rest; the renderer adds rest * (1 - amount))."""
    pose[f"hand_{side}_x"] += amount * x
    pose[f"hand_{side}_y"] += amount * y
    pose[f"reach_{side}"] = np.maximum(pose.get(f"reach_{side}", 0.0), amount)


Action = Callable[[np.random.Generator, int, Pose, float], None]

# In the order of the class ids of manifests/datasets/demo.yaml.
ACTIONS: dict[str, Action] = {
    "shaking body": shaking_body,
    "shrugging": shrugging,
    "nodding": nodding,
    "shaking head": shaking_head,
    "tilting head": tilting_head,
    "waving": waving,
    "stretching arms": stretching_arms,
    "putting hands together": putting_hands_together,
    "shaking legs": shaking_legs,
    "stretching feet": stretching_feet,
    "touching face": touching_face,
    "patting legs": patting_legs,
}
SHOWS_LEGS = ("shaking legs", "stretching feet", "patting legs")


def perform(action: str, rng: np.random.Generator, n: int) -> Pose:
    """The pose channels of one clip, each [n]; adds reach_l/r in [0, 1], how far a hand has left its rest."""
    pose = idle(rng, n, rng.uniform(0.6, 1.3))
    ACTIONS[action](rng, n, pose, rng.uniform(0.75, 1.25))
    for side in ("l", "r"):
        pose.setdefault(f"reach_{side}", np.zeros(n))
    return pose
