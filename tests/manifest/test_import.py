"""Choosing an adapter, its options, and what every import keeps to, for every dataset."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.datasets as package
from pipeline.clip import CLIP_ID
from pipeline.datasets import described_datasets, general_adapters, import_dataset
from pipeline.errors import UserError
from pipeline.jsonl import write_jsonl
from pipeline.manifest import Manifest, read_manifest, write_manifest
from pipeline.validate import validate
from tests.manifest.trees import OPTIONS, TREES, put

ROOT = Path(__file__).resolve().parents[2]


def ids(manifest: Manifest) -> list[str]:
    return [clip.clip_id for clip in manifest.clips]


def test_unknown_datasets_and_adapters_name_the_choices(tmp_path: Path) -> None:
    choices = r"ma52.*--as activitynet\|csv\|.*folder\|.*list\|ma52"
    with pytest.raises(UserError, match=choices):
        import_dataset("mine", tmp_path)
    for adapter in ("zip", "../os", "os.path", "__init__", "_source", "Folder", "path list"):
        with pytest.raises(UserError, match=choices):
            import_dataset("mine", tmp_path, adapter)
    with pytest.raises(UserError, match=choices):  # a wrong --as is never passed over for the dataset's own
        import_dataset("ma52", tmp_path, "zip")
    with pytest.raises(UserError, match="no such folder"):
        import_dataset("mine", tmp_path / "nowhere", "folder")
    with pytest.raises(UserError, match="dataset name"):
        import_dataset("Mine!", tmp_path, "folder")


def test_a_new_adapter_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        tmp_path,
        {"adapters/gadget.py": "OPTIONS = {}\n\ndef rows(source):\n    return [{'video_path': 'a.mp4'}]\n"},
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "adapters")])
    assert "gadget" in package.adapters()
    assert "gadget" in general_adapters()
    assert ids(import_dataset("gadget", tmp_path)) == ["gadget:unsplit:a"]
    assert ids(import_dataset("mine", tmp_path, "gadget")) == ["mine:unsplit:a"]


def test_a_new_dataset_is_a_module_and_a_yaml(tmp_path: Path) -> None:
    """Dropped into a copy of the program; every command knows it, and no other file was touched."""
    for name in ("pipeline", "heads", "manifests"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", tmp_path / "copy")
    module = (
        '"""Adapter `gadget`: every video is a nod."""\n\n'
        "def rows(source):\n"
        "    for path in sorted(source.files('.mp4')):\n"
        "        yield {'video_path': path, 'label_names': (source.options['label'],), 'split': 'train'}\n"
    )
    described = (
        "name: gadget\nlabel_space: gadget2\nlabel_kind: single\nlabels: [nod, wave]\noptions: {label: nod}\n"
        "experts: {head: [0]}\nprofiles: {custom: {rows: {train: 1}}}\n"
    )
    files = {"pipeline/datasets/gadget.py": module, "manifests/datasets/gadget.yaml": described}
    put(tmp_path / "copy", files)
    put(tmp_path / "root", {"one.mp4": "x", "two.mp4": "x"})

    def bmoe(*words: str | Path) -> str:
        command = [sys.executable, "-m", "cli", "dataset", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "copy")}
        done = subprocess.run(command, cwd=tmp_path / "copy", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "gadget" in bmoe("list")
    cache = tmp_path / "c"
    out = bmoe("import", "gadget", "--root", tmp_path / "root", "--cache", cache, "--set", "label=wave")
    assert "gadget: 2 clips, 2 classes" in out
    assert "W_PROFILE_COUNT gadget: rows of train" in bmoe("validate", "gadget", "--cache", cache)


def test_general_adapters_are_those_without_a_dataset() -> None:
    assert general_adapters() == ["activitynet", "csv", "folder", "kinetics", "list"]


def test_every_adapter_of_a_dataset_has_a_tree_here() -> None:
    named = {taxonomy.name for taxonomy in described_datasets()} - {"demo", "ma52", "ntu120"}
    assert named | {"kinetics", "activitynet"} == set(TREES)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("colour=red", "the options are protocol, train"),
        ("protocol", "write KEY=VALUE"),
        ("protocol=xset", "want one of xsub, xview"),
        ("protocol=3", "want a text here, got a number"),
        ("train.xsub=[a]", "want a list of number here, got a list of text"),
        ("train=[1]", "want a mapping here"),
        ("protocol={a: b}", "got a mapping"),
        ("protocol=[", "is not a YAML value"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_dataset("ntu60", put(tmp_path, TREES["ntu60"]), overrides=[override])


def test_another_name_for_a_known_dataset(tmp_path: Path) -> None:
    manifest = import_dataset("ntu_views", put(tmp_path, TREES["ntu60"]), "ntu60", ["protocol=xview"])
    assert manifest.taxonomy.name == "ntu60"
    assert ids(manifest) == ["ntu_views:test:S001C001P001R001A001", "ntu_views:train:S002C002P003R001A060"]
    assert validate(manifest, levels=("schema", "table")).errors == 0


def test_an_export_comes_back(tmp_path: Path) -> None:
    root = put(tmp_path / "root", TREES["social_gesture"])
    manifest = import_dataset("social_gesture", root)
    write_jsonl(manifest, tmp_path / "edited.jsonl")
    assert import_dataset("social_gesture", root, str(tmp_path / "edited.jsonl")) == manifest
    other = import_dataset("other", root, str(tmp_path / "edited.jsonl"))
    assert {clip.dataset for clip in other.clips} == {"other"}


@pytest.mark.parametrize("name", TREES)
def test_every_dataset_imports_twice_the_same(tmp_path: Path, name: str) -> None:
    root = put(tmp_path / "root", TREES[name])
    manifest = import_dataset(name, root, overrides=OPTIONS.get(name, ()))
    assert all(CLIP_ID.fullmatch(clip_id) for clip_id in ids(manifest))
    assert import_dataset(name, root, overrides=OPTIONS.get(name, ())) == manifest
    write_manifest(manifest, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet") == manifest
    report = validate(manifest, levels=("schema", "table", "profile"))
    assert report.errors == 0, report.lines()


@pytest.mark.parametrize("name", TREES)
def test_no_file_is_read_through_a_link_that_leaves_the_root(tmp_path: Path, name: str) -> None:
    """Each file in turn lies outside: the import says so, or did not need what is in it."""
    root, options = put(tmp_path / "root", TREES[name]), OPTIONS.get(name, ())
    whole = import_dataset(name, root, overrides=options)
    (tmp_path / "outside").mkdir()
    refused = 0
    for path in (root / file for file in TREES[name]):
        path.rename(tmp_path / "outside" / path.name)
        path.symlink_to(tmp_path / "outside" / path.name)
        try:
            found: Manifest | str = import_dataset(name, root, overrides=options)
        except UserError as error:
            found = str(error)
            refused += 1
        assert found == whole or "E_PATH_ESCAPE" in str(found)
        path.unlink()
        (tmp_path / "outside" / path.name).rename(path)
    assert refused


@pytest.mark.parametrize("name", TREES)
def test_an_empty_root_says_what_is_wanted(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        import_dataset(name, tmp_path, overrides=OPTIONS.get(name, ()))
    if name not in general_adapters():
        assert f"dataset show {name}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_end_in_a_user_error_or_a_manifest(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """A piece of one file is cut out, repeated or replaced."""
    tree = dict(TREES[name])
    texts = sorted(path for path, text in tree.items() if len(text) > 1)
    victim = data.draw(st.sampled_from(texts))
    text = tree[victim]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    odd = st.text(alphabet='0123456789,.;:-"[]{}\n\r\t é\0', max_size=8)
    tree[victim] = text[:start] + data.draw(odd | st.just(text[start:end] * 2)) + text[end:]
    root = put(tmp_path_factory.mktemp("root"), tree)
    with contextlib.suppress(UserError):  # anything else fails
        manifest = import_dataset(name, root, overrides=OPTIONS.get(name, ()))
        validate(manifest)
        write_manifest(manifest, root / "m.parquet")
