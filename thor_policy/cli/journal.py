"""`log` and `stats`: reading the journal, checking it, and the work that it needs now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, decision_filters
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.journal import statistics
from thor_policy.journal.checkpoints import trusted_keys
from thor_policy.journal.maintenance.rebuild import rebuild as rebuild_aside
from thor_policy.journal.maintenance.rebuild import rebuild_in_place
from thor_policy.journal.projections import DECISION_COLUMNS
from thor_policy.journal.reader import ENDING_CHARS, Reader, instant
from thor_policy.journal.verification.verify import verify as verify_journal
from thor_policy.journal.writer import Journal

#: How often `--follow` looks for something new, in seconds.
FOLLOW_S = 0.5


@click.group(invoke_without_command=True)
@configured("state_dir")
@click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many."
)
@click.option("--before", metavar="ID", help="Those before this decision: the next page.")
@decision_filters
@click.option("--unreviewed", is_flag=True, help="Only decisions that nobody has reviewed.")
@click.option("--incorrect", is_flag=True, help="Only those that a scenario or a reviewer wanted otherwise.")
@click.option("--follow", is_flag=True, help="Then go on with each new decision, until Ctrl-C.")
@click.option("--csv", "as_csv", is_flag=True, help="Print every column as CSV.")
@as_json
@click.pass_context
def log(
    ctx: click.Context,
    /,
    config: Config,
    limit: int,
    before: str | None,
    follow: bool,
    as_csv: bool,
    as_json: bool,
    unreviewed: bool,
    incorrect: bool,
    type_: str | None,
    **filters: str | None,
) -> None:
    """List recorded decisions, newest first; its commands check the journal and look after it.

    \b
    --follow prints the newest last; with --json, one object a line.
    """
    if ctx.invoked_subcommand is not None:
        return
    if follow and (as_csv or unreviewed or incorrect or before or type_ or any(filters.values())):
        raise click.UsageError("--follow shows every decision; leave the filters and --csv out")
    with Reader(config.journal_path) as reader:
        if before is not None:
            before = reader.resolve(before)
        rows = reader.decisions(
            limit=limit,
            before=before,
            type=type_,
            reviewed=False if unreviewed else None,
            correct=False if incorrect else None,
            **filters,
        )
        if follow:
            _follow(reader, rows[::-1], as_json=as_json)
        elif as_csv:
            render.as_csv(DECISION_COLUMNS, rows)
        elif as_json:
            render.as_json(rows)
        else:
            render.table(BRIEF, [_brief(row) for row in rows], clipped=(1, 2, 3, 4))


def _follow(reader: Reader, rows: Sequence[dict[str, Json]], *, as_json: bool) -> None:
    seq = max((row["seq"] for row in rows), default=reader.newest_seq())
    if not as_json:
        render.line(_spaced(BRIEF))
    with suppress(KeyboardInterrupt):
        for row in chain(rows, _newer(reader, seq)):
            if as_json:
                render.as_json_line(row)
            else:
                render.line(_spaced(_brief(row)))


def _newer(reader: Reader, seq: int) -> Iterator[dict[str, Json]]:
    while True:
        for row in reader.newer_than(seq):
            seq = row["seq"]
            yield row
        time.sleep(FOLLOW_S)


def _spaced(cells: Sequence[Json]) -> str:
    cut = (str(render.clip(cell, width)) for cell, width in zip(cells, WIDTHS, strict=True))
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cut, WIDTHS, strict=True)).rstrip()


@log.command()
@configured("state_dir")
@click.argument("decision_id", help="As `log` or a reply gives it; the end of it will do.")
@as_json
def show(config: Config, decision_id: str, as_json: bool) -> None:
    """Show one decision with every column, and what hangs on it."""
    with Reader(config.journal_path) as reader:
        found = reader.trace(reader.resolve(decision_id))
    if as_json:
        render.as_json(found)
        return
    render.pairs({name: value for name, value in found.pop("decision").items() if value is not None})
    event = found.pop("event")
    private = "there" if event["private"] else "erased"
    render.pairs({"seq": event["seq"], "hash": event["hash"], "private part": private}, title="event")
    for table, rows in found.items():
        for row in rows:
            kept = {name: value for name, value in row.items() if value is not None}
            render.pairs(kept, title=table.removesuffix("s"))


@log.command()
@configured("state_dir", "checkpoint_dir")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="SEQ:HASH",
    help="An event's number and hash that you kept; may be given more than once.",
)
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust this key (PEM) and no other; otherwise those in the checkpoint directory.",
)
@as_json
@click.pass_context
def verify(
    ctx: click.Context, config: Config, anchors: tuple[str, ...], keys: tuple[Path, ...], as_json: bool
) -> None:
    """Check the hash chain, every table, and the signed checkpoints.

    Exit status 1 if something is wrong.
    """
    with render.counting("events checked") as count:
        verdict = verify_journal(
            config.journal_path,
            checkpoint_dir=config.checkpoint_dir,
            public_keys=trusted_keys(keys) if keys else None,
            anchors=[_anchor(one) for one in anchors],
            progress=count,
        )
    if as_json:
        render.as_json({name: getattr(verdict, name) for name in (*verdict.__struct_fields__, "ok")})
    else:
        whole = {True: "ok", False: "wrong", None: "unknown: no checkpoint tells"}
        archived = f", {verdict.archived:,} archived" if verdict.archived else ""
        told = {
            "events": f"{verdict.events:,}{archived}",
            "chain": "ok" if verdict.chain_ok else "wrong",
            "tables": "ok" if verdict.projections_ok else "wrong" if verdict.chain_ok else "not checked",
            "problem": verdict.problem,
            "complete": whole[verdict.complete],
            "missing": verdict.incomplete,
            "vouched for": f"up to event {verdict.checkpoint_seq:,}" if verdict.checkpoint_seq else None,
            "erased parts": verdict.erased,
            "told losses": verdict.gaps,
            "head": f"{verdict.events}:{verdict.head}",
        }
        render.pairs({name: value for name, value in told.items() if value is not None})
    ctx.exit(0 if verdict.ok else 1)


@log.command()
@configured("state_dir", "endpoint", "key")
@click.argument("decision_id", help="As `log` or a reply gives it; the end of it will do.")
@click.argument("status", type=click.Choice(["SUCCESS", "FAILURE", "PENDING"]), help="How it turned out.")
@click.option("--value", type=float, help="A number, such as profit or loss.")
@click.option("--note", help="A few words.")
@as_json
def outcome(
    config: Config,
    decision_id: str,
    status: records.Status,
    value: float | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Record how a decision turned out in the world; the newest counts."""
    from thor_policy.daemon import journal_access

    with Reader(config.journal_path) as reader:
        decision_id = reader.resolve(decision_id)
    happened = records.Outcome(decision_id=decision_id, status=status, value=value, note=note)
    record_id = journal_access.submit_record(config, happened)
    if as_json:
        render.as_json({"id": record_id})
    else:
        render.line(f"recorded as {record_id}")


