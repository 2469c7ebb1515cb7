import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.encoders.weights import resolve_weights, weights_entry
from pipeline.errors import UserError
from pipeline.presets import FOLDER, load_recipe, locate_weights, preset_names, read_preset, wanted_weights
from pipeline.spec import RegionsSpec


def test_every_preset_is_valid_and_names_known_weights() -> None:
    assert {"base", "demo", "paper"} <= set(preset_names())
    for name in preset_names():
        for entry in wanted_weights(read_preset(name)).values():
            assert entry.licence
    assert read_preset("paper").semantic.windows == 8


def test_demo_recipe_is_complete_on_any_machine() -> None:
    recipe = load_recipe("demo")
    assert set(recipe.weights) == {"segment", "semantic", "motion"}
    assert recipe.spec.semantic.reads == {
        "segment": recipe.spec.segment.key,
        "regions": recipe.spec.regions.key,
    }


def test_how_a_preset_runs_is_no_part_of_any_key(tmp_path: Path) -> None:
    preset = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    preset["run"] = {"shard_clips": 3, "batch": {"segment": 1, "semantic": 1, "motion": 1}}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(preset))
    mine, demo = load_recipe(str(path)).spec.stages(), load_recipe("demo").spec.stages()
    assert {name: spec.key for name, spec in mine.items()} == {name: spec.key for name, spec in demo.items()}


