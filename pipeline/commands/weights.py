"""bmoe-cache weights: what there is, whether it is here and fits, and fetching it."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import Json, Weights, listener, show

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, fetch and check encoder weights.")

Name = Annotated[str | None, typer.Argument(help="Name of `weights list`; or give --preset.")]
OfPreset = Annotated[str | None, typer.Option("--preset", help="All weights of this preset, or of a .yaml.")]


@app.command("list")
def weights_list(weights: Weights = None, as_json: Json = False) -> None:
    """What there is: model, size, whether it is on this machine, licence."""
    from pipeline.encoders.weights import describe, find_weights, weights_table
    from pipeline.presets import check_given

    check_given(weights)
    records = [describe(entry, find_weights(entry, weights)) for entry in weights_table().values()]
    lines = [
        f"{record['name']:<30} {record['model']:<18} {record['size']:>8}  "
        f"{'here' if record['here'] else record.get('package', '-'):<18} {record['licence']}"
        for record in records
    ]
    show(as_json, {"weights": records}, "\n".join(lines))


@app.command("show")
def weights_show(
    name: Annotated[str, typer.Argument(help="Name of `weights list`.")],
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Everything known of one entry: source, digest, licence, citation, what it was trained on."""
    import yaml

    from pipeline.encoders.weights import describe, find_weights, weights_entry
    from pipeline.presets import check_given

    check_given(weights)
    entry = weights_entry(name)
    record = describe(entry, find_weights(entry, weights, alone=True))
    show(as_json, record, yaml.safe_dump(record, sort_keys=False, width=110).rstrip())


@app.command("check")
def weights_check(
    name: Name = None, preset: OfPreset = None, weights: Weights = None, as_json: Json = False
) -> None:
    """Take the digest and load the file into its model, strictly; say what was left out."""
    from pipeline.encoders.checkpoints import check
    from pipeline.presets import locate_weights

    records = [check(entry, path) for entry, path in locate_weights(name, preset, weights)]
    lines = []
    for record in records:
        pinned = "as pinned" if record["pinned"] else "not pinned"
        lines.append(f"{record['name']}: {record['path'] or 'in its package'} fits {record['model']}")
        lines.append(f"  {record['parameters']:,} parameters, SHA-256 {record['sha256']} ({pinned})")
        lines += [f"  {difference}" for difference in record["differences"]]
    show(as_json, {"weights": records}, "\n".join(lines))


@app.command("fetch")
def weights_fetch(
    name: Name = None,
    preset: OfPreset = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder; default: the Hugging Face cache.")] = None,
    as_json: Json = False,
) -> None:
    """Download from the Hugging Face hub what is not here; broken downloads go on where they were."""
    from pipeline.encoders.hub import fetch
    from pipeline.presets import choose_weights

    records = [fetch(entry, to, listener(as_json)) for entry in choose_weights(name, preset)]
    lines = []
    for record in records:
        did = "fetched" if record["fetched"] else "here already"
        place = (
            f"{did}: {record['path']}" if record["path"] else f"comes with the package {record['package']}"
        )
        lines.append(f"{record['name']}: {place} (licence: {record['licence']})")
    show(as_json, {"weights": records}, "\n".join(lines))
