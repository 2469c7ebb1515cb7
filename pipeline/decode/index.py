"""Where the frames of a recording lie, so that an interval decodes by seeking.

The number of a frame is its position in presentation order, which is the order of its stream's time stamps where
these can be trusted: then the packets alone tell it. A long recording of another kind is decoded once from end to
end to number its frames.

A decoder that begins at a key frame tells by the time stamps which frames it gives: leading pictures of an
open group (shown before the key frame, but resting on frames before it) are dropped, and from the key frame on
every number must follow the one before. Where one does not, the decoder begins one key frame earlier, and at
last at the first frame of the file, where no index is needed.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.store.atomic import write_bytes

if TYPE_CHECKING:
    from pipeline.decode.probe import Probe

KEPT = 2_000  # packets; a file with fewer is passed over in 20 ms, so its index is not kept on disk
# Elsewhere packets and frames may differ in number (hidden frames, fields, N-VOPs).
CONTAINERS = frozenset(("mov", "matroska", "avi"))  # the first of FFmpeg's names
CODECS = frozenset(("h264", "hevc", "mpeg4", "mpeg2video", "vp9", "av1", "mjpeg"))
NO_FRAME = 16  # bytes; an MPEG-4 packet below this may be an N-VOP, which shows the last frame again


class Packet(NamedTuple):
    """One packet of a video stream; `shown` is False where an edit list discards it."""

    pts: int | None
    dts: int | None
    key: bool
    size: int
    shown: bool


@dataclass(frozen=True)
class FrameIndex:
    """Frames of one stream, by number.

    Attributes:
        pts: int64 [frames]: the time stamp of every frame, in the stream's time base; no two alike.
        keys: int64 [keys], increasing: numbers of the key frames, 0 first.
    """

    pts: np.ndarray
    keys: np.ndarray

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {pts: number for number, pts in enumerate(self.pts.tolist())}

    def number(self, pts: int | None) -> int | None:
        """The frame with this time stamp, or None."""
        return None if pts is None else self._numbers.get(pts)

    def entries(self, start: int) -> tuple[int, ...]:
        """Key frames to begin at for frame `start`, the best first; none when only the file's beginning is left."""
        before = self.keys[self.keys <= start]
        return tuple(int(key) for key in before[:-3:-1] if key)


def index_frames(packets: Sequence[Packet], container: str, codec: str, reordered: bool) -> FrameIndex | None:
    """The index of an intact stream, or None where its numbers would not be sure; packets in file order.

    reordered: packets do not come in the order they are shown. AVI then has the stamps of decoding only.
    """
    times = [packet.pts for packet in packets if packet.pts is not None and packet.shown]
    if (
        container.split(",", maxsplit=1)[0] not in CONTAINERS
        or codec not in CODECS
        or len(times) < len(packets)
    ):
        return None
    if container == "avi" and reordered:
        return None
    if codec == "mpeg4" and min(packet.size for packet in packets) < NO_FRAME:
        return None
    pts = np.array(sorted(times), np.int64)
    keys = np.array([packet.key for packet in packets])
    if len(pts) == 0 or not keys[0] or times[0] != pts[0] or (np.diff(pts) == 0).any():
        return None
    return FrameIndex(pts, np.sort(np.searchsorted(pts, np.array(times, np.int64)[keys])))


def index_by_decoding(frames: Iterable[tuple[int | None, bool]]) -> FrameIndex | None:
    """The index from (time stamp, is a key frame) of all frames in the order they are shown, or None."""
    stamps, keys = [], []
    for number, (pts, key) in enumerate(frames):
        stamps.append(pts)
        if key:
            keys.append(number)
    whole = [pts for pts in stamps if pts is not None]
    if not whole or len(set(whole)) < len(stamps):
        return None
    return FrameIndex(np.array(whole, np.int64), np.array(keys, np.int64))


def index_file(folder: Path, path: Path, size: int, mtime_ns: int, stream: int | None) -> Path:
    """Where the facts of a long recording are kept; another file, or a changed one, has another name."""
    identity = json.dumps([str(path.absolute()), size, mtime_ns, stream])
    return folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.index"


def save_index(file: Path, facts: "Probe") -> None:
    """Keep the facts of a long recording, its index (or that it has none) among them.

    The file is a CRC-32 (little-endian) and the .npz that it sums. All or nothing; raises OSError.
    """
    text = json.dumps(asdict(replace(facts, index=None)))
    index = facts.index or FrameIndex(np.empty(0, np.int64), np.empty(0, np.int64))
    data = io.BytesIO()
    np.savez_compressed(data, facts=np.array(text), pts=index.pts, keys=index.keys)
    kept = data.getvalue()
    write_bytes(file, zlib.crc32(kept).to_bytes(4, "little") + kept)


def unframed(data: bytes) -> bytes:
    """The .npz of a file of save_index. Raises ValueError when a byte of it has changed."""
    if len(data) < 4 or zlib.crc32(memoryview(data)[4:]).to_bytes(4, "little") != data[:4]:
        raise ValueError("its checksum is wrong")
    return data[4:]


def load_index(file: Path) -> "Probe | None":
    """What save_index kept, or None: nothing there, damaged, or of another version."""
    from pipeline.decode.probe import Probe

    try:
        with np.load(io.BytesIO(unframed(file.read_bytes())), allow_pickle=False) as kept:
            facts = Probe.from_json(json.loads(str(kept["facts"])))
            index = FrameIndex(kept["pts"], kept["keys"])
            return replace(facts, index=index if len(index.pts) else None)
    except Exception:  # whatever a damaged file makes zipfile, zlib, numpy or json raise: it is made again
        return None
