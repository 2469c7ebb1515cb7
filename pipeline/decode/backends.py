"""The two decoders behind one signature: ``frames(path, probe, start, end, only)``.

Each is a generator of upright uint8 RGB arrays [H, W, 3], frames start to end - 1 in presentation order (end
None: all); with `only`, those of them whose number, counted from start, is in it. It yields None for a frame it
skips, as a sign of life, AGAIN when the frames so far were not the wanted ones and come anew, and returns an
Outcome. They run only inside a worker process: decord may hang or crash, and must never share a process with torch.

Frames of the two are equal for 8-bit 4:2:0 of even size. For 10 bits or odd sizes their FFmpeg versions
interpolate colour differently (mean difference up to 3 levels on test patterns, at colour edges).

What is found of damage, measured by flipping 1 to 50 bits in one packet of a file, 100 times for five clips:
of 400 H.264 and MPEG-4 part 2 files 327 were reported (none with a damaged frame among those kept), 27
changed visibly and were not, the others look as before. VP9 and AV1 carry nothing to check against: of 100
VP9 files 14 were reported and 86 not. Only the SHA-256 of an intact copy finds those.
"""

import ctypes
import math
import re
from collections.abc import Callable, Container, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode.index import FrameIndex
from pipeline.decode.probe import Probe, decode_in_this_thread, demux, open_container, reason

UPRIGHT = (1, 0, 0, 1)
# A share of the frames. Without this limit decord fills gaps with copies of the nearest frame and says nothing.
ANY_FAULT = 1e-9
# H.264 and HEVC hold back at most 16 frames, so a damaged one shows within that many later frames.
REORDER = 16
AGAIN = "again"
SKIPPED = 32  # frames between two signs of life

# What decord's FFmpeg says at level INFO about intact files. Anything else on its stderr means damage or a
# stream it does not understand, and PyAV decides: a line missing here costs time, never frames.
BENIGN = re.compile(r"swscaler|deprecated pixel format|Failed to parse extradata|packed B-frames|^\s*$")


class RefusedError(Exception):
    """This decoder gives no trustworthy frames for this file; the next one may."""


class _AstrayError(Exception):
    """After a seek other frames come than the time stamps announce."""


@dataclass(frozen=True)
class Outcome:
    """How the decoding ended.

    Attributes:
        delivered: number of the frame after the last one given; decoding stops soon after end.
        good: number of the first frame that damage may have touched; equals delivered without damage.
        decoded: frames that were decoded to give the wanted ones.
        damage: what is wrong with the file, or None.
    """

    delivered: int
    good: int
    decoded: int
    damage: str | None = None


Steps = Generator[np.ndarray | str | None, None, Outcome]
Only = Container[int] | None
Backend = Callable[[Path, Probe, int, int | None, Only], Steps]


