"""Unfinished training on disk: one safetensors file, replaced whole, that an interrupted stage goes on from."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

EVERY_S = 120.0  # a B-MoE of width 1408 is 1.3 GB with momentum and best epoch, written in about a second


@dataclass
class Checkpoint:
    """Where a stage keeps its state.

    Attributes:
        path: of the file.
        key: what is trained; a file with another key is not used.
        every_s: seconds between two writes; 0 = after every epoch.
    """

    path: Path
    key: str
    every_s: float = EVERY_S
    written: float = field(default_factory=time.monotonic)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the last write, or None when there is none of this key."""
        found = read_state(self.path)
        return found if found and found[1].get("key") == self.key else None

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self.written >= self.every_s

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Replaces the file."""
        write_state(self.path, tensors, facts | {"key": self.key})
        self.written = time.monotonic()

    def remove(self) -> None:
        """Once the stage is finished."""
        self.path.unlink(missing_ok=True)


@contextmanager
def stop_between_epochs() -> Iterator[list[int]]:
    """SIGINT and SIGTERM wait until this is left; a second one does not.

    Gives the list of those that came: whoever sees one there writes the state, which is whole between two epochs, and
    leaves. Other threads than the main one get no signals, and ignored ones stay so.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = [number for number, handler in before.items() if callable(handler)]

    def hold(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        held = []
    for number in held:
        signal.signal(number, hold)
    try:
        yield came
    finally:
        for number in held:
            signal.signal(number, before[number])
    if came:
        signal.raise_signal(came[0])


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write_state` wrote; None when there is no such file or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError, ValueError):
        return None


def write_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any] | None = None) -> None:
    """Tensors in the order of their names, and facts as metadata; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    ordered = {name: tensors[name].contiguous().cpu() for name in sorted(tensors)}
    metadata = {"facts": json.dumps(facts)} if facts else None
    try:
        part.touch()
        mode = part.stat().st_mode  # as the umask has it; safetensors makes a file for its owner alone
        save_file(ordered, part, metadata)
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
