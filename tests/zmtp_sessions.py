"""The server's half of ZMTP over a socket that blocks, for the tests of formats: real clients talk to it.

Owns the thread that feeds a session and answers its messages. It ends with the connection.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thor_policy.protocol.zmtp import Bounds, Incoming, Mechanism, Session, Violation

#: Generous bounds, and what a socket that gets requests talks to.
BOUNDS = Bounds(1_000_000, 16, 255, 1_000)
PEERS = (b"REQ", b"DEALER", b"ROUTER")


def session_of(mechanism: Mechanism, bounds: Bounds = BOUNDS) -> Session:
    return Session(mechanism, socket_type=b"ROUTER", peer_types=PEERS, bounds=bounds)


def messages_of(session: Session, *chunks: bytes) -> list[Incoming]:
    """The messages that these bytes are, without the commands. Raises Violation."""
    messages = []
    for chunk in chunks:
        session.feed(chunk)
        while (incoming := session.message()) is not None:
            if incoming.frames:
                messages.append(incoming)
    return messages


class Served:
    """One connection at a time: each message is kept, and what `answer` makes of it is sent back."""

    def __init__(self, path: Path, mechanism: Callable[[], Mechanism]) -> None:
        self.received: list[Incoming] = []
        self.violations: list[str] = []
        self.answer: Callable[[Incoming], Sequence[bytes]] = lambda incoming: incoming.frames
        self.ended = threading.Event()
        self._mechanism = mechanism
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(9)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                opened, _ = self._listener.accept()
            except OSError:
                return
            with opened:
                try:
                    self._serve(opened)
                except Violation as violation:
                    self.violations.append(str(violation))
                    opened.sendall(violation.reply)
                except OSError:
                    pass
            self.ended.set()

    def _serve(self, opened: socket.socket) -> None:
        session = session_of(self._mechanism())
        while True:
            while (incoming := session.message()) is not None:
                if incoming.frames:
                    self.received.append(incoming)
                    session.outgoing.append(session.encoded(self.answer(incoming)))
            opened.sendall(b"".join(session.outgoing))
            session.outgoing.clear()
            data = opened.recv(65_536)
            if not data:
                return
            session.feed(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@contextmanager
def served(path: Path, mechanism: Callable[[], Mechanism]) -> Iterator[Served]:
    opened = Served(path, mechanism)
    try:
        yield opened
    finally:
        opened.close()
