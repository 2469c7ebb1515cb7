import dataclasses
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.presets import FOLDER, load_recipe, preset_names, read_preset
from pipeline.spec import RegionsSpec


def test_every_preset_is_valid_and_names_known_weights() -> None:
    from pipeline.encoders.weights import weights_entry

    assert preset_names() == ["base", "demo", "paper"]
    for name in preset_names():
        preset = read_preset(name)
        for stage in ("segment", "semantic", "motion"):
            assert weights_entry(getattr(preset, stage).weights).licence


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


def test_preset_names_do_not_leave_their_folder() -> None:
    with pytest.raises(UserError, match="no preset"):
        read_preset("../datasets/demo")
    with pytest.raises(UserError, match="no preset"):
        read_preset("nowhere.yaml")


def test_changed_embedded_weights_are_refused(tmp_path: Path) -> None:
    from pipeline.encoders.weights import checked_sha256

    other = tmp_path / "segmenter.safetensors"
    other.write_bytes(b"something else")
    with pytest.raises(UserError, match="demo-segmenter"):
        checked_sha256("demo-segmenter", other)
