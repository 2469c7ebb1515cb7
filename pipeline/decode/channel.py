"""A worker's end of the conversation with its parent: requests in, replies out, and room for frames.

Requests come as JSON lines on stdin. Replies go to stdout, a Unix socket: 4 bytes length (big-endian) and a
JSON object of that length. Frames travel in memory that both processes map, so the parent copies nothing.

    {"type": "tick"}                                           still working
    {"type": "shape", "frames": n, "height": h, "width": w}    asks for room, once or again when n was too few;
                                                               the parent sends a descriptor of n*h*w*3 bytes, or
                                                               none where it has no room
    {"type": "done", ...}                                      a Probe; or decoder, kept, warnings, fps, ...
    {"type": "refused", "message": s}                          this decoder cannot; another may
    {"type": "error", "code": c, "message": s, "decoder": d}   no decoder can; d is None when none ran
"""

import json
import mmap
import os
import socket
import struct
import tempfile
import time
from typing import Any

import numpy as np

TICK_S = 1.0  # between two signs of life


class Channel:
    """Takes over descriptors 0 to 2: no library's print can break the replies or reach the terminal.

    Attributes:
        requests: the lines of stdin, as bytes.
    """

    def __init__(self) -> None:
        self.requests, self._socket = os.fdopen(os.dup(0), "rb"), socket.socket(fileno=os.dup(1))
        self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  open for life
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(self._stderr.fileno(), 2)
        self._ticked = time.monotonic()

    def send(self, message: dict[str, Any]) -> None:
        """Raises ConnectionError when the parent is gone."""
        body = json.dumps(message).encode()
        self._socket.sendall(struct.pack(">I", len(body)) + body)

    def alive(self) -> None:
        """Say so, at most every TICK_S however often this is called."""
        if time.monotonic() - self._ticked >= TICK_S:
            self._ticked = time.monotonic()
            self.send({"type": "tick"})

    def room(self, frames: int, height: int, width: int) -> np.ndarray | None:
        """Zeros uint8 [frames, height, width, 3] that the parent sees as well, or None: it has no room."""
        self.send({"type": "shape", "frames": frames, "height": height, "width": width})
        answer, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not answer:
            raise ConnectionError
        if not descriptors:
            return None
        memory = mmap.mmap(descriptors[0], frames * height * width * 3)
        os.close(descriptors[0])
        return np.frombuffer(memory, np.uint8).reshape(frames, height, width, 3)

    def stderr(self) -> str:
        """What libraries wrote to stderr since the last call, at most its first 64 KiB."""
        descriptor = self._stderr.fileno()
        if not os.lseek(descriptor, 0, os.SEEK_CUR):
            return ""
        text = os.pread(descriptor, 1 << 16, 0).decode(errors="replace")
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return text
