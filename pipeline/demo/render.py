"""Draw a posed person: an RGB picture and, with the same shapes, the Sapiens part labels of every pixel."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.demo.motions import Pose
from pipeline.demo.people import Colour, Person

HEIGHT, WIDTH = 192, 160  # the aspect of the MA-52 clips (1296 x 1080)
Place = Callable[[float, float], np.ndarray]  # torso coordinates -> pixels
SHIFT = 4  # OpenCV draws with 4 fractional bits, so motion below a pixel is visible

# Sapiens class ids; the person's left is on the right of the picture.
FACE, HAIR, TORSO, SHIRT, LOWER_LIP, UPPER_LIP, TROUSERS = 2, 3, 21, 22, 23, 24, 12
SIDE_IDS = {
    "l": {"foot": 4, "hand": 5, "lower_arm": 6, "lower_leg": 7, "shoe": 8, "upper_arm": 10, "upper_leg": 11},
    "r": {"foot": 13, "hand": 14, "lower_arm": 15, "lower_leg": 16, "shoe": 17, "upper_arm": 19, "upper_leg": 20},
}  # fmt: skip

_TURN = np.linspace(0, 2 * np.pi, 25)[:-1]
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
_TURN = np.linspace(-np.pi / 2, np.pi / 2, 13)
HALF_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)  # the side that faces +x


@dataclass(frozen=True)
class Scene:
    """What stays the same in one clip besides the person."""

    background: np.ndarray  # uint8 [HEIGHT + 16, WIDTH + 16, 3], larger so that the camera can move
    seated: bool
    scale: float  # pixels per unit
    centre: float  # x of the hips, pixels
    floor: float  # y of the feet, pixels
    desk: float | None  # y of the desk's edge, pixels; None = no desk
    desk_colour: Colour
    jitter: np.ndarray  # float [frames, 2], camera offset in pixels
    light: float  # overall brightness factor


def make_scene(rng: np.random.Generator, n: int, may_hide_legs: bool) -> Scene:
    """Draw background, camera and posture of one clip of n frames."""
    base = rng.integers(60, 200) + rng.integers(-25, 26, 3)
    h, w = HEIGHT + 16, WIDTH + 16
    coarse = rng.normal(0, 14, (6, 5, 1)) + rng.normal(0, 5, (6, 5, 3))
    image = base + cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 3, (h, w, 1))
    image = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))
    for _ in range(rng.integers(0, 6)):  # furniture and pictures on the wall
        x, y = int(rng.integers(0, w)), int(rng.integers(0, h))
        corner = (x + int(rng.integers(10, 70)), y + int(rng.integers(10, 90)))
        tone = rng.integers(40, 216) + rng.integers(-35, 36, 3)
        cv2.rectangle(image, (x, y), corner, np.clip(tone, 0, 255).tolist(), -1)
    seated = bool(rng.random() < 0.65)
    scale = rng.uniform(188, 214) if seated else rng.uniform(158, 176)
    floor = HEIGHT - rng.uniform(4, 12)
    desk = None
    if may_hide_legs and rng.random() < 0.25:
        desk = floor - scale * (rng.uniform(0.35, 0.40) if seated else rng.uniform(0.48, 0.53))
    t = np.arange(n)[:, None] / 30
    shake = rng.uniform(0, 1.2) * np.sin(2 * np.pi * rng.uniform(0.2, 1.5, 2) * t + rng.uniform(0, 6, 2))
    r, g, b = (int(v) for v in rng.integers(30, 200, 3))
    return Scene(
        background=image,
        seated=seated,
        scale=scale,
        centre=WIDTH / 2 + rng.uniform(-10, 10),
        floor=floor,
        desk=desk,
        desk_colour=(r, g, b),
        jitter=shake,
        light=rng.uniform(0.8, 1.15),
    )


class Painter:
    """A picture and its label map, painted with the same shapes."""

    def __init__(self, image: np.ndarray, light: float) -> None:
        self.image = image
        self.labels = np.zeros(image.shape[:2], np.uint8)
        self.light = light

    def polygon(self, points: np.ndarray, colour: Colour, label: int) -> None:
        fixed = np.round(points * (1 << SHIFT)).astype(np.int32)
        cv2.fillConvexPoly(self.image, fixed, self._lit(colour), cv2.LINE_AA, SHIFT)
        cv2.fillConvexPoly(self.labels, fixed, label, cv2.LINE_8, SHIFT)

    def ellipse(
        self, centre: np.ndarray, axes: tuple[float, float], angle: float, colour: Colour, label: int
    ) -> None:
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        self.polygon(CIRCLE * axes @ turn + centre, colour, label)

    def limb(
        self, a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float, colour: Colour, label: int
    ) -> None:
        """A tapered capsule from a to b."""
        angle = math.atan2(b[1] - a[1], b[0] - a[0])
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        outline = np.concatenate([HALF_CIRCLE * radius_b @ turn + b, HALF_CIRCLE * -radius_a @ turn + a])
        self.polygon(outline, colour, label)

    def _lit(self, colour: Colour) -> tuple[float, float, float]:
        r, g, b = (min(255.0, c * self.light) for c in colour)
        return r, g, b


def reach(
    shoulder: np.ndarray, hand: np.ndarray, lengths: tuple[float, float], outward: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two-bone inverse kinematics in the picture plane: (elbow, hand), elbow bent outward.

    Bones shorten when the hand is near (the arm then points at the camera) and the hand stays within reach.
    """
    offset = hand - shoulder
    distance = max(float(np.hypot(*offset)), 1e-6)
    upper, lower = lengths
    shorten = float(np.clip(1.25 * distance / (upper + lower), 0.62, 1.0))
    upper, lower = upper * shorten, lower * shorten
    distance_in = float(np.clip(distance, abs(upper - lower) + 1e-3, upper + lower - 1e-3))
    hand = shoulder + offset * (distance_in / distance)
    along = (upper**2 - lower**2 + distance_in**2) / (2 * distance_in)
    bend = np.sqrt(max(upper**2 - along**2, 0.0))
    direction = offset / distance
    normal = np.array([direction[1], -direction[0]])
    if normal[0] * outward < 0:
        normal = -normal
    return shoulder + direction * along + normal * bend, hand


