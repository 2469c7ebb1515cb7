"""The process decoders run in, started by ``process``. It never imports torch.

Arguments: the folder that holds the package, and the process id of the parent.
How it talks is in ``channel``.
"""

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode.backends import (
    AGAIN,
    BACKENDS,
    Outcome,
    RefusedError,
    Steps,
    backend_version,
    complaint,
    shown_frames,
)
from pipeline.decode.channel import Channel
from pipeline.decode.index import (
    KEPT,
    FrameIndex,
    index_by_decoding,
    index_file,
    load_index,
    save_index,
)
from pipeline.decode.passage import Passage
from pipeline.decode.probe import MIN_SIDE, Probe, probe
from pipeline.decode.whole import decode_whole
from pipeline.errors import ClipError
from pipeline.people import clip_box

REMEMBERED = 8  # recordings; the views of one scene take turns
PR_SET_PDEATHSIG = 1

Box = tuple[int, int, int, int]
FactsOf = Callable[[Path, int | None, str | None], Probe]


def main() -> None:
    """Serve requests until stdin ends; the parent passes its process id as the last argument."""
    die_with_parent(int(sys.argv[-1]))
    channel = Channel()
    logging.disable()  # PyAV passes FFmpeg's messages to logging
    _load_decoders()
    channel.send({"type": "tick"})  # from here on a long silence is a hang
    facts_of = _remembering(channel.alive)
    passages: dict[str, Passage] = {}
    for line in channel.requests:
        request = json.loads(line)
        try:
            if "span" in request:
                channel.send(serve_span(request, facts_of, channel, passages))
            else:
                channel.send(serve(request, facts_of, channel))
        except ClipError as error:
            reply = {"code": error.code, "message": error.message, "decoder": error.decoder}
            channel.send({"type": "error", **reply})
        except RefusedError as error:
            channel.send({"type": "refused", "message": str(error)})
        except ConnectionError:
            return
        except Exception as error:  # a decoder's unforeseen failure: the next decoder decides
            channel.send({"type": "refused", "message": f"{type(error).__name__}: {error}"})


def _load_decoders() -> None:
    """PyAV first: where decord comes before it, decord's libvpx takes the place of PyAV's."""
    import av  # noqa: F401

    with contextlib.suppress(ImportError, OSError, RuntimeError):  # there is no decord for every machine
        import decord  # noqa: F401


def serve(request: dict[str, Any], facts_of: FactsOf, channel: Channel) -> dict[str, Any]:
    """The reply to one request.

    {"path", "stream", "index"} probes; with "backend", "start", "end", "box" and "only" it decodes (of the frames that
    are numbers in `only` comes the picture; null: of all); with "whole" it decodes to the end and keeps nothing.
    """
    path = Path(request["path"])
    facts = facts_of(path, request["stream"], request["index"])
    if not facts.readable:
        why = facts.broken or "all damaged"
        raise ClipError(
            "E_DECODE", f"{path}: 0 of {facts.packets} frames decoded; {why}", backend_version("pyav")
        )
    if "backend" not in request:
        _check_sides(facts.width, facts.height, path)
        if "whole" in request:
            return {"type": "done", **asdict(decode_whole(path, facts, channel.alive))}
        return {"type": "done", **asdict(replace(facts, index=None))}
    start, end, backend = request["start"] or 0, request["end"], request["backend"]
    x1, y1, x2, y2 = box = clip_box(request["box"], facts.width, facts.height, path)
    _check_sides(x2 - x1, y2 - y1, path)
    last = facts.packets if end is None else min(end, facts.packets)
    only = request["only"]
    expected = max(last - start, 1) if only is None else len(only)
    channel.stderr()  # what probing said is no complaint of the backend
    frames = BACKENDS[backend](path, facts, start, end, None if only is None else frozenset(only))
    outcome = _fill(frames, box, expected, channel)
    noise = complaint(channel.stderr()) if backend == "decord" else None
    if noise:
        raise RefusedError(f"decord reports {noise}")
    try:
        kept, warnings = _verdict(facts, outcome, start, end, path)
    except ClipError as error:
        raise ClipError(error.code, error.message, backend_version(backend)) from None
    return {
        "type": "done",
        "decoder": backend_version(backend),
        "kept": kept if only is None else len(only),
        "frames": kept,
        "warnings": [*warnings, *facts.warnings],
        "fps_num": facts.fps_num,
        "fps_den": facts.fps_den,
        "decoded": outcome.decoded,
        "crop": box if request["box"] else None,
    }


