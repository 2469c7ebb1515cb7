"""The commands of the heads: parse, call, print. Each imports what it needs when it runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.common import Cache, Dataset, Json, listener, show

if TYPE_CHECKING:
    from heads.options import Config
    from heads.sweep import Sweep

app = typer.Typer()
ablate = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tables 3 and 4 of the paper.")
explain = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What a trained head looks at.")
app.add_typer(ablate, name="ablate")
app.add_typer(explain, name="explain")

Head = Annotated[
    str, typer.Option("--head", "--preset", help="Head preset: manifests/heads, or a .yaml of your own.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override of the head, e.g. m3e.depth=2.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="default, small or paper: as --set recipe=, for both stages.")
]


def _checked_device(name: str) -> str:
    """The name itself; UserError unless torch can compute there."""
    if name == "cpu":
        return name
    import torch

    from pipeline.errors import UserError

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if not gpus or name not in ("cuda", *gpus):
        raise UserError(f"--device {name}: torch finds {', '.join(['cpu', *gpus])} on this machine")
    return name


Device = Annotated[str, typer.Option("--device", callback=_checked_device, help="cpu, cuda or cuda:N.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the step: a minute now, faster later.")]
Seeds = Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds: 0, 1, ...")]
Runs = Annotated[
    Path | None, typer.Option("--runs", help="Folder of the runs; finished ones are kept. Default runs/...")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Training processes on a CPU; default: one per core.")
]
Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
RunFolders = Annotated[
    list[Path], typer.Argument(help="Folders of runs; full for full-seed0, full-seed1, ...")
]


@app.command()
def train(
    dataset: Dataset,
    cache: Cache,
    head: Head = "bmoe_b768",
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run; default runs/...")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    recipe: Recipe = None,
    overrides: Set = None,
    device: Device = "cpu",
    compiled: Compile = False,
    as_json: Json = False,
) -> None:
    """Train a head from the cache alone: experts first, then the whole head. Interrupted, it goes on."""
    from dataclasses import asdict

    from heads.runs import epoch_line, read_run
    from heads.train import train as train_head

    folder = run or Path("runs") / f"{dataset}-{Path(head).stem}-seed{seed}"

    def say(record: Any) -> None:
        if not as_json and (record["epoch"] % 10 == 0 or record["epoch"] == record["epochs"]):
            typer.echo(epoch_line(record), err=True)

    config = _config(head, recipe, overrides)
    result = train_head(cache, dataset, config, folder, seed, device=device, compiled=compiled, on_epoch=say)
    unknown = read_run(folder)[1]["label_vectors"]["oov"]
    staged = config.head == "bmoe" and config.semantic.enabled
    untrained = [name for name in config.experts if staged and name not in result.experts]
    record = {
        **asdict(result),
        "run_dir": str(folder),
        "words_without_vector": unknown,
        "experts_without_stage1": untrained,
    }
    names = ("top1", "f1_macro", "map")
    scores = ", ".join(f"{name} {result.scores[name]:.4f}" for name in names if name in result.scores)
    lines = [f"{scores} on {result.split} (epoch {result.best_epoch}), {result.seconds:.1f} s -> {folder}"]
    lines += [f"no word vector for: {', '.join(unknown)}"] if unknown else []
    if untrained:
        some = f" for {', '.join(untrained)}" if result.experts else ""
        lines.append(
            f"stage 1 was left out{some}: the dataset gives {'these' if some else 'the'} experts no classes with "
            "clips; --set 'expert_classes={head: [0, 1]}' does, see docs/datasets.md"
        )
    lines += [f"in the run's precision {name} changes by {v:+.2e}" for name, v in result.difference.items()]
    show(as_json, record, "\n".join(lines))


@app.command()
def evaluate(
    run: Run,
    cache: Cache,
    split: Annotated[str, typer.Option("--split")] = "val",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Score a finished run again from its checkpoint and the cache."""
    from heads.evaluate import evaluate as evaluate_run

    scores = evaluate_run(run, cache, split, device=device)
    table = "\n".join(f"{name:<16} {value:.4f}" for name, value in scores.items())
    show(as_json, {"run": str(run), "split": split, **scores}, table)