def draw(person: Person, scene: Scene, pose: Pose, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame t of a clip: (RGB uint8 [HEIGHT, WIDTH, 3], labels uint8 [HEIGHT, WIDTH])."""
    p = {name: float(values[t]) for name, values in pose.items()}
    jitter = scene.jitter[t]
    move = np.array([[1, 0, jitter[0] - 8], [0, 1, jitter[1] - 8]], np.float64)
    image = cv2.warpAffine(scene.background, move, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    paint = Painter(image, scene.light)
    unit = scene.scale * person.height
    thigh, shin = person.leg
    hip_height = (0.42 * thigh + shin + 0.03) if scene.seated else (thigh + shin + 0.03)
    hips = np.array([scene.centre + p["root_x"] * unit, scene.floor - hip_height * unit]) + jitter
    if scene.seated:
        _stool(paint, hips, unit, scene.desk_colour)
    lean = np.array([[np.cos(p["lean"]), -np.sin(p["lean"])], [np.sin(p["lean"]), np.cos(p["lean"])]])

    def body(x: float, y: float) -> np.ndarray:
        """Torso coordinates (origin between the hips, y up, units) to pixels."""
        return hips + lean @ np.array([x, -y]) * unit

    _legs(paint, person, scene, p, hips, unit)
    _torso(paint, person, p, body, unit)
    _head(paint, person, p, body, unit)
    _arms(paint, person, scene, p, body, unit)
    if scene.desk is not None:
        y = scene.desk + jitter[1]
        corners = np.array([[-2, y], [WIDTH + 2, y], [WIDTH + 2, HEIGHT + 2], [-2, HEIGHT + 2]])
        paint.polygon(corners, scene.desk_colour, 0)
    return paint.image, paint.labels


def _stool(paint: Painter, hips: np.ndarray, unit: float, colour: Colour) -> None:
    seat = hips + np.array([0, 0.05]) * unit
    box = np.array([[-0.13, -0.02], [0.13, -0.02], [0.13, 0.04], [-0.13, 0.04]]) * unit
    paint.polygon(seat + box, colour, 0)
    for x in (-0.1, 0.1):
        foot = seat + np.array([x * 1.15, 0.3]) * unit
        paint.limb(seat + np.array([x, 0.03]) * unit, foot, 0.012 * unit, 0.012 * unit, colour, 0)


def _legs(
    paint: Painter, person: Person, scene: Scene, p: dict[str, float], hips: np.ndarray, unit: float
) -> None:
    thigh, shin = person.leg
    g = person.girth * unit
    for side, sign in (("r", -1), ("l", 1)):
        ids = SIDE_IDS[side]
        hip = hips + np.array([sign * person.hips * 0.62, 0.0]) * unit
        # Seated thighs point at the camera: they look 0.42 as long and spread outwards.
        spread, fall = (0.045, 0.42 * thigh) if scene.seated else (0.008, thigh)
        knee = hip + np.array([sign * spread + sign * p[f"knee_{side}"], fall - p[f"lift_{side}"]]) * unit
        angle = p[f"shin_{side}"] * (1.0 if scene.seated else 0.6)
        if not scene.seated:  # a standing leg swings from the hip
            knee = knee + np.array([sign * np.sin(angle) * thigh, (np.cos(angle) - 1) * thigh]) * unit
        ankle = knee + np.array([sign * np.sin(angle), np.cos(angle)]) * shin * unit
        toe = ankle + np.array([sign * (0.03 + 0.03 * np.sin(angle)), 0.012]) * unit
        bare, cloth = person.skin, person.trousers
        shin_look = (cloth, TROUSERS) if person.legwear == "trousers" else (bare, ids["lower_leg"])
        paint.limb(knee, ankle, 0.036 * g, 0.026 * g, *shin_look)
        paint.limb(ankle, toe, 0.024 * unit, 0.02 * unit, person.shoes, ids["shoe"])
        paint.limb(hip, knee, 0.048 * g, 0.04 * g, cloth, TROUSERS)
    half, drop = person.hips * 1.15, (0.09 if scene.seated else 0.16)
    if person.legwear == "skirt":
        corners = np.array([[-half, -0.02], [half, -0.02], [half * 1.35, drop], [-half * 1.35, drop]])
        paint.polygon(hips + corners * unit, person.trousers, TROUSERS)


def _torso(paint: Painter, person: Person, p: dict[str, float], body: Place, unit: float) -> None:
    top, sh, hp = person.torso, person.shoulders, person.hips
    left, right = p["shrug_l"], p["shrug_r"]
    outline = [(-hp, -0.01), (-hp * 0.97, 0.1), (-sh * 0.95, top - 0.05 + right), (-sh * 0.8, top + right),
               (sh * 0.8, top + left), (sh * 0.95, top - 0.05 + left), (hp * 0.97, 0.1), (hp, -0.01)]  # fmt: skip
    paint.polygon(np.stack([body(x, y) for x, y in outline]), person.shirt, SHIRT)
    if person.stripes is not None:
        for y in (0.06, 0.14, 0.22):
            corners = [(-hp * 0.96, y), (hp * 0.96, y), (hp * 0.96, y + 0.03), (-hp * 0.96, y + 0.03)]
            paint.polygon(np.stack([body(x, y) for x, y in corners]), person.stripes, SHIRT)
    neckline = [(-0.035, top), (0.035, top), (0.0, top - 0.045)]
    paint.polygon(np.stack([body(x, y) for x, y in neckline]), person.skin, TORSO)


def _head(paint: Painter, person: Person, p: dict[str, float], body: Place, unit: float) -> None:
    rx, ry = person.head
    neck = body(0, person.torso - 0.005)
    roll = p["roll"] + p["lean"]
    up = np.array([np.sin(roll), -np.cos(roll)])
    side = np.array([np.cos(roll), np.sin(roll)])
    pitch, yaw = float(np.clip(p["pitch"], -1.2, 1.2)), float(np.clip(p["yaw"], -1.2, 1.2))
    head = neck + up * (ry + 0.035 - 0.014 * pitch) * unit + side * 0.008 * yaw * unit

    def at(x: float, y: float) -> np.ndarray:
        """Head coordinates in half axes (x to the right, y up) to pixels."""
        return head + (side * x * rx + up * y * ry) * unit

    if person.hairstyle == "long":
        paint.ellipse(at(0, -0.35), (rx * 1.18 * unit, ry * 1.25 * unit), roll, person.hair, HAIR)
    paint.limb(neck, head, 0.032 * unit, 0.03 * unit, person.skin, FACE)
    if person.hairstyle != "bald":
        paint.ellipse(at(-0.1 * yaw, 0.2), (rx * 1.1 * unit, ry * 1.05 * unit), roll, person.hair, HAIR)
    # The face slides over the skull as the head turns: that is how yaw and pitch show in the picture.
    face = at(0.28 * yaw, -0.12 - 0.2 * pitch)
    paint.ellipse(face, (rx * 0.92 * unit, ry * 0.86 * unit), roll, person.skin, FACE)
    dark: Colour = (25, 20, 20)
    for x in (-0.36, 0.36):
        paint.ellipse(at(x + 0.55 * yaw, 0.02 - 0.4 * pitch), (1.5, 1.3), 0, dark, FACE)
    nose = tuple(int(c * 0.8) for c in person.skin)
    paint.ellipse(at(0.68 * yaw, -0.24 - 0.44 * pitch), (0.009 * unit, 0.014 * unit), roll, nose, FACE)  # type: ignore[arg-type]
    mouth = at(0.5 * yaw, -0.54 - 0.36 * pitch)
    paint.ellipse(mouth - up * 0.006 * unit, (0.022 * unit, 0.007 * unit), roll, (170, 60, 60), LOWER_LIP)
    paint.ellipse(mouth + up * 0.003 * unit, (0.022 * unit, 0.006 * unit), roll, (150, 50, 55), UPPER_LIP)


def _arms(
    paint: Painter, person: Person, scene: Scene, p: dict[str, float], body: Place, unit: float
) -> None:
    g = person.girth * unit
    rest = (0.0, 0.27) if scene.seated else (0.03, 0.31)  # on the thigh, or beside the hip
    for side, sign in (("r", -1), ("l", 1)):
        ids = SIDE_IDS[side]
        shoulder = body(sign * person.shoulders * 0.93, person.torso - 0.03 + p[f"shrug_{side}"])
        leave = 1 - p[f"reach_{side}"]
        x = rest[0] * leave + p[f"hand_{side}_x"]
        y = rest[1] * leave + p[f"hand_{side}_y"]
        target = shoulder + np.array([sign * x, y]) * unit
        lengths = (person.arm[0] * unit, person.arm[1] * unit)
        elbow, hand = reach(shoulder, target, lengths, sign)
        upper = (person.skin, ids["upper_arm"])
        lower = (person.skin, ids["lower_arm"])
        cloth = (person.shirt, SHIRT)
        if person.sleeves == "long":
            upper = lower = cloth
        paint.limb(shoulder, elbow, 0.034 * g, 0.028 * g, *upper)
        if person.sleeves == "short":
            paint.limb(shoulder, shoulder + 0.55 * (elbow - shoulder), 0.037 * g, 0.034 * g, *cloth)
        paint.limb(elbow, hand, 0.027 * g, 0.021 * g, *lower)
        tip = hand + 0.22 * (hand - elbow)
        paint.limb(hand, tip, 0.025 * unit, 0.022 * unit, person.skin, ids["hand"])
