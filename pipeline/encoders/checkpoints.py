"""Checkpoints into models: every name and every shape must agree, and what a file holds beyond that is said."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.encoders import SIZES, create_model, model_class, model_options
from pipeline.encoders.tensors import read_tensors
from pipeline.encoders.weights import Weights, weights_digest
from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 10  # names per kind in the message about a file that does not fit

# By class: names a file may hold although the model was built without them -> why they are not needed.
SURPLUS: Mapping[str, Mapping[str, str]] = {
    "VideoMAEv2": {
        r"decoder\..*|mask_token|encoder_to_decoder\..*": "the decoder of masked pre-training; features need none",
        r"head\.(weight|bias)": "the classification head; the model is built without one (num_classes: 0)",
    },
    "SapiensSeg": {
        r"data_preprocessor\.(mean|std)": "constants of the preprocessor, which tracing turns into buffers",
    },
}
# By class: names of a model that a file may lack, all of them and nothing else -> why.
UNUSED: Mapping[str, Mapping[str, str]] = {
    "MANet": {
        r".*\.action_p2_\w+\.weight": "declared by the original, used by no forward pass; left at zero"
    },
}


@dataclass(frozen=True)
class Difference:
    """Tensors in which a file and its model differ although it loads.

    Attributes:
        what: "dropped" (only in the file) or "absent" (only in the model).
        names: the tensors, as the model names them.
        why: half a sentence.
    """

    what: str
    names: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{len(self.names)} tensors {self.what}, {_shown(self.names, 2)}: {self.why}"


def load_encoder(model_name: str, config: Mapping[str, Any], path: Path | None) -> "nn.Module":
    """A frozen encoder with its weights: float32 on the CPU, evaluation mode, no gradients.

    A class with a classmethod ``from_files(path, **config)`` reads the file or folder itself (None where its
    weights come in a package); all others are filled from one checkpoint, see ``load_weights``.
    """
    return open_encoder(model_name, config, path)[0]


def open_encoder(
    model_name: str, config: Mapping[str, Any], path: Path | None
) -> tuple["nn.Module", tuple[Difference, ...]]:
    """``load_encoder`` that also says in what file and model differ."""
    import torch

    differences: tuple[Difference, ...] = ()
    from_files = getattr(model_class(model_name), "from_files", None)
    if from_files is not None:
        build = functools.partial(from_files, path)
        model: nn.Module = build(**model_options(model_name, build, config))
    elif path is None:
        raise UserError(
            f"model {model_name!r} reads a checkpoint; give its weights entry a file, not a package"
        )
    else:
        with torch.device("meta"):  # spares the random initialisation, half a minute at 1 B parameters
            model = create_model(model_name, **config)
        differences = load_weights(model, path)
    return model.eval().requires_grad_(False), differences


def check(entry: Weights, path: Path | None) -> dict[str, Any]:
    """Load the weights of an entry as a build would.

    Returns {"name", "model", "path", "sha256", "pinned" (whether the entry says which), "parameters", "differences"}.

    Raises:
        UserError: damaged, another file than the pinned one (then with what it holds), or not of this model.
    """
    try:
        sha256 = weights_digest(entry, path)
    except UserError as error:
        raise UserError(f"{error}; {_held(entry, path)}") from None
    model, differences = open_encoder(entry.model, entry.config, path)
    return {
        "name": entry.name,
        "model": entry.model,
        "path": str(path) if path else None,
        "sha256": sha256,
        "pinned": entry.sha256 is not None,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "differences": [str(difference) for difference in differences],
    }


def _held(entry: Weights, path: Path | None) -> str:
    """What a file that is not the pinned one holds, for the message about it."""
    try:
        open_encoder(entry.model, entry.config, path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    return f"its names and shapes are those of {entry.model}"


def load_weights(model: "nn.Module", path: Path) -> tuple[Difference, ...]:
    """Load a weights file into a model of create_model, strictly: every name and every shape must agree.

    Floating tensors become float32. A model built on the meta device takes the file's tensors as its own. What
    SURPLUS and UNUSED name may differ, and is returned.

    Raises:
        UserError: the file cannot be read or does not fit; says what it looks like, the first names that differ,
            and the config that would fit where only options are wrong.
    """
    import torch

    state = read_tensors(path)
    kind = type(model).__name__
    looks_like = resembles(state)
    if kind == "VideoMAEv2":  # prefixes its original loader takes off; in the other families they are names
        state = _renamed(path, state)
    wanted = model.state_dict()
    differences = []
    for pattern, why in SURPLUS.get(kind, {}).items():
        if names := [key for key in state if key not in wanted and re.fullmatch(pattern, key)]:
            differences.append(Difference("dropped", tuple(names), why))
            state = {key: value for key, value in state.items() if key not in names}
    missing = [key for key in wanted if key not in state]
    for pattern, why in UNUSED.get(kind, {}).items():
        if missing and missing == [key for key in wanted if re.fullmatch(pattern, key)]:
            differences.append(Difference("absent", tuple(missing), why))
            state |= {key: torch.zeros(wanted[key].shape) for key in missing}
    _check_fit(path, looks_like, kind, wanted, state)
    _check_numbers(path, wanted, state)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    model.load_state_dict(state, strict=True, assign=any(p.is_meta for p in model.parameters()))
    return tuple(differences)


def _renamed(path: Path, state: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The state without the prefixes of VideoMAE-V2. Raises UserError where two tensors then have one name."""
    names: dict[str, str] = {}  # without prefixes -> as the file has it
    for name in state:
        bare = re.sub(r"^((backbone|encoder|_orig_mod)\.)+", "", name)
        if bare in names:
            raise UserError(
                f"{path}: holds {bare} twice, as {names[bare]} and {name}; save the encoder's own tensors alone"
            )
        names[bare] = name
    return {bare: state[name] for bare, name in names.items()}


