"""The command line: parse, call, print. Every command imports what it needs when it runs, so --help is instant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heads import commands as head_commands
from pipeline.commands import cache as cache_commands
from pipeline.commands import dataset as dataset_commands
from pipeline.commands import estimate as estimate_commands
from pipeline.commands import exchange as exchange_commands
from pipeline.commands import weights as weights_commands
from pipeline.commands.common import (
    Cache,
    Dataset,
    Decoders,
    Executor,
    Group,
    Json,
    Memory,
    Preset,
    Scheduler,
    SegmentStride,
    Set,
    Slurm,
    Weights,
    Workers,
    all_overrides,
    listener,
    show,
)
from pipeline.commands.project import project

if TYPE_CHECKING:
    from pipeline.run.build import BuildResult
    from pipeline.run.crew import Running

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Cache frozen body-part video features once, then train micro-action heads in minutes.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from pipeline.versions import program

        typer.echo(program())
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(dataset_commands.app, name="dataset")
app.add_typer(weights_commands.app, name="weights")
app.add_typer(exchange_commands.app, name="import")
app.add_typer(head_commands.app)


@app.command()
def plan(
    dataset: Dataset,
    cache: Cache,
    preset: Preset = "base",
    weights: Weights = None,
    overrides: Set = None,
    segment_stride: SegmentStride = None,
    as_json: Json = False,
) -> None:
    """Say for every stage what is fresh, partial, stale or missing, and why."""
    _plan(dataset, cache, preset, weights, all_overrides(overrides, segment_stride), as_json)


@app.command()
def build(
    dataset: Dataset,
    cache: Cache,
    preset: Preset = "base",
    weights: Weights = None,
    overrides: Set = None,
    segment_stride: SegmentStride = None,
    executor: Executor = "serial",
    workers: Workers = None,
    decoders: Decoders = 2,
    memory: Memory = "8GiB",
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, as `plan`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compute everything the preset lacks for a dataset. Exit status 1 while any clip is pending."""
    changes = all_overrides(overrides, segment_stride)
    if dry_run:
        return _plan(dataset, cache, preset, weights, changes, as_json)
    running = _running(executor, workers, decoders, memory, scheduler, slurm)
    _build(dataset, cache, preset, weights, changes, running, as_json, None)


@app.command()
def segment(
    dataset: Dataset,
    cache: Cache,
    preset: Preset = "base",
    weights: Weights = None,
    overrides: Set = None,
    segment_stride: SegmentStride = None,
    executor: Executor = "serial",
    workers: Workers = None,
    decoders: Decoders = 2,
    memory: Memory = "8GiB",
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    as_json: Json = False,
) -> None:
    """Only the segment stage: part labels of every clip."""
    changes = all_overrides(overrides, segment_stride)
    running = _running(executor, workers, decoders, memory, scheduler, slurm)
    _build(dataset, cache, preset, weights, changes, running, as_json, ("segment",))


@app.command()
def extract(
    dataset: Dataset,
    cache: Cache,
    preset: Preset = "base",
    weights: Weights = None,
    overrides: Set = None,
    segment_stride: SegmentStride = None,
    executor: Executor = "serial",
    workers: Workers = None,
    decoders: Decoders = 2,
    memory: Memory = "8GiB",
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    as_json: Json = False,
) -> None:
    """Regions, semantic and motion features, after `segment`."""
    changes = all_overrides(overrides, segment_stride)
    running = _running(executor, workers, decoders, memory, scheduler, slurm)
    _build(dataset, cache, preset, weights, changes, running, as_json, ("regions", "semantic", "motion"))


app.command()(project)


@app.command()
def info(dataset: Dataset, cache: Cache, as_json: Json = False) -> None:
    """Account for every clip: done, quarantined with its reason, or pending; what each stage holds."""
    from pipeline.events import by_stage
    from pipeline.report import describe
    from pipeline.store.flight import flight_text
    from pipeline.store.workplace import view

    record = describe(view(cache), dataset)
    lines = [_clips_line(dataset, record["clips"]), *flight_text(record["in_flight"])]
    if record["in_flight"] and (told := record["progress"]):
        lines.append(
            f"the build said: {told['done']}/{told['total']} clips ({by_stage(told['stages'])} left)"
        )
    for name, stage in record["stages"].items():
        rate = f"{stage['clips_per_s']} clips/s" if stage["clips_per_s"] else ""
        size = f"{stage['bytes'] / 1e6:.1f} MB"
        lines.append(
            f"{name:<9} {stage['key'][:16]}  {stage['clips']:>7} clips {stage['shards']:>4} shards {size:>12}  {rate}"
        )
    lines += [
        f"quarantined {q['clip_id']} ({q['stage']}): {q['code']}: {q['message']}"
        for q in record["quarantine"]
    ]
    lines += [f"warning {w['clip_id']}: {w['text']}" for w in record["warnings"]]
    show(as_json, record, "\n".join(lines))


