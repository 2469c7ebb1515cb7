import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.demo.motions import ACTIONS, IDLE, perform
from pipeline.demo.people import make_person
from pipeline.demo.truth import box_ious, compare_regions
from pipeline.demo.world import ClipPlan, plan_world, render_clip, render_world, true_parts
from pipeline.presets import load_recipe
from pipeline.regions import load_parts
from pipeline.taxonomy import load_taxonomy


def test_the_world_has_what_it_promises() -> None:
    plans = plan_world()
    train = [plan for plan in plans if plan.split == "train"]
    val = [plan for plan in plans if plan.split == "val"]
    assert (len(train), len(val)) == (240, 120)
    assert not {plan.person for plan in train} & {plan.person for plan in val}
    for split, count in ((train, 20), (val, 10)):
        labels = [plan.label for plan in split]
        assert {labels.count(label) for label in ACTIONS} == {count}
        people = {plan.person: {p.label for p in split if p.person == plan.person} for plan in split}
        assert min(len(classes) for classes in people.values()) == 6  # nobody stands for one class


def test_classes_are_those_of_the_dataset_description() -> None:
    taxonomy = load_taxonomy("demo")
    assert taxonomy is not None
    assert [label.name for label in taxonomy.labels] == list(ACTIONS)
    coarse = [label.coarse for label in taxonomy.labels]
    assert all(coarse.count(region) >= 2 for region in range(4))
    assert sum(group >= 4 for group in coarse) == 2  # need two regions


def test_rendering_is_a_function_of_the_plan() -> None:
    plan = ClipPlan("x", "train", "waving", 3, 7)
    first, second = render_clip(plan), render_clip(plan)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    other = render_clip(ClipPlan("x", "train", "waving", 3, 7, seed=53))
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_moves_its_own_channels_most(action: str) -> None:
    own = {
        "shaking body": {"lean", "root_x"}, "shrugging": {"shrug_l", "shrug_r"}, "nodding": {"pitch"},
        "shaking head": {"yaw"}, "tilting head": {"roll"}, "shaking legs": {"knee_l", "knee_r"},
        "stretching feet": {"shin_l", "shin_r"},
    }  # fmt: skip
    hands = {"hand_l_x", "hand_l_y", "hand_r_x", "hand_r_y"}
    spread = dict.fromkeys(IDLE, 0.0)
    for seed in range(5):
        pose = perform(action, np.random.default_rng(seed), 60)
        for name, drift in IDLE.items():
            spread[name] += float(np.ptp(pose[name])) / drift  # in units of what happens when nothing does
    assert max(spread, key=lambda name: spread[name]) in own.get(action, hands)


def test_labels_are_sapiens_classes_and_legs_hide_behind_desks() -> None:
    seen = set()
    hidden = 0
    legs = load_parts().regions["lower_limb"]
    for index in range(24):
        _, labels, _ = render_clip(ClipPlan("x", "train", list(ACTIONS)[index % 12], index, index))
        seen |= set(np.unique(labels).tolist())
        hidden += not np.isin(labels, legs).any()
    assert seen <= set(range(28))
    assert {0, 2, 3, 5, 6, 8, 12, 14, 15, 17, 21, 22} <= seen
    assert hidden >= 1


def test_people_differ() -> None:
    people = [make_person(np.random.default_rng(i)) for i in range(40)]
    assert {person.sleeves for person in people} == {"long", "short", "none"}
    assert {person.legwear for person in people} == {"trousers", "shorts", "skirt"}
    assert len({person.shirt for person in people}) > 30


def test_files_of_the_world(small_world: Path) -> None:
    with (small_world / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert all((small_world / row["video_path"]).is_file() for row in rows)
    truth = true_parts(small_world, rows[0]["video_path"])
    assert truth is not None
    assert truth.shape[1:] == (192, 160)
    assert 40 <= len(truth) <= 75


def test_finished_world_is_left_alone_and_a_torn_one_is_redrawn(tmp_path: Path) -> None:
    plans = plan_world(per_class={"val": 1})[:2]
    assert render_world(tmp_path, plans) == 2
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")}
    assert render_world(tmp_path, plans) == 0
    (tmp_path / "world.json").unlink()  # as after a kill: the marker is written last
    next(iter(before)).write_bytes(b"torn")
    assert render_world(tmp_path, plans) == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")} == before


def test_box_iou() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    b = np.array([[1, 1, 3, 3], [0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    assert np.allclose(box_ious(a, b), [1 / 7, 1, 0])


def test_regions_agree_with_the_truth_on_new_people(built_cache: Path) -> None:
    """The demo measures 120 clips; these 6 only show that nothing is badly off."""
    agreement = compare_regions(built_cache, load_recipe("demo").spec)
    assert agreement.clips == 6
    assert agreement.region_miou > 0.75
    assert agreement.box_iou > 0.75
