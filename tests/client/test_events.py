"""The events that a command waits for: only those of its kind end a wait."""

from __future__ import annotations

from pathlib import Path

import zmq

from thor_policy.client.events import Events


def test_a_wait_ends_with_an_event_of_its_kind_and_drops_those_that_follow(short_dir: Path) -> None:
    endpoint = f"ipc://{short_dir}/policy.sock.events"
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.bind(endpoint)
        publisher.set(zmq.LINGER, 0)
        with Events(endpoint, "approval") as events:
            assert publisher.recv() == b"\x01approval"
            publisher.send_multipart([b"decision", b"{}"])
            assert not events.wait(0.01)
            for _ in range(3):
                publisher.send_multipart([b"approval", b"{}"])
            assert events.wait(20)


def test_without_events_a_wait_is_only_a_pause(short_dir: Path) -> None:
    with Events("tcp://127.0.0.1:9.events", "approval") as events:
        assert not events.wait(0)
    with Events(f"ipc://{short_dir}/nobody.events", "approval") as events:
        assert not events.wait(0)
