"""B-MoE: one expert per region, routed by the full frame, fused with the motion stream (sections 3.2, 3.3).

z_k = M3E_k(view_k);  z~ = Routing(full; z_1..K);  u = z~ + W_m motion;  logits = MLP(mean_t TE(u))
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.expert import Expert
from heads.inputs import Standardise, drop_steps, drop_views, regularise, view_of
from heads.layers import Dense, TransformerLayer, at_least_one, masked_mean, sinusoid
from heads.m3e import M3E, ExpertHeads
from heads.options import GATE, Config
from heads.routing import Routing
from heads.spec import HeadInfo, HeadSpec, stream_needs
from heads.stack import NamedStack
from pipeline.spec import VIEWS


def score_groups(config: Config, info: HeadInfo) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Expert -> the classes behind each score it learns in stage 1.

    The gate expert has one score per expert, for all its classes, and one for the classes of none: 5 for the
    four regions of MA-52, whose composites belong to nobody, and 6 for six experts that own everything.

    Raises:
        ValueError: an unknown set of classes, or class ids the data set does not have.
    """
    given = config.expert_classes
    if isinstance(given, str):
        if given not in info.experts:
            raise ValueError(f"expert_classes={given}: the data set has {', '.join(info.experts)}")
        given = dict(info.experts[given])
    owned = {name: given.get(name, ()) for name in config.experts}
    count = len(info.classes)
    for name, classes in owned.items():
        if not all(0 <= c < count for c in classes) or len(set(classes)) < len(classes):
            raise ValueError(
                f"expert_classes.{name}: {list(classes)} must be distinct and within 0..{count - 1}"
            )
    groups: dict[str, tuple[tuple[int, ...], ...]] = {
        name: tuple((c,) for c in classes) for name, classes in owned.items()
    }
    if config.gate_expert:
        first: dict[int, str] = {}  # a class of two experts counts for the first
        for name, classes in owned.items():
            for c in classes:
                first.setdefault(c, name)
        parts = [tuple(c for c in range(count) if first.get(c) == name) for name in (*owned, None)]
        groups[GATE] = tuple(part for part in parts if part)
    return groups


