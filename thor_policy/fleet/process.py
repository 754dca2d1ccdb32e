"""The process of `thorpolicy ship`: which sinks it has, and how it tells the journal how far they are.

Owns the choice of sinks and the way to the journal. Invariant: while it serves, it writes to the journal
through the daemon only, so it never holds the lock that a starting daemon needs; a run that ends (`once`)
may take the lock where no daemon runs. The main thread of the command.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError, RequestError, Unreachable
from thor_policy.core.records import Maintenance, Shipped
from thor_policy.core.requests import Json
from thor_policy.daemon import journal_access
from thor_policy.fleet.batches import JournalSource
from thor_policy.fleet.segments import Limits, SegmentSink
from thor_policy.fleet.shipper import Forked, Loop, Shipper, Sink, drain

log = logging.getLogger(__name__)

#: How long the daemon may take to note how far a sink is, in milliseconds.
NOTE_MS = 5_000


class Destination(Struct, frozen=True, kw_only=True):
    """Where to ship to: the store of the settings if `store`, and a directory of segments."""

    store: bool = True
    segments: Path | None = None
    limits: Limits = Limits()


def sinks_of(config: Config, destination: Destination) -> list[Sink]:
    """The sinks. Raises ConfigError if there is none."""
    sinks: list[Sink] = []
    if destination.store and config.fleet_url:
        from thor_policy.fleet.postgres import PostgresSink  # only this sink needs psycopg

        sinks.append(PostgresSink(config.fleet_url))
    if destination.segments is not None:
        sinks.append(SegmentSink(destination.segments, destination.limits, clock=time.monotonic))
    if not sinks:
        raise ConfigError("there is nowhere to ship to: set fleet_url, or name a directory with --segments")
    return sinks


def ship_now(config: Config, destination: Destination) -> list[dict[str, Json]]:
    """Ship what is recorded so far to each sink; returns how far each is. Raises SinkError, Forked."""
    with ExitStack() as opened:
        shippers = _shippers(config, destination, opened, note=lambda shipped: _note_now(config, shipped))
        for shipper in shippers:
            try:
                drain(shipper)
                if isinstance(shipper.sink, SegmentSink):
                    shipper.sealed(shipper.sink.flush())
            except Forked as error:
                shipper.note(alarm=str(error)[:1024])
                raise
        for shipper in shippers:
            shipper.note()
        return [
            {
                "sink": shipper.sink.name,
                "shipped": shipper.counters["events"],
                "acknowledged": shipper.acknowledged,
            }
            for shipper in shippers
        ]


def serve(config: Config, destination: Destination, wait: Callable[[float], bool]) -> None:
    """Ship until `wait`, which waits for seconds, says to stop. Raises Forked."""
    with ExitStack() as opened:
        shippers = _shippers(config, destination, opened, note=lambda shipped: _note(config, shipped))
        names = " and ".join(shipper.sink.name for shipper in shippers)
        log.info("ships %s as %s to %s", config.journal_path, config.device_name, names)
        try:
            Loop(shippers, wait=wait, clock=time.monotonic).run()
        finally:
            for shipper in shippers:
                shipper.note()


def forget(config: Config, sink: str) -> bool:
    """Forget a sink, so that nothing waits for it; False if it was not known."""
    return bool(journal_access.maintain(config, Maintenance(task="unship", sink=sink))["forgotten"])


def _shippers(
    config: Config, destination: Destination, opened: ExitStack, note: Callable[[Shipped], bool]
) -> list[Shipper]:
    shippers = []
    for sink in sinks_of(config, destination):
        opened.callback(sink.close)
        source = JournalSource(config.journal_path, config.device_name, config.checkpoint_dir)
        opened.callback(source.close)
        shippers.append(Shipper(source, sink, note=note))
    return shippers


def _note(config: Config, shipped: Shipped) -> bool:
    """Tell the daemon how far a sink is; False if none answers: it is said again later."""
    try:
        with Client(config.endpoint, key=config.key_file, timeout_ms=NOTE_MS) as client:
            if not client.alive():
                return False
            client.maintenance(Maintenance(task="shipped", shipped=shipped), timeout_ms=NOTE_MS)
    except Unreachable:
        return False
    except RequestError as error:
        log.warning("the daemon did not note how far %s is: %s", shipped.sink, error)
        return False
    return True


def _note_now(config: Config, shipped: Shipped) -> bool:
    journal_access.maintain(config, Maintenance(task="shipped", shipped=shipped))
    return True
