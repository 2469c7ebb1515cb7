"""Encoder weights: where a file is, what it holds, and whether it fits.

A weights file is untrusted data: safetensors, or a pickle read by torch's restricted unpickler, or a
TorchScript archive of which only the tensors are taken. Names and digests are in ``manifests/weights.yaml``.
"""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.encoders import SIZES, create_model, family_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
WRAPPERS = ("state_dict", "model", "module")  # mmcv and mmengine; VideoMAE; DeepSpeed
PREFIXES = ("module.", "_orig_mod.", "model.")  # data parallel; torch.compile; Hugging Face remote code
JIT_ONLY = ("data_preprocessor.mean", "data_preprocessor.std")  # tracing turns these into persistent buffers
SHOWN = 10  # names per kind in the message about a file that does not fit


class Weights(BaseModel):
    """One entry of weights.yaml: an embedded file (path, under manifests/) or a file of a hub repository."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str  # a name create_model knows
    config: dict[str, Any] = {}
    path: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str | None = None  # commit of the repository; None = not pinned
    bytes: int | None = None
    sha256: str | None = None
    licence: str
    citation: str
    trained_on: str

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        family_of(self.model)
        if (self.path is None) == (self.repo is None) or (self.repo is None) != (self.file is None):
            raise ValueError("an entry has either path, or repo and file")
        source = PurePosixPath(self.path or self.file or "")
        if source.is_absolute() or ".." in source.parts:
            raise ValueError(f"{source} leaves its folder")
        return self


@cache
def weights_table(path: Path = MANIFESTS / "weights.yaml") -> Mapping[str, Weights]:
    """All entries by name. Raises UserError naming the file and the entry that is not valid."""
    table = {}
    for name, fields in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            table[name] = Weights(name=name, **fields)
        except (ValidationError, TypeError, UserError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: entry {name!r} is not valid ({reason}); correct it") from None
    return table


def weights_entry(name: str) -> Weights:
    """The entry of that name; UserError listing the names when there is none such."""
    table = weights_table()
    if name not in table:
        raise UserError(f"unknown weights {name!r}: use one of {', '.join(table)}")
    return table[name]


def resolve_weights(name: str, folder: Path | None = None) -> Path:
    """Find the file of an entry on this machine; nothing is downloaded.

    Embedded weights are under manifests/. Others are looked up in ``folder`` (as ``folder/FILE NAME`` or by
    their path in the repository), then in the Hugging Face cache.

    Raises:
        UserError: not found; says which file of which repository, how to get it, and its licence.
    """
    entry = weights_entry(name)
    if entry.path is not None:
        path = MANIFESTS / entry.path
        if not path.is_file():
            raise UserError(
                f"{path}: embedded weights {name!r} are missing; restore the file from the repository"
            )
        return path
    repo, file = str(entry.repo), str(entry.file)  # the validator has seen that both are there
    if folder is not None:
        for candidate in (folder / PurePosixPath(file).name, folder / file):
            if candidate.is_file():
                return candidate
    cached = _in_hub_cache(repo, file, entry.revision)
    if cached is not None:
        return cached
    looked = f"in {folder} or " if folder is not None else ""
    raise UserError(
        f"weights {name!r}: {file} of huggingface.co/{repo} is not {looked}in the Hugging Face cache; run "
        f"`hf download {repo} {file}`, or put the file in a folder and pass --weights FOLDER "
        f"(licence: {entry.licence})"
    )


def _in_hub_cache(repo: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_sha256(name: str, path: Path) -> str:
    """SHA-256 of the file of an entry; UserError when the manifest pins another one."""
    found, pinned = file_sha256(path), weights_entry(name).sha256
    if pinned is not None and found != pinned:
        raise UserError(
            f"{path}: SHA-256 is {found[:16]}..., weights {name!r} pin {pinned[:16]}...; fetch it "
            "again, the file is damaged or another one"
        )
    return found


def load_state_dict(path: Path) -> dict[str, "Tensor"]:
    """Tensors of a weights file by name, floating ones in float32, wrappers and common prefixes taken off.

    Reads safetensors, torch checkpoints (only those the restricted unpickler accepts: no code of the file is
    ever run) and TorchScript archives (tensors only).

    Raises:
        UserError: not readable, refused by the unpickler, or no state dict inside.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path")
    try:
        held = _read(path)
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged file can make the readers raise anything
        asked = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"it asks for {asked[1]}" if asked else first_line.split(". ")[0]
        raise UserError(
            f"{path}: not readable as weights without running code from the file ({reason}); use a "
            "safetensors file or a checkpoint that holds tensors only"
        ) from None
    state = _unwrap(held)
    if not state or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds no state dict (names to tensors); use a weights file")
    for key in JIT_ONLY:
        state.pop(key, None)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _read(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {"/".join(name.split("/")[1:]) for name in archive.namelist()}
        if "constants.pkl" in names:  # only TorchScript archives have it
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        if "data.pkl" not in names:
            raise UserError(
                f"{path}: a program or archive, not weights; use the .pth or TorchScript file of this model"
            )
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(held: Any) -> dict[str, Any]:
    while isinstance(held, Mapping):
        inner = next((held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if inner is None:
            return dict(held)
        held = inner
    return {}


def load_weights(model: "nn.Module", path: Path) -> None:
    """Load a weights file into a model of create_model, strictly: every name and every shape must agree.

    A model built on the meta device takes the file's tensors as its own.

    Raises:
        UserError: the file does not fit; says what it looks like and the first names that differ.
    """
    from pipeline.encoders.videomaev2 import VideoMAEv2

    state = load_state_dict(path)
    resembles = _resembles(state)
    if isinstance(model, VideoMAEv2):
        state = {re.sub(r"^(backbone|encoder)\.", "", key): value for key, value in state.items()}
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = []
    for what, keys in (
        ("missing", [key for key in wanted if key not in found]),
        ("unexpected", [key for key in found if key not in wanted]),
        (
            "other shape",
            [f"{k} {found[k]} not {wanted[k]}" for k in wanted if found.get(k, wanted[k]) != wanted[k]],
        ),
    ):
        if keys:
            more = ", ..." if len(keys) > SHOWN else ""
            problems.append(f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{more}")
    if problems:
        raise UserError(
            f"{path}: looks like {resembles}, which is not the {type(model).__name__} asked for "
            f"({'; '.join(problems)}); use the file of this model, or the model and options of this file"
        )
    model.load_state_dict(state, strict=True, assign=any(p.is_meta for p in model.parameters()))


def _resembles(state: Mapping[str, "Tensor"]) -> str:
    """What kind of checkpoint the names belong to, for the message about one that does not fit."""
    for pattern, family, kind in (
        (r"encoder_to_decoder\.weight", None, "a VideoMAE pre-training checkpoint (encoder and decoder)"),
        (r"videomae\.encoder\..*", None, "a transformers VideoMAE checkpoint"),
        (r"backbone\.blocks\.0\.mlp\.layers\..*", None, "an mmaction2 VideoMAE checkpoint"),
        (r"(?:backbone\.|encoder\.)?blocks\.(\d+)\.attn\.q_bias", "videomaev2", "VideoMAE-V2"),
        (r"backbone\.layers\.(\d+)\.ln1\.weight", "sapiens-seg", "Sapiens segmentation"),
        (r"layers\.\d+\.ln1\.weight", None, "a Sapiens pre-training encoder"),
        (r"backbone\.layer1\..*\.fcce\..*", None, "MANet"),
    ):
        hits = [match for key in state if (match := re.fullmatch(pattern, key))]
        if hits and family:
            depth, width = 1 + max(int(hit[1]) for hit in hits), len(state[hits[0][0]])
            for size, (size_family, options) in SIZES.items():
                if size_family == family and (options["depth"], options["embed_dim"]) == (depth, width):
                    return size
            return f"{kind} of depth {depth} and width {width}"
        if hits:
            return kind
    return "no model known here"


def load_encoder(model_name: str, config: Mapping[str, Any], path: Path) -> "nn.Module":
    """A frozen encoder with its weights: float32 on the CPU, evaluation mode, no gradients."""
    import torch

    with torch.device("meta"):  # spares the random initialisation, half a minute at 1 B parameters
        model = create_model(model_name, **config)
    load_weights(model, path)
    return model.eval().requires_grad_(False)
