"""The deep part of validation: every file hashed and decoded to its end once, then every clip held against it.

What a file's decode found is kept by content in CACHE/manifests/<dataset>.checked.jsonl, one line a file, written as
soon as it is known: an interrupted run goes on where it was, and a second one decodes only what is new.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline.checks import Problem, Row, problem
from pipeline.decode import DecodeJob, DecodePool
from pipeline.decode.backends import backend_version
from pipeline.decode.whole import Whole
from pipeline.errors import ClipError, UserError
from pipeline.events import Event, Listener
from pipeline.manifest import Clip, Manifest, manifest_path, resolve
from pipeline.media import Media, index_folder, media_path, read_media, scan, write_media
from pipeline.skeletons import read_skeletons

VERSION = 1
SCAN_CHUNK = 500  # files hashed and probed between two writes of the media table
FPS_TOLERANCE = 0.005  # share by which a stated frame rate may differ
DURATION_TOLERANCE = 1.0  # seconds

Stream = tuple[str, int | None]  # SHA-256 of a file, stream index
Found = Whole | ClipError


def deep_problems(cache: Path, manifest: Manifest, workers: int, listen: Listener) -> Iterator[Problem]:
    """Hash and decode what was not yet; yields what is wrong with files (level hash) and clips (level decode)."""
    if not manifest.root.is_dir():
        raise UserError(
            f"{manifest.root} is not there (root of '{manifest.dataset}'); mount it, or import again"
        )
    media = scanned(cache, manifest, workers, listen)
    found = checked(cache, manifest, media, workers, listen)
    rows = list(enumerate(manifest.clips, 1))
    yield from _contents(manifest, rows, media)
    yield from _files(manifest, rows, media, found)
    for row in rows:
        yield from _clip(manifest, row, media, found)
    yield from _skeletons(manifest, rows, media, listen)


# ---- what is on disk --------------------------------------------------------------------------------------


def scanned(cache: Path, manifest: Manifest, workers: int, listen: Listener) -> dict[str, Media]:
    """The media table, brought up to date and written every SCAN_CHUNK files."""
    path = media_path(cache, manifest.dataset)
    media = read_media(path)
    forms = {clip.skeleton_path: clip.skeleton_format for clip in manifest.clips if clip.skeleton_path}
    names = sorted({clip.video_path for clip in manifest.clips if clip.video_path} | forms.keys())
    for done in range(0, len(names), SCAN_CHUNK):
        chunk = names[done : done + SCAN_CHUNK]
        skeletons = {name: forms[name] for name in chunk if name in forms}
        videos = [name for name in chunk if name not in forms]
        fresh = scan(
            manifest.root,
            videos,
            media,
            workers=workers,
            index=index_folder(cache),
            skeletons=skeletons,
            on_progress=lambda of_chunk, _: listen(Event("step", "hashing", done + of_chunk, len(names))),  # noqa: B023
        )
        if any(media.get(name) != file for name, file in fresh.items()):
            media |= fresh
            write_media(path, media)
    return media


def checked(
    cache: Path, manifest: Manifest, media: Mapping[str, Media], workers: int, listen: Listener
) -> dict[Stream, Found]:
    """What decoding each video to its end found, by content; files of one content are decoded once."""
    path = manifest_path(cache, manifest.dataset).with_suffix(".checked.jsonl")
    found = _read_checked(path)
    todo: dict[Stream, str] = {}
    for clip in manifest.clips:
        file = media.get(clip.video_path or "")
        if file and file.sha256 and file.code is None:
            stream = (file.sha256, clip.stream_index)
            if stream not in found:
                todo.setdefault(stream, file.path)
    streams = iter(todo)
    jobs = (DecodeJob(name, resolve(manifest.root, name), stream[1]) for stream, name in todo.items())
    with path.open("a", encoding="utf-8") as file_of_results, DecodePool(workers) as pool:
        file_of_results.write("\n")  # ends a line that a crash has cut short
        for done, (stream, (_, result)) in enumerate(zip(streams, pool.whole(jobs), strict=True), 1):
            found[stream] = result
            file_of_results.write(_line(stream, result) + "\n")
            file_of_results.flush()
            listen(Event("step", "decoding", done, len(todo)))
    return found


def _line(stream: Stream, result: Found) -> str:
    record: dict[str, Any] = {"version": VERSION, "by": backend_version("pyav")}
    record |= {"sha256": stream[0], "stream": stream[1]}
    if isinstance(result, ClipError):
        return json.dumps({**record, "code": result.code, "message": result.message})
    return json.dumps({**record, "whole": asdict(result)})


def _read_checked(path: Path) -> dict[Stream, Found]:
    """Results of earlier runs; lines cut short by a crash, or of another decoder, are passed over."""
    found: dict[Stream, Found] = {}
    by = backend_version("pyav")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            if (record["version"], record["by"]) != (VERSION, by):
                continue
            failed = "code" in record
            result = (
                ClipError(record["code"], record["message"]) if failed else Whole.from_json(record["whole"])
            )
            found[record["sha256"], record["stream"]] = result
        except (ValueError, KeyError, TypeError):
            continue
    return found


# ---- files ------------------------------------------------------------------------------------------------


def _contents(manifest: Manifest, rows: Iterable[Row], media: Mapping[str, Media]) -> Iterator[Problem]:
    """Digests other than stated, files twice under two names, one content in two splits."""
    say = partial(problem, manifest, level="hash")
    first: dict[str, str] = {}
    clips: dict[tuple[object, ...], Clip] = {}
    told: set[str] = set()
    for row in rows:
        clip = row[1]
        file = media.get(clip.media_path)
        if file is None or file.sha256 is None:
            continue
        if clip.media_sha256 not in (None, file.sha256):
            fix = "copy the file again"
            yield say(
                "E_HASH_MISMATCH", clip.media_path, row, got=file.sha256, want=clip.media_sha256, fix=fix
            )
        other = first.setdefault(file.sha256, file.path)
        if other != file.path and file.path not in told:
            told.add(file.path)
            text = f"{file.path} has the same content as {other}"
            yield say("W_DUP_CONTENT", text, row, fix="keep one of them")
        interval = (file.sha256, clip.stream_index, clip.start_frame or 0, clip.end_frame, clip.bbox_track)
        before = clips.setdefault((*interval, clip.person_id, clip.protocol, clip.label_space), clip)
        if before.split != clip.split and before.media_path != clip.media_path:
            text = f"same content and frames as {before.clip_id}, other split"
            yield say("E_SPLIT_LEAK_CONTENT", text, row, got=clip.split, want=before.split)


def _files(
    manifest: Manifest, rows: Iterable[Row], media: Mapping[str, Media], found: Mapping[Stream, Found]
) -> Iterator[Problem]:
    """What is wrong with a file whatever its clips: said once, at its first clip."""
    say = partial(problem, manifest, level="decode")
    seen: set[tuple[str, int | None]] = set()
    for row in rows:
        clip = row[1]
        for path in (clip.video_path, clip.skeleton_path):
            file = media.get(path or "")
            if file is None or (file.path, clip.stream_index) in seen:
                continue
            seen.add((file.path, clip.stream_index))
            if file.code is not None:
                # a format nobody reads here costs a clip its skeletons, not its video
                spare = file.code == "E_SKEL_FORMAT" and clip.video_path
                yield say("W_SKEL_FORMAT" if spare else file.code, str(file.error), row)
                continue
            result = found.get((str(file.sha256), clip.stream_index)) if path == clip.video_path else None
            if isinstance(result, ClipError):
                yield say(result.code, result.message, row)
            elif result:
                for warning in result.warnings:
                    code, _, text = warning.partition(": ")
                    yield say(code, f"{file.path}: {text}", row)
                yield from _stated(manifest, row, result)


def _stated(manifest: Manifest, row: Row, whole: Whole) -> Iterator[Problem]:
    """What the source states about a file, against the file."""
    say = partial(problem, manifest, row=row, level="decode")
    clip = row[1]
    fps = whole.fps_num / whole.fps_den if whole.fps_num and whole.fps_den else None
    if fps and clip.fps_num and clip.fps_den:
        stated = clip.fps_num / clip.fps_den
        if abs(stated - fps) > FPS_TOLERANCE * fps:
            text = f"{clip.video_path} has another frame rate than stated; are frame numbers meant for this file?"
            yield say("W_FPS_MISMATCH", text, got=f"{fps:.3f}", want=f"{stated:.3f}")
    if clip.n_frames is not None and not whole.damage and clip.n_frames != whole.frames:
        text = f"{clip.video_path} has another number of frames than stated"
        yield say("W_HEADER_COUNT", text, got=whole.frames, want=clip.n_frames)
    if clip.width and clip.height and (clip.width, clip.height) != (whole.width, whole.height):
        text = f"{clip.video_path} has another size than stated; boxes were meant for the stated one"
        want = f"{clip.width}x{clip.height}"
        yield say("W_FRAME_SIZE", text, got=f"{whole.width}x{whole.height}", want=want)
    declared = _declared_duration(clip)
    if fps and declared is not None and abs(declared - whole.frames / fps) > DURATION_TOLERANCE:
        text = f"{clip.video_path} is not as long as the annotation declares"
        yield say("W_DURATION_DECLARED", text, got=f"{whole.frames / fps:.1f} s", want=f"{declared:.1f} s")


def _declared_duration(clip: Clip) -> float | None:
    try:
        extra = json.loads(clip.extra or "{}")
        value = extra.get("declared_duration_s") if isinstance(extra, dict) else None
    except (ValueError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) else None


# ---- clips ------------------------------------------------------------------------------------------------


def _clip(
    manifest: Manifest, row: Row, media: Mapping[str, Media], found: Mapping[Stream, Found]
) -> Iterator[Problem]:
    """A clip's frames and boxes against what its file really holds."""
    say = partial(problem, manifest, row=row, level="decode")
    clip = row[1]
    file = media.get(clip.video_path or "")
    whole = found.get((file.sha256, clip.stream_index)) if file and file.sha256 else None
    if whole is None or isinstance(whole, ClipError):
        return
    frames, start, end = whole.frames, clip.start_frame or 0, clip.end_frame
    if whole.damage and (end is None or end > whole.good):
        code = "W_DAMAGED" if whole.good > start else "E_DECODE"
        text = f"{whole.good} of its frames decode: {whole.damage}"
        yield say(code, text, want="all" if end is None else end, fix="copy the file again")
    elif start >= frames or (end is not None and end > frames + 1):
        text, fix = "the clip leaves its file", "correct the interval"
        yield say("E_END_PAST_EOF", text, got=f"{frames} frames", want=end or start + 1, fix=fix)
    elif end == frames + 1:
        yield say("W_END_PAST_EOF", "end_frame is one frame past the end", got=end, want=frames)
    yield from _boxes(manifest, row, whole.width, whole.height)


