"""The connections of the daemon's sockets: how many each caller may have, and which are closed.

Owns the account of open connections and a thread that reads what ZeroMQ reports of them. Invariant: open
connections never exceed the limit of open files, because ZeroMQ waits until its reports are read before it
accepts more, and this thread closes what exceeds a caller's part. libzmq itself would abort the process
(docs/explanation/transport.md). A connection is closed by shutting its file descriptor down: ZeroMQ then
sees its end. Own thread; `note_message`, `close` and `watch` are for any thread.
"""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import socket
import struct
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

import zmq

from thor_policy.core.fair_queue import Lane
from thor_policy.daemon import memory
from thor_policy.daemon.shares import Places
from thor_policy.daemon.sockets import let_zeromq_yield
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Reports of a socket that ZeroMQ keeps before it waits, which is how many connections may be open that
#: this thread does not know of: 1,000 (its default) and 1.
UNREAD_REPORTS = 1_001
#: Open files that are not connections: journal, model, threads, reports.
_RESERVED_FILES = 256
#: Sockets whose connections are watched, at most.
_SOCKETS = 4
#: How often memory is looked at, how often while it is short, and how often everything else, in seconds.
_TURN_S, _SHORT_TURN_S, _ROUND_S = 0.05, 0.005, 1.0
#: Connections that have sent no request may be this old, or this many of each caller, or both.
_SILENT_S, _SILENT_MOST = 1.0, 16
#: After this time an silent connection is counted and logged, once.
_SILENT_LONG_S = 10.0
#: A peer that lets replies lie this long is disconnected, in seconds; where memory is short, for the shorter
#: time.
_UNREAD_S, _UNREAD_SHORT_S = 30.0, 1.0
#: Where memory is short, a peer is disconnected that sends, and ends no message for this time, in seconds;
#: for the shorter time where twice as much is taken. 1.5 gigabytes come in each second.
_ENDLESS_S, _ENDLESS_SHORT_S = 0.15, 0.05
#: For this time after that, its caller gets no new connection, in seconds; twice as long each time that it
#: does so again within the longest of them.
_KEPT_OUT_S, _KEPT_OUT_MOST_S = 1.0, 16.0
#: Memory beyond that of a daemon at rest above which the allocator returns what is free, in bytes.
_TRIM_BYTES = 32 * 2**20

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 2**20
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft if soft != resource.RLIM_INFINITY else wanted


