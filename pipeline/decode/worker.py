"""The process decoders run in, started by ``process``. It never imports torch.

Arguments: the folder that holds the package, and the process id of the parent.
Requests come as JSON lines on stdin. Replies go to stdout: 4 bytes length (big-endian), a JSON object of that
length and, after ``frames``, the raw bytes of the frames.

    {"type": "tick"}                                           still working
    {"type": "shape", "frames": n, "height": h, "width": w}    before the first frames; n is the count expected
    {"type": "frames", "count": k}                             then k*h*w*3 bytes, uint8 RGB
    {"type": "done", ...}                                      a Probe; or decoder, kept, warnings, fps
    {"type": "refused", "message": s}                          this decoder cannot; another may
    {"type": "error", "code": c, "message": s, "decoder": d}   no decoder can; d is None when none ran
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.decode.backends import BACKENDS, Outcome, RefusedError, backend_version, complaint
from pipeline.decode.probe import MIN_SIDE, Probe, probe
from pipeline.errors import ClipError

BLOCK = 1 << 20  # bytes gathered before a write: one block of a 160x192 clip holds 11 frames
PIPE_BYTES = 1 << 20  # Linux' default of 64 KiB costs a process switch every quarter row of a large frame
PR_SET_PDEATHSIG = 1
F_SETPIPE_SZ = 1031

Send = Callable[..., None]
FactsOf = Callable[[Path, int | None], Probe]


def main() -> None:
    """Serve requests until stdin ends; the parent passes its process id as the last argument."""
    _die_with_parent(int(sys.argv[-1]))
    requests, replies, stderr = _take_pipes()
    logging.disable()  # PyAV passes FFmpeg's messages to logging
    send = _sender(replies)
    facts_of = _remembering(lambda: send({"type": "tick"}))
    for line in requests:
        request = json.loads(line)
        try:
            serve(request, facts_of, send, lambda: _drain(stderr))
        except ClipError as error:
            send({"type": "error", "code": error.code, "message": error.message, "decoder": error.decoder})
        except RefusedError as error:
            send({"type": "refused", "message": str(error)})
        except BrokenPipeError:
            return
        except Exception as error:  # a decoder's unforeseen failure: the next decoder decides
            send({"type": "refused", "message": f"{type(error).__name__}: {error}"})


def serve(
    request: dict[str, Any],
    facts_of: FactsOf,
    send: Send,
    stderr: Callable[[], str],
) -> None:
    """One request: {"path", "stream"} probes; with "backend", "start", "end", "max_bytes" it decodes."""
    path = Path(request["path"])
    facts = facts_of(path, request["stream"])
    if not facts.readable:
        why = facts.broken or "all damaged"
        raise ClipError(
            "E_DECODE", f"{path}: 0 of {facts.packets} frames decoded; {why}", backend_version("pyav")
        )
    if min(facts.width, facts.height) < MIN_SIDE:
        size = f"{facts.width}x{facts.height}"
        raise ClipError("E_TOO_SMALL", f"{path} is {size} pixels; both sides must have at least {MIN_SIDE}")
    if "backend" not in request:
        send({"type": "done", **asdict(facts)})
        return
    start, end, backend = request["start"] or 0, request["end"], request["backend"]
    last = facts.packets if end is None else min(end, facts.packets)
    expected = max(last - start, 1)
    _check_size(facts, expected, request["max_bytes"], path)
    send({"type": "shape", "frames": expected, "height": facts.height, "width": facts.width})
    stderr()  # what probing said is no complaint of the backend
    outcome = _stream(BACKENDS[backend](path, facts, start, end), send)
    noise = complaint(stderr()) if backend == "decord" else None
    if noise:
        raise RefusedError(f"decord reports {noise}")
    try:
        kept, warnings = _verdict(facts, outcome, start, end, path)
    except ClipError as error:
        raise ClipError(error.code, error.message, backend_version(backend)) from None
    send(
        {
            "type": "done",
            "decoder": backend_version(backend),
            "kept": kept,
            "warnings": [*warnings, *facts.warnings],
            "fps_num": facts.fps_num,
            "fps_den": facts.fps_den,
        }
    )


def _check_size(facts: Probe, frames: int, limit: int, path: Path) -> None:
    wanted = frames * facts.height * facts.width * 3
    if wanted > limit:
        raise ClipError(
            "E_TOO_LARGE",
            f"{path}: {frames} frames of {facts.width}x{facts.height} need {wanted / 2**30:.2f} GiB, the "
            f"limit is {limit / 2**30:.2f} GiB; cut it into intervals with start_frame and end_frame",
        )


def _stream(frames: Any, send: Send) -> Outcome:
    """Send the frames in blocks and return the generator's outcome."""
    block: list[np.ndarray] = []
    size = 0
    while True:
        try:
            frame = next(frames)
        except StopIteration as end:
            if block:
                send({"type": "frames", "count": len(block)}, block)
            outcome: Outcome = end.value
            return outcome
        if frame is None:
            send({"type": "tick"})
            continue
        block.append(frame)
        size += frame.nbytes
        if size >= BLOCK:
            send({"type": "frames", "count": len(block)}, block)
            block, size = [], 0


