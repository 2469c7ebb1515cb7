"""bmoe-cache dataset: describe, import, check and count clip tables."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import Cache, Decoders, Json, listener, show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Describe, import and check clip tables.")
CORES = os.cpu_count() or 1
Name = Annotated[str, typer.Argument(help="Name of an imported dataset.")]


@app.command("list")
def dataset_list(as_json: Json = False) -> None:
    """The datasets this program knows, with their official counts, and the general adapters."""
    from pipeline.datasets import described_datasets, general_adapters
    from pipeline.summary import overview, overview_text

    records = [overview(taxonomy) for taxonomy in described_datasets()]
    adapters = general_adapters()
    show(as_json, {"datasets": records, "adapters": adapters}, overview_text(records, adapters))


@app.command("show")
def dataset_show(
    name: Annotated[str, typer.Argument(help="Name of a known dataset: see `dataset list`.")],
    as_json: Json = False,
) -> None:
    """Classes, experts, expected files, options, licence and known defects of a known dataset."""
    from pipeline.datasets import described_dataset
    from pipeline.summary import description, description_text

    taxonomy = described_dataset(name)
    show(as_json, description(taxonomy), description_text(taxonomy))


@app.command("import")
def dataset_import(
    name: Annotated[str, typer.Argument(help="A known dataset, or a name of your own together with --as.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of the videos; every path stays under it.")],
    cache: Cache,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--as", help="Known dataset, folder, list, csv, ..., or an exported .jsonl; default: NAME."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the dataset, e.g. protocol=xview.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a dataset into the cache's clip table. Reads lists and names, never a video."""
    from pipeline.datasets import import_dataset
    from pipeline.manifest import manifest_path, write_manifest
    from pipeline.store.layout import init_cache
    from pipeline.store.workplace import workplace
    from pipeline.summary import rows_by_split, rows_text

    manifest = import_dataset(name, root, adapter, overrides or ())
    with workplace(cache) as folder:
        init_cache(folder)
        path = manifest_path(folder, name)
        write_manifest(manifest, path)
    splits = rows_by_split(manifest.clips)
    record = {
        "dataset": name,
        "clips": len(manifest.clips),
        "labelled": sum(row["labelled"] for row in splits.values()),
        "splits": {split: row["clips"] for split, row in splits.items()},
        "rows": splits,
        "classes": len(manifest.taxonomy.labels),
        "warnings": list(manifest.warnings),
        "manifest": str(path),
    }
    summary = f"{name}: {len(manifest.clips)} clips, {len(manifest.taxonomy.labels)} classes -> {path}"
    show(as_json, record, "\n".join([*manifest.warnings, *rows_text(splits), summary]))


@app.command("validate")
def dataset_validate(
    name: Name,
    cache: Cache,
    deep: Annotated[bool, typer.Option("--deep", help="Also hash and decode every file; resumes.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    decoders: Decoders = CORES,
    as_json: Json = False,
) -> None:
    """Check an imported dataset; exit status 2 when it has errors."""
    from pipeline.manifest import manifest_path, read_manifest
    from pipeline.run.deep import deep_problems
    from pipeline.store.workplace import view, workplace
    from pipeline.validate import validate

    with workplace(cache) if deep else nullcontext(view(cache)) as folder:  # what --deep finds is kept
        manifest = read_manifest(manifest_path(folder, name))
        extra = deep_problems(folder, manifest, decoders, listener(as_json)) if deep else ()
        report = validate(manifest, extra)
    failed = report.errors > 0 or (strict and report.warnings > 0)
    record = {"dataset": name, "clips": len(manifest.clips), "errors": report.errors, "warnings": report.warnings,
              "counts": report.counts, "levels": {one.code: one.level for one in report.problems},
              "problems": report.lines()}  # fmt: skip
    summary = f"{name}: {len(manifest.clips)} clips, {report.errors} errors, {report.warnings} warnings"
    show(as_json, record, "\n".join([*report.lines(), summary]))
    raise typer.Exit(2 if failed else 0)


@app.command("split")
def dataset_split(
    name: Name,
    cache: Cache,
    to: Annotated[
        str, typer.Option("--to", help="Name of the dataset with the new split; features are shared.")
    ],
    folds: Annotated[int, typer.Option("--folds", min=2, help="Parts; one validates, the others train.")] = 5,
    fold: Annotated[int, typer.Option("--fold", min=0, help="The part that validates.")] = 0,
    by: Annotated[
        str, typer.Option("--by", help="What stays together: group_id or subject_id.")
    ] = "group_id",
    seed: Annotated[int, typer.Option("--seed", help="Of the order in which groups are dealt.")] = 0,
    as_json: Json = False,
) -> None:
    """Split into train and val so that no group is parted and classes stay even; test stays as it is."""
    from pipeline.manifest import manifest_path, read_manifest, write_manifest
    from pipeline.media import media_path, read_media, write_media
    from pipeline.splits import resplit
    from pipeline.store.workplace import workplace
    from pipeline.summary import rows_by_split, rows_text

    with workplace(cache) as folder:
        manifest = resplit(read_manifest(manifest_path(folder, name)), to, folds, fold, seed, by)
        write_manifest(manifest, manifest_path(folder, to))
        if media := read_media(media_path(folder, name)):
            write_media(media_path(folder, to), media)  # the same files: nobody hashes them again
    splits = rows_by_split(manifest.clips)
    record = {"dataset": to, "of": name, "folds": folds, "fold": fold, "by": by, "seed": seed, "rows": splits}
    show(as_json, record, "\n".join([*rows_text(splits), f"{to}: {len(manifest.clips)} clips of {name}"]))


@app.command("stats")
def dataset_stats(name: Name, cache: Cache, as_json: Json = False) -> None:
    """Rows, subjects and groups by split, clips of every class and expert, lengths."""
    from pipeline.manifest import manifest_path, read_manifest
    from pipeline.media import read_media
    from pipeline.store.workplace import view
    from pipeline.summary import statistics, statistics_text

    path = manifest_path(view(cache), name)
    record = statistics(read_manifest(path), read_media(path.with_suffix(".media.parquet")))
    show(as_json, record, statistics_text(record))


@app.command("export")
def dataset_export(
    name: Name,
    cache: Cache,
    out: Annotated[Path, typer.Option("--out", help="The .jsonl file to write.")],
    as_json: Json = False,
) -> None:
    """Write the clip table as JSON Lines, to read, compare or edit; `import --as FILE.jsonl` takes it back."""
    from pipeline.jsonl import write_jsonl
    from pipeline.manifest import manifest_path, read_manifest
    from pipeline.store.workplace import view

    manifest = read_manifest(manifest_path(view(cache), name))
    write_jsonl(manifest, out)
    record = {"dataset": name, "clips": len(manifest.clips), "digest": manifest.digest, "file": str(out)}
    show(as_json, record, f"{name}: {len(manifest.clips)} clips -> {out}")
