"""Fit the projection of token maps: principal components of the tokens of training clips.

Only the train split is looked at, because the projection becomes part of the features that are judged on val and
test. Components are not whitened: tokens keep their relative variances, which heads standardise as they like.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from pipeline.errors import UserError
from pipeline.events import Event, Listener
from pipeline.plan import ClipTask, Group, clip_tasks, contents
from pipeline.presets import Recipe
from pipeline.run.build import plan_dataset
from pipeline.store.atomic import write_bytes
from pipeline.store.writer import open_stage


@dataclass(frozen=True)
class Fitted:
    """A projection file and what it was fitted on.

    Attributes:
        sha256: of the file; this names the projection in the key of the semantic stage.
        explained: share of the variance of the tokens that is kept.
    """

    path: Path
    sha256: str
    clips: int
    tokens: int
    dim: int
    width: int
    explained: float


class Moments:
    """Count, sum and second moment of vectors seen so far, in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum = np.zeros(dim)
        self.products = np.zeros((dim, dim))

    def add(self, x: np.ndarray) -> None:
        """Take in x [n, dim]."""
        x = x.astype(np.float64)
        self.count += len(x)
        self.sum += x.sum(0)
        self.products += x.T @ x

    def components(self, width: int) -> tuple[np.ndarray, np.ndarray, float]:
        """(mean [dim], the first `width` principal components [dim, width], their share of the variance).

        Each component points where its largest entry is positive, so that the signs do not depend on LAPACK.
        """
        mean = self.sum / self.count
        variance, vectors = np.linalg.eigh(self.products / self.count - np.outer(mean, mean))
        vectors = vectors[:, ::-1][:, :width]
        largest = vectors[np.abs(vectors).argmax(0), np.arange(width)]
        return mean, vectors * np.sign(largest), float(variance[::-1][:width].sum() / variance.sum())


def fit_projection(
    cache: Path,
    dataset: str,
    recipe: Recipe,
    out: Path,
    clips: int = 500,
    listen: Listener = lambda _: None,
    workers: int = 2,
) -> Fitted:
    """Fit the projection that `semantic.tokens` of a recipe asks for, on at most `clips` clips of the train split.

    Args:
        out: the safetensors file to write: mean [D], components [D, width], both float32.

    Raises:
        UserError: the recipe projects no token maps, or there are no train clips, or they have no part labels
            where the views need them.
    """
    options = recipe.spec.semantic.tokens
    if options is None or options["width"] is None:
        raise UserError(
            f"preset '{recipe.spec.preset}' projects no token maps; ask for them, e.g. "
            "--set 'semantic.tokens={grid: [7, 7], width: 256}'"
        )
    semantic = replace(
        recipe.spec.semantic,
        views=tuple(options["views"]),
        tokens={**options, "width": None, "projection": None},
    )
    whole = replace(recipe, spec=recipe.spec.replaced(semantic), projection=None)
    _, manifest, media = plan_dataset(cache, dataset, whole, (), listen)
    tasks = _train_tasks(dataset, clip_tasks(manifest, media).values(), clips)
    missing = _missing(cache, dataset, whole, tasks)
    moments, used = _moments(cache, manifest.root, whole, Group(tasks, missing), listen, workers)
    if moments.count < options["width"]:
        raise UserError(f"{dataset}: too few tokens of train clips to fit {options['width']} components")
    mean, components, explained = moments.components(options["width"])
    facts = {
        "encoder": semantic.weights, "dataset": dataset, "clips": str(used), "tokens": str(moments.count),
        "explained_variance": f"{explained:.6f}", "views": " ".join(options["views"]),
        "grid": " ".join(map(str, options["grid"])),
    }  # fmt: skip
    tensors = {"mean": mean.astype(np.float32), "components": np.ascontiguousarray(components, np.float32)}
    data = save(tensors, facts)
    write_bytes(out, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return Fitted(out, sha256, used, moments.count, len(mean), options["width"], explained)


def _train_tasks(dataset: str, tasks: Iterable[ClipTask], clips: int) -> tuple[ClipTask, ...]:
    """At most `clips` clips of the train split, picked by their content addresses, which are as good as random."""
    chosen = {task.key: task for task in tasks if task.clip.split == "train"}
    if not chosen:
        raise UserError(
            f"{dataset}: no usable clip in the train split, and a projection is fitted on no other"
        )
    return tuple(chosen[key] for key in sorted(chosen)[:clips])


def _missing(
    cache: Path, dataset: str, recipe: Recipe, tasks: Sequence[ClipTask]
) -> dict[str, frozenset[str]]:
    """What to compute: tokens of all clips, and boxes from cached part labels where crops need them."""
    keys = frozenset(task.key for task in tasks)
    if not recipe.spec.semantic.needs_regions:
        return {"semantic": keys}
    held = {
        stage: contents(open_stage(cache, stage, recipe.spec.stages()[stage].key)).done
        for stage in ("segment", "regions")
    }
    if lacking := keys - held["segment"]:
        raise UserError(
            f"{len(lacking)} of {len(keys)} train clips of '{dataset}' have no part labels; run `bmoe-cache segment` "
            "with the same options first"
        )
    return {"regions": keys - held["regions"], "semantic": keys}


def _moments(
    cache: Path, root: Path, recipe: Recipe, group: Group, listen: Listener, workers: int
) -> tuple[Moments, int]:
    """Moments of the tokens of all clips that can be used, and how many these are."""
    from pipeline.run.engine import Engine

    used = 0
    with Engine(cache, root, recipe, ("semantic",), workers) as engine:
        moments = Moments(engine.models["semantic"].feature_dim)
        for done, work in enumerate(engine.stream(group), 1):
            listen(Event("step", "fitting the projection", done, len(group.clips)))
            arrays, _ = work.written.get("semantic", ({}, {}))
            work.release()
            tokens = (
                np.asarray(arrays["tokens"])[np.asarray(arrays["present"]) > 0] if arrays else np.empty(0)
            )
            if tokens.size and np.isfinite(tokens).all():
                moments.add(tokens.reshape(-1, tokens.shape[-1]))
                used += 1
            else:
                listen(
                    Event("warning", "semantic", text=f"left out {work.task.clip.clip_id}: no usable tokens")
                )
    return moments, used
