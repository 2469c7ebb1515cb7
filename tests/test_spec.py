import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spec import MotionSpec, RegionsSpec, SegmentSpec, SemanticSpec, canonical_json, digest
from tests.specs import pipeline_spec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_digest_ignores_the_order_of_entries(value: dict) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_canonical_json_refuses_numbers_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})


def test_every_option_of_every_stage_changes_its_key() -> None:
    for spec in pipeline_spec().stages().values():
        for field in dataclasses.fields(spec):
            value = getattr(spec, field.name)
            if isinstance(value, bool):
                other: object = not value
            elif isinstance(value, int | float):
                other = value + 1
            elif isinstance(value, str):
                other = value + "x"
            elif isinstance(value, tuple):
                other = value[:-1]
            else:
                other = {**(value or {}), "more": "x"}
            assert dataclasses.replace(spec, **{field.name: other}).key != spec.key, field.name


def test_version_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (SegmentSpec, RegionsSpec, SemanticSpec, MotionSpec):
        spec = next(spec for spec in pipeline_spec().stages().values() if isinstance(spec, kind))
        before = spec.key
        monkeypatch.setattr(kind, "version", 99)
        assert spec.key != before


def test_a_region_option_changes_regions_and_semantic_only() -> None:
    before, after = pipeline_spec(), pipeline_spec(padding=0.2)
    changed = [name for name in before.stages() if before.stages()[name].key != after.stages()[name].key]
    assert changed == ["regions", "semantic"]
