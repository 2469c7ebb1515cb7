"""Recordings of every kind that seeking has to be exact in, and those it must leave alone."""

from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.decode.clips import write_video

FRAMES = 70
GOP = 12
B_FRAMES = {"bf": "2", "g": str(GOP), "threads": "1"}
OPEN = {"x264-params": f"open-gop=1:keyint={GOP}:bframes=3:b-adapt=0:scenecut=0:threads=1"}
HEVC = {"x265-params": f"log-level=none:open-gop=1:keyint={GOP}:bframes=3:pools=1"}

# name: (arguments of write_video, whether its index is of use)
FILES: dict[str, tuple[dict[str, Any], bool]] = {
    "b.mp4": ({}, True),
    "b.mkv": ({}, True),
    "open.mp4": ({"codec_options": OPEN}, True),
    "open.mkv": ({"codec_options": OPEN}, True),
    "hevc.mp4": ({"codec": "libx265", "codec_options": HEVC}, True),
    "vfr.mp4": ({"pts": lambda i: i + i * i // 7}, True),
    "vfr.mkv": ({"pts": lambda i: i + 40 * (i // 9)}, True),
    "mpeg4.mp4": ({"codec": "mpeg4", "codec_options": B_FRAMES}, True),
    "mpeg4.mkv": ({"codec": "mpeg4", "codec_options": B_FRAMES}, True),
    "mpeg4.avi": ({"codec": "mpeg4", "codec_options": {"g": str(GOP)}}, True),
    "b.avi": (
        {},
        False,
    ),  # AVI has no time stamps of presentation: where they turn out wrong, it starts in front
    "vp9.webm": ({"codec": "libvpx-vp9", "codec_options": {"g": str(GOP), "cpu-used": "8"}}, True),
    "stream.ts": ({}, False),
}


def moving(number: int, width: int, height: int) -> np.ndarray:
    """A texture that slides over a dark field, so that frames refer to each other: uint8 [height, width, 3]."""
    rgb = np.full((height, width, 3), 40, np.uint8)
    texture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    left, top = number * 3 % (width - 24), number * 2 % (height - 24)
    rgb[top : top + 24, left : left + 24] = texture
    rgb[:8, :8] = number * 3 % 256
    return rgb


def write_recordings(folder: Path) -> dict[str, Path]:
    """Name -> file of FRAMES frames, for the encoders this PyAV has."""
    found = {}
    for name, (options, _) in FILES.items():
        try:
            found[name] = write_video(folder / name, FRAMES, draw=moving, **options)
        except av.codec.codec.UnknownCodecError:
            continue
    return found
