"""Reading weights files: every form gives its tensors, none of them runs anything."""

import argparse
import contextlib
import gzip
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.encoders import create_model
from pipeline.encoders.tensors import read_tensors
from pipeline.errors import UserError
from tests.encoders.checkpoint_files import SEG, VIT, random_state, refusal

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state("videomaev2", **VIT)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
        assert found[key].dtype == value.dtype, key


class RunsCode:
    """Unpickling it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "meta": {"epoch": 40, "config": "text"}, "optimizer": {"state": {}}},
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"module": s, "dp_world_size": 8},
        lambda s: {"model": {"module": {"state_dict": s}}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"model.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    ],
)
def test_wrappers_and_prefixes_come_off(
    tmp_path: Path, state: dict[str, Tensor], wrap: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.save(wrap(state), tmp_path / "w.pth")
    assert_same(read_tensors(tmp_path / "w.pth"), state)


def test_safetensors_and_old_pickles(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({f"model.{key}": value for key, value in state.items()}, tmp_path / "a.safetensors")
    torch.save(OrderedDict(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "old.pth"):
        assert_same(read_tensors(tmp_path / name), state)


@pytest.mark.parametrize("beginning", [b"<", b"\x1f\x8b"])
def test_the_length_of_a_safetensors_header_may_look_like_another_form(
    tmp_path: Path, beginning: bytes
) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    length = int.from_bytes(beginning, "little")
    length += 256 ** len(beginning) * (length < len(header))
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\0" * 4)
    assert path.read_bytes().startswith(beginning)
    assert_same(read_tensors(path), {"a": torch.zeros(1)})


def test_what_training_scripts_store_beside_the_tensors_is_harmless(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=1e-3, data=["a"]),
        "best": np.float64(0.61),
        "epoch": np.int64(40),
    }
    torch.save({"model": {"a": torch.ones(2)}, "meta": {"hook_msgs": beside}, **beside}, tmp_path / "a.pth")
    assert_same(read_tensors(tmp_path / "a.pth"), {"a": torch.ones(2)})


class Exported(nn.Module):
    """What the published TorchScript files of Sapiens hold: the model behind its preprocessor."""

    def __init__(self) -> None:
        super().__init__()
        model = create_model("sapiens-seg", **SEG)
        self.backbone = model.get_submodule("backbone")
        self.decode_head = model.get_submodule("decode_head")
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.register_buffer("mean", torch.ones(3, 1, 1), persistent=False)
        self.data_preprocessor.register_buffer("std", torch.ones(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        preprocessor = self.data_preprocessor
        x = (x - preprocessor.get_buffer("mean")) / preprocessor.get_buffer("std")
        logits: Tensor = self.decode_head(self.backbone(x))
        return logits


class Shares(nn.Module):
    """Shared, transposed, half and integer tensors, and lists that only scripting keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.again = self.layers[0]
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).t())
        self.register_buffer("halves", torch.ones(2, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) * self.turned.sum() * self.halves[0]
        return out


@pytest.mark.parametrize("form", ["traced", "scripted", "export"])
def test_torchscript_archives_give_what_torch_finds_in_them(tmp_path: Path, form: str) -> None:
    path = tmp_path / "m.pt2"
    model = Exported().eval() if form == "export" else Shares().eval()
    x = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        program = (
            torch.jit.script(model) if form == "scripted" else torch.jit.trace(model, x, check_trace=False)
        )
    program.save(str(path))
    assert_same(read_tensors(path), dict(torch.jit.load(path).state_dict()))


# --- refusing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.filterwarnings("error")
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, form: str, protocol: int
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    payload = {"meta": RunsCode(mark), "state_dict": {"a": torch.zeros(1)}}
    if form == "pickle":
        payload["twice"] = payload["meta"]
        path.write_bytes(pickle.dumps(payload, protocol=protocol))
    else:
        torch.save(payload, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    reason = refusal(lambda: read_tensors(path))
    assert "would run code" in reason
    assert "evil.pth" in reason
    assert f"it asks for {os.name}.mkdir" in reason
    assert not mark.exists()
    torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())  # noqa: S301
    assert mark.exists(), "the file of this test must be one that does harm when trusted"


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_numpy_beside_the_tensors_are_called_that(tmp_path: Path, protocol: int) -> None:
    held = {"state_dict": {"a": torch.zeros(1)}, "mean": np.zeros(3)}
    torch.save(held, tmp_path / "a.pth", pickle_protocol=protocol)
    reason = refusal(lambda: read_tensors(tmp_path / "a.pth"))
    assert "arrays of numpy" in reason
    assert "run code" not in reason


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.filterwarnings("error")
def test_protocols_that_torch_reads_only_where_code_is_trusted_are_said(
    tmp_path: Path, protocol: int
) -> None:
    state = OrderedDict(a=torch.ones(2), b=torch.ones(3))
    torch.save({"model": state, "best": np.float64(1)}, tmp_path / "a.pth", pickle_protocol=protocol)
    if protocol < 3:
        assert_same(read_tensors(tmp_path / "a.pth"), state)
    else:
        assert f"protocol {protocol}" in refusal(lambda: read_tensors(tmp_path / "a.pth"))


@pytest.mark.parametrize("large", ["data.pkl", "data/0"])
@pytest.mark.parametrize("script", [False, True])
def test_an_archive_made_to_fill_the_memory_is_refused(tmp_path: Path, large: str, script: bool) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in {"data.pkl", large, *(["constants.pkl"] if script else [])}:
            archive.writestr(f"a/{name}", bytes(10 << 20 if name == large else 1))
    assert (tmp_path / "a.pth").stat().st_size < 100_000
    assert "unpacks to more" in refusal(lambda: read_tensors(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!doctype html><title>404</title>", "web page"),
        (gzip.compress(b"weights", mtime=0), "gzip"),
        (b"PK\x03\x04 and then nothing", "cut short"),
        (b"no weights", "damaged, or no weights file"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pt2"])
def test_what_a_download_left_instead_is_told(tmp_path: Path, content: bytes, word: str, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(content)
    reason = refusal(lambda: read_tensors(tmp_path / f"a.{suffix}"))
    assert f"a.{suffix}" in reason
    assert word in reason


def test_the_content_tells_the_form_not_the_name(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        assert_same(read_tensors(tmp_path / name), state)


def test_a_torchscript_archive_whose_tree_is_a_payload_is_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil_torchscript.pt2"
    payload = pickle.dumps({"weight": RunsCode(mark)}, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", payload)
        archive.writestr("evil/constants.pkl", b"\x80\x02).")
    reason = refusal(lambda: read_tensors(path))
    assert f"it asks for {os.name}.mkdir" in reason
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301
    assert mark.exists()


def test_the_program_of_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Rebuilds(nn.Module):
        """Its __setstate__, run by torch.jit.load, makes a file: from_file with shared=True creates it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.mark = str(mark)

        @torch.jit.export
        def __getstate__(self) -> tuple[Tensor, str, bool]:
            return self.weight, self.mark, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
            self.weight, self.mark, self.training = state
            self.weight = self.weight + torch.from_file(self.mark, shared=True, size=2)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    path = tmp_path / "evil_torchscript.pt2"
    torch.jit.script(Rebuilds()).save(str(path))
    mark.unlink(missing_ok=True)
    refusal(lambda: read_tensors(path))  # a state that only the program can take apart
    assert not mark.exists()
    torch.jit.load(path)
    assert mark.exists(), "the file of this test must be one that does harm when trusted"


def test_tensors_of_a_torchscript_archive_stay_in_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.jit.script(nn.Linear(3, 2)).save(str(path))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data[:-4] if "/data/" in name else data)
    assert "m.pt2" in refusal(lambda: read_tensors(path))


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "FLOAT", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1]}},
        [],
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "lies.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    assert "damaged" in refusal(lambda: read_tensors(path))
    path.write_bytes((1 << 60).to_bytes(8, "little") + text)
    assert "damaged" in refusal(lambda: read_tensors(path))


def test_damaged_foreign_and_empty_files_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "whole.pth")
    torch.jit.script(nn.Linear(3, 2)).save(str(tmp_path / "whole.pt2"))
    for name in ("whole.pth", "whole.pt2"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    (tmp_path / "bfloat16.pt2").write_bytes(buffer.getvalue())
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("whole")}
    assert len(names) == 8
    for name in (*names, "absent.pth"):
        assert name in refusal(lambda name=name: read_tensors(tmp_path / name))  # type: ignore[misc]
    assert "not weights" in refusal(lambda: read_tensors(tmp_path / "bfloat16.pt2"))


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    model = nn.Linear(3, 2)
    torch.save(model.state_dict(), folder / "m.pth")
    torch.jit.script(model).save(str(folder / "m.pt2"))
    save_file(model.state_dict(), folder / "m.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=100)
@given(st.data())
def test_a_file_with_wrong_bytes_loads_or_is_refused(
    whole_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(whole_files)))
    changed = bytearray(whole_files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(changed)
    with contextlib.suppress(UserError):
        read_tensors(path)
