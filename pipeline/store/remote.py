"""Caches behind a URL: what `push` and `pull` do, and what `mirror` reads through.

    s3://bucket/cache      read and written, through s3fs: credentials and endpoint as for every AWS tool
    https://host/cache     read
    file:///srv/cache      read and written: a folder that a web server serves

A remote cache has the files of a local one, and files.json: the name and size of each, and the CRC-32 of all but
the shard files. It is written last and names only what is complete; plain http, which cannot list, is read by it.
Objects are put whole, shard files before their receipt, and nothing committed is overwritten: a shard that both
sides have must be the same shard.
"""

import re
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.errors import UserError
from pipeline.events import Event, Listener, silent
from pipeline.store import atomic, layout, shard
from pipeline.store.layout import StageDir, StageInfo
from pipeline.store.records import field, from_bytes, parse_receipt, to_bytes
from pipeline.store.table import read_table
from pipeline.store.verify import DAMAGE, check_shard

INVENTORY = "files.json"
AT_ONCE = 256  # files asked for in one go
AT_HOME = "run `bmoe-cache verify --repair` where it lies"

# Names from outside become paths, so only those of the format are ever used.
_NAME = re.compile(
    r"cache\.json|builds/[a-z0-9][a-z0-9_-]*\.json|manifests/[a-z0-9][a-z0-9_-]*(\.media)?\.parquet"
    r"|(?P<stage>stages/[a-z][a-z0-9_]*/[0-9a-f]{16})/(stage\.json|quarantine\.jsonl"
    r"|receipts/(?P<receipt>0|[1-9][0-9]*)\.json|features\.zarr/([a-z][a-z0-9_]*/)?zarr\.json"
    r"|features\.zarr/[a-z][a-z0-9_]*/c/(?P<shard>[0-9]+)(/0)*)",
    re.ASCII,
)

T = TypeVar("T")


class Files(Protocol):
    """The files of a cache, by their name relative to it."""

    def names(self) -> set[str]: ...
    def read(self, names: Sequence[str]) -> list[bytes]: ...
    def write(self, name: str, data: bytes) -> None: ...


