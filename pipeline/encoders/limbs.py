"""Part labels from landmarks: every pixel of the person goes to the nearest limb of the pose.

A limb is a capsule, a segment with a radius, so that a thin forearm beside a wide torso competes by the distance
to its surface and not to its bone. Landmark numbers are MediaPipe's (33 of the pose, 21 of a hand), part ids
those of Sapiens; left and right are the person's own.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

HEAD, TORSO = 2, 21
FOUND = 128  # of 255: the person's probability from which a pixel is the person
# Visibility from which a joint of the picture bends a limb: hidden wrists are guessed, often across the torso. A
# joint outside the picture is never visible, and still says where the limb leaves it.
VISIBLE = 0.3
SUBPIXEL = 4  # bits of a coordinate behind the point, for OpenCV's lines

# Radii are in body units: the length of the torso, shoulder to hip, about 0.5 m of an adult.
HEAD_RADIUS, HEAD_REACH, NECK_RADIUS, SPINE_RADIUS, FINGER_RADIUS = 0.16, 0.08, 0.09, 0.20, 0.035
TORSO_PER_SHOULDERS = 1.3  # torso length to shoulder width: the unit of a person seen from above or leaning
HIPS = 1.4  # hip joints lie that much inside the outline

# (left, right) part, landmarks of the left limb (those of the right are one higher), radius. Later ones lie in
# front: legs before the torso of someone seated, arms before all.
LEGS = (
    ((11, 20), 23, 25, 0.13),  # hip, knee
    ((7, 16), 25, 27, 0.09),  # knee, ankle
    ((4, 13), 27, 29, 0.07),  # ankle, heel
    ((4, 13), 29, 31, 0.06),  # heel, toes
)
ARMS = (
    ((10, 19), 11, 13, 0.10),  # shoulder, elbow
    ((6, 15), 13, 15, 0.075),  # elbow, wrist
)
HANDS = (
    ((5, 14), 15, 19, 0.05),  # wrist, index finger
    ((5, 14), 15, 17, 0.05),  # wrist, little finger
)
PALM = [0, 5, 9, 13, 17]  # of the 21 landmarks of a hand: wrist and knuckles
FINGERS = [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 20]]


@dataclass(frozen=True)
class Landmarks:
    """What a landmark model found in F frames; x and y as shares of the width and height.

    Attributes:
        pose: float32 [F, 33, 4], x, y, z, visibility; NaN where nobody was found.
        left_hand, right_hand: float32 [F, 21, 4]; NaN where not found.
        person: uint8 [F, h, w], 255 x the probability of the person, at any resolution of the frame's aspect.
    """

    pose: np.ndarray
    left_hand: np.ndarray
    right_hand: np.ndarray
    person: np.ndarray


def limb_labels(body: Landmarks, frame: int) -> np.ndarray:
    """Part labels uint8 [h, w] of one frame, at the resolution of its person mask; zeros without a pose."""
    person = body.person[frame] >= FOUND
    painted = np.zeros(person.shape, np.uint8)
    if np.isfinite(body.pose[frame]).all():
        hands = (body.left_hand[frame], body.right_hand[frame])
        _paint(painted, body.pose[frame], hands)
    return np.where(person, _spread(painted), 0).astype(np.uint8)


def _spread(painted: np.ndarray) -> np.ndarray:
    """Every pixel takes the part of the nearest painted pixel."""
    there = painted > 0
    if not there.any():
        return painted
    _, nearest = cv2.distanceTransformWithLabels(
        (~there).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    part_of = np.zeros(nearest.max() + 1, np.uint8)
    part_of[nearest[there]] = painted[there]
    return part_of[nearest]


def _paint(canvas: np.ndarray, pose: np.ndarray, hands: tuple[np.ndarray, np.ndarray]) -> None:
    """Draw the capsules, far ones first, so that near ones lie over them."""
    size = np.array(canvas.shape[::-1])
    joints = pose[:, :2] * size
    seen = (pose[:, 3] >= VISIBLE) | (joints < 0).any(1) | (joints >= size).any(1)
    shoulders, hips = joints[[11, 12]], joints[[23, 24]]
    neck, pelvis = shoulders.mean(0), hips.mean(0)
    width = float(np.linalg.norm(shoulders[0] - shoulders[1]))
    unit = max(float(np.linalg.norm(neck - pelvis)), TORSO_PER_SHOULDERS * width)

    _fill(canvas, np.array([*shoulders, *(pelvis + HIPS * (hips - pelvis))[::-1]]), TORSO)
    _capsule(canvas, neck, pelvis, SPINE_RADIUS * unit, TORSO)
    _limbs(canvas, joints, seen, LEGS, unit)

    ears, eyes, mouth = joints[[7, 8]].mean(0), joints[[2, 5]].mean(0), joints[[9, 10]].mean(0)
    up = (eyes - mouth) / max(np.linalg.norm(eyes - mouth), 1e-6) * HEAD_REACH * unit
    _capsule(canvas, ears - up, ears + up, HEAD_RADIUS * unit, HEAD)
    _capsule(canvas, ears, (ears + neck) / 2, NECK_RADIUS * unit, HEAD)

    _limbs(canvas, joints, seen, ARMS, unit)
    for side, hand in enumerate(hands):
        if np.isfinite(hand).all():
            points, part = hand[:, :2] * size, HANDS[0][0][side]
            _fill(canvas, points[PALM], part)
            for finger in FINGERS:
                for a, b in pairwise(finger):
                    _capsule(canvas, points[a], points[b], FINGER_RADIUS * unit, part)
        else:
            _limbs(canvas, joints, seen, HANDS, unit, sides=(side,))


def _limbs(
    canvas: np.ndarray,
    joints: np.ndarray,
    seen: np.ndarray,
    limbs: tuple[tuple[tuple[int, int], int, int, float], ...],
    unit: float,
    sides: tuple[int, ...] = (0, 1),
) -> None:
    for parts, first, last, radius in limbs:
        for side in sides:
            a, b = first + side, last + side
            if seen[a] and seen[b]:
                _capsule(canvas, joints[a], joints[b], radius * unit, parts[side])


def _capsule(canvas: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float, part: int) -> None:
    thickness = max(round(2 * radius), 1)
    cv2.line(canvas, _fixed(canvas, a), _fixed(canvas, b), part, thickness, cv2.LINE_8, SUBPIXEL)


def _fill(canvas: np.ndarray, corners: np.ndarray, part: int) -> None:
    hull = cv2.convexHull(np.array([_fixed(canvas, corner) for corner in corners], np.int32))
    cv2.fillConvexPoly(canvas, hull, part, cv2.LINE_8, SUBPIXEL)


def _fixed(canvas: np.ndarray, point: np.ndarray) -> tuple[int, int]:
    """A point in OpenCV's fixed-point pixels, at most two frames outside the frame."""
    size = np.array(canvas.shape[::-1])
    x, y = np.clip(point - 0.5, -2 * size, 3 * size) * (1 << SUBPIXEL)
    return round(float(x)), round(float(y))
