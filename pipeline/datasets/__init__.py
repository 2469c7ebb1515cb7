"""Importing a dataset: an adapter finds the rows, the import gives them ids, labels and a taxonomy.

An adapter is a module of this package with one function,

    rows(source: Source) -> Iterable[Row]

found by its file name, and for a dataset of its own `manifests/datasets/<name>.yaml` with labels, experts, options,
official counts and licence. To add one, add those two files. A general adapter has its options in `OPTIONS`. No adapter
looks at a video: files that are missing or damaged are reported by `dataset validate` and quarantined by `build`.
Modules that begin with an underscore are what adapters share.
"""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.clip import check_dataset_name, shown
from pipeline.datasets._finish import finished, gather
from pipeline.datasets._source import LABEL_FILES, Source, read_labels
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.overrides import parse_override
from pipeline.taxonomy import MANIFESTS, Taxonomy, load_taxonomy

_MODULES = {
    "list": "path_list",
    "csv": "csv_table",
}  # adapters whose own names would read like stdlib modules
_MODULE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def import_dataset(
    name: str, root: Path, adapter: str | None = None, overrides: Sequence[str] = ()
) -> Manifest:
    """Find the clips of a dataset under `root`.

    Args:
        name: dataset name; `manifests/datasets/<name>.yaml`, if there, gives labels and the default adapter.
        root: folder of the videos; every path of the manifest is relative to it.
        adapter: name of an adapter or of a described dataset (`--as`), or an exported .jsonl file; None = the
            dataset's own.
        overrides: "option=value" over the options of the dataset, value in YAML, nested options dotted.

    Raises UserError (file:line of up to ten problems) for a missing root, an unknown adapter or option, an
    unreadable table, an unknown label, a repeated clip, or when nothing was found.
    """
    check_dataset_name(name)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of the videos with --root DIR")
    root = root.resolve()
    if adapter and adapter.endswith(".jsonl"):
        from pipeline.jsonl import read_jsonl

        manifest = read_jsonl(Path(adapter))
        clips = tuple(replace(clip, dataset=name) for clip in manifest.clips)
        return replace(manifest, dataset=name, root=root, clips=clips)
    own = load_taxonomy(name)
    described = (load_taxonomy(adapter) if _MODULE.fullmatch(adapter) else None) if adapter else own
    module = (described.adapter if described else None) or adapter or name
    read = _adapter(module, adapter or name)
    defaults = {**getattr(read, "OPTIONS", {}), **(described.options if described else {})}
    source = Source(name, root, _overridden(defaults, overrides), own or described)
    try:
        columns, count = gather(read.rows(source))
        declared = _declared_names(source) if source.taxonomy is None else ()
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: cannot be read ({error.strerror}); check its permissions"
        ) from None
    remedy = "correct the lines, or the options (--set), or the adapter (--as)"
    if not count or source.taxonomy is None:  # labels nobody described are those of all rows
        source.check(remedy)
    if not count:
        raise source.lost(f"no clips found by the adapter '{shown(adapter or name)}'; check --root")
    clips, taxonomy = finished(source, columns, count, declared)
    source.check(remedy)
    return Manifest(name, root, taxonomy, clips, tuple(source.warnings))


def adapters() -> list[str]:
    """Names of all adapters, sorted."""
    names = {file: name for name, file in _MODULES.items()}
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(names.get(module, module) for module in modules if not module.startswith("_"))


def general_adapters() -> list[str]:
    """Those that belong to no dataset: they declare their own options."""
    return [name for name in adapters() if hasattr(_adapter(name, name), "OPTIONS")]


def described_dataset(name: str) -> Taxonomy:
    """One of `manifests/datasets`. Raises UserError naming them all."""
    taxonomy = load_taxonomy(name)
    if taxonomy is None:
        names = ", ".join(known.name for known in described_datasets())
        raise UserError(f"no known dataset {shown(name)!r}; known are {names}")
    return taxonomy


def described_datasets() -> list[Taxonomy]:
    """The datasets of `manifests/datasets`, by name."""
    found = (load_taxonomy(path.stem) for path in sorted((MANIFESTS / "datasets").glob("*.yaml")))
    return [taxonomy for taxonomy in found if taxonomy]


def _adapter(module: str, asked: str) -> Any:
    """The module of an adapter. Raises UserError naming the choices."""
    path = f"{__name__}.{_MODULES.get(module, module)}"
    if not _MODULE.fullmatch(module) or importlib.util.find_spec(path) is None:
        datasets = ", ".join(taxonomy.name for taxonomy in described_datasets())
        raise UserError(
            f"{shown(asked)!r} is no known dataset ({datasets}); say how yours is laid out with "
            f"--as {'|'.join(adapters())}"
        )
    return importlib.import_module(path)


def _overridden(defaults: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The options with the user's over them. Raises UserError for an option the dataset does not have."""
    options = dict(defaults)
    for override in overrides:
        (first, *inner), value = parse_override(override, "split=val")
        if first not in options:
            known = ", ".join(options) or "none"
            raise UserError(f"--set {shown(override)}: no option {shown(first)!r}; the options are {known}")
        try:
            options[first] = _with(options[first], inner, value)
        except ValueError as error:
            raise UserError(f"--set {shown(override)}: {error}; correct the value") from None
    return options


def _with(values: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of nested mappings with one leaf replaced by a value of its kind; ValueError for another kind."""
    if path:
        inner = values if isinstance(values, dict) else {}
        return {**inner, path[0]: _with(inner.get(path[0]), path[1:], value)}
    if _kind(value) == "mapping" or _kind(values) not in ("empty", _kind(value)):
        raise ValueError(f"want a {_kind(values)} here, got a {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, list):
        return f"list of {_kind(value[0])}" if value else "empty"
    kinds = {bool: "yes or no", int: "number", float: "number", str: "text", dict: "mapping"}
    return kinds.get(type(value), type(value).__name__)


def _declared_names(source: Source) -> Sequence[str]:
    """Label names in id order from label_name.txt or labels.txt at the root, if there."""
    path = next((path for name in LABEL_FILES if (path := source.path(name)).is_file()), None)
    return read_labels(path) if path else ()
