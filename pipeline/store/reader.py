"""Read a cache: numpy and the standard library, no torch, no zarr (numcodecs for zstd arrays only).

A raw shard is mapped once and its index checked once; after that a read is two dictionary look-ups, a third of
a microsecond, and the rows come from the page cache as with np.memmap. With check=True every read
also compares the rows with the checksum in their receipt (CRC-32, 3 GB/s on one core), so that damage on the disk
is an error and never a wrong number. A cache behind a URL is read through a local mirror (see mirror.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.store import layout
from pipeline.store.layout import ArraySpec, StageDir
from pipeline.store.records import REPAIR, ClipRows, load_quarantine
from pipeline.store.shard import CompressedRows, checksum, dtype_of, open_shard, span

if TYPE_CHECKING:
    from pipeline.manifest import Manifest
    from pipeline.store.mirror import Mirror

ALL = slice(None)


class Cache:
    """A cache opened for reading, in a folder or behind a URL (s3://, http://, https://).

    check=True verifies every read. Raises UserError when root is no cache.
    """

    def __init__(self, root: Path | str, check: bool = False) -> None:
        url = layout.url_of(root)
        self._mirror = _mirror_of(url) if url else None
        self.root, self.check = self._mirror.root if self._mirror else Path(root), check
        layout.check_cache(self.root)

    def dataset(self, name: str) -> "Manifest":
        """The manifest of a dataset of this cache."""
        from pipeline.manifest import manifest_path, read_manifest

        return read_manifest(manifest_path(self.root, name))

    def clip_keys(self, name: str, source: str = "video") -> dict[str, str]:
        """clip_id -> clip_key of a dataset for stages that read `source` (video or skeleton).

        Clips without such a file, or whose file cannot be used (missing, empty, not a video), are left out.
        """
        from pipeline.media import clip_keys, media_path, read_media

        manifest = self.dataset(name)
        keys = clip_keys(manifest, read_media(media_path(self.root, name)), source)
        ids = manifest.column("clip_id")
        return {clip_id: key for clip_id, key in zip(ids, keys, strict=True) if key is not None}

    def builds(self, name: str) -> dict[str, Any]:
        """What the last build of a dataset used: {"preset": str, "stages": {stage: key}, ...}."""
        return layout.load_build(self.root, name)

    def built(self, name: str) -> bool:
        """Whether a dataset was ever built in this cache."""
        return layout.build_path(self.root, name).is_file()

    def quarantined(self, name: str) -> set[str]:
        """Clip keys that any stage of the last build of a dataset refused."""
        folders = [StageDir(self.root, stage, key) for stage, key in self.builds(name)["stages"].items()]
        return {entry.clip_key for folder in folders for entry in load_quarantine(folder.quarantine)}

    def stage(self, stage: str, key: str) -> "StageReader":
        """A stage as it is on disk now. Raises UserError when it was not built or is damaged."""
        return StageReader(StageDir(self.root, stage, key), self.check, self._mirror)


class StageReader:
    """The committed clips of one stage, as they were when this was made.

    Attributes:
        facts: the full spec, as in stage.json.
        arrays: name -> ArraySpec.
        clips: clip_key -> ClipRows (shard, row_start in that shard, n_rows, facts), in file order. Of a clip
            committed twice the later shard counts.
        shard_rows: rows of every shard.
    """

    def __init__(self, folder: StageDir, check: bool = False, mirror: "Mirror | None" = None) -> None:
        info = layout.load_stage(folder)
        self.facts: Mapping[str, Any] = info.facts
        self.arrays: Mapping[str, ArraySpec] = info.arrays
        self.shard_rows = info.shard_rows
        self._folder, self._check, self._mirror = folder, check, mirror
        self._here: set[tuple[str, str]] = (
            set()
        )  # of a mirror: array and clip key of rows known to be on disk
        receipts = layout.load_receipts(folder, info)
        self._receipts = {receipt.shard: receipt for receipt in receipts}
        self.clips: dict[str, ClipRows] = {clip.clip_key: clip for r in receipts for clip in r.clips}
        self._open: dict[tuple[str, int], np.ndarray | CompressedRows] = {}
        # Array -> clip key -> its rows, in mapped shards that are read as they are.
        self._rows: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.arrays}

    def read(self, clip_key: str, array: str, rows: slice = ALL) -> np.ndarray:
        """The rows of a clip, [n_rows, *row_shape]: a read-only view of the map, the same every time (raw), or a new
        array (zstd).

        Raises KeyError when the stage has no such clip or array, UserError when its shard is missing or
        damaged.
        """
        try:
            mapped = self._rows[array][clip_key]
        except KeyError:
            clip = self._clip(clip_key)
            start, stop, _ = rows.indices(clip.n_rows)
            first, last = clip.row_start + start, clip.row_start + max(start, stop)
            return self._read(array, clip.shard, first, last, (clip,))
        return mapped if rows is ALL else mapped[rows]

    def rows(self, array: str, shard: int) -> np.ndarray:
        """All used rows of a committed shard, as `read` returns them."""
        if shard not in self._receipts:
            raise KeyError(f"{self._folder.path} has no shard {shard}")
        receipt = self._receipts[shard]
        return self._read(array, shard, 0, receipt.rows, receipt.clips)

    def read_many(self, clip_keys: Sequence[str], array: str) -> tuple[np.ndarray, np.ndarray]:
        """Many clips at once, copied in file order.

        Returns (rows [sum of n_rows, *row_shape], offsets int64 [clips + 1]): clip i of clip_keys is
        rows[offsets[i]:offsets[i + 1]]. Raises as `read`.
        """
        clips = [self._clip(key) for key in clip_keys]
        spec = self._spec(array)
        if self._mirror is not None:
            self._bring(array, clips)  # all at once
        offsets = np.zeros(len(clips) + 1, np.int64)
        np.cumsum([clip.n_rows for clip in clips], out=offsets[1:])
        out = np.empty((offsets[-1], *spec.row_shape), dtype_of(spec))
        starts = offsets.tolist()
        for i in sorted(range(len(clips)), key=lambda i: (clips[i].shard, clips[i].row_start)):
            clip = clips[i]
            stop = clip.row_start + clip.n_rows
            out[starts[i] : starts[i + 1]] = self._read(array, clip.shard, clip.row_start, stop, (clip,))
        return out, offsets

    def _clip(self, clip_key: str) -> ClipRows:
        try:
            return self.clips[clip_key]
        except KeyError:
            raise KeyError(
                f"{self._folder.path} has no clip {clip_key}; it is pending or quarantined"
            ) from None

    def _spec(self, array: str) -> ArraySpec:
        try:
            return self.arrays[array]
        except KeyError:
            raise KeyError(
                f"{self._folder.path} has no array '{array}', only {', '.join(self.arrays)}"
            ) from None

    def _read(self, array: str, shard: int, start: int, stop: int, clips: Sequence[ClipRows]) -> np.ndarray:
        """Rows start to stop of a shard; `clips` are those that lie there."""
        rows = self._shard(array, shard)
        try:
            if self._mirror is not None:
                self._bring(array, clips)
            elif self._check:
                for clip in clips:
                    if not self._is_whole(array, clip):
                        raise ValueError(f"the checksum of clip {clip.clip_id} is wrong")
            return rows[start:stop]
        except ValueError as error:
            raise self._damaged(array, shard, str(error)) from error

    def _shard(self, array: str, shard: int) -> np.ndarray | CompressedRows:
        rows = self._open.get((array, shard))
        if rows is None:
            rows = self._open[array, shard] = self._map(array, shard)
            if isinstance(rows, np.ndarray) and not self._check and self._mirror is None:
                self._rows[array] |= {
                    clip.clip_key: rows[clip.row_start : clip.row_start + clip.n_rows]
                    for clip in self._receipts[shard].clips
                    if self.clips[clip.clip_key] is clip  # and not in a later shard again
                }
        return rows

    def _is_whole(self, array: str, clip: ClipRows) -> bool:
        told = self._receipts[clip.shard].files[array].crc32[clip.position]
        rows = self._shard(array, clip.shard)
        return checksum(rows, clip.row_start, clip.row_start + clip.n_rows) == told

    def _bring(self, array: str, clips: Sequence[ClipRows]) -> None:
        """Fetch what is not on disk yet of a mirrored cache; the checksum tells."""
        assert self._mirror is not None
        spec, new = self._spec(array), [clip for clip in clips if (array, clip.clip_key) not in self._here]
        absent = [clip for clip in new if not self._is_whole(array, clip)]
        if absent:
            ranges = []
            for clip in absent:
                first, stop = clip.row_start, clip.row_start + clip.n_rows
                where = span(spec, self._shard(array, clip.shard), first, stop)
                ranges.append((self._folder.shard_file(spec, clip.shard), *where))
            self._mirror.fetch(ranges)
        for clip in absent:
            if not self._is_whole(array, clip):
                raise self._damaged(array, clip.shard, f"the checksum of clip {clip.clip_id} is wrong")
        self._here.update((array, clip.clip_key) for clip in new)

    def _map(self, array: str, shard: int) -> np.ndarray | CompressedRows:
        spec = self._spec(array)
        path, nbytes = self._folder.shard_file(spec, shard), self._receipts[shard].files[array].bytes
        try:
            if self._mirror is not None:
                self._mirror.prepare(path, spec, self.shard_rows, nbytes)
            rows = open_shard(spec, self.shard_rows, path, nbytes)
            used = self._receipts[shard].rows
            if isinstance(rows, CompressedRows) and len(rows) != used:
                raise ValueError(f"it has {len(rows)} rows, not {used}")
            return rows
        except FileNotFoundError as error:
            raise self._damaged(array, shard, "it is missing") from error
        except ValueError as error:
            raise self._damaged(array, shard, str(error)) from error
        except OSError as error:  # one descriptor per mapped shard and array: mostly EMFILE
            raise UserError(f"{path}: {error.strerror}; check its permissions and `ulimit -n`") from error

    def _damaged(self, array: str, shard: int, reason: str) -> UserError:
        path = self._folder.shard_file(self.arrays[array], shard)
        if self._mirror is not None:
            name = path.relative_to(self._mirror.root).as_posix()
            return UserError(f"{self._mirror.remote.url}/{name} is damaged: {reason}; {REPAIR} where it lies")
        return UserError(f"{path} is damaged: {reason}; {REPAIR}, then `bmoe-cache build`")


def _mirror_of(url: str) -> "Mirror":
    from pipeline.store.mirror import Mirror

    return Mirror(url)
