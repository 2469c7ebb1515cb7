"""Parameters and multiply-adds of B-MoE for one clip, part by part: all of them, and those the paper reports.

The paper's numbers are those of a counter that sees linear layers and convolutions only, run on a model without the
motion projection and the transformer encoder: with the authors' structure they come out to the last digit. Its unit
"GFLOPs" is a thousand times too large, and the unit is multiply-adds.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from heads import spec
from heads.bmoe import BMoE
from heads.m3e import EMBEDDING, ExpertHeads
from heads.options import GATE, Config
from heads.paper import paper
from heads.sgp import Depthwise
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.taxonomy import Taxonomy


@dataclass(frozen=True)
class Part:
    """One line of the table. `reported`: the paper's counter sees it; `training`: it is unused in inference."""

    part: str
    params: int
    macs: int
    reported: bool
    training: bool = False


def efficiency(config: Config, info: spec.HeadInfo) -> dict[str, Any]:
    """Counts for one clip of T steps.

    Returns:
        parts: the table; reported_params and reported_macs, as the paper counts; total_params and total_macs, of
        everything, with the expert heads that only training uses; inference_params and inference_macs, without
        them and without an unused gate expert; attention_macs, products of activations with each other, which
        belong to no layer and come on top of total_macs.

    Raises:
        UserError: another head than bmoe, or a config that does not fit.
    """
    if config.head != "bmoe":
        raise UserError(f"efficiency counts head bmoe, not {config.head}; choose one of its presets")
    with torch.device("meta"):
        model = spec.build(config, info)
        parts = list(_parts(model))
    reported = [p for p in parts if p.reported]
    used = [p for p in parts if not p.training]
    return {
        "parts": [asdict(p) for p in parts],
        **{f"reported_{n}": sum(getattr(p, n) for p in reported) for n in ("params", "macs")},
        **{f"total_{n}": sum(getattr(p, n) for p in parts) for n in ("params", "macs")},
        **{f"inference_{n}": sum(getattr(p, n) for p in used) for n in ("params", "macs")},
        "attention_macs": _attention(model),
    }


def _parts(model: BMoE) -> Iterator[Part]:
    config, steps = model.config, model.config.t_len
    if config.semantic.enabled:
        if params := _layers(model.in_proj, 1)[0]:
            passes = len(model.views) + (config.query == GATE)
            yield Part("shared input", params, _layers(model.in_proj, steps * passes)[1], True)
        for name, groups in model.groups.items():
            m3e = model.new_m3e()
            dead = name == GATE and config.query != GATE
            for part, inside in (
                ("input", "in_proj"),
                ("attention", ".attn"),
                ("feed-forward", ".ffn"),
                ("SGP", ".sgp"),
            ):
                counted = [_layers(m, steps) for path, m in m3e.named_modules() if path.endswith(inside)]
                params, macs = (sum(c[i] for c in counted) for i in (0, 1))
                if params:
                    yield Part(f"expert {name}: {part}", params, macs, True, dead)
            if norms := _norms(m3e):
                yield Part(f"expert {name}: norms", norms, 0, False, dead)
            heads = ExpertHeads(model.width, len(groups), embedding=config.emb_head)
            yield Part(f"expert {name}: classes", *_layers(heads.fc_cls, steps), True, True)
            yield Part(f"expert {name}: embedding", *_layers(heads.fc_emb, steps), True, True)
        asks, asked = _rows(model)
        routing = model.routing
        queries = [_layers(layer, asks) for layer in (routing.q, routing.out)]
        keys = [_layers(layer, asked) for layer in (routing.k, routing.v)]
        params, macs = (sum(c[i] for c in queries + keys) for i in (0, 1))
        yield Part("routing", params, macs, True)
        if norms := _norms(routing):
            yield Part("routing: norm", norms, 0, False)
    if config.motion.enabled:
        yield Part("motion projection", *_layers(model.w_m, steps), False)
    if len(model.te):
        params, macs = _layers(model.te, steps)
        yield Part("transformer encoder", params + _norms(model.te), macs, False)
    yield Part("classifier", *_layers(model.classifier, 1), True)


def _rows(model: BMoE) -> tuple[int, int]:
    """How many queries and how many keys the routing projects for a clip."""
    steps = 1 if model.config.fusion.mode == "pooled" else model.config.t_len
    return steps, steps * len(model.views)


def _layers(module: nn.Module, rows: int) -> tuple[int, int]:
    """(parameters, multiply-adds) of the linear layers and convolutions for so many rows."""
    params = macs = 0
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            params += sum(p.numel() for p in layer.parameters())
            once = isinstance(layer, Depthwise) and name.endswith("global_fc")  # on the mean over time
            macs += (1 if once else rows) * layer.weight.numel()
    return params, macs


def _norms(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters()) - _layers(module, 1)[0]


def _attention(model: BMoE) -> int:
    """q k' and the weighted sum of v, of all attentions."""
    config, steps, width = model.config, model.config.t_len, model.width
    square = 2 * steps**2 * width
    total = len(model.te) * square
    if config.semantic.enabled:
        queries, keys = _rows(model)
        per_query = keys if config.fusion.mode == "sequence" else len(model.views)
        total += len(model.groups) * config.m3e.depth * square + 2 * queries * per_query * width
    return total


def efficiency_of(preset: str, config: Config, taxonomy: "Taxonomy", motion_dim: int) -> dict[str, Any]:
    """`efficiency` of a preset for the classes of a taxonomy, and what the paper reports for it.

    The width of the features is d_in, or where any will do d_model. Raises UserError when there is neither.
    """
    width = config.d_in or config.d_model
    if width is None:
        raise UserError(f"{preset} takes features of any width; --set d_in=768, for example")
    vectors = np.zeros((len(taxonomy.labels), EMBEDDING), np.float32)
    counts = efficiency(config, spec.head_info(taxonomy, width, motion_dim, vectors))
    known = paper()["efficiency"].get(preset)
    return {"preset": preset, "dataset": taxonomy.name, **counts, "paper": known}


def efficiency_text(record: dict[str, Any]) -> str:
    """The table for a terminal, in millions."""
    lines = [f"{'one clip, in millions':<36}{'params':>10}{'MACs':>11}"]
    lines += [
        f"{p['part']:<36}{p['params'] / 1e6:10.3f}{p['macs'] / 1e6:11.3f}{'   reported' if p['reported'] else ''}"
        for p in record["parts"]
    ]
    for name in ("reported", "total", "inference"):
        counts = [record[f"{name}_{what}"] / 1e6 for what in ("params", "macs")]
        lines.append(f"{name:<36}{counts[0]:10.3f}{counts[1]:11.3f}")
    lines.append(f"{'attention products, on top':<36}{'':>10}{record['attention_macs'] / 1e6:11.3f}")
    if known := record["paper"]:
        lines.append(f"{'the paper':<36}{known['params_m']:10.0f}{known['reported']:11.2f}   called M GFLOPs")
    return "\n".join(lines)
