"""`stats`: count recorded decisions."""

from __future__ import annotations

from collections.abc import Sequence

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, with_tests
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.journal import statistics


@click.command()
@configured("state_dir")
@click.option("--since", help="Only decisions since this RFC 3339 time.")
@click.option(
    "--by",
    type=click.Choice(sorted(statistics.DIMENSIONS)),
    help="One row for each actor, model, pack or type.",
)
@with_tests
@as_json
def stats(config: Config, since: str | None, by: str | None, tests: bool, as_json: bool) -> None:
    """Count recorded decisions: outcomes, accuracy, confidence, latency, decisions by hour.

    Decisions of tests are left out and counted apart, except with --tests. So are claims: what callers stated
    without a role that lets it count (setting count_from).
    """
    from thor_policy.daemon import journal_access

    if by is not None:
        with journal_access.open_reader(config) as reader, render.working("reading the decisions"):
            rows = statistics.breakdown(reader, by, since=since, tests=tests)
        if as_json:
            render.as_json(rows)
        else:
            _show_breakdown(by, rows)
        return
    with journal_access.open_reader(config) as reader, render.working("reading the decisions"):
        figures = statistics.statistics(reader, since=since, tests=tests)
        figures["left_out"] = 0 if tests else statistics.count_of_tests(reader, since=since)
        figures["claimed"] = statistics.claims(reader, since=since)
        figures["quarantined"] = statistics.quarantined(reader, since=since)
        confidence = statistics.confidence(reader, since=since, tests=tests)
        latency = statistics.latency(reader, since=since, tests=tests)
        hourly = statistics.hourly(reader, since=since, tests=tests)
    if as_json:
        render.as_json(
            figures
            | {"confidence": confidence, "latency_ms": latency, "hourly": [list(hour) for hour in hourly]}
        )
        return
    _show_counts(figures)
    if hourly:
        render.line(f"  by hour  {render.sparkline([count for _, count in hourly[-60:]])}")
    if latency:
        rows_of = [(r["model"], r["decisions"], r["p50"], r["p90"], r["p99"]) for r in latency]
        render.table(("model", "decisions", "p50 ms", "p90 ms", "p99 ms"), rows_of, clipped=(0,))
    if any(row["judged"] for row in confidence):
        render.table(
            ("confidence from", "decisions", "judged", "right"),
            [
                (row["from"], row["decisions"], row["judged"], _share(row["correct"], row["judged"]))
                for row in confidence
            ],
        )


def _show_counts(figures: dict[str, Json]) -> None:
    total, left_out = figures["decisions"], figures["left_out"]
    held = figures["quarantined"]
    claims = ", ".join(f"{count:,} {name}" for name, count in figures["claimed"].items() if count)
    shares = [
        (kind, name or "-", count, _share(count, total))
        for kind in ("outcomes", "tiers", "risks", "turned_out")
        for name, count in figures[kind].items()
    ]
    render.pairs(
        {
            "decisions": total,
            "first": figures["first"],
            "last": figures["last"],
            "reviewed": figures["reviewed"],
            "value": figures["value"],
        }
        | ({"lifted": f"{figures['lifted']:,} by approvals"} if figures["lifted"] else {})
        | ({"left out": f"{left_out:,} decisions of tests; --tests counts them"} if left_out else {})
        | ({"in quarantine": f"{held:,}; not counted (trace quarantine list)"} if held else {})
        | ({"claimed": f"{claims}; not counted (setting count_from)"} if claims else {})
    )
    render.table(("by", "value", "decisions", "share"), shares, clipped=(1,))
    if figures["expected"]:
        render.line(f"  right: {figures['correct']} of {figures['expected']} with a known right outcome")
    if figures["score_ms"]:
        percentiles = ", ".join(f"{name} {ms:.0f}" for name, ms in figures["score_ms"].items())
        render.line(f"  model time in ms: {percentiles}")


def _show_breakdown(by: str, rows: Sequence[dict[str, Json]]) -> None:
    render.table(
        (by, "total", "allowed", "right", "worked", "value", "ms", "conf."),
        [
            (
                row[by] or "-",
                row["total"],
                row["allowed"],
                f"{row['correct']}/{row['expected']}" if row["expected"] else None,
                f"{row['successful']}/{row['successful'] + row['failed']}"
                if row["success_rate"] is not None
                else None,
                row["total_value"],
                row["average_latency_ms"],
                row["average_confidence"],
            )
            for row in rows
        ],
        clipped=(0,),
    )


def _share(part: int, whole: int) -> str | None:
    return f"{100 * part / whole:.0f} %" if whole else None
