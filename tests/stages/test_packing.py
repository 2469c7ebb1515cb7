import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.manifest import Clip
from pipeline.plan import ClipTask
from pipeline.stages import packing
from pipeline.stages.packing import Rows, packed
from pipeline.stages.work import Work

LENGTHS = st.lists(st.integers(0, 9), max_size=8)
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def rows(number: int, n: int) -> Rows:
    work = Work(ClipTask(str(number), Clip(str(number), "test", "x.mp4"), n))
    values = torch.arange(n).float() + 1000 * number
    return Rows(work, n, lambda low, high: values[low:high])


def double(x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"double": 2 * x}


def check(lengths: list[int], out: list[tuple[Work, dict[str, np.ndarray]]]) -> None:
    """Every clip came out once, in order, with twice its own rows."""
    assert [int(work.task.key) for work, _ in out] == list(range(len(lengths)))
    for number, (n, (_, made)) in enumerate(zip(lengths, out, strict=True)):
        if n:
            assert np.array_equal(made["double"], 2 * (np.arange(n) + 1000 * number))
        else:
            assert made == {}


def with_memory_for(
    limit: Callable[[int], int], shapes: list[int]
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """A forward that runs out of memory above limit(number of the call) rows; notes the batches that fitted."""
    calls = iter(range(10**6))

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(x) > limit(next(calls)):
            raise torch.OutOfMemoryError("no room")
        shapes.append(len(x))
        return double(x)

    return forward


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 5), st.booleans())
def test_every_clip_gets_its_own_rows_in_order(lengths: list[int], batch: int, overlap: bool) -> None:
    shapes: list[int] = []
    forward = with_memory_for(lambda _: batch, shapes)
    check(lengths, list(packed((rows(i, n) for i, n in enumerate(lengths)), batch, forward, overlap=overlap)))
    assert set(shapes) <= {batch}  # fixed shapes, the tail padded
    assert len(shapes) == -(-sum(lengths) // batch)  # packed across clips


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=20), st.booleans())
def test_running_out_of_memory_changes_neither_rows_nor_order(
    lengths: list[int], batch: int, memory: list[int], overlap: bool
) -> None:
    forward = with_memory_for(lambda call: memory[call % len(memory)] if call % 3 else 12, [])
    check(lengths, list(packed((rows(i, n) for i, n in enumerate(lengths)), batch, forward, overlap=overlap)))


@settings(max_examples=60)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_a_block_is_packed_alike_wherever_a_run_begins(
    lengths: list[int], batch: int, block: int, overlap: bool
) -> None:
    """The batches of a run that begins with any block are the last ones of a run that begins with the first."""

    def batches(first: int) -> list[list[float]]:
        seen: list[list[float]] = []

        def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(x.tolist())
            return double(x)

        clips = [rows(i, n) for i, n in enumerate(lengths)][first:]
        for i, clip in enumerate(clips, first + 1):
            clip.work.ends_block = i % block == 0
        assert len(list(packed(clips, batch, forward, overlap=overlap))) == len(clips)
        return seen

    whole = batches(0)
    for first in range(0, len(lengths), block):
        rest = batches(first)
        assert rest == whole[len(whole) - len(rest) :]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_halved_batch_grows_again_after_a_streak(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "REGROW", 3)
    shapes: list[int] = []
    forward = with_memory_for(lambda call: 2 if call < 6 else 8, shapes)
    check([100], list(packed([rows(0, 100)], 8, forward, overlap=overlap)))
    assert shapes[0] == 2  # 8 and 4 did not fit
    assert set(shapes) == {2, 4, 8}
    assert shapes[-4:] == [8] * 4  # full batches again


@pytest.mark.parametrize("overlap", [False, True])
def test_no_memory_for_one_row_is_an_error_and_no_empty_row(overlap: bool) -> None:
    forward = with_memory_for(lambda call: 2 * (call < 1), [])  # the first batch fits
    out: list[object] = []
    with pytest.raises(UserError, match=r"single row of clip 1.*precision"):
        out.extend(packed([rows(0, 2), rows(1, 3)], 2, forward, overlap=overlap))
    assert len(out) <= 1


@pytest.mark.parametrize("overlap", [False, True])
def test_no_memory_for_the_rows_themselves_is_retried_too(overlap: bool) -> None:
    clip = rows(0, 8)
    whole, failures = clip.fetch, iter([True, False, True])

    def fetch(low: int, high: int) -> torch.Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError("no room")
        return whole(low, high)

    clip.fetch = fetch
    check([8], list(packed([clip], 4, double, overlap=overlap)))


def test_an_encoder_that_drops_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="gave 3 rows of 'double' for a batch of 4"):
        list(packed([rows(0, 5)], 4, lambda x: double(x[1:])))


def test_clips_leave_as_soon_as_they_are_done() -> None:
    drawn = []

    def source():  # type: ignore[no-untyped-def]
        for i in range(5):
            drawn.append(i)
            yield rows(i, 2)

    first = next(packed(source(), 4, lambda x: {"x": x}))
    assert first[0].task.key == "0"
    assert drawn == [0, 1]


def test_the_next_batch_is_prepared_while_this_one_is_computed() -> None:
    second_made = threading.Event()
    clip = rows(0, 4)
    whole = clip.fetch

    def fetch(low: int, high: int) -> torch.Tensor:
        if low == 2:
            second_made.set()
        return whole(low, high)

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        assert second_made.wait(20)  # nobody else could set it while forward runs
        return double(x)

    clip.fetch = fetch
    check([4], list(packed([clip], 2, forward, overlap=True)))


def test_bfloat16_multiplies_in_bfloat16_and_returns_float32() -> None:
    layer = torch.nn.Linear(8, 4)
    kinds = []

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = layer(torch.ones(len(x), 8))
        kinds.append(out.dtype)
        return {"y": out}

    for precision in ("float32", "bfloat16"):
        ((_, made),) = packed([rows(0, 3)], 2, forward, precision)
        assert made["y"].dtype == np.float32
    assert kinds == [torch.float32] * 2 + [torch.bfloat16] * 2


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_overlap_on_the_gpu_changes_nothing(where: str) -> None:
    device = torch.device("cuda")
    weight = torch.randn(512, 512, device=device)
    values = torch.randn(200, 512, device=where)

    def clips() -> list[Rows]:
        made = [rows(i, n) for i, n in enumerate((7, 60, 1, 0, 132))]
        low = 0
        for clip in made:
            part = values[low : low + clip.n].clone()
            clip.fetch = lambda a, b, part=part: part[a:b] * 1.0  # type: ignore[misc]
            low += clip.n
        return made

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        for _ in range(20):
            x = torch.tanh(x @ weight)
        return {"y": x}

    plain = list(packed(clips(), 16, forward, device=device, overlap=False))
    fast = list(packed(clips(), 16, forward, device=device))
    for (_, a), (_, b) in zip(plain, fast, strict=True):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.gpu
@NO_GPU
def test_a_full_gpu_halves_the_batch() -> None:
    device = torch.device("cuda")
    shapes: list[int] = []

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        room = torch.empty(len(x), 1 << 28, dtype=torch.uint8, device=device)  # 256 MiB for every row
        shapes.append(len(x))
        return {"double": 2 * x + 0 * room[:, 0]}

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min((5 << 28) / total, 1.0))
    try:
        check([40], list(packed([rows(0, 40)], 16, forward, device=device)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert max(shapes) == 4
