"""Files that are either whole or absent: temporary -> fsync -> rename -> fsync folder.

The rename keeps a killed process from leaving a torn file under a final name; the two fsyncs keep a power
loss from doing so (a rename may otherwise reach the disk before the bytes it names).
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path


def write_bytes(path: Path, data: bytes | memoryview, before: Callable[[], None] = lambda: None) -> None:
    """Write data under path, replacing what was there; missing folders are made.

    Until the rename the bytes lie in the same folder as ``.<name>.<random>.tmp``: removed again when an
    OSError (disk full, permission) ends the write, left behind by a kill (see `sweep`). `before` is called when all
    is on disk but for the rename, which does not happen when it raises.
    """
    with _whole(path, data) as temporary:
        before()
        temporary.replace(path)
    sync_folder(path.parent)


def create(path: Path, data: bytes) -> bool:
    """Write data under path unless there is a file already: whole, or not at all. Whether it was written.

    Of many processes that try at once, on one machine or on a shared disk, one succeeds.
    """
    if path.exists():
        return False
    with _whole(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return _create_without_links(path, temporary)
    sync_folder(path.parent)
    return True


def _create_without_links(path: Path, temporary: Path) -> bool:
    """As `create`, on file systems that know no hard links: an empty file holds the place until the rename."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    temporary.replace(path)
    sync_folder(path.parent)
    return True


@contextlib.contextmanager
def _whole(path: Path, data: bytes | memoryview) -> Iterator[Path]:
    """A temporary beside path that holds data and is on disk; gone at the end unless it was renamed."""
    make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with naming(path):
        # os.open and not tempfile: the umask decides who may read, as for any other file of a shared cache.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123  (a descriptor, not a path)
                write_all(file, data)
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def write_all(file: RawIOBase, data: bytes | memoryview) -> None:
    """Write all of data to an unbuffered file: one write() moves at most 2 GiB."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file could not be written; that of a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sweep(path: Path) -> None:
    """Remove the temporaries that killed writers of path left behind. Only its sole writer may call this."""
    for debris in path.parent.glob(f".{path.name}.*.tmp"):
        debris.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make the folder and its missing parents, each entry flushed to disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder (its renames) to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder to where nothing is yet; both folders are flushed."""
    make_folder(target.parent)
    source.rename(target)
    for folder in {source.parent, target.parent}:
        sync_folder(folder)


def append_line(path: Path, line: bytes) -> None:
    """Append one line (with its newline) and flush it; a torn last line, left by a kill, is cut off first.

    Several processes may append to one file: they take turns, or one would cut what another is writing.
    """
    make_folder(path.parent)
    is_new = not path.exists()
    with naming(path), path.open("ab") as file:
        with contextlib.suppress(OSError):  # a file system without locks: there one process builds at a time
            fcntl.flock(file, fcntl.LOCK_EX)
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of an append-only file with their newlines, without what follows the last one; [] when no file."""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()
        return [line + b"\n" for line in data.split(b"\n")[:-1]]
    return []
