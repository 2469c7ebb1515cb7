"""Files on disk, by their directory entry alone (level file)."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from stat import S_ISREG

from pipeline.checks import Problem, problem
from pipeline.clip import path_problem, resolve
from pipeline.errors import ClipError
from pipeline.manifest import Manifest

_LFS = b"version https://git-lfs"
_State = tuple[str, str, str] | int  # (code, text, fix) of an unusable file, or the bytes of a usable one


def files(manifest: Manifest) -> Iterator[Problem]:
    """Rows whose video or skeleton file is not there, empty, a pointer, or of another size than stated."""
    say = partial(problem, manifest, level="file")
    known: dict[str, _State] = {}
    for row in enumerate(manifest.clips, 1):
        clip = row[1]
        for path in (clip.video_path, clip.skeleton_path):
            if not path or path_problem(path):  # reported by level schema
                continue
            if path not in known:
                known[path] = _state(manifest.root, path)
            state = known[path]
            if isinstance(state, tuple):
                yield say(state[0], state[1], row, fix=state[2])
            elif path == clip.media_path and clip.media_bytes not in (None, state):
                text, fix = f"{path} is not as long as stated", "copy it again"
                yield say("E_SIZE_MISMATCH", text, row, got=state, want=clip.media_bytes, fix=fix)


def _state(root: Path, path: str) -> _State:
    try:
        file = resolve(root, path)
        facts = file.stat()
        if not S_ISREG(facts.st_mode):
            return "E_MISSING_FILE", f"{path} under {root} is not a file", "correct the path"
        if facts.st_size == 0:
            return "E_EMPTY_FILE", f"{path} has 0 bytes", "copy it again"
        if facts.st_size < 1024:  # pointers of Git LFS are about 130 bytes
            with file.open("rb") as opened:
                if opened.read(len(_LFS)) == _LFS:
                    return "W_LFS_POINTER", f"{path} is a Git LFS pointer, not the file", "git lfs pull"
    except ClipError as error:
        return error.code, error.message, "copy the file into the root"
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        return "E_MISSING_FILE", f"{path} under {root}: {reason}", "check --root and the list"
    return facts.st_size
