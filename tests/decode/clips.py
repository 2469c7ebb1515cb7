"""Small video files with known frames, made with PyAV."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 6  # grey levels between two frames: frame i is a field of grey STEP * i


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """uint8 [height, width, 3]: grey STEP * number, its top left corner red."""
    rgb = np.full((height, width, 3), STEP * number % 256, np.uint8)
    rgb[:16, :16] = (220, 20, 20)
    return rgb


def numbers(frames: np.ndarray) -> list[int]:
    """Which picture each frame [F, H, W, 3] shows, read from its centre."""
    height, width = frames.shape[1:3]
    centre = frames[:, height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
    return [round(value / STEP) for value in centre.mean((1, 2, 3))]


def write_video(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
    rotation: float | None = None,
    hflip: bool = False,
    noise: bool = False,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts: Callable[[int], int] | None = None,
    draw: Callable[..., np.ndarray] = picture,
    aspect: Fraction | None = None,
    streams: int = 1,
    pix_fmt: str = "yuv420p",
) -> Path:
    """H.264 with B-frames and a keyframe every 12 frames unless told otherwise; noise makes large packets.

    pts gives the time stamp of a frame in 1/25 s; draw(number, width, height) its picture; aspect is that of a
    pixel; further streams hold the same.
    """
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=container_options or {}) as container:
        made: list[Any] = [container.add_stream(codec, rate=25) for _ in range(streams)]
        for stream in made:
            stream.width, stream.height = size
            stream.pix_fmt = pix_fmt
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            if codec == "mpeg4":
                stream.bit_rate = 8_000_000  # the default is too coarse to tell frames apart
            stream.options = codec_options or {"bf": "2", "g": "12", "threads": "1"}
            if rotation is not None:
                stream.set_display_rotation(rotation, hflip=hflip)
        for number in range(frames):
            rgb = draw(number, *size)
            if noise:
                rgb[20:] = random.integers(0, 256, rgb[20:].shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            if pts:
                frame.pts = pts(number)
            for stream in made:
                container.mux(stream.encode(frame))
        for stream in made:
            container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A second of silence."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le" if path.suffix == ".wav" else "aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), "s16", "mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """(offset in the file, bytes) of every video packet."""
    with av.open(str(path)) as container:
        return [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]


def remux(source: Path, target: Path, skip: int = 0, twice: int = 0) -> Path:
    """The packets of source from the skip-th on in another container; packet number `twice` gets its follower's
    time stamp."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for index, packet in enumerate(read.demux(video=0)):
            if packet.size and index >= skip:
                packet.stream = stream
                if twice and index == twice:
                    packet.pts += packet.duration
                write.mux(packet)
    return target


def repeat(source: Path, target: Path, times: int) -> Path:
    """A recording that shows source so often in a row, made of its packets: as long as one likes, and quickly."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream: Any = write.add_stream_from_template(read.streams.video[0])
        packets: list[Any] = [packet for packet in read.demux(video=0) if packet.size]
        stamps = sorted(packet.pts for packet in packets)
        length = stamps[-1] + stamps[1] - 2 * stamps[0]
        for turn in range(times):
            for packet in packets:
                packet.stream = stream
                packet.pts += length if turn else 0
                packet.dts += length if turn else 0
                write.mux(packet)
    return target
