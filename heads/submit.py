"""prediction.csv of the MA-52 challenge (Codabench 9066): five actions and five body groups for every clip."""

import csv
import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from heads import runs
from heads.evaluate import restore
from heads.loop import predict, probabilities
from pipeline.errors import UserError
from pipeline.store.reader import Cache

TOP = 5
HEADER = ("vid", *(f"{kind}_pred_{i + 1}" for kind in ("action", "body") for i in range(TOP)))


def write_submission(
    run_dir: Path, cache: Path, out: Path, split: str = "test", device: str = "cpu"
) -> dict[str, Any]:
    """Predicts a split, labelled or not, and writes one row per clip of the clip table.

    Actions are the five best classes; body groups are theirs and may repeat, as in the official script. A clip
    without features still needs a row: it gets the five most frequent classes of train, and is counted.

    Returns:
        rows, without_features, csv.

    Raises:
        UserError: no run, a data set without coarse groups or with fewer than five classes, or clips whose
            file names repeat.
    """
    run = restore(run_dir, cache, split, unlabelled=True, device=device)
    coarse = np.array(run.info.coarse)
    if run.info.multi or len(coarse) < TOP or len(run.info.coarse_names) < 2:
        raise UserError(
            f"{run_dir}: a submission needs single labels, body groups and five classes, as MA-52 has"
        )
    logits = predict(run.model, run.data)["logits"]
    best = np.argsort(-probabilities(logits, multi=False), axis=1, kind="stable")[:, :TOP]
    known = dict(zip(run.data.clip_id, best, strict=True))
    info = runs.read_run(run_dir)[1]
    frequent = np.argsort(-np.array(info["clips_per_class"]["train"]), kind="stable")[:TOP]
    clips = [clip for clip in Cache(cache).dataset(info["dataset"]).clips if clip.split == split]
    rows = [
        (PurePosixPath(clip.media_path).name, *actions, *coarse[actions])
        for clip in clips
        for actions in [known.get(clip.clip_id, frequent)]
    ]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([HEADER, *sorted(rows)])
    check_submission(text.getvalue(), [PurePosixPath(clip.media_path).name for clip in clips], coarse)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text.getvalue(), encoding="utf-8", newline="")
    missing = sum(clip.clip_id not in known for clip in clips)
    return {"rows": len(rows), "without_features": missing, "csv": str(out)}


def check_submission(text: str, files: list[str], coarse: np.ndarray) -> None:
    """Holds a submission against the rules of the challenge.

    Raises:
        UserError: the header, the files or a row is wrong; the message names the line.
    """
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != HEADER:
        raise UserError(f"prediction.csv, line 1: must be {','.join(HEADER)}")
    found = [row[0] for row in rows[1:]]
    if len(set(found)) < len(found) or len(set(files)) < len(files):
        raise UserError(
            "prediction.csv: E_BASENAME_COLLISION file names repeat; each clip of the split needs a name of its own"
        )
    if set(found) != set(files):
        wrong = sorted(set(found) ^ set(files))[0]
        raise UserError(
            f"prediction.csv: {len(found)} rows for {len(files)} clips; first difference: {wrong}"
        )
    for number, row in enumerate(rows[1:], 2):
        actions = [int(v) if v.isdecimal() else -1 for v in row[1 : 1 + TOP]]
        if (
            len(row) != len(HEADER)
            or len(set(actions)) < TOP
            or not all(0 <= a < len(coarse) for a in actions)
        ):
            raise UserError(
                f"prediction.csv, line {number}: needs {TOP} distinct actions of 0..{len(coarse) - 1}"
            )
        if [str(coarse[a]) for a in actions] != row[1 + TOP :]:
            raise UserError(f"prediction.csv, line {number}: body groups are not those of the actions")
