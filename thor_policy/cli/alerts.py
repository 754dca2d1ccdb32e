"""`alerts`: which alerts were raised and cleared."""

from __future__ import annotations

import click

from thor_policy.cli import render
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.journal.alert_queries import alerts as read_alerts
from thor_policy.journal.reader import ENDING_CHARS


@click.command()
@configured("state_dir")
@click.option("--raised", is_flag=True, help="Only those that are raised now.")
@click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Most alerts."
)
@as_json
def alerts(config: Config, raised: bool, limit: int, as_json: bool) -> None:
    """List alerts of success rates, volume and drift, newest first.

    The interval is that of the share of successes (95 %), or the number of decisions that is usual.
    """
    with open_current(config) as reader, reader.snapshot() as connection:
        rows = read_alerts(connection, limit, only_raised=raised)
    if as_json:
        render.as_json(rows)
        return
    render.table(
        ("raised", "cleared", "kind", "of", "value", "interval", "id"),
        [
            (
                row["raised"][5:16].replace("T", " "),
                (row["cleared"] or "")[5:16].replace("T", " "),
                row["kind"],
                " ".join(filter(None, (row["of"], row["name"]))),
                row["value"],
                f"{row['low']:g} to {row['high']:g}" if row["high"] else "",
                row["id"][-ENDING_CHARS:],
            )
            for row in rows
        ],
        gap=1,
        clipped=(3,),
    )
