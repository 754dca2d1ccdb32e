"""`log`: list, show and search recorded decisions; `journal_maintenance` has its other commands."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import click

from thor_policy.cli import journal_maintenance as maintenance
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, decision_filters, finite, with_tests
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.escape import visible
from thor_policy.core.requests import Json
from thor_policy.core.summaries import summary
from thor_policy.journal.projections import DECISION_COLUMNS
from thor_policy.journal.reader import ENDING_CHARS, Reader, claim_in, is_of_test

#: How often `--follow` looks for new decisions, in seconds.
FOLLOW_S = 0.5
#: `log` counts at most this many decisions that it leaves out.
_MOST_COUNTED = 1_000


@click.group(invoke_without_command=True)
@configured("state_dir")
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Most decisions to list.",
)
@click.option("--before", metavar="ID", help="List decisions before this one: the next page.")
@decision_filters
@click.option("--unreviewed", is_flag=True, help="Only decisions without a review.")
@click.option(
    "--incorrect",
    is_flag=True,
    help="Only decisions that differ from what a scenario or a reviewer expected.",
)
@with_tests
@click.option(
    "--after",
    metavar="SEQ",
    type=click.IntRange(0),
    help="Print every decision recorded after this sequence number, the oldest first.",
)
@click.option("--follow", is_flag=True, help="Then print each new decision, until Ctrl-C.")
@click.option("--csv", "as_csv", is_flag=True, help="Print every column as CSV.")
@as_json
@click.pass_context
def log(
    ctx: click.Context,
    /,
    config: Config,
    limit: int,
    before: str | None,
    after: int | None,
    follow: bool,
    as_csv: bool,
    as_json: bool,
    unreviewed: bool,
    incorrect: bool,
    tests: bool,
    type_: str | None,
    **filters: Any,
) -> None:
    """List recorded decisions, newest first. The commands check and maintain the journal.

    Decisions of tests are left out, except with --incorrect or --tests; standard error says how many.

    \b
    --follow and --after print the newest last; with --json, one object on each line.
    """
    if ctx.invoked_subcommand is not None:
        return
    in_order = follow or after is not None
    if in_order and (as_csv or unreviewed or incorrect or before or type_ or any(filters.values())):
        raise click.UsageError(
            "--follow and --after show every decision: leave out the filters, --before and --csv"
        )
    with_tests = tests or incorrect
    with Reader(config.journal_path) as reader:
        if after is not None:
            newer = _newer(reader, after, waits=follow)
            _print_in_order(newer, as_json=as_json, with_tests=with_tests)
            return
        if before is not None:
            before = reader.resolve(before)
        page = partial(
            reader.decisions,
            before=before,
            type=type_,
            reviewed=False if unreviewed else None,
            correct=False if incorrect else None,
        )
        rows = page(limit=limit, tests=None if with_tests else False, **filters)
        if not with_tests:
            from_seq = rows[-1]["seq"] if len(rows) == limit else None
            _say_left_out(len(page(limit=_MOST_COUNTED, tests=True, from_seq=from_seq, **filters)))
        if follow:
            seq = max((row["seq"] for row in rows), default=reader.newest_seq())
            newer = _newer(reader, seq, waits=True)
            _print_in_order(chain(rows[::-1], newer), as_json=as_json, with_tests=with_tests)
        elif as_csv:
            render.as_csv(DECISION_COLUMNS, rows)
        elif as_json:
            render.as_json(rows)
        else:
            render.table(BRIEF, [_brief(row) for row in rows], clipped=(1, 2, 3, 4))


def _say_left_out(count: int) -> None:
    if count:
        shown = f"{count:,}" if count < _MOST_COUNTED else f"{count:,} or more"
        render.line(f"{shown} decisions of tests are left out here; --tests lists them", stderr=True)


def _print_in_order(rows: Iterable[dict[str, Json]], *, as_json: bool, with_tests: bool) -> None:
    if not as_json:
        render.line(_spaced(BRIEF))
    with suppress(KeyboardInterrupt):
        for row in rows:
            if is_of_test(row) and not with_tests:
                continue
            if as_json:
                render.as_json_line(row)
            else:
                render.line(_spaced(_brief(row)))


def _newer(reader: Reader, seq: int, *, waits: bool) -> Iterator[dict[str, Json]]:
    """The decisions recorded after `seq`; then, if it waits, each new one."""
    while True:
        rows = reader.newer_than(seq)
        for row in rows:
            seq = row["seq"]
            yield row
        if not rows and not waits:
            return
        if not rows:
            time.sleep(FOLLOW_S)


def _spaced(cells: Sequence[Json]) -> str:
    cut = (render.clip(visible(str(cell)), width) for cell, width in zip(cells, WIDTHS, strict=True))
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cut, WIDTHS, strict=True)).rstrip()


@log.command()
@configured("state_dir")
@click.argument(
    "decision_id", help="The id, as `log` or a reply shows it, or at least its last 8 characters."
)
@click.option("--all", "every", is_flag=True, help="Also the reasons of further rules that demand the floor.")
@as_json
def show(config: Config, decision_id: str, every: bool, as_json: bool) -> None:
    """Show one decision with every column, its event, and all records about it."""
    with Reader(config.journal_path) as reader:
        trace = reader.trace(reader.resolve(decision_id))
        text = reader.summary(trace["decision"]["decision_id"]) or summary(trace)
    trace["decision"]["summary"] = text
    if as_json:
        render.as_json(trace)
        return
    render.pairs({name: value for name, value in trace.pop("decision").items() if value is not None})
    event = trace.pop("event")
    private, floor = event["private"], (event["body"] or {}).get("floor") or {}
    shown = {"seq": event["seq"], "hash": event["hash"], "private part": "there" if private else "erased"}
    if floor.get("rules"):
        shown["rules"] = ", ".join(floor["rules"])
    if private and (time_used := render.time_used(private.get("time_used"))):
        shown["time used"] = time_used
    if claim := claim_in(event):
        shown["claimed"] = claim
    if every and (others := floor.get("also_because")):
        shown["further reasons"] = "\n".join(others)
    render.pairs(shown, title="event")
    for entry in (event["body"] or {}).get("consulted", ()):
        render.pairs(_consulted(entry, private), title="consulted")
    if private and private.get("errors"):
        render.pairs(private["errors"], title="failed expressions")
    for table, rows in trace.items():
        for row in rows:
            values = {name: value for name, value in row.items() if value is not None and name != "spec"}
            render.pairs(values, title=table.removesuffix("s"))


def _consulted(entry: dict[str, Json], private: dict[str, Json] | None) -> dict[str, Json]:
    """A value that a source gave for a decision, or why it gave none."""
    source, element = entry["source"], entry.get("element")
    shown: dict[str, Json] = {"source": source, "system": entry["system"], "of": entry["of"]}
    if element is not None:
        values = (private or {}).get("consulted", {}).get(source, {})
        shown["value"] = f"{element} = {values.get(element, 'erased')}"
    elif "error" not in entry:
        shown["value"] = "no entry"
    names = ("error", "digest", "fresh_at", "quality", "took_ms", "cached")
    return shown | {name: entry[name] for name in names if name in entry}


@log.command()
@configured("state_dir")
@click.argument("words", nargs=-1, required=True, metavar="WORD...", help="Words of the summary.")
@click.option(
    "-n",
    "--limit",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Most decisions to list.",
)
@as_json
def search(config: Config, words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List decisions whose context summary has all of these words, newest first.

    Case and accents do not count. "two words" in quotes must stand side by side.
    """
    with Reader(config.journal_path) as reader:
        rows = reader.search(words, limit)
        due, _ = reader.summaries_due(_MOST_COUNTED)
    if due:
        shown = f"{len(due):,}" if len(due) < _MOST_COUNTED else f"{len(due):,} or more"
        render.line(f"{shown} decisions have no summary of their newest records yet", stderr=True)
    if as_json:
        render.as_json(rows)
    else:
        render.table(BRIEF, [_brief(row) for row in rows], clipped=(1, 2, 3, 4))