def _verdict(
    facts: Probe, outcome: Outcome, start: int, end: int | None, path: Path
) -> tuple[int, list[str]]:
    """(frames to keep of those sent, warnings), or ClipError when nothing of the interval is usable."""
    reached = outcome.good if end is None else min(outcome.good, end)
    if outcome.damage and (end is None or outcome.good < end):
        total = facts.header_frames or f"at least {facts.packets}"
        of = f"{outcome.good} of {total} frames decoded"
        if reached <= start:
            raise ClipError("E_DECODE", f"{path}: {of}, none of the wanted ones; {outcome.damage}")
        return reached - start, [f"W_DAMAGED: {of}; {outcome.damage}"]
    if outcome.delivered == 0:
        raise ClipError("E_DECODE", f"{path}: 0 of {facts.packets} frames decoded")
    past_end = (end or 0) > outcome.delivered + 1  # one frame of rounding in the annotation is forgiven
    if past_end or outcome.delivered <= start:
        wanted = f"frames {start} to {'the end' if end is None else end - 1}"
        raise ClipError(
            "E_END_PAST_EOF", f"{path} has {outcome.delivered} frames, the manifest asks for {wanted}"
        )
    if end is not None and end > outcome.delivered:
        return reached - start, [
            f"W_END_PAST_EOF: end_frame {end} lowered to the {outcome.delivered} frames of the file"
        ]
    if end is None and outcome.delivered != facts.packets:
        said = f"{facts.packets} packets gave {outcome.delivered} frames"
        return reached - start, [f"W_HEADER_COUNT: {said}"]
    return reached - start, []


def _die_with_parent(parent: int) -> None:
    """Linux kills this process with its parent, even in an endless loop; elsewhere stdin's end must do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _take_pipes() -> tuple[BinaryIO, int, BinaryIO]:
    """(requests, reply descriptor, captured stderr).

    Descriptors 0 to 2 no longer lead to the parent: no library's print can break the replies or reach the
    terminal.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  open for life
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(stderr.fileno(), 2)
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # refused when the user's pipes already hold too many pages
            fcntl.fcntl(replies, F_SETPIPE_SZ, PIPE_BYTES)
    return requests, replies, stderr


def _drain(stderr: BinaryIO) -> str:
    """What was written since the last call, at most its first 64 KiB."""
    descriptor = stderr.fileno()
    if not os.lseek(descriptor, 0, os.SEEK_CUR):
        return ""
    text = os.pread(descriptor, 1 << 16, 0).decode(errors="replace")
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return text


def _sender(descriptor: int) -> Send:
    def send(message: dict[str, Any], arrays: list[np.ndarray] | None = None) -> None:
        head = json.dumps(message).encode()
        _write_all(descriptor, struct.pack(">I", len(head)) + head)
        for array in arrays or ():
            _write_all(descriptor, array.data.cast("B"))

    return send


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _remembering(alive: Callable[[], None]) -> FactsOf:
    """probe with a memory of one file: the second decoder, and the next clip of a long video, ask again."""
    last: dict[tuple[Any, ...], Probe] = {}

    def facts_of(path: Path, stream: int | None) -> Probe:
        status = path.stat()
        key = (path, stream, status.st_size, status.st_mtime_ns)
        if key not in last:
            last.clear()
            last[key] = probe(path, stream, alive)
        return last[key]

    return facts_of


if __name__ == "__main__":
    main()
