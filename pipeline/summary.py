"""What `bmoe-cache dataset` says about datasets: those described in manifests/datasets, and those imported."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.clip import Clip, shown
from pipeline.manifest import Manifest
from pipeline.media import Media
from pipeline.taxonomy import Expected, Range, Taxonomy

SPLIT_ORDER = ("train", "val", "test", "unsplit")


# ---- described datasets -----------------------------------------------------------------------------------


def overview(taxonomy: Taxonomy) -> dict[str, Any]:
    """One line of `dataset list`."""
    rows = next((profile.rows for profile in taxonomy.profiles.values()), {})
    return {
        "name": taxonomy.name,
        "title": taxonomy.title or taxonomy.name,
        "classes": len(taxonomy.labels),
        "labels": taxonomy.label_kind,
        "rows": {split: _said(count) for split, count in rows.items()},
        "licence": taxonomy.licence.tag,
    }


def overview_text(records: Sequence[Mapping[str, Any]], adapters: Sequence[str]) -> str:
    """`dataset list` as a table."""
    lines = [f"{'name':<16} {'classes':>7}  {'rows':<40} {'licence':<20} title"]
    for record in records:
        rows = " / ".join(f"{split} {count}" for split, count in record["rows"].items()) or "-"
        kind = "" if record["labels"] == "single" else f", {record['labels']}-label"
        line = f"{record['name']:<16} {record['classes']:>7}  {rows:<40} {record['licence']:<20}"
        lines.append(f"{line} {record['title']}{kind}")
    return "\n".join([*lines, f"for anything else: --as {'|'.join(adapters)}"])


def description(taxonomy: Taxonomy) -> dict[str, Any]:
    """All of `dataset show`, the labels with their groups and the experts that learn them."""
    record = taxonomy.model_dump(mode="json")
    record["labels"] = [
        {
            "id": label.id,
            "name": label.name,
            "group": taxonomy.coarse[label.coarse].name,
            "experts": [region for region, owned in taxonomy.experts.items() if label.id in owned],
        }
        for label in taxonomy.labels
    ]
    return record


def description_text(taxonomy: Taxonomy) -> str:
    """`dataset show` for people."""
    record = description(taxonomy)
    lines = [
        f"{taxonomy.title or taxonomy.name}: {len(taxonomy.labels)} classes ({taxonomy.label_kind}-label)",
        f"import   bmoe-cache dataset import {taxonomy.name} --root DIR --cache CACHE",
        f"licence  {taxonomy.licence.tag}: {taxonomy.licence.name} {taxonomy.licence.url}".rstrip(),
        f"page     {taxonomy.link}",
        "tree",
        *(f"  {line}" for line in taxonomy.tree.splitlines()),
        "options (--set OPTION=VALUE)",
        *(f"  {name}: {value}" for name, value in taxonomy.options.items()),
        "official counts",
    ]
    for protocol, profile in taxonomy.profiles.items():
        for what, expected in (
            ("rows", profile.rows),
            ("videos", profile.videos),
            ("subjects", profile.subjects),
        ):
            if expected:
                counts = ", ".join(f"{split} {_said(count)}" for split, count in expected.items())
                lines.append(f"  {protocol} {what}: {counts}")
    lines.append("classes")
    for label in record["labels"]:
        owners = f"  [{', '.join(label['experts'])}]" if label["experts"] else ""
        lines.append(f"  {label['id']:>3}  {label['name']}  ({label['group']}){owners}")
    for variant in ("strict", *taxonomy.expert_variants):
        sizes = ", ".join(f"{region} {len(owned)}" for region, owned in taxonomy.experts_of(variant).items())
        lines.append(f"expert classes, {variant}: {sizes}")
    lines += ["notes", *(f"  - {note}" for note in taxonomy.notes), f"cite     {taxonomy.citation}"]
    return "\n".join(lines)


def _said(expected: Expected) -> str:
    if isinstance(expected, Range):
        return f"{expected.least}-{expected.most}"
    return "|".join(map(str, expected)) if isinstance(expected, tuple) else str(expected)


# ---- imported datasets ------------------------------------------------------------------------------------


def rows_by_split(clips: Sequence[Clip]) -> dict[str, dict[str, int]]:
    """Split, in the order train, val, test, unsplit -> clips, labelled, videos, subjects, groups."""
    parts: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        parts[clip.split].append(clip)
    order = [*(split for split in SPLIT_ORDER if split in parts), *sorted(parts.keys() - set(SPLIT_ORDER))]
    return {
        split: {
            "clips": len(parts[split]),
            "labelled": sum(clip.label_ids is not None for clip in parts[split]),
            "videos": len({clip.media_path for clip in parts[split]}),
            "subjects": len({clip.subject_id for clip in parts[split]} - {None}),
            "groups": len({clip.group_id for clip in parts[split]} - {None}),
        }
        for split in order
    }


def rows_text(splits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """rows_by_split as the lines of a table."""
    columns = ("clips", "labelled", "videos", "subjects", "groups")
    lines = [f"{'split':<8}" + "".join(f"{name:>10}" for name in columns)]
    lines += [
        f"{split:<8}" + "".join(f"{row[name]:>10}" for name in columns) for split, row in splits.items()
    ]
    return lines


def statistics(manifest: Manifest, media: Mapping[str, Media]) -> dict[str, Any]:
    """Rows, classes, experts and lengths of an imported dataset.

    Lengths count frames of the clips whose interval is known, from the manifest or the media table.
    """
    taxonomy = manifest.taxonomy
    splits = rows_by_split(manifest.clips)
    held = {split: Counter[int]() for split in splits}
    for clip in manifest.clips:
        held[clip.split].update(clip.label_ids or ())
    variants = {variant: taxonomy.experts_of(variant) for variant in ("strict", *taxonomy.expert_variants)}
    lengths = [length for clip in manifest.clips if (length := _frames(clip, media)) is not None]
    record: dict[str, Any] = {
        "dataset": manifest.dataset,
        "clips": len(manifest.clips),
        "digest": manifest.digest,
        "splits": splits,
        "classes": [
            {"id": label.id, "name": label.name, **{split: held[split][label.id] for split in splits}}
            for label in taxonomy.labels
        ],
        "experts": {
            variant: {
                region: {split: sum(held[split][label] for label in owned) for split in splits}
                for region, owned in experts.items()
            }
            for variant, experts in variants.items()
        },
        "modalities": dict(Counter(clip.modality for clip in manifest.clips)),
        "frames": None,
    }
    if lengths:
        low, middle, high = (int(value) for value in np.percentile(lengths, (0, 50, 100)))
        record["frames"] = {"clips": len(lengths), "least": low, "median": middle, "most": high}
    return record


def _frames(clip: Clip, media: Mapping[str, Media]) -> int | None:
    end = clip.end_frame
    if end is None:
        file = media.get(clip.media_path)
        end = file.n_frames if file else clip.n_frames
    return None if end is None else end - (clip.start_frame or 0)


def statistics_text(record: Mapping[str, Any]) -> str:
    """`dataset stats` for people."""
    splits = record["splits"]
    lines = [
        f"{record['dataset']}: {record['clips']} clips, rows {record['digest'][:16]}",
        *rows_text(splits),
    ]
    if record["frames"]:
        frames = record["frames"]
        lines.append(
            f"frames of {frames['clips']} clips: {frames['least']} to {frames['most']}, median {frames['median']}"
        )
    lines.append(f"{'class':<40}" + "".join(f"{split:>9}" for split in splits))
    lines += [
        f"{row['id']:>3} {shown(row['name']):<36}" + "".join(f"{row[split]:>9}" for split in splits)
        for row in record["classes"]
    ]
    for variant, experts in record["experts"].items():
        if any(any(row.values()) for row in experts.values()):
            lines.append(f"{f'rows of experts, {variant}':<40}" + "".join(f"{split:>9}" for split in splits))
            lines += [
                f"    {region:<36}" + "".join(f"{row[split]:>9}" for split in splits)
                for region, row in experts.items()
            ]
    return "\n".join(lines)
