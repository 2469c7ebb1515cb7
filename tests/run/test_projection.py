"""The projection of token maps, fitted on train clips of a small cache and used by a build."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from pipeline.errors import UserError
from pipeline.presets import Recipe, load_recipe
from pipeline.run.build import build
from pipeline.run.projection import Moments, fit_projection
from pipeline.store.reader import Cache
from tests.run.worlds import bmoe, import_clips

WIDTH = 12
ASKED = ["semantic.stride=null", "semantic.sampling=uniform"]


def asked(tokens: str) -> list[str]:
    return [*ASKED, f"semantic.tokens={tokens}"]


def recipe(projection: str = "random") -> Recipe:
    tokens = f"{{views: [full, head], grid: [2, 2], width: {WIDTH}, projection: {projection}}}"
    return load_recipe("demo", None, asked(tokens))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_components_are_those_of_a_singular_value_decomposition(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 6)) * [9, 6, 4, 3, 2, 1] + rng.normal(size=6)
    moments = Moments(6)
    for part in np.array_split(x, 7):
        moments.add(part)
    mean, components, explained = moments.components(width)
    centred = x - x.mean(0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(np.abs(components.T @ vectors[:width].T), np.eye(width), atol=1e-6)
    np.testing.assert_allclose(explained, (singular[:width] ** 2).sum() / (singular**2).sum())
    assert (components[np.abs(components).argmax(0), np.arange(width)] > 0).all()


def test_fitted_tokens_are_centred_decorrelated_and_ordered(built_cache: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "p.safetensors"
    shutil.copytree(built_cache, cache)
    fitted = fit_projection(cache, "demo", recipe(), out)
    train = {clip.clip_id for clip in Cache(cache).dataset("demo").clips if clip.split == "train"}
    assert (fitted.clips, fitted.dim, fitted.width) == (len(train), 96, WIDTH)
    assert fitted.tokens <= len(train) * 2 * 8 * 4  # views, times, cells
    assert 0.3 < fitted.explained < 1

    whole = recipe(str(out))
    assert whole.spec.semantic.tokens is not None
    assert whole.spec.semantic.tokens["projection"] == fitted.sha256
    assert whole.spec.semantic.key != recipe().spec.semantic.key
    assert build(cache, "demo", whole, ("semantic",)).computed == {"semantic": 12}
    stage = Cache(cache).stage("semantic", whole.spec.semantic.key)
    kept = []
    for key, rows in stage.clips.items():
        tokens, present = stage.read(key, "tokens"), stage.read(key, "present")
        assert tokens.shape == (1, 2, 8, 2, 2, WIDTH)
        assert tokens.dtype == np.float16
        assert rows.facts["start_frames"] == [0]
        assert len(rows.facts["window_frames"]) == 16
        if rows.clip_id in train:
            kept.append(tokens[present[:, :2].astype(bool)].reshape(-1, WIDTH))
    x = np.concatenate(kept).astype(np.float64)
    assert len(x) == fitted.tokens
    deviation = x.std(0)
    np.testing.assert_allclose(x.mean(0) / deviation, 0, atol=1e-2)
    np.testing.assert_allclose(np.corrcoef(x.T), np.eye(WIDTH), atol=1e-2)
    assert (np.diff(deviation) <= 1e-3).all()


def test_the_command_writes_a_file_that_says_what_it_is(small_world: Path, tmp_path: Path) -> None:
    """Tokens of the full view need no part labels: this cache holds nothing but its clip table."""
    cache, out = tmp_path / "cache", tmp_path / "p.safetensors"
    import_clips(cache, small_world)
    sets = [part for rule in asked("{grid: [2, 2], width: 4}") for part in ("--set", rule)]
    arguments = ("project", "--dataset", "demo", "--cache", cache, "--preset", "demo", "--out", out)
    done = bmoe(*arguments, "--clips", "2", "--json", *sets)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["clips"], record["tokens"], record["width"]) == (2, 2 * 8 * 4, 4)
    with safe_open(out, "np") as file:
        facts = file.metadata()
        components = file.get_tensor("components")
    assert facts["encoder"] == recipe().spec.semantic.weights
    assert float(facts["explained_variance"]) == pytest.approx(record["explained"], abs=1e-6)
    np.testing.assert_allclose(components.T @ components, np.eye(4), atol=1e-6)


def test_mistakes_say_what_to_do(small_world: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "cache", tmp_path / "p.safetensors"
    import_clips(cache, small_world)
    with pytest.raises(UserError, match=r"semantic\.tokens="):
        fit_projection(cache, "demo", load_recipe("demo"), out)
    with pytest.raises(UserError, match="bmoe-cache segment"):
        fit_projection(cache, "demo", recipe(), out)
    with pytest.raises(UserError, match="bmoe-cache project"):
        recipe(str(out))
    assert not out.exists()
