"""Features from a real cache: resampling against a plain loop, counts of what was left out, refusals."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from heads.features import load_features
from heads.resample import resample_weights, truncate_weights
from heads.spec import MOTION, SEMANTIC
from pipeline.errors import UserError
from pipeline.spec import digest
from pipeline.store.reader import Cache
from pipeline.store.writer import write_build
from tests.heads.caches import features_of, make_cache, motion_of, windows_of


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("heads") / "cache")


def resample(
    x: np.ndarray, present: np.ndarray, starts: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """x [n, W, V, D] -> [n, T, V, D] and valid [n, T, V]."""
    weights, valid = resample_weights(present, starts, steps)
    assert weights.dtype == np.float32
    return np.einsum("nvtw,nwvd->ntvd", weights, x), valid.transpose(0, 2, 1)


def slow_resample(
    x: np.ndarray, present: np.ndarray, starts: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """One clip and view at a time, step by step: x [W, V, D], present [W, V] -> [T, V, D], [T, V]."""
    windows, views, dim = x.shape
    y, valid = np.zeros((steps, views, dim)), np.zeros((steps, views), bool)
    for t in range(steps):
        share = t / (steps - 1) if steps > 1 else 0.5
        at = starts[0] + share * (starts[-1] - starts[0])
        later = next((w for w in range(windows) if starts[w] > at), windows - 1)
        earlier = max(later - 1, 0) if starts[later] > at or later == windows - 1 else later
        nearest = later if starts[later] - at < at - starts[earlier] else earlier
        for v in range(views):
            if not present[nearest, v]:
                continue
            valid[t, v] = True
            if present[earlier, v] and present[later, v] and starts[later] > starts[earlier]:
                w = (at - starts[earlier]) / (starts[later] - starts[earlier])
                y[t, v] = (1 - w) * x[earlier, v] + w * x[later, v]
            else:
                y[t, v] = x[nearest, v]
    return y, valid


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 13])
@pytest.mark.parametrize("number", range(9))
def test_resample_equals_a_loop(number: int, steps: int) -> None:
    starts = windows_of(number).astype(np.float64)
    rng = np.random.default_rng(number)
    x = rng.normal(size=(6, len(starts), 3, 4)).astype(np.float32)
    present = rng.random((6, len(starts), 3)) > 0.3
    y, valid = resample(x, present, np.tile(starts, (6, 1)), steps)
    for i in range(6):
        expected, ok = slow_resample(x[i], present[i], starts, steps)
        assert (valid[i] == ok).all()
        np.testing.assert_allclose(y[i], expected, atol=1e-5)


def test_resample_keeps_windows_that_fit() -> None:
    x = np.random.default_rng(0).normal(size=(2, 8, 5, 3)).astype(np.float32)
    y, valid = resample(x, np.ones((2, 8, 5), bool), np.tile(np.arange(8.0) * 4, (2, 1)), 8)
    np.testing.assert_allclose(y, x, atol=1e-6)
    assert valid.all()


def test_truncate() -> None:
    present = np.array([[[1, 1], [0, 1], [1, 1]]], bool)
    weights, valid = truncate_weights(present, 5)
    assert valid[0].T.tolist() == [[True, True], [False, True], [True, True], [False, False], [False, False]]
    assert (weights[~valid] == 0).all()
    assert weights[0, 0, 2].tolist() == [0, 0, 1]
    weights, valid = truncate_weights(present, 2)
    assert weights[0, 1].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_load(cache: Path) -> None:
    data = load_features(cache, "demo", 4)
    assert (data.dim, data.motion_dim, data.t_len) == (32, 24, 4)
    assert data.counts == {
        "train": {
            "used": 24,
            "unreadable": 1,
            "unlabelled": 1,
            "pending": 1,
            "quarantined": 1,
            "several_labels": 1,
        },
        "val": {"used": 12},
    }
    for name, first, count in (("train", 0, 24), ("val", 24, 12)):
        split = data.splits[name]
        t = split.tensors
        assert split.clip_id == tuple(f"c{i:04d}" for i in range(first, first + count))
        assert split.label.tolist() == [i % 12 for i in range(first, first + count)]
        assert t["sem_parts"].dtype == torch.float32
        assert t["sem_parts"].shape == (count, 4, 4, 32)
        assert t["sem_full_valid"].all()
        for row, number in enumerate(range(first, first + count)):
            x, present = features_of(number)
            starts = windows_of(number).astype(np.float64)
            expected, valid = slow_resample(x.astype(np.float64), present > 0, starts, 4)
            np.testing.assert_allclose(t["sem_full"][row], expected[:, 0], atol=1e-5)
            np.testing.assert_allclose(t["sem_parts"][row], expected[:, 1:].transpose(1, 0, 2), atol=1e-5)
            assert (t["sem_parts_valid"][row].numpy() == valid[:, 1:].T).all()
            motion, logits = motion_of(number)
            np.testing.assert_array_equal(t["motion"][row], motion.astype(np.float32))
            np.testing.assert_array_equal(t["motion_logits"][row], logits)
    batch = data.splits["val"].batch(torch.tensor([3, 1]))
    assert torch.equal(batch["motion"], data.splits["val"].tensors["motion"][[3, 1]])


def test_the_digest_follows_the_content_of_the_clips(cache: Path) -> None:
    data = load_features(cache, "demo", 4)
    train = data.splits["train"]
    keys = Cache(cache).clip_keys("demo")
    assert train.key == tuple(keys[clip_id] for clip_id in train.clip_id)
    filmed_again = replace(train, key=(digest("another video"), *train.key[1:]))
    assert replace(data, splits={**data.splits, "train": filmed_again}).digest != data.digest
    assert replace(data, splits=dict(data.splits)).digest == data.digest


def test_flipped_bits_are_not_learned_from(cache: Path, tmp_path: Path) -> None:
    root = shutil.copytree(cache, tmp_path / "cache")
    shard = next(root.glob("stages/semantic/*/features.zarr/features/c/0/0/0"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        UserError, match=r"is damaged: the checksum of clip c0000 is wrong; .*verify.*--repair"
    ):
        load_features(root, "demo", 4)


def test_pad_truncate_from_the_cache(cache: Path) -> None:
    data = load_features(cache, "demo", 4, "pad_truncate", needs=SEMANTIC, splits=["val"])
    assert set(data.splits) == {"val"}
    assert set(data.keys) == {"semantic"}
    lengths = data.splits["val"].tensors["sem_full_valid"].sum(1).tolist()
    assert lengths == [min(len(windows_of(i)), 4) for i in range(24, 36)]


def test_info(cache: Path) -> None:
    data = load_features(cache, "demo", 4)
    info = data.info(np.zeros((12, 300), np.float32))
    assert info.classes[11] == "patting legs"
    assert info.coarse == (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
    assert info.experts["strict"]["upper_limb"] == (5, 6, 7)
    assert not info.multi
    only = data.only(MOTION)
    assert (only.dim, only.motion_dim, set(only.keys)) == (0, 24, {"motion"})


def test_refusals_name_the_command(tmp_path: Path) -> None:
    root = make_cache(tmp_path / "cache", motion=False)
    command = f"bmoe-cache build --dataset demo --cache {root} --preset tiny"
    with pytest.raises(UserError, match=f"no motion features of demo; make them: {command}"):
        load_features(root, "demo", needs=SEMANTIC + MOTION)
    assert load_features(root, "demo", needs=SEMANTIC).splits
    (root / "builds" / "demo.json").unlink()
    with pytest.raises(UserError, match="demo was not built here; make its features: bmoe-cache build"):
        load_features(root, "demo", needs=SEMANTIC)
    write_build(root, "demo", {"preset": "tiny", "stages": {"motion": digest("elsewhere")}})
    with pytest.raises(UserError):
        load_features(root, "demo", needs=MOTION)
    with pytest.raises(UserError):
        load_features(root, "other", needs=MOTION)
    with pytest.raises(UserError):
        load_features(tmp_path / "nothing", "demo")