def _boxes(manifest: Manifest, row: Row, width: int, height: int) -> Iterator[Problem]:
    say = partial(problem, manifest, row=row, level="decode")
    picture = f"{width}x{height}"
    over = False
    for frame, x1, y1, x2, y2 in row[1].bbox_track or ():
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            box = f"{x1:g} {y1:g} {x2:g} {y2:g}"
            fix = "are the boxes in pixels of another resolution?"
            yield say(
                "E_BBOX_OUTSIDE", f"key box of frame {frame}", got=box, want=f"inside {picture}", fix=fix
            )
            return
        over |= x1 < 0 or y1 < 0 or x2 > width or y2 > height
    if over:
        yield say(
            "W_BBOX_CLIPPED", "a key box reaches over the edge and is cut there", want=f"inside {picture}"
        )


def _skeletons(
    manifest: Manifest, rows: Iterable[Row], media: Mapping[str, Media], listen: Listener
) -> Iterator[Problem]:
    """Clips whose frames or person their skeleton file does not have, or in which nobody is tracked."""
    read = lru_cache(maxsize=2)(read_skeletons)  # clips of a long recording follow each other
    todo = [row for row in rows if (file := media.get(row[1].skeleton_path or "")) and not file.code]
    for done, row in enumerate(todo, 1):
        clip = row[1]
        try:
            whole = read(resolve(manifest.root, clip.skeleton_path or ""), clip.skeleton_format)
            whole.part(clip.start_frame or 0, clip.end_frame, clip.person_id)
        except ClipError as error:
            fix = "correct the row, or restore the file"
            text = f"{clip.skeleton_path}: {error.message}"
            yield problem(manifest, error.code, text, row, level="decode", fix=fix)
        listen(Event("step", "reading skeletons", done, len(todo)))
