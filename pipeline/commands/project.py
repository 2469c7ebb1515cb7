"""bmoe-cache project: fit the projection of token maps."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import Cache, Dataset, Decoders, Json, Preset, Set, Weights, listener, show


def project(
    dataset: Dataset,
    cache: Cache,
    out: Annotated[Path, typer.Option("--out", help="File to write, .safetensors.")],
    preset: Preset = "base",
    weights: Weights = None,
    overrides: Set = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="Train clips to fit on, at most.")] = 500,
    decoders: Decoders = 2,
    as_json: Json = False,
) -> None:
    """Fit the projection of token maps: principal components of the tokens of train clips."""
    from dataclasses import asdict

    from pipeline.presets import load_recipe
    from pipeline.run.projection import fit_projection

    recipe = load_recipe(preset, weights, overrides or ())
    fitted = fit_projection(cache, dataset, recipe, out, clips, listener(as_json), decoders)
    text = (
        f"{fitted.width} of {fitted.dim} components keep {fitted.explained:.1%} of the variance of {fitted.tokens} "
        f"tokens of {fitted.clips} train clips -> {out}; use it with --set semantic.tokens.projection={out}"
    )
    show(as_json, asdict(fitted), text)
