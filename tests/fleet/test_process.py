"""A daemon that is shipped: it notes how far each sink is, says so, and raises an alert."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec.structs import asdict

from tests.build import by_rule, record, writing
from tests.stores import restamp
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import JournalError
from thor_policy.core.status import ShippingStatus
from thor_policy.daemon import alerts, shipping
from thor_policy.daemon.alert_rules import shipping as judge
from thor_policy.daemon.service import serving
from thor_policy.fleet import process
from thor_policy.fleet.process import Destination
from thor_policy.fleet.shipper import Forked
from thor_policy.fleet.store import Store
from thor_policy.fleet.verification import verify
from thor_policy.testing import load_stub_engine

QUESTION = {
    "subject": {"type": "user", "id": "ivo"},
    "action": {"name": "read"},
    "resource": {"type": "env", "id": "production"},
}


@pytest.fixture
def shipped(config: Config, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configuration with a store, and a daemon that looks often."""
    monkeypatch.setattr(shipping, "REST_S", 0.01)
    monkeypatch.setattr(alerts, "REST_S", 0.01)
    return Config(
        state_dir=config.state_dir,
        endpoint=config.endpoint,
        cache_size=0,
        threads=1,
        device="thor-1",
        fleet_url=store_url,
    )


def until(client: Client, condition: Callable[[tuple[ShippingStatus, ...]], bool]) -> ShippingStatus:
    """The only sink, as soon as the condition holds."""
    while not condition(sinks := client.status().shipping):
        pass
    (sink,) = sinks
    return sink


def test_status_and_metrics_say_how_far_a_sink_is_behind(
    shipped: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(shipped, load_engine=load_stub_engine), Client(shipped.endpoint) as client:
        assert client.status().shipping == ()
        client.evaluate(QUESTION)
        (row,) = process.ship_now(shipped, Destination())
        sink = until(client, bool)
        assert (sink.sink, sink.acknowledged) == ("postgres", row["acknowledged"])
        client.evaluate(QUESTION)
        behind = until(client, lambda sinks: sinks[0].behind > 0)
        assert behind.behind_s > 0
        samples = client.metrics()["thorpolicy_shipping_behind_events"]["samples"]
        assert [(sample["labels"], sample["value"] > 0) for sample in samples] == [
            ({"sink": "postgres"}, True)
        ]
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", shipped.endpoint)
        assert "postgres: " in CliRunner().invoke(cli, ["status"]).stdout
        process.ship_now(shipped, Destination())
        until(client, lambda sinks: sinks[0].behind == 0)
        assert process.forget(shipped, "postgres")
    with Store(shipped.fleet_url) as store:
        assert verify(store)[0].ok


def test_a_serving_shipper_ships_what_is_recorded_until_it_is_stopped(shipped: Config) -> None:
    stop = threading.Event()
    with serving(shipped, load_engine=load_stub_engine), Client(shipped.endpoint) as client:
        client.evaluate(QUESTION)
        thread = threading.Thread(target=process.serve, args=(shipped, Destination(), stop.wait))
        thread.start()
        try:
            until(client, lambda sinks: bool(sinks) and sinks[0].behind == 0)
        finally:
            stop.set()
            thread.join(30)
    with Store(shipped.fleet_url) as store:
        assert store.ask("SELECT count(*) FROM decisions") == [{"count": 1}]


def test_a_fork_is_an_alert_of_the_daemon(shipped: Config, tmp_path: Path) -> None:
    record(shipped.journal_path, *(by_rule() for _ in range(3)))
    process.ship_now(shipped, Destination())
    with writing(shipped.journal_path) as connection:
        connection.execute("UPDATE events SET boot_id = 'another' WHERE seq = 2")
        restamp(connection)
    with serving(shipped, load_engine=load_stub_engine), Client(shipped.endpoint) as client:
        with pytest.raises(Forked, match="was it restored or rewritten"):
            process.ship_now(shipped, Destination())
        sink = until(client, lambda sinks: bool(sinks) and sinks[0].alarm is not None)
        assert "the sink postgres has event" in (sink.alarm or "")
        while not (status := client.status().alerts) or not status.raised:
            pass
        assert [(alert.kind, alert.of, alert.name) for alert in status.raised] == [
            ("shipping", "sink", "postgres")
        ]
    with Store(shipped.fleet_url) as store:
        assert [row["kind"] for row in store.alarms()] == ["fork"]


def test_an_alert_begins_when_a_sink_is_late_and_ends_when_it_has_caught_up() -> None:
    late = ShippingStatus(sink="postgres", acknowledged=1, behind=5, behind_s=61.0)
    assert judge(late, 60.0).begins
    assert not judge(late, 0).begins
    halfway = ShippingStatus(**asdict(late) | {"behind_s": 31.0})
    assert (judge(halfway, 60.0).begins, judge(halfway, 60.0).ends) == (False, False)
    assert judge(ShippingStatus(**asdict(late) | {"behind": 0, "behind_s": 0.0}), 60.0).ends
    assert judge(ShippingStatus(**asdict(late) | {"alarm": "fork", "behind": 0}), 0).begins


def test_a_journal_that_is_damaged_is_not_shipped(shipped: Config) -> None:
    record(shipped.journal_path, *(by_rule() for _ in range(3)))
    with writing(shipped.journal_path) as connection:
        connection.execute("UPDATE events SET body = body || ' ' WHERE seq = 2")
    with pytest.raises(JournalError, match="event 2 does not match its hash"):
        process.ship_now(shipped, Destination())
    with Store(shipped.fleet_url) as store:
        assert store.ask("SELECT count(*) FROM events") == [{"count": 0}]
