"""Messages that wait to be handled, and whose connection is whose."""

from __future__ import annotations

from typing import Any

from thor_policy.config import Config
from thor_policy.core.fair_queue import Lane
from thor_policy.daemon.inbox import Inbox
from thor_policy.daemon.peers import Received, Sender


def received(share: str, connection: int) -> Received:
    """A message that nobody identified."""
    nobody: Any = None
    return Received(Sender(nobody, (), nobody, Lane(share, connection), 0, 1), b"x", None)


def test_what_waits_of_a_connection_that_ended_is_dropped_for_all_callers_that_it_spoke_for() -> None:
    inbox = Inbox(Config())
    for share, connection in (("uid:1", 1), ("uid:1 for kim", 1), ("uid:1", 2), ("uid:1", 1)):
        assert inbox.put(received(share, connection)) is None
    lanes, dropped = inbox.drop(Lane("uid:1", 1))
    assert lanes == {Lane("uid:1", 1), Lane("uid:1 for kim", 1)}
    assert (dropped, len(inbox)) == (3, 1)
    assert inbox.drop(Lane("uid:1", 1)) == (set(), 0)


def test_what_was_handled_waits_no_more() -> None:
    inbox, handled = Inbox(Config()), list[Received]()
    message = received("uid:1", 1)
    inbox.put(message)
    inbox.handle(handled.append, for_ns=10**9)
    assert (handled, len(inbox)) == ([message], 0)
    assert inbox.drop(Lane("uid:1", 1)) == ({Lane("uid:1", 1)}, 0)
