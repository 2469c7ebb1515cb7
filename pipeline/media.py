"""The media table: size, digest and stream facts of every video file of a dataset.

The SHA-256 of a file is the root of every clip's address in the cache. The table lies beside the manifest
(CACHE/manifests/<dataset>.media.parquet), so files that did not change are read once in their life.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.decode.pool import DecodeJob, DecodePool
from pipeline.decode.probe import Probe, check_file
from pipeline.errors import ClipError, UserError
from pipeline.manifest import resolve
from pipeline.store.atomic import write_bytes

HASH_BLOCK = 1 << 20  # bytes
MEDIA_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Media:
    """One file. `code` is set when no clip of it can be used, with the reason in `error`.

    n_frames is an estimate (packets that should become frames); the frames of a clip are known once decoded.
    Width and height are of the upright picture. A file that exists but is no usable video keeps its digest.
    """

    path: str  # as the manifest spells it, relative to the dataset's root
    bytes: int
    mtime_ns: int
    sha256: str | None = None
    n_frames: int | None = None
    fps_num: int | None = None
    fps_den: int | None = None
    width: int | None = None
    height: int | None = None
    code: str | None = None  # E_MISSING_FILE, E_NOT_A_FILE, E_EMPTY_FILE, E_UNREADABLE, E_NOT_A_VIDEO, ...
    error: str | None = None


def scan(
    root: Path,
    paths: Iterable[str],
    known: Mapping[str, Media] = {},
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    timeout_s: float = 60.0,
) -> dict[str, Media]:
    """Hash and probe the files at `paths`, relative to root: one entry per distinct path, in order.

    A file whose size and modification time equal those in `known`, and which had no error, is not read again.
    Nothing about a file raises: its problem is in `code` and `error`. Probing happens in processes that are
    killed after timeout_s without an answer. on_progress gets (files done, files in all).
    """
    table: dict[str, Media | None] = dict.fromkeys(paths)
    todo: list[tuple[str, Path, os.stat_result]] = []
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, len(table))

    for path in table:
        try:
            file = resolve(root, path)
            status = check_file(file)
        except ClipError as error:
            table[path] = Media(path, 0, 0, code=error.code, error=error.message)
            advance()
            continue
        old = known.get(path)
        if old and not old.code and (old.bytes, old.mtime_ns) == (status.st_size, status.st_mtime_ns):
            table[path] = old
            advance()
        else:
            todo.append((path, file, status))
    hashers = ThreadPoolExecutor(workers, thread_name_prefix="hash")
    try:
        with DecodePool(workers, timeout_s) as pool:
            digests = hashers.map(_digest, (file for _, file, _ in todo))
            probes = pool.probe(DecodeJob(path, file) for path, file, _ in todo)
            for (path, _, status), digest, (_, facts) in zip(todo, digests, probes, strict=True):
                table[path] = _media(path, status, digest, facts)
                advance()
    finally:
        hashers.shutdown(cancel_futures=True)
    return {path: media for path, media in table.items() if media}


def sha256_file(path: Path) -> str:
    """SHA-256 (64 lower-case hex digits) of the file's bytes, read in 1 MiB blocks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_media(path: Path, table: Mapping[str, Media]) -> None:
    """Write the table as Parquet, atomically: readers see the old file or the new one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f.name: [getattr(media, f.name) for media in table.values()] for f in fields(Media)}
    arrow = pa.table(columns, schema=_schema())
    buffer = pa.BufferOutputStream()
    pq.write_table(arrow, buffer)
    write_bytes(path, memoryview(buffer.getvalue()))


def read_media(path: Path) -> dict[str, Media]:
    """The table of write_media; {} where there is none. Raises UserError: damaged, or of another version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return {}
    try:
        arrow = pq.read_table(path, memory_map=False)
        version = (arrow.schema.metadata or {}).get(b"media_version", b"").decode()
        if version != MEDIA_VERSION:
            raise UserError(
                f"{path}: media table version {version or 'missing'}, this program reads {MEDIA_VERSION}; "
                "delete it to scan again"
            )
        rows = arrow.select([f.name for f in fields(Media)]).cast(_schema()).to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable media table ({reason}); delete it to scan again") from None
    return {row["path"]: Media(**row) for row in rows}


def _schema() -> Any:
    import pyarrow as pa

    types = {"bytes": pa.int64(), "mtime_ns": pa.int64()}
    texts = ("path", "sha256", "code", "error")
    return pa.schema(
        [(f.name, pa.string() if f.name in texts else types.get(f.name, pa.int64())) for f in fields(Media)],
        metadata={"media_version": MEDIA_VERSION},
    )


def _digest(path: Path) -> str | ClipError:
    try:
        return sha256_file(path)
    except OSError as error:
        return ClipError("E_UNREADABLE", f"{path} cannot be read to its end: {error.strerror or error}")


def _media(path: str, status: os.stat_result, digest: str | ClipError, facts: Probe | ClipError) -> Media:
    sha256 = None if isinstance(digest, ClipError) else digest
    problem = digest if isinstance(digest, ClipError) else facts
    size, mtime_ns = status.st_size, status.st_mtime_ns
    if isinstance(problem, ClipError):
        return Media(path, size, mtime_ns, sha256, code=problem.code, error=problem.message)
    assert isinstance(facts, Probe)
    return Media(
        path, size, mtime_ns, sha256, facts.packets, facts.fps_num, facts.fps_den, facts.width, facts.height
    )
