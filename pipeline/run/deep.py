"""The deep part of validation: hash and decode every file of a dataset."""

from collections.abc import Iterator

from pipeline.decode import DecodeJob, DecodePool
from pipeline.errors import ClipError
from pipeline.events import Event, Listener
from pipeline.manifest import Clip, Manifest, resolve
from pipeline.media import scan
from pipeline.validate import Problem


def decode_problems(manifest: Manifest, workers: int, listen: Listener) -> Iterator[Problem]:
    """Decode every clip once; yields what its decoder had to say, errors (E_) and warnings (W_)."""
    paths = sorted({clip.media_path for clip in manifest.clips})
    media = scan(
        manifest.root,
        paths,
        workers=workers,
        on_progress=lambda done, total: listen(Event("step", "hashing", done, total)),
    )
    seen: dict[str, str] = {}
    for path in paths:
        file = media[path]
        if file.sha256 and file.code is None and seen.setdefault(file.sha256, path) != path:
            text = f"{path} has the same content as {seen[file.sha256]} [fix: keep one of them]"
            yield Problem("W_DUP_CONTENT", "hash", f"W_DUP_CONTENT {manifest.dataset} {path}: {text}")
    usable = [clip for clip in manifest.clips if media[clip.media_path].code is None]
    for clip in manifest.clips:
        file = media[clip.media_path]
        if file.code is not None:
            yield _problem(manifest, clip, file.code, str(file.error))
    jobs = (
        DecodeJob(
            clip.clip_id,
            resolve(manifest.root, clip.media_path),
            clip.stream_index,
            clip.start_frame,
            clip.end_frame,
        )
        for clip in usable
    )
    with DecodePool(workers) as pool:
        for done, (clip, (_, frames)) in enumerate(zip(usable, pool.decode(jobs), strict=True), 1):
            listen(Event("step", "decoding", done, len(usable)))
            if isinstance(frames, ClipError):
                yield _problem(manifest, clip, frames.code, frames.message)
            else:
                for warning in frames.warnings:
                    code, _, text = warning.partition(": ")
                    yield _problem(manifest, clip, code, text)


def _problem(manifest: Manifest, clip: Clip, code: str, text: str) -> Problem:
    where = f"{clip.source_file}:{clip.source_line}" if clip.source_line else manifest.dataset
    return Problem(code, "decode", f"{code} {where} {clip.clip_id}: {text}")
