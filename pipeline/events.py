"""Progress is events: whoever works tells what happened, a listener decides how it looks.

Builds append their events to a file, one JSON object a line, from however many processes on however many machines:

    CACHE/builds/<dataset>.events.jsonl     {"time", "who": "host:pid", "kind", "stage", ...}: the fields of Event

What a terminal shows, what a log says and what a program reads there is the same. Events inform; no result depends on
one, and a line that is torn is passed over.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

ROTATE_BYTES = 16 << 20
TAIL_BYTES = 64 << 10  # a step comes every second, in a line of 400 bytes, among the work of all processes


@dataclass(frozen=True)
class Event:
    """Something happened.

    Attributes:
        kind: "step" (`done` of `total` in `stage`), "work" (one process did `done` of the `total` clips it took),
            "note" (a line worth reading) or "warning".
        stage: what is under way, e.g. "reading files", "building", "expert head".
        text: for notes and warnings.
        unit: what is counted.
        stages: by stage of the cache {"clips", "seconds"} so far, of "work"; {"done", "total", "per_s", "left_s"}, of
            a step.
        who: the process, "host:pid"; filled in where the event is written to a file.
    """

    kind: str
    stage: str
    done: int = 0
    total: int = 0
    text: str = ""
    unit: str = "clip"
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    who: str = ""


Listener = Callable[[Event], None]


def silent(_: Event) -> None:
    """Listener of --json runs."""


def both(first: Listener, second: Listener) -> Listener:
    """Tell two listeners."""

    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell


class EventFile:
    """Appends events to a file. Counts that only go on are written at most every `every_s` seconds, the last always."""

    def __init__(self, path: Path, every_s: float = 1.0) -> None:
        self.who = f"{platform.node()}:{os.getpid()}"
        self._every_s = every_s
        self._said: dict[tuple[str, str], float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > ROTATE_BYTES:  # who has it open goes on in the old one
            path.replace(path.with_suffix(".old.jsonl"))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def __call__(self, event: Event) -> None:
        now, what = time.monotonic(), (event.kind, event.stage)
        if event.kind in ("step", "work"):
            if event.done < event.total and now - self._said.get(what, -self._every_s) < self._every_s:
                return
            self._said[what] = now
        told = {name: value for name, value in asdict(event).items() if value or name == "done"}
        line = json.dumps({"time": round(time.time(), 3), **told, "who": event.who or self.who})
        os.write(self._descriptor, line.encode() + b"\n")

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class Follower:
    """Reads a file of events from its present end on, while others write it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def __iter__(self) -> Iterator[Event]:
        """The events that came since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            event = parse_event(line)
            if event is not None:
                yield event

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def parse_event(line: bytes) -> Event | None:
    """An event from its line; None for anything else."""
    try:
        record = json.loads(line)
        return Event(**{f.name: record[f.name] for f in fields(Event) if f.name in record})
    except (ValueError, TypeError):
        return None


def last_step(path: Path) -> dict[str, Any] | None:
    """How far the build that last told of itself is: {"time", "done", "total", "stages"}; None where none did."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        for line in reversed(file.read().split(b"\n")):
            event = parse_event(line)
            if event is not None and event.kind == "step" and event.stages:
                told = {"done": event.done, "total": event.total, "stages": dict(event.stages)}
                return {"time": json.loads(line).get("time"), **told}
    return None


class Pace:
    """Adds up what the processes of a build tell, and says how far it is and how long each stage will take.

    Args:
        listen: gets a step for every "work", and all other events as they are.
        total: clips to pass.
        pending: stage -> clips it lacks.

    A stage's rate is that of its own time, over all processes: what waiting for another stage costs is not in it.
    """

    def __init__(self, listen: Listener, total: int, pending: Mapping[str, int]) -> None:
        self._listen, self.total, self._pending = listen, total, dict(pending)
        self._work: dict[str, Event] = {}  # process -> the last it said

    @property
    def done(self) -> int:
        """Clips that went through the stages here."""
        return sum(event.done for event in self._work.values())

    def __call__(self, event: Event) -> None:
        if event.kind != "work":
            self._listen(event)
            return
        self._work[event.who] = event
        stages = {name: self._stage(name, total) for name, total in self._pending.items() if total}
        done = min(self.done, self.total)
        self._listen(Event("step", event.stage, done, self.total, stages=stages))

    def _stage(self, name: str, total: int) -> dict[str, float]:
        told = [event.stages[name] for event in self._work.values() if name in event.stages]
        done = min(int(sum(one["clips"] for one in told)), total)
        rate = sum(one["clips"] / one["seconds"] for one in told if one["seconds"] > 0)
        left = (total - done) / rate if rate else 0.0
        return {"done": done, "total": total, "per_s": round(rate, 2), "left_s": round(left, 1)}


class Console:
    """A tqdm bar on a terminal; in a log a plain line with rate and ETA, at most every `every_s` seconds."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self.terminal = sys.stderr.isatty()
        self.stage = ""
        self.bar: Any = None  # a tqdm, once there is something to draw
        self.began = self.said = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind != "step":
            if self.bar is not None:
                self.bar.write(event.text, file=sys.stderr)  # above the bar, which stays
            else:
                print(event.text, file=sys.stderr, flush=True)
        elif self.terminal:
            self._draw(event)
        else:
            self._line(event)

    def _draw(self, event: Event) -> None:
        from tqdm import tqdm

        if event.stage != self.stage or self.bar is None:
            self._close()
            self.stage = event.stage
            self.bar = tqdm(total=event.total, desc=event.stage, unit=event.unit, file=sys.stderr)
        self.bar.total = event.total
        self.bar.set_postfix_str(by_stage(event.stages), refresh=False)
        self.bar.update(event.done - self.bar.n)
        if event.done >= event.total:
            self._close()

    def _line(self, event: Event) -> None:
        now = time.monotonic()
        if event.stage != self.stage:
            self.stage, self.began, self.said = event.stage, now, now
        if now - self.said < self.every_s and event.done < event.total:
            return
        self.said = now
        rate = event.done / max(now - self.began, 1e-3)
        left = (event.total - event.done) / rate if rate else 0.0
        unit = "" if event.unit == "clip" else f" {event.unit}"
        text = f"{event.stage}: {event.done}/{event.total}{unit}, {rate:.1f}/s, {left:.0f} s left"
        own = by_stage(event.stages)
        print(f"{text} ({own})" if own else text, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def by_stage(stages: Mapping[str, Mapping[str, float]]) -> str:
    """segment 5.2/s 46 s, semantic 9.8/s 24 s: the own rate of each stage, and the time it still takes."""
    return ", ".join(f"{name} {s['per_s']:.1f}/s {s['left_s']:.0f} s" for name, s in stages.items())
