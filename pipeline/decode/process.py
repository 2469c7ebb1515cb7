"""One worker process seen from the pool's side: start it, talk to it, kill it."""

import contextlib
import fcntl
import json
import math
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.errors import ClipError

# -P keeps the current folder off sys.path. The package's own folder is on it for one import only, so that a
# worker runs this very copy of the package, installed or not, and nothing beside it shadows another library.
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); import pipeline; del sys.path[0]; "
    "from pipeline.decode.worker import main; main()"
)
_ROOT = Path(__file__).resolve().parents[2]
_MAX_HEAD = 1 << 20  # bytes of a reply's JSON
START_S = 120.0  # for the first sign of life: libraries load, maybe on a busy machine


def worker_command() -> tuple[str, ...]:
    """What starts a real worker of this process."""
    return (sys.executable, "-P", "-c", _BOOT, str(_ROOT), str(os.getpid()))


LetGo = Callable[[], None]
Admit = Callable[[int], LetGo | None]  # bytes -> what to call when they are freed, or None: no room


class AttemptError(Exception):
    """An attempt gave nothing; the text completes 'decord ...'."""


class Worker:
    """One decoding process, started when first asked and again after it had to be killed."""

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self.command = list(command)
        self.timeout_s = timeout_s
        self.patience_s = timeout_s  # START_S until a new process has spoken
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None  # of its replies, and of the room for frames
        self.room: Admit = lambda _: None  # set by the owner before frames are asked for
        self.aborted = False
        self.lock = threading.Lock()  # abort, from another thread, must not miss a process being started

    def ask(self, request: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        """(frames, facts). Raises AttemptError (another decoder may do better) or ClipError (none can).

        Where there is no room for them, frames come as zeros that take no memory: only their shape means something.
        """
        healthy = False
        try:
            array, reply = self._converse(request)
            healthy = True
        except TimeoutError:
            raise AttemptError(f"was silent for {self.patience_s:g} s and was killed") from None
        except (EOFError, ConnectionError):
            raise AttemptError(f"crashed its worker ({self._exit_status()})") from None
        except (KeyError, TypeError, ValueError) as error:
            raise AttemptError(f"gave an unreadable answer ({error})") from None
        finally:
            if not healthy:
                self.kill()
        if reply["type"] == "refused":
            raise AttemptError(f"refused: {reply['message']}")
        if reply["type"] == "error":
            raise ClipError(reply["code"], reply["message"], reply.get("decoder"))
        return array, reply

    def _converse(self, request: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        stdin, channel = self._started()
        stdin.write(json.dumps(request).encode() + b"\n")
        stdin.flush()
        array = np.empty((0, 0, 0, 3), np.uint8)
        whole = True
        while True:
            head = bytearray(4)
            self._fill(channel.fileno(), memoryview(head))
            (length,) = struct.unpack(">I", head)
            if length > _MAX_HEAD:
                raise ValueError(f"{length} bytes of header")
            body = bytearray(length)
            self._fill(channel.fileno(), memoryview(body))
            reply = json.loads(body)
            self.patience_s = self.timeout_s
            kind = reply["type"]
            if kind == "shape":
                shape = (reply["frames"], reply["height"], reply["width"], 3)
                if min(shape) < 1:
                    raise ValueError(f"frames of shape {shape}")
                let_go = self.room(math.prod(shape))
                whole = let_go is not None
                if let_go is None:
                    array = np.empty((0, *shape[1:]), np.uint8)
                    channel.sendall(b"n")
                    continue
                descriptor, array = shared_room(shape, let_go)
                try:
                    socket.send_fds(channel, [b"r"], [descriptor])
                finally:
                    os.close(descriptor)
            elif kind == "done":
                kept = reply.get("kept", 0)
                if not whole:
                    array = np.broadcast_to(np.zeros((), np.uint8), (kept, *array.shape[1:]))
                if not 0 <= kept <= len(array):
                    raise ValueError(f"{kept} of {len(array)} frames kept")
                return array[:kept], reply
            elif kind in ("refused", "error"):
                return array[:0], reply

    def _fill(self, pipe: int, view: memoryview) -> None:
        """Read len(view) bytes; TimeoutError after patience_s without any, EOFError from a dead worker."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while view:
            if not poll.poll(self.patience_s * 1000):
                raise TimeoutError
            got = os.readv(pipe, [view])
            if not got:
                raise EOFError
            view = view[got:]

    def _started(self) -> tuple[IO[bytes], socket.socket]:
        with self.lock:
            if self.aborted:
                raise EOFError
            if self.process is None:
                self.patience_s = max(START_S, self.timeout_s)
                self.channel, theirs = socket.socketpair()
                with theirs:
                    self.process = subprocess.Popen(
                        self.command,
                        stdin=subprocess.PIPE,
                        stdout=theirs.fileno(),
                        stderr=subprocess.DEVNULL,
                        process_group=0,  # a Ctrl-C in the terminal reaches only the parent
                    )
            assert self.process.stdin is not None
            assert self.channel is not None
            return self.process.stdin, self.channel

    def _exit_status(self) -> str:
        process = self.process
        if process is None:
            return "stopped"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        return f"exit status {process.returncode}"

    def kill(self) -> None:
        """SIGKILL and reap the process, if there is one."""
        with self.lock:
            process, self.process = self.process, None
            if process is None:
                return
            process.kill()
            process.wait()
            for pipe in (process.stdin, self.channel):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def abort(self) -> None:
        """Kill from another thread; the owner's conversation ends with EOFError and no new process starts."""
        with self.lock:
            self.aborted = True
            if self.process is not None:
                self.process.kill()

    def revive(self) -> None:
        """Allow processes again after abort."""
        self.kill()
        self.aborted = False


def shared_room(shape: tuple[int, ...], let_go: LetGo) -> tuple[int, np.ndarray]:
    """(descriptor, zeros uint8 [*shape]) of memory that another process can map; let_go is called once it is freed.

    It has no name, so nothing is left behind however the processes end: it goes with its last map. Its pages
    cost memory only once they are written.
    """
    size = math.prod(shape)
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        # A worker that could shrink it could crash this process.
        fcntl.fcntl(
            descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
    memory = mmap.mmap(descriptor, size)
    weakref.finalize(memory, let_go)
    return descriptor, np.frombuffer(memory, np.uint8).reshape(shape)
