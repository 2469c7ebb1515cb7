"""A cache behind a URL as a folder: `view` for commands that read its records, `workplace` for those that write.

A workplace is a copy in the user's cache folder. It begins with what is at the URL, and every shard that is committed
while the command works is put there as well, so that a lost machine costs no more than a killed process. The
inventory, by which readers see new shards, follows at the end. One machine at a time builds into a URL; several
processes on it share the workplace.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from pipeline.errors import UserError
from pipeline.events import Event, Listener, silent
from pipeline.store import layout

POLL_S = 2.0  # between two looks for new shards


def home(kind: str, url: str) -> Path:
    """The folder of a cache behind a URL in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "bmoe-cache" / kind / sha256(url.encode()).hexdigest()[:16]


def view(cache: Path) -> Path:
    """A folder with the records of a cache: itself, or of a URL the mirror, up to date. Its shards may have holes."""
    url = layout.url_of(cache)
    if url is None:
        return cache
    from pipeline.store.mirror import Mirror

    return Mirror(url).root


@contextmanager
def workplace(cache: Path, listen: Listener = silent) -> Iterator[Path]:
    """The folder to work on a cache in; what is committed there until the end is at its URL then.

    Raises UserError when the URL cannot be read or written.
    """
    url = layout.url_of(cache)
    if url is None:
        yield cache
        return
    from pipeline.store.remote import Remote, pull, push

    if url.startswith("http"):
        raise UserError(f"{url}: http is read-only; use s3:// or file://")
    root = home("work", url)
    if "cache.json" in Remote(url).names():
        pull(url, root, listen, replace=True)
    follower = _Follower(root, url, listen)
    follower.start()
    try:
        yield root
    finally:
        follower.stop()
        if (root / "cache.json").exists():
            push(root, url, listen)


class _Follower(threading.Thread):
    """Puts the shards of a workplace at its URL as they are committed."""

    def __init__(self, root: Path, url: str, listen: Listener) -> None:
        super().__init__(name="push", daemon=True)
        self.root, self.url, self.listen = root, url, listen
        self.same: set[str] = set()  # receipts that are known to be there
        self._stopped = threading.Event()

    def run(self) -> None:
        from pipeline.store.remote import Folder, Remote, transfer

        lost = False
        while not self._stopped.wait(POLL_S):
            receipts = {
                path.relative_to(self.root).as_posix()
                for path in self.root.glob("stages/*/*/receipts/*.json")
            }
            if receipts <= self.same:
                continue
            try:
                transfer(Folder(self.root), Remote(self.url), silent, replace=True, same=self.same)
                lost = False
            except UserError as error:  # the network comes back, or the push at the end says why not
                if not lost:
                    self.listen(Event("warning", "push", text=f"{error}; trying again"))
                lost = True

    def stop(self) -> None:
        """Let a put under way end."""
        self._stopped.set()
        self.join()