@log.command()
@configured("state_dir", "endpoint", "key")
@click.argument("actor", help="user:alice, agent:trader, or a user's bare id.")
@click.confirmation_option(prompt="Erase this actor from the journal and its archives, for good?")
@as_json
@click.pass_context
def erase(ctx: click.Context, config: Config, actor: str, as_json: bool) -> None:
    """Erase an actor; the chain stays whole and says what was erased.

    Exit status 1 if the name is left somewhere, which is then told.
    """
    done = _tend(config, records.Maintenance(task="erase", actor=actor), "events looked at")
    if as_json:
        render.as_json(done)
    else:
        told = {
            "own parts erased": done["own"],
            "mentions erased": done["mentions"],
            "of them archived": done["archived"],
            "left": ", ".join(done["left"]) or "nothing",
        }
        others = {"in other words": ", ".join(done["parts"])} if done["parts"] else {}
        render.pairs(told | others)
    ctx.exit(1 if done["left"] else 0)


@log.command()
@configured("state_dir", "endpoint", "key")
@click.option("--before", required=True, help="Archive events older than this RFC 3339 time.")
@as_json
def archive(config: Config, before: str, as_json: bool) -> None:
    """Move old events into compressed files; tables, queries and `verify` still know them."""
    done = _tend(
        config, records.Maintenance(task="archive", before=instant(before, "before")), "events archived"
    )
    if as_json:
        render.as_json(done)
    else:
        render.pairs({"events archived": done["archived"], "files": ", ".join(done["segments"]) or "none"})


