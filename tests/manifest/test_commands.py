"""bmoe-cache dataset as its users meet it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from tests.manifest.trees import TREES, put

RUNNER = CliRunner()


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = RUNNER.invoke(cli.app, ["dataset", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def record(*arguments: str | Path) -> dict[str, Any]:
    _, out, _ = run(*arguments, "--json")
    found: dict[str, Any] = json.loads(out)
    return found


def test_list_and_show() -> None:
    status, out, _ = run("list")
    assert status == 0
    assert "train 11250 / val 5586 / test 5586|1138|0" in out
    assert out.strip().endswith("--as activitynet|csv|folder|kinetics|list")
    names = [one["name"] for one in record("list")["datasets"]]
    assert {"ma52", "mpii_gi", "mpii_bbr", "ntu120"} <= set(names)
    for name in names:
        status, out, _ = run("show", name)
        assert status == 0
        assert f"dataset import {name} --root" in out
    status, out, _ = run("show", "ma52")
    assert "expert classes, overlap: head 16, body 11, upper_limb 33, lower_limb 12" in out
    assert "expert classes, strict: head 6, body 5, upper_limb 13, lower_limb 8" in out
    assert record("show", "ma52")["labels"][9] == {
        "id": 9,
        "name": "nodding",
        "group": "head",
        "experts": ["head"],
    }
    status, _, err = run("show", "ma53")
    assert status == 2
    assert "ma52" in err


def test_import_prints_rows_by_split_and_warnings(tmp_path: Path) -> None:
    root = put(tmp_path / "root", TREES["ntu60"])
    words = (
        "import",
        "views",
        "--as",
        "ntu60",
        "--set",
        "protocol=xview",
        "--root",
        root,
        "--cache",
        tmp_path / "c",
    )
    status, out, _ = run(*words)
    assert status == 0
    assert "W_SKEL_LISTED_MISSING" in out
    assert [line.split() for line in out.splitlines() if line.startswith(("train", "test"))] == [
        ["train", "1", "1", "1", "1", "1"],
        ["test", "1", "1", "1", "1", "1"],
    ]
    found = record(*words)
    assert (found["splits"], found["clips"], found["labelled"]) == ({"train": 1, "test": 1}, 2, 2)
    assert found["rows"]["train"]["groups"] == 1
    assert len(found["warnings"]) == 1


def test_validate_exit_status(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    root = put(tmp_path / "root", {"train_list.txt": "a.mp4 0\nb.mp4 1\n", "a.mp4": "x", "b.mp4": "x"})
    run("import", "mine", "--as", "list", "--root", root, "--cache", cache)
    assert run("validate", "mine", "--cache", cache)[0] == 0
    (root / "train_list.txt").write_bytes(b"a.mp4 0\r\nb.mp4 1\r\n")
    run("import", "mine", "--as", "list", "--root", root, "--cache", cache)
    status, out, _ = run("validate", "mine", "--cache", cache)
    assert status == 0
    assert "W_CRLF train_list.txt" in out
    assert run("validate", "mine", "--cache", cache, "--strict")[0] == 2
    (root / "b.mp4").unlink()
    found = record("validate", "mine", "--cache", cache)
    assert (found["errors"], found["warnings"]) == (1, 1)
    assert any(
        line.startswith("E_MISSING_FILE train_list.txt:2 mine:train:b: ") for line in found["problems"]
    )
    assert run("validate", "mine", "--cache", cache)[0] == 2
    status, out, _ = run("validate", "mine", "--cache", cache, "--deep", "--decoders", "1")
    assert status == 2
    assert "E_NOT_A_VIDEO train_list.txt:1 mine:train:a: " in out


def test_stats_and_export(tmp_path: Path) -> None:
    cache, out_file = tmp_path / "c", tmp_path / "smg.jsonl"
    root = put(tmp_path / "root", TREES["smg"])
    run("import", "smg", "--root", root, "--cache", cache)
    found = record("stats", "smg", "--cache", cache)
    assert found["splits"]["train"]["clips"] == 1
    assert found["frames"] == {"clips": 2, "least": 11, "median": 11, "most": 11}
    assert found["classes"][16] == {"id": 16, "name": "Illustrative hand gestures", "train": 0, "test": 1}
    assert found["experts"]["strict"]["upper_limb"] == {"train": 0, "test": 1}
    assert found["experts"]["strict"]["body"] == {"train": 1, "test": 0}
    status, out, _ = run("stats", "smg", "--cache", cache)
    assert status == 0
    assert "rows of experts, overlap" in out
    assert record("export", "smg", "--cache", cache, "--out", out_file)["digest"] == found["digest"]
    run("import", "copy", "--as", out_file, "--root", root, "--cache", cache)
    assert record("stats", "copy", "--cache", cache)["splits"] == found["splits"]


def test_split_keeps_groups_and_files(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    rows = "".join(f"r{i // 4}.mp4,{i % 4 * 20},{i % 4 * 20 + 20},nod,r{i // 4}\n" for i in range(24))
    root = put(tmp_path / "root", {"a.csv": f"video_path,start_frame,end_frame,label,group_id\n{rows}"})
    run("import", "own", "--as", "csv", "--root", root, "--cache", cache)
    words = ("split", "own", "--to", "own_f1", "--cache", cache, "--folds", "3", "--fold", "1")
    status, out, _ = run(*words)
    assert status == 0
    assert out.strip().endswith("own_f1: 24 clips of own")
    assert {name: row["groups"] for name, row in record(*words)["rows"].items()} == {"train": 4, "val": 2}
    assert record("stats", "own_f1", "--cache", cache)["splits"]["val"]["clips"] == 8
    status, _, err = run(*words[:-1], "3")
    assert (status, "want 0 to 2 of 3 folds" in err) == (2, True)


@pytest.mark.parametrize("name", ["ma52", "ntu60"])
def test_warnings_link_to_a_page_that_is_there(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder: the line ends with the path of the dataset's page."""
    tree = TREES["ntu60"] if name == "ntu60" else {"test_list_videos.txt": "test0000.mp4 0\n"}
    root = put(tmp_path / "root", tree)
    monkeypatch.chdir(tmp_path)
    _, out, _ = run("import", name, "--root", root, "--cache", tmp_path / "c")
    links = re.findall(r"\[fix: see (.*)\]", out)
    assert links
    assert all("## Known defects" in Path(link).read_text() for link in links)
    _, out, _ = run("validate", name, "--cache", tmp_path / "c")
    assert all(Path(link).is_file() for link in re.findall(r"\[fix: see (.*)\]", out))
    assert "W_PROFILE_COUNT" in out


@pytest.mark.parametrize("command", ["validate", "stats", "export"])
def test_a_dataset_that_was_not_imported(tmp_path: Path, command: str) -> None:
    more = ("--out", tmp_path / "x.jsonl") if command == "export" else ()
    status, _, err = run(command, "ma52", "--cache", tmp_path, *more)
    assert status == 2
    assert "dataset import" in err
