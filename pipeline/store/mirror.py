"""Read a cache behind a URL as if it were here.

Its records are copied to a folder in the user's cache, and its shard files stand beside them as sparse files of
their true size. What is asked for is fetched by byte range and written in its place. Nothing notes which ranges are
here: the checksum in the receipt does, since a hole reads as zeros. So a kill, or two readers at once, can do no
harm, what was fetched once is read from disk at the speed of a local cache, and nothing wrong is ever handed out.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.store import atomic, shard
from pipeline.store.layout import ArraySpec
from pipeline.store.remote import AT_ONCE, Remote
from pipeline.store.workplace import home

Range = tuple[Path, int, int]  # a shard file of the mirror, first byte, last byte (half open)


class Mirror:
    """The local side of a remote cache. Making one brings its records up to date."""

    def __init__(self, url: str) -> None:
        self.remote = Remote(url)
        self.root = home("remote", url)
        files = self.remote.inventory()
        records = {name: crc32 for name, (_, crc32) in files.items() if crc32 is not None}
        stale = [name for name, crc32 in records.items() if self._crc32(name) != crc32]
        for name, data in zip(stale, self.remote.read(stale), strict=True):
            atomic.write_bytes(self.root / name, data)
        for path in self.root.glob("stages/*/*/receipts/*.json"):  # of shards that are gone there
            if path.relative_to(self.root).as_posix() not in records:
                path.unlink()

    def prepare(self, path: Path, spec: ArraySpec, shard_rows: int, nbytes: int) -> None:
        """See to it that a shard file has its size and its index; its rows may be holes.

        Raises ValueError when nbytes is not even enough for the index.
        """
        first = nbytes - shard.index_bytes(spec, shard_rows)
        if first < 0:
            raise ValueError(f"it has {nbytes} bytes, less than its index")
        if path.exists() and path.stat().st_size != nbytes:
            path.unlink()  # made anew there; whoever has mapped the old file keeps it
        atomic.make_folder(path.parent)
        with path.open("ab") as file:
            file.truncate(nbytes)
        with path.open("r+b") as file:
            file.seek(first)
            try:
                shard.decode_index(file.read())
            except ValueError:
                if spec.codec == "raw":  # known without asking
                    file.seek(first)
                    file.write(shard.encode_index(shard.dense_index(spec, shard_rows)))
                else:
                    self.fetch([(path, first, nbytes)])

    def fetch(self, wanted: Sequence[Range]) -> None:
        """Put these ranges where they belong. Raises UserError when they cannot be had."""
        joined: list[Range] = []
        for path, first, last in sorted(wanted):
            if joined and joined[-1][0] == path and joined[-1][2] == first:
                joined[-1] = (path, joined[-1][1], last)
            else:
                joined.append((path, first, last))
        for begin in range(0, len(joined), AT_ONCE):
            batch = joined[begin : begin + AT_ONCE]
            names = [path.relative_to(self.root).as_posix() for path, _, _ in batch]
            asked = [(name, first, last) for name, (_, first, last) in zip(names, batch, strict=True)]
            for (path, first, _), data in zip(batch, self.remote.ranges(asked), strict=True):
                with path.open("r+b") as file:
                    file.seek(first)
                    file.write(data)

    def _crc32(self, name: str) -> int | None:
        try:
            return zlib.crc32((self.root / name).read_bytes())
        except FileNotFoundError:
            return None
