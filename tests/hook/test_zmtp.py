"""The client of ZMTP that needs no library, against libzmq and against peers that send anything else."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.config import Config
from thor_policy.hook import zmtp
from thor_policy.hook.calls import Fault

#: Longest wait of a test, in seconds.
PATIENCE_S = 20.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


def ask(path: Path | str, request: bytes = b"{}", wait_s: float = PATIENCE_S) -> bytes:
    return zmtp.ask(str(path), request, time.monotonic() + wait_s)


@contextmanager
def sending(folder: Path, data: bytes, *, stays: bool = False) -> Iterator[Path]:
    """A peer that sends these bytes to its first client, and then closes unless it `stays`."""
    path, done = folder / "peer", threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            opened, _ = listener.accept()
            with opened:
                opened.settimeout(PATIENCE_S)
                try:
                    opened.sendall(data)
                    if not stays:
                        opened.shutdown(socket.SHUT_WR)
                    while opened.recv(65_536):  # until the client has closed
                        pass
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            done.set()
            thread.join()
            path.unlink()


def test_a_router_of_libzmq_gets_the_request_and_the_client_its_reply(short_dir: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{short_dir}/socket")
        received: list[list[bytes]] = []

        def serve() -> None:
            received.append(router.recv_multipart())
            router.send_multipart([received[0][0], b"x" * 70_000])

        thread = threading.Thread(target=serve)
        thread.start()
        reply = ask(short_dir / "socket", b'{"a": 1}' * 40)
        thread.join()
    assert reply == b"x" * 70_000
    assert received[0][1:] == [b'{"a": 1}' * 40]


def test_the_daemon_answers(gate: Config) -> None:
    request = {"v": 1, "id": "a", "op": "status"}
    reply = json.loads(ask(gate.socket_path, json.dumps(request).encode()))
    assert (reply["id"], reply["status"]["state"]) == ("a", "serving")


def test_a_reply_in_many_parts_is_read_whole(short_dir: Path) -> None:
    frame = b"\x02" + (300_000).to_bytes(8, "big") + b"y" * 300_000
    with sending(short_dir, GREETING + READY + b"\x04\x06\x05OTHER" + frame) as path:
        assert ask(path) == b"y" * 300_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n" + bytes(64), "is not the daemon"),
        (b"\xff" + bytes(8) + b"\x7f\x02" + bytes(53), "is not the daemon"),
        (GREETING.replace(b"NULL", b"PLAI"), "is not the daemon"),
        (GREETING + b"\x04\x05\x05ERROR"[:6], "closed the connection"),
        (GREETING + b"\x04\x06\x05ERROR", "is not the daemon"),
        (GREETING + READY, "closed the connection"),
        (GREETING + READY + b"\x08\x01x", "is not the daemon"),
        (GREETING + READY + b"\x01\x01x\x00\x01y", "is not the daemon"),
        (GREETING + READY + b"\x04\x01x" * 20, "is not the daemon"),
        (GREETING + READY + b"\x02" + (1 << 40).to_bytes(8, "big"), "the limit is 1048576"),
        (GREETING + READY + b"\x00\x09short", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_a_peer_that_sends_something_else_is_a_fault(short_dir: Path, data: bytes, reason: str) -> None:
    with sending(short_dir, data) as path, pytest.raises(Fault, match=reason):
        ask(path)


@given(data=st.binary(max_size=200), after=st.sampled_from([b"", GREETING, GREETING + READY]))
def test_any_bytes_are_a_reply_or_a_fault(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, after: bytes
) -> None:
    with sending(tmp_path_factory.mktemp("z"), after + data) as path:
        try:
            assert isinstance(ask(path), bytes)
        except Fault as fault:
            assert str(fault)  # noqa: PT017  either is right


def test_a_peer_that_never_replies_is_late(short_dir: Path) -> None:
    peer = sending(short_dir, GREETING + READY, stays=True)
    with peer as path, pytest.raises(Fault, match="before the deadline"):
        ask(path, wait_s=0.05)


@pytest.mark.parametrize("place", ["nobody", "x" * 120])
def test_a_socket_that_is_not_there_names_the_cure(short_dir: Path, place: str) -> None:
    with pytest.raises(Fault, match="thorpolicy serve"):
        ask(short_dir / place)


def test_a_deadline_that_has_passed_asks_nobody(short_dir: Path) -> None:
    with pytest.raises(Fault, match="before the deadline"):
        ask(short_dir / "nobody", wait_s=-1.0)
