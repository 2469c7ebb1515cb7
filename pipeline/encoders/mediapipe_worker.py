"""The process that runs MediaPipe, under a Python of its own: no import of this package, nothing beside mediapipe.

On stdout it says {"version": ...} in one line. Then it answers every frame it is sent: five uint32, little-endian
(1 for the first frame of a clip, else 0; height, width; height and width of the person mask), then the RGB bytes.
The answer is float32 [75, 4] (33 landmarks of the pose, 21 of the left hand, 21 of the right; NaN where not found)
and uint8 [mask height, mask width], 255 x the probability of the person. It ends when stdin does.
"""

import json
import os
import struct
import sys
from typing import Any

import cv2
import numpy as np


def points(found: Any, count: int) -> np.ndarray:
    """A landmark list of mediapipe, or None, as float32 [count, 4]: x, y, z, visibility."""
    if found is None:
        return np.full((count, 4), np.nan, np.float32)
    return np.array([[p.x, p.y, p.z, p.visibility] for p in found.landmark], np.float32)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what mediapipe prints must not get between the answers
    import mediapipe

    holistic = mediapipe.solutions.holistic.Holistic(model_complexity=1, enable_segmentation=True)
    answers.write(json.dumps({"version": mediapipe.__version__}).encode() + b"\n")
    answers.flush()
    while len(head := sys.stdin.buffer.read(20)) == 20:
        first, height, width, *mask_size = struct.unpack("<5I", head)
        frame = np.frombuffer(sys.stdin.buffer.read(height * width * 3), np.uint8).reshape(height, width, 3)
        if first:
            holistic.reset()
        found = holistic.process(frame)
        pose, left, right = found.pose_landmarks, found.left_hand_landmarks, found.right_hand_landmarks
        answers.write(np.concatenate([points(pose, 33), points(left, 21), points(right, 21)]).tobytes())
        mask = np.zeros(mask_size, np.float32)
        if found.segmentation_mask is not None:
            mask = cv2.resize(found.segmentation_mask, mask_size[::-1], interpolation=cv2.INTER_AREA)
        answers.write((255 * mask.clip(0, 1)).round().astype(np.uint8).tobytes())
        answers.flush()


if __name__ == "__main__":
    main()
