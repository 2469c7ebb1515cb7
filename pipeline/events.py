"""Progress is events: the runner tells what happened, a listener decides how it looks."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something happened.

    Attributes:
        kind: "step" (`done` of `total` in `stage`), "note" (a line worth reading) or "warning".
        stage: what is under way, e.g. "reading files", "building", "expert head".
        text: for notes and warnings.
        unit: what is counted.
    """

    kind: str
    stage: str
    done: int = 0
    total: int = 0
    text: str = ""
    unit: str = "clip"


Listener = Callable[[Event], None]


def silent(_: Event) -> None:
    """Listener of --json runs."""


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
        print(text, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
