"""SHA-256 of files and folders, remembered: a warm start must not read gigabytes of weights again.

A digest is taken from memory only while path, size, inode and both times of the file are what they were.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.store.atomic import write_bytes

RECENT_S = 2.0  # file systems count time in steps of up to a second; what changed just now may change unseen


def memory_path() -> Path:
    """Where digests are remembered: bmoe-cache/digests.json in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bmoe-cache" / "digests.json"


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 lower-case hex digits, from memory where the file is unchanged."""
    return _digests([path])[0]


def folder_sha256(folder: Path, files: Iterable[str] | None = None) -> str:
    """SHA-256 of the sorted lines "relative/name sha256" of all files of a folder, or of the named ones.

    Names that begin with a dot are left out.
    """
    if files is None:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        files = [name.as_posix() for name in found if not any(part.startswith(".") for part in name.parts)]
    names = sorted(files)
    lines = zip(names, _digests([folder / name for name in names]), strict=True)
    return hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in lines).encode()).hexdigest()


def _digests(paths: list[Path]) -> list[str]:
    known = _remembered()
    fresh = {}
    result = []
    for path in paths:
        name, state = str(path.resolve()), _state(path)
        if known.get(name, [None])[:-1] == state:
            result.append(known[name][-1])
            continue
        with path.open("rb") as file:
            result.append(hashlib.file_digest(file, "sha256").hexdigest())
        if state == _state(path) and time.time() - max(state[1:3]) / 1e9 > RECENT_S:
            fresh[name] = [*state, result[-1]]
    if fresh:
        kept = {name: entry for name, entry in _remembered().items() if Path(name).exists()}
        with contextlib.suppress(OSError):  # a home that cannot be written to costs time, nothing else
            write_bytes(memory_path(), json.dumps(kept | fresh).encode())
    return result


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remembered() -> dict[str, list[Any]]:
    """Path -> the four numbers of its state, then its digest."""
    try:
        held = json.loads(memory_path().read_bytes())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
