"""Both decoders keep one contract: the same frames, upright, for files and for intervals."""

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode import DecodeJob, DecodePool
from pipeline.decode.backends import complaint, upright
from pipeline.decode.spans import SpanFrames
from pipeline.errors import ClipError
from tests.decode.clips import numbers, remux, write_video

FRAMES = 40


def has_codec(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_video(folder / "plain.mp4")
    write_video(folder / "plain.mkv")
    write_video(folder / "old.avi", codec="mpeg4")
    for degrees in (90, -90, 180):
        write_video(folder / f"turned{degrees}.mp4", frames=3, rotation=degrees)
    write_video(folder / "turned90.mkv", frames=3, rotation=90)
    write_video(folder / "mirrored.mp4", frames=3, rotation=0, hflip=True)
    if has_codec("libx265"):
        options = {"x265-params": "log-level=none:open-gop=1:keyint=12:bframes=3:pools=1"}
        write_video(folder / "open.mp4", codec="libx265", codec_options=options)
    return folder


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[str, DecodePool]]:
    with (
        DecodePool(1, backends=("decord",)) as decord,
        DecodePool(1, backends=("pyav",)) as pyav,
        DecodePool(1) as both,
    ):
        yield {"decord": decord, "pyav": pyav, "both": both}


def decode(pool: DecodePool, path: Path, start: int | None = None, end: int | None = None) -> Any:
    """Any: the tests say by what they read whether it is Frames or a ClipError."""
    [(_, result)] = pool.decode([DecodeJob("clip", path, None, start, end)])
    return result


needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel for this machine")


def spread(count: int) -> np.ndarray:
    return np.array([0, count // 2, count // 2, count - 1])


@pytest.mark.parametrize("backend", [pytest.param("decord", marks=needs_decord), "pyav"])
class TestContract:
    @pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "old.avi"])
    def test_whole_file(self, pools: dict[str, DecodePool], folder: Path, backend: str, name: str) -> None:
        result = decode(pools[backend], folder / name)
        assert result.array.shape == (FRAMES, 64, 96, 3)
        assert result.array.dtype == np.uint8
        assert result.array.flags.c_contiguous
        assert numbers(result.array) == list(range(FRAMES))
        assert result.decoder.startswith(f"{backend} ")
        assert (result.fps_num, result.fps_den) == (25, 1)
        assert not result.warnings

    def test_channels_are_rgb(self, pools: dict[str, DecodePool], folder: Path, backend: str) -> None:
        corner = decode(pools[backend], folder / "plain.mp4").array[5, 4:12, 4:12].mean((0, 1))
        assert corner[0] > 180
        assert corner[1] < 60
        assert corner[2] < 60

    @pytest.mark.parametrize("degrees", [90, -90, 180])
    def test_rotation_is_applied_once(
        self, pools: dict[str, DecodePool], folder: Path, backend: str, degrees: int
    ) -> None:
        result = decode(pools[backend], folder / f"turned{degrees}.mp4")
        assert result.array.shape[1:3] == ((64, 96) if degrees == 180 else (96, 64))
        assert any(warning.startswith("W_ROTATION") for warning in result.warnings)
        frame = result.array[0]
        corners = {90: frame[-12:-4, 4:12], -90: frame[4:12, -12:-4], 180: frame[-12:-4, -12:-4]}
        assert corners[degrees].mean((0, 1))[0] > 180  # the red corner, counter-clockwise

    @pytest.mark.parametrize("name", ["plain.mp4", "old.avi", "turned90.mp4"])
    @pytest.mark.parametrize("likely", [FRAMES - 1, FRAMES - 9, 400])
    def test_few_frames_are_those_of_the_whole_clip(
        self, pools: dict[str, DecodePool], folder: Path, backend: str, name: str, likely: int
    ) -> None:
        pool, path = pools["pyav" if backend == "pyav" else "both"], folder / name
        whole = decode(pool, path, 1)
        job = DecodeJob("few", path, start_frame=1, only=spread, frames=likely)
        [(_, few)] = pool.decode([job])
        assert few.array.shape == whole.array.shape
        wanted = spread(len(whole.array))
        assert np.array_equal(few.array[wanted], whole.array[wanted])
        assert (few.decoder, few.warnings) == (whole.decoder, whole.warnings)
        with pytest.raises(IndexError, match="only"):
            few.array[np.array([len(whole.array)])]

    def test_few_frames_without_room_are_decoded_where_they_are_looked_at(
        self, folder: Path, backend: str
    ) -> None:
        backends = ("pyav",) if backend == "pyav" else ("decord", "pyav")
        with DecodePool(1, backends=backends, memory=100_000) as pool:  # a picture has 18,432 bytes
            [(_, few)] = pool.decode([DecodeJob("few", folder / "plain.mp4", only=spread, frames=FRAMES)])
            assert isinstance(few.array, SpanFrames)
            assert few.array.shape == (FRAMES, 64, 96, 3)
            assert numbers(few.array[spread(FRAMES)]) == spread(FRAMES).tolist()

    def test_interval_past_the_end(self, pools: dict[str, DecodePool], folder: Path, backend: str) -> None:
        for start, end in ((0, FRAMES + 2), (FRAMES, None), (FRAMES + 5, FRAMES + 9)):
            result = decode(
                pools["pyav"] if backend == "pyav" else pools["both"], folder / "plain.mp4", start, end
            )
            assert isinstance(result, ClipError)
            assert result.code == "E_END_PAST_EOF"
            assert f"has {FRAMES} frames" in result.message


