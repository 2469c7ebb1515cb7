"""Parameters and multiply-adds of B-MoE for one clip, part by part: all of them, and those the paper reports.

The paper's numbers are those of a counter that sees linear layers and convolutions only, run on a model without the
motion projection and the transformer encoder: with the authors' structure they come out to the last digit. Its unit
"GFLOPs" is a thousand times too large, and the unit is multiply-adds.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from heads import spec
from heads.bmoe import BMoE
from heads.m3e import ExpertHeads
from heads.options import GATE, Config
from heads.sgp import Depthwise
from pipeline.errors import UserError


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
