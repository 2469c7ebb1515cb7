"""Commands about a cache as such: what it holds, whether it is whole, what can go, how two stages differ."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.common import Cache, Dataset, Json, listener, show


def ls(cache: Cache, as_json: Json = False) -> None:
    """List the stages of a cache: clips, size, and the builds that use them."""
    from pipeline.report import list_stages
    from pipeline.store.workplace import view

    stages = list_stages(view(cache))
    lines = [
        f"{s['stage']:<9} {s['key'][:16]}  {s['clips']:>7} clips {s['rows']:>9} rows {s['bytes'] / 1e6:>10.1f} MB  "
        f"{s['created']}  {', '.join(s['used_by']) or 'used by no build'}"
        for s in stages
    ]
    total = sum(s["bytes"] for s in stages)
    lines.append(f"{len(stages)} stages, {total / 1e6:.1f} MB")
    show(as_json, {"stages": stages, "bytes": total}, "\n".join(lines))


def failures(
    dataset: Dataset,
    cache: Cache,
    retry: Annotated[bool, typer.Option("--retry", help="Let the next build try these clips again.")] = False,
    as_json: Json = False,
) -> None:
    """List the clips in quarantine and why; --retry lets the next build try them again."""
    from pipeline.report import describe
    from pipeline.report import retry as retry_clips
    from pipeline.store.workplace import view, workplace

    report = describe(view(cache), dataset)
    lines = [
        f"{q['code']:<16} {q['clip_id']} ({q['stage']}, {q['decoder'] or 'no decoder'}, {q['attempts']} attempts): "
        f"{q['message']}"
        for q in sorted(report["quarantine"], key=lambda q: (q["code"], q["clip_id"]))
    ]
    counts = ", ".join(f"{n} {code}" for code, n in report["codes"].items())
    lines.append(f"{dataset}: {len(report['quarantine'])} clips in quarantine{counts and ': '}{counts}")
    retried = 0
    if retry and report["preset"]:
        with workplace(cache) as folder:
            retried = retry_clips(folder, dataset)
    if retry:
        lines.append(f"{retried} clips are tried again by the next build")
    record = {
        "dataset": dataset,
        "quarantine": report["quarantine"],
        "codes": report["codes"],
        "retried": retried,
    }
    show(as_json, record, "\n".join(lines))


def verify(
    cache: Cache,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damage aside, so that the next build computes it again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every byte of a cache. Exit status 1 when something is wrong and not repaired."""
    from pipeline.store.verify import verify as verify_cache

    report = verify_cache(cache, repair, listener(as_json))
    lines = [
        f"{problem.kind:<8} {problem.path}: {problem.reason}"
        + (f" -> {report.repaired[i]}" if i in report.repaired else "")
        for i, problem in enumerate(report.problems)
    ]
    word = "sound" if report.sound else "NOT sound"
    lines.append(f"{report.files} files, {report.bytes / 1e6:.1f} MB: {word}")
    show(as_json, report.to_json(), "\n".join(lines))
    raise typer.Exit(0 if report.sound else 1)


def gc(
    cache: Cache,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is touched.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a cache can do without: stages no build reaches, leftovers, set-aside files. --yes deletes them."""
    from dataclasses import asdict

    from pipeline.store.gc import find_waste, remove

    waste = find_waste(cache)
    if yes:
        for item in waste:
            remove(cache, item)
    total = sum(item.bytes for item in waste)
    lines = [f"{item.kind:<9} {item.bytes / 1e6:>10.1f} MB  {item.path}  ({item.reason})" for item in waste]
    lines.append(
        f"{total / 1e6:.1f} MB {'deleted' if yes else 'could go; --yes deletes them'}"
        if waste
        else "nothing to delete"
    )
    show(
        as_json, {"waste": [asdict(item) for item in waste], "bytes": total, "deleted": yes}, "\n".join(lines)
    )


def diff(
    first: Annotated[
        Path, typer.Argument(help="Folder of a stage: CACHE/stages/STAGE/KEY, see `ls --json`.")
    ],
    second: Annotated[Path, typer.Argument(help="Folder of another, in this cache or in another.")],
    as_json: Json = False,
) -> None:
    """Compare the numbers of two stages, clip by clip."""
    from pipeline.store.diff import diff as diff_stages

    record = diff_stages(first, second, listener(as_json))
    lines = [f"declared otherwise: {line}" for line in record["facts"]]
    clips = record["clips"]
    lines.append(
        f"{clips['both']} clips in both, {len(clips['only_first'])} only in the first, "
        f"{len(clips['only_second'])} only in the second, {len(clips['other_rows'])} with other rows"
    )
    for name, found in record["arrays"].items():
        cells = ", ".join(f"{key} {value:.6g}" for key, value in found.items() if value is not None)
        lines.append(f"{name:<10} {cells}")
    show(as_json, record, "\n".join(lines))


def push(
    cache: Cache,
    url: Annotated[
        str, typer.Argument(help="s3://bucket/cache, or file:///folder that a web server serves.")
    ],
    as_json: Json = False,
) -> None:
    """Copy to a URL what it lacks of this cache: whole shards, checked. Run it again to go on."""
    from pipeline.store.remote import push as push_cache

    record = push_cache(cache, url, listener(as_json))
    text = f"{record['shards']} shards copied; {url} holds {record['files']} files, {record['bytes'] / 1e6:.1f} MB"
    show(as_json, record, text)


def pull(
    url: Annotated[str, typer.Argument(help="s3://bucket/cache, or https://host/cache.")],
    cache: Cache,
    as_json: Json = False,
) -> None:
    """Copy from a URL what this cache lacks of it: whole shards, checked. Run it again to go on."""
    from pipeline.store.remote import pull as pull_cache

    record = pull_cache(url, cache, listener(as_json))
    show(as_json, record, f"{record['shards']} shards copied to {cache}")
