"""Write a stage: make its folder, fill and commit shards, keep its quarantine.

Order of a commit: every array's shard file, the arrays' length in zarr.json, and last the receipt; each one
whole, flushed and renamed before the next begins (see atomic.py). Killed anywhere before the receipt, the
shard does not exist and is written again; nothing that a receipt names is ever written to. Several processes
may write a stage as long as each has shards of its own.
"""

import json
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ClipError, UserError
from pipeline.spec import canonical_json
from pipeline.store import atomic, jobs, layout, shard
from pipeline.store.layout import ArraySpec, StageDir, StageInfo
from pipeline.store.records import (
    WITHDRAWN,
    ClipRows,
    QuarantineEntry,
    Receipt,
    ShardFile,
    damage,
    load_quarantine,
    to_bytes,
    utc_now,
)
from pipeline.store.shard import PackedRows
from pipeline.store.wip import Buffer

FLOAT16_MAX = 65504.0

Rows = np.ndarray | PackedRows


@dataclass(frozen=True)
class Stage:
    """A stage folder opened for writing. State lives on disk: every call reads it anew."""

    folder: StageDir
    info: StageInfo

    @property
    def name(self) -> str:
        return self.folder.stage

    @property
    def key(self) -> str:
        return self.info.key

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.info.facts

    @property
    def arrays(self) -> Mapping[str, ArraySpec]:
        return self.info.arrays

    @property
    def shard_rows(self) -> int:
        return self.info.shard_rows

    @property
    def shards(self) -> int:
        """The first shard number above all that have a receipt: so many are the arrays long."""
        return max(layout.committed_shards(self.folder), default=-1) + 1

    @property
    def next_shard(self) -> int:
        """The first shard number that is free: above all that have a receipt or that a job makes."""
        return max(self.shards, jobs.reserved(self.folder))

    def receipts(self) -> tuple[Receipt, ...]:
        """All committed shards. Raises UserError when a receipt is damaged."""
        return layout.load_receipts(self.folder, self.info)

    def quarantine(self) -> tuple[QuarantineEntry, ...]:
        """The clips this stage could not use, last entry of each."""
        return load_quarantine(self.folder.quarantine)

    def add_quarantine(self, entry: QuarantineEntry) -> None:
        """Append an entry; on disk when this returns."""
        atomic.append_line(self.folder.quarantine, to_bytes(asdict(entry)))

    def drop_quarantine(self, clip_keys: Collection[str]) -> None:
        """Withdraw the entries of these clips, so that the next build tries them again."""
        for entry in self.quarantine():
            if entry.clip_key in clip_keys:
                self.add_quarantine(replace(entry, code=WITHDRAWN, time=utc_now()))


def create_stage(
    cache: Path,
    facts: Mapping[str, Any],
    key: str,
    arrays: Sequence[ArraySpec],
    shard_rows: int,
    provenance: Mapping[str, Any],
) -> Stage:
    """Make the folder of a stage, or open it when it is there; then its own shard_rows and provenance stay.

    Args:
        facts: `StageSpec.facts()`: everything that decides the output; facts["stage"] names the stage.
        key: digest(facts).
        arrays: what every clip adds rows to.
        shard_rows: rows of every shard; each array's chunk_rows divides it.
        provenance: versions, host, command, ...: never part of the key. "created" is added.

    Raises UserError when the folder is damaged or holds other arrays, ValueError when the arguments do not
    fit together.
    """
    folder = StageDir(cache, facts["stage"], key)
    by_name = {array.name: array for array in arrays}
    if not arrays or len(by_name) < len(arrays):
        raise ValueError("a stage has at least one array, and every array its own name")
    plain_facts = json.loads(canonical_json(facts))
    info = StageInfo(plain_facts, key, by_name, shard_rows, {"created": utc_now(), **provenance})
    stage = open_stage(cache, facts["stage"], key)
    if stage is not None:
        if stage.arrays != by_name:
            names = ", ".join(stage.arrays)
            raise UserError(
                f"{folder.stage_json}: other arrays ({names}) than this version writes under the same key; "
                f"delete {folder.path} and run `bmoe-cache build`"
            )
        return stage
    _write_zarr(Stage(folder, info))
    # Last: a stage without stage.json does not exist.
    if atomic.create(folder.stage_json, to_bytes(info.to_json())):
        return Stage(folder, info)
    stage = Stage(folder, layout.load_stage(folder))
    _write_zarr(stage)  # another process was first, and the metadata must be its own again
    return stage


