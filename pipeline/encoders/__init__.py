"""Frozen encoders: plain torch modules whose state-dict keys are those of the original releases.

``create_model`` is the only door: a family (every size is an option) or a named size of a family. Torch is
imported when a model is built, so that the command line can name the choices without it. Other packages add
families through the entry point group ``bmoe_cache.encoders`` (name -> class); see docs/encoders.md.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

# Name -> (module, class, the stage it is an encoder of).
FAMILIES: Mapping[str, tuple[str, str, str]] = {
    "videomaev2": ("pipeline.encoders.videomaev2", "VideoMAEv2", "semantic"),
    "videomae-hf": ("pipeline.encoders.videomae_hf", "VideoMAEHF", "semantic"),
    "vjepa2": ("pipeline.encoders.vjepa2", "VJEPA2", "semantic"),
    "sapiens-seg": ("pipeline.encoders.sapiens", "SapiensSeg", "segment"),
    "sapiens2-seg": ("pipeline.encoders.sapiens2", "Sapiens2Seg", "segment"),
    "landmarks": ("pipeline.encoders.landmarks", "LandmarkSegmenter", "segment"),
    "manet": ("pipeline.encoders.manet", "MANet", "motion"),
}

# Name -> (family, options that make the size). Sizes of the original releases; see each family's module.
SIZES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "videomaev2-small": ("videomaev2", {"embed_dim": 384, "depth": 12, "num_heads": 6}),
    "videomaev2-base": ("videomaev2", {"embed_dim": 768, "depth": 12, "num_heads": 12}),
    "videomaev2-large": ("videomaev2", {"embed_dim": 1024, "depth": 24, "num_heads": 16}),
    "videomaev2-huge": ("videomaev2", {"embed_dim": 1280, "depth": 32, "num_heads": 16}),
    "videomaev2-giant": (
        "videomaev2",
        {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11, "patch_size": 14},
    ),
    "sapiens-seg-0.3b": ("sapiens-seg", {"embed_dim": 1024, "depth": 24, "num_heads": 16}),
    "sapiens-seg-0.6b": ("sapiens-seg", {"embed_dim": 1280, "depth": 32, "num_heads": 16}),
    "sapiens-seg-1b": ("sapiens-seg", {"embed_dim": 1536, "depth": 40, "num_heads": 24}),
    "sapiens-seg-2b": ("sapiens-seg", {"embed_dim": 1920, "depth": 48, "num_heads": 32}),
}

MODELS = (*FAMILIES, *SIZES)
ENTRY_POINTS = "bmoe_cache.encoders"


def family_of(name: str) -> str:
    """The family of a model name; UserError listing the names when there is none such."""
    if name in FAMILIES:
        return name
    if name in SIZES:
        return SIZES[name][0]
    others = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name in others.names:
        return name
    known = ", ".join(sorted({*MODELS, *others.names}))
    raise UserError(f"unknown model {name!r}: use one of {known}")


def stage_of(name: str) -> str | None:
    """The stage a model is for; None for a family of another package, which only its class could tell."""
    family = family_of(name)
    return FAMILIES[family][2] if family in FAMILIES else None


def model_class(name: str) -> "type[nn.Module]":
    """The class of a model name. Raises UserError for an unknown one."""
    family = family_of(name)
    if family in FAMILIES:
        module, attribute, _ = FAMILIES[family]
        found: type[nn.Module] = getattr(importlib.import_module(module), attribute)
    else:
        found = importlib.metadata.entry_points(group=ENTRY_POINTS)[family].load()
    return found


def model_options(name: str, build: "Callable[..., nn.Module]", config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the named size with config over them.

    Raises UserError when ``build`` takes no such option, or is annotated with another type than the value's. Other
    packages annotate as they like, so their values are their own matter.
    """
    from pydantic import TypeAdapter, ValidationError

    known = inspect.signature(build).parameters
    options = dict(SIZES[name][1]) if name in SIZES else {}
    for option, value in config.items():
        if option not in known:
            raise UserError(f"model {name!r} has no option {option!r}: use one of {', '.join(known)}")
        try:
            own = family_of(name) in FAMILIES
            kind = known[option].annotation if own else Any
            options[option] = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"model {name!r}: {option} {value!r} will not do ({reason})") from None
    return options


def create_model(name: str, **config: Any) -> "nn.Module":
    """Build a model with freshly initialised parameters; ``forward`` returns a dict of named outputs.

    Args:
        name: a family or a named size (``MODELS``), or a family of another package.
        **config: options of the family's constructor; they override those of the named size.

    Works under ``torch.device("meta")`` too, for counting parameters without their memory.

    Raises:
        UserError: unknown name, unknown option, a value that will not do, or options that do not fit together.
    """
    build = model_class(name)
    return build(**model_options(name, build, config))