def _fill(frames: Steps, box: Box, expected: int, channel: Channel) -> Outcome:
    """Write the box of every frame into room made by the parent; returns the generator's outcome.

    Where the parent has no room, frames are decoded all the same and none is kept: it asks for spans of them later.
    """
    x1, y1, x2, y2 = box
    array = channel.room(expected, y2 - y1, x2 - x1)
    count = 0
    while True:
        try:
            frame = next(frames)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        channel.alive()
        if isinstance(frame, np.ndarray):
            if array is not None:
                if count == len(array):  # more frames than packets: rare
                    larger = channel.room(count + count // 2 + 1, y2 - y1, x2 - x1)
                    if larger is not None:
                        larger[:count] = array
                    array = larger
                if array is not None:
                    array[count] = frame[y1:y2, x1:x2]
            count += 1
        elif frame == AGAIN:
            count = 0


def serve_span(
    request: dict[str, Any], facts_of: FactsOf, channel: Channel, passages: dict[str, Passage]
) -> dict[str, Any]:
    """Frames low to high - 1 of a clip that "backend" decoded before, as {"span": [low, high]} asks for.

    The passage through the last such clip is remembered, so that the next span goes on where this one ends.
    """
    path, (low, high) = Path(request["path"]), request["span"]
    facts = facts_of(path, request["stream"], request["index"])
    clip = json.dumps([request[name] for name in ("path", "stream", "backend", "start", "end")])
    if clip not in passages:
        passages.clear()
        passages[clip] = Passage(request["backend"], path, facts, request["start"] or 0, request["end"])
    x1, y1, x2, y2 = clip_box(request["box"], facts.width, facts.height, path)
    room = channel.room(high - low, y2 - y1, x2 - x1)
    assert room is not None
    for number, frame in passages[clip].frames(low, high, channel.alive):
        room[number - low] = frame[y1:y2, x1:x2]
    return {"type": "done", "kept": high - low}


def _check_sides(width: int, height: int, path: Path) -> None:
    if min(width, height) < MIN_SIDE:
        raise ClipError(
            "E_TOO_SMALL", f"{path} is {width}x{height} pixels; both sides must have at least {MIN_SIDE}"
        )


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


def die_with_parent(parent: int) -> None:
    """Linux kills this process with its parent, even in an endless loop; elsewhere stdin's end must do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _remembering(alive: Callable[[], None]) -> FactsOf:
    """probe with a memory: the second decoder, and the next clip of a recording, ask again.

    Long recordings are remembered on disk as well, where a folder for that is given.
    """
    last: dict[tuple[Any, ...], Probe] = {}

    def facts_of(path: Path, stream: int | None, folder: str | None) -> Probe:
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns, stream)
        facts = last.pop(key, None)
        if facts is None:
            file = index_file(Path(folder), *key) if folder else None
            facts = load_index(file) if file else None
            if facts is None:
                facts = probe(path, stream, alive)
                if file and facts.packets >= KEPT:
                    facts = replace(facts, index=facts.index or _index_slowly(path, facts, alive))
                    with contextlib.suppress(OSError):  # a cache that may only be read
                        save_index(file, facts)
        last[key] = facts  # the latest is the last
        if len(last) > REMEMBERED:
            del last[next(iter(last))]
        return facts

    return facts_of


def _index_slowly(path: Path, facts: Probe, alive: Callable[[], None]) -> FrameIndex | None:
    """By a full decode, worth it once for a long recording; None where even that does not number its frames."""

    def frames() -> Iterator[tuple[int | None, bool]]:
        for frame in shown_frames(path, facts):
            alive()
            yield frame

    return index_by_decoding(frames()) if facts.readable and not facts.broken else None


if __name__ == "__main__":
    main()
