"""Fetching weights, for real: bmoe-cache in a process of its own against a server of the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.encoders import create_model
from pipeline.presets import FOLDER
from tests.encoders.checkpoint_files import VIT
from tests.encoders.hub_server import COMMIT, HubServer

ABOUT = {"licence": "CC-BY-NC-4.0", "citation": "c", "trained_on": "t"}
FILE = "tiny/vit/deep/model.pth"
CHUNK = 10 << 20
TOKEN = "hf_of_this_test"  # noqa: S105


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"module": create_model("videomaev2", **VIT).state_dict()}, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def large_file() -> bytes:
    """24 MiB, so that the client writes some of it (it does in chunks of 10 MiB) before anything happens."""
    return np.arange(3 << 20, dtype=np.int64).tobytes()


def preset(folder: Path, **fields: Any) -> str:
    """The demo preset with weights of its own for the semantic stage."""
    values = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    values["semantic"]["weights"] = "mine"
    mine = {
        "model": "videomaev2",
        "config": VIT,
        "repo": "tiny/vit",
        "file": "deep/model.pth",
        **ABOUT,
        **fields,
    }
    values["weights"] = {"mine": mine}
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "mine.yaml")


def surroundings(home: Path, hub: HubServer | None, **more: str) -> dict[str, str]:
    """The environment of a user whose home, caches and hub are those of the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    url = hub.url if hub else "http://127.0.0.1:9"
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    return {**kept, **own, "HF_TOKEN": TOKEN, **more}


