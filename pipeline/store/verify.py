"""Compare every byte of a cache with what its records promise.

Records carry their own checksum; a receipt has the checksum of every clip's rows in every array; the index of a
shard has one; what is behind the last row, and the Zarr metadata, can only be one thing. So no bit is unguarded.
Files are read and not mapped: a disk error is then an OSError, and not the end of the process.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.events import Event, Listener, silent
from pipeline.store import atomic, jobs, layout, lease, records, repair, shard, wip
from pipeline.store.layout import ArraySpec, StageDir, StageInfo
from pipeline.store.records import Receipt
from pipeline.store.writer import Stage

# What reading a damaged record may raise.
DAMAGE = (LookupError, TypeError, ValueError, AttributeError, RecursionError, UserError)


@dataclass(frozen=True)
class Problem:
    """A file of a cache that is not as it should be.

    Attributes:
        path: relative to the cache.
        kind: "damaged", "missing", "extra" (no file of a cache), or "leftover" (of an interrupted or running
            build: harmless).
        reason: one clause.
        repair: makes it good and says how; None where only the user can.
    """

    path: str
    kind: str
    reason: str
    repair: Callable[[], str] | None = None


@dataclass(frozen=True)
class Report:
    """What was read and found; `repaired` maps positions in `problems` to what was done."""

    files: int
    bytes: int
    problems: tuple[Problem, ...]
    repaired: Mapping[int, str]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong any more; leftovers are not wrong."""
        return all(i in self.repaired or p.kind == "leftover" for i, p in enumerate(self.problems))

    def to_json(self) -> dict[str, Any]:
        lines = [
            {"path": p.path, "kind": p.kind, "reason": p.reason, "repaired": self.repaired.get(i)}
            for i, p in enumerate(self.problems)
        ]
        counts = dict(Counter(problem.kind for problem in self.problems))
        return {
            "files": self.files,
            "bytes": self.bytes,
            "sound": self.sound,
            "counts": counts,
            "problems": lines,
        }


def verify(root: Path, repairing: bool = False, listen: Listener = silent) -> Report:
    """Check a whole cache, and repair what can be. No build should be running on it.

    Raises UserError when root is no cache or of a newer format, OSError when a file cannot be read or written.
    """
    if not (root / "stages").is_dir():
        layout.check_cache(root)
    walk = _Walk(root.absolute())
    problems = tuple(walk.everything(listen))
    repaired = {i: p.repair() for i, p in enumerate(problems) if repairing and p.repair is not None}
    return Report(walk.files, walk.bytes, problems, repaired)


def check_shard(spec: ArraySpec, shard_rows: int, receipt: Receipt, data: bytes) -> tuple[str, set[str]]:
    """What is wrong with the file of a shard ("": nothing), and the keys of the clips whose rows are damaged."""
    told = receipt.files[spec.name]
    try:
        if len(data) != told.bytes:
            raise ValueError(f"it has {len(data)} bytes, not {told.bytes}")
        rows = shard.decode_shard(spec, shard_rows, data)
        if isinstance(rows, shard.CompressedRows) and len(rows) != receipt.rows:
            raise ValueError(f"it has {len(rows)} rows, not {receipt.rows}")
    except ValueError as error:
        return str(error), {clip.clip_key for clip in receipt.clips}
    wrong = {
        clip.clip_key
        for clip in receipt.clips
        if shard.checksum(rows, clip.row_start, clip.row_start + clip.n_rows) != told.crc32[clip.position]
    }
    if wrong:
        return f"the rows of {len(wrong)} of {len(receipt.clips)} clips have changed", wrong
    behind = np.frombuffer(data, np.uint8)[receipt.rows * spec.row_bytes : shard_rows * spec.row_bytes]
    if spec.codec == "raw" and behind.any():
        return "there is something behind its last row", wrong
    return "", wrong


def leftovers(stage: Stage) -> Iterator[Path]:
    """Temporaries and shard files without a receipt: left by a killed build, or in use by a running one."""
    committed = set(layout.committed_shards(stage.folder))
    yield from sorted(path for path in stage.folder.path.rglob(".*.tmp") if path.is_file())
    for spec in stage.arrays.values():
        for path in sorted((stage.folder.zarr / spec.name / "c").glob("[0-9]*")):
            file = stage.folder.shard_file(spec, int(path.name)) if path.name.isdecimal() else path
            if file.is_file() and path.name.isdecimal() and int(path.name) not in committed:
                yield file


