"""The semantic stage: which frames a window sees, where its numbers land, what it says about itself."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.encoders.preprocess import manet_indices
from pipeline.errors import ClipError, UserError
from pipeline.manifest import Clip
from pipeline.plan import ClipTask
from pipeline.regions import Boxes
from pipeline.spec import VIEWS, SemanticSpec
from pipeline.stages.semantic import arrays, encode_windows, sample_windows
from pipeline.stages.tokens import Projection
from pipeline.stages.work import Work
from pipeline.store.writer import ShardBuilder
from tests.specs import pipeline_spec
from tests.store.caches import make_stage

CPU = torch.device("cpu")
TOKENS = {"views": ["full", "body"], "grid": [1, 2], "width": None, "projection": None}


class Eye(nn.Module):
    """Its features are what it saw: the mean of every frame; its tokens the means of 2 frames by 4 x 4 pixels."""

    input_shape = (3, 16, 8, 8)
    feature_dim = 16
    token_shape = (8, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.autocast = False

    def forward(self, x: Tensor, tokens: bool = False) -> dict[str, Tensor]:
        self.rows += len(x)
        self.autocast = torch.is_autocast_enabled("cpu")
        out = {"features": x.mean((1, 3, 4))}
        if tokens:  # [B, 8, 2, 2, 16]: token (t, row, column) holds the mean of its pixels, 16 times
            cells = (
                x.mean(1).unflatten(1, (8, 2)).mean(2).unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5))
            )
            out["tokens"] = cells[..., None].expand(-1, -1, -1, -1, 16)
        return out


def spec(**options: Any) -> SemanticSpec:
    return dataclasses.replace(pipeline_spec().semantic, normalisation="none", **options)


def work(frames: int, key: str = "clip", absent: tuple[int, ...] = ()) -> Work:
    """Frame t is t everywhere, or 100 + t in the right half; every region is the left half of the frame."""
    pixels = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    pixels = np.broadcast_to(pixels, (frames, 24, 32, 3)).copy()
    pixels[:, :, 16:] += 100
    box = np.tile(np.array([0, 0, 0.5, 1], np.float32), (frames, 4, 1))
    present = np.ones((frames, 4), np.uint8)
    present[:, list(absent)] = 0
    clip = Work(ClipTask(key, Clip(key, "test", "x.mp4"), frames), frames=pixels, facts={"frames": frames})
    clip.labels = clip.under = np.zeros((frames, 6, 8), np.uint8)
    clip.boxes = Boxes(box, np.ones((frames, 4), np.float32), present)
    return clip


def run(
    works: list[Work], wanted: SemanticSpec, model: Any = None, projection: Projection | None = None
) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    regions = dataclasses.replace(pipeline_spec().regions, mask=False)
    eye = model or Eye()
    out = encode_windows(works, wanted, regions, 1, eye, projection, 3, CPU, lambda _: True)
    return [done.written["semantic"] for done in out]  # type: ignore[misc]


# --- which frames -----------------------------------------------------------------------------------------


@given(
    st.integers(1, 200),
    st.sampled_from(
        [
            {"stride": 1},
            {"stride": 4},
            {"stride": 20},
            {"windows": 1},
            {"windows": 8},
            {"sampling": "uniform"},
        ]
    ),
)
def test_windows_are_as_many_as_planned_and_inside_the_clip(frames: int, rule: dict[str, Any]) -> None:
    wanted = spec(**{"stride": None, **rule})
    starts, windows = sample_windows(frames, wanted)
    assert windows.shape == (len(starts), 16)
    assert len(starts) == wanted.window_count(frames)
    assert windows.min() >= 0
    assert windows.max() < frames
    steps = np.diff(windows, axis=1)
    assert (steps >= 0).all()
    if wanted.sampling == "dense" and frames >= 16:
        assert (steps == 1).all()
        assert np.array_equal(starts, windows[:, 0])


def test_a_number_of_windows_spreads_over_the_clip() -> None:
    starts, windows = sample_windows(75, spec(stride=None, windows=8))
    assert starts.tolist() == [0, 8, 17, 25, 34, 42, 51, 59]  # round(linspace(0, 75 - 16, 8))
    assert windows[-1, -1] == 74


def test_uniform_windows_follow_the_rule_of_manet() -> None:
    for frames in (1, 5, 16, 47, 75, 300):
        wanted = dataclasses.replace(spec(stride=None, sampling="uniform"), window=8)
        assert np.array_equal(sample_windows(frames, wanted)[1][0], manet_indices(frames))


def test_every_view_of_every_window_sees_its_own_frames() -> None:
    for rule in ({"stride": 4}, {"stride": None, "windows": 3}, {"stride": None, "sampling": "uniform"}):
        wanted = spec(**rule)
        works = [work(40, "a"), work(9, "b"), work(75, "c")]
        for done, (written, facts) in zip(works, run(works, wanted), strict=True):
            assert done.frames is not None
            starts, windows = sample_windows(len(done.frames), wanted)
            expected = np.stack(
                [windows + 50, *[windows] * 4], axis=1
            )  # regions are the half without the 100
            np.testing.assert_allclose(written["features"] * 255, expected, atol=1e-3)
            assert (written["present"] == 1).all()
            assert facts["start_frames"] == starts.tolist()
            assert facts["repeated_frames"] == max(16 - len(done.frames), 0)
            assert facts["frames"] == len(done.frames)
            assert facts.get("window_frames") == (windows[0].tolist() if "sampling" in rule else None)


# --- what is absent ---------------------------------------------------------------------------------------


def test_absent_regions_are_zero_and_never_run() -> None:
    eye = Eye()
    clip = work(16, absent=(1,))
    assert clip.boxes is not None
    clip.boxes.present[:8, 3] = 0  # half of the window has it: it counts
    ((written, _),) = run([clip], spec(tokens=TOKENS), eye)
    assert written["present"].tolist() == [[1, 1, 0, 1, 1]]
    assert (written["features"][0, 2] == 0).all()
    assert (written["tokens"][0, 1] == 0).all()  # body
    assert (written["tokens"][0, 0] != 0).any()
    assert eye.rows == 6  # four views, and the tail of the second batch of three


def test_views_of_the_full_frame_need_no_boxes() -> None:
    bare, crops = work(16, "bare"), spec(views=("head", "full"))
    bare.boxes = bare.labels = None
    ((written, _),) = run([bare], spec(views=("full",)))
    assert written["features"].shape == (1, 1, 16)
    bare.written.clear()
    (done,) = encode_windows([bare], crops, pipeline_spec().regions, 1, Eye(), None, 3, CPU, lambda _: True)
    assert done.written == {}
    ((written, _),) = run([work(16)], crops)
    np.testing.assert_allclose(written["features"][0, 1] - written["features"][0, 0], 50 / 255, atol=1e-5)


# --- tokens -----------------------------------------------------------------------------------------------


def test_tokens_lie_beside_the_features_of_their_views() -> None:
    ((written, _),) = run([work(16)], spec(tokens=TOKENS))
    tokens = written["tokens"].astype(np.float32) * 255
    assert tokens.shape == (1, 2, 8, 1, 2, 16)
    pairs = np.arange(16).reshape(8, 2).mean(1)
    np.testing.assert_allclose(tokens[0, 0, :, 0, 0, 0], pairs, atol=0.02)  # full, left
    np.testing.assert_allclose(tokens[0, 0, :, 0, 1, 0], pairs + 100, atol=0.1)  # full, right
    np.testing.assert_allclose(tokens[0, 1, :, 0, 1, 0], pairs, atol=0.02)  # body: a crop of the left half


def test_arrays_declare_what_is_written() -> None:
    projection = Projection(torch.zeros(16), torch.eye(16)[:, :5])
    wanted = spec(tokens={**TOKENS, "width": 5})
    ((written, _),) = run([work(40)], wanted, projection=projection)
    declared = {array.name: array.row_shape for array in arrays(wanted, Eye())}
    assert {name: value.shape[1:] for name, value in written.items()} == declared
    assert [array.name for array in arrays(spec(), Eye())] == ["features", "present"]
    assert declared["features"] == (len(VIEWS), 16)


@pytest.mark.parametrize(("gain", "where"), [(1e6, "tokens"), (float("nan"), "features")])
def test_numbers_float16_cannot_hold_refuse_the_clip(tmp_path: Any, gain: float, where: str) -> None:
    class Loud(Eye):
        def forward(self, x: Tensor, tokens: bool = False) -> dict[str, Tensor]:
            out = super().forward(x, tokens)
            out[where] = out[where] * gain
            return out

    wanted = spec(tokens=TOKENS)
    ((written, facts),) = run([work(40)], wanted, Loud())
    builder = ShardBuilder(make_stage(tmp_path, arrays(wanted, Eye()), shard_rows=64), 0)
    with pytest.raises(ClipError, match=where) as caught:
        builder.add("a" * 64, "clip", written, facts)
    assert caught.value.code == "E_NON_FINITE"


# --- options ----------------------------------------------------------------------------------------------


def test_precision_reaches_the_encoder() -> None:
    for precision in ("float32", "bfloat16"):
        eye = Eye()
        run([work(16)], spec(precision=precision), eye)
        assert eye.autocast == (precision == "bfloat16")


def test_an_encoder_of_other_windows_is_refused() -> None:
    with pytest.raises(UserError, match="num_frames: 8"):
        run([work(16)], dataclasses.replace(spec(), window=8))
