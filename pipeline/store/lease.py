"""Who works on a job now: a lease is a file that one process makes, keeps fresh, and takes away when it is done.

    jobs/<job>.<turn>.lease     a record (host, place, pid, start, token, seconds), then a line that counts
                                heartbeats: 20 digits, a blank, their CRC-32 in 8 hex digits

A lease is made whole and exclusively, so of many processes one gets it. It is never handed over: who takes over
from the dead makes the next turn, and the highest turn counts. So a process that was frozen and goes on finds a
higher turn, or its own gone, and stops before it gives anything a final name.

The owner is dead when its process is gone, where that can be seen: same machine since the same boot, same
process namespace. Elsewhere it is dead when its heartbeat did not move for as long as the lease says, on the
OBSERVER's monotonic clock. So no two clocks are ever compared, and one that is set back does no harm.
"""

import os
import platform
import secrets
import threading
import time
import zlib
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store import atomic
from pipeline.store.records import field, from_bytes, to_bytes

SECONDS = 60.0  # a heartbeat that stands still for so long is that of a dead process
BEATS = 6  # heartbeats in that time


class LeaseLostError(Exception):
    """Another process took the job over; what is unfinished here is not to be written."""


@dataclass(frozen=True)
class Owner:
    """What a lease says: `place` is a boot of a machine and a process namespace, `start` the process's in ticks."""

    host: str
    place: str
    pid: int
    start: int
    token: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def parse_lease(data: bytes) -> Owner:
    """The owner of a lease. Raises ValueError and the like when the record is damaged."""
    record = from_bytes(data[: data.index(b"\n") + 1])
    kinds = {"host": str, "place": str, "pid": int, "start": int, "token": str, "seconds": float}
    return Owner(**{name: field(record, name, kind) for name, kind in kinds.items()})


def count_line(beats: int) -> bytes:
    digits = b"%020d" % beats
    return b"%s %08x\n" % (digits, zlib.crc32(digits))


def check_lease(data: bytes) -> Owner:
    """The owner of a lease, when all of it is as it was written. Raises ValueError and the like otherwise."""
    owner, line = parse_lease(data), data[data.index(b"\n") + 1 :]
    if count_line(int(line[:20])) != line:
        raise ValueError("its count of heartbeats has changed")
    return owner


def turns(folder: Path, job: int | str) -> dict[int, Path]:
    """Turn -> lease of a job (or of something else that one process does at a time), ascending; the last one counts."""
    parts = ((path.name.split("."), path) for path in folder.glob(f"{job}.*.lease"))
    found = {int(turn): path for (_, turn, *_), path in parts if turn.isdecimal()}
    return dict(sorted(found.items()))


class Lease(AbstractContextManager["Lease"]):
    """A lease that this process holds, made by `take`. Leaving it gives the job back."""

    def __init__(self, path: Path, turn: int, owner: Owner, descriptor: int, offset: int) -> None:
        self.path, self.turn, self.owner = path, turn, owner
        self._descriptor, self._offset, self._beats = descriptor, offset, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=path.name, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        """Count on, in the file that was opened when the lease was made: never in that of a successor."""
        while not self._ended.wait(self.owner.seconds / BEATS):
            self._beats += 1
            with suppress(OSError):  # a disk that fails for a moment; if it lasts, the lease runs out
                os.pwrite(self._descriptor, count_line(self._beats), self._offset)

    def check(self) -> None:
        """Raise LeaseLostError when another process took over."""
        with suppress(OSError, ValueError):
            if max(turns(self.path.parent, self.path.name.partition(".")[0])) == self.turn:
                mine = parse_lease(self.path.read_bytes()).token == self.owner.token
                if mine:
                    return
        raise LeaseLostError(f"{self.path.name} was taken over")

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            self.check()
        except LeaseLostError:
            return
        else:
            self.path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)


def take(folder: Path, job: int | str, turn: int) -> Lease | None:
    """Make the lease of a job for a turn above all before; None when another process was faster."""
    place, (_, start) = _place(), _process(os.getpid()) or ("", 0)
    owner = Owner(platform.node(), place, os.getpid(), start, secrets.token_hex(8), SECONDS)
    record = to_bytes(owner.to_json())
    path = folder / f"{job}.{turn}.lease"
    if not atomic.create(path, record + count_line(0)):
        return None
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return None
    for earlier, old in turns(folder, job).items():
        if earlier < turn:
            old.unlink(missing_ok=True)
    return Lease(path, turn, owner, descriptor, len(record))


class Watch:
    """What one process has seen of the leases of others, to tell the living from the dead."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float]] = {}  # lease -> its bytes, since when they are these

    def held(self, folder: Path, job: int) -> bool:
        """Whether a living process works on the job, or one that was not watched for long enough."""
        found = turns(folder, job)
        return bool(found) and self.alive(found[max(found)])

    def alive(self, path: Path) -> bool:
        """Whether the owner of a lease is alive, as far as can be told by now."""
        now = time.monotonic()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self._seen.pop(path, None)
            return False
        before, since = self._seen.get(path, (None, now))
        if before != data:
            since = now
        self._seen[path] = (data, since)
        seconds = SECONDS
        with suppress(ValueError, TypeError):
            owner = parse_lease(data)
            if owner.place and owner.place == _place() and _is_gone(owner):
                return False
            seconds = owner.seconds
        return now - since < seconds


def _is_gone(owner: Owner) -> bool:
    """Whether no process of this machine is the owner: a number may have gone to another by now."""
    found = _process(owner.pid)
    return found is None or found[0] in "ZX" or found[1] != owner.start


def _process(pid: int) -> tuple[str, int] | None:
    """State and start, in clock ticks since boot, of a process; None when there is none (or no /proc)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[19])


def _place() -> str:
    """This boot of this machine, and the process namespace: "" where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
