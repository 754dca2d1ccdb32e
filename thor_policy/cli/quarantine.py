"""`trace quarantine`: traces that count nowhere yet, what they lack, and their completion."""

from __future__ import annotations

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core import records, strict_json
from thor_policy.core.requests import Json
from thor_policy.core.traces import REQUIREMENTS, cure_of
from thor_policy.journal.reader import ENDING_CHARS, Reader

_decision_id = click.argument(
    "decision_id", help="The id, as `log` or a reply shows it, or at least its last 8 characters."
)


@click.group()
def quarantine() -> None:
    """List, show and complete traces that lack what their type requires, and so count nowhere."""


@quarantine.command("list")
@configured("state_dir")
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Most traces to list.",
)
@click.option("--before", metavar="ID", help="List traces before this one: the next page.")
@as_json
def list_(config: Config, limit: int, before: str | None, as_json: bool) -> None:
    """List traces in quarantine, newest first, with what each lacks."""
    with Reader(config.journal_path) as reader:
        rows = reader.quarantined(limit, before=None if before is None else reader.resolve(before))
    if as_json:
        render.as_json(rows)
        return
    render.table(
        ("time", "type", "entity", "outcome", "by", "lacks", "id"),
        [
            (
                row["timestamp"][:19],
                row["decision_type"],
                row["entity"] or "-",
                row["decision"],
                row["actor"] or "(erased)",
                ", ".join(row["lacks"]),
                row["decision_id"][-ENDING_CHARS:],
            )
            for row in rows
        ],
        clipped=(2, 3, 4),
    )


@quarantine.command()
@configured("state_dir")
@_decision_id
@as_json
def show(config: Config, decision_id: str, as_json: bool) -> None:
    """Show what a trace must have, what it lacks, and which record adds it."""
    with Reader(config.journal_path) as reader:
        row, _ = reader.recorded(reader.resolve(decision_id))
    lacks = row["lacks"] or []
    if as_json:
        missing = {name: {"meaning": _meaning(name), "added_by": cure_of(name)} for name in lacks}
        render.as_json({"decision": row, "lacks": missing})
        return
    render.pairs(
        {
            "id": row["decision_id"],
            "type": row["decision_type"],
            "outcome": row["decision"],
            "must have": ", ".join(row["required"] or ()) or "nothing",
            "counts": "no: in quarantine" if lacks else "yes",
        }
    )
    if lacks:
        render.table(
            ("lacks", "meaning", "added by"), [(name, _meaning(name), cure_of(name)) for name in lacks]
        )


@quarantine.command()
@configured("state_dir", "endpoint", "key")
@_decision_id
@click.argument(
    "values", nargs=-1, required=True, metavar="NAME=VALUE...", help="Members that the trace lacks."
)
@as_json
def complete(config: Config, decision_id: str, values: tuple[str, ...], as_json: bool) -> None:
    """Add members that a trace lacks, such as reasoning="The customer waits.".

    Approvals, outcomes, reviews and edges are added by records of their own.
    """
    from thor_policy.daemon import journal_access

    with Reader(config.journal_path) as reader:
        decision_id = reader.resolve(decision_id)
    record = records.Supplement(decision_id=decision_id, values=dict(_value(text) for text in values))
    record_id = journal_access.submit_record(config, record)
    with Reader(config.journal_path) as reader:
        row = reader.get(decision_id)
    lacks = (row or {}).get("lacks") or []
    if as_json:
        render.as_json({"id": record_id, "lacks": lacks})
    else:
        left = f"; the trace still lacks {', '.join(lacks)}" if lacks else "; the trace is complete"
        render.line(f"recorded as {record_id}{left}")


def _value(text: str) -> tuple[str, Json]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r}: give NAME=VALUE")
    if name == "confidence":
        try:
            return name, strict_json.decode(value)
        except strict_json.JsonError as error:
            raise click.UsageError(f"confidence: {value!r} is not a number") from error
    return name, value


def _meaning(name: str) -> str:
    return REQUIREMENTS.get(name, f"an edge of the type {name.removeprefix('edge:')} from the decision")
