"""The media table: size, digest and stream facts of every file of a dataset.

The SHA-256 of a file is the root of every clip's address in the cache. The table lies beside the manifest
(CACHE/manifests/<dataset>.media.parquet), so files that did not change are read once in their life, however many
clips they hold.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.clip import KEY_COLUMNS, Clip, key_of, resolve
from pipeline.collecting import uncollected
from pipeline.errors import ClipError, UserError
from pipeline.manifest import Manifest, manifest_path
from pipeline.people import crop_box
from pipeline.store.atomic import write_bytes
from pipeline.store.table import read_table, table_bytes

if TYPE_CHECKING:
    from pipeline.decode.pool import DecodeJob
    from pipeline.decode.probe import Probe

MEDIA_VERSION = "2"


class Media(NamedTuple):  # 100,000 are made in a fifth of the time that a frozen dataclass takes
    """One file. `code` is set when no clip of it can be used, with the reason in `error`.

    n_frames is an estimate (packets that should become frames); the frames of a clip are known once decoded.
    Width and height are of the upright picture. Of a skeleton file n_frames is exact, and points are its persons
    x joints. A file that exists but cannot be used keeps its digest.
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
    points: int | None = None
    code: str | None = None  # E_MISSING_FILE, E_NOT_A_FILE, E_EMPTY_FILE, E_UNREADABLE, E_NOT_A_VIDEO, ...
    error: str | None = None


def media_path(cache: Path, dataset: str) -> Path:
    """CACHE/manifests/<dataset>.media.parquet."""
    return manifest_path(cache, dataset).with_suffix(".media.parquet")


def index_folder(cache: Path) -> Path:
    """CACHE/index: where the frames of long recordings lie. It can be deleted: it is made again when wanted."""
    return cache / "index"


def clip_keys(manifest: Manifest, media: Mapping[str, Media], source: str = "video") -> list[str | None]:
    """The content address of every clip, in canonical order; None where its file was not read or cannot be used."""
    digests = {path: file.sha256 for path, file in media.items() if file.code is None}
    columns = (manifest.column(name) for name in KEY_COLUMNS[source])
    files = map(digests.get, manifest.column(f"{source}_path"))
    return [
        None if sha256 is None else key_of(source, sha256, *facts)
        for sha256, *facts in zip(files, *columns, strict=True)
    ]


def decode_job(clip: Clip, root: Path, key: str) -> "DecodeJob":
    """What the decode workers need to know of a clip; one with a box track is cropped to its person."""
    from pipeline.decode.pool import DecodeJob

    path = resolve(root, clip.media_path)
    box = crop_box(clip.bbox_track, clip.start_frame or 0, clip.end_frame) if clip.bbox_track else None
    return DecodeJob(key, path, clip.stream_index, clip.start_frame, clip.end_frame, box)


def scan(
    root: Path,
    paths: Iterable[str],
    known: Mapping[str, Media] = {},
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    index: Path | None = None,
    skeletons: Mapping[str, str | None] = {},
) -> dict[str, Media]:
    """Hash and probe the videos at `paths`, relative to root: one entry per distinct path, in order.

    A file whose size and modification time equal those in `known`, and which had no error, is not read again.
    Nothing about a file raises: its problem is in `code` and `error`. on_progress gets (files done, files in all);
    index is where probing leaves the frame indices of long recordings; skeletons are skeleton files with their
    formats, which come after the videos.
    """
    table: dict[str, Media | None] = dict.fromkeys([*paths, *skeletons])
    unchanged = _unchanged(root, [old for path in table if (old := known.get(path)) and not old.code])
    table |= unchanged
    new = [path for path, media in table.items() if media is None]
    done = len(unchanged)
    if new:
        for media in _read(root, new, workers, index, skeletons):
            table[media.path] = media
            done += 1
            if on_progress:
                on_progress(done, len(table))
    return {path: media for path, media in table.items() if media}


def _read(
    root: Path,
    paths: Iterable[str],
    workers: int,
    index: Path | None,
    skeletons: Mapping[str, str | None],
) -> Iterator[Media]:
    """Hash and probe files; what `scan` says of them."""
    from pipeline.decode.pool import (  # a plan of files that did not change needs no decoder
        DecodeJob,
        DecodePool,
    )
    from pipeline.decode.probe import check_file

    todo: list[tuple[str, Path, os.stat_result]] = []
    poses: list[tuple[str, Path, os.stat_result]] = []
    for path in paths:
        try:
            file = resolve(root, path)
            status = check_file(file)
        except ClipError as error:
            yield Media(path, 0, 0, code=error.code, error=error.message)
            continue
        (poses if path in skeletons else todo).append((path, file, status))
    hashers = ThreadPoolExecutor(workers, thread_name_prefix="hash")
    try:
        with DecodePool(workers, index=index) as pool:
            digests = hashers.map(_digest, (file for _, file, _ in todo))
            probes = pool.probe(DecodeJob(path, file) for path, file, _ in todo)
            for (path, _, status), digest, (_, facts) in zip(todo, digests, probes, strict=True):
                yield _media(path, status, digest, facts)
        for path, file, status in poses:
            yield _skeleton_media(path, file, status, skeletons[path])
    finally:
        hashers.shutdown(cancel_futures=True)


