"""Token maps: pooled, projected, in float16; projections that are random or from a file."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.stages.tokens import Projection, load_projection, random_projection, token_map
from tests.specs import pipeline_spec

CPU = torch.device("cpu")


class Shape:
    input_shape, feature_dim, token_shape = (3, 16, 64, 64), 12, (8, 4, 4)

    def __call__(self, x: Any, tokens: bool = False) -> Any:
        raise AssertionError("only its shapes are asked for")


def spec(**tokens: Any) -> Any:
    options = {"views": ["full"], "grid": [2, 2], "width": 5, "projection": "random", **tokens}
    return dataclasses.replace(pipeline_spec().semantic, tokens=options)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_the_full_grid_without_a_projection_keeps_the_tokens() -> None:
    tokens = noise(2, 3, 4, 5, 6)
    assert torch.equal(token_map(tokens, (4, 5), None), tokens.half())


def test_pooling_averages_space_and_nothing_else() -> None:
    tokens = noise(2, 3, 4, 6, 5)
    pooled = token_map(tokens, (2, 3), None)
    assert pooled.shape == (2, 3, 2, 3, 5)
    torch.testing.assert_close(
        pooled[1, 2, 1, 0].float(), tokens[1, 2, 2:, :2].mean((0, 1)), atol=1e-3, rtol=1e-3
    )
    assert token_map(tokens, (3, 4), None).shape == (2, 3, 3, 4, 5)  # grids that do not divide the map


def test_projecting_takes_the_mean_away_first() -> None:
    tokens, mean, matrix = noise(1, 2, 2, 2, 6), noise(6), noise(6, 4)
    found = token_map(tokens, (2, 2), Projection(mean, matrix)).float()
    torch.testing.assert_close(found, (tokens - mean) @ matrix, atol=1e-2, rtol=1e-3)


def test_the_projection_stays_in_float32_under_autocast() -> None:
    tokens, projection = noise(1, 2, 2, 2, 64), random_projection(64, 8)
    expected = token_map(tokens, (2, 2), projection)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_map(tokens, (2, 2), projection), expected)


def test_what_float16_cannot_hold_becomes_infinite() -> None:
    assert torch.isinf(token_map(torch.full((1, 1, 1, 1, 1), 70000.0), (1, 1), None)).all()


def test_random_projections_are_orthogonal_and_always_the_same() -> None:
    matrix = random_projection(96, 32).matrix.double().numpy()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(32), atol=1e-6)
    assert torch.equal(random_projection(96, 32).matrix, random_projection(96, 32).matrix)
    # Numbers of the machine this was written on: any other must find the same, or its tokens would differ.
    np.testing.assert_allclose(matrix[0, :3], [-0.0151824, -0.1364631, -0.0958683], atol=1e-6)
    assert not np.allclose(random_projection(96, 33).matrix[:, :32], matrix)


def fitted(path: Path, encoder: str | None = None, shape: tuple[int, int] = (12, 5)) -> Path:
    tensors = {"mean": noise(shape[0]), "components": noise(*shape)}
    save_file(tensors, path, {"encoder": encoder or pipeline_spec().semantic.weights})
    return path


def test_a_fitted_projection_comes_from_its_file(tmp_path: Path) -> None:
    found = load_projection(spec(projection="0" * 64), Shape(), fitted(tmp_path / "p.safetensors"), CPU)
    assert found is not None
    assert torch.equal(found.mean, noise(12))
    assert torch.equal(found.matrix, noise(12, 5))


def test_no_projection_where_tokens_keep_their_width() -> None:
    assert load_projection(spec(width=None), Shape(), None, CPU) is None
    assert load_projection(pipeline_spec().semantic, Shape(), None, CPU) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": [7, 7]}, ["[7, 7]", "4 x 4"]),
        ({"width": 13}, ["width 13", "12"]),
    ],
)
def test_options_that_do_not_fit_the_encoder_are_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_projection(spec(**options), Shape(), None, CPU)
    for word in words:
        assert word in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    for make, words in (
        (lambda: path.write_bytes(b"{}"), "no projection"),
        (lambda: save_file({"mean": noise(12)}, path), "no projection"),
        (lambda: fitted(path, encoder="f" * 64), "other weights"),
        (lambda: fitted(path, shape=(12, 6)), "projects 12 to 6"),
        (lambda: fitted(path, shape=(10, 5)), "projects 10 to 5"),
    ):
        make()  # type: ignore[no-untyped-call]
        with pytest.raises(UserError, match=words) as caught:
            load_projection(spec(), Shape(), path, CPU)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