class _Walk:
    """One walk through a cache, counting what it reads."""

    def __init__(self, root: Path) -> None:
        self.root, self.files, self.bytes = root, 0, 0

    def everything(self, listen: Listener) -> Iterator[Problem]:
        yield from self._cache_json()
        for path in sorted(self.root.glob("builds/*.json")):
            yield from self._table(path, lambda path: layout.load_build(self.root, path.stem))
        for path in sorted(self.root.glob("manifests/*.parquet")):
            yield from self._table(path, _read_parquet)
        yield from self._indices()
        making = yield from self._jobs()
        folders = layout.stage_folders(self.root)
        total = sum(len(list(folder.glob("receipts/[0-9]*.json"))) for folder in folders)
        done = 0
        for folder in folders:
            stage = yield from self._stage(folder)
            if stage is not None:
                yield from self._metadata(stage)
                yield from self._quarantine(stage)
                for number in layout.committed_shards(stage.folder):
                    yield from self._shard(stage, number)
                    done += 1
                    listen(Event("step", "verifying", done, total))
                yield from self._logs(stage, making)
                yield from self._others(stage)

    def _read(self, path: Path) -> bytes:
        data = path.read_bytes()
        self.files += 1
        self.bytes += len(data)
        return data

    def _problem(self, path: Path, kind: str, reason: str, fix: Callable[[], str] | None = None) -> Problem:
        return Problem(path.relative_to(self.root).as_posix(), kind, reason, fix)

    def _cache_json(self) -> Iterator[Problem]:
        path, fix = self.root / "cache.json", partial(repair.cache_json, self.root)
        try:
            records.from_bytes(self._read(path))
        except FileNotFoundError:
            yield self._problem(path, "missing", "no such file", fix)
        except DAMAGE as error:
            yield self._problem(path, "damaged", str(error), fix)
        else:
            layout.check_cache(self.root)

    def _table(self, path: Path, load: Callable[[Path], object]) -> Iterator[Problem]:
        self._read(path)
        try:
            load(path)
        except UserError as error:
            yield self._problem(path, "damaged", _reason(error))

    def _indices(self) -> Iterator[Problem]:
        """Where the frames of long recordings lie."""
        from pipeline.decode.index import unframed

        for path in sorted(path for path in (self.root / "index").glob("*") if path.is_file()):
            data = self._read(path)
            if path.name.startswith("."):
                yield self._problem(path, "leftover", "of a build that was killed or is running")
                continue
            try:
                unframed(data)
            except ValueError as error:
                yield self._problem(path, "damaged", str(error), partial(repair.frame_index, path))

    def _stage(self, path: Path) -> Generator[Problem, None, Stage | None]:
        """The stage at path as stage.json tells it, or else the attributes of its Zarr group."""
        file = path / "stage.json"
        try:
            folder, info = layout.load_folder(path)
            self._read(file)
            return Stage(folder, info)
        except UserError as error:
            if not file.exists() and not any(path.glob("receipts/*.json")):
                yield self._problem(file, "leftover", "of a build that was killed as it began")
                return None
            kind, reason = ("damaged", _reason(error)) if file.exists() else ("missing", "no such file")
            found = _from_group(path)
            if found is None or _intact(file):  # intact: of a newer format, or in the wrong folder
                yield self._problem(file, kind, reason)
                return None
            yield self._problem(file, kind, reason, partial(repair.stage_json, *found))
            return Stage(*found)

    def _metadata(self, stage: Stage) -> Iterator[Problem]:
        """The zarr.json of the group and of every array."""
        group, rows, committed = stage.folder.zarr, stage.shard_rows, stage.shards
        yield from self._zarr_json(group, shard.group_metadata(stage.info.to_json()))
        for spec in stage.arrays.values():
            folder = group / spec.name
            shards = max(_length(folder) // rows, committed)
            fits = yield from self._zarr_json(folder, shard.array_metadata(spec, rows, shards))
            if fits and shards > committed:
                fix = partial(repair.zarr_json, folder, shard.array_metadata(spec, rows, committed))
                reason = f"it has room for {shards} shards, and the receipts name {committed}"
                yield self._problem(folder / "zarr.json", "leftover", reason, fix)

    def _zarr_json(self, folder: Path, wanted: Mapping[str, Any]) -> Generator[Problem, None, bool]:
        path, fix = folder / "zarr.json", partial(repair.zarr_json, folder, wanted)
        try:
            fits = self._read(path) == shard.metadata_bytes(wanted)
        except FileNotFoundError:
            yield self._problem(path, "missing", "no such file", fix)
            return False
        if not fits:
            yield self._problem(path, "damaged", "it is not what stage.json and the receipts ask for", fix)
        return fits

    def _quarantine(self, stage: Stage) -> Iterator[Problem]:
        path = stage.folder.quarantine
        if not path.exists():
            return
        good, bad = [], []
        for number, line in enumerate(atomic.whole_lines(path), 1):
            try:
                records.parse_quarantine(line)
                good.append(line)
            except DAMAGE:
                bad.append(str(number))
        if bad:
            fix = partial(repair.quarantine, stage, b"".join(good))
            yield self._problem(path, "damaged", f"the checksum of line {', '.join(bad)} is wrong", fix)
        if not self._read(path).endswith(b"\n"):
            yield self._problem(path, "leftover", "its last line is torn")

    def _shard(self, stage: Stage, number: int) -> Iterator[Problem]:
        """A receipt and the files it names."""
        path, info = stage.folder.receipt(number), stage.info
        self._read(path)
        try:
            receipt = records.load_receipt(path, number, info.shard_rows, info.arrays)
        except UserError as error:
            yield self._problem(path, "damaged", _reason(error), partial(repair.set_aside, stage, number))
            return
        wrong: set[str] = set()  # in any array, when the loop is through
        fix = partial(repair.salvage, stage, receipt, wrong)
        for spec in info.arrays.values():
            path = stage.folder.shard_file(spec, number)
            try:
                reason, damaged = check_shard(spec, info.shard_rows, receipt, self._read(path))
            except FileNotFoundError:
                wrong.update(clip.clip_key for clip in receipt.clips)
                yield self._problem(path, "missing", "no such file", fix)
                continue
            wrong |= damaged
            if reason:
                yield self._problem(path, "damaged", reason, fix)

    def _jobs(self) -> Generator[Problem, None, set[tuple[str, int]] | None]:
        """Jobs and their leases; (key, shard) of all that jobs make, None when a job cannot be read."""
        making: set[tuple[str, int]] = set()
        readable = True
        folder = jobs.folder_of(self.root)
        for path in sorted(path for path in folder.glob("*") if path.is_file()):
            number, _, kind = path.name.partition(".")
            data = self._read(path)
            try:
                if path.suffix == ".tmp" and path.name.startswith("."):
                    yield self._problem(path, "leftover", "of a build that was killed or is running")
                elif number.isdecimal() and kind == "json":
                    job = jobs.parse_job(int(number), data)
                    making |= {(shard.key, shard.shard) for shard in job.shards}
                elif path.suffix == ".lease":
                    lease.check_lease(data)
                else:
                    yield self._problem(path, "extra", "no record speaks of it")
            except DAMAGE as error:
                fix = repair.job if kind == "json" else repair.lease
                readable = readable and kind != "json"
                yield self._problem(path, "damaged", str(error), partial(fix, path))
        return making if readable else None

    def _logs(self, stage: Stage, making: set[tuple[str, int]] | None) -> Iterator[Problem]:
        """The logs of unfinished shards, frame by frame."""
        for path in sorted((stage.folder.path / "wip").glob("[!.]*")):
            shard, *turn = path.name.split(".")
            if not (len(turn) == 2 and turn[1] == "log" and shard.isdecimal() and turn[0].isdecimal()):
                yield self._problem(path, "extra", "no record speaks of it")
                continue
            self.files, self.bytes = self.files + 1, self.bytes + path.stat().st_size
            good = 0
            try:
                for number, (meta, offset, size) in enumerate(wip.frames(path)):
                    if number:
                        wip.parse_entry(meta, path, offset, size)
                    else:
                        wip.parse_origin(meta)
                    good = offset + size
            except DAMAGE as error:
                if getattr(error, "torn", False):
                    yield self._problem(path, "leftover", f"{error}, as by a kill")
                else:
                    yield self._problem(path, "damaged", str(error), partial(repair.log, stage, path, good))
                continue
            if making is not None and (stage.key, int(shard)) not in making:
                yield self._problem(path, "leftover", "no job goes on with it")

    def _others(self, stage: Stage) -> Iterator[Problem]:
        """Files that no record speaks of; wip/ was looked into, damaged/ is not."""
        folder, specs = stage.folder, stage.arrays.values()
        known = {folder.stage_json, folder.quarantine, folder.zarr / "zarr.json"}
        known.update(folder.zarr / spec.name / "zarr.json" for spec in specs)
        for number in layout.committed_shards(folder):
            known.add(folder.receipt(number))
            known.update(folder.shard_file(spec, number) for spec in specs)
        for path in leftovers(stage):
            yield self._problem(path, "leftover", "of a build that was killed or is running")
            known.add(path)
        for top, names, files in os.walk(folder.path):
            if Path(top) == folder.path:
                names[:] = [name for name in names if name not in ("wip", "damaged")]
            for path in (Path(top, name) for name in sorted(files)):
                if path not in known:
                    yield self._problem(path, "extra", "no record speaks of it")


def _reason(error: UserError) -> str:
    """Of a damaged record: what is wrong, without path and remedy."""
    return str(error.__cause__ or error)


def _intact(path: Path) -> bool:
    try:
        records.load_record(path)
    except (OSError, *DAMAGE):
        return False
    return True


def _read_parquet(path: Path) -> None:
    from pipeline.manifest import read_manifest
    from pipeline.media import read_media

    read = read_media if path.name.endswith(".media.parquet") else read_manifest
    read(path)


def _from_group(path: Path) -> tuple[StageDir, StageInfo] | None:
    """The stage at path as the attributes of its Zarr group tell it; None when they do not."""
    try:
        info = layout.parse_stage(_load_json(path / "features.zarr")["attributes"])
        return layout.place(path, info), info
    except (OSError, *DAMAGE):
        return None


def _length(folder: Path) -> int:
    """Rows of an array as its zarr.json says; 0 when it does not."""
    try:
        return int(_load_json(folder)["shape"][0])
    except (OSError, *DAMAGE):
        return 0


def _load_json(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "zarr.json").read_bytes())
    return record
