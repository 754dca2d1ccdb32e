"""`log` and `stats`: read, check and maintain the journal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, decision_filters, finite, with_tests
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.escape import visible
from thor_policy.core.requests import Json
from thor_policy.core.summaries import summary
from thor_policy.journal import statistics
from thor_policy.journal.checkpoints import trusted_keys
from thor_policy.journal.maintenance.rebuild import rebuild as rebuild_aside
from thor_policy.journal.maintenance.rebuild import rebuild_in_place
from thor_policy.journal.projections import DECISION_COLUMNS
from thor_policy.journal.reader import ENDING_CHARS, Reader, claim_in, instant, is_of_test
from thor_policy.journal.verification.verify import verify as verify_journal
from thor_policy.journal.writer import Journal

#: How often `--follow` looks for new decisions, in seconds.
FOLLOW_S = 0.5
#: `log` counts at most this many decisions that it leaves out.
_MOST_COUNTED = 1_000


#: An option of the commands that take something away.
_unshipped = click.option(
    "--unshipped", is_flag=True, help="Also what a sink of `thorpolicy ship` has not acknowledged yet."
)


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
@configured("state_dir", "checkpoint_dir")
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="SEQ:HASH",
    help="Number and hash of an event, as noted from an earlier run; may be repeated.",
)
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Trust only this key (PEM), not the keys in the checkpoint directory; may be repeated.",
)
@as_json
@click.pass_context
def verify(
    ctx: click.Context, config: Config, anchors: tuple[str, ...], keys: tuple[Path, ...], as_json: bool
) -> None:
    """Check the hash chain, every table, and the signed checkpoints.

    Exit status 1 if it finds a problem.
    """
    with render.counting("events checked") as count:
        verdict = verify_journal(
            config.journal_path,
            checkpoint_dir=config.checkpoint_dir,
            public_keys=trusted_keys(keys) if keys else None,
            anchors=[_anchor(anchor) for anchor in anchors],
            progress=count,
        )
    if as_json:
        render.as_json({name: getattr(verdict, name) for name in (*verdict.__struct_fields__, "ok")})
    else:
        whole = {True: "ok", False: "wrong", None: "unknown: no checkpoint or anchor"}
        archived = f", {verdict.archived:,} archived" if verdict.archived else ""
        shown = {
            "events": f"{verdict.events:,}{archived}",
            "chain": "ok" if verdict.chain_ok else "wrong",
            "tables": "ok" if verdict.projections_ok else "wrong" if verdict.chain_ok else "not checked",
            "problem": verdict.problem,
            "complete": whole[verdict.complete],
            "incomplete": verdict.incomplete,
            "signed": f"up to event {verdict.checkpoint_seq:,}" if verdict.checkpoint_seq else None,
            "erased parts": verdict.erased,
            "gap events": verdict.gaps,
            "head": f"{verdict.events}:{verdict.head}",
        }
        render.pairs({name: value for name, value in shown.items() if value is not None})
    ctx.exit(0 if verdict.ok else 1)


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


@log.command()
@configured("state_dir", "endpoint", "key")
@click.argument("actor", help="`user:alice`, `agent:trader`, or the id of a user alone.")
@click.confirmation_option(
    prompt="Erase this actor from the journal and its archives? This cannot be undone."
)
@_unshipped
@as_json
@click.pass_context
def erase(ctx: click.Context, config: Config, actor: str, unshipped: bool, as_json: bool) -> None:
    """Erase an actor. The chain stays whole and records what was erased.

    Exit status 1 if the name is still somewhere: then the command lists where.
    """
    done = _maintain(
        config, records.Maintenance(task="erase", actor=actor, unshipped=unshipped), "events checked"
    )
    if as_json:
        render.as_json(done)
    else:
        shown = {
            "own parts erased": done["own"],
            "mentions erased": done["mentions"],
            "of both archived": done["archived"],
            "name still in": ", ".join(done["left"]) or "nothing",
        }
        inside_words = {"inside words": ", ".join(done["parts"])} if done["parts"] else {}
        render.pairs(shown | inside_words)
    ctx.exit(1 if done["left"] else 0)


@log.command()
@configured("state_dir", "endpoint", "key")
@click.confirmation_option(
    prompt="Replace the key? Requests sent again under an idempotency key are then decided again."
)
@as_json
def rekey(config: Config, as_json: bool) -> None:
    """Replace the key of the digests on the chain: those so far can then be matched with nothing.

    Idempotency keys sent before are forgotten.
    """
    done = _maintain(config, records.Maintenance(task="rekey"), "")
    if as_json:
        render.as_json(done)
    else:
        render.line(f"replaced {done['rekeyed']}; earlier idempotency keys are forgotten")


@log.command()
@configured("state_dir", "endpoint", "key")
@click.option("--before", required=True, help="Archive events older than this RFC 3339 time.")
@_unshipped
@as_json
def archive(config: Config, before: str, unshipped: bool, as_json: bool) -> None:
    """Move old events into compressed files. Tables, queries and `verify` still include them.

    Events that a sink of `thorpolicy ship` has not acknowledged stay.
    """
    task = records.Maintenance(task="archive", before=instant(before, "before"), unshipped=unshipped)
    done = _maintain(config, task, "events archived")
    if as_json:
        render.as_json(done)
    else:
        shown = {"events archived": done["archived"], "files": ", ".join(done["segments"]) or "none"}
        waits = {"others wait for": done["waits_for"]} if done["waits_for"] else {}
        render.pairs(shown | waits)


@log.command()
@configured("state_dir", "endpoint", "key")
@as_json
def checkpoint(config: Config, as_json: bool) -> None:
    """Sign the chain as it is now."""
    done = _maintain(config, records.Maintenance(task="checkpoint"), "")
    if as_json:
        render.as_json(done)
    else:
        render.line(f"signed up to event {done['checkpoint']}; the checkpoint is in {config.checkpoint_dir}")


@log.command()
@configured("state_dir")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a new journal to this directory, instead of rebuilding the tables in place.",
)
@click.option(
    "--at", metavar="SEQ|TIME", help="Stop after this event, or before this RFC 3339 time; needs --to."
)
@as_json
def rebuild(config: Config, target: Path | None, at: str | None, as_json: bool) -> None:
    """Rebuild every table from the events, in place or as a new journal.

    Read the journal in DIR with --state-dir DIR.
    """
    if at is not None and target is None:
        raise click.UsageError("--at needs --to: an earlier state can only be a new journal")
    with render.counting("events done") as count:
        if target is None:
            Reader(config.journal_path).close()  # raises if there is no journal
            with Journal(config.journal_path) as journal:
                events = rebuild_in_place(journal, progress=count)
        else:
            until = int(at) if at is not None and at.isdecimal() else at
            path = target / config.journal_path.name
            events = rebuild_aside(config.journal_path, path, at=until, progress=count)
    if as_json:
        render.as_json({"events": events})
    else:
        render.line(f"rebuilt from {events:,} events" + (f", in {target}" if target else ""))


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


def _maintain(config: Config, maintenance: records.Maintenance, counted: str) -> dict[str, Json]:
    from thor_policy.daemon import journal_access

    with render.counting(counted) as count:
        return journal_access.maintain(config, maintenance, progress=count)


def _anchor(text: str) -> tuple[int, str]:
    seq, _, link = text.partition(":")
    if not seq.isdecimal() or len(link) != 64:
        raise click.UsageError(
            f"--anchor {text!r}: give SEQ:HASH, as `log verify` prints it in the line `head`"
        )
    return int(seq), link


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
