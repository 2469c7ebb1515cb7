"""Landmarks from MediaPipe, which wants numpy < 2: a process under a Python of its own, killed when it hangs."""

import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encoders.limbs import Landmarks
from pipeline.errors import ClipError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.plan import ClipTask

VERSION = "0.10.21"  # the last one that carries its models; another one would find other landmarks
PYTHON = "BMOE_MEDIAPIPE_PYTHON"
WORKER = Path(__file__).with_name("mediapipe_worker.py")
START_S, FRAME_S = 120.0, 60.0  # seconds without an answer after which the process is killed
POINTS = (33, 21, 21)  # landmarks of the pose, the left and the right hand
MASK_STEP = 4  # pixels of the frame per pixel of the person mask; MediaPipe finds it at 256 x 256
INSTALL = (
    f"make an environment for it, `python3.11 -m venv mp && mp/bin/pip install mediapipe=={VERSION} 'numpy<2'`, "
    f"and set {PYTHON}=mp/bin/python"
)


class MediapipeProcess:
    """Holistic landmarks (complexity 1, tracked from frame to frame) of one clip after the other.

    Args:
        python: the interpreter that has mediapipe; default: $BMOE_MEDIAPIPE_PYTHON, else this one.

    Raises UserError with the way to install it, where mediapipe cannot be run.
    """

    def __init__(self, python: str | None = None, start_s: float = START_S, frame_s: float = FRAME_S) -> None:
        self.python = python or os.environ.get(PYTHON) or sys.executable
        self.start_s, self.frame_s = start_s, frame_s
        if self.python == sys.executable and find_spec("mediapipe") is None:
            raise UserError(f"MediaPipe is not installed beside this program; {INSTALL}")
        self.process: subprocess.Popen[bytes] | None = self._started()

    def __call__(self, task: "ClipTask", frames: "Tensor", index: np.ndarray) -> Landmarks:
        """The landmarks of frames `index` of a clip, uint8 [F, H, W, 3]. Raises ClipError E_LANDMARKS."""
        height, width = frames.shape[1:3]
        mask = max(height // MASK_STEP, 1), max(width // MASK_STEP, 1)
        found = np.empty((len(index), sum(POINTS), 4), np.float32)
        person = np.empty((len(index), *mask), np.uint8)
        self.process = process = self.process or self._started()
        for row, frame in enumerate(index):
            head = struct.pack("<5I", row == 0, height, width, *mask)
            request = head + frames[int(frame)].cpu().numpy().tobytes()
            try:
                self._exchange(process, request, found[row], person[row])
            except EOFError as error:
                _end(process)
                self.process = None
                raise ClipError(
                    "E_LANDMARKS", f"MediaPipe {error} at frame {frame}", "mediapipe", 1
                ) from None
        pose, left_hand, right_hand = np.split(found, np.cumsum(POINTS)[:-1], axis=1)
        return Landmarks(pose, left_hand, right_hand, person)

    def _exchange(self, process: "subprocess.Popen[bytes]", request: bytes, *answers: np.ndarray) -> None:
        """Send a frame and fill the answers. Raises EOFError when the process dies or is killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        with _deadline(process, self.frame_s):
            process.stdin.write(request)
            process.stdin.flush()
            for answer in answers:
                if process.stdout.readinto(answer.data.cast("B")) < answer.nbytes:  # type: ignore[attr-defined]
                    raise EOFError

    def _started(self) -> "subprocess.Popen[bytes]":
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    [self.python, "-I", str(WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    process_group=0,  # a Ctrl-C in the terminal reaches only this program, which then ends it
                )
            except OSError as error:
                raise UserError(f"{self.python} cannot be run ({error.strerror}); {INSTALL}") from None
            weakref.finalize(self, _end, process)
            assert process.stdout is not None
            with _deadline(process, self.start_s):
                hello = process.stdout.readline()
            version = json.loads(hello)["version"] if hello else None
            if version != VERSION:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                _end(process)
                reason = f"it has mediapipe {version}" if version else said[-1] if said else "no answer"
                raise UserError(f"{self.python} does not run MediaPipe {VERSION} ({reason}); {INSTALL}")
        return process


@contextlib.contextmanager
def _deadline(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[None]:
    """Kill the process when the block takes longer; a block that then fails raises EOFError with the reason."""
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield
    except (OSError, EOFError):
        raise EOFError(f"was silent for {seconds:g} s" if expired.is_set() else "crashed") from None
    finally:
        timer.cancel()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
