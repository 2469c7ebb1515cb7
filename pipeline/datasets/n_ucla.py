"""Adapter `n_ucla`: skeletons of Northwestern-UCLA, one JSON a sequence, or all sequences in one .npz.

A name aAA_sSS_eEE_vVV says action, subject, execution and view; the views of option `train_views` train, the others
test. In the .npz (skeleton_format ucla_npz) a clip is the rows start_frame to end_frame - 1 of its array `xyz`.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from pipeline.datasets._source import Row, Source
from pipeline.errors import ClipError, UserError

_NAME = re.compile(r"a([0-9]{2})_s([0-9]{2})_e([0-9]{2})_v([0-9]{2})")


def rows(source: Source) -> Iterable[Row]:
    """Rows by sequence."""
    files = {PurePosixPath(path).stem: path for path in sorted(source.files(".json"))}
    named = {name: path for name, path in files.items() if _NAME.fullmatch(name)}
    packed = source.listed(".", ".npz")
    if named:
        for name, path in named.items():
            if row := _row(source, name):
                yield {**row, "skeleton_path": path, "skeleton_format": "ucla_json"}
    elif len(packed) == 1:
        for name, start, end in _sequences(packed[0]):
            if row := _row(source, name):
                clip = f"{source.name}:{row['split']}:{name}"
                place = {"skeleton_path": source.shown_path(packed[0]), "skeleton_format": "ucla_npz"}
                yield {**row, **place, "start_frame": start, "end_frame": end, "clip_id": clip}
    else:
        raise source.lost(f"no aAA_sSS_eEE_vVV.json below it and {len(packed)} *.npz at its top, want one")


def _row(source: Source, name: str) -> Row | None:
    match = _NAME.fullmatch(name)
    actions = source.options["actions"]
    if match is None or int(match[1]) not in actions:
        source.refuse(name, f"no name of the dataset, whose actions are {', '.join(map(str, actions))}")
        return None
    _, subject, execution, view = match.groups()
    return {
        "modality": "skeleton",
        "label_ids": (actions.index(int(match[1])),),
        "split": "train" if int(view) in source.options["train_views"] else "test",
        "subject_id": f"s{subject}",
        "camera_id": f"v{view}",
        "group_id": f"a{match[1]}_s{subject}_e{execution}",
    }


def _sequences(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, first row, row after the last) of every sequence."""
    from pipeline.skeletons.ucla import arrays_of

    try:
        xyz, starts, written = arrays_of(path, "xyz", "offsets", "name")
        names, offsets, rows_in_all = [str(name) for name in written], [int(one) for one in starts], len(xyz)
    except ClipError as error:
        raise UserError(f"{path}: {error}; restore the file") from None
    except (TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: {reason}; restore the file") from None
    if len(offsets) != len(names) + 1 or offsets != sorted(set(offsets)) or offsets[-1] != rows_in_all:
        raise UserError(
            f"{path}: offsets must rise from sequence to sequence up to {rows_in_all}; restore the file"
        )
    yield from zip(names, offsets, offsets[1:], strict=False)