def _check_numbers(path: Path, wanted: Mapping[str, "Tensor"], state: Mapping[str, "Tensor"]) -> None:
    """Raises UserError naming the first tensor of another kind of number, or with numbers that are none."""
    import torch

    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, value in wanted.items():
        held = state[name]
        if (held.dtype in floats) != value.is_floating_point():
            kinds = f"{held.dtype}, not {value.dtype}".replace("torch.", "")
            raise UserError(
                f"{path}: {name} is {kinds}; use the file of this model in floating point, not quantised"
            )
        if not held.isfinite().all():
            raise UserError(
                f"{path}: {name} holds NaN or infinity; use a file of a training run that converged"
            )


def _check_fit(
    path: Path, looks_like: str, kind: str, wanted: Mapping[str, "Tensor"], state: Mapping[str, "Tensor"]
) -> None:
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {tuple(state[key].shape)} not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "other shape": shapes}
    if any(faults.values()):
        told = "; ".join(
            f"{len(keys)} {what}: {_shown(keys, SHOWN)}" for what, keys in faults.items() if keys
        )
        remedy = "use the file of this model, or the model and options of this file"
        if options := _options_of(missing, unexpected):
            remedy = f"this file needs the config {{{', '.join(options)}}}"
        raise UserError(
            f"{path}: looks like {looks_like} and does not fit the {kind} asked for ({told}); {remedy}"
        )


def _options_of(missing: list[str], unexpected: list[str]) -> list[str]:
    """The options of VideoMAEv2 that fit a file, where its final norm and head are all that differs."""
    ends = {f"{part}.{name}" for part in ("norm", "fc_norm", "head") for name in ("weight", "bias")}
    if not missing or {*missing, *unexpected} - ends:
        return []
    norms = [n for n in ("norm", "fc_norm") if {f"{n}.weight", f"{n}.bias"} <= {*unexpected}]
    if not norms and any("norm." in key for key in missing):
        return []  # no option does without a norm
    options = [f"final_norm: {norm}" for norm in norms]
    return [*options, "num_classes: 0"] if "head.weight" in missing else options


def _shown(names: "list[str] | tuple[str, ...]", count: int) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def resembles(state: Mapping[str, "Tensor"]) -> str:
    """What kind of checkpoint the names belong to, for the message about one that does not fit."""
    for pattern, family, kind in (
        (r"encoder_to_decoder\.weight", None, "a VideoMAE pre-training checkpoint (encoder and decoder)"),
        (r"videomae\.encoder\..*", None, "a transformers VideoMAE checkpoint"),
        (r"backbone\.blocks\.0\.mlp\.layers\..*", None, "an mmaction2 VideoMAE checkpoint"),
        (r"(?:backbone\.|encoder\.)?blocks\.(\d+)\.attn\.q_bias", "videomaev2", "VideoMAE-V2"),
        (r"backbone\.layers\.(\d+)\.ln1\.weight", "sapiens-seg", "Sapiens segmentation"),
        (r"layers\.\d+\.ln1\.weight", None, "a Sapiens pre-training encoder"),
        (r"backbone\.layer1\..*\.fcce\..*", None, "MANet"),
        (r"backbone\.blocks\.0\.ffn\.w12\.weight", None, "Sapiens2 segmentation"),
        (
            r"(?:vjepa2\.)?encoder\.embeddings\.patch_embeddings\.proj\.weight",
            None,
            "V-JEPA 2 of transformers",
        ),
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