@app.command()
def predict(
    run: Run,
    cache: Cache,
    split: Annotated[str, typer.Option("--split")] = "test",
    out: Annotated[Path, typer.Option("--out")] = Path("prediction.csv"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Write the prediction.csv of the MA-52 challenge: five actions and body groups for every clip."""
    from heads.submit import write_submission

    record = write_submission(run, cache, out, split, device)
    note = f", {record['without_features']} without features" if record["without_features"] else ""
    show(as_json, record, f"{record['rows']} clips{note} -> {out}")


@app.command()
def sweep(
    dataset: Dataset,
    cache: Cache,
    head: Head = "bmoe_b768",
    vary: Annotated[
        list[str] | None, typer.Option("--vary", help="Axis of the grid, e.g. stage2.lr=1e-4,3e-4.")
    ] = None,
    seeds: Seeds = 3,
    runs: Runs = None,
    overrides: Set = None,
    device: Device = "cpu",
    compiled: Compile = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train a grid of overrides for several seeds: mean and standard deviation of every score."""
    from heads.config import load_config
    from heads.paper import headings, paper_row, published_text, shown, spread_text, summary
    from heads.sweep import Job, encoded, grid, train_all

    jobs = [Job(name, load_config(head, chosen)) for name, chosen in grid(overrides or (), vary or ())]
    known = {job.name: paper_row(dataset, job.config) for job in jobs}
    before = encoded(cache, dataset)
    results = train_all(_sweep(dataset, cache, head, seeds, runs, device, compiled, workers, as_json), jobs)
    scores = {name: summary([result.scores for result in found]) for name, found in results.items()}
    forwards = encoded(cache, dataset) - before
    names = shown(next(iter(scores.values())))
    lines = [f"{'':<40}{headings(names)}   paper: top-1, F1"]
    lines += [
        f"{name:<40}{spread_text(found, names)}{published_text(known[name])}"
        for name, found in scores.items()
    ]
    rows = [{"row": name, "paper": known[name], "scores": found} for name, found in scores.items()]
    record = {"dataset": dataset, "head": head, "rows": rows, "encoder_forwards": forwards}
    show(as_json, record, "\n".join([*lines, f"encoder forwards: {forwards}"]))


@app.command()
def efficiency(
    head: Head = "bmoe_g1408_author",
    dataset: Annotated[str, typer.Option("--dataset", help="Whose classes: manifests/datasets.")] = "ma52",
    motion_dim: Annotated[int, typer.Option("--motion-dim", help="Width of the motion features.")] = 2048,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Parameters and multiply-adds of a head for one clip, as the paper counts them and in full."""
    from heads.config import load_config
    from heads.efficiency import efficiency_of, efficiency_text
    from pipeline.errors import UserError
    from pipeline.taxonomy import load_taxonomy

    taxonomy = load_taxonomy(dataset)
    if taxonomy is None:
        raise UserError(f"no data set {dataset!r} in manifests/datasets; see `bmoe-cache dataset list`")
    record = efficiency_of(head, load_config(head, overrides or ()), taxonomy, motion_dim)
    show(as_json, record, efficiency_text(record))


@ablate.command("streams")
def ablate_streams(
    dataset: Dataset,
    cache: Cache,
    head: Head = "bmoe_b768",
    seeds: Seeds = 3,
    runs: Runs = None,
    recipe: Recipe = None,
    overrides: Set = None,
    device: Device = "cpu",
    compiled: Compile = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """The semantic stream alone, the motion stream alone, both (Tab. 3)."""
    from heads.ablate import ablate_streams as run_ablation
    from heads.ablate import streams_text

    plan = _sweep(dataset, cache, head, seeds, runs, device, compiled, workers, as_json)
    record = run_ablation(plan, _config(head, recipe, overrides))
    show(as_json, record, streams_text(record))


@ablate.command("experts")
def ablate_experts(
    dataset: Dataset,
    cache: Cache,
    head: Head = "bmoe_b768",
    retrain: Annotated[
        bool, typer.Option(help="Train again without the expert, or just leave it out.")
    ] = True,
    seeds: Seeds = 3,
    runs: Runs = None,
    recipe: Recipe = None,
    overrides: Set = None,
    device: Device = "cpu",
    compiled: Compile = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Each expert removed once, and what that costs on whose classes (Tab. 4)."""
    from heads.ablate import ablate_experts as run_ablation
    from heads.ablate import experts_text

    plan = _sweep(dataset, cache, head, seeds, runs, device, compiled, workers, as_json)
    record = run_ablation(plan, _config(head, recipe, overrides), retrain)
    show(as_json, record, experts_text(record))


@explain.command("attention")
def explain_attention(
    runs: RunFolders,
    out: Annotated[Path, typer.Option("--out", help="CSV; the picture lies beside it.")] = Path(
        "attention.csv"
    ),
    as_json: Json = False,
) -> None:
    """Mean weight of every expert by class, over the runs given (Fig. 5)."""
    from heads.explain import attention_text
    from heads.explain import explain_attention as explain_runs
    from heads.runs import runs_of

    record = explain_runs(runs_of(runs), out)
    show(as_json, record, attention_text(record))


@app.command()
def compare(
    a: Run,
    b: Annotated[Path, typer.Argument(help="Another run, or the name of its seeds.")],
    out: Annotated[Path | None, typer.Option("--out", help="Bar chart, PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Two heads class by class, with hits and the share of the class in training (Fig. 6)."""
    from heads.compare import compare_runs, compare_text
    from heads.runs import runs_of

    record = compare_runs(runs_of([a]), runs_of([b]), out)
    show(as_json, record, compare_text(record))


@app.command()
def report(
    runs: RunFolders,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("report.html"),
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Adds how its stages were made, and pictures of clips.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One self-contained HTML page about runs: provenance, curves, tables, heat maps, worst clips."""
    import tempfile

    from heads.report import write_report
    from heads.runs import read_run, runs_of
    from pipeline.run.previews import write_previews

    folders = runs_of(runs)
    with tempfile.TemporaryDirectory() as folder:

        def previews(clips: Any) -> Any:
            assert cache is not None
            return write_previews(cache, read_run(folders[0])[1]["dataset"], clips, Path(folder))

        record = write_report(folders, out, cache, previews if cache else None)
    note = f"{record['runs']} runs of {record['configs']} configs, {record['pictures']} pictures"
    show(as_json, record, f"{note}, {record['bytes'] / 1e6:.1f} MB -> {out}")


def _config(head: str, recipe: str | None, overrides: list[str] | None) -> "Config":
    from heads.config import load_config

    return load_config(head, [*([f"recipe={recipe}"] if recipe else []), *(overrides or [])])


def _sweep(
    dataset: str,
    cache: Path,
    head: str,
    seeds: int,
    runs: Path | None,
    device: str,
    compiled: bool,
    workers: int | None,
    as_json: bool,
) -> "Sweep":
    from heads.sweep import Sweep
    from pipeline.events import Event

    listen = listener(as_json)
    return Sweep(
        cache,
        dataset,
        runs or Path("runs") / f"{dataset}-{Path(head).stem}",
        tuple(range(seeds)),
        device,
        compiled,
        workers or os.cpu_count() or 1,
        progress=lambda done, total: listen(Event("step", "training heads", done, total)),
    )