class Folder:
    """A cache on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> set[str]:
        files = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return {name for name in files if _NAME.fullmatch(name)}

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [(self.root / name).read_bytes() for name in names]

    def write(self, name: str, data: bytes) -> None:
        atomic.write_bytes(self.root / name, data)


class Remote:
    """A cache behind a URL. Raises UserError for whatever goes wrong there."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            # A listing of before would hide what another process put there since.
            self._fs, self._base = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url}: {error}; `pip install 'bmoe-cache[remote]'` brings s3 and http"
            ) from None
        self.url = url

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """What files.json names: name -> (bytes, CRC-32 or None for a shard file)."""
        (data,) = self.read([INVENTORY])
        try:
            files = field(from_bytes(data), "files", dict)
            return {
                name: (int(size), crc32) for name, (size, crc32) in files.items() if _NAME.fullmatch(name)
            }
        except DAMAGE as error:
            raise UserError(f"{self.url}/{INVENTORY} is damaged ({error}); `bmoe-cache push` again") from None

    def names(self) -> set[str]:
        return set(self.inventory() if self.url.startswith("http") else self.sizes())

    def sizes(self) -> dict[str, int]:
        """Every file of a cache that is there now, and its bytes."""
        self._fs.invalidate_cache()
        found = self._ask("", lambda: self._fs.find(self._base, detail=True))
        start = len(self._base.rstrip("/")) + 1
        return {path[start:]: item["size"] for path, item in found.items() if _NAME.fullmatch(path[start:])}

    def read(self, names: Sequence[str]) -> list[bytes]:
        return [
            data
            for first in range(0, len(names), AT_ONCE)
            for data in self.ranges([(name, None, None) for name in names[first : first + AT_ONCE]])
        ]

    def ranges(self, wanted: Sequence[tuple[str, int | None, int | None]]) -> list[bytes]:
        """Bytes start to stop of files, asked for all at once."""
        names, starts, stops = map(list, zip(*wanted, strict=True))
        paths = [f"{self._base}/{name}" for name in names]
        found = self._ask(names[0], lambda: self._fs.cat_ranges(paths, starts, stops, on_error="raise"))
        # A web server that knows no ranges sends the whole file.
        return [
            data[start:stop] if stop is not None and len(data) > stop - (start or 0) else data
            for data, start, stop in zip(found, starts, stops, strict=True)
        ]

    def write(self, name: str, data: bytes) -> None:
        path = f"{self._base}/{name}"
        if self.url.startswith(
            "file:"
        ):  # fsspec would leave half a file where it is killed; S3 puts all or nothing
            atomic.write_bytes(Path(path), data)
        else:
            self._ask(name, lambda: self._fs.pipe_file(path, data))

    def _ask(self, name: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FileNotFoundError:
            raise UserError(
                f"{self.url}/{name}: no such file; is this a cache that was pushed to its end?"
            ) from None
        except Exception as error:  # every file system has errors of its own
            reason = str(error) or type(error).__name__
            raise UserError(f"{self.url}/{name}: {reason}; check URL, network and credentials") from error


# -------------------------------------------------------------------------------------------- push, pull


def push(root: Path, url: str, listen: Listener = silent) -> dict[str, Any]:
    """Copy what a URL lacks of a local cache. Killed, the next push goes on.

    Returns {"url", "shards": copied, "files": there now, "bytes"}. Raises UserError when a file here is damaged or
    a shard there is another one.
    """
    layout.check_cache(root)
    if url.startswith("http"):
        raise UserError(f"{url}: http is read-only; push to s3:// or file://")
    remote = Remote(url)
    copied = transfer(Folder(root), remote, listen, replace=True)
    files = _take_inventory(remote)
    return {
        "url": url,
        "shards": copied,
        "files": len(files),
        "bytes": sum(size for size, _ in files.values()),
    }


def pull(url: str, root: Path, listen: Listener = silent, replace: bool = False) -> dict[str, Any]:
    """Copy what a local cache lacks of a remote one; root may be a new folder. Killed, the next pull goes on.

    Clip tables that are here already stay, unless replace: they know where the videos are on this machine. Returns
    {"url", "shards": copied}. Raises UserError as `push` does.
    """
    remote = Remote(url)
    names = remote.names()
    if "cache.json" not in names:
        raise UserError(f"{url} is not a cache; `bmoe-cache push` makes one")
    layout.init_cache(root)
    return {"url": url, "shards": transfer(remote, Folder(root), listen, replace)}


def transfer(
    source: Files, target: Files, listen: Listener, replace: bool, same: set[str] | None = None
) -> int:
    """Copy the shards that target lacks, each checked, and the tables; with replace also tables that target has.

    Returns the number of shards copied. `same` are receipts known to be alike, which are not compared; it grows by
    those found or made so.
    """
    same = set() if same is None else same
    mine, theirs = source.names(), target.names()
    # A stage without stage.json does not exist: it is written last, and somebody was killed before.
    stages = sorted(name.removesuffix("/stage.json") for name in mine if name.endswith("/stage.json"))
    total = sum(len(_receipts(mine, stage)) for stage in stages)
    copied = done = 0
    for stage in stages:
        info = _join(source, target, stage, theirs)
        here, there = _receipts(mine, stage), _receipts(theirs, stage)
        both = sorted(number for number in here.keys() & there.keys() if here[number] not in same)
        ours, others = (files.read([here[number] for number in both]) for files in (source, target))
        for number, one, other in zip(both, ours, others, strict=True):
            if one != other:
                raise UserError(
                    f"{here[number]}: both sides have a shard {number} of their own, built apart; choose another "
                    "URL or an empty folder"
                )
        for number in sorted(here.keys() - there.keys()):
            _copy_shard(source, target, info, number)
            copied += 1
            listen(Event("step", "copying", done + copied, total))
        done += len(here.keys() & there.keys())
        same.update(here.values())
        _set_length(target, info, max([*here, *there], default=-1) + 1)
    for name in sorted(mine):
        if name.startswith(("builds/", "manifests/")) or name.endswith("/quarantine.jsonl"):
            _copy_table(source, target, name, name in theirs, replace)
    if "cache.json" not in theirs:
        target.write("cache.json", *source.read(["cache.json"]))
    return copied


def _receipts(names: Collection[str], stage: str) -> dict[int, str]:
    found = (_NAME.fullmatch(name) for name in names)
    return {int(m["receipt"]): m[0] for m in found if m and m["stage"] == stage and m["receipt"]}


def _join(source: Files, target: Files, stage: str, theirs: Collection[str]) -> StageInfo:
    """The stage as source has it; target gets its metadata, or has it with shards of the same form."""
    name = f"{stage}/stage.json"
    info = _stage(source, name)
    if name in theirs:
        other = _stage(target, name)
        if (info.key, info.arrays, info.shard_rows) != (other.key, other.arrays, other.shard_rows):
            raise UserError(
                f"{name}: both sides have this stage with shards of another size; choose another target"
            )
        return info
    _set_length(target, info, 0)
    target.write(
        f"{stage}/features.zarr/zarr.json", shard.metadata_bytes(shard.group_metadata(info.to_json()))
    )
    target.write(name, *source.read([name]))
    return info


def _record(files: Files, name: str) -> dict[str, Any]:
    try:
        return from_bytes(*files.read([name]))
    except DAMAGE as error:
        raise UserError(f"{name} is damaged ({error}); {AT_HOME}") from None


def _stage(files: Files, name: str) -> StageInfo:
    record = _record(files, name)
    try:
        info = layout.parse_stage(record)
    except DAMAGE as error:
        raise UserError(f"{name} is damaged ({error}); {AT_HOME}") from None
    if _folder(info).stage_json.as_posix() != name:
        raise UserError(f"{name} holds the stage of {_folder(info).path}; move it back")
    return info


def _folder(info: StageInfo) -> StageDir:
    return StageDir(Path(), str(info.facts.get("stage")), info.key)


def _copy_shard(source: Files, target: Files, info: StageInfo, number: int) -> None:
    """Every array's file, checked, and then the receipt."""
    folder = _folder(info)
    name = folder.receipt(number).as_posix()
    (told,) = source.read([name])
    try:
        receipt = parse_receipt(told, number, info.shard_rows, info.arrays)
    except DAMAGE as error:
        raise UserError(f"{name} is damaged ({error}); {AT_HOME}") from None
    for spec in info.arrays.values():
        file = folder.shard_file(spec, number).as_posix()
        (data,) = source.read([file])
        reason, _ = check_shard(spec, info.shard_rows, receipt, data)
        if reason:
            raise UserError(f"{file} is damaged: {reason}; {AT_HOME}")
        target.write(file, data)
    target.write(name, told)


def _set_length(target: Files, info: StageInfo, shards: int) -> None:
    for spec in info.arrays.values():
        metadata = shard.array_metadata(spec, info.shard_rows, shards)
        name = (_folder(info).zarr / spec.name / "zarr.json").as_posix()
        target.write(name, shard.metadata_bytes(metadata))


def _copy_table(source: Files, target: Files, name: str, exists: bool, replace: bool) -> None:
    """Copy a clip table, quarantine or build; of a build that both sides have, all presets stay reached."""
    if exists and not replace and not name.startswith("builds/"):
        return
    if exists and name.startswith("builds/"):
        ours, others = _record(source, name), _record(target, name)
        kept, other = (ours, others) if replace else (others, ours)
        target.write(name, to_bytes({**kept, "presets": {**other["presets"], **kept["presets"]}}))
        return
    (data,) = source.read([name])
    if name.endswith(".parquet"):
        _check_table(name, data)
    target.write(name, data)


def _check_table(name: str, data: bytes) -> None:
    """Raise UserError when a clip table is damaged: there is no second copy to restore it from."""
    import pyarrow as pa

    try:
        read_table(data)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} is damaged ({reason}); import the dataset again where it lies") from None


def _take_inventory(remote: Remote) -> dict[str, tuple[int, int | None]]:
    """Write files.json: what is there now and complete."""
    sizes = remote.sizes()
    found = {name: match for name in sorted(sizes) if (match := _NAME.fullmatch(name))}
    committed = {(m["stage"], m["receipt"]) for m in found.values() if m["receipt"]}
    whole = [name for name, m in found.items() if not m["shard"] or (m["stage"], m["shard"]) in committed]
    records = [name for name in whole if not found[name]["shard"]]
    sums = dict(zip(records, map(zlib.crc32, remote.read(records)), strict=True))
    files = {name: (sizes[name], sums.get(name)) for name in whole}
    remote.write(INVENTORY, to_bytes({"format_version": layout.FORMAT_VERSION, "files": files}))
    return files
