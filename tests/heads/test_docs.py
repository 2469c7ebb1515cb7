"""The head that docs/heads.md shows works as it stands there."""

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from heads import spec
from heads.config import load_config
from heads.evaluate import evaluate
from heads.train import RunPlan, train_group
from tests.heads.synthetic import synthetic

DOCS = Path(__file__).parents[2] / "docs" / "heads.md"


def test_the_head_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found through its entry point and a preset of one's own; trains side by side, reloads, learns."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "mome_of_the_docs.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("mome_gate", "mome_of_the_docs:HEAD", spec.ENTRY_POINTS)
    monkeypatch.setattr(spec, "entry_points", lambda group: [point] if group == spec.ENTRY_POINTS else [])
    preset = tmp_path / "mome.yaml"
    preset.write_text(
        "head: mome_gate\nt_len: 4\ntensorboard: false\nstage2: {epochs: 12, lr: 0.01, batch: 16}\n"
    )
    config = load_config(str(preset))
    data = synthetic(train=96, val=48, dim=32, motion_dim=24, steps=4, strength=3.0, person=0.5)
    plans = [RunPlan(tmp_path / f"run-seed{seed}", config, seed) for seed in (0, 1)]
    results = train_group(Path("x"), "demo", plans, features=data)
    for result in results:
        assert result.top1 > 0.5  # chance is 1/12
        assert evaluate(result.run_dir, Path("x"), features=data) == result.scores
    del sys.modules["mome_of_the_docs"]
