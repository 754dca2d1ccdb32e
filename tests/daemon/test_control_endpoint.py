"""Status and metrics, which wait for nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import zmq

from tests.build import SCORES_AT_START
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Scored
from thor_policy.core.errors import RequestError
from thor_policy.core.status import Status
from thor_policy.daemon.control_endpoint import Snapshot
from thor_policy.daemon.service import serving
from thor_policy.protocol.messages import StatusRequest
from thor_policy.telemetry.metrics import Families
from thor_policy.testing import StubEngine, load_stub_engine

#: No test waits longer than this for anything, in milliseconds.
PATIENCE_MS = 20_000


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


@pytest.mark.parametrize("op", ["status", "metrics"])
def test_both_endpoints_answer_status_and_metrics(served: Config, op: str) -> None:
    for endpoint in (served.endpoint, served.control_endpoint):
        with zmq.Context() as context, context.socket(zmq.REQ) as opened:
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_MS)
            opened.connect(endpoint)
            opened.send(json.dumps({"v": 1, "id": "a", "op": op}).encode())
            reply = json.loads(opened.recv())
        assert (reply["v"], reply["id"]) == (1, "a")
        assert op in reply


@pytest.mark.parametrize("op", ["evaluate", "outcome", "control", "nothing"])
def test_the_control_endpoint_refuses_all_else_and_names_the_other(served: Config, op: str) -> None:
    with (
        Client(served.control_endpoint, timeout_ms=PATIENCE_MS) as client,
        pytest.raises(RequestError) as caught,
    ):
        client.call(op, {})
    assert caught.value.code == "bad_request"
    with Client(served.control_endpoint, timeout_ms=PATIENCE_MS) as client:
        assert client.status().state == "serving"


@pytest.mark.parametrize("frame", [b"", b"{", b"\xff", b"[" * 50_000, b"x" * 100_000, b'{"v":1,"op":7}'])
def test_hostile_frames_get_an_error_each(served: Config, frame: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.RCVTIMEO, PATIENCE_MS)
        opened.connect(served.control_endpoint)
        opened.send(frame)
        assert "error" in json.loads(opened.recv())


class HeldEngine(StubEngine):
    """A stub that scores nothing after the start until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.may = 0, threading.Event()

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        self.scores += 1
        if self.scores > SCORES_AT_START:
            assert self.may.wait(PATIENCE_MS / 1_000)
        return super().score(pack_sha256, question, deadline_ns)


def test_status_is_answered_while_the_model_holds_every_place(config: Config) -> None:
    engine, question = HeldEngine(), json.dumps({"v": 1, "situation": {"actor_id": "a", "action_type": "b"}})
    with serving(replace(config, max_in_flight=4), load_engine=lambda _: engine), zmq.Context() as context:
        holders = [context.socket(zmq.DEALER) for _ in range(4)]
        for opened in holders:
            opened.set(zmq.LINGER, 0)
            opened.connect(config.endpoint)
            opened.send(question.encode())
        with Client(config.endpoint, timeout_ms=PATIENCE_MS) as client:
            assert client.status().state == "serving"
        engine.may.set()
        for opened in holders:
            opened.close()


def test_however_often_the_status_is_wanted_the_parts_are_asked_at_most_once_a_second(
    served: Config,
) -> None:
    with Client(served.endpoint, timeout_ms=PATIENCE_MS) as client:
        status = client.status()
    described = 0

    def describe() -> Status:
        nonlocal described
        described += 1
        return status

    def measure(_: Status) -> Families:
        return iter(())

    snapshot = Snapshot(describe, measure)
    for _ in range(500):
        snapshot.reply(StatusRequest(id="a", op="status"))
        snapshot.reply(StatusRequest(id="a", op="metrics"))
    assert described <= 30  # 20 at once, and one for each second that the test takes
