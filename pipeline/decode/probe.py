"""What a video file holds, known without decoding it: one pass over its packets and one decoded frame.

The pass costs 2 to 20 ms on a clip of a few seconds. It counts the packets that should become frames, so a
decoder that delivers another number is found out, notes their time stamps, so that intervals decode by seeking
(``index``), and sees files that break off, except transport streams cut between two packets. It cannot see
damage inside a packet: that shows only while decoding.
"""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

from pipeline.decode.index import FrameIndex, Packet, index_frames
from pipeline.errors import ClipError

MIN_SIDE = 16  # pixels; no encoder makes sense of less
ALIVE = 256  # packets read between two signs of life: a long file may take minutes to pass over

# Containers of video and of sound (so that a sound file is told "no video stream"). The list keeps out
# FFmpeg's playlist and script formats, whose files name other files and addresses to open, and its text
# formats, which turn a note named clip.mp4 into ANSI art.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,nut,mxf,"
    "dv,rm,wtv,gif,yuv4mpegpipe,wav,mp3,aac,flac"
)


@dataclass(frozen=True)
class Probe:
    """Facts of one video stream. Width and height are of the upright picture.

    Attributes:
        container: FFmpeg's name of the format, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``.
        stream: index of the stream among all streams of the file.
        only_video: the file holds no other video stream, cover pictures included.
        matrix: the upper left 2x2 of the display matrix, row by row and signs only; (1, 0, 0, 1) is upright.
        packets: packets that should become frames (those an edit list discards are left out).
        header_frames: the count the container states, or None.
        broken: why the file ends before its container says it should, or None.
        readable: at least one frame decodes.
        index: where the frames lie, or None where an interval is decoded from the file's beginning. It stays
            in the worker.
    """

    container: str
    stream: int
    only_video: bool
    width: int
    height: int
    matrix: tuple[int, int, int, int]
    fps_num: int | None
    fps_den: int | None
    packets: int
    header_frames: int | None
    broken: str | None
    readable: bool
    warnings: tuple[str, ...]
    index: FrameIndex | None = None

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        """What `asdict` gave, after a trip through JSON."""
        return cls(**{**facts, "matrix": tuple(facts["matrix"]), "warnings": tuple(facts["warnings"])})