def connection_limit(wanted: int, file_limit: int) -> int:
    """How many connections may be open where `file_limit` files may: fewer than `wanted` if that is low."""
    spare = file_limit - _RESERVED_FILES - _SOCKETS * UNREAD_REPORTS
    return max(16, min(wanted, max(spare, file_limit // 4)))


#: A connection: the number of its socket, because reports of two sockets come in any order, and its file
#: descriptor.
_Key: TypeAlias = tuple[int, int]


@dataclass(slots=True)
class _Connection:
    """An open connection: whose it is, since when, and whether a request came by it."""

    lane: Lane
    inode: int
    asks: bool
    accepted_ns: int
    message_ns: int = 0
    counted: bool = False
    closed: bool = False
    #: Who sends by it, once that is known: a user, or a key over tcp.
    sender: str = ""
    #: When memory was short and it was first seen to send, since its last message; 0 if it was not.
    sending_ns: int = 0
    unread_bytes: int = 0
    unread_since_ns: int = 0


class Connections:
    """Watches ZeroMQ sockets. `capacity` connections may be open in all.

    `headroom_bytes` is the memory that traffic may take; above it, connections that send without end or read
    nothing are closed. `on_closed` gets the inode of each that has sent a request and ended, on this thread.
    """

    def __init__(
        self,
        *,
        capacity: int,
        headroom_bytes: int,
        counters: Counter[str],
        on_closed: Callable[[int], None],
    ) -> None:
        self._capacity = capacity
        self._headroom_bytes = headroom_bytes
        self._counters = counters
        self._on_closed = on_closed
        self._open: dict[_Key, _Connection] = {}
        self._open_to: Counter[int] = Counter()
        self._places = Places()
        #: Until when callers may have no connection to ask by, in monotonic nanoseconds.
        self._barred_ns: dict[str, int] = {}
        #: Until when callers that filled memory get no new one.
        self._kept_out_ns: dict[str, int] = {}
        #: When callers last filled memory, and for how long they were kept out then, in seconds.
        self._filled: dict[str, tuple[int, float]] = {}
        #: Who is to be barred, and until when, as other threads say it.
        self._to_bar: SimpleQueue[tuple[str, int]] = SimpleQueue()
        self._monitors: dict[zmq.Socket[bytes], tuple[int, bool]] = {}
        self._watched: list[zmq.Socket[bytes]] = []
        #: Numbers of the sockets that barred callers are kept out of.
        self._barring: set[int] = set()
        self._limit = logs.Limit()
        #: Threads of ZeroMQ that yield to the others.
        self._yielding = 0
        self._ended = False
        self._all_read = threading.Event()
        self._round_ns = self._trimmed_ns = 0
        self._rest_bytes = 0
        self._is_short = False
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def open_to(self, number: int) -> int:
        """Connections to the socket with this number that are open now. Any thread."""
        return self._open_to[number]

    def watch(
        self, opened: zmq.Socket[bytes], *, asks: bool, bars: bool = False, handshakes: bool = False
    ) -> int:
        """Watch a socket that is not bound yet, before `start`; returns its number.

        `asks`: its peers send requests; `bars`: barred callers are kept out of it; `handshakes`: count those
        that fail.
        """
        address = f"inproc://connections-{len(self._monitors)}"
        opened.monitor(address, _EVENTS | _FAILED if handshakes else _EVENTS)
        monitor = opened.context.socket(zmq.PAIR)
        monitor.set(zmq.RCVHWM, 1)
        monitor.set(zmq.LINGER, 0)
        monitor.connect(address)
        self._monitors[monitor] = len(self._watched), asks
        if bars:
            self._barring.add(len(self._watched))
        self._watched.append(opened)
        return len(self._watched) - 1

    def start(self) -> None:
        """Begin to watch; the memory of the process now is that of a daemon at rest."""
        self._rest_bytes = memory.resident_bytes()
        self._thread.start()

    def stop(self) -> None:
        """End the thread. The sockets report nothing any more, so that closing them waits for nobody."""
        # pyzmq holds the interpreter while it waits for a report that ZeroMQ cannot deliver, and then this
        # thread could not read it: so the reports are read first, and 1,001 do not come at once
        if self._thread.is_alive():
            self._all_read.clear()
            self._all_read.wait(5)
        for opened in self._watched:
            opened.disable_monitor()
        self._ended = True
        if self._thread.is_alive():
            self._thread.join(5)

    def note_message(self, descriptor: int, sender: str, now_ns: int) -> None:
        """A message of this caller was read from a connection."""
        for number in range(len(self._watched)):
            connection = self._open.get((number, descriptor))
            if connection is not None:
                connection.message_ns, connection.sender = now_ns, sender

    def close(self, descriptor: int, sender: str) -> None:
        """Close the connection with this descriptor, if this caller sends by it."""
        for number in range(len(self._watched)):
            connection = self._open.get((number, descriptor))
            if connection is not None and connection.sender == sender:
                shut(descriptor, connection.inode)

    def bar(self, sender: str, until_ns: int) -> None:
        """Close what this caller asks by, and accept no such connection of it until then (monotonic time)."""
        self._to_bar.put((sender, until_ns))

    def kept_out_until_ns(self, sender: str) -> int:
        """Until when a caller gets no new connection, in monotonic nanoseconds; 0 if it does."""
        return max(self._barred_ns.get(sender, 0), self._kept_out_ns.get(sender, 0))

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        for monitor in self._monitors:
            poller.register(monitor, zmq.POLLIN)
        try:
            while not self._ended:
                wait_s = _SHORT_TURN_S if self._is_short else _TURN_S
                drained = [self._read(monitor) for monitor, _ in poller.poll(int(wait_s * 1e3))]
                if all(drained):
                    self._all_read.set()
                self._turn(time.monotonic_ns())
        except zmq.ContextTerminated:
            pass
        finally:
            for monitor in self._monitors:
                monitor.close(linger=0)

    def _read(self, monitor: zmq.Socket[bytes]) -> bool:
        """Take what ZeroMQ reports of one socket, as much as it keeps; whether that was all."""
        number, asks = self._monitors[monitor]
        for _ in range(UNREAD_REPORTS):
            try:
                report, _ = monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            (kind, descriptor), now_ns = struct.unpack("=Hi", report), time.monotonic_ns()
            key = number, descriptor
            if kind == zmq.EVENT_DISCONNECTED:
                self._forget(key)
            elif kind == zmq.EVENT_ACCEPTED:
                self._forget(key)  # its end was not reported
                self._accepted(key, asks, now_ns)
            else:
                self._counters["handshakes_failed"] += 1
        return False

    def _accepted(self, key: _Key, asks: bool, now_ns: int) -> None:
        peer = _peer_of(key[1])
        if peer is None:
            return
        share, inode = peer
        lane = Lane(share, key)
        has_place = self._places.has_place(lane, self._capacity)
        self._places.take(lane)
        self._open[key] = _Connection(lane, inode, asks, now_ns)
        self._open_to[key[0]] += 1
        if key[0] in self._barring and self.kept_out_until_ns(share) > now_ns:
            self._close_for("connections_refused", key)
        elif not has_place:
            self._refuse(share, key)

    def _refuse(self, share: str, newest: _Key) -> None:
        """Close the oldest connection of a caller that has sent no request, or else the newest one."""
        silent = (
            key
            for key, connection in self._open.items()
            if connection.asks and not connection.message_ns and connection.lane.share == share
        )
        self._close_for("connections_refused", next(silent, newest))

    def _forget(self, key: _Key) -> None:
        connection = self._open.pop(key, None)
        if connection is None:
            return
        self._open_to[key[0]] -= 1
        self._places.give_back(connection.lane)
        if connection.asks and connection.message_ns and not _is_open(key[1], connection.inode):
            self._on_closed(connection.inode)

    def _close_for(self, counter: str, key: _Key) -> None:
        """Close a connection that has done what `counter` counts."""
        self._counters[counter] += 1
        connection = self._open[key]
        connection.closed = True
        connection.message_ns = connection.message_ns or 1  # so that it is not chosen again
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            fields = logs.fields(reason=counter, peer=connection.lane.share, unlogged=unlogged or None)
            log.warning("a connection was closed", extra=fields)
        shut(key[1], connection.inode)

    # ------------------------------------------------------------ rounds

    def _turn(self, now_ns: int) -> None:
        used = memory.resident_bytes() - self._rest_bytes
        self._is_short = used > self._headroom_bytes
        if self._is_short:
            self._relieve(now_ns, _ENDLESS_SHORT_S if used > 2 * self._headroom_bytes else _ENDLESS_S)
        self._close_barred(now_ns)
        if now_ns - self._round_ns < _ROUND_S * 1e9:
            return
        self._round_ns = now_ns
        if self._yielding < len({opened.context for opened in self._watched}):  # one each, named once it runs
            self._yielding = let_zeromq_yield()
        self._close_silent(now_ns)
        self._close_unread(now_ns)
        rest_s = _ROUND_S if self._is_short else 5 * _ROUND_S
        if used > _TRIM_BYTES and now_ns - self._trimmed_ns >= rest_s * 1e9:
            self._trimmed_ns = now_ns
            memory.give_back()

    def _close_barred(self, now_ns: int) -> None:
        """Close what barred callers ask by; whose key a connection has shows at its first message."""
        while not self._to_bar.empty():
            sender, until_ns = self._to_bar.get()
            self._barred_ns[sender] = until_ns
        self._barred_ns, self._kept_out_ns = (
            {sender: until_ns for sender, until_ns in kept.items() if until_ns > now_ns}
            for kept in (self._barred_ns, self._kept_out_ns)
        )
        if not self._barred_ns:
            return
        for key, connection in list(self._open.items()):
            if key[0] not in self._barring or connection.closed:
                continue
            if connection.sender in self._barred_ns or connection.lane.share in self._barred_ns:
                self._close_for("connections_closed_barred", key)

    def _relieve(self, now_ns: int, endless_s: float) -> None:
        """Close what fills memory: messages that never end, replies that nobody reads.

        That a peer sends shows only while its bytes lie in the kernel, which is seldom: ZeroMQ takes them.
        """
        for key, connection in list(self._open.items()):
            if connection.closed:
                continue
            is_endless = False
            if connection.sending_ns <= connection.message_ns:
                connection.sending_ns = 0
            if connection.asks and _pending(key[1], termios.FIONREAD):
                connection.sending_ns = connection.sending_ns or now_ns
                is_endless = now_ns - connection.sending_ns > endless_s * 1e9
            unread_ns = self._unread_ns(key, connection, now_ns)
            lets_lie = unread_ns > _UNREAD_SHORT_S * 1e9 and _is_full(key[1])
            if lets_lie or is_endless:
                self._close_for("connections_closed_for_memory", key)
                self._keep_out(connection.lane.share, now_ns)

    def _keep_out(self, share: str, now_ns: int) -> None:
        """Let a caller that filled memory have no new connection for a while."""
        at_ns, for_s = self._filled.get(share, (0, 0.0))
        if now_ns < self._kept_out_ns.get(share, 0):
            return  # another of its connections, at the same time
        again = now_ns - at_ns < (for_s + _KEPT_OUT_MOST_S) * 1e9
        for_s = min(2 * for_s, _KEPT_OUT_MOST_S) if for_s and again else _KEPT_OUT_S
        self._filled = {
            name: filled
            for name, filled in self._filled.items()
            if now_ns - filled[0] < 2 * _KEPT_OUT_MOST_S * 1e9
        }
        self._filled[share] = now_ns, for_s
        self._kept_out_ns[share] = now_ns + int(for_s * 1e9)

    def _close_silent(self, now_ns: int) -> None:
        """Close the oldest of a caller's connections that have sent no request, where they are many."""
        silent: Counter[str] = Counter()
        for key, connection in reversed(list(self._open.items())):
            if not connection.asks or connection.message_ns:
                continue
            age_ns = now_ns - connection.accepted_ns
            silent[connection.lane.share] += 1
            if age_ns > _SILENT_S * 1e9 and silent[connection.lane.share] > _SILENT_MOST:
                self._close_for("connections_closed_silent", key)
            elif age_ns > _SILENT_LONG_S * 1e9 and not connection.counted:
                connection.counted = True
                self._counters["connections_silent"] += 1
                log.info(
                    "%s has a connection that sent no request for %g s: it is idle, or sets a routing id "
                    "that another connection has",
                    connection.lane.share,
                    _SILENT_LONG_S,
                )

    def _close_unread(self, now_ns: int) -> None:
        for key, connection in list(self._open.items()):
            if self._unread_ns(key, connection, now_ns) > _UNREAD_S * 1e9:
                self._close_for("connections_closed_unread", key)

    def _unread_ns(self, key: _Key, connection: _Connection, now_ns: int) -> int:
        """For how long the peer has read nothing of what lies in the kernel for it."""
        unread_bytes = _pending(key[1], termios.TIOCOUTQ)
        if unread_bytes != connection.unread_bytes or not unread_bytes:
            connection.unread_bytes, connection.unread_since_ns = unread_bytes, now_ns
        return now_ns - connection.unread_since_ns


def _peer_of(descriptor: int) -> tuple[str, int] | None:
    """Whose a connection is (its user, as the kernel says, or its address), and its inode; None if it ended.

    Where another connection has the descriptor by now it is that one's; `_is_open` tells then.
    """
    try:
        with _duplicate(descriptor) as duplicate:
            return _share_of(duplicate), os.fstat(duplicate.fileno()).st_ino
    except OSError:
        return None


def _duplicate(descriptor: int) -> socket.socket:
    """The socket of this descriptor, under another one. Raises OSError where there is none."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except BaseException:
        os.close(duplicate)
        raise


def shut(descriptor: int, inode: int) -> None:
    """End the connection with this inode, if the descriptor is still its own."""
    try:
        with _duplicate(descriptor) as duplicate:
            if os.fstat(duplicate.fileno()).st_ino == inode:
                duplicate.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended by itself
        return


def _share_of(opened: socket.socket) -> str:
    """Whose a connection is. Raises OSError."""
    if opened.family != socket.AF_UNIX:
        return f"address:{opened.getpeername()[0]}"
    _, uid, _ = struct.unpack("3i", opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return f"uid:{uid}"


def _is_open(descriptor: int, inode: int) -> bool:
    """Whether this socket is open under this descriptor."""
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False


def _is_full(descriptor: int) -> bool:
    """Whether the kernel may take no more of what is sent by a connection, so that the rest lies here."""
    try:
        with _duplicate(descriptor) as duplicate:
            buffer_bytes = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    except OSError:
        return False
    return _pending(descriptor, termios.TIOCOUTQ) > buffer_bytes // 4


def _pending(descriptor: int, question: int) -> int:
    """Bytes that lie in a connection's buffer of the kernel; 0 if it has ended."""
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, question, b"\0" * 4), "little")
    except OSError:
        return 0
