"""bfloat16 against float32 (autocast on the CPU): features point the same way, labels are the same."""

import pytest

from benchmarks.precision import LARGE, SMALL, agreement


def check_features(found: dict[str, float]) -> None:
    assert found["cosine_mean"] >= 0.999
    assert found["cosine_min"] >= 0.99
    assert found["cosine_mean"] < 1  # it did run in another precision


@pytest.mark.parametrize("name", ["demo-videomaev2", "demo-manet"])
def test_features_of_the_demo_encoders(name: str) -> None:
    check_features(agreement(*SMALL[name]()))


def test_labels_of_the_demo_segmenter() -> None:
    found = agreement(*SMALL["demo-segmenter"]())
    assert 0.99 <= found["same_labels"] < 1


@pytest.mark.slow
def test_features_of_base_with_synthetic_weights() -> None:
    check_features(agreement(*LARGE["videomaev2-base synthetic"]()))
