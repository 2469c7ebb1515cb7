"""Read a cache: numpy and the standard library, no torch, no zarr (numcodecs for zstd arrays only).

A raw shard is mapped once and its index checked once; after that a read is two dictionary look-ups and a
slice, about a microsecond, and the rows come from the page cache as with np.memmap. With check=True every read
also compares the rows with the checksum in their receipt (CRC-32, 3 GB/s on one core), so that damage on the disk
is an error and never a wrong number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.store import layout
from pipeline.store.layout import ArraySpec, StageDir
from pipeline.store.records import REPAIR, ClipRows, load_quarantine
from pipeline.store.shard import CompressedRows, checksum, dtype_of, open_shard

if TYPE_CHECKING:
    from pipeline.manifest import Manifest


class Cache:
    """A cache opened for reading; check=True verifies every read. Raises UserError when root is no cache."""

    def __init__(self, root: Path, check: bool = False) -> None:
        layout.check_cache(root)
        self.root, self.check = root, check

    def dataset(self, name: str) -> "Manifest":
        """The manifest of a dataset of this cache."""
        from pipeline.manifest import manifest_path, read_manifest

        return read_manifest(manifest_path(self.root, name))

    def clip_keys(self, name: str, source: str = "video") -> dict[str, str]:
        """clip_id -> clip_key of a dataset for stages that read `source` (video or skeleton).

        Clips without such a file, or whose file has no hash (missing, empty), are left out.
        """
        from pipeline.manifest import clip_key, manifest_path
        from pipeline.media import read_media

        media = read_media(manifest_path(self.root, name).with_suffix(".media.parquet"))
        hashes = {path: entry.sha256 for path, entry in media.items()}
        return {
            clip.clip_id: clip_key(clip, sha256, source)
            for clip in self.dataset(name).clips
            if (sha256 := hashes.get(clip.path(source) or "")) is not None
        }

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
        return StageReader(StageDir(self.root, stage, key), self.check)


class StageReader:
    """The committed clips of one stage, as they were when this was made.

    Attributes:
        facts: the full spec, as in stage.json.
        arrays: name -> ArraySpec.
        clips: clip_key -> ClipRows (shard, row_start in that shard, n_rows, facts), in file order. Of a clip
            committed twice the later shard counts.
        shard_rows: rows of every shard.
    """

    def __init__(self, folder: StageDir, check: bool = False) -> None:
        info = layout.load_stage(folder)
        self.facts: Mapping[str, Any] = info.facts
        self.arrays: Mapping[str, ArraySpec] = info.arrays
        self.shard_rows = info.shard_rows
        self._folder, self._check = folder, check
        receipts = layout.load_receipts(folder, info)
        self._receipts = {receipt.shard: receipt for receipt in receipts}
        self.clips: dict[str, ClipRows] = {clip.clip_key: clip for r in receipts for clip in r.clips}
        self._open: dict[tuple[str, int], np.ndarray | CompressedRows] = {}

    def read(self, clip_key: str, array: str) -> np.ndarray:
        """The rows of a clip, [n_rows, *row_shape]: a read-only view of the map (raw), or a new array (zstd).

        Raises KeyError when the stage has no such clip or array, UserError when its shard is missing or
        damaged.
        """
        clip = self._clip(clip_key)
        return self._read(array, clip.shard, clip.row_start, clip.row_start + clip.n_rows, (clip,))

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
        rows = self._open.get((array, shard))
        if rows is None:
            rows = self._open[array, shard] = self._map(array, shard)
        try:
            if self._check:
                self._verify(array, rows, clips)
            return rows[start:stop]
        except ValueError as error:
            raise self._damaged(array, shard, str(error)) from error

    def _verify(self, array: str, rows: np.ndarray | CompressedRows, clips: Sequence[ClipRows]) -> None:
        for clip in clips:
            told = self._receipts[clip.shard].files[array].crc32[clip.position]
            if checksum(rows, clip.row_start, clip.row_start + clip.n_rows) != told:
                raise ValueError(f"the checksum of clip {clip.clip_id} is wrong")

    def _map(self, array: str, shard: int) -> np.ndarray | CompressedRows:
        spec = self._spec(array)
        path, nbytes = self._folder.shard_file(spec, shard), self._receipts[shard].files[array].bytes
        try:
            return open_shard(spec, self.shard_rows, path, nbytes)
        except FileNotFoundError as error:
            raise self._damaged(array, shard, "it is missing") from error
        except ValueError as error:
            raise self._damaged(array, shard, str(error)) from error
        except OSError as error:  # one descriptor per mapped shard and array: mostly EMFILE
            raise UserError(f"{path}: {error.strerror}; check its permissions and `ulimit -n`") from error

    def _damaged(self, array: str, shard: int, reason: str) -> UserError:
        path = self._folder.shard_file(self.arrays[array], shard)
        return UserError(f"{path} is damaged: {reason}; {REPAIR}, then `bmoe-cache build`")