def decord_frames(path: Path, probe: Probe, start: int, end: int | None, only: Only = None) -> Steps:
    """Frames through decord 0.6 (FFmpeg 4.1), one thread, in file order. Raises RefusedError.

    It refuses before decoding whatever decord is known to get wrong: a frame count that differs from the
    packets (its endless loop, decord issue 373), a choice among streams (it has none) and rotations outside
    MP4/MOV (not applied). It cannot tell that frames are damaged: the worker reads its stderr for that (see
    ``complaint``).

    Intervals that an index finds are PyAV's. Decord passes over a whole file to open it, and its
    seek_accurate gives wrong frames in 5 of 13 kinds of files (benchmarks/seek.py) without a way to tell. In
    files without an index the frames before start are decoded and dropped.
    """
    if probe.index and (start or end is not None):
        raise RefusedError("intervals are decoded by seeking, and decord lands on wrong frames")
    import decord

    decord.logging.set_level(decord.logging.INFO)  # "concealing ... errors" comes at this level
    if probe.broken:
        raise RefusedError(probe.broken)
    if not probe.only_video:
        raise RefusedError("decord cannot choose among several video streams")
    a, b, c, d = probe.matrix
    if probe.matrix != UPRIGHT and ("mov" not in probe.container or a * d - b * c < 0):
        raise RefusedError("decord does not apply this display matrix")
    try:
        reader = decord.VideoReader(str(path.absolute()), num_threads=1, fault_tol=ANY_FAULT)
    except (decord.DECORDError, RuntimeError, AssertionError) as error:
        raise RefusedError(_last_line(error)) from None
    count = len(reader)
    if count != probe.packets:
        raise RefusedError(f"decord counts {count} frames, the file holds {probe.packets}")
    if start >= count or (end is not None and end > count):
        raise RefusedError(f"the interval leaves the {count} frames of the file")
    done = 0
    shape = (probe.height, probe.width, 3)
    last = count if end is None else end
    # What skip_frames passes is not converted (40 % of the time, on MA-52), but decord loses count where two frames
    # have one time stamp. The index says that none have; to be sure, the last frame is never skipped, and decord has
    # none to give there once it lost count.
    skips = only is not None and probe.index is not None
    keys = frozenset(reader.get_key_indices()) if skips else frozenset()

    def wanted(number: int) -> bool:
        return number >= start and (only is None or number - start in only)

    def skippable(number: int) -> bool:
        return skips and not wanted(number) and number + 1 not in keys  # to pass a key frame, it seeks

    try:
        while done < last:
            ahead = done
            while ahead < min(done + SKIPPED, last - 1) and skippable(ahead):
                ahead += 1
            if ahead > done:
                reader.skip_frames(ahead - done)
                done = ahead
                yield None
                continue
            picture = reader.next()
            done += 1
            if not wanted(done - 1):
                yield None
                continue
            frame = _pixels(picture)
            if frame.shape != shape:
                raise RefusedError(f"decord gives frames of shape {frame.shape}, the stream has {shape}")
            yield frame
    except StopIteration:
        raise RefusedError(f"decord gave {done} of {count} frames") from None
    except (decord.DECORDError, decord.DECORDLimitReachedError) as error:
        raise RefusedError(f"decord gave {done} of {count} frames: {_last_line(error)}") from None
    return Outcome(done, done, done)


def pyav_frames(path: Path, probe: Probe, start: int, end: int | None, only: Only = None) -> Steps:
    """Frames through PyAV, one thread (frame threads report errors late), with every frame's damage flag.

    With an index decoding begins at the last key frame before start. Should the frames that come out not be
    the ones their time stamps announce, it yields AGAIN and begins further in front.

    At the first damage (a packet the decoder rejects, a frame flagged corrupt, a file that breaks off)
    decoding ends. Frames that came out before the damaged packet went in are good. Later ones may refer to
    it, and may come out before the flagged frame does, so `good` can be less than what was yielded. Frames
    of another size than the first are scaled to it.
    """
    for entry in probe.index.entries(start) if probe.index else ():
        try:
            return (yield from _pyav_from(entry, path, probe, start, end, only))
        except _AstrayError:
            yield AGAIN
    return (yield from _pyav_from(0, path, probe, start, end, only))


