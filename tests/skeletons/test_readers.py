"""Every reader gives what the file says, to the last bit of float32, and names what is wrong with the others."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ClipError
from pipeline.skeletons import READERS, joints, read_skeletons
from tests.skeletons.files import joints as made_up
from tests.skeletons.files import ntu_text, write_ntu, write_pku, write_ucla

BODIES = ["72057594037931101", "72057594037931102", "9"]  # the first two are one float64


def test_ntu_bodies_come_and_go(tmp_path: Path) -> None:
    xyz = made_up(5, 3, 25)
    present = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    states = np.random.default_rng(1).integers(0, 3, xyz.shape[:3])
    path = tmp_path / "S001C001P001R001A050.skeleton"
    path.write_text(ntu_text(xyz, present, BODIES, states))
    found = read_skeletons(path, "ntu_skeleton")
    assert found.bodies == tuple(BODIES)
    assert (found.xyz.dtype, found.confidence.dtype) == (np.float32, np.float32)
    assert np.array_equal(found.xyz, np.where(present[..., None, None], xyz, 0))
    assert np.array_equal(found.confidence, np.where(present[..., None], states / 2, 0))


def test_pku_second_body_comes_later(tmp_path: Path) -> None:
    xyz = write_pku(tmp_path / "0002-L.txt", 8, second_from=5)
    found = read_skeletons(tmp_path / "0002-L.txt", "pku_line")
    assert np.array_equal(found.xyz, xyz)
    assert found.bodies == ("0", "1")
    assert found.confidence[:, 0].all()
    assert found.confidence[5:, 1].all()
    assert not found.confidence[:5, 1].any()


def test_ucla_both_ways(tmp_path: Path) -> None:
    xyz = write_ucla(tmp_path / "a01_s01_e00_v01.json", 7)
    np.savez(tmp_path / "all.npz", xyz=xyz, offsets=np.array([0, 7]), name=np.array(["a01_s01_e00_v01"]))
    one = read_skeletons(tmp_path / "a01_s01_e00_v01.json", "ucla_json")
    all_of_them = read_skeletons(tmp_path / "all.npz", "ucla_npz")
    for found in (one, all_of_them):
        assert found.xyz.tobytes() == xyz[:, None].tobytes()
        assert found.confidence.shape == (7, 1, 20)
        assert (found.confidence == 1).all()


def test_part_of_a_file(tmp_path: Path) -> None:
    """An interval holds the persons that are in it."""
    xyz = write_pku(tmp_path / "a.txt", 10, second_from=5)
    whole = read_skeletons(tmp_path / "a.txt", "pku_line")
    early, late = whole.part(0, 5, None), whole.part(4, None, None)
    assert early.bodies == ("0",)
    assert np.array_equal(early.xyz, xyz[:5, :1])
    assert late.bodies == ("0", "1")
    assert np.array_equal(late.xyz, xyz[4:])
    assert np.array_equal(whole.part(6, 9, "1").xyz, xyz[6:9, 1:])
    assert len(whole.part(8, 11, None).xyz) == 2  # one frame of rounding
    for arguments, code in (
        ((10, None, None), "E_END_PAST_EOF"),
        ((3, 12, None), "E_END_PAST_EOF"),
        ((0, 5, "1"), "E_SKEL_EMPTY"),
        ((0, 5, "7"), "E_SKEL_PERSON"),
    ):
        with pytest.raises(ClipError, match=code):
            whole.part(*arguments)


def test_nobody_in_any_frame(tmp_path: Path) -> None:
    (tmp_path / "a.skeleton").write_text("3\n0\n0\n0\n")
    found = read_skeletons(tmp_path / "a.skeleton", "ntu_skeleton")
    assert found.xyz.shape == (3, 0, 25, 3)
    with pytest.raises(ClipError, match="E_SKEL_EMPTY: nobody"):
        found.part(0, None, None)


def damaged(text: str) -> dict[str, tuple[str, str]]:
    """What happened to a .skeleton file -> (text, code)."""
    lines = text.splitlines()
    return {
        "cut short": ("\n".join(lines[: len(lines) // 2]), "E_SKEL_TRUNCATED"),
        "cut in a line": (text[:-60], "E_SKEL_TRUNCATED"),
        "empty of numbers": (" \n", "E_SKEL_TRUNCATED"),
        "20 joints": (text.replace("\n25\n", "\n20\n"), "E_SKEL_JOINTCOUNT"),
        "goes on": (text + "1 2 3\n", "E_SKEL_VALUE"),
        "no number": (text.replace("\n25\n", "\ntwenty\n"), "E_SKEL_VALUE"),
        "no coordinate": (_with_first_coordinate(lines, "x"), "E_SKEL_VALUE"),
        "not finite": (_with_first_coordinate(lines, "nan"), "E_SKEL_VALUE"),
        "too large": (_with_first_coordinate(lines, "1e300"), "E_SKEL_VALUE"),
        "state 3": (text.removesuffix("2\n") + "3\n", "E_SKEL_VALUE"),
        "minus one body": (text.replace("6\n1\n", "6\n-1\n", 1), "E_SKEL_VALUE"),
        "not ASCII": ("\u00e9" + text, "E_SKEL_VALUE"),
        "endless": ("999999999999999999\n" + text, "E_SKEL"),
    }


def _with_first_coordinate(lines: list[str], value: str) -> str:
    return "\n".join([*lines[:4], " ".join([value, *lines[4].split()[1:]]), *lines[5:]])


@pytest.mark.parametrize("what", damaged("6\n1\n1 2\n25\n1 2 3\n").keys())
def test_damaged_ntu_files(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.skeleton"
    write_ntu(path)
    text, code = damaged(path.read_text())[what]
    path.write_text(text, "utf-8")
    with pytest.raises(ClipError, match=code) as error:
        read_skeletons(path, "ntu_skeleton")
    assert str(path) in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize(
    ("form", "text", "code"),
    [
        ("pku_line", "", "E_EMPTY_FILE"),
        ("pku_line", "\n", "E_SKEL_TRUNCATED"),
        ("pku_line", "0 " * 149, "E_SKEL_TRUNCATED"),
        ("pku_line", "0 " * 149 + "\n" + "0 " * 150, "E_SKEL_JOINTCOUNT"),
        ("pku_line", "0 " * 149 + "x", "E_SKEL_VALUE"),
        ("ucla_json", "[]", "E_SKEL_VALUE"),
        ("ucla_json", "{", "E_SKEL_VALUE"),
        ("ucla_json", "[" * 100_000, "E_SKEL_VALUE"),
        ("ucla_json", '{"skeletons": []}', "E_SKEL_JOINTCOUNT"),
        ("ucla_json", '{"skeletons": [[[1, 2, 3]]]}', "E_SKEL_JOINTCOUNT"),
        ("ucla_json", '{"skeletons": [[[1, 2], [3]]]}', "E_SKEL_VALUE"),
        ("ucla_json", json.dumps({"skeletons": [[[1e300, 0, 0]] * 20]}), "E_SKEL_VALUE"),
        ("ucla_npz", "not a zip", "E_SKEL_VALUE"),
        ("imigue_csv", "0", "E_SKEL_FORMAT"),
        ("mmaction_pkl", "cos\nsystem\n", "E_PICKLE_UNSAFE"),
        (None, "0", "E_SKEL_FORMAT"),
    ],
)
def test_damaged_files_of_other_formats(tmp_path: Path, form: str | None, text: str, code: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ClipError, match=code):
        read_skeletons(path, form)


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", xyz=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "b.npz", other=np.zeros(3))
    for name, code in (("a", "E_PICKLE_UNSAFE"), ("b", "E_SKEL_VALUE")):
        with pytest.raises(ClipError, match=code):
            read_skeletons(tmp_path / f"{name}.npz", "ucla_npz")


def test_a_file_cannot_claim_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ntu(tmp_path / "a.skeleton", frames=4, bodies=("1", "2"))
    monkeypatch.setattr(joints, "MAX_POINTS", 4 * 2 * 25 - 1)
    with pytest.raises(ClipError, match=r"E_TOO_LARGE: .*4 frames x 2 persons"):
        read_skeletons(tmp_path / "a.skeleton", "ntu_skeleton")


def test_missing_files_have_the_codes_of_videos(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none", "E_MISSING_FILE"), (tmp_path, "E_NOT_A_FILE")):
        with pytest.raises(ClipError, match=code):
            read_skeletons(path, "ntu_skeleton")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(READERS)), st.binary(min_size=1, max_size=300))
def test_junk_is_a_clip_error(tmp_path: Path, form: str, data: bytes) -> None:
    path = tmp_path / "junk"
    path.write_bytes(data)
    try:
        found = read_skeletons(path, form)
    except ClipError:
        return
    assert np.isfinite(found.xyz).all()