@log.command()
@configured("state_dir", "endpoint", "key")
@as_json
def checkpoint(config: Config, as_json: bool) -> None:
    """Sign the chain as it is now."""
    done = _tend(config, records.Maintenance(task="checkpoint"), "")
    if as_json:
        render.as_json(done)
    else:
        render.line(f"a checkpoint in {config.checkpoint_dir} vouches for event {done['checkpoint']}")


@log.command()
@configured("state_dir")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a new journal there; otherwise the tables are made anew in place.",
)
@click.option("--at", metavar="SEQ|TIME", help="As it was after this event, or before this RFC 3339 time.")
@as_json
def rebuild(config: Config, target: Path | None, at: str | None, as_json: bool) -> None:
    """Make every table anew from the events, in place or as a journal of its own.

    A journal in DIR is read by every command with --state-dir DIR.
    """
    if at is not None and target is None:
        raise click.UsageError("--at needs --to: a journal is not turned back in place")
    with render.counting("events done") as count:
        if target is None:
            Reader(config.journal_path).close()  # which there must be
            with Journal(config.journal_path) as journal:
                events = rebuild_in_place(journal, progress=count)
        else:
            until = int(at) if at is not None and at.isdecimal() else at
            path = target / config.journal_path.name
            events = rebuild_aside(config.journal_path, path, at=until, progress=count)
    if as_json:
        render.as_json({"events": events})
    else:
        render.line(f"made anew from {events:,} events" + (f", in {target}" if target else ""))


@click.command()
@configured("state_dir")
@click.option("--since", help="Only from this RFC 3339 time on.")
@click.option(
    "--by",
    type=click.Choice(sorted(statistics.DIMENSIONS)),
    help="One row for each actor, model, pack or type.",
)
@as_json
def stats(config: Config, since: str | None, by: str | None, as_json: bool) -> None:
    """Count recorded decisions: outcomes, accuracy, confidence, latency, by the hour."""
    with Reader(config.journal_path) as reader:
        if by is not None:
            rows = statistics.breakdown(reader, by, since=since)
            if as_json:
                render.as_json(rows)
            else:
                _show_breakdown(by, rows)
            return
        figures = statistics.statistics(reader, since=since)
        confidence = statistics.confidence(reader, since=since)
        latency = statistics.latency(reader, since=since)
        hourly = statistics.hourly(reader, since=since)
    if as_json:
        render.as_json(
            figures
            | {"confidence": confidence, "latency_ms": latency, "hourly": [list(one) for one in hourly]}
        )
        return
    _show_counts(figures)
    if hourly:
        render.line(f"  by the hour  {render.sparkline([count for _, count in hourly[-60:]])}")
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
    total = figures["decisions"]
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
    )
    render.table(("by", "value", "decisions", "share"), shares, clipped=(1,))
    if figures["expected"]:
        render.line(f"  right, where that is known: {figures['correct']} of {figures['expected']}")
    if figures["score_ms"]:
        shown = ", ".join(f"{name} {ms:.0f}" for name, ms in figures["score_ms"].items())
        render.line(f"  milliseconds in the model: {shown}")


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


def _tend(config: Config, maintenance: records.Maintenance, told: str) -> dict[str, Json]:
    from thor_policy.daemon import journal_access

    with render.counting(told) as count:
        return journal_access.maintain(config, maintenance, progress=count)


def _anchor(told: str) -> tuple[int, str]:
    seq, _, link = told.partition(":")
    if not seq.isdecimal() or len(link) != 64:
        raise click.UsageError(f"--anchor {told!r}: give SEQ:HASH, as `log verify` prints the head")
    return int(seq), link


BRIEF = ("time", "actor", "action", "entity", "outcome", "by", "id")
#: Of a line that comes alone, 80 with the spaces between.
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