@needs_decord
@pytest.mark.parametrize("name", ["plain.mp4", "old.avi", "turned90.mp4", "turned-90.mp4", "turned180.mp4"])
def test_decoders_agree(pools: dict[str, DecodePool], folder: Path, name: str) -> None:
    decord, pyav = (decode(pools[backend], folder / name) for backend in ("decord", "pyav"))
    assert np.array_equal(decord.array, pyav.array)


def test_one_frame_past_the_end_is_forgiven(pools: dict[str, DecodePool], folder: Path) -> None:
    result = decode(pools["both"], folder / "plain.mp4", 30, FRAMES + 1)
    assert numbers(result.array) == list(range(30, FRAMES))
    assert result.warnings[0].startswith("W_END_PAST_EOF")


@pytest.mark.parametrize("name", ["turned90.mkv", "mirrored.mp4"])
def test_orientation_decord_ignores_goes_to_pyav(
    pools: dict[str, DecodePool], folder: Path, name: str
) -> None:
    result = decode(pools["both"], folder / name)
    assert result.decoder.startswith("pyav")
    frame = result.array[0]
    corner = frame[-12:-4, 4:12] if name == "turned90.mkv" else frame[4:12, -12:-4]
    assert corner.mean((0, 1))[0] > 180


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)],
)
def test_upright_follows_the_matrix(matrix: tuple[int, int, int, int]) -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    a, b, c, d = matrix
    places = {(a * x + c * y, b * x + d * y): rgb[y, x] for y, x in itertools.product(range(2), range(3))}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    turned = upright(rgb, matrix)
    for (x, y), pixel in places.items():
        assert np.array_equal(turned[y - top, x - left], pixel)


@pytest.mark.parametrize("skip", [10, 24])
def test_frames_decord_would_invent_are_not_taken(
    pools: dict[str, DecodePool], folder: Path, tmp_path: Path, skip: int
) -> None:
    """Cut in front of pictures that cannot be decoded: decord makes up the number with copies of the last frame."""
    if not (folder / "open.mp4").exists():
        pytest.skip("this PyAV has no HEVC encoder")
    cut = remux(folder / "open.mp4", tmp_path / "cut.mkv", skip=skip)
    result = decode(pools["both"], cut)
    seen = numbers(result.array)
    assert seen == list(range(seen[0], FRAMES))
    assert any(warning.startswith("W_HEADER_COUNT") for warning in result.warnings)


def test_complaint_ignores_chatter() -> None:
    chatter = "[swscaler @ 0x55] deprecated pixel format used\n[NULL @ 0x1] Failed to parse extradata\n"
    assert complaint(chatter) is None
    damage = "[h264 @ 0x55d0] concealing 469 DC, 469 AC, 469 MV errors in P frame\n"
    assert complaint(chatter + damage) == "h264: concealing 469 DC, 469 AC, 469 MV errors in P frame"
