"""`export`: corrections as examples and as training lines."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.daemon import loading
from thor_policy.journal.reader import Reader
from thor_policy.learning import export as exporting


@click.command()
@configured("state_dir", "pack")
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write; it must be missing or empty.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([*exporting.FORMATS, "all"]),
    default="all",
    show_default=True,
    help="Files to write.",
)
@click.option(
    "--min-corrections",
    "least",
    type=click.IntRange(exporting.LEAST),
    default=exporting.LEAST,
    show_default=True,
    help="Least corrections for an export; can only be raised.",
)
@as_json
def export(config: Config, directory: Path, form: str, least: int, as_json: bool) -> None:
    """Export reviewers' corrections: few-shot examples, training lines, a report.

    \b
    The files hold texts of requests and names of reviewers. A later `log erase`
    does not change them.
    """
    chosen = [name for name in exporting.FORMATS if form in (name, "all")]
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with Reader(config.journal_path) as reader, render.counting("reviews read") as progress:
        done = exporting.export(
            reader,
            loading.load_pack(config),
            directory,
            formats=chosen,
            least=least,
            at=at,
            progress=progress,
        )
    if as_json:
        render.as_json(msgspec.to_builtins(done))
        return
    render.pairs(
        {
            "corrections": done.corrections,
            "for training": done.train,
            "held out": done.test,
            "groups of near-duplicates": f"{done.groups}, the largest of {done.largest_group}",
            **{f"left out, {reason}": count for reason, count in done.left_out.items()},
        }
    )
    render.table(("file", "lines"), list(done.files.items()))
    render.line(f"and report.json, report.html in {directory}")