def bmoe(
    home: Path, hub: HubServer | None, *words: str | Path, **more: str
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cli", "weights", *map(str, words)]
    environment = surroundings(home, hub, **more)
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def mine_of(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return next(record for record in json.loads(done.stdout)["weights"] if record["name"] == "mine")


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a refusal; the line that names the licence may stand before it."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    return lines[0]


def test_a_file_is_fetched_into_the_hub_cache_once(tmp_path: Path, weights_file: bytes) -> None:
    with HubServer({FILE: weights_file}) as hub:
        name = preset(tmp_path, sha256=hashlib.sha256(weights_file).hexdigest())
        record = mine_of(bmoe(tmp_path, hub, "fetch", "--preset", name, "--json"))
        path = Path(record["path"])
        assert path.read_bytes() == weights_file
        assert path.is_relative_to(tmp_path / "hf" / "hub" / "models--tiny--vit" / "snapshots" / COMMIT)
        assert record["fetched"] == [str(path)]
        assert not list((tmp_path / "hf").rglob("*.part"))
        stored = [headers for _, path, headers in hub.requests if path.startswith("/storage/")]
        asked = [headers for _, path, headers in hub.requests if "/resolve/" in path]
        assert {headers.get("authorization") for headers in asked} == {f"Bearer {TOKEN}"}
        assert [headers.get("authorization") for headers in stored] == [None]  # another host
    # What is here serves without a hub, and is checked again.
    again = bmoe(tmp_path, None, "fetch", "--preset", name, HF_HUB_OFFLINE="1")
    assert f"mine: here already: {path}" in again.stdout


def test_files_that_belong_together_go_into_a_folder(tmp_path: Path, weights_file: bytes) -> None:
    files = {"tiny/vit/model.pth": weights_file, "tiny/vit/config.json": b"{}"}
    with HubServer(files) as hub:
        name = preset(tmp_path, file="model.pth", also=["config.json"])
        done = bmoe(tmp_path, hub, "fetch", "--preset", name, "--to", tmp_path / "to")
        assert done.returncode == 0, done.stderr
        assert "licence CC-BY-NC-4.0" in done.stderr.splitlines()[0]
        assert "fetching model.pth" in done.stderr
        assert {path.name for path in (tmp_path / "to" / "vit").iterdir()} == {"model.pth", "config.json"}
        assert not (tmp_path / "hf" / "hub").exists()


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path: Path, weights_file: bytes) -> None:
    (tmp_path / "to" / "vit" / "deep" / "model.pth").mkdir(parents=True)
    with HubServer({FILE: weights_file}) as hub:
        done = bmoe(tmp_path, hub, "fetch", "--preset", preset(tmp_path), "--to", tmp_path / "to")
        assert "model.pth: is a folder" in refused(done)
        assert hub.gets() == []


def test_a_cut_connection_is_taken_up_again(tmp_path: Path, large_file: bytes) -> None:
    with HubServer({FILE: large_file}, cut_after=15 << 20) as hub:
        record = mine_of(bmoe(tmp_path, hub, "fetch", "--preset", preset(tmp_path), "--json"))
        assert Path(record["path"]).read_bytes() == large_file
        assert hub.gets() == [None, f"bytes={CHUNK}-"]


def test_a_killed_download_goes_on_in_the_next_process(tmp_path: Path, large_file: bytes) -> None:
    name, to = preset(tmp_path), tmp_path / "to"
    fetch = ("fetch", "--preset", name, "--to", to)
    with HubServer({FILE: large_file}, stall_after=15 << 20) as hub:
        command = [sys.executable, "-m", "cli", "weights", *map(str, fetch)]
        environment = surroundings(tmp_path, hub, HF_HUB_DOWNLOAD_TIMEOUT="60")
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while not (parts := [part for part in to.rglob("*.part") if part.stat().st_size]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert "another process" in refused(bmoe(tmp_path, hub, *fetch))
            process.kill()
    kept = parts[0].stat().st_size
    assert kept == CHUNK
    with HubServer({FILE: large_file}) as hub:
        record = mine_of(bmoe(tmp_path, hub, *fetch, "--json"))
        assert Path(record["path"]).read_bytes() == large_file
        assert hub.gets() == [f"bytes={kept}-"]
    assert not parts[0].exists()


def test_another_file_than_the_pinned_one_is_not_even_downloaded(tmp_path: Path, weights_file: bytes) -> None:
    with HubServer({FILE: weights_file}) as hub:
        done = bmoe(tmp_path, hub, "fetch", "--preset", preset(tmp_path, sha256="0" * 64))
        assert "nothing was downloaded" in refused(done)
        assert hub.gets() == []


def test_a_pin_holds_where_the_hub_promises_nothing(tmp_path: Path, weights_file: bytes) -> None:
    damaged = bytes([weights_file[0] ^ 1]) + weights_file[1:]
    pinned = preset(tmp_path, sha256=hashlib.sha256(weights_file).hexdigest())
    with HubServer({FILE: damaged}, etags={FILE: "a" * 40}) as hub:  # a git hash, as small files have
        assert "thrown away" in refused(bmoe(tmp_path, hub, "fetch", "--preset", pinned))
    assert not [
        path for path in (tmp_path / "hf").rglob("*") if path.is_file() and path.stat().st_size > 1000
    ]


def test_bytes_that_are_not_those_promised_are_thrown_away(tmp_path: Path, weights_file: bytes) -> None:
    to = tmp_path / "to" / "vit"
    to.mkdir(parents=True)
    (to / "notes.txt").write_text("the user's own")
    damaged = bytes([weights_file[0] ^ 1]) + weights_file[1:]
    promised = {FILE: hashlib.sha256(weights_file).hexdigest()}
    with HubServer({FILE: damaged}, etags=promised) as hub:
        done = bmoe(tmp_path, hub, "fetch", "--preset", preset(tmp_path), "--to", tmp_path / "to")
        assert "thrown away" in refused(done)
        assert [path.name for path in (tmp_path / "to").rglob("*") if path.is_file()] == ["notes.txt"]
        (to / "deep" / "model.pth").write_bytes(damaged)  # and a wrong file of the user's own is left alone
        pinned = preset(tmp_path, sha256=promised[FILE])
        done = bmoe(tmp_path, hub, "fetch", "--preset", pinned, "--to", tmp_path / "to")
        assert "move it away" in refused(done)
        assert (to / "deep" / "model.pth").read_bytes() == damaged


def test_refusals_of_the_hub_are_one_line_with_the_remedy(tmp_path: Path, weights_file: bytes) -> None:
    cases = {
        "absent": ({"repo": "tiny/absent"}, "hf auth login"),
        "gated": ({"repo": "tiny/gated"}, "accept its terms"),
        "moved": ({"file": "elsewhere/model.pth"}, "not in the repository at main"),
        "lost": ({"revision": "1" * 40}, f"not in the repository at {'1' * 40}"),
    }
    # One process for all of them, because starting one takes longer than asking.
    program = (
        "import sys\nfrom pipeline.encoders.hub import fetch\nfrom pipeline.errors import UserError\n"
        "from pipeline.presets import choose_weights\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        [fetch(entry) for entry in choose_weights(None, name)]\n"
        "    except UserError as error:\n        print(error)\n"
    )
    names = [preset(tmp_path / case, **fields) for case, (fields, _) in cases.items()]
    with HubServer({FILE: weights_file, "tiny/gated/x": b""}, gated=frozenset({"tiny/gated"})) as hub:
        done = subprocess.run(
            [sys.executable, "-c", program, *names],
            capture_output=True,
            text=True,
            timeout=120,
            env=surroundings(tmp_path, hub),
        )
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    for line, (_, words) in zip(lines, cases.values(), strict=True):
        assert words in line


def test_without_a_network_the_line_says_what_to_do(tmp_path: Path) -> None:
    name = preset(tmp_path)
    done = bmoe(tmp_path, None, "fetch", "--preset", name, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in refused(done)
    assert "connection to the hub failed" in refused(bmoe(tmp_path, None, "fetch", "--preset", name))
