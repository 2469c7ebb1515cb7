"""Every option of a training run, typed. Presets and overrides on top of it are in `heads.config`.

Where the paper is silent the default is the choice that works, and the authors' own value stays selectable:
`manifests/heads/bmoe_g1408_author.yaml` sets all of theirs.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.spec import REGIONS, VIEWS

GATE = "gate"  # name of the whole-body expert


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
    qkv_bias: bool = True  # authors: false
    prenorm: bool = True  # authors: false
    ffn_ratio: float = Field(default=0.0, ge=0)  # 0 = no feed-forward net between attention and SGP
    outer_residual: bool = True  # a residual on top of SGP's own


class SGPConfig(Section):
    kernel: int = Field(default=1, ge=1)
    k: float = Field(default=1.5, gt=0)  # with kernel 1: a wide window of 3 of the 8 steps
    hidden: int = Field(default=768, ge=1)
    init_std: float = Field(default=0.1, ge=0)  # authors: 0, which leaves both branches dead
    path_pdrop: float = Field(default=0.0, ge=0, lt=1)
    masked: bool = False  # true: absent steps touch nothing; TriDet's block lets them


class SemanticConfig(Section):
    enabled: bool = True  # false: u = W_m z_m


class MotionConfig(Section):
    enabled: bool = True  # false: u = z~
    align: Literal["linear"] = "linear"  # to T steps, when the cache holds another number
    dropout: float = Field(default=0.0, ge=0, lt=1)  # authors: 0.5


class FusionConfig(Section):
    """Routing, the cross-attention from the full view to the experts."""

    mode: Literal["step", "pooled", "sequence"] = "step"
    heads: int = Field(default=1, ge=1)
    out_proj: bool = False


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


class LossConfig(Section):
    """Help for rare classes, in both stages. Clips with several labels always train with binary cross entropy."""

    sampler: Literal["shuffle", "balanced"] = "shuffle"  # balanced: every class as often, with replacement
    logit_adjustment: float = Field(default=0.0, ge=0)  # tau of Menon et al., ICLR 2021; 1 is their choice


class StageConfig(Section):
    """Optimiser and stopping of one stage.

    `param_groups`: "plain" decays weights of linear layers and convolutions; "tsm" is the authors' constructor
    (TSM's): also twice the rate for biases and five times for the last linear layer. `freeze`: beginnings of
    parameter names that stay as they are, e.g. experts.head.
    """

    epochs: int = Field(default=40, ge=0)
    batch: int = Field(default=32, ge=1)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=3e-4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd only
    weight_decay: float = Field(default=0.05, ge=0)
    param_groups: Literal["plain", "tsm"] = "plain"
    freeze: tuple[str, ...] = ()
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
# section 4.2: after the second step down, at epoch 60, the learning rate is 1.25e-5 for the other 440.
PAPER = {
    "epochs": 500, "batch": 10, "optimizer": "sgd", "lr": 0.00125, "momentum": 0.9, "weight_decay": 1e-4,
    "schedule": "milestones", "milestones": (30, 60), "gamma": 0.1, "warmup": 0, "clip": 20.0, "patience": 0,
    "label_smoothing": 0.0,
}  # fmt: skip
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"stage1": {}, "stage2": {}},
    "small": {"stage1": {"epochs": 6, "lr": 1e-3}, "stage2": {"epochs": 16, "lr": 3e-4}},
    "paper": {"stage1": PAPER, "stage2": PAPER},
}


class Config(Section):
    """Everything a user can decide about a run; what the cache decides is in `heads.spec.HeadInfo`.

    `experts` maps the name of an expert to the view it sees, in the order of the attention's columns; a list
    names regions that see themselves. `expert_classes` are the classes each learns in stage 1: a variant of the
    data set's taxonomy, or name -> ids. `gate_expert` adds a whole-body expert of the coarse groups; with
    query = gate its output asks the other experts, else it is dead weight that the authors count.
    """

    head: str = "bmoe"
    recipe: Literal["default", "small", "paper"] = "default"  # for what stage1 and stage2 leave open
    d_in: int | None = Field(default=None, ge=1)  # width D the features must have; None = any
    t_len: int = Field(default=8, ge=1)
    t_mode: Literal["resample", "pad_truncate"] = "resample"  # authors: pad_truncate
    use_mask: bool = True  # authors: false
    normalise: Literal["none", "standard"] = "standard"  # by train statistics, kept in the checkpoint
    d_model: int | None = Field(default=None, ge=16)  # None = the width of the cached features
    share_in_proj: bool = False  # with d_model: one Linear from D to d for all experts instead of one each
    experts: dict[str, str] = {region: region for region in REGIONS}
    expert_classes: str | dict[str, tuple[int, ...]] = "strict"
    gate_expert: bool = False  # authors: true
    query: Literal["full", "gate"] = "full"
    query_norm: Literal["layernorm", "softmax", "none"] = "layernorm"  # authors: softmax
    expert_init_std: float | None = Field(
        default=None, gt=0
    )  # of both outputs of an expert in stage 1; None = torch's own; authors: 0.001
    emb_head: Literal["mlp", "linear"] = "mlp"
    emb_pool: Literal["after", "before"] = "after"
    emb_reduction: Literal["mean", "sum"] = "mean"  # over the 300 dimensions; the sum is 300 times larger
    alpha: float = Field(default=50.0, ge=0)  # of the squared error of the label embedding, stage 1
    pos: Literal["sinusoid", "none"] = "sinusoid"  # authors: none
    select: Literal["top1", "f1_macro", "map"] | None = (
        None  # validation score that picks the epoch; None = top1, or map where clips have several labels
    )
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # of the training; predictions are made in fp32
    tensorboard: bool = True
    labels: LabelConfig = LabelConfig()
    m3e: M3EConfig = M3EConfig()
    sgp: SGPConfig = SGPConfig()
    semantic: SemanticConfig = SemanticConfig()
    motion: MotionConfig = MotionConfig()
    fusion: FusionConfig = FusionConfig()
    te: TEConfig = TEConfig()
    cls: ClsConfig = ClsConfig()
    aug: AugConfig = AugConfig()
    loss: LossConfig = LossConfig()
    stage1: StageConfig = StageConfig()
    stage2: StageConfig = StageConfig()

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, raw: Any) -> Any:
        """Lays the stages that are written out over those of the recipe; a list of experts becomes a mapping."""
        if not isinstance(raw, dict):
            return raw
        if isinstance(names := raw.get("experts"), list | tuple):
            raw = raw | {"experts": {str(name): name for name in names}}
        stages = RECIPES.get(raw.get("recipe", "default"), {})
        given = {name: raw.get(name, {}) for name in stages}
        return raw | {n: stages[n] | g for n, g in given.items() if isinstance(g, dict)}

    @model_validator(mode="after")
    def _sane(self) -> "Config":
        if not self.semantic.enabled and not self.motion.enabled:
            raise ValueError(
                "semantic.enabled and motion.enabled are both false: nothing is left to learn from"
            )
        if not self.experts:
            raise ValueError("experts is empty; name at least one")
        for name, view in self.experts.items():
            if view not in VIEWS:
                raise ValueError(f"experts.{name}: {view!r} is no view; the views are {', '.join(VIEWS)}")
            if not re.fullmatch(r"[a-z0-9_]{1,40}", name) or name == GATE:
                raise ValueError(f"experts: {name!r} is no name for an expert; use a-z, 0-9 and _")
        if self.query == GATE and not self.gate_expert:
            raise ValueError("query=gate asks with the gate expert; set gate_expert=true too")
        return self
