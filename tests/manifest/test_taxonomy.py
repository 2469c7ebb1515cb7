"""Built-in taxonomies hold what the papers say; wrong files give one helpful line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.spec import REGIONS
from pipeline.taxonomy import MANIFESTS, from_labels, load_taxonomy, parse_taxonomy


def test_demo() -> None:
    demo = load_taxonomy("demo")
    assert demo is not None
    assert [label.name for label in demo.labels] == [
        "shaking body", "shrugging", "nodding", "shaking head", "tilting head", "waving", "stretching arms",
        "putting hands together", "shaking legs", "stretching feet", "touching face", "patting legs",
    ]  # fmt: skip
    assert [demo.coarse_of(label.id) for label in demo.labels] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5]
    assert [group.name for group in demo.coarse] == [
        "body", "head", "upper limb", "lower limb", "head-hand", "leg-hand",
    ]  # fmt: skip
    assert demo.experts == {"head": (2, 3, 4), "body": (0, 1), "upper_limb": (5, 6, 7), "lower_limb": (8, 9)}
    assert (demo.label_space, demo.adapter, demo.options["file"]) == ("demo12", "csv", "clips.csv")
    assert "never about micro-action recognition" in " ".join(demo.notes)


def test_ma52() -> None:
    ma52 = load_taxonomy("ma52")
    assert ma52 is not None
    assert len(ma52.labels) == 52
    # thresholds of the official body-level rule
    assert [ma52.coarse_of(i) for i in range(52)] == [
        sum(i >= t for t in (5, 11, 24, 32, 38, 48)) for i in range(52)
    ]
    assert ma52.experts == {
        "head": tuple(range(5, 11)),
        "body": tuple(range(5)),
        "upper_limb": tuple(range(11, 24)),
        "lower_limb": tuple(range(24, 32)),
    }
    names = {
        0: "shaking body",
        3: "turning around",
        4: "rising up",
        9: "nodding",
        23: "illustrative gestures",
    }
    names |= {31: "tiptoe", 36: "arms akimbo", 45: "covering face", 51: "scratching feet"}
    assert {i: ma52.labels[i].name for i in names} == names
    assert len(ma52.options["layouts"]) == 3
    assert ma52.licence.tag == "gated-noncommercial"
    assert len(ma52.notes) >= 4


def test_expert_order_is_that_of_the_regions() -> None:
    for path in (MANIFESTS / "datasets").glob("*.yaml"):
        taxonomy = load_taxonomy(path.stem)
        assert taxonomy is not None
        assert tuple(taxonomy.experts) == REGIONS


def test_names_are_found_whatever_their_blanks() -> None:
    demo = load_taxonomy("demo")
    assert demo is not None
    assert demo.id_of("  shaking \u00a0head ") == 3
    assert demo.id_of("Shaking head") is None
    for wrong in (-1, 12):
        with pytest.raises(UserError, match="0 to 11"):
            demo.coarse_of(wrong)


def test_unknown_and_unsafe_names() -> None:
    assert load_taxonomy("nothing_here") is None
    for name in ("../datasets/demo", "DEMO", "", "demo.yaml"):
        with pytest.raises(UserError, match="dataset name"):
            load_taxonomy(name)


def good() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((MANIFESTS / "datasets/demo.yaml").read_text())
    return data


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", [{"id": 1, "name": "a", "coarse": 0}], "ids must run 0, 1, 2"),
        ("labels", [{"id": "0", "name": "a", "coarse": 0}], r"labels\.0\.id"),
        ("labels", [{"id": 0, "name": "a", "coarse": 9}], "group 9"),
        (
            "labels",
            [{"id": 0, "name": "a", "coarse": 0}, {"id": 1, "name": "a ", "coarse": 0}],
            "'a' is given twice",
        ),
        ("labels", [{"id": 0, "name": "", "coarse": 0}], r"labels\.0\.name"),
        ("labels", "nodding", "field labels"),
        ("experts", {"hands": [1]}, "unknown region 'hands'"),
        ("experts", {"head": [12]}, r"experts\.head: 12"),
        ("experts", {"head": [-1]}, r"experts\.head\.0"),
        ("label_kind", "some", "label_kind"),
        ("label_kind", "none", "exactly when"),
        ("name", "../x", "dataset name"),
        ("colour", "red", "colour"),
        ("licence", {"tag": "mine"}, r"licence\.tag"),
    ],
)
def test_wrong_fields_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_taxonomy(good() | {field: value}, "x.yaml")
    assert str(caught.value).startswith("x.yaml: ")
    assert "\n" not in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for text in ("a: [", "- 1", "", "!!python/object/apply:os.system ['true']", "\x00"):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=r"mine\.yaml"):
            load_taxonomy("mine", tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(good()))
    with pytest.raises(UserError, match="must equal the file name"):
        load_taxonomy("mine", tmp_path)


def test_from_labels() -> None:
    tree = from_labels("mine", ["b", "a"])
    assert [(label.id, label.name) for label in tree.labels] == [(0, "b"), (1, "a")]
    assert (tree.label_space, tree.label_kind, tuple(tree.experts)) == ("mine2", "single", REGIONS)
    none = from_labels("mine", [])
    assert (none.label_space, none.label_kind, none.labels) == ("unlabelled", "none", ())
    with pytest.raises(UserError, match="twice"):
        from_labels("mine", ["a", "a"])
