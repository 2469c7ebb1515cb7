"""One worker process seen from the pool's side: start it, talk to it, kill it."""

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def worker_command() -> tuple[str, ...]:
    """What starts a real worker of this process."""
    return (sys.executable, "-P", "-c", _BOOT, str(_ROOT), str(os.getpid()))


class AttemptError(Exception):
    """An attempt gave nothing; the text completes 'decord ...'."""


class Worker:
    """One decoding process, started when first asked and again after it had to be killed."""

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self.command = list(command)
        self.timeout_s = timeout_s
        self.process: subprocess.Popen[bytes] | None = None
        self.aborted = False
        self.lock = threading.Lock()  # abort, from another thread, must not miss a process being started

    def ask(self, request: dict[str, Any], max_bytes: int) -> tuple[np.ndarray, dict[str, Any]]:
        """(frames, facts). Raises AttemptError (another decoder may do better) or ClipError (none can)."""
        healthy = False
        try:
            array, reply = self._converse(request, max_bytes)
            healthy = True
        except TimeoutError:
            raise AttemptError(f"was silent for {self.timeout_s:g} s and was killed") from None
        except (EOFError, BrokenPipeError):
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

    def _converse(self, request: dict[str, Any], max_bytes: int) -> tuple[np.ndarray, dict[str, Any]]:
        process = self._started()
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        pipe = process.stdout.fileno()
        array, count = np.empty((0, 0, 0, 3), np.uint8), 0
        while True:
            head = bytearray(4)
            self._fill(pipe, memoryview(head))
            (length,) = struct.unpack(">I", head)
            if length > _MAX_HEAD:
                raise ValueError(f"{length} bytes of header")
            body = bytearray(length)
            self._fill(pipe, memoryview(body))
            reply = json.loads(body)
            kind = reply["type"]
            if kind == "shape":
                array = _room(reply["frames"], reply["height"], reply["width"], max_bytes)
            elif kind == "frames":
                wanted = count + reply["count"]
                if wanted > len(array):  # more frames than packets: rare, and bounded by max_bytes
                    array = _grown(array, max(wanted, len(array) + len(array) // 2), max_bytes)
                self._fill(pipe, array[count:wanted].data.cast("B"))
                count = wanted
            elif kind == "done":
                kept = reply.get("kept", 0)
                if not 0 <= kept <= count:
                    raise ValueError(f"{kept} of {count} frames kept")
                return array[:kept], reply
            elif kind in ("refused", "error"):
                return array[:0], reply

    def _fill(self, pipe: int, view: memoryview) -> None:
        """Read len(view) bytes; TimeoutError after timeout_s without any, EOFError from a dead worker."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while view:
            if not poll.poll(self.timeout_s * 1000):
                raise TimeoutError
            got = os.readv(pipe, [view])
            if not got:
                raise EOFError
            view = view[got:]

    def _started(self) -> "subprocess.Popen[bytes]":
        with self.lock:
            if self.aborted:
                raise EOFError
            if self.process is None:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    process_group=0,  # a Ctrl-C in the terminal reaches only the parent
                )
            return self.process

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
            for pipe in (process.stdin, process.stdout):
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


def _room(frames: int, height: int, width: int, max_bytes: int) -> np.ndarray:
    """Uninitialised [frames, height, width, 3]; its pages cost memory only once frames arrive."""
    if min(frames, height, width) < 1 or frames * height * width * 3 > max_bytes:
        raise ValueError(f"{frames} frames of {width}x{height}")
    return np.empty((frames, height, width, 3), np.uint8)


def _grown(array: np.ndarray, frames: int, max_bytes: int) -> np.ndarray:
    _, height, width, _ = array.shape
    larger = _room(frames, height, width, max_bytes)
    larger[: len(array)] = array
    return larger