def _write_zarr(stage: Stage) -> None:
    """The zarr.json of the group and of every array, as long as there are shards."""
    write_metadata(stage.folder.zarr, shard.group_metadata(stage.info.to_json()))
    for array in stage.arrays.values():
        metadata = shard.array_metadata(array, stage.shard_rows, stage.shards)
        write_metadata(stage.folder.zarr / array.name, metadata)


@dataclass(frozen=True)
class StoredRows:
    """The rows of one clip as a shard holds them: bytes by array, one piece, or one for every zstd frame."""

    n_rows: int
    stored: Mapping[str, list[Buffer]]


def encode_rows(stage: Stage, arrays: Mapping[str, Rows]) -> StoredRows:
    """Check and encode a clip: every array of the stage, [n, *row_shape] with the same n >= 1.

    A float16 array takes any float dtype; the others take exactly their own.

    Raises:
        ClipError: E_NON_FINITE (NaN, infinity, or beyond float16), E_TOO_LONG (more rows than a shard).
        ValueError: the arrays are not those of the stage.
    """
    specs = stage.arrays
    if arrays.keys() != specs.keys():
        raise ValueError(f"arrays {sorted(arrays)} are not the stage's {sorted(specs)}")
    rows = {name: _checked(spec, arrays[name]) for name, spec in specs.items()}
    counts = {len(value) for value in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"the arrays have {sorted(counts)} rows; all must have the same number, at least 1")
    n = counts.pop()
    if n > stage.shard_rows:
        raise ClipError("E_TOO_LONG", f"{n} rows, and a shard of this stage holds {stage.shard_rows}")
    stored: dict[str, list[Buffer]] = {}
    for name, spec in specs.items():
        value = rows[name]
        if isinstance(value, PackedRows):
            stored[name] = list(value.chunks)
        elif spec.codec == "raw":
            stored[name] = [np.ascontiguousarray(value).reshape(-1).view(np.uint8).data]
        else:
            stored[name] = list(shard.compress_rows(spec, value))
    return StoredRows(n, stored)


def open_stage(cache: Path, stage: str, key: str) -> Stage | None:
    """The stage if it was made, else None. Raises UserError when its stage.json is damaged, or alone is missing."""
    layout.check_cache(cache)
    folder = StageDir(cache, stage, key)
    if folder.stage_json.exists():
        return Stage(folder, layout.load_stage(folder))
    if layout.committed_shards(folder):
        raise UserError(
            f"{folder.stage_json} is missing though there are receipts; restore it with `bmoe-cache verify --cache "
            f"{cache} --repair`"
        )
    return None


def write_build(cache: Path, dataset: str, record: Mapping[str, Any]) -> None:
    """Note what the last build of a dataset used: {"preset": str, "stages": {stage: key}, ...}.

    Under "presets" the stages of the last build with every preset are kept: what one of them reaches is no waste.
    """
    path = layout.build_path(cache, dataset)
    presets = layout.load_build(cache, dataset)["presets"] if path.exists() else {}
    merged = {**record, "presets": {**presets, record["preset"]: record["stages"]}}
    layout.check_build(merged)
    atomic.write_bytes(path, to_bytes(merged))


