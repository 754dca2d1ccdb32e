"""`ship` and `fleet`: ship the journal, and ask the store of a fleet.

Owns the options; `thor_policy.fleet` owns what they mean.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from thor_policy.cli import render
from thor_policy.cli.extras import needs_extra
from thor_policy.cli.log_lines import LogHandler
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Json
from thor_policy.telemetry import logs

if TYPE_CHECKING:
    from thor_policy.fleet.store import Store


@click.command()
@configured(
    "state_dir", "checkpoint_dir", "endpoint", "key", "device", "fleet_url", "log_format", "log_level"
)
@click.option(
    "--segments",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write sealed JSONL files to this directory, for another shipper.",
)
@click.option("--only-segments", is_flag=True, help="Ship nothing to fleet_url.")
@click.option(
    "--segment-events",
    default=10_000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Events after which a file is sealed.",
)
@click.option(
    "--segment-mb",
    default=64,
    show_default=True,
    type=click.IntRange(1, 4_096),
    help="MiB after which a file is sealed.",
)
@click.option(
    "--segment-s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.1, 86_400),
    help="Seconds after which a file is sealed.",
)
@click.option("--once", "now", is_flag=True, help="Ship what is recorded so far, then end.")
@click.option(
    "--forget",
    metavar="SINK",
    help="Do not ship: forget a sink (postgres, segments), so that archiving and erasing ignore it.",
)
@as_json
def ship(
    config: Config,
    segments: Path | None,
    only_segments: bool,
    segment_events: int,
    segment_mb: int,
    segment_s: float,
    now: bool,
    forget: str | None,
    as_json: bool,
) -> None:
    """Ship the journal to a fleet's store, or to sealed files for another shipper.

    Until SIGTERM or Ctrl-C, or with --once until everything is shipped. Exit status 1 if a sink has other
    events than the journal.
    """
    with needs_extra("fleet", "ship"):
        from thor_policy.fleet import process
        from thor_policy.fleet.segments import Limits

        if forget is not None:
            known = process.forget(config, forget)
            text = f"forgot {forget}" if known else f"{forget} was not known"
            render.as_json({"forgotten": known}) if as_json else render.line(text)
            return
        limits = Limits(events=segment_events, size=segment_mb * 2**20, seconds=segment_s)
        destination = process.Destination(store=not only_segments, segments=segments, limits=limits)
        if now:
            done = process.ship_now(config, destination)
            if as_json:
                render.as_json(done)
            else:
                render.table(
                    ("sink", "shipped", "acknowledged"),
                    [(row["sink"], row["shipped"], row["acknowledged"]) for row in done],
                )
            return
        logs.set_up(config.log_format, config.log_level, stream=sys.stderr, pretty=LogHandler())
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        process.serve(config, destination, stop.wait)


@click.group()
def fleet() -> None:
    """Make a fleet's store, and ask it: devices, chains, similar decisions, exceptions."""


@contextmanager
def _store(config: Config, command: str, *, new: bool = False) -> Iterator[Store]:
    """The store of the settings; `new`: it may not be one yet."""
    if not config.fleet_url:
        raise ConfigError(
            "fleet_url is empty: name the store with --fleet-url postgresql://ROLE@HOST/DATABASE"
        )
    with needs_extra("fleet", f"fleet {command}"):
        from thor_policy.fleet.store import Store
    with Store(config.fleet_url) as store:
        if not new:
            store.require()
        yield store


@fleet.command()
@configured("fleet_url")
@click.option("--no-roles", is_flag=True, help="Make no roles: another tool keeps them.")
@as_json
def init(config: Config, no_roles: bool, as_json: bool) -> None:
    """Make the store's tables, or bring them up to date, and its roles. Safe to repeat."""
    with _store(config, "init", new=True) as store:
        done = store.migrate(with_roles=not no_roles)
    if as_json:
        render.as_json({"applied": done})
    else:
        render.line(f"applied {', '.join(done)}" if done else "the store is up to date")


@fleet.command()
@configured("fleet_url")
@click.option("--alarms", is_flag=True, help="List the alarms, newest first.")
@as_json
def devices(config: Config, alarms: bool, as_json: bool) -> None:
    """List the devices: how many events the store has of each, how long each is silent, its alarms."""
    with _store(config, "devices") as store:
        rows = _plain(store.alarms() if alarms else store.devices())
    if as_json:
        render.as_json(rows)
    elif alarms:
        render.table(
            ("at", "device", "kind", "event", "times"),
            [(row["at"][:19], row["device"], row["kind"], row["seq"], row["times"]) for row in rows],
            clipped=(1,),
        )
    else:
        render.table(
            ("device", "events", "signed", "silent s", "alarms", "chain"),
            [
                (
                    row["device"],
                    row["events"],
                    row["signed"],
                    round(row["silent_s"], 1),
                    row["alarms"],
                    row["chain"][:12],
                )
                for row in rows
            ],
            clipped=(0,),
        )


@fleet.command()
@configured("fleet_url")
@click.option("--device", help="Only this device.")
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check the checkpoints with this key (PEM); may be repeated.",
)
@click.option(
    "--segments",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Check the sealed files in this directory, not the store.",
)
@as_json
@click.pass_context
def verify(
    ctx: click.Context,
    config: Config,
    device: str | None,
    keys: tuple[Path, ...],
    segments: Path | None,
    as_json: bool,
) -> None:
    """Check every chain again from its stored bytes. Exit status 1 for a problem or an alarm.

    As a reader of the store, private parts and the rows of tables are not checked.
    """
    from thor_policy.journal.checkpoints import trusted_keys

    if segments is not None:
        from thor_policy.fleet.segments import check_segments

        rows = check_segments(segments)
        ok = all(row["problem"] is None for row in rows)
    else:
        with _store(config, "verify") as store, render.counting("events checked") as count:
            from thor_policy.fleet.verification import verify as verify_store

            public = trusted_keys(keys) if keys else None
            verified = verify_store(store, device=device, keys=public, progress=count)
        ok = all(each.ok for each in verified)
        rows = [{name: getattr(each, name) for name in (*each.__struct_fields__, "ok")} for each in verified]
    if as_json:
        render.as_json(rows)
    else:
        for row in rows:
            render.pairs({name: value for name, value in row.items() if value is not None})
        if not rows:
            render.line("there is nothing to check")
    ctx.exit(0 if ok else 1)


