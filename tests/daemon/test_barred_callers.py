"""Callers that go on sending after `busy`, at a real daemon: what is closed to them, and to nobody else."""

from __future__ import annotations

import heapq
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.callers import as_root, replies_to
from tests.daemon.test_connections import PATIENCE_MS, QUESTION, await_true
from thor_policy.client.blocking import Client
from thor_policy.client.connection import Connection
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon import relays, shares
from thor_policy.daemon.peers import MAX_ENVELOPE_FRAMES
from thor_policy.daemon.service import serving
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

#: Long enough that no bar ends in a test, in seconds.
LONG_S = 300.0
#: A user that is no caller of these tests but this one, and in the group of the socket.
OTHER_UID = 65_534


def message(**members: Any) -> bytes:
    return json.dumps({"v": 1, "id": "q", "op": "evaluate", "request": QUESTION} | members).encode()


def on_behalf(name: str, **members: Any) -> bytes:
    return message(**members, **{"as": {"name": f"token:{name}", "roles": ["ask"]}})


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not wait is barred at once, and for longer than any test takes."""
    monkeypatch.setattr(shares, "_UNAWARE_S", 0.0)
    monkeypatch.setattr(shares, "_BARRED_S", LONG_S)


@pytest.fixture
def limited(config: Config) -> Config:
    """Few requests a second, so that a flood of cheap ones is one; user 0 relays for others."""
    roles = ("local=ask", "uid:0=ask+control+relay+record")
    return replace(config, caller_requests_per_s=50, roles=roles, socket_mode=0o666)


@pytest.fixture
def served(limited: Config) -> Iterator[Config]:
    limited.socket_path.parent.chmod(0o711)  # so that another user gets to the socket
    with serving(limited, load_engine=load_stub_engine) as running:
        yield running


@contextmanager
def dealer(endpoint: str, key: Path | None = None, **options: Any) -> Iterator[zmq.Socket[bytes]]:
    path = Connection.to(endpoint, key)
    with zmq.Context() as context, path.prepare(context.socket(zmq.DEALER)) as opened:
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.RCVTIMEO, PATIENCE_MS)
        opened.set(zmq.SNDTIMEO, PATIENCE_MS)
        for name, value in options.items():
            opened.set(getattr(zmq, name), value)
        opened.connect(endpoint)
        yield opened


def counters_of(config: Config) -> dict[str, int]:
    with Client(config.control_endpoint, timeout_ms=PATIENCE_MS) as control:
        return dict(control.status().counters)


def flood(
    opened: zmq.Socket[bytes],
    config: Config,
    frame: bytes,
    envelope: Sequence[bytes] = (),
    *,
    until: str = "callers_barred",
) -> None:
    """Send on and on, and read no reply for long, until the daemon has counted this."""

    def is_counted() -> bool:
        with suppress(zmq.Again):
            for _ in range(200):
                opened.send_multipart([*envelope, frame], zmq.NOBLOCK)
        with suppress(zmq.Again):
            for _ in range(200):
                opened.recv_multipart(zmq.NOBLOCK)
        return counters_of(config).get(until, 0) > 0

    await_true(is_counted)


def only_refused(opened: zmq.Socket[bytes]) -> bool:
    """Whether no reply comes, or `busy`: a message may be read before its connection is closed."""
    return not opened.poll(50) or json.loads(opened.recv())["error"]["code"] == "busy"


class TestConnections:
    def test_of_a_barred_caller_are_all_closed_though_one_alone_floods(self, served: Config) -> None:
        """A caller is a user: a second connection of it, which waits, is closed too."""
        with dealer(served.endpoint) as patient, dealer(served.endpoint) as greedy:
            patient.send(message())
            assert "decision" in json.loads(patient.recv())
            flood(greedy, served, b"{", until="connections_closed_barred")
            await_true(lambda: counters_of(served).get("connections_closed_barred", 0) >= 2)

    def test_by_a_new_address_or_routing_id_are_refused_while_it_is_barred(self, served: Config) -> None:
        with dealer(served.endpoint) as greedy:
            flood(greedy, served, b"{", until="connections_closed_barred")
        with dealer(served.endpoint) as again, dealer(served.endpoint, IDENTITY=b"another") as named:
            again.send(message())
            named.send(message())
            await_true(lambda: counters_of(served).get("connections_refused", 0) >= 4)  # each came again
            assert only_refused(again)
            assert only_refused(named)
        assert "decisions_recorded" not in counters_of(served)

    @as_root
    def test_of_another_user_of_the_same_group_stay_open(self, served: Config) -> None:
        with dealer(served.endpoint) as greedy:
            flood(greedy, served, b"{", until="connections_closed_barred")
            (reply,) = replies_to(served.endpoint, OTHER_UID, message())
        assert "decision" in reply

    def test_of_a_subscriber_stay_open_and_it_gets_the_events_of_others(self, served: Config) -> None:
        """The events are another endpoint: a monitor of the barred user sees what goes on."""
        with (
            dealer(served.endpoint) as greedy,
            zmq.Context() as context,
            context.socket(zmq.SUB) as subscriber,
        ):
            subscriber.set(zmq.LINGER, 0)
            subscriber.subscribe(b"decision")
            subscriber.connect(served.events_endpoint)
            await_true(lambda: bool(greedy.send(message()) or greedy.recv()) and bool(subscriber.poll(50)))
            while subscriber.poll(0):
                subscriber.recv_multipart()
            flood(greedy, served, b"{", until="connections_closed_barred")
            if os.getuid() == 0:
                replies_to(served.endpoint, OTHER_UID, message())
                assert subscriber.poll(PATIENCE_MS)
            assert counters_of(served)["connections_closed_barred"] == 1

    def test_to_the_control_endpoint_serve_the_barred_caller(self, served: Config) -> None:
        with dealer(served.endpoint) as greedy:
            flood(greedy, served, b"{", until="connections_closed_barred")
            with Client(served.control_endpoint, timeout_ms=PATIENCE_MS) as control:
                assert control.status().state == "serving"
                assert control.metrics()


class TestKeys:
    @pytest.fixture
    def keyed(self, limited: Config, free_port: int) -> Iterator[Config]:
        config = replace(limited, tcp_endpoint=f"tcp://127.0.0.1:{free_port}")
        for name in ("greedy", "honest"):
            Keys(config.keys_dir).new(name, ("ask",), time.time())
        with serving(config, load_engine=load_stub_engine) as running:
            yield running

    def test_that_are_barred_cannot_be_used_by_connections_that_were_open_and_silent(
        self, keyed: Config
    ) -> None:
        key = keyed.keys_dir / "greedy.key"
        with dealer(keyed.tcp_endpoint, key) as silent, dealer(keyed.tcp_endpoint, key) as greedy:
            await_true(lambda: counters_of(keyed).get("keys_accepted", 0) == 2)
            flood(greedy, keyed, b"{", until="connections_closed_barred")
            await_true(lambda: counters_of(keyed).get("connections_closed_barred", 0) >= 2)
            decided = counters_of(keyed).get("decisions_recorded", 0)
            with suppress(zmq.Again):  # ZeroMQ gives a socket up whose key was refused
                silent.send(message(), zmq.NOBLOCK)
            assert only_refused(silent)
            assert counters_of(keyed).get("decisions_recorded", 0) == decided

    def test_that_are_barred_get_no_handshake_and_another_key_of_the_same_address_does(
        self, keyed: Config
    ) -> None:
        key = keyed.keys_dir / "greedy.key"
        with dealer(keyed.tcp_endpoint, key) as greedy:
            flood(greedy, keyed, b"{", until="connections_closed_barred")
            await_true(lambda: counters_of(keyed).get("keys_refused", 0) > 0)  # it came again by itself
            with dealer(keyed.tcp_endpoint, keyed.keys_dir / "honest.key") as honest:
                honest.send(message())
                assert "decision" in json.loads(honest.recv())


class TestRelays:
    def test_are_not_barred_for_one_of_the_callers_that_they_speak_for(self, served: Config) -> None:
        """The users of a gateway would all lose it; the one that floods gets `busy` and how long it lasts."""
        with dealer(served.endpoint) as gateway:
            flood(gateway, served, on_behalf("greedy", request={}))
            gateway.send(on_behalf("greedy", id="greedy"))
            gateway.send(on_behalf("honest", id="honest"))
            replies = replies_by_id(gateway, "greedy", "honest")
        error = replies["greedy"]["error"]
        assert error["code"] == "busy"
        assert "is barred" in error["message"]
        assert LONG_S * 900 < error["retry_after_ms"] <= LONG_S * 1_000 + 20_000
        assert "decision" in replies["honest"]
        assert "connections_closed_barred" not in counters_of(served)

    def test_have_nothing_of_a_barred_caller_decided(self, served: Config) -> None:
        with dealer(served.endpoint) as gateway:
            flood(gateway, served, on_behalf("greedy", request={}))
            before = counters_of(served).get("decisions_recorded", 0)
            for number in range(20):
                gateway.send(on_behalf("greedy", id=f"late-{number}"))
            late = replies_by_id(gateway, *(f"late-{number}" for number in range(20)))
            assert {reply["error"]["code"] for reply in late.values()} == {"busy"}
        assert counters_of(served).get("decisions_recorded", 0) == before

    def test_are_not_barred_for_more_callers_than_a_relay_may_speak_for(
        self, served: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relays, "MAX_CALLERS", 1)
        with dealer(served.endpoint) as gateway:
            gateway.send(on_behalf("first", id="first"))
            assert "decision" in replies_by_id(gateway, "first")["first"]
            flood(gateway, served, on_behalf("beyond"))
            gateway.send(on_behalf("first", id="again"))
            assert "decision" in replies_by_id(gateway, "again")["again"]
        assert "connections_closed_barred" not in counters_of(served)


def replies_by_id(opened: zmq.Socket[bytes], *ids: str) -> dict[str, dict[str, Any]]:
    """The replies to these requests; those to others are dropped."""
    replies: dict[str, dict[str, Any]] = {}
    while len(replies) < len(ids):
        reply = json.loads(opened.recv())
        if reply["id"] in ids:
            replies[reply["id"]] = reply
    return replies


class TestFloods:
    def test_of_batches_whose_questions_find_no_place_are_barred_and_say_when_to_come_back(
        self, limited: Config
    ) -> None:
        """Each question of a batch that gets `busy` is a refused request."""
        config = replace(limited, caller_requests_per_s=0, max_in_flight=2)
        batch = message(request={}, evaluations=[QUESTION] * 64)
        with (
            serving(config, load_engine=load_stub_engine) as running,
            dealer(running.endpoint) as greedy,
        ):
            greedy.send(batch)
            items = json.loads(greedy.recv())["evaluations"]
            errors = [item["context"]["error"] for item in items if "error" in item["context"]]
            assert {error["code"] for error in errors} == {"busy"}
            waits = [error["retry_after_ms"] for error in errors]
            assert max(waits) > len(waits) > 50  # a turn each, 2 ms apart
            flood(greedy, running, batch)

    def test_of_messages_that_are_no_requests_count_as_any_other(self, served: Config) -> None:
        """More frames than an envelope has: each is refused before it is decoded."""
        deep = [b"e"] * (MAX_ENVELOPE_FRAMES + 1)
        with dealer(served.endpoint) as greedy:
            flood(greedy, served, message(), deep, until="connections_closed_barred")
        assert counters_of(served)["refused_busy"] > 0

    def test_are_barred_for_as_long_whatever_the_wall_clock_says(
        self, served: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with dealer(served.endpoint) as gateway:
            flood(gateway, served, on_behalf("greedy", request={}))
            wall = time.time
            for step_s in (-86_400, 86_400):
                monkeypatch.setattr(time, "time", lambda step_s=step_s: wall() + step_s)
                gateway.send(on_behalf("greedy", id=f"step {step_s}"))
                error = replies_by_id(gateway, f"step {step_s}")[f"step {step_s}"]["error"]
                assert (error["code"], error["retry_after_ms"] < LONG_S * 1_000 + 20_000) == ("busy", True)


def test_a_client_that_waits_is_never_barred_however_often_it_gets_busy(served: Config) -> None:
    """Sixty requests that wait for `retry_after_ms` each, where fifty a second are served."""
    refused = 0
    with dealer(served.endpoint) as patient:
        due: list[tuple[float, int]] = [(0.0, number) for number in range(60)]
        while refused < 400:
            while due and due[0][0] <= time.monotonic():
                _, number = heapq.heappop(due)
                patient.send(message(id=str(number)))
            wait_ms = (due[0][0] - time.monotonic()) * 1e3 if due else PATIENCE_MS
            if not patient.poll(max(0, int(wait_ms) + 1)):
                continue
            reply: dict[str, Json] = json.loads(patient.recv())
            error: Any = reply.get("error")
            refused += error is not None
            again_s = time.monotonic() + (error["retry_after_ms"] / 1e3 if error else 0.0)
            heapq.heappush(due, (again_s, int(str(reply["id"]))))
    counters = counters_of(served)
    assert counters["refused_busy"] >= 400
    assert "callers_barred" not in counters
