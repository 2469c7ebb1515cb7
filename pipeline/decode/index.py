"""Where the frames of a recording lie, known from its packets alone, so that an interval decodes by seeking.

The number of a frame is its position in presentation order, which is the order of its stream's time stamps.
A decoder that begins at a key frame tells by the time stamps which frames it gives: leading pictures of an
open group (shown before the key frame, but resting on frames before it) are dropped, and from the key frame on
every number must follow the one before. Where one does not, the decoder begins one key frame earlier, and at
last at the first frame of the file, where no index is needed.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.store.atomic import write_bytes

if TYPE_CHECKING:
    from pipeline.decode.probe import Probe

KEPT = 2_000  # packets; a file with fewer is passed over in 20 ms, so its index is not kept on disk
# Elsewhere packets and frames differ in number (hidden frames, fields, N-VOPs) or seeking is a guess by bytes.
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
        pts: int64 [frames], increasing: the time stamp of every frame, in the stream's time base.
        keys: int64 [keys], increasing: numbers of the key frames, 0 first.
    """

    pts: np.ndarray
    keys: np.ndarray

    def number(self, pts: int | None) -> int | None:
        """The frame with this time stamp, or None."""
        if pts is None:
            return None
        at = int(np.searchsorted(self.pts, pts))
        return at if at < len(self.pts) and self.pts[at] == pts else None

    def entries(self, start: int) -> tuple[int, ...]:
        """Key frames to begin at for frame `start`, the best first; none when only the file's beginning is left."""
        before = self.keys[self.keys <= start]
        return tuple(int(key) for key in before[:-3:-1] if key)


def index_frames(packets: Sequence[Packet], container: str, codec: str) -> FrameIndex | None:
    """The index of an intact stream, or None where its numbers would not be sure; packets in file order."""
    times = [packet.pts for packet in packets if packet.pts is not None and packet.shown]
    if (
        container.split(",", maxsplit=1)[0] not in CONTAINERS
        or codec not in CODECS
        or len(times) < len(packets)
    ):
        return None
    if codec == "mpeg4" and min(packet.size for packet in packets) < NO_FRAME:
        return None
    pts = np.array(sorted(times), np.int64)
    keys = np.array([packet.key for packet in packets])
    if len(pts) == 0 or not keys[0] or times[0] != pts[0] or (np.diff(pts) == 0).any():
        return None
    return FrameIndex(pts, np.sort(np.searchsorted(pts, np.array(times, np.int64)[keys])))


def index_file(folder: Path, path: Path, size: int, mtime_ns: int, stream: int | None) -> Path:
    """Where the facts of a long recording are kept; another file, or a changed one, has another name."""
    identity = json.dumps([str(path.absolute()), size, mtime_ns, stream])
    return folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"


def save_index(file: Path, facts: "Probe") -> None:
    """Keep the facts of a long recording, its index among them. All or nothing; raises OSError."""
    assert facts.index is not None
    text = json.dumps(asdict(replace(facts, index=None)))
    data = io.BytesIO()
    np.savez_compressed(data, facts=np.array(text), pts=facts.index.pts, keys=facts.index.keys)
    write_bytes(file, data.getbuffer())


def load_index(file: Path) -> "Probe | None":
    """What save_index kept, or None: nothing there, damaged, or of another version."""
    from pipeline.decode.probe import Probe

    try:
        with np.load(file, allow_pickle=False) as kept:
            facts = Probe.from_json(json.loads(str(kept["facts"])))
            return replace(facts, index=FrameIndex(kept["pts"], kept["keys"]))
    except Exception:  # whatever a damaged file makes zipfile, zlib, numpy or json raise: it is made again
        return None
