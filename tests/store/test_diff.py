"""How far two stages are apart."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.spec import digest
from pipeline.store.diff import diff
from pipeline.store.layout import ArraySpec, init_cache
from pipeline.store.writer import ShardBuilder, Stage, create_stage
from tests.store.caches import FEATURES, PRESENT, facts

Clips = dict[str, np.ndarray]


def make(root: Path, clips: Clips, arrays: list[ArraySpec] | None = None, **options: object) -> Path:
    """A stage whose clips have these features; present is 1 everywhere."""
    init_cache(root)
    declared = facts(**options)
    stage: Stage = create_stage(root, declared, digest(declared), arrays or [FEATURES, PRESENT], 16, {})
    builder = ShardBuilder(stage, 0)
    for name, rows in clips.items():
        values = {"features": rows, "present": np.ones((len(rows), 5), np.uint8)}
        builder.add(digest(name), name, {spec: values[spec] for spec in stage.arrays}, {})
    builder.commit()
    return stage.folder.path


def test_equal_stages(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float16)
    a, b = (make(tmp_path / name, {"x": rows}) for name in "ab")
    found = diff(a, b)
    assert found["facts"] == []
    assert found["clips"] == {"both": 1, "only_first": [], "only_second": [], "other_rows": []}
    assert found["arrays"]["features"] == {
        "equal": 1.0,
        "max_abs": 0.0,
        "mean_abs": 0.0,
        "mean_cosine": pytest.approx(1),
        "min_cosine": pytest.approx(1),
    }
    assert found["arrays"]["present"]["equal"] == 1.0
    assert found["arrays"]["present"]["mean_cosine"] is None  # a count has no direction


def test_known_distances(tmp_path: Path) -> None:
    rows = np.zeros((2, 5, 3), np.float16)
    rows[0, 0], rows[0, 1] = (1, 0, 0), (0, 2, 0)
    other = rows.copy()
    other[0, 1] = (2, 0, 0)  # turned by 90 degrees
    other[1, 4, 2] = 0.5  # where the first has nothing: no angle
    found = diff(
        make(tmp_path, {"x": rows, "y": rows, "only a": rows, "longer": rows}, precision="float32"),
        make(tmp_path, {"x": other, "y": rows, "only b": rows, "longer": rows[:1]}, precision="bfloat16"),
    )
    assert found["facts"] == ["semantic precision float32 -> bfloat16"]
    assert found["clips"] == {
        "both": 3,
        "only_first": ["only a"],
        "only_second": ["only b"],
        "other_rows": ["longer"],
    }
    features = found["arrays"]["features"]
    assert features["max_abs"] == 2
    assert features["mean_abs"] == pytest.approx(4.5 / 60)
    assert features["equal"] == pytest.approx(57 / 60)
    assert features["min_cosine"] == 0
    assert features["mean_cosine"] == pytest.approx(3 / 4)


def test_stages_that_cannot_be_compared(tmp_path: Path) -> None:
    rows = np.ones((2, 5, 3), np.float16)
    a = make(tmp_path, {"x": rows})
    wide = ArraySpec("features", "float16", (5, 4), 4, "raw")
    b = make(tmp_path, {"x": np.ones((2, 5, 4), np.float16)}, [wide], dim=4)
    with pytest.raises(UserError, match="no array in common"):
        diff(a, b)
    with pytest.raises(UserError, match="is not the folder of a stage; `bmoe-cache ls`"):
        diff(a, tmp_path)
