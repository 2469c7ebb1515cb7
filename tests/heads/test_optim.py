"""Learning rates, parameter groups, clipping, losses for rare classes and for several labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads import spec
from heads.config import load_config
from heads.loop import Task, fit
from heads.losses import chances, make_criterion
from heads.optim import clip_gradients, make_optimizer, rate_at
from heads.options import LossConfig
from heads.stack import Stack
from heads.step import Parts
from pipeline.errors import UserError
from tests.heads.synthetic import synthetic

TINY = load_config("bmoe_tiny")
DATA = synthetic(train=24, val=12, dim=32, motion_dim=24, steps=4)
INFO = DATA.info(np.zeros((12, 300), np.float32))


def test_schedules() -> None:
    paper = load_config("bmoe_tiny", ["recipe=paper", "stage2.epochs=100"]).stage2
    assert [rate_at(paper, e) for e in (0, 29.9, 30, 60)] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = TINY.stage2.model_copy(update={"warmup": 2, "epochs": 12})
    assert [rate_at(cosine, e) for e in (0, 2, 7, 12)] == pytest.approx([0.1 / 2.1, 1, 0.5, 0])


def silent(record: dict, again: bool = False) -> None:
    """Nobody listens."""


def task(module: nn.Module, config: object, parts: object, clips: int, **more: object) -> Task:
    return Task("s", config, [module], [0], clips, parts, select="top1", **{"score": None, **more})  # type: ignore[arg-type]


def test_patience() -> None:
    module = nn.Linear(2, 1)
    config = TINY.stage2.model_copy(update={"epochs": 50, "patience": 3})

    def parts(layer: nn.Module, index: Tensor, weight: Tensor) -> Parts:
        return {"loss": layer(torch.ones(len(index), 2)).square().mean()}

    values = iter([0.1, 0.5, *[0.5] * 50])
    fitted = fit(
        task(module, config, parts, 4, score=lambda _: {"top1": next(values), "loss": 1.0}), [silent]
    )
    assert (fitted[0].best_epoch, len(fitted[0].records)) == (2, 5)


def test_the_last_batch_counts_its_clips() -> None:
    """Five clips in batches of two: the filled-up place weighs nothing, the mean is that over the clips."""
    module = nn.Linear(2, 1)
    still = TINY.stage2.model_copy(update={"epochs": 1, "lr": 1e-30, "batch": 2})
    batches = []

    def parts(layer: nn.Module, index: Tensor, weight: Tensor) -> Parts:
        batches.append((index.tolist(), weight.tolist()))
        value = (index.float() * weight).sum() / weight.sum()
        return {"loss": value + 0 * layer(torch.ones(1, 2)).sum()}

    fitted = fit(task(module, still, parts, 5), [silent])
    assert fitted[0].records[0]["loss"] == pytest.approx(2.0)
    assert [weight for _, weight in batches] == [[1, 1], [1, 1], [1, 0]]
    assert sorted(i for index, weight in batches for i, w in zip(index, weight, strict=True) if w) == [
        *range(5)
    ]


def test_what_decays_and_how_fast() -> None:
    model = spec.build(TINY, INFO)
    config = TINY.stage2.model_copy(update={"weight_decay": 0.3, "lr": 0.1})
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    assert optimizer is not None
    groups = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
    assert set(groups) == set(names.values())
    for name, group in groups.items():
        norm = ".ln." in name or ".gn." in name or "norm" in name
        assert group["weight_decay"] == (0.3 if name.endswith("weight") and not norm else 0.0), name
        assert group["lr"] == 0.1
    tsm = make_optimizer(model, config.model_copy(update={"param_groups": "tsm", "optimizer": "sgd"}))
    assert tsm is not None
    rates = {names[id(p)]: (g["rate"], g["weight_decay"]) for g in tsm.param_groups for p in g["params"]}
    assert rates["classifier.1.weight"] == (5, 0.3)
    assert rates["classifier.1.bias"] == (10, 0)
    assert rates["w_m.weight"] == (1, 0.3)
    assert rates["w_m.bias"] == (2, 0)
    assert rates["te.0.norm1.bias"] == (1, 0)
    assert rates["experts.stacked.layers.0.sgp.fc.bias"] == (2, 0)
    expert = model.new_expert("head")
    rule = make_optimizer(expert, config.model_copy(update={"param_groups": "tsm"}))
    assert rule is not None
    fast = [p for g in rule.param_groups if g["rate"] >= 5 for p in g["params"]]
    last = expert.heads.fc_emb[2]  # the authors' constructor takes the last layer there is
    assert {id(p) for p in fast} == {id(last.weight), id(last.bias)}


def test_freeze() -> None:
    model = spec.build(TINY, INFO)
    optimizer = make_optimizer(model, TINY.stage2.model_copy(update={"freeze": ("experts", "te.0")}))
    assert optimizer is not None
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in trained) != name.startswith(("experts.", "te.0.")), name


def test_clipping_is_per_run() -> None:
    """Every run of a stack is scaled by its own norm, as if it were alone."""
    torch.manual_seed(0)
    alone = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(3)]
    for i, module in enumerate(alone):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter) * 10**i
    stack = Stack(alone)
    for path, parameter in stack.stacked.named_parameters():
        parameter.grad = torch.stack([m.get_parameter(path).grad for m in alone])
    clip_gradients(list(stack.parameters()), 5.0, 3)
    for i, module in enumerate(alone):
        nn.utils.clip_grad_norm_(module.parameters(), 5.0)
        for path, parameter in stack.stacked.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad[i], module.get_parameter(path).grad)


def test_single_label_criterion() -> None:
    torch.manual_seed(0)
    logits, label = torch.randn(6, 4), torch.tensor([0, 1, 1, 2, 1, 0])
    target = F.one_hot(label, 4).float()
    plain = make_criterion(target, LossConfig())(logits, target)
    torch.testing.assert_close(plain, F.cross_entropy(logits, label, reduction="none"))
    smooth = make_criterion(target, LossConfig(), 0.2)(logits, target)
    torch.testing.assert_close(smooth, F.cross_entropy(logits, label, reduction="none", label_smoothing=0.2))
    adjusted = make_criterion(target, LossConfig(logit_adjustment=2.0))(logits, target)
    prior = torch.tensor([2.0, 3.0, 1.0, 1.0]) / 6  # a class without a clip counts as if it had one
    torch.testing.assert_close(adjusted, F.cross_entropy(logits + 2 * prior.log(), label, reduction="none"))


def test_several_labels_criterion() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 4), (torch.rand(6, 4) > 0.5).float()
    found = make_criterion(target, LossConfig(), multi=True)(logits, target)
    torch.testing.assert_close(found.mean(), F.binary_cross_entropy_with_logits(logits, target))
    with pytest.raises(UserError, match="needs one label per clip"):
        make_criterion(target, LossConfig(logit_adjustment=1.0), multi=True)


def test_balanced_sampling() -> None:
    """Every class is drawn as often, whatever its clips; clips without a label are one more class."""
    target = F.one_hot(torch.tensor([0] * 90 + [1] * 9 + [2]), 3).float()
    assert chances(target, LossConfig()) is None
    drawn = chances(target, LossConfig(sampler="balanced"))
    assert drawn is not None
    torch.testing.assert_close(drawn @ target, torch.ones(3))
    rare = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = chances(rare, LossConfig(sampler="balanced"))
    assert found is not None
    assert found.tolist() == pytest.approx([1 / 3, 1.0, 1 / 3, 1.0])
