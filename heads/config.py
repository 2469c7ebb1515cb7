"""Typed configuration of a training run: a YAML preset of manifests/heads, then dotted overrides.

Where the paper is silent the default is the choice that works, and the authors' own value stays selectable.
"""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.spec import REGIONS

PRESETS = Path(__file__).resolve().parents[1] / "manifests" / "heads"


class Section(BaseModel):
    """Frozen, and no key but the declared ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LabelConfig(Section):
    """Where the 300-d label vectors come from; the rules are in `heads.labels`."""

    glove: str | None = None  # a GloVe text file or zip of 300-d vectors; None = the seeded table
    drop_words: tuple[str, ...] = ("or",)
    oov: Literal["zero_counted", "skip"] = "zero_counted"
    overrides: dict[str, tuple[str, ...]] = {"arms akimbo": ("akimbo",)}


class M3EConfig(Section):
    depth: int = Field(default=1, ge=1)
    heads: int = Field(default=4, ge=1)
    prenorm: bool = True  # authors: false
    ffn_ratio: float = Field(default=0.0, ge=0)  # 0 = no feed-forward net between attention and SGP
    outer_residual: bool = True  # a residual on top of SGP's own


class SGPConfig(Section):
    kernel: int = Field(default=1, ge=1)
    k: float = Field(default=1.5, gt=0)  # with kernel 1: a wide window of 3 of the 8 steps
    hidden: int = Field(default=768, ge=1)
    init_std: float = Field(default=0.1, ge=0)  # authors: 0, which leaves both branches dead
    path_pdrop: float = Field(default=0.0, ge=0, lt=1)


class SemanticConfig(Section):
    enabled: bool = True  # false: u = W_m z_m


class MotionConfig(Section):
    enabled: bool = True  # false: u = z~
    align: Literal["linear"] = "linear"  # to T steps, when the cache holds another number
    dropout: float = Field(default=0.0, ge=0, lt=1)  # authors: 0.5


class TEConfig(Section):
    """Transformer encoder over the fused steps."""

    layers: int = Field(default=2, ge=0)
    heads: int = Field(default=4, ge=1)
    ff_ratio: float = Field(default=2.0, gt=0)
    norm_first: bool = False
    dropout: float = Field(default=0.1, ge=0, lt=1)


class ClsConfig(Section):
    hidden: int = Field(default=0, ge=0)  # 0 = one Linear
    dropout: float = Field(default=0.0, ge=0, lt=1)


class AugConfig(Section):
    """Regularisers of the cached features, in training only."""

    feature_dropout: float = Field(
        default=0.0, ge=0, lt=1
    )  # share of the channels of a clip's view set to zero
    view_dropout: float = Field(default=0.0, ge=0, lt=1)  # share of a clip's regions treated as absent
    noise: float = Field(default=0.0, ge=0)  # std of Gaussian noise added to every value
    time_mask: float = Field(default=0.0, ge=0, lt=1)  # share of the time steps treated as absent


class StageConfig(Section):
    """Optimiser and stopping of one stage. Weight decay acts on matrices and kernels only."""

    epochs: int = Field(default=40, ge=0)
    batch: int = Field(default=32, ge=1)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=3e-4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd only
    weight_decay: float = Field(default=0.05, ge=0)
    schedule: Literal["constant", "milestones", "cosine"] = "cosine"
    milestones: tuple[int, ...] = (30, 60)
    gamma: float = Field(default=0.1, gt=0)
    warmup: int = Field(default=3, ge=0)  # epochs of linear warm-up
    clip: float = Field(default=20.0, gt=0)  # global L2 norm of the gradient
    patience: int = Field(
        default=20, ge=0
    )  # epochs without a better validation score before stopping; 0 = never
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


# Values of StageConfig by recipe; what is not named keeps its default. "small" is for narrow features (D 128) and
# a few hundred clips: a longer stage 1 learns its 60 clips per expert by heart, and stage 2 ends lower. "paper" is
# section 4.2, with 100 of its 500 epochs: after the second step down, at 60, the learning rate is 1.25e-5.
PAPER = {
    "epochs": 100, "batch": 10, "optimizer": "sgd", "lr": 0.00125, "momentum": 0.9, "weight_decay": 1e-4,
    "schedule": "milestones", "milestones": (30, 60), "gamma": 0.1, "warmup": 0, "clip": 20.0, "patience": 0,
    "label_smoothing": 0.0,
}  # fmt: skip
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"stage1": {}, "stage2": {}},
    "small": {"stage1": {"epochs": 6, "lr": 1e-3}, "stage2": {"epochs": 16, "lr": 3e-4}},
    "paper": {"stage1": PAPER, "stage2": PAPER},
}


class Config(Section):
    """Everything a user can decide about a run; what the cache decides is in `heads.spec.HeadInfo`."""

    head: str = "bmoe"
    recipe: Literal["default", "small", "paper"] = "default"  # for what stage1 and stage2 leave open
    t_len: int = Field(default=8, ge=1)
    t_mode: Literal["resample", "pad_truncate"] = "resample"  # authors: pad_truncate
    use_mask: bool = True
    normalise: Literal["none", "standard"] = "standard"  # by train statistics, kept in the checkpoint
    d_model: int | None = Field(default=None, ge=16)  # None = the width of the cached features
    regions: tuple[str, ...] = REGIONS  # the experts, in the order of the attention's columns
    expert_classes: dict[str, tuple[int, ...]] | None = None  # None = the data set's taxonomy
    emb_pool: Literal["after", "before"] = "after"
    alpha: float = Field(default=50.0, ge=0)  # of the mean squared error of the label embedding, stage 1
    query_norm: Literal["layernorm", "softmax", "none"] = "layernorm"
    pos: Literal["sinusoid", "none"] = "sinusoid"
    select: Literal["top1", "f1_macro"] = "top1"  # validation score that picks the epoch
    tensorboard: bool = True
    labels: LabelConfig = LabelConfig()
    m3e: M3EConfig = M3EConfig()
    sgp: SGPConfig = SGPConfig()
    semantic: SemanticConfig = SemanticConfig()
    motion: MotionConfig = MotionConfig()
    te: TEConfig = TEConfig()
    cls: ClsConfig = ClsConfig()
    aug: AugConfig = AugConfig()
    stage1: StageConfig = StageConfig()
    stage2: StageConfig = StageConfig()

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, raw: Any) -> Any:
        """Lays the stages that are written out over those of the recipe."""
        if not isinstance(raw, dict) or raw.get("recipe", "default") not in RECIPES:
            return raw
        stages = RECIPES[raw.get("recipe", "default")]
        given = {name: raw.get(name, {}) for name in stages}
        return raw | {n: stages[n] | g for n, g in given.items() if isinstance(g, dict)}

    @model_validator(mode="after")
    def _sane(self) -> "Config":
        if not self.semantic.enabled and not self.motion.enabled:
            raise ValueError(
                "semantic.enabled and motion.enabled are both false: nothing is left to learn from"
            )
        unknown = [r for r in (*self.regions, *(self.expert_classes or {})) if r not in REGIONS]
        if unknown or not self.regions or len(set(self.regions)) != len(self.regions):
            raise ValueError(f"regions must be distinct and among {', '.join(REGIONS)}")
        return self


def load_config(preset: str, overrides: Iterable[str] = ()) -> Config:
    """The preset manifests/heads/<preset>.yaml with overrides such as ``m3e.depth=2`` laid over it.

    Raises:
        UserError: unknown preset, unknown key (near names are listed), or a value of the wrong type or range.
    """
    path = PRESETS / f"{preset}.yaml"
    known = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    if preset not in known:
        raise UserError(f"unknown head preset {preset!r}; known: {', '.join(known)}")
    raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return parse_config(raw, overrides, origin=str(path))


def parse_config(raw: dict[str, Any], overrides: Iterable[str] = (), origin: str = "config") -> Config:
    """A config from plain values; `origin` names them in messages. Raises UserError as `load_config` does."""
    raw = {k: dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign:
            raise UserError(f"--set {item}: write KEY=VALUE, e.g. m3e.depth=2")
        if key not in _keys():
            raise UserError(f"--set {item}: unknown key {key!r}{_near(key)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {item}: {text!r} is not a YAML value; quote it") from None
        section, dot, leaf = key.partition(".")
        if dot:
            raw.setdefault(section, {})[leaf] = value
        else:
            raw[section] = value
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = _near(where) if first["type"] == "extra_forbidden" else ""
        message = "unknown key" if hint or first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"{origin}: {where + ': ' if where else ''}{message}{hint}") from None


VARIANTS: dict[str, tuple[str, ...]] = {
    "full": (),
    "semantic_only": ("motion.enabled=false",),
    "motion_only": ("semantic.enabled=false",),
    **{f"drop_{r}": (f"regions=[{', '.join(o for o in REGIONS if o != r)}]",) for r in REGIONS},
}


def variant_config(config: Config, variant: str) -> Config:
    """The config of one row of the paper's tables 3 and 4 (`VARIANTS`). Raises UserError for another name."""
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    return parse_config(config.model_dump(), VARIANTS[variant])


def _keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _near(key: str) -> str:
    keys = list(_keys())
    leaf = key.rpartition(".")[2]
    near = [k for k in keys if k.rpartition(".")[2] == leaf] + difflib.get_close_matches(key, keys, 3, 0.5)
    return f"; near: {', '.join(dict.fromkeys(near))}" if near else f"; known: {', '.join(keys)}"
