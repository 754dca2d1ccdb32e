"""`log` and `stats`: reading the journal."""

from __future__ import annotations

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core import RISKS, Json
from thor_policy.errors import JournalError
from thor_policy.journal.reader import Reader
from thor_policy.journal.verify import verify as verify_journal


@click.group(invoke_without_command=True)
@configured("state_dir")
@click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many."
)
@click.option("--outcome", help="Only this outcome.")
@click.option("--tier", help="Only this tier: rule, model or fallback.")
@click.option("--risk", type=click.Choice(RISKS), help="Only this risk.")
@click.option("--subject", help="Only this subject id.")
@click.option("--since", help="Only from this RFC 3339 time on.")
@click.option("--incorrect", is_flag=True, help="Only decisions that a scenario expected otherwise.")
@as_json
@click.pass_context
def log(
    ctx: click.Context,
    config: Config,
    limit: int,
    outcome: str | None,
    tier: str | None,
    risk: str | None,
    subject: str | None,
    since: str | None,
    incorrect: bool,
    as_json: bool,
) -> None:
    """List recorded decisions, newest first; `log verify` checks them."""
    if ctx.invoked_subcommand is not None:
        return
    with Reader(config.journal_path) as reader:
        rows = reader.decisions(
            limit=limit,
            outcome=outcome,
            tier=tier,
            risk=risk,
            subject=subject,
            since=since,
            correct=False if incorrect else None,
        )
    if as_json:
        render.as_json(rows)
        return
    render.table(("time", "subject", "action", "resource", "outcome", "by", "id"), [_brief(r) for r in rows])


@log.command()
@configured("state_dir")
@click.argument("decision_id", help="As `log` or a reply gives it.")
@as_json
def show(config: Config, decision_id: str, as_json: bool) -> None:
    """Show one decision with every column."""
    with Reader(config.journal_path) as reader:
        row = reader.get(decision_id)
    if row is None:
        raise JournalError(f"there is no decision {decision_id!r} in {config.journal_path}")
    if as_json:
        render.as_json(row)
    else:
        render.pairs(row)


@log.command()
@configured("state_dir")
@as_json
@click.pass_context
def verify(ctx: click.Context, config: Config, as_json: bool) -> None:
    """Check the hash chain and every projection; exit status 1 if something is wrong."""
    with render.counting("events checked") as count:
        verdict = verify_journal(config.journal_path, progress=count)
    if as_json:
        render.as_json({name: getattr(verdict, name) for name in (*verdict.__struct_fields__, "ok")})
    else:
        render.pairs(
            {
                "events": f"{verdict.events:,}",
                "chain": "ok" if verdict.chain_ok else "wrong",
                "projections": "ok" if verdict.projections_ok else "wrong",
                "problem": verdict.problem,
                "head": verdict.head,
            }
        )
    ctx.exit(0 if verdict.ok else 1)


@click.command()
@configured("state_dir")
@click.option("--since", help="Only from this RFC 3339 time on.")
@as_json
def stats(config: Config, since: str | None, as_json: bool) -> None:
    """Count recorded decisions by outcome, tier and risk; accuracy and latency."""
    with Reader(config.journal_path) as reader:
        figures = reader.statistics(since=since)
    if as_json:
        render.as_json(figures)
        return
    total = figures["decisions"]
    rows = [
        (kind, name, count, f"{100 * count / total:.0f} %")
        for kind, counts in (
            ("outcome", figures["outcomes"]),
            ("tier", figures["tiers"]),
            ("risk", figures["risks"]),
        )
        for name, count in counts.items()
    ]
    render.pairs({"decisions": total, "first": figures["first"], "last": figures["last"]})
    render.table(("by", "value", "decisions", "share"), rows)
    expected, score_ms = figures["expected"], figures["score_ms"]
    if expected:
        render.line(f"  right, where a scenario expected something: {figures['correct']} of {expected}")
    if score_ms:
        shown = ", ".join(f"{name} {ms:.0f}" for name, ms in score_ms.items())
        render.line(f"  milliseconds in the model: {shown}")


def _brief(row: dict[str, Json]) -> tuple[Json, ...]:
    return (
        row["timestamp"][11:19],
        f"{row['subject_type']}:{row['subject_id']}"[:16],
        row["action"][:14],
        f"{row['resource_type']}:{row['resource_id']}"[:16],
        row["outcome"] if "outcome" in row else row["decision"],
        row["tier"],
        row["decision_id"][-12:],
    )