@log.command()
@configured("state_dir", "endpoint", "key")
@click.argument(
    "decision_id", help="The id, as `log` or a reply shows it, or at least its last 8 characters."
)
@click.argument("status", type=click.Choice(["SUCCESS", "FAILURE", "PENDING"]), help="The outcome.")
@click.option("--value", type=float, callback=finite, help="A number, such as a profit or a loss.")
@click.option("--note", help="A short note.")
@as_json
def outcome(
    config: Config,
    decision_id: str,
    status: records.Status,
    value: float | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Record the outcome of a decision in the world. The newest one counts."""
    from thor_policy.daemon import journal_access

    with Reader(config.journal_path) as reader:
        decision_id = reader.resolve(decision_id)
    record = records.Outcome(decision_id=decision_id, status=status, value=value, note=note)
    record_id = journal_access.submit_record(config, record)
    if as_json:
        render.as_json({"id": record_id})
    else:
        render.line(f"recorded as {record_id}")


BRIEF = ("time", "actor", "action", "entity", "outcome", "by", "id")
#: Widths of the columns of one line of `--follow`: 80 characters with the spaces between.
WIDTHS = (8, 13, 10, 13, 14, 8, 8)


def _brief(row: dict[str, Json]) -> tuple[Json, ...]:
    return (
        row["timestamp"][11:19],
        row["actor"] or "(erased)",
        row["action"] or row["decision_type"],
        row["entity"] or "-",
        row["decision"],
        row["tier"],
        row["decision_id"][-ENDING_CHARS:],
    )


for command in (
    maintenance.verify,
    maintenance.erase,
    maintenance.rekey,
    maintenance.archive,
    maintenance.checkpoint,
    maintenance.rebuild,
):
    log.add_command(command)
