"""Weights from the Hugging Face hub: resumed where a download broke off, checked before anything sees them.

huggingface_hub resumes within one call only, and throws a part away when the process ends. A few gigabytes are worth
keeping, so the part is a file of ours, and only a whole and checked one is handed to the hub's cache.
"""

import fcntl
import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from pipeline.encoders.weights import Weights, find_in, find_weights, weights_digest
from pipeline.errors import UserError
from pipeline.events import Event, Listener, silent


def fetch(entry: Weights, to: Path | None = None, listen: Listener = silent) -> dict[str, Any]:
    """Download what an entry lacks, into the hub's cache, or under ``to`` as REPOSITORY NAME/PATH IN IT.

    Returns {"name", "path", "fetched" (paths downloaded now), "package", "licence"}. What is here already is checked.

    Raises:
        UserError: nothing to download, offline, refused by the hub, broken off, or not the file that is pinned.
            What was there before is never touched.
    """
    fetched: list[Path] = []
    path = find_in(entry, to) if to and entry.repo else find_weights(entry, to)
    if path is not None:
        weights_digest(entry, path)
    elif entry.repo is not None:
        listen(Event("note", "fetch", text=f"{entry.name}: from {entry.repo}, licence {entry.licence}"))
        fetched = [_fetch_file(entry, name, to, listen) for name in reversed(entry.files)]
        path = fetched[-1]  # that of the tensors
    elif entry.package is None:
        raise UserError(f"weights {entry.name!r} cannot be fetched: they are {entry.trained_on}")
    return {
        "name": entry.name,
        "path": str(path) if path else None,
        "fetched": [str(new) for new in fetched],
        "package": entry.package,
        "licence": entry.licence,
    }


def _fetch_file(entry: Weights, name: str, to: Path | None, listen: Listener) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    repo = str(entry.repo)
    url = hf_hub_url(repo, name, revision=entry.revision)
    facts = _asking(entry, name, lambda: get_hf_file_metadata(url))
    if facts.etag is None:
        raise UserError(f"{url}: no hub answers there; check HF_ENDPOINT")
    # Large files are named by their SHA-256, small ones (config.json) by their git hash.
    promised = facts.etag if re.fullmatch(r"[0-9a-f]{64}", facts.etag) else None
    pinned = entry.sha256 if name == entry.file else None
    if pinned and promised and pinned != promised:
        raise UserError(
            f"{name} of huggingface.co/{repo} has SHA-256 {promised[:16]}..., weights {entry.name!r} pin {pinned[:16]}"
            "...: the repository has changed; nothing was downloaded"
        )
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    target = to / PurePosixPath(repo).name / name if to else blobs / facts.etag
    if target.is_dir():
        raise UserError(f"{target}: is a folder, where the file {name} goes; move it away")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{facts.etag[:16]}.part")
        with part.open("ab") as file:
            _lock(file, part)
            report = _progress(name, facts.size, listen)
            _asking(entry, name, lambda: _download(url, facts, file, report))
        _check(part, pinned or promised, f"{name} of huggingface.co/{repo}")
        part.replace(target)
    if to:
        return target
    # It finds the blob there and adds the snapshot, as if it had downloaded it.
    return Path(_asking(entry, name, lambda: hf_hub_download(repo, name, revision=entry.revision)))


class _Reporting:
    """A file that tells how long it is after every write."""

    def __init__(self, file: IO[bytes], report: Callable[[int], None]) -> None:
        self.file, self.report = file, report

    def write(self, data: bytes) -> int:
        count = self.file.write(data)
        self.report(self.file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _download(url: str, facts: Any, file: IO[bytes], report: Callable[[int], None]) -> None:
    """Append the rest of the file; http_get takes up to five breaks of the connection in its stride."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars()  # ours is enough
    if facts.size is not None and file.tell() > facts.size:
        file.seek(0)
        file.truncate()
    same_host = (
        urlsplit(facts.location).netloc == urlsplit(url).netloc
    )  # a storage host must not see the token
    headers = build_hf_headers(token=None if same_host else False)
    part: Any = _Reporting(file, report)
    http_get(facts.location, part, resume_size=file.tell(), headers=headers, expected_size=facts.size)


def _progress(name: str, size: int | None, listen: Listener) -> Callable[[int], None]:
    stage = f"fetching {PurePosixPath(name).name}"
    total = (size or 0) // 1_000_000
    return lambda done: listen(Event("step", stage, done // 1_000_000, total, unit="MB"))


def _asking(entry: Weights, name: str, call: Callable[[], Any]) -> Any:
    """Ask the hub; what it refuses becomes one line with the remedy."""
    from huggingface_hub import errors

    what = f"{name} of huggingface.co/{entry.repo}"
    by_hand = f"bring {what} from elsewhere and pass --weights FOLDER"
    try:
        return call()
    except errors.OfflineModeIsEnabled:
        raise UserError(f"HF_HUB_OFFLINE is set, so nothing is fetched: unset it, or {by_hand}") from None
    except errors.GatedRepoError:
        raise UserError(
            f"{what}: accept its terms at https://huggingface.co/{entry.repo}, then `hf auth login` and fetch again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what}: there is no such repository, or it is private; `hf auth login` if it is yours"
        ) from None
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError):
        revision = entry.revision or "main"
        raise UserError(f"{what}: not in the repository at {revision}; it was moved: {by_hand}") from None
    except (errors.HTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{what}: the connection to the hub failed ({reason}); run the same command again, it goes on where it "
            f"was, or {by_hand}"
        ) from None


def _lock(file: IO[bytes], part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{part}: another process is downloading it; wait for that one") from None
    except OSError:  # a file system without locks
        pass


def _check(part: Path, expected: str | None, what: str) -> None:
    """Remove a download that is not what was promised."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected not in (None, found):
        part.unlink()
        raise UserError(
            f"{what}: the download has SHA-256 {found[:16]}..., not {str(expected)[:16]}...; it was thrown away, try "
            "again, and do not use this source if it stays so"
        )