@fleet.command()
@configured("fleet_url", "models_dir")
@as_json
def index(config: Config, as_json: bool) -> None:
    """Make the summaries and vectors that `fleet similar` compares. Needs the extra cpu, as the owner.

    Vectors are arranged in lists once they are 10,000, and again when they have doubled; questions and
    shippers do not wait for it.
    """
    from thor_policy.engine.embedder import MiniLM

    with _store(config, "index") as store:
        from thor_policy.fleet import index as indexing

        with render.counting("decisions indexed") as count:
            done = indexing.index(store, MiniLM(config.models_dir), progress=count)
        lists = indexing.lists_due(store)
        if lists is not None:
            with render.working(f"arranging the vectors in {lists:,} lists"):
                arranged = indexing.arrange(store, lists)
            if not arranged:
                lists = None
                render.line("another command arranges the vectors now", stderr=True)
    if as_json:
        render.as_json({"indexed": done, "lists": lists})
    else:
        render.line(f"indexed {done:,} decisions" + (f"; made {lists:,} lists" if lists else ""))


@fleet.command()
@configured("fleet_url", "models_dir")
@click.argument("decision_id", required=False, help="A decision of any device.")
@click.option("--text", help="A description in place of a decision; needs the extra cpu.")
@click.option(
    "-n", "--limit", default=10, show_default=True, type=click.IntRange(1, 1_000), help="Most decisions."
)
@as_json
def similar(config: Config, decision_id: str | None, text: str | None, limit: int, as_json: bool) -> None:
    """List the decisions of the whole fleet that are most similar, with what became of each."""
    if (decision_id is None) == (text is None):
        raise click.UsageError("give the id of a decision, or --text")
    with _store(config, "similar") as store:
        if text is not None:
            from thor_policy.engine.embedder import MiniLM

            vector = MiniLM(config.models_dir).embed(text)
        else:
            vector = store.vector_of(decision_id or "")
        rows = _plain(store.similar(vector, limit))
    if as_json:
        render.as_json(rows)
        return
    render.table(
        ("similar", "device", "action", "entity", "outcome", "result", "id"),
        [
            (
                f"{row['similarity']:.3f}",
                row["device"],
                row["action"],
                row["entity"] or "-",
                row["decision"],
                row["outcome_status"] or "-",
                row["decision_id"][-8:],
            )
            for row in rows
        ],
        gap=1,
        clipped=(1, 2, 3, 4),
    )


@fleet.command()
@configured("fleet_url")
@click.option("--since", required=True, help="Exceptions recorded from this RFC 3339 time on.")
@click.option("--until", help="Exceptions recorded before this RFC 3339 time.")
@click.option("--device", help="Only this device.")
@as_json
def compliance(config: Config, since: str, until: str | None, device: str | None, as_json: bool) -> None:
    """List approved exceptions: policy version, approver, role at the time, whether overturned later."""
    from thor_policy.journal.reader import instant

    with _store(config, "compliance") as store:
        listed = store.compliance(
            since=instant(since, "since") or "", until=instant(until, "until"), device=device
        )
    rows = _plain(listed)
    if as_json:
        render.as_json(rows)
        return
    render.table(
        ("made", "device", "policy", "approver", "role", "overturned", "id"),
        [
            (
                row["timestamp"][:10],
                row["device"],
                (row["policy_version"] or "-").partition("+")[0],
                row["approver"] or "(erased)",
                row["role"] or ", ".join(row["roles"] or ()) or "-",
                (row["overturned_at"] or "-")[:10],
                row["decision_id"][-8:],
            )
            for row in rows
        ],
        gap=1,
        clipped=(1, 2, 3, 4),
    )


@fleet.command()
@configured("fleet_url")
@click.argument("sql", help="A SELECT, such as 'SELECT * FROM success_rates'.")
@click.option(
    "-n", "--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="Most rows."
)
@click.option(
    "--timeout", default=10.0, show_default=True, type=click.FloatRange(0.1, 600), help="Most seconds."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@as_json
def query(config: Config, sql: str, limit: int, timeout: float, as_csv: bool, as_json: bool) -> None:
    """Ask the store in SQL, in a read-only transaction. The views are in the how-to page."""
    with _store(config, "query") as store:
        rows = _plain(store.ask(sql, most=limit, clip=True, within_ms=int(timeout * 1000)))
    if as_json:
        render.as_json(rows)
    elif as_csv:
        render.as_csv(list(rows[0]) if rows else [], rows)
    else:
        names = list(rows[0]) if rows else ["no rows"]
        render.table(
            names,
            [tuple(row[name] for name in names) for row in rows] if rows else [],
            gap=1,
            clipped=tuple(range(len(names))),
        )


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Json]]:
    """Rows as JSON values: times as RFC 3339, bytes in hex, decimals as numbers."""

    def plain(value: Any) -> Json:
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, bytes | memoryview):
            return bytes(value).hex()
        if isinstance(value, Decimal):
            return float(value)
        return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)

    return [{name: plain(value) for name, value in row.items()} for row in rows]
