"""Frame choice and pixel arithmetic, against numbers of the original code and plain restatements."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encoders import preprocess
from pipeline.errors import UserError

MANET_GOLDENS = {
    1: [0] * 8,
    5: [0, 0, 1, 2, 2, 3, 4, 4],
    8: list(range(8)),
    45: [2, 8, 14, 19, 25, 30, 36, 42],
    47: [2, 8, 14, 20, 26, 32, 38, 44],
    50: [3, 9, 15, 21, 28, 34, 40, 46],
    56: [3, 10, 17, 24, 31, 38, 45, 52],
    60: [3, 11, 18, 26, 33, 41, 48, 56],
    75: [4, 14, 23, 32, 42, 51, 60, 70],
}
VIDEOMAE_GOLDENS = {
    45: [0, 4, 9, 13, 18, 22, 27, 31, 36, 40, *[44] * 6],
    64: [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63],
    75: [5, 9, 13, 17, 22, 26, 30, 34, 39, 43, 47, 51, 56, 60, 64, 68],
}


def images(n: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("n_frames", MANET_GOLDENS)
def test_manet_indices(n_frames: int) -> None:
    assert preprocess.manet_indices(n_frames).tolist() == MANET_GOLDENS[n_frames]


@pytest.mark.parametrize("n_frames", VIDEOMAE_GOLDENS)
def test_videomae_validation_indices(n_frames: int) -> None:
    assert preprocess.videomae_indices(n_frames).tolist() == VIDEOMAE_GOLDENS[n_frames]


def test_indices_stay_inside_clips_of_every_length() -> None:
    for n_frames in range(1, 300):
        for indices, count in (
            (preprocess.manet_indices(n_frames), 8),
            (preprocess.videomae_indices(n_frames), 16),
        ):
            assert indices.shape == (count,)
            assert indices.dtype == np.int64
            assert 0 <= indices.min() <= indices.max() < n_frames
            assert (np.diff(indices) >= 0).all()


@pytest.mark.parametrize(
    ("n_frames", "stride", "count"),
    [(16, 4, 1), (20, 4, 2), (45, 4, 8), (60, 4, 12), (75, 4, 15), (120, 4, 27), (45, 16, 2), (60, 16, 3)],
)
def test_window_counts_are_those_of_the_official_feature_script(
    n_frames: int, stride: int, count: int
) -> None:
    starts = preprocess.window_starts(n_frames, 16, stride)
    assert starts.tolist() == [stride * i for i in range(count)]
    last = preprocess.window_indices(int(starts[-1]), 16, n_frames)
    assert last.tolist() == list(range(starts[-1], starts[-1] + 16))
    assert last[-1] < n_frames


@pytest.mark.parametrize("n_frames", [1, 5, 15])
def test_a_short_clip_is_one_window_that_repeats_its_last_frame(n_frames: int) -> None:
    assert preprocess.window_starts(n_frames, 16, 4).tolist() == [0]
    indices = preprocess.window_indices(0, 16, n_frames).tolist()
    assert indices == [*range(n_frames), *[n_frames - 1] * (16 - n_frames)]


@pytest.mark.parametrize(
    ("height", "width", "size"), [(1296, 1080, (307, 256)), (240, 320, (256, 341)), (151, 100, (387, 256))]
)
def test_short_side_resize_is_opencv_on_each_frame(height: int, width: int, size: tuple[int, int]) -> None:
    frames = images(2, height, width)
    resized = preprocess.resize_short_side(frames, 256)
    assert resized.shape == (2, *size, 3)
    for source, target in zip(frames, resized, strict=True):
        expected = cv2.resize(source, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(target, expected)


SIDE = st.integers(1, 70)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@settings(max_examples=200)
@given(SIDE, SIDE, st.one_of(st.tuples(SIDE, SIDE), st.just("half"), st.just("double")), st.integers(0, 9))
def test_integer_resize_is_opencv_bit_for_bit(
    height: int, width: int, target: tuple[int, int] | str, seed: int
) -> None:
    if target == "half":
        height, width, target = 2 * height, 2 * width, (height, width)
    elif target == "double":
        target = (2 * height, 2 * width)
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = preprocess.squash_cv2(frames, target)  # type: ignore[arg-type]
    assert np.array_equal(preprocess.squash_integer(torch.from_numpy(frames), target), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1024, 768), (307, 256), (648, 540), (224, 224)])
def test_integer_resize_of_whole_frames(size: tuple[int, int]) -> None:
    frames = images(1, 1296, 1080)
    found = preprocess.squash_integer(torch.from_numpy(frames), size)
    assert np.array_equal(found, preprocess.squash_cv2(frames, size))


@pytest.mark.gpu
@NO_GPU
def test_inputs_on_the_gpu_are_those_of_the_cpu() -> None:
    frames = images(8, 130, 110)
    there = torch.from_numpy(frames).cuda()
    for size in ((64, 48), (65, 55), (200, 90)):
        assert np.array_equal(preprocess.squash(there, size).cpu(), preprocess.squash(frames, size))
    lite = preprocess.normalisation("lite")
    for mine, theirs in (
        (preprocess.manet_input(there, 96, 80), preprocess.manet_input(frames, 96, 80)),
        (preprocess.sapiens_input(there, (64, 48), *lite), preprocess.sapiens_input(frames, (64, 48), *lite)),
    ):
        assert mine.device.type == "cuda"
        torch.testing.assert_close(mine.cpu(), theirs, atol=1e-6, rtol=0)


def test_tensors_and_arrays_give_the_same_inputs() -> None:
    frames = images(8, 120, 100)
    tensors = torch.from_numpy(frames)
    lite = preprocess.normalisation("lite")
    assert torch.equal(preprocess.manet_input(tensors, 96, 80), preprocess.manet_input(frames, 96, 80))
    assert torch.equal(
        preprocess.sapiens_input(tensors, (64, 48), *lite), preprocess.sapiens_input(frames, (64, 48), *lite)
    )


def test_crops_that_are_views_resize_like_their_copies() -> None:
    frames = images(2, 90, 70)[:, 11:61, 7:50]
    assert np.array_equal(
        preprocess.squash_cv2(frames, (32, 24)), preprocess.squash_cv2(frames.copy(), (32, 24))
    )


def test_centre_crop_offsets_round_down() -> None:
    frames = images(1, 307, 256)
    assert np.array_equal(preprocess.centre_crop(frames, 224), frames[:, 41:265, 16:240])
    with pytest.raises(ValueError, match="cannot crop"):
        preprocess.centre_crop(frames, 257)


@pytest.mark.parametrize("name", ["imagenet", "mmseg", "lite", "none"])
def test_to_float_normalises_each_channel(name: str) -> None:
    frames = images(3, 5, 4)
    mean, std = preprocess.normalisation(name)
    expected = ((frames.astype(np.float64) - mean) / std).transpose(0, 3, 1, 2)
    for source in (frames, torch.from_numpy(frames)):
        x = preprocess.to_float(source, mean, std)
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)


def test_normalisations_are_the_published_numbers() -> None:
    mean, std = preprocess.normalisation("imagenet")
    assert [m / 255 for m in mean] == pytest.approx([0.485, 0.456, 0.406])
    assert [s / 255 for s in std] == pytest.approx([0.229, 0.224, 0.225])
    assert preprocess.normalisation("mmseg") == (mean, std)
    assert preprocess.normalisation("lite") == ((123.5, 116.5, 103.5), (58.5, 57.0, 57.5))
    with pytest.raises(UserError, match="imagenet, mmseg, lite, none"):
        preprocess.normalisation("half")


def test_to_float_keeps_leading_axes_and_leaves_its_input_alone() -> None:
    frames = images(6, 4, 5).reshape(2, 3, 4, 5, 3)
    before = frames.copy()
    frames.flags.writeable = False
    x = preprocess.to_float(frames, *preprocess.normalisation("none"))
    assert x.shape == (2, 3, 3, 4, 5)
    assert x[1, 2, 0, 3, 4].item() == pytest.approx(frames[1, 2, 3, 4, 0] / 255)
    assert np.array_equal(frames, before)


@pytest.mark.parametrize(("height", "width", "size"), [(120, 90, 64), (40, 56, 64), (64, 64, 64)])
def test_videomae_input_is_torch_bilinear_on_floats(height: int, width: int, size: int) -> None:
    frames = images(2, height, width)
    x = preprocess.videomae_input(frames, size, "none")
    floats = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    expected = F.interpolate(floats, size=(size, size), mode="bilinear", align_corners=False, antialias=False)
    assert x.is_contiguous()
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)


def test_manet_and_sapiens_inputs_chain_the_steps() -> None:
    frames = images(8, 300, 270)
    x = preprocess.manet_input(frames)
    resized = cv2.resize(frames[7], (256, 284), interpolation=cv2.INTER_LINEAR)[30:254, 16:240]
    expected = (resized.astype(np.float32) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    assert x.shape == (8, 3, 224, 224)
    np.testing.assert_allclose(x[7].numpy(), expected.transpose(2, 0, 1), atol=1e-6)

    y = preprocess.sapiens_input(frames[:2], (128, 96), *preprocess.normalisation("lite"))
    squashed = cv2.resize(frames[1], (96, 128), interpolation=cv2.INTER_LINEAR)
    expected = (squashed.astype(np.float32) - [123.5, 116.5, 103.5]) / [58.5, 57.0, 57.5]
    np.testing.assert_allclose(y[1].numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_importing_the_package_loads_neither_torch_nor_opencv() -> None:
    code = (
        "import sys; import pipeline.encoders, pipeline.encoders.preprocess, pipeline.encoders.weights; "
        "print([m for m in ('torch', 'cv2', 'huggingface_hub', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
