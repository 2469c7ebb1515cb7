"""Tensors out of a weights file that nobody vouches for: nothing in it is ever run.

Safetensors hold no code. A torch checkpoint is a pickle, read by torch's restricted unpickler. A TorchScript
archive is a program, and torch.jit.load runs the parts of it that rebuild its objects; so only its object tree
(data.pkl) and its storages are read, by an unpickler that knows tensors and plain objects and nothing else.
"""

import argparse
import contextlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WRAPPERS = ("state_dict", "model", "module")  # mmcv and mmengine; VideoMAE; DeepSpeed
# What the pickles of honest checkpoints call.
ORDINARY = (
    "torch.", "collections.OrderedDict", "argparse.Namespace",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype",
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.")  # data parallel; torch.compile; Hugging Face remote code
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip


# How files begin that are no weights, though downloads often leave them under the name of some.
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for; run `git lfs pull`",
    b"<": "a web page, perhaps the error page of a download; get the file again",
    b"\x1f\x8b": "packed with gzip; unpack it",
}


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """Tensors of a weights file by name, in the file's dtypes, wrappers and common prefixes taken off.

    Reads safetensors, torch checkpoints and TorchScript archives, told apart by what they hold.

    Raises:
        UserError: no such file, damaged, asking for code, or without a state dict inside.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path")
    try:
        held = _read(path)
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged file can make the readers raise anything
        _refuse(path, error)
    state = _unwrap(held)
    if not state or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds no state dict (names to tensors); use a weights file")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _refuse(path: Path, error: Exception) -> NoReturn:
    asked = re.search(r"[Uu]nsupported (?:global: )?(?:GLOBAL )?([\w.]+\.\w+)", str(error))
    protocol, called = (2, []) if asked else _outline(path)
    strange = asked[1] if asked else next((name for name in called if not name.startswith(ORDINARY)), None)
    if strange and re.fullmatch(r"numpy\._?core\.multiarray\._reconstruct", strange):
        raise UserError(
            f"{path}: holds arrays of numpy, and only tensors are read; save its state dict alone, or as safetensors"
        ) from None
    if strange:
        raise UserError(
            f"{path}: refused, because reading it would run code: it asks for {strange}; use a safetensors file or "
            "a checkpoint that holds tensors only"
        ) from None
    if protocol > 2 and called:
        raise UserError(
            f"{path}: pickled with protocol {protocol}, which torch reads only where code is trusted; save it again "
            "with torch.save's own protocol, or as safetensors"
        ) from None
    first_line = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
    raise UserError(f"{path}: damaged, or no weights file ({first_line}); get it again") from None


def _outline(path: Path) -> tuple[int, list[str]]:
    """The protocol of a torch file's pickles, and what they would call; nothing is run."""
    protocol, called = 0, list[str]()
    with (
        contextlib.ExitStack() as files,
        contextlib.suppress(Exception),
    ):  # at the end, or where it is damaged
        if zipfile.is_zipfile(path):
            archive = files.enter_context(zipfile.ZipFile(path))
            source = archive.open(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        else:
            source = path.open("rb")
        files.enter_context(source)
        while True:  # files older than torch 1.6 are several pickles one after the other
            texts, memo = [""], list[str]()
            for operation, value, _ in pickletools.genops(source):
                argument: Any = value
                if operation.name == "PROTO":
                    protocol = argument
                elif operation.name == "GLOBAL":
                    called.append(argument.replace(" ", "."))
                elif operation.name == "STACK_GLOBAL":
                    called.append(".".join(texts[-2:]))
                elif operation.name == "MEMOIZE":
                    memo.append(texts[-1])
                elif operation.name in ("BINGET", "LONG_BINGET"):
                    texts.append(memo[argument] if argument < len(memo) else "")
                elif isinstance(argument, str):
                    texts.append(argument)
    return protocol, called


def _read(path: Path) -> Any:
    import torch

    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise UserError(f"{path}: empty; get it again")
    if head[6:9] == b"\0\0{":  # behind the 8 bytes of a JSON header's length, which may begin like anything
        from safetensors.torch import load_file

        return load_file(path)
    for beginning, what in FOREIGN.items():
        if head.startswith(beginning):
            raise UserError(f"{path}: {what}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {"/".join(name.split("/")[1:]) for name in archive.namelist()}
            if "data.pkl" not in names:
                raise UserError(
                    f"{path}: a program or archive, not weights; use the .pth or TorchScript file of this model"
                )
            held = (info for info in archive.infolist() if re.search(r"/data(\.pkl$|/)", info.filename))
            if sum(info.file_size for info in held) > size:
                raise UserError(
                    f"{path}: refused, because it unpacks to more than its size; torch packs no weights, so it is "
                    "made to fill the memory"
                )
            if "constants.pkl" in names:  # only TorchScript archives have it
                return dict(_torchscript(archive))
    elif head.startswith(b"PK"):
        raise UserError(f"{path}: cut short, for it begins like a torch file and lacks the end; get it again")
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals(_harmless()),
        path.open("rb") as file,  # given a path, torch goes by its suffix
    ):
        warnings.simplefilter("ignore")  # about the protocol: _refuse says it
        return torch.load(file, map_location="cpu", weights_only=True)


def _harmless() -> list[Any]:
    """Data that training scripts store beside the tensors: numpy numbers (mmcv's best score) and their arguments."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    numbers = [np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?"))]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # numpy 1 and 2
    return [argparse.Namespace, *numbers, *((scalar, name) for name in names)]


def _unwrap(held: Any) -> dict[str, Any]:
    while isinstance(held, Mapping):
        inner = next((held[name] for name in WRAPPERS if isinstance(held.get(name), Mapping)), None)
        if inner is None:
            return dict(held)
        held = inner
    return {}


class _Storage(NamedTuple):
    key: str
    dtype: "torch.dtype"


class _Layout(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Object:
    """Stands in for a module of the archive: remembers its attributes and does nothing."""

    attributes: Any = None

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def _layout(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Layout:
    return _Layout(storage, offset, size, stride)


def _nothing(*_: Any) -> None:
    """For lists of numbers (a convolution's stride) and the empty hooks of a tensor."""


class _TreeReader(pickle.Unpickler):
    """Whatever the file says, it reaches the callables that find_class returns and no others."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module.split(".", maxsplit=1)[0] == "__torch__":
            return _Object
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _layout
        if module == "torch.jit._pickle" or (module, name) == ("collections", "OrderedDict"):
            return _nothing
        if module == "torch" and name in STORAGES:
            return getattr(torch, STORAGES[name])
        raise pickle.UnpicklingError(f"unsupported {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, _ = pid
        return _Storage(key, dtype)


def _torchscript(archive: zipfile.ZipFile) -> Iterator[tuple[str, "Tensor"]]:
    """(name, tensor) of every parameter and buffer, named as the state dict of the scripted module names them."""
    import torch

    root = archive.namelist()[0].split("/")[0]
    storages: dict[str, Tensor] = {}

    def tensor(layout: _Layout) -> "Tensor":
        key, dtype = layout.storage
        if key not in storages:
            data = bytearray(archive.read(f"{root}/data/{key}"))
            storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return storages[key].as_strided(
            layout.size, layout.stride, layout.offset
        )  # refuses to leave the storage

    def walk(node: _Object, prefix: str) -> Iterator[tuple[str, "Tensor"]]:
        if not isinstance(node.attributes, dict):
            raise pickle.UnpicklingError("an object that only the program of the archive can rebuild")
        for name, value in node.attributes.items():
            if isinstance(value, _Layout):
                yield prefix + name, tensor(value)
            elif isinstance(value, _Object):
                yield from walk(value, f"{prefix}{name}.")

    with archive.open(f"{root}/data.pkl") as file:
        yield from walk(_TreeReader(file).load(), "")
