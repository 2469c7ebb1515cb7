"""bmoe-cache dataset: import and check clip tables."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import Cache, Json, Workers, listener, show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Import and check clip tables.")


@app.command("import")
def dataset_import(
    name: Annotated[str, typer.Argument(help="demo, ma52, or a name of your own together with --as.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of the videos; every path stays under it.")],
    cache: Cache,
    adapter: Annotated[
        str | None, typer.Option("--as", help="folder, list or csv; default: the dataset's own.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a folder, a "path label" list or a CSV into the cache's clip table."""
    from collections import Counter

    from pipeline.datasets import import_dataset
    from pipeline.manifest import manifest_path, write_manifest
    from pipeline.store.layout import init_cache

    manifest = import_dataset(name, root, adapter)
    init_cache(cache)
    path = manifest_path(cache, name)
    write_manifest(manifest, path)
    splits = dict(sorted(Counter(clip.split for clip in manifest.clips).items()))
    labelled = sum(clip.label_ids is not None for clip in manifest.clips)
    record = {"dataset": name, "clips": len(manifest.clips), "labelled": labelled, "splits": splits,
              "classes": len(manifest.taxonomy.labels), "manifest": str(path)}  # fmt: skip
    rows = ", ".join(f"{split} {count}" for split, count in splits.items())
    show(as_json, record, f"{name}: {len(manifest.clips)} clips ({rows}), {labelled} labelled -> {path}")


@app.command("validate")
def dataset_validate(
    name: Annotated[str, typer.Argument(help="Name of an imported dataset.")],
    cache: Cache,
    deep: Annotated[bool, typer.Option("--deep", help="Also hash and decode every file.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Check an imported dataset; exit status 2 when it has errors."""
    from pipeline.manifest import manifest_path, read_manifest
    from pipeline.run.deep import decode_problems
    from pipeline.validate import validate

    manifest = read_manifest(manifest_path(cache, name))
    extra = decode_problems(manifest, workers, listener(as_json)) if deep else ()
    report = validate(manifest, extra)
    failed = report.errors > 0 or (strict and report.warnings > 0)
    record = {"dataset": name, "clips": len(manifest.clips), "errors": report.errors, "warnings": report.warnings,
              "counts": report.counts, "problems": report.lines()}  # fmt: skip
    summary = f"{name}: {len(manifest.clips)} clips, {report.errors} errors, {report.warnings} warnings"
    show(as_json, record, "\n".join([*report.lines(), summary]))
    raise typer.Exit(2 if failed else 0)
