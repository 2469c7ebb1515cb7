"""Commands that exchange features with other programs: export, import."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.common import Cache, Dataset, Json, listener, show

if TYPE_CHECKING:
    from pipeline.store.imports import Source

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Take in features that others made.")
Declared = Annotated[
    Path,
    typer.Option("--facts", help="YAML of what decides the numbers: model, weights, window, stride, ..."),
]


def export(
    dataset: Dataset,
    cache: Cache,
    to: Annotated[
        str,
        typer.Option("--to", help="npy (as ActionFormer and TriDet read it), npz, hdf5, webdataset or hf."),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder to write to.")],
    stage: Annotated[str, typer.Option("--stage", help="Stage of the last build.")] = "semantic",
    as_json: Json = False,
) -> None:
    """Write the features of a dataset in another format; features.json beside them says what they are."""
    from pipeline.store.export import export as export_stage

    record = export_stage(cache, dataset, stage, to, out, listener(as_json))
    arrays = ", ".join(
        f"{name} {a['dtype']} {['T', *a['row_shape']]}" for name, a in record["arrays"].items()
    )
    text = f"{record['clips']} clips ({arrays}) -> {out}; {record['missing']} clips have no features"
    show(as_json, record, text)


@app.command("npy")
def import_npy(
    folder: Annotated[Path, typer.Argument(help="Folder with <clip id>.npy, [T, ...].")],
    dataset: Dataset,
    cache: Cache,
    facts: Declared,
    as_json: Json = False,
) -> None:
    """Import a folder of .npy files as a stage of the cache."""
    from pipeline.store.imports import npy_source

    _import(npy_source(folder), dataset, cache, facts, as_json)


@app.command("hdf5")
def import_hdf5(
    file: Annotated[
        Path, typer.Argument(help="Of `export --to hdf5`, or with a dataset [T, ...] per clip id.")
    ],
    dataset: Dataset,
    cache: Cache,
    facts: Declared,
    as_json: Json = False,
) -> None:
    """Import an HDF5 file as a stage of the cache."""
    from pipeline.store.imports import hdf5_source

    _import(hdf5_source(file), dataset, cache, facts, as_json)


def _import(source: "Source", dataset: str, cache: Path, facts: Path, as_json: bool) -> None:
    from pipeline.manifest import manifest_path, read_manifest
    from pipeline.run.build import read_files
    from pipeline.store.imports import import_features, load_declared
    from pipeline.store.workplace import workplace

    declared = load_declared(facts)
    with workplace(cache, listener(as_json)) as folder:
        # gives clips their address
        read_files(folder, read_manifest(manifest_path(folder, dataset)), listener(as_json))
        record = import_features(folder, dataset, source, declared, listener(as_json))
    text = (
        f"{record['clips']} clips -> {record['path']}; {record['refused']} refused, {record['missing']} clips have no "
        f"file, {record['unknown']} files no clip"
    )
    show(as_json, record, text)
