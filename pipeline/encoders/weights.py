"""Encoder weights: the table of what there is (manifests/weights.yaml), where a file is, and its digest."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.encoders import family_of
from pipeline.encoders.digests import file_sha256, folder_sha256
from pipeline.errors import UserError
from pipeline.own_yaml import load_own_yaml
from pipeline.spec import digest

TABLE = Path(__file__).resolve().parents[2] / "manifests" / "weights.yaml"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Weights(BaseModel):
    """One entry of weights.yaml, or of the `weights:` of a preset file. Exactly one source of four.

    A file beside the table (`path`); a file of a hub repository (`repo` and `file`, with the files `also` that
    it needs beside it); a folder of the user's own (`folder: true`); an installed package (`package`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: Path  # folder that `path` starts from: that of the table
    model: str  # a name create_model knows
    config: dict[str, Any] = {}
    path: str | None = None
    repo: str | None = None
    file: str | None = None
    also: tuple[str, ...] = ()
    folder: bool = False
    package: str | None = None  # a requirement, e.g. mediapipe==0.10.21
    revision: str | None = None  # commit of the repository; None = not pinned
    bytes: int | None = None
    about: str | None = None  # the size as published, where the exact one is not known
    sha256: Sha256 | None = None  # of path or file
    twin: str | None = None  # entry with the same tensors, taken where this one's file is not there
    licence: str
    citation: str
    trained_on: str

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.path is not None, self.repo is not None, self.folder, self.package is not None)) != 1:
            raise ValueError("an entry has one of path, repo, folder and package")
        if (self.repo is None) != (self.file is None) or (self.also and not self.repo):
            raise ValueError("repo and file go together, and `also` with them")
        for source in map(PurePosixPath, filter(None, (self.path, self.file, *self.also))):
            if source.is_absolute() or ".." in source.parts:
                raise ValueError(f"{source} leaves its folder")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Paths in the repository of a hub entry, that of the tensors first."""
        if self.file is None:
            return ()
        return (self.file, *(str(PurePosixPath(self.file).parent / name) for name in self.also))

    @property
    def size(self) -> str:
        """For people: "174 MB", or as published; "" where it is not known."""
        if self.bytes is None:
            return self.about or ""
        return f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.0f} MB"


def parse_entries(values: Any, source: Path) -> dict[str, Weights]:
    """Entries by name out of the YAML of ``source``. Raises UserError naming the file and the entry."""
    entries = {}
    for name, fields in values.items():
        try:
            entries[name] = Weights(**{**fields, "name": name, "base": source.parent})
        except (ValidationError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{source}: entry {name!r} is not valid ({reason}); correct it") from None
    return entries


@cache
def weights_table() -> Mapping[str, Weights]:
    """All entries of weights.yaml by name."""
    return parse_entries(load_own_yaml(TABLE), TABLE)


def weights_entry(name: str, own: Mapping[str, Weights] | None = None) -> Weights:
    """The entry of that name, from ``own`` (those of a preset) before the table.

    Raises UserError: no such entry, or its model is unknown here.
    """
    table = {**weights_table(), **(own or {})}
    if name not in table:
        raise UserError(f"unknown weights {name!r}: use one of {', '.join(table)}")
    try:
        family_of(table[name].model)
    except UserError as error:
        raise UserError(f"weights {name!r}: {error}") from None
    return table[name]


def resolve_weights(entry: Weights | str, given: Path | None = None, alone: bool = False) -> Path | None:
    """The file or folder of an entry on this machine, None for a package; nothing is downloaded.

    Args:
        given: folder to look in first. A hub file is found there by its name, by its path in the repository, or
            under the repository's own name; a folder under the entry's name.
        alone: ``given`` is for this entry alone, so it may also be the file, or the folder, itself.

    Raises:
        UserError: not here; says what to get, how, and its licence.
    """
    entry = weights_entry(entry) if isinstance(entry, str) else entry
    found = find_weights(entry, given, alone)
    if found is not None or entry.package is not None:
        return found
    if entry.path is not None:
        raise UserError(f"{entry.base / entry.path}: weights {entry.name!r} are not there; restore the file")
    there = f"in {given}" if given is not None else "given"
    if entry.folder:
        raise UserError(
            f"weights {entry.name!r}: no folder {entry.name} {there}; make it ({entry.trained_on}) and pass the "
            f"folder that holds it with --weights (licence: {entry.licence})"
        )
    size = f" ({entry.size})" if entry.size else ""
    looked = f"{there} or " if given is not None else ""
    how = entry.name if entry.name in weights_table() else "--preset FILE"
    raise UserError(
        f"weights {entry.name!r}: {' and '.join(entry.files)} of huggingface.co/{entry.repo}{size} is not {looked}in "
        f"the Hugging Face cache; run `bmoe-cache weights fetch {how}`, or put it in a folder and pass "
        f"--weights FOLDER (licence: {entry.licence})"
    )


def find_weights(entry: Weights, given: Path | None = None, alone: bool = False) -> Path | None:
    """``resolve_weights`` that gives None for what is not here."""
    if entry.package is not None:
        return None
    if entry.path is not None:
        own = given if alone and given is not None and given.is_file() else entry.base / entry.path
        return own if own.is_file() else None
    if given is not None and (path := find_in(entry, given, alone)) is not None:
        return path
    if entry.repo is not None and (cached := _in_hub_cache(entry)) is not None:
        return cached
    return find_weights(weights_entry(entry.twin), given, alone) if entry.twin else None


def find_in(entry: Weights, folder: Path, alone: bool = False) -> Path | None:
    """The part of ``find_weights`` that looks into a folder."""
    candidates = [folder / entry.name] if entry.folder else _places(entry, folder)
    if alone or folder.name == entry.name:
        candidates.append(folder)
    there = Path.is_dir if entry.folder else partial(_is_whole, entry)
    return next((path for path in candidates if there(path)), None)


def _places(entry: Weights, folder: Path) -> list[Path]:
    file, repo = PurePosixPath(str(entry.file)), PurePosixPath(str(entry.repo))
    return [folder / repo.name / file, folder / file, folder / file.name]


def _is_whole(entry: Weights, path: Path) -> bool:
    return path.is_file() and all((path.parent / name).is_file() for name in entry.also)


def _in_hub_cache(entry: Weights) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for revision in (entry.revision, None):  # None: the main branch, whose file may be the pinned one
        found = [try_to_load_from_cache(str(entry.repo), name, revision=revision) for name in entry.files]
        if all(isinstance(path, str) for path in found):
            return Path(str(found[0]))
    return None


def weights_digest(entry: Weights, path: Path | None) -> str:
    """What stands for the weights in a stage's key: 64 hex digits that change when any byte of them does.

    The SHA-256 of the file; of the names and digests of all files where there are several; of the requirement of
    a package. Raises UserError when a file is not the one its entry pins.
    """
    if path is None:
        return digest({"package": entry.package})
    if path.is_dir():
        return folder_sha256(path)
    found = file_sha256(path)
    twin = weights_entry(entry.twin) if entry.twin else None
    served_by = twin if twin is not None and path.name == PurePosixPath(str(twin.file)).name else entry
    if served_by.sha256 not in (None, found):
        raise UserError(
            f"{path}: SHA-256 is {found[:16]}..., weights {served_by.name!r} pin {str(served_by.sha256)[:16]}...; the "
            "file is damaged or another one: move it away and fetch it again"
        )
    if entry.also:
        return folder_sha256(path.parent, [path.name, *entry.also])
    return found


def describe(entry: Weights, path: Path | None) -> dict[str, Any]:
    """An entry as JSON values, and where it is here."""
    fields = entry.model_dump(mode="json", exclude={"base"}, exclude_defaults=True)
    return {**fields, "size": entry.size, "here": str(path) if path else None}