@app.command()
def preview(
    clips: Annotated[
        list[str], typer.Argument(help="Clip ids or paths of videos, as `dataset export` lists them.")
    ],
    dataset: Dataset,
    cache: Cache,
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures.")] = Path("previews"),
    as_json: Json = False,
) -> None:
    """Write one PNG per clip: frames, part overlay, and the four region crops over time."""
    from pipeline.run.previews import write_previews

    paths = write_previews(cache, dataset, clips, out)
    record = {"previews": {clip: str(path) for clip, path in paths.items()}}
    show(as_json, record, "\n".join(f"{clip} -> {path}" for clip, path in paths.items()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of everything the demo makes.")] = Path(
        "build/demo"
    ),
    world_only: Annotated[bool, typer.Option("--world-only", help="Just render the clips.")] = False,
    as_json: Json = False,
) -> None:
    """The whole way on the embedded demo world: render, cache, train, evaluate, and a table."""
    if world_only:
        from pipeline.demo.journey import render

        count = render(out / "world", listener(as_json))
        show(as_json, {"rendered": count}, f"{count} clips rendered -> {out / 'world'}")
        return
    from pipeline.demo.journey import run_demo, summary_text

    summary = run_demo(out, listener(as_json))
    show(as_json, summary, summary_text(summary, out))
    raise typer.Exit(1 if summary["clips"]["pending"] else 0)


# Listed by --help in this order: what makes a cache first, then what looks after it.
app.command()(estimate_commands.estimate)
for command in (
    cache_commands.ls,
    cache_commands.failures,
    cache_commands.verify,
    cache_commands.gc,
    cache_commands.diff,
    cache_commands.push,
    cache_commands.pull,
    exchange_commands.export,
):
    app.command()(command)


def _plan(
    dataset: str, cache: Path, preset: str, weights: Path | None, overrides: list[str], as_json: bool
) -> None:
    from pipeline.estimate import plan_costs, plan_text
    from pipeline.presets import load_recipe
    from pipeline.run.build import plan_dataset, plan_record
    from pipeline.store.flight import flight_text, in_flight
    from pipeline.store.workplace import view

    recipe = load_recipe(preset, weights, overrides)
    cache = view(cache)
    planned, _, _ = plan_dataset(cache, dataset, recipe, listen=listener(as_json))
    record = plan_record(planned) | plan_costs(planned, recipe.spec, cache)
    record["in_flight"] = in_flight(cache, dataset)
    lines = [_clips_line(dataset, record["clips"]), *plan_text(record), *flight_text(record["in_flight"])]
    show(as_json, record, "\n".join(lines))


def _running(
    executor: str, workers: int | None, decoders: int, memory: str, scheduler: str | None, slurm: Path | None
) -> "Running":
    from pipeline.run.crew import Running
    from pipeline.sizes import parse_size

    return Running(executor, workers, decoders, parse_size(memory), scheduler, slurm)


def _build(
    dataset: str,
    cache: Path,
    preset: str,
    weights: Path | None,
    overrides: list[str],
    running: "Running",
    as_json: bool,
    stages: tuple[str, ...] | None,
) -> None:
    from dataclasses import asdict

    from pipeline.presets import load_recipe
    from pipeline.run.build import build as run_build
    from pipeline.run.build import plan_record
    from pipeline.store.workplace import workplace

    recipe = load_recipe(preset, weights, overrides)
    with workplace(cache, listener(as_json)) as folder:
        result = run_build(folder, dataset, recipe, stages, listener(as_json), running)
    record = {
        **plan_record(result.before),
        "clips": asdict(result.clips),
        "computed": dict(result.computed),
        "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
    }
    show(as_json, record, _build_text(dataset, result))
    raise typer.Exit(1 if result.clips.pending else 0)


def _build_text(dataset: str, result: "BuildResult") -> str:
    from dataclasses import asdict

    lines = []
    for stage in result.before.stages:
        count = result.computed[stage.stage]
        seconds = result.seconds.get(stage.stage, 0.0)
        did = f"computed {count} clips in {seconds:.1f} s" if count else "nothing to compute"
        lines.append(f"{stage.stage:<9} {stage.key[:16]}  {did}")
    if not any(result.computed.values()):
        lines.append("everything is fresh: nothing was recomputed")
    return "\n".join([*lines, _clips_line(dataset, asdict(result.clips))])


def _clips_line(dataset: str, clips: dict[str, int]) -> str:
    parts = ", ".join(f"{clips[name]} {name}" for name in ("done", "quarantined", "pending"))
    return f"{dataset}: {clips['manifest']} clips = {parts}"


if __name__ == "__main__":
    app()
