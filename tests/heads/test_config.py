"""Presets, overrides, recipes, and the messages for wrong ones."""

from pathlib import Path

import pytest

from heads.config import PRESETS, load_config, parse_config, variant_config
from heads.options import Config
from pipeline.errors import UserError


def test_presets_load() -> None:
    names = {path.stem for path in PRESETS.glob("*.yaml")}
    assert names == {
        "bmoe_g1408_author", "bmoe_g1408", "bmoe_l1024", "bmoe_b768", "bmoe_tiny", "bmoe_demo", "gs_moe_b",
        "linear_probe", "attn_pool_probe", "manet_cached",
    }  # fmt: skip
    for name in names:
        config = load_config(name)
        assert parse_config(config.model_dump(mode="json")) == config


def test_overrides_are_typed() -> None:
    config = load_config(
        "bmoe_tiny",
        ["m3e.depth=2", "motion.enabled=false", "stage1.lr=1e-4", "experts=[head, body]",
         "labels.glove=/a b/g.txt", "stage2.milestones=[3, 5]", "expert_classes={head: [1, 2]}"],
    )  # fmt: skip
    assert config.m3e.depth == 2
    assert config.m3e.heads == 2  # of the preset
    assert config.motion.enabled is False
    assert config.stage1.lr == 1e-4
    assert config.stage2.milestones == (3, 5)
    assert config.experts == {"head": "head", "body": "body"}
    assert config.labels.glove == "/a b/g.txt"
    assert config.expert_classes == {"head": (1, 2)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("m3e.dept=2", "unknown key 'm3e.dept'; near: m3e.depth"),
        ("depth=2", "near: m3e.depth"),
        ("m3e=2", "unknown key 'm3e'"),
        ("m3e.depth", "write KEY=VALUE"),
        ("m3e.depth=two", "m3e.depth: Input should be a valid integer"),
        ("m3e.depth=0", "greater than or equal to 1"),
        ("t_len=2.5", "t_len"),
        ("query_norm=batch", "query_norm: Input should be 'layernorm', 'softmax' or 'none'"),
        ("stage1.lr=.nan", "stage1.lr"),
        ("recipe=best", "recipe"),
        ("experts=[head, foot]", "experts.foot: 'foot' is no view; the views are full, head"),
        ("experts={my/head: head}", "'my/head' is no name for an expert"),
        ("experts=[]", "experts is empty"),
        ("experts=[head", "not a YAML value"),
        ("query=gate", "set gate_expert=true too"),
        ("pos=2023-01-01", "pos"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("bmoe_tiny", [override])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--set {override}: ")
    assert "\n" not in str(caught.value)


def test_wrong_presets() -> None:
    with pytest.raises(
        UserError, match=r"unknown head preset '../x'; known: attn_pool_probe, bmoe_b768, bmoe_demo"
    ):
        load_config("../x")
    with pytest.raises(UserError, match=r"a.yaml: m3e.dept: unknown key; near: m3e.depth"):
        parse_config({"m3e": {"dept": 1}}, origin="a.yaml")
    with pytest.raises(UserError, match="both false"):
        load_config("bmoe_tiny", ["motion.enabled=false", "semantic.enabled=false"])


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("head: linear_probe\nt_len: 4\n")
    assert load_config(str(path), ["t_len=5"]) == load_config("linear_probe", ["t_len=5", "stage2.lr=3e-4"])
    for text, message in (("- 1\n", "must hold keys and values"), ("a: [\n", "cannot be read as YAML"),
                          ("hed: x\n", r"mine\.yaml: hed: unknown key")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(str(path))
    with pytest.raises(UserError, match=r"gone\.yaml: cannot be read"):
        load_config(str(tmp_path / "gone.yaml"))


def test_recipes() -> None:
    paper = load_config("bmoe_demo", ["recipe=paper", "stage2.epochs=7"])
    for stage in (paper.stage1, paper.stage2):
        assert (stage.optimizer, stage.lr, stage.momentum, stage.weight_decay) == ("sgd", 0.00125, 0.9, 1e-4)
        assert (stage.batch, stage.milestones, stage.gamma, stage.clip) == (10, (30, 60), 0.1, 20.0)
    assert (paper.stage1.epochs, paper.stage2.epochs) == (500, 7)
    assert Config().stage1.optimizer == "adamw"
    small = load_config("bmoe_demo")
    assert (small.stage1.epochs, small.stage2.epochs, small.stage2.lr) == (6, 16, 0.0003)
    assert load_config("bmoe_demo", ["recipe=default"]).stage1 == Config().stage1


def test_variants() -> None:
    config = load_config("bmoe_tiny", ["m3e.depth=2"])
    assert variant_config(config, "full") == config
    assert not variant_config(config, "semantic_only").motion.enabled
    assert not variant_config(config, "motion_only").semantic.enabled
    dropped = variant_config(config, "drop_upper_limb")
    assert list(dropped.experts) == ["head", "body", "lower_limb"]
    assert dropped.m3e.depth == 2