class BMoE(nn.Module):
    """The fused model. Stage 1 trains its experts one by one, stage 2 everything.

    Raises:
        ValueError: the width is no multiple of 16 or of the numbers of attention heads; wrong expert classes.
    """

    positions: Tensor
    index: Tensor

    def __init__(self, config: Config, info: HeadInfo) -> None:
        super().__init__()
        self.config, self.info = config, info
        self.groups = score_groups(config, info)
        self.views = list(config.experts.values())
        # A buffer, so that heads whose experts see other views can train side by side.
        self.register_buffer("index", torch.tensor([VIEWS.index(v) for v in self.views]), persistent=False)
        self.silent: tuple[str, ...] = ()  # experts to leave out, as if their view were absent
        self.width = width = config.d_model or info.dim or info.motion_dim
        if width % config.te.heads and config.te.layers:
            raise ValueError(f"{config.te.heads} heads of te do not divide a width of {width}")
        if config.pos == "sinusoid" and width % 2:
            raise ValueError(f"sinusoid positions need an even width, not {width}")
        if config.semantic.enabled:
            # First of all, so that it starts the same whatever else the head has: stage 1 counts on that.
            shared = config.share_in_proj and width != info.dim
            self.in_proj = Dense(info.dim, width) if shared else nn.Identity()
            self.experts = NamedStack({name: self.new_m3e() for name in config.experts})
            self.gate = self.new_m3e() if config.gate_expert else None
            asks = config.query == GATE
            if self.gate is not None:
                self.gate.requires_grad_(asks)  # else dead weight, as in the authors' final version
            self.routing = Routing(
                width if asks else info.dim, width, config.query_norm, **config.fusion.model_dump()
            )
            self.full_norm = Standardise(1, info.dim)
            self.parts_norm = Standardise(len(self.views), info.dim)
        if config.motion.enabled:
            self.motion_norm = Standardise(1, info.motion_dim)
            self.motion_dropout = nn.Dropout(config.motion.dropout)
            self.w_m = Dense(info.motion_dim, width)
        te = config.te
        self.te = nn.ModuleList(
            TransformerLayer(width, te.heads, int(width * te.ff_ratio), te.dropout, te.norm_first)
            for _ in range(te.layers)
        )
        hidden = config.cls.hidden
        mlp = [Dense(width, hidden), nn.GELU()] if hidden else []
        self.classifier = nn.Sequential(
            nn.Dropout(config.cls.dropout), *mlp, Dense(hidden or width, len(info.classes))
        )
        positions = sinusoid(config.t_len, width) if config.pos == "sinusoid" else torch.zeros(1, width)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `heads.spec` for the batch and the result; "experts" is [B, T, K, d]."""
        out: dict[str, Tensor] = {}
        if self.config.semantic.enabled:
            u, valid = self._semantic(batch, out)
            u = u + self._motion(batch["motion"]) if self.config.motion.enabled else u
        else:
            u = self._motion(batch["motion"])
            valid = torch.ones(u.shape[:2], dtype=torch.bool, device=u.device)
        h = u + self.positions
        seen = at_least_one(valid)
        for layer in self.te:
            h = layer(h, seen)
        return out | {"logits": self.classifier(masked_mean(h, valid))}

    def _semantic(self, batch: dict[str, Tensor], out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """z~ [B, T, d] and the valid steps [B, T]; the weights and the experts' features go into `out`."""
        aug = self.config.aug
        full, valid = batch["sem_full"], self._mask(batch["sem_full_valid"])
        parts = torch.cat([full[:, None], batch["sem_parts"]], 1).index_select(1, self.index)
        parts_valid = torch.cat([valid[:, None], self._mask(batch["sem_parts_valid"])], 1)
        parts_valid = parts_valid.index_select(1, self.index)
        if self.silent:
            kept = torch.tensor([n not in self.silent for n in self.config.experts], device=valid.device)
            parts_valid = parts_valid & kept[:, None]
        if self.training:
            valid = drop_steps(valid, aug.time_mask)
            parts_valid = drop_views(parts_valid, aug.view_dropout)
        full = self.full_norm(full[:, None], valid[:, None])
        parts = self.parts_norm(parts, parts_valid)
        if self.training:
            full, parts = regularise(full, aug), regularise(parts, aug)
        z = self.experts.map(None, self.in_proj(parts), parts_valid, axes=(1, 1), out=2)
        query = full[:, 0]
        if self.gate is not None and self.config.query == GATE:
            query = self.gate(self.in_proj(query), valid)
        u, attn = self.routing(query, z, parts_valid.transpose(1, 2))
        out.update(attn=attn, experts=z)
        return u, valid

    def _motion(self, motion: Tensor) -> Tensor:
        """motion [B, T_m, Dm] -> [B, T, d]; first and last step stay aligned when T_m differs from T."""
        present = torch.ones(motion.shape[:2], dtype=torch.bool, device=motion.device)[:, None]
        x = self.motion_norm(motion[:, None], present)
        if self.training:
            x = regularise(x, self.config.aug)
        x, steps = x[:, 0], self.config.t_len
        if x.shape[1] != steps:
            x = x.transpose(1, 2)
            x = F.interpolate(x, steps, mode="linear", align_corners=steps > 1).transpose(1, 2)
        return self.w_m(self.motion_dropout(x))

    def _mask(self, valid: Tensor) -> Tensor:
        return valid if self.config.use_mask else torch.ones_like(valid)

    def fit_normalisation(self, tensors: dict[str, Tensor]) -> None:
        """Takes the statistics of the train split; does nothing with normalise = none."""
        if self.config.normalise == "none":
            return
        if self.config.semantic.enabled:
            self.full_norm.fit(0, *view_of(tensors, "full"))
            for row, view in enumerate(self.views):
                self.parts_norm.fit(row, *view_of(tensors, view))
        if self.config.motion.enabled:
            motion = tensors["motion"]
            self.motion_norm.fit(0, motion, torch.ones_like(motion[..., 0], dtype=torch.bool))

    def expert_names(self) -> tuple[str, ...]:
        """The experts stage 1 trains: those that own a class."""
        return tuple(n for n, groups in self.groups.items() if groups) if self.config.semantic.enabled else ()

    def new_expert(self, name: str) -> Expert:
        """An untrained expert on the normalised view."""
        view = self.config.experts.get(name, "full")
        norm = Standardise(1, self.info.dim)
        if name == GATE:
            norm.load_state_dict(self.full_norm.state_dict())
        else:
            row = list(self.config.experts).index(name)
            norm.mean.copy_(self.parts_norm.mean[row : row + 1])
            norm.std.copy_(self.parts_norm.std[row : row + 1])
        config, groups = self.config, self.groups[name]
        heads = ExpertHeads(self.width, len(groups), config.emb_pool, config.emb_head, config.expert_init_std)
        # A shared projection trains with the whole head alone: experts by themselves would pull it apart.
        shared = deepcopy(self.in_proj).requires_grad_(False)
        return Expert(self.new_m3e(), heads, norm, shared, view, groups, self.info.label_vectors, config)

    def adopt(self, name: str, state: dict[str, Tensor]) -> None:
        """Takes the M3E of a trained expert."""
        m3e = {key.removeprefix("m3e."): value for key, value in state.items() if key.startswith("m3e.")}
        if name == GATE and self.gate is not None:
            self.gate.load_state_dict(m3e)
        else:
            self.experts.load_member(name, m3e)

    def new_m3e(self) -> M3E:
        """An untrained M3E of this head."""
        options = self.config.m3e.model_dump() | {"sgp": self.config.sgp.model_dump()}
        dim = self.width if isinstance(self.in_proj, Dense) else self.info.dim
        return M3E(dim, self.width, **options)


HEAD = HeadSpec(
    name="bmoe",
    version=1,
    status="author-code",
    citation="Body-part-aware Mixture of Experts for micro-action recognition (B-MoE)",
    needs=stream_needs,
    build=BMoE,
)
