"""bmoe-cache estimate: what a dataset would cost."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import Dataset, Json, Preset, SegmentStride, Set, all_overrides, show


def estimate(
    dataset: Dataset,
    preset: Preset = "base",
    cache: Annotated[
        Path | None,
        typer.Option("--cache", help="For its clip table and measured rates.", envvar="BMOE_CACHE"),
    ] = None,
    overrides: Set = None,
    segment_stride: SegmentStride = None,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", min=1e-6, help="Sustained TFLOP/s, where no rate was measured."),
    ] = None,
    as_json: Json = False,
) -> None:
    """TFLOPs, GB and hours of each stage for all clips of a dataset; needs no weights and no videos."""
    from pipeline.estimate import estimate as estimate_dataset
    from pipeline.estimate import table

    record = estimate_dataset(dataset, preset, all_overrides(overrides, segment_stride), cache, tflops)
    show(as_json, record, table(record))
