"""What all commands share: options by their one name, errors as one line, the output as text or JSON."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.events import Console, Listener, silent


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends before it kills. Unwinds like Ctrl-C, so that leases are given back."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the next one must not break into the unwinding
    raise Terminated


class Group(TyperGroup):
    """Turns a user's mistake into one line and exit status 2, SIGINT into status 130 and SIGTERM into 143."""

    def invoke(self, ctx: Any) -> Any:
        from pipeline.errors import ClipError, UserError

        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return super().invoke(ctx)
        except (UserError, ClipError) as error:
            typer.echo(f"error: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            typer.echo(f"error: {error.filename or 'input/output'}: {error.strerror or error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            typer.echo("stopped; what is finished is kept, run the same command to go on", err=True)
            sys.exit(143 if isinstance(stop, Terminated) else 130)
        finally:
            signal.signal(signal.SIGTERM, before)


Cache = Annotated[
    Path, typer.Option("--cache", help="Folder of the cache, or s3://bucket/cache.", envvar="BMOE_CACHE")
]
Dataset = Annotated[str, typer.Option("--dataset", help="Name the dataset was imported under.")]
Preset = Annotated[str, typer.Option("--preset", help="Encoders and options: manifests/presets, or a .yaml.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override of the preset, e.g. regions.padding=0.15.")
]
SegmentStride = Annotated[
    int | None,
    typer.Option("--segment-stride", min=1, help="Segment every n-th frame, as --set segment.stride=n."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Folder of weights files, or the file where one is wanted.")
]
Executor = Annotated[
    str, typer.Option("--executor", help="Who computes: serial (this process), process, or dask.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Workers of the executor; default one a GPU, else 2.")
]
Decoders = Annotated[int, typer.Option("--decoders", min=1, help="Decode processes, of each worker.")]
Memory = Annotated[str, typer.Option("--memory", help="Memory of each worker, see docs/running.md.")]
Scheduler = Annotated[str | None, typer.Option("--scheduler", help="Address of a running Dask scheduler.")]
Slurm = Annotated[Path | None, typer.Option("--slurm", help="YAML of the SLURM jobs that are Dask workers.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def all_overrides(overrides: list[str] | None, segment_stride: int | None) -> list[str]:
    """The --set options, and those that have an option of their own."""
    stride = [] if segment_stride is None else [f"segment.stride={segment_stride}"]
    return [*(overrides or ()), *stride]


def listener(as_json: bool) -> Listener:
    """Progress on the terminal or in the log; none beside JSON."""
    return silent if as_json else Console()


def show(as_json: bool, record: dict[str, Any], text: str) -> None:
    """Print the record as one JSON object, or the text."""
    try:
        typer.echo(json.dumps(record, default=str) if as_json else text)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