def check_file(path: Path) -> os.stat_result:
    """Stat of a regular, non-empty, readable file; otherwise ClipError with one of the four file codes."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ClipError("E_MISSING_FILE", f"{path} does not exist; check the dataset's root folder") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ClipError("E_UNREADABLE", f"{path} cannot be examined: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ClipError("E_NOT_A_FILE", f"{path} is a folder or device, not a video file")
    if status.st_size == 0:
        raise ClipError("E_EMPTY_FILE", f"{path} has 0 bytes; copy or download it again")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ClipError(
            "E_UNREADABLE", f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from None
    return status


def open_container(path: Path) -> Any:
    """The file as an av container; ClipError E_NOT_A_VIDEO when FFmpeg finds none of CONTAINERS in it."""
    import av

    av.logging.set_level(av.logging.ERROR)  # else errors carry no reason and demux() sees no log
    av.logging.set_skip_repeated(False)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        return av.open(str(path.absolute()), options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise ClipError(
            "E_NOT_A_VIDEO", f"{path} is not a readable video file ({reason(error)}); copy it again"
        ) from None


def decode_in_this_thread(stream: Any) -> None:
    """Let a stream's decoder start no threads. Call it before the first packet.

    The count is for libdav1d: it has threads of its own whatever the type, and 1 AV1 file in 75 hung in them.
    """
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1


def demux(container: Any, stream: Any) -> Iterator[tuple[Any, str | None]]:
    """(packet, None) for every packet of the stream, and (None, why) as the end of a broken file.

    The empty packet that flushes the decoder comes last and is missing from a broken file. An incomplete
    packet (the file is cut short, a transport stream has a gap) is not handed out: it would give a half-grey
    frame.
    """
    import av

    with av.logging.Capture() as logs:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, ValueError) as error:
                yield None, f"reading stops: {reason(error)}"
                return
            if packet is None:
                return
            # Matroska goes on behind a gap, or ends early, and says so only in its log.
            said = [text.strip() for _, name, text in logs if name == container.format.name]
            if said:
                yield None, f"the container is damaged: {said[0]}"
                return
            if packet.size and packet.is_corrupt:
                yield None, "a packet is incomplete"
                return
            yield packet, None


def probe(path: Path, stream_index: int | None = None, alive: Callable[[], None] = lambda: None) -> Probe:
    """Facts of the stream at stream_index, or of the first video stream that is no cover picture.

    Calls alive() every ALIVE packets. Raises ClipError: E_NOT_A_VIDEO, E_NO_VIDEO_STREAM.
    """
    with open_container(path) as container:
        stream, others = _pick_stream(container, path, stream_index)
        decode_in_this_thread(stream)
        frame, packets, broken = _read_packets(container, stream, alive)
        return _facts(container, stream, others, frame=frame, packets=packets, broken=broken)


def _pick_stream(container: Any, path: Path, index: int | None) -> tuple[Any, int]:
    """The wanted stream and the number of other moving pictures."""
    from av.stream import Disposition

    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise ClipError("E_NO_VIDEO_STREAM", f"{path} holds no video stream")
    if index is None:
        return moving[0], len(moving) - 1
    for stream in moving:
        if stream.index == index:
            return stream, 0
    found = ", ".join(str(stream.index) for stream in moving)
    raise ClipError("E_NO_VIDEO_STREAM", f"{path} has no video stream {index} (video streams: {found})")


def _read_packets(
    container: Any, stream: Any, alive: Callable[[], None]
) -> tuple[Any, list[Packet], str | None]:
    """First frame or None; every packet of the stream in file order; why the file is broken."""
    import av

    frame = None
    packets: list[Packet] = []
    for index, (packet, broken) in enumerate(demux(container, stream), start=1):
        if index % ALIVE == 0:
            alive()
        if broken:
            return frame, packets, broken
        if frame is None:
            try:
                frame = next(iter(packet.decode()), None)
            except (av.FFmpegError, ValueError):  # a damaged packet; a later one may do
                frame = None
        if packet.size:
            packets.append(
                Packet(packet.pts, packet.dts, packet.is_keyframe, packet.size, not packet.is_discard)
            )
    return frame, packets, None


def _facts(
    container: Any,
    stream: Any,
    others: int,
    *,
    frame: Any,
    packets: list[Packet],
    broken: str | None,
) -> Probe:
    shown = [packet for packet in packets if packet.shown]
    raw_matrix, matrix = _display_matrix(frame)
    source = frame or stream.codec_context
    size = (source.width, source.height) if matrix[0] else (source.height, source.width)
    rate = stream.average_rate or stream.guessed_rate
    header = stream.frames or None
    warnings = list(_time_warnings(shown, stream.time_base, rate))
    if header and header != len(shown):
        warnings.append(f"W_HEADER_COUNT: the header states {header} frames, the file holds {len(shown)}")
    if raw_matrix != [1, 0, 0, 1]:
        done = "turned upright" if matrix != (1, 0, 0, 1) else "left as it is: no multiple of 90 degrees"
        warnings.append(f"W_ROTATION: the display matrix is {raw_matrix}, {done}")
    if others:
        warnings.append(f"W_MULTI_VIDEO_STREAM: stream {stream.index} is used, {others} more in the file")
    return Probe(
        container=container.format.name,
        stream=stream.index,
        only_video=len(container.streams.video) == 1,
        width=size[0],
        height=size[1],
        matrix=matrix,
        fps_num=rate.numerator if rate else None,
        fps_den=rate.denominator if rate else None,
        packets=len(shown),
        header_frames=header,
        broken=broken,
        readable=frame is not None,
        warnings=tuple(warnings),
        index=None if broken else _index(container, stream, packets),
    )


def _index(container: Any, stream: Any, packets: list[Packet]) -> FrameIndex | None:
    context = stream.codec_context
    codec = context.codec.canonical_name  # whichever decoder serves it
    return index_frames(packets, container.format.name, codec, bool(context.has_b_frames))


def _display_matrix(frame: Any) -> tuple[list[float], tuple[int, int, int, int]]:
    """The 2x2 of the frame's display matrix as written, and as signs (odd angles count as upright)."""
    for data in frame.side_data if frame else ():
        if data.type.name == "DISPLAYMATRIX":
            numbers = memoryview(bytes(data)).cast("i")
            written = [round(numbers[i] / 65536, 3) for i in (0, 1, 3, 4)]
            a, b, c, d = (round(value) if abs(value) in (0, 1) else 2 for value in written)
            axis_aligned = (a and d and not b and not c) or (b and c and not a and not d)
            return written, (a, b, c, d) if axis_aligned and 2 not in (a, b, c, d) else (1, 0, 0, 1)
    return [1, 0, 0, 1], (1, 0, 0, 1)


def _time_warnings(packets: list[Packet], base: Any, rate: Any) -> Iterator[str]:
    """Warnings of the time stamps; streams without them (old AVI) give none."""
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    if len(times) < 2 or not base:
        return
    steps = [b - a for a, b in pairwise(times)]
    decoding = [packet.dts for packet in packets if packet.dts is not None]
    if 0 in steps or any(b < a for a, b in pairwise(decoding)):
        yield "W_PTS_NON_MONOTONIC: time stamps repeat or go back"
    if max(steps) > 1.5 * median(steps):
        low, high = float(min(steps) * base), float(max(steps) * base)
        yield f"W_VFR: frames last between {low:.3f} and {high:.3f} s"
    if rate and times[0] * base > 1 / rate:
        yield f"W_START_OFFSET: the first time stamp is {float(times[0] * base):.3f} s"


def reason(error: Exception) -> str:
    """FFmpeg's message, with the telling line of its log where there is one, without numbers and paths."""
    text = str(getattr(error, "strerror", None) or error).split("; last error")[0].split("'")[0].rstrip(": ")
    log = getattr(error, "log", None)
    return f"{text}: {log[2].strip()}" if log else text
