"""Counts: the paper's to the digit, the closed forms, and torch's own counter."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import cli
from heads import spec
from heads.config import load_config
from heads.efficiency import efficiency
from heads.spec import head_info
from pipeline.errors import UserError
from pipeline.taxonomy import load_taxonomy
from tests.heads.synthetic import synthetic


def counts(*words: str) -> dict:
    result = CliRunner().invoke(cli.app, ["efficiency", "--json", *words])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_papers_numbers() -> None:
    """567.77 M and 59 M are those of the authors' structure, and 801.26 M and 80 M of seven M3Es."""
    authors = counts("--preset", "bmoe_g1408_author")
    assert authors["reported_macs"] == 567_770_112 == authors["paper"]["macs"]
    assert authors["reported_params"] == pytest.approx(59.2e6, rel=1e-3)
    assert authors["total_macs"] == pytest.approx(845.0e6, rel=1e-3)
    assert authors["total_params"] == pytest.approx(93.87e6, rel=1e-4)
    assert authors["inference_params"] == pytest.approx(81.14e6, rel=1e-3)
    seven = counts("--preset", "gs_moe_b")
    assert seven["reported_macs"] == 801_262_592 == seven["paper"]["macs"]
    assert seven["reported_params"] == pytest.approx(80.5e6, rel=1e-3)
    for record in (authors, seven):
        for what in ("params", "macs"):
            assert sum(part[what] for part in record["parts"]) == record[f"total_{what}"]


@pytest.mark.parametrize(("d", "params", "macs"), [(768, 32.24, 285.6), (1024, 53.06, 473.9)])
def test_narrower_models(d: int, params: float, macs: float) -> None:
    found = counts("--preset", "bmoe_g1408_author", "--set", f"d_in={d}")
    assert found["total_params"] / 1e6 == pytest.approx(params, rel=2e-3)
    assert (found["total_macs"] + found["attention_macs"]) / 1e6 == pytest.approx(macs, rel=4e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("m3e.depth=2", "m3e.ffn_ratio=2", "fusion.out_proj=true", "te.layers=1", "cls.hidden=8"),
        ("fusion.mode=pooled", "gate_expert=true", "query=gate", "m3e.qkv_bias=false"),
        ("share_in_proj=true", "gate_expert=true", "query=gate"),
        ("fusion.mode=sequence", "motion.enabled=false", "te.layers=0", "sgp.kernel=3", "experts=[head]"),
    ],
)
def test_equals_torchs_counter(overrides: tuple[str, ...]) -> None:
    """What runs for one clip, counted while it runs: products by torch, depthwise taps by hand."""
    config = load_config("bmoe_tiny", ["d_model=32", *overrides])
    data = synthetic(train=24, val=12, dim=16, motion_dim=24, steps=4).only(spec.needs(config))
    info = data.info(np.zeros((12, 300), np.float32))
    model = spec.build(config, info).eval()
    found = efficiency(config, info)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(data.splits["train"].batch(torch.arange(1)))
    used = sum(part["macs"] for part in found["parts"] if not part["training"])
    taps = 4 * (2 * config.sgp.kernel + {1: 3, 3: 7}[config.sgp.kernel] + 1) + 1  # of a channel over 4 steps
    m3es = config.m3e.depth * (len(config.experts) + (config.query == "gate"))
    means = 4 * 32 * (1 + (config.fusion.mode == "pooled") * len(config.experts))  # over time, as a product
    counted = used - m3es * 32 * taps + found["attention_macs"] + means
    assert counter.get_total_flops() / 2 == counted
    heads = sum(part["params"] for part in found["parts"] if part["part"].endswith(("classes", "embedding")))
    assert sum(p.numel() for p in model.parameters()) == found["total_params"] - heads


def test_refuses() -> None:
    taxonomy = load_taxonomy("ma52")
    assert taxonomy is not None
    info = head_info(taxonomy, 8, 8, np.zeros((52, 300), np.float32))
    with pytest.raises(UserError, match="counts head bmoe, not linear_probe"):
        efficiency(load_config("linear_probe"), info)
    for words, message in (
        (("--preset", "linear_probe"), "takes features of any width"),
        (("--dataset", "nothing"), "no data set 'nothing'"),
        (("--preset", "gs_moe_b", "--dataset", "demo"), "must be distinct and within 0..11"),
    ):
        result = CliRunner().invoke(cli.app, ["efficiency", *words])
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
