"""A client of ZMTP 3 over a Unix socket: one request, one reply, no library.

Owns the bytes on the socket (RFC 23, mechanism NULL, socket type DEALER). Invariant: a reply is read whole,
is at most `MAX_REPLY_BYTES` long, and comes before the deadline; anything else raises Fault. Importing
pyzmq takes 30 ms, this file 1 ms. One thread.
"""

from __future__ import annotations

import socket
import time

from thor_policy.hook.calls import Fault

#: Longest reply.
MAX_REPLY_BYTES = 1 << 20
#: Longest command frame of a handshake, in bytes, and most commands before a reply.
_MAX_COMMAND_BYTES, _MAX_COMMANDS = 4_096, 16
#: Signature, version 3.0, mechanism NULL, not a server, filler.
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
#: The command READY with the metadata `Socket-Type: DEALER`.
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
_MORE, _LONG, _COMMAND = 1, 2, 4


def ask(path: str, request: bytes, deadline: float) -> bytes:
    """The reply to a request at the socket `path`, before `deadline` (monotonic seconds).

    Raises Fault if nobody listens, if the reply is late, or if the peer does not speak ZMTP 3 with NULL.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as opened:
        connection = _Connection(opened, path, deadline)
        connection.handshake()
        connection.send(request)
        return connection.reply()


class _Connection:
    """An open socket, and the deadline of all that is done with it."""

    def __init__(self, opened: socket.socket, path: str, deadline: float) -> None:
        self._socket, self._path, self._deadline = opened, path, deadline
        self._commands = 0
        try:
            self._wait()
            opened.connect(path)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise Fault(
                f"no daemon listens at {path} ({error.strerror or error}); start it: thorpolicy serve"
            ) from error

    def handshake(self) -> None:
        self._write(_GREETING)
        greeting = self._read(64)
        if greeting[:1] != b"\xff" or greeting[9:10] != b"\x7f" or greeting[10] < 3:
            raise self._foreign()
        if greeting[12:32] != _GREETING[12:32]:
            raise self._foreign()
        self._write(bytes([_COMMAND, len(_READY)]) + _READY)
        flags, command = self._frame(_MAX_COMMAND_BYTES)
        if not flags & _COMMAND or command[:6] != b"\x05READY":
            raise self._foreign()

    def send(self, request: bytes) -> None:
        self._write(bytes([_LONG]) + len(request).to_bytes(8, "big") + request)

    def reply(self) -> bytes:
        """The reply, which is one frame; commands before it are passed over."""
        while True:
            flags, body = self._frame(MAX_REPLY_BYTES)
            if flags & _COMMAND:
                self._commands += 1
                if self._commands > _MAX_COMMANDS:
                    raise self._foreign()
            elif flags & _MORE:
                raise self._foreign()
            else:
                return body

    def _frame(self, most: int) -> tuple[int, bytes]:
        flags = self._read(1)[0]
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise self._foreign()
        size = int.from_bytes(self._read(8 if flags & _LONG else 1), "big")
        if size > most:
            raise Fault(f"the reply of the daemon has {size} bytes; the limit is {most}")
        return flags, self._read(size)

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            try:
                self._wait()
                part = self._socket.recv(min(size, 65_536))
            except TimeoutError as error:
                raise self._late() from error
            except OSError as error:
                raise Fault(f"the connection to the daemon broke: {error.strerror or error}") from error
            if not part:
                raise Fault("the daemon closed the connection without a reply; it may have stopped")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _write(self, data: bytes) -> None:
        try:
            self._wait()
            self._socket.sendall(data)
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise Fault(f"the connection to the daemon broke: {error.strerror or error}") from error

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _late(self) -> Fault:
        return Fault(f"the daemon at {self._path} gave no reply before the deadline; see `thorpolicy status`")

    def _foreign(self) -> Fault:
        return Fault(f"what listens at {self._path} is not the daemon: it sent something else than ZMTP 3")