def test_region_options_of_a_preset_are_those_of_the_spec() -> None:
    given = read_preset("demo").regions.model_dump(exclude={"parts"})
    spec = load_recipe("demo").spec.regions
    assert {name: getattr(spec, name) for name in given} == given
    assert {*given, "reads", "parts"} == {field.name for field in dataclasses.fields(RegionsSpec)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("regions.pading=0.15", "unknown option; near: regions.padding, "),
        ("reegions.padding=0.15", "unknown option; near: regions.padding, "),
        ("semantic.tokens.grd=[7, 7]", "unknown option; near: semantic.tokens.grid, "),
        ("regions.padding=wide", "regions.padding: Input should be a valid number"),
        ("semantic.windows=3", "semantic: give one of stride, windows"),
    ],
)
def test_a_wrong_override_is_blamed_and_not_the_file(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_preset("demo", ["regions.mask=true", override, "run.compile=false"])
    assert str(caught.value).startswith(f"--set {override}: {message}")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("segment: {weights: demo-segmenter", "mine.yaml"),
        ("nothing: 1", "segment"),
        ("[]", "mine.yaml"),
        ("segment: {weights: x, label_size: [1, 2], colour: red}", "segment.colour"),
    ],
)
def test_broken_preset_names_file_and_field(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        read_preset(str(path))


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("motion.crop=300", "crop 300 is more than the short_side 96"),
        ("motion.short_side=95", "crop 96 is more than the short_side 95"),
        ("segment.label_size=[0, 0]", "segment.label_size"),
        ("segment.label_size=[-3, 5]", "segment.label_size"),
    ],
)
def test_options_that_no_frame_fits_are_refused(override: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_preset("demo", [override])


def test_preset_names_do_not_leave_their_folder() -> None:
    with pytest.raises(UserError, match="no preset"):
        read_preset("../datasets/demo")
    with pytest.raises(UserError, match="no preset"):
        read_preset("nowhere.yaml")


# --- weights ---------------------------------------------------------------------------------------------

ABOUT = "licence: MIT, citation: c, trained_on: t"


def own_preset(
    folder: Path, weights: str, segment: str = "demo-segmenter", motion: str = "demo-manet"
) -> str:
    """The demo preset, as a file with entries of its own, one of them for the semantic stage."""
    preset = yaml.safe_load((FOLDER / "demo.yaml").read_text())
    preset["weights"] = yaml.safe_load(weights)
    preset["semantic"]["weights"] = "mine"
    preset["segment"]["weights"], preset["motion"]["weights"] = segment, motion
    (folder / "mine.yaml").write_text(yaml.safe_dump(preset))
    return str(folder / "mine.yaml")


def test_a_preset_brings_its_own_weights(tmp_path: Path) -> None:
    entry = weights_entry("demo-videomaev2")
    name = own_preset(
        tmp_path, f"{{mine: {{model: videomaev2, config: {entry.config}, path: w/m.safetensors, {ABOUT}}}}}"
    )
    with pytest.raises(UserError, match=r"w/m\.safetensors"):
        load_recipe(name)
    (tmp_path / "w").mkdir()
    embedded = resolve_weights(entry)
    assert embedded is not None
    shutil.copy(embedded, tmp_path / "w" / "m.safetensors")
    mine, demo = load_recipe(name), load_recipe("demo")
    assert mine.weights["semantic"] == tmp_path / "w" / "m.safetensors"
    assert mine.spec.semantic.key == demo.spec.semantic.key


def test_the_example_of_the_documentation_is_a_preset(tmp_path: Path) -> None:
    page = (FOLDER.parents[1] / "docs" / "weights.md").read_text()
    (tmp_path / "mine.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    entry = wanted_weights(read_preset(str(tmp_path / "mine.yaml")))["semantic"]
    assert entry.base / str(entry.path) == tmp_path / "checkpoints" / "checkpoint-49.pth"


@pytest.mark.parametrize(
    ("stage", "weights"),
    [
        ("segment", "demo-manet"),
        ("semantic", "demo-segmenter"),
        ("semantic", "demo-manet"),
        ("motion", "demo-videomaev2"),
    ],
)
def test_weights_of_another_stage_are_refused(stage: str, weights: str) -> None:
    own = read_preset("demo").model_dump()[stage]["weights"]
    with pytest.raises(UserError, match=rf"^{stage}\.weights: '{weights}' is a .*; use one of .*\b{own}\b"):
        load_recipe("demo", overrides=[f"{stage}.weights={weights}"])


def test_everything_missing_is_named_at_once_a_line_each(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("paper", tmp_path)
    first, *lines, last = str(caught.value).splitlines()
    assert "'paper'" in first
    assert [line.split("'")[1] for line in lines] == ["sapiens-seg-1b", "videomaev2-giant-k710", "manet-ma52"]
    assert all("weights fetch" in line and "licence: " in line for line in lines)
    assert "weights fetch --preset paper" in last


def test_a_place_that_does_not_exist_is_said(tmp_path: Path) -> None:
    for name, preset in (("manet-ma52", None), (None, "base")):
        with pytest.raises(UserError, match=r"--weights .*gone: no such file or folder"):
            locate_weights(name, preset, tmp_path / "gone")


def test_a_file_that_nothing_takes_is_said(tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_bytes(b"1")
    with pytest.raises(UserError, match=r"c\.pth is one file, preset 'demo' wants none"):
        load_recipe("demo", tmp_path / "c.pth")
    assert load_recipe("demo", tmp_path).spec == load_recipe("demo").spec


def test_one_file_will_do_where_one_is_wanted(tmp_path: Path) -> None:
    name = own_preset(tmp_path, f"{{mine: {{model: videomaev2, repo: a/b, file: c.pth, {ABOUT}}}}}")
    (tmp_path / "renamed.pth").write_bytes(b"1")
    assert load_recipe(name, tmp_path / "renamed.pth").weights["semantic"] == tmp_path / "renamed.pth"
    name = own_preset(
        tmp_path, f"{{mine: {{model: videomaev2, repo: a/b, file: c.pth, {ABOUT}}}}}", motion="manet-ma52"
    )
    with pytest.raises(UserError, match="wants mine, manet-ma52"):
        load_recipe(name, tmp_path / "renamed.pth")
    with pytest.raises(UserError, match="no such file or folder"):
        load_recipe("demo", tmp_path / "absent")


def test_folders_and_packages_are_sources_too(tmp_path: Path) -> None:
    name = own_preset(tmp_path, f"{{mine: {{model: videomaev2, folder: true, {ABOUT}}}}}")
    own = tmp_path / "files" / "mine"
    own.mkdir(parents=True)
    (own / "a.npz").write_bytes(b"1")
    first = load_recipe(name, tmp_path / "files")
    assert first.weights["semantic"] == own
    (own / "b.npz").write_bytes(b"2")
    assert load_recipe(name, own).spec.semantic.key != first.spec.semantic.key
    name = own_preset(tmp_path, f"{{mine: {{model: videomaev2, package: mediapipe==0.10.21, {ABOUT}}}}}")
    assert load_recipe(name).weights["semantic"] is None


@pytest.mark.parametrize("weights", ["{mine: [1]}", "{mine: {model: manet}}", "[mine]"])
def test_broken_entries_of_a_preset_are_named(tmp_path: Path, weights: str) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml"):
        read_preset(own_preset(tmp_path, weights))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    pin = "0" * 64
    name = own_preset(
        tmp_path, f"{{mine: {{model: videomaev2, repo: a/b, file: c.pth, sha256: '{pin}', {ABOUT}}}}}"
    )
    (tmp_path / "c.pth").write_bytes(b"something else")
    with pytest.raises(UserError, match="'mine' pin 0000"):
        load_recipe(name, tmp_path)


# --- wiring ----------------------------------------------------------------------------------------------

# A value other than the demo's for every option of the stages but their weights, whose digest has its own tests.
OTHERS = {
    "segment": {
        "label_size": [96, 80], "normalisation": "lite", "stride": 5, "crop": "person", "precision": "bfloat16",
    },
    "regions": {
        "parts": "sapiens2_29", "box": "frame", "padding": 0.2, "smoothing": 3, "min_area": 0.001,
        "clothing": "reassign", "mask": False, "carry": "blend",
    },
    "semantic": {
        "stride": 3, "windows": 2, "sampling": "uniform", "normalisation": "none", "tokens": {"grid": [2, 2]},
        "precision": "bfloat16",
    },
    "motion": {"short_side": 120, "crop": 64, "precision": "bfloat16"},
}  # fmt: skip
# The demo has a stride, which leaves no room for other rules.
ROOM = {"windows": ["semantic.stride=null", "semantic.windows=1"], "sampling": ["semantic.stride=null"]}


def test_every_option_of_a_stage_is_in_its_key() -> None:
    preset = read_preset("demo")
    for stage, others in OTHERS.items():
        assert {*others, "weights"} >= set(type(getattr(preset, stage)).model_fields)
        for option, value in others.items():
            room = ROOM.get(option, [])
            other = f"{stage}.{option}={json.dumps(value)}"
            before, after = (load_recipe("demo", overrides=o).spec.stages() for o in (room, [*room, other]))
            assert before[stage].key != after[stage].key, (stage, option)
    uniform = load_recipe("demo", overrides=[*ROOM["sampling"], "semantic.sampling=uniform"]).spec.semantic
    assert uniform.sampling == "uniform"  # its key differs by the stride too
