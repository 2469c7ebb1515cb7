"""How much memory the frames of clips in flight may take together, and which clips have to do without."""

import threading
from collections.abc import Callable

LARGEST = 4  # a clip above a 4th of the room would stop all others: it never lies in memory whole


class Room:
    """Room for frames, given to clips in their order. One for all threads that decode.

    A clip waits until earlier ones have been let go. One that the caller itself waits for, while it holds all the
    room, would wait for ever: it gets none, and its frames are decoded in spans where they are looked at.

    Attributes:
        held: bytes given and not let go yet.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._open: set[int] = set()  # clips whose turn is not over
        self._wanted = -1  # the caller waits for clips up to this number
        self._changed = threading.Condition(
            threading.RLock()
        )  # memory may be let go wherever it is collected

    def enter(self, number: int) -> None:
        """Clip `number` will ask; numbers rise."""
        with self._changed:
            self._open.add(number)

    def leave(self, number: int) -> None:
        """It asks no more."""
        with self._changed:
            self._open.discard(number)
            self._changed.notify_all()

    def want(self, number: int) -> None:
        """The caller waits for this clip."""
        with self._changed:
            self._wanted = number
            self._changed.notify_all()

    def take(self, number: int, size: int) -> Callable[[], None] | None:
        """Room of `size` bytes for a clip: what to call when it is free again, or None: there is none."""
        with self._changed:
            small = size <= self.limit // LARGEST
            if small:
                self._changed.wait_for(lambda: number <= self._wanted or self._fits(number, size))
            self.leave(number)
            if not small or self.held + size > self.limit:
                return None
            self.held += size

        def let_go() -> None:
            with self._changed:
                self.held -= size
                self._changed.notify_all()

        return let_go

    def _fits(self, number: int, size: int) -> bool:
        return self.held + size <= self.limit and number <= min(self._open, default=number)
