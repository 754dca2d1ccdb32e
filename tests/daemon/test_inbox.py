"""Messages that wait to be handled, and whose connection is whose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from thor_policy.config import Config
from thor_policy.core.fair_queue import Lane
from thor_policy.core.results import Closed
from thor_policy.daemon.inbox import MOST_NOTED, Inbox
from thor_policy.daemon.peers import Received, Sender


@pytest.fixture
def connection() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def received(number: int, connection: int) -> Received:
    """A message of a peer of its own, which nobody identified."""
    nobody: Any = None
    route = number.to_bytes(5, "big")
    sender = Sender(nobody, route, (), nobody, Lane("uid:1", route), 0, 1)
    return Received(sender, zmq.Frame(b"x"), None, connection)


def test_connections_whose_end_is_never_reported_are_forgotten_in_time(connection: int) -> None:
    """Each message that was read after its connection had ended kept an entry for ever."""
    inbox = Inbox(Config(caller_requests_per_s=0, caller_bytes_per_s=0))
    for number in range(2 * MOST_NOTED):
        inbox.put(received(number, connection))
        inbox.handle(lambda _: None, for_ns=10**9)
    assert inbox.noted == MOST_NOTED


def test_what_waits_of_a_connection_that_ended_is_dropped(connection: int) -> None:
    inbox = Inbox(Config())
    for number in (1, 1, 2):
        assert inbox.put(received(number, connection)) is None
    lanes, dropped = inbox.drop(Closed(os.fstat(connection).st_ino))
    assert {lane.connection for lane in lanes} == {(1).to_bytes(5, "big"), (2).to_bytes(5, "big")}
    assert (dropped, len(inbox), inbox.noted) == (3, 0, 0)