@uncollected()
def _unchanged(root: Path, files: Iterable[Media]) -> dict[str, Media]:
    """Path -> file, of those where a plain file of that size and time lies.

    2 us a file, where `resolve` and opening it take 70. A link is not followed and left out: `resolve` looks where
    it leads.
    """
    folders: dict[str, str] = {}
    same, lstat, regular = {}, os.lstat, stat.S_ISREG
    for old in files:
        path, size, mtime_ns = old[:3]
        folder, _, name = path.rpartition("/")
        try:
            if folder not in folders:
                folders[folder] = f"{resolve(root, folder or '.')}/"
            status = lstat(folders[folder] + name)
        except (ClipError, OSError, ValueError):
            continue
        if mtime_ns == status.st_mtime_ns and size == status.st_size and regular(status.st_mode):
            same[path] = old
    return same


def sha256_file(path: Path) -> str:
    """SHA-256 (64 lower-case hex digits) of the file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_media(path: Path, table: Mapping[str, Media]) -> None:
    """Write the table as Parquet, atomically: readers see the old file or the new one."""
    import pyarrow as pa

    columns = {name: [getattr(media, name) for media in table.values()] for name in Media._fields}
    # snappy: digests do not shrink, and every plan reads them
    write_bytes(path, table_bytes(pa.table(columns, schema=_schema()), "snappy"))


@uncollected()
def read_media(path: Path) -> dict[str, Media]:
    """The table of write_media; {} where there is none. Raises UserError: damaged, or of another version."""
    import pyarrow as pa

    if not path.exists():
        return {}
    try:
        arrow = read_table(path.read_bytes())
        version = (arrow.schema.metadata or {}).get(b"media_version", b"").decode()
        if version != MEDIA_VERSION:
            raise UserError(
                f"{path}: media table version {version or 'missing'}, this program reads {MEDIA_VERSION}; "
                "delete it to scan again"
            )
        arrow = arrow.select(list(Media._fields))
        if not arrow.schema.equals(
            _schema()
        ):  # never in our own files; cast imports 60 ms of pyarrow.compute
            arrow = arrow.cast(_schema())
        columns = [_values(arrow.column(name)) for name in Media._fields]
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable media table ({reason}); delete it to scan again") from None
    return dict(zip(columns[0], map(Media._make, zip(*columns, strict=True)), strict=True))


def _values(column: Any) -> list[Any]:
    """Python values of a column, whole arrays at a time: cell by cell (to_pylist) is many times slower."""
    if column.null_count == len(column):
        return [None] * len(column)
    plain = column.null_count == 0 or column.type == "string"
    return column.to_numpy().tolist() if plain else column.to_pylist()


def _schema() -> Any:
    import pyarrow as pa

    texts = ("path", "sha256", "code", "error")
    return pa.schema(
        [(name, pa.string() if name in texts else pa.int64()) for name in Media._fields],
        metadata={"media_version": MEDIA_VERSION},
    )


def _digest(path: Path) -> str | ClipError:
    try:
        return sha256_file(path)
    except OSError as error:
        return ClipError("E_UNREADABLE", f"{path} cannot be read to its end: {error.strerror or error}")


def _media(path: str, status: os.stat_result, digest: str | ClipError, facts: "Probe | ClipError") -> Media:
    sha256 = None if isinstance(digest, ClipError) else digest
    problem = digest if isinstance(digest, ClipError) else facts
    size, mtime_ns = status.st_size, status.st_mtime_ns
    if isinstance(problem, ClipError):
        return Media(path, size, mtime_ns, sha256, code=problem.code, error=problem.message)
    assert not isinstance(facts, ClipError)
    return Media(
        path, size, mtime_ns, sha256, facts.packets, facts.fps_num, facts.fps_den, facts.width, facts.height
    )


def _skeleton_media(path: str, file: Path, status: os.stat_result, form: str | None) -> Media:
    from pipeline.skeletons import read_skeletons

    digest = _digest(file)
    sha256 = None if isinstance(digest, ClipError) else digest
    try:
        frames, persons, joints = read_skeletons(file, form).confidence.shape
    except ClipError as error:
        return Media(path, status.st_size, status.st_mtime_ns, sha256, code=error.code, error=error.message)
    points = max(persons, 1) * joints
    return Media(path, status.st_size, status.st_mtime_ns, sha256, frames, points=points)
