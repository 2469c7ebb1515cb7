import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch

from pipeline.manifest import Clip
from pipeline.plan import ClipTask
from pipeline.stages.packing import Rows, packed
from pipeline.stages.work import Work


def rows(number: int, n: int) -> Rows:
    work = Work(ClipTask(str(number), Clip(str(number), "test", "x.mp4"), n))
    values = torch.arange(n).float() + 1000 * number
    return Rows(work, n, lambda low, high: values[low:high])


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 5))
def test_every_clip_gets_its_own_rows_in_order(lengths: list[int], batch: int) -> None:
    shapes = []

    def forward(x: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes.append(len(x))
        return {"double": 2 * x}

    out = list(packed((rows(i, n) for i, n in enumerate(lengths)), batch, forward))
    assert [int(work.task.key) for work, _ in out] == list(range(len(lengths)))
    for number, (n, (_, made)) in enumerate(zip(lengths, out, strict=True)):
        if n:
            assert np.array_equal(made["double"], 2 * (np.arange(n) + 1000 * number))
        else:
            assert made == {}
    assert set(shapes) <= {batch}  # fixed shapes, the tail padded
    assert len(shapes) == -(-sum(lengths) // batch)  # packed across clips


def test_clips_leave_as_soon_as_they_are_done() -> None:
    drawn = []

    def source():  # type: ignore[no-untyped-def]
        for i in range(5):
            drawn.append(i)
            yield rows(i, 2)

    first = next(packed(source(), 4, lambda x: {"x": x}))
    assert first[0].task.key == "0"
    assert drawn == [0, 1]
