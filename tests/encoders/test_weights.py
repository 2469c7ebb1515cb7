"""The table of weights: what an entry may say, where its files are found, what stands for them in a key."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.encoders import digests, model_class, weights
from pipeline.encoders.digests import file_sha256, folder_sha256
from pipeline.encoders.weights import (
    find_weights,
    parse_entries,
    resolve_weights,
    weights_digest,
    weights_entry,
    weights_table,
)
from tests.encoders.checkpoint_files import refusal

GIANT = "vit_g_hybrid_pt_1200e_k710_ft.pth"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ABOUT = "licence: MIT, citation: c, trained_on: t"


@pytest.fixture(autouse=True)
def empty_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants
    import huggingface_hub.file_download

    hub = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    return hub


@pytest.fixture(autouse=True)
def own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("user_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(digests, "RECENT_S", -1.0)
    return folder / "bmoe-cache" / "digests.json"


def entry(source: Path, fields: str) -> weights.Weights:
    return parse_entries({"mine": yaml.safe_load(f"{{{fields}, {ABOUT}}}")}, source)["mine"]


# --- the table -------------------------------------------------------------------------------------------


def test_every_entry_is_complete_and_its_model_takes_its_config() -> None:
    import inspect

    table = weights_table()
    assert {"demo-segmenter", "demo-videomaev2", "demo-manet"} <= table.keys()
    for name in table:
        held = weights_entry(name)
        build = getattr(model_class(held.model), "from_files", model_class(held.model))
        assert set(held.config) <= inspect.signature(build).parameters.keys(), name
        assert held.twin is None or weights_entry(held.twin).model == held.model
        if held.repo:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", held.repo)
            assert held.revision is None or re.fullmatch(r"[0-9a-f]{40}", held.revision)


def test_every_published_file_is_in_the_table() -> None:
    names = weights_table().keys()
    for size in ("0.3b", "0.6b", "1b"):
        assert {f"sapiens-seg-{size}", f"sapiens-seg-{size}-torchscript"} <= names
    assert {f"videomaev2-{size}-k710" for size in ("small", "base", "giant")} <= names
    assert {f"videomaev2-{size}-hub" for size in ("base", "large", "huge", "giant")} <= names
    assert {"videomaev2-giant-mae", "videomaev2-giant-ssv2", "manet-ma52"} <= names
    assert {"landmarks", "landmarks-mediapipe"} <= names


def test_entries_with_classes_build_the_model_of_the_published_size() -> None:
    import torch

    from pipeline.encoders import create_model

    for held in weights_table().values():
        if held.bytes and held.model.startswith(("videomaev2-", "sapiens-seg-")):
            with torch.device("meta"):
                count = sum(p.numel() for p in create_model(held.model, **held.config).parameters())
            halves = held.bytes / count / 2
            assert min(abs(halves - 1), abs(halves - 2)) < 0.03, held.name  # float16 or float32


@pytest.mark.parametrize(
    "fields",
    [
        "path: ../m.safetensors",
        "path: /m.safetensors",
        "repo: a/b",
        "file: f",
        "path: m, repo: a/b, file: f",
        "path: m, folder: true",
        "repo: a/b, file: ../f",
        "repo: a/b, file: f, also: [../config.json]",
        "path: m, also: [config.json]",
        "path: m, colour: red",
        "path: m, sha256: abc",
        "config: {}",
    ],
)
def test_a_wrong_entry_is_named_with_its_file(tmp_path: Path, fields: str) -> None:
    reason = refusal(lambda: entry(tmp_path / "weights.yaml", f"model: manet, {fields}"))
    assert "'mine'" in reason
    assert str(tmp_path / "weights.yaml") in reason


def test_unknown_names_and_models_are_refused(tmp_path: Path) -> None:
    assert "demo-manet" in refusal(lambda: weights_entry("demo"))
    assert "'../mine'" in refusal(lambda: parse_entries({"../mine": {}}, tmp_path / "p.yaml"))
    assert "'mine'" in refusal(lambda: parse_entries({"mine": [1]}, tmp_path / "p.yaml"))
    own = {"mine": entry(tmp_path / "p.yaml", "model: unheard-of, path: m")}
    reason = refusal(lambda: weights_entry("mine", own))
    assert "'mine'" in reason
    assert "unheard-of" in reason


def command(*words: str | Path) -> Any:
    import json

    from typer.testing import CliRunner

    import cli

    result = CliRunner().invoke(cli.app, ["weights", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands_tell_what_there_is_and_what_is_here(tmp_path: Path) -> None:
    (tmp_path / "best_top1_acc_epoch_40.pth").write_bytes(b"1")
    listed = {record["name"]: record for record in command("list", "--weights", tmp_path)["weights"]}
    assert listed.keys() == weights_table().keys()
    assert listed["demo-manet"]["here"].endswith("manet.safetensors")
    assert listed["manet-ma52"]["here"] == str(tmp_path / "best_top1_acc_epoch_40.pth")
    assert listed["videomaev2-base-k710"]["here"] is None
    shown = command("show", "videomaev2-base-k710")
    assert "arXiv:2303.16727" in shown["citation"]
    assert (shown["size"], shown["bytes"]) == ("174 MB", 173_574_417)
    (checked,) = command("check", "demo-manet")["weights"]
    assert (checked["parameters"], checked["pinned"], checked["differences"]) == (859_188, True, [])


# --- finding ---------------------------------------------------------------------------------------------


def test_a_missing_file_says_what_to_get_and_its_licence(tmp_path: Path, empty_hub: Path) -> None:
    reason = refusal(lambda: resolve_weights("sapiens-seg-1b", tmp_path))
    for part in (
        "sapiens_1b_goliath_best_goliath_mIoU_7994_epoch_151.pth of huggingface.co/facebook/sapiens-seg-1b",
        "bmoe-cache weights fetch sapiens-seg-1b",
        "--weights FOLDER",
        "CC-BY-NC-4.0",
        "4.72 GB",
        str(tmp_path),
    ):
        assert part in reason
    assert not any(empty_hub.iterdir())


def test_a_folder_is_searched_by_file_name_path_or_repository(tmp_path: Path) -> None:
    flat, tree, cloned = tmp_path / "flat", tmp_path / "tree", tmp_path / "cloned"
    for folder in (flat, tree / "mae-g", cloned / "VideoMAE2" / "mae-g"):
        folder.mkdir(parents=True)
        (folder / GIANT).write_bytes(b"1")
        (folder / f"{GIANT}.part").write_bytes(b"2")
        assert resolve_weights("videomaev2-giant-k710", tmp_path / folder.relative_to(tmp_path).parts[0])
    assert resolve_weights("videomaev2-giant-k710", flat) == flat / GIANT
    assert resolve_weights("videomaev2-giant-k710", tree) == tree / "mae-g" / GIANT
    assert "vit_b_k710" in refusal(lambda: resolve_weights("videomaev2-base-k710", flat))


def test_one_file_is_enough_for_one_entry(tmp_path: Path) -> None:
    (tmp_path / "renamed.pth").write_bytes(b"1")
    given = tmp_path / "renamed.pth"
    assert resolve_weights("manet-ma52", given, alone=True) == given
    assert "manet-ma52" in refusal(lambda: resolve_weights("manet-ma52", given))


def test_the_hub_cache_is_searched_by_commit_then_main(empty_hub: Path) -> None:
    held = weights_entry("videomaev2-giant-k710")
    repo = empty_hub / "models--OpenGVLab--VideoMAE2"
    main, pinned = (
        repo / "snapshots" / commit / "mae-g" / GIANT for commit in ("0" * 40, str(held.revision))
    )
    main.parent.mkdir(parents=True)
    main.write_bytes(b"1")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    assert resolve_weights(held) == main
    pinned.parent.mkdir(parents=True)
    pinned.write_bytes(b"1")
    assert resolve_weights(held) == pinned


def test_the_torchscript_twin_serves_where_the_checkpoint_is_not(tmp_path: Path) -> None:
    held = weights_entry("sapiens-seg-0.6b")
    twin = tmp_path / str(weights_entry(str(held.twin)).file)
    twin.write_bytes(b"abc")
    assert resolve_weights(held, tmp_path) == twin
    assert weights_digest(held, twin) == ABC
    own = tmp_path / str(held.file)
    own.write_bytes(b"1")
    assert resolve_weights(held, tmp_path) == own


def test_files_that_belong_together_are_found_together(tmp_path: Path) -> None:
    held = entry(tmp_path / "p.yaml", "model: manet, repo: a/b, file: x/m.safetensors, also: [config.json]")
    assert held.files == ("x/m.safetensors", "x/config.json")
    folder = tmp_path / "b" / "x"
    folder.mkdir(parents=True)
    (folder / "m.safetensors").write_bytes(b"1")
    assert find_weights(held, tmp_path) is None
    (folder / "config.json").write_text("{}")
    assert find_weights(held, tmp_path) == folder / "m.safetensors"
    before = weights_digest(held, folder / "m.safetensors")
    (folder / "config.json").write_text('{"depth": 2}')
    assert weights_digest(held, folder / "m.safetensors") != before


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    held = entry(tmp_path / "p.yaml", "model: manet, folder: true")
    assert "--weights" in refusal(lambda: resolve_weights(held))
    assert "mine" in refusal(lambda: resolve_weights(held, tmp_path))
    own = tmp_path / "mine"
    own.mkdir()
    assert resolve_weights(held, tmp_path) == own
    assert resolve_weights(held, own) == own
    assert resolve_weights(held, own.rename(tmp_path / "other"), alone=True) == tmp_path / "other"


def test_a_package_needs_no_files_and_its_requirement_is_its_digest(tmp_path: Path) -> None:
    one, two = (entry(tmp_path / "p.yaml", f"model: manet, package: mediapipe=={v}") for v in ("1.0", "1.1"))
    assert resolve_weights(one) is None
    assert resolve_weights(one, tmp_path, alone=True) is None
    assert weights_digest(one, None) != weights_digest(two, None)


def test_embedded_weights_lie_beside_their_table(tmp_path: Path) -> None:
    held = entry(tmp_path / "p.yaml", "model: manet, path: w/m.safetensors")
    assert "m.safetensors" in refusal(lambda: resolve_weights(held))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "m.safetensors").write_bytes(b"1")
    assert resolve_weights(held) == tmp_path / "w" / "m.safetensors"


# --- digests ---------------------------------------------------------------------------------------------


def test_pins_are_kept(tmp_path: Path) -> None:
    file = tmp_path / GIANT
    file.write_bytes(b"abc")
    assert weights_digest(weights_entry("manet-ma52"), file) == ABC  # nothing pinned
    reason = refusal(lambda: weights_digest(weights_entry("videomaev2-giant-k710"), file))
    assert GIANT in reason
    assert ABC[:16] in reason


def test_a_known_file_is_not_read_again_and_a_changed_one_is(
    tmp_path: Path, own_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    read: list[str] = []
    true_digest = hashlib.file_digest

    def counted(file, name):  # type: ignore[no-untyped-def]
        read.append(Path(file.name).name)
        return true_digest(file, name)

    monkeypatch.setattr(digests.hashlib, "file_digest", counted)
    file, link = tmp_path / "a.pth", tmp_path / "link.pth"
    file.write_bytes(b"abc")
    link.symlink_to(file)
    assert [file_sha256(file), file_sha256(link), file_sha256(file)] == [ABC] * 3
    assert read == ["a.pth"]
    assert own_memory.is_file()
    status = file.stat()
    file.write_bytes(b"abd")  # same size, and the old times put back
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_sha256(file) != ABC
    assert len(read) == 2
    own_memory.write_text("not JSON")
    file_sha256(file)
    assert len(read) == 3


def test_a_file_changed_just_now_is_not_remembered(
    tmp_path: Path, own_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "RECENT_S", 3600.0)
    (tmp_path / "a.pth").write_bytes(b"abc")
    file_sha256(tmp_path / "a.pth")
    assert not own_memory.exists()


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "a.pth").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a.pth") == ABC


def test_a_folder_is_its_names_and_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a.npz").write_bytes(b"1")
        (tmp_path / name / "sub" / "b.npz").write_bytes(b"2")
    (tmp_path / "two" / ".hidden").write_bytes(b"3")
    first = folder_sha256(tmp_path / "one")
    assert folder_sha256(tmp_path / "two") == first
    (tmp_path / "two" / "a.npz").rename(tmp_path / "two" / "c.npz")
    assert folder_sha256(tmp_path / "two") != first