class ShardBuilder:
    """One shard being filled in memory: add clips while there is room, then commit once.

    A raw array takes shard_rows * row_bytes of memory, a zstd array its compressed rows.
    """

    def __init__(self, stage: Stage, shard_id: int) -> None:
        self._stage, self._shard = stage, shard_id
        self._refuse_if_committed()
        specs = stage.arrays.values()
        self._raw = {
            spec.name: shard.raw_shard(spec, stage.shard_rows) for spec in specs if spec.codec == "raw"
        }
        self._zstd: dict[str, list[Buffer]] = {spec.name: [] for spec in specs if spec.codec == "zstd"}
        self._clips: dict[str, ClipRows] = {}
        self._sums: dict[str, list[int]] = {name: [] for name in stage.arrays}
        self._rows = 0
        self._done = False

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self._rows

    def room_for(self, n_rows: int) -> bool:
        """Whether a clip of n_rows still fits: clips never straddle two shards."""
        return self._rows + n_rows <= self._stage.shard_rows

    def add(self, clip_key: str, clip_id: str, arrays: Mapping[str, Rows], facts: Mapping[str, Any]) -> None:
        """Add a clip: arrays as `encode_rows` takes them, facts are JSON values.

        When this raises, the shard is as before. Raises what `encode_rows` raises, and ValueError when the clip is
        there already or there is no room.
        """
        self.add_stored(clip_key, clip_id, encode_rows(self._stage, arrays), facts)

    def add_stored(self, clip_key: str, clip_id: str, rows: StoredRows, facts: Mapping[str, Any]) -> None:
        """Add a clip whose rows are encoded. Raises ValueError when it is there already or there is no room."""
        if self._done or clip_key in self._clips:
            raise ValueError("the shard is committed" if self._done else f"clip {clip_key} was added before")
        start, n = self._rows, rows.n_rows
        if not self.room_for(n):
            raise ValueError(f"no room for {n} rows after {start}")
        plain_facts = json.loads(canonical_json(facts))
        for name, (file, _) in self._raw.items():
            (data,), size = rows.stored[name], self._stage.arrays[name].row_bytes
            file[start * size : (start + n) * size] = np.frombuffer(data, np.uint8)
            self._sums[name].append(zlib.crc32(data))
        for name, chunks in self._zstd.items():
            new = rows.stored[name]
            chunks.extend(new)
            self._sums[name].append(zlib.crc32(b"".join(new)))
        position = len(self._clips)
        self._clips[clip_key] = ClipRows(clip_key, clip_id, self._shard, position, start, n, plain_facts)
        self._rows += n

    def commit(self, fence: Callable[[], None] = lambda: None) -> Receipt:
        """Put the shard on disk; it exists when this returns.

        `fence` is called before any file gets its final name, and keeps it from it by raising: a process that was
        frozen asks there whether the shard is still its own.

        Raises UserError when the shard was committed meanwhile, ValueError when it is empty or done.
        """
        if self._done or not self._clips:
            raise ValueError("the shard is committed" if self._done else "the shard has no clips")
        self._refuse_if_committed()
        folder, info = self._stage.folder, self._stage.info
        files = {}
        for name, spec in info.arrays.items():
            if name in self._raw:
                data = self._raw[name][0].data
            else:
                data = memoryview(shard.zstd_shard(spec, info.shard_rows, self._zstd[name]))
            path = folder.shard_file(spec, self._shard)
            atomic.write_bytes(path, data, fence)
            atomic.sweep(path)
            files[name] = ShardFile(data.nbytes, tuple(self._sums[name]))
        fence()
        grow(self._stage, self._shard + 1)
        receipt = Receipt(self._shard, tuple(self._clips.values()), files)
        fence()
        if not atomic.create(folder.receipt(self._shard), to_bytes(receipt.to_json())):
            self._refuse_if_committed()
        atomic.sweep(folder.receipt(self._shard))
        grow(self._stage, self._stage.shards)  # another process may have put its shorter length over ours
        self._done = True
        return receipt

    def _refuse_if_committed(self) -> None:
        path = self._stage.folder.receipt(self._shard)
        if path.exists():
            raise UserError(f"{path} exists: another build wrote this shard; let it end, then run again")


def _checked(spec: ArraySpec, value: Rows) -> Rows:
    """value as it is stored; raises as `ShardBuilder.add` says."""
    if isinstance(value, PackedRows):
        if value.spec != spec:
            raise ValueError(f"array '{spec.name}': packed rows of {value.spec}")
        return value
    narrowed = spec.dtype == "float16" and value.dtype.kind == "f"
    if (
        value.shape[1:] != spec.row_shape
        or value.ndim == 0
        or (value.dtype.name != spec.dtype and not narrowed)
    ):
        wanted = f"{spec.dtype} [n, {', '.join(map(str, spec.row_shape))}]"
        raise ValueError(f"array '{spec.name}': {value.dtype} {list(value.shape)} is not {wanted}")
    half = value.dtype.itemsize == 2
    if value.dtype.kind == "f" and value.size and not (half and shard.all_finite(value)):
        peak = float(np.maximum(value.max(), -value.min()))  # NaN if there is one
        if not peak <= (FLOAT16_MAX if narrowed else np.finfo(value.dtype).max):
            raise ClipError("E_NON_FINITE", f"'{spec.name}' reaches {peak}, which {spec.dtype} cannot hold")
    return value.astype(shard.dtype_of(spec), copy=False)


def grow(stage: Stage, shards: int) -> None:
    """Raise the length of the arrays to so many shards, in their metadata; shard files never change."""
    for spec in stage.arrays.values():
        folder = stage.folder.zarr / spec.name
        with damage(folder / "zarr.json"):
            length = json.loads((folder / "zarr.json").read_bytes())["shape"][0]
        if length < shards * stage.shard_rows:
            write_metadata(folder, shard.array_metadata(spec, stage.shard_rows, shards))


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write the zarr.json of a group or array."""
    atomic.write_bytes(folder / "zarr.json", shard.metadata_bytes(metadata))
