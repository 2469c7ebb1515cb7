"""Adapter `ntu`: NTU RGB+D 60 and 120, videos and skeletons anywhere below the root, split by one of the protocols.

A sample's name says everything: S setup, C camera, P performer, R replication, A action; label = action - 1. A sample
with both a video and a skeleton file is one clip. Samples whose skeletons are missing or wrong are named in lists of
the dataset's repository; where such a list is at the root, the skeletons it names are not used.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.datasets._source import Row, Source

_NAME = re.compile(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})")
_KEYS = {"xset": 1, "xview": 2, "xsub": 3}  # which number of the name a protocol splits by
_FPS = 30


def rows(source: Source) -> Iterable[Row]:
    """Rows by sample name; samples of classes beyond the dataset's are left out."""
    assert source.taxonomy is not None
    trains = source.options["train"]
    protocol = source.choice("protocol", tuple(trains))
    train = set(trains[protocol])
    videos, skeletons = (
        _files(source, ("_rgb.avi", "_rgb.mp4", ".avi", ".mp4")),
        _files(source, (".skeleton",)),
    )
    for name in _missing(source) & skeletons.keys():
        del skeletons[name]
    if not videos and not skeletons:
        raise source.lost("no S...C...P...R...A..._rgb.avi or .skeleton found below it")
    for name in sorted(videos.keys() | skeletons.keys()):
        match = _NAME.fullmatch(name)
        assert match is not None
        setup, camera, performer, replication, action = (int(part) for part in match.groups())
        if action > len(source.taxonomy.labels):
            continue
        video, skeleton = videos.get(name), skeletons.get(name)
        split = "train" if int(match[_KEYS[protocol]]) in train else "test"
        yield {
            "clip_id": f"{source.name}:{split}:{name}",
            "video_path": video,
            "skeleton_path": skeleton,
            "skeleton_format": "ntu_skeleton" if skeleton else None,
            "modality": "rgb" if video else "skeleton",
            "label_ids": (action - 1,),
            "split": split,
            "protocol": protocol,
            "subject_id": f"P{performer:03d}",
            "camera_id": f"C{camera:03d}",
            "group_id": f"S{setup:03d}P{performer:03d}R{replication:03d}A{action:03d}",
            "fps_num": _FPS,
            "fps_den": 1,
        }


def _files(source: Source, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Sample name -> relative path."""
    found = {}
    for path in sorted(source.files(*suffixes), reverse=True):
        name = PurePosixPath(path).name[:20]
        if _NAME.fullmatch(name):
            found[name] = path
    return found


def _missing(source: Source) -> set[str]:
    """Sample names of the lists of missing skeletons at the root."""
    names = set()
    for path in source.listed(".", ".txt"):
        if "missing" not in path.name:
            continue
        listed = {line.removesuffix(".skeleton") for _, line in source.lines(path)}
        samples = {name for name in listed if _NAME.fullmatch(name)}
        source.warn(
            "W_SKEL_LISTED_MISSING", path.name, f"{len(samples)} samples named; their skeletons are not used"
        )
        names |= samples
    return names
