"""`trace`: why a decision was made, what became of it, and the changes of its state."""

from __future__ import annotations

import click
from msgspec import to_builtins

from thor_policy.cli import render, trace_tree
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.options import as_json, configured
from thor_policy.cli.quarantine import quarantine
from thor_policy.config import Config
from thor_policy.core import graph, records
from thor_policy.core.requests import Json
from thor_policy.journal.impact_queries import active_citing
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.journal.trace_queries import traces
from thor_policy.trace.chains import MOST_DEPTH
from thor_policy.trace.impact import MOST_RESTING, of_pack, of_precedent
from thor_policy.trace.reading import read_trace

#: Citing decisions that are read and put under review at one time.
_REVIEWED_AT_ONE_TIME = 500
#: Ids of citing decisions that a change of state prints; `--json` has all that the reply names.
_MOST_IDS = 20

_ID = click.argument(
    "decision_id", metavar="ID", help="The id of a decision, or at least its last 8 characters."
)
_BECAUSE = click.option("--because", required=True, help="Why: it is recorded with the change.")
_BY = click.option("--by", required=True, metavar="ID", help="The decision that does so.")


class _ById(click.Group):
    """A group whose first argument may be an id: then the command is `show`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = next((arg for arg in args if not arg.startswith("-")), None)
        if first is not None and first not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ById)
def trace() -> None:
    """Show why a decision was made and what became of it; supersede or overturn it.

    `thorpolicy trace ID` is short for `thorpolicy trace show ID`.
    """


@trace.command()
@configured("state_dir")
@_ID
@click.option("--at", metavar="TIME", help="Show what was known before this RFC 3339 wall time.")
@click.option(
    "--depth",
    default=1,
    show_default=True,
    type=click.IntRange(0, MOST_DEPTH),
    help="Edges to follow to causes and to consequences.",
)
@as_json
def show(config: Config, decision_id: str, at: str | None, depth: int, as_json: bool) -> None:
    """Show one decision: question, data, rules, model, people, precedents, result, later fate."""
    with open_current(config) as reader:
        read = read_trace(reader, reader.resolve(decision_id), at=at, depth=depth)
    if as_json:
        render.as_json(to_builtins(read))
    else:
        render.console().print(trace_tree.tree(read))


@trace.command("list")
@configured("state_dir")
@click.option("--entity", metavar="TYPE:ID", help="Only decisions about this entity.")
@click.option(
    "--status",
    type=click.Choice(list(graph.NEXT_STATES)),
    help="Only traces in this state.",
)
@click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Most traces."
)
@click.option("--before", metavar="ID", help="List traces before this one: the next page.")
@as_json
def list_(
    config: Config,
    entity: str | None,
    status: graph.TraceStatus | None,
    limit: int,
    before: str | None,
    as_json: bool,
) -> None:
    """List traces, newest first."""
    with open_current(config) as reader:
        if before is not None:
            before = reader.resolve(before)
        rows = traces(reader, entity=entity, status=status, limit=limit, before=before)
    if as_json:
        render.as_json(rows)
        return
    render.table(
        ("time", "outcome", "type", "state", "entity", "actor", "id"),
        [
            (
                row["timestamp"][:16].replace("T", " "),
                *(row[name] for name in ("decision", "decision_type", "trace_status", "entity", "actor")),
                row["decision_id"][-ENDING_CHARS:],
            )
            for row in rows
        ],
        gap=1,
        clipped=(1, 2, 3, 4, 5),
    )


@trace.command()
@configured("state_dir", "endpoint", "key")
@_ID
@_BY
@_BECAUSE
@as_json
def supersede(config: Config, decision_id: str, by: str, because: str, as_json: bool) -> None:
    """Let a later decision take the place of another. Needs the role `review`."""
    _change(config, decision_id, "superseded", because, by=by, as_json=as_json)


@trace.command()
@configured("state_dir", "endpoint", "key")
@_ID
@_BY
@_BECAUSE
@click.option(
    "--review-citing",
    is_flag=True,
    help="Put the active decisions that cite it under review: into the queue of `thorpolicy review`.",
)
@as_json
def overturn(
    config: Config, decision_id: str, by: str, because: str, review_citing: bool, as_json: bool
) -> None:
    """Let a later decision say that another was wrong, and list what cited it. Needs the role `review`.

    With --review-citing it may be repeated for an overturned decision, such as after an interruption.
    """
    _change(config, decision_id, "overturned", because, by=by, review_citing=review_citing, as_json=as_json)


@trace.command()
@configured("state_dir")
@click.option("--precedent", metavar="ID", help="Decisions that cite this one, or took its place.")
@click.option(
    "--pack", metavar="NAME@VERSION|DIGEST", help="Decisions under this pack; 12 digits of its sha256."
)
@click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(0, MOST_RESTING), help="Most listed."
)
@as_json
def impact(config: Config, precedent: str | None, pack: str | None, limit: int, as_json: bool) -> None:
    """Count and list every decision that rests on a precedent or on a pack, however far away."""
    if (precedent is None) == (pack is None):
        raise click.UsageError("give --precedent or --pack, and not both")
    with open_current(config) as reader:
        if precedent is not None:
            result = of_precedent(reader, reader.resolve(precedent))
        else:
            result = of_pack(reader, pack or "")
    listed = result.decisions[:limit]
    if as_json:
        render.as_json(to_builtins(result) | {"decisions": listed, "total": len(result.decisions)})
        return
    more = "" if result.complete else f", and more: the search ends at {result.most:,} decisions"
    render.pairs(
        {
            "rests on": result.of,
            "decisions": f"{len(result.decisions):,}{more}",
            "left out": f"{result.left_out:,} claims and traces in quarantine" if result.left_out else "none",
        }
    )
    if not result.decisions:
        return
    names = ("type", "outcome", "status", "decisions")
    render.table(names, [[row[name] for name in names] for row in result.counts], clipped=(0, 1))
    render.table(
        ("depth", "time", "type", "outcome", "state", "by", "id"),
        [
            (
                row["depth"],
                row["at"][:16].replace("T", " "),
                *(row[name] for name in ("type", "outcome", "status", "via")),
                row["id"][-ENDING_CHARS:],
            )
            for row in listed
        ],
        gap=1,
        clipped=(2, 3),
    )


@trace.command()
@configured("state_dir", "endpoint", "key")
@_ID
@_BECAUSE
@as_json
def reopen(config: Config, decision_id: str, because: str, as_json: bool) -> None:
    """Put a decision under review, whatever its state is. Needs the role `review`."""
    _change(config, decision_id, "under_review", because, as_json=as_json)


@trace.command()
@configured("state_dir", "endpoint", "key")
@_ID
@_BECAUSE
@as_json
def uphold(config: Config, decision_id: str, because: str, as_json: bool) -> None:
    """End the review of a decision: it is active again. Needs the role `review`."""
    _change(config, decision_id, "active", because, as_json=as_json)


def _change(
    config: Config,
    decision_id: str,
    status: graph.TraceStatus,
    because: str,
    *,
    by: str | None = None,
    review_citing: bool = False,
    as_json: bool,
) -> None:
    from thor_policy.daemon import journal_access

    with open_current(config) as reader:
        decision_id, by = reader.resolve(decision_id), by and reader.resolve(by)
        known = reader.get(decision_id) or {}
    shown: dict[str, Json] = {}
    if not (review_citing and known.get("trace_status") == status):
        record = records.TraceState(decision_id=decision_id, status=status, because=because, by=by)
        shown = journal_access.submit_trace_state(config, record)
    if review_citing:
        shown = shown | {"under_review": _review_citing(config, decision_id)}
    if as_json:
        render.as_json(shown)
        return
    recorded = f" now, recorded as {shown['id']}" if "id" in shown else " already"
    render.line(f"{decision_id} is {status}{recorded}")
    if "cited_by" in shown:
        _print_citing(shown["cited_by"])
    if review_citing:
        render.line(f"{shown['under_review']:,} decisions that cite it are under review now")


def _review_citing(config: Config, decision_id: str) -> int:
    """Put the active decisions that cite a decision under review; returns how many."""
    from thor_policy.daemon import journal_access

    changed = 0
    while True:
        with open_current(config) as reader, reader.snapshot() as connection:
            ids = active_citing(connection, decision_id, _REVIEWED_AT_ONE_TIME)
        because = f"it cites {decision_id}, which was overturned"
        states = [records.TraceState(decision_id=id, status="under_review", because=because) for id in ids]
        done = journal_access.submit_trace_states(config, states) if states else 0
        changed += done
        if not done:  # what is left was changed by somebody else meanwhile
            return changed


def _print_citing(cited_by: dict[str, Json]) -> None:
    count, ids = cited_by["count"], cited_by["ids"]
    if count:
        render.line(f"{count:,} decisions cite it:")
    for id in ids[:_MOST_IDS]:
        render.line(f"  {id}")
    if count > _MOST_IDS:
        render.line(f"  and {count - _MOST_IDS:,} more: --json lists {len(ids):,}")


trace.add_command(quarantine)
