"""One way through the frames of a clip, in a worker: spans of it are taken one after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.decode.backends import AGAIN, BACKENDS, RefusedError, Steps
from pipeline.decode.probe import Probe

FAR = 64  # frames to go on to a later span by decoding; PyAV seeks to one that lies further ahead


class Passage:
    """Decodes a clip from span to span without beginning anew, as long as spans follow each other.

    Numbers count from the clip's first frame.
    """

    def __init__(self, backend: str, path: Path, facts: Probe, start: int, end: int | None) -> None:
        self._backend, self._path, self._facts = backend, path, facts
        self._start, self._end = start, end
        self._seeks = backend == "pyav" and facts.index is not None
        self._steps: Steps | None = None
        self._opened = self._next = 0

    def frames(self, low: int, high: int, alive: Callable[[], None]) -> Iterator[tuple[int, np.ndarray]]:
        """(number, upright frame [H, W, 3]) for low to high - 1; a number may come twice, the latter counts.

        Raises RefusedError where the clip ends before that, or frames of an earlier span prove to be wrong.
        """
        if self._steps is None or low < self._next or (self._seeks and low > self._next + FAR):
            self._open(low)
        assert self._steps is not None
        given = self._next > self._opened  # frames of this passage are out of the house
        while self._next < high:
            try:
                frame = next(self._steps)
            except StopIteration:
                self._steps = None
                raise RefusedError(f"the clip ended at frame {self._next}, before frame {high}") from None
            alive()
            if isinstance(frame, np.ndarray):
                if self._next >= low:
                    yield self._next, frame
                self._next += 1
            elif frame == AGAIN:
                if given:
                    self._steps = None
                    raise RefusedError("after a seek other frames came than the time stamps announce")
                self._next = self._opened

    def _open(self, low: int) -> None:
        self._opened = self._next = low if self._seeks else 0
        first = self._start + self._opened
        self._steps = BACKENDS[self._backend](self._path, self._facts, first, self._end, None)