def _pyav_from(entry: int, path: Path, probe: Probe, start: int, end: int | None, only: Only) -> Steps:
    """Decode from the key frame of number `entry` on, from the file's beginning when that is 0."""
    import av
    from av.codec.context import Flags
    from av.video.reformatter import VideoReformatter

    to_rgb = VideoReformatter()
    quarter_turn = probe.matrix[0] == 0
    width, height = (probe.height, probe.width) if quarter_turn else (probe.width, probe.height)
    sought = probe.index if entry else None
    number = entry  # of the next frame
    decoded = 0
    sent: list[int] = []  # the number of the next frame when packet k went in
    with open_container(path) as container:
        stream = container.streams[probe.stream]
        decode_in_this_thread(stream)
        stream.codec_context.flags |= Flags.copy_opaque  # every frame tells which packet it came from
        if sought:
            try:
                container.seek(int(sought.pts[entry]), stream=stream)
            except av.FFmpegError:
                raise _AstrayError from None
        for packet, broken in demux(container, stream):
            if broken:
                return Outcome(number, number, decoded, broken)
            if sought and not sent:  # containers may land on another key frame, or between two
                if packet.size and not packet.is_keyframe:
                    continue
                landed = sought.number(packet.pts)
                if landed is None or landed > start:
                    raise _AstrayError
                entry = number = landed
            packet.opaque = len(sent)
            sent.append(number)
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                if sought and _is_leading(sought, packet.pts, entry):
                    continue
                return Outcome(number, number, decoded, f"a packet is rejected ({reason(error)})")
            for frame in frames:
                decoded += 1
                if sought and _is_leading(sought, frame.pts, entry):
                    continue
                if sought and sought.number(frame.pts) != number:
                    raise _AstrayError
                if frame.is_corrupt:
                    source = frame.opaque if isinstance(frame.opaque, int) else len(sent) - 1
                    return Outcome(number, sent[source], decoded, "a frame is flagged corrupt")
                number += 1
                inside = start < number and (end is None or number <= end)
                if inside and (only is None or number - 1 - start in only):
                    rgb = to_rgb.reformat(frame, width, height, "rgb24").planes[0]
                    lines = np.frombuffer(memoryview(rgb), np.uint8).reshape(height, -1)[:, : 3 * width]
                    yield upright(lines.reshape(height, width, 3), probe.matrix)
                else:
                    yield None
            if end is not None and number >= end + REORDER:
                break
    return Outcome(number, number, decoded)


def _is_leading(index: FrameIndex, pts: int | None, entry: int) -> bool:
    """Shown before the key frame that decoding began at: it may rest on frames that were never decoded."""
    number = index.number(pts)
    return number is not None and number < entry


def shown_frames(path: Path, probe: Probe) -> Iterator[tuple[int | None, bool]]:
    """(time stamp, is a key frame) of every frame through PyAV, converting none. Ends at the first damage."""
    import av

    with open_container(path) as container:
        stream = container.streams[probe.stream]
        decode_in_this_thread(stream)
        for packet, broken in demux(container, stream):
            if broken:
                return
            try:
                for frame in packet.decode():
                    yield frame.pts, frame.key_frame
            except (av.FFmpegError, ValueError):
                return


BACKENDS: dict[str, Backend] = {"decord": decord_frames, "pyav": pyav_frames}


def backend_version(name: str) -> str:
    """Name and version as receipts record them, e.g. ``decord 0.6.0``."""
    from importlib.metadata import version

    return f"{name} {version({'decord': 'decord', 'pyav': 'av'}[name])}"


def upright(rgb: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The picture [H, W, 3] as shown; a display matrix (a, b, c, d) sends (x, y) to (ax + cy, bx + dy)."""
    a, b, c, d = matrix
    if a == 0:
        rgb = rgb.transpose(1, 0, 2)
    if a + c < 0:
        rgb = rgb[:, ::-1]
    if b + d < 0:
        rgb = rgb[::-1]
    return rgb


def complaint(stderr: str) -> str | None:
    """The first line of a decoder's stderr that speaks of damage, without its address, or None."""
    for line in stderr.splitlines():
        if not BENIGN.search(line):
            return re.sub(r"^\[(\w+)[^\]]*\]", r"\1:", line).strip()[:200]
    return None


def _pixels(picture: Any) -> np.ndarray:
    """The memory of a decord picture as an array [H, W, 3] that keeps it alive; its asnumpy copies."""
    memory = (ctypes.c_uint8 * math.prod(picture.shape)).from_address(picture.handle.contents.data)
    memory.picture = picture
    return np.frombuffer(memory, np.uint8).reshape(picture.shape)


def _last_line(error: Any) -> str:
    """The telling end of a decord error, which nests C++ source positions."""
    return re.sub(r"^.*(Check failed:|\.cc:\d+:)", "", str(error).strip(), flags=re.DOTALL).strip()[:200]
