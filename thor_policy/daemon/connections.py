"""The connections of one thread: accepted, read in turn, written, and closed where they take too much.

Owns the listeners, their connections and what waits in them. Invariant: connections and the memory that they
take are bounded in all and shared between the callers; nothing that a peer does raises here, or keeps the
thread for longer than the time that it was given. Where descriptors run out, nobody is accepted for a while.
The thread that polls.
"""

from __future__ import annotations

import errno
import itertools
import logging
import resource
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from thor_policy.core.fair_queue import Lane
from thor_policy.daemon.connection import Connection, Listener, peer_of
from thor_policy.daemon.shares import Places
from thor_policy.protocol.zmtp import Incoming, Session, TooManyFrames, Violation
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Open files that are not connections: journal, model, threads.
_RESERVED_FILES = 256
#: Connections accepted at a time, and how long a listener rests after so many, or after a lack of
#: descriptors, in nanoseconds: a storm of them leaves the processor to the others. It rests at least this
#: many times as long as accepting took.
_ACCEPTED_AT_ONCE, _LISTENER_REST_NS, _LACK_REST_NS, _REST_FACTOR = 16, 5_000_000, 100_000_000, 4
_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: Connections of which the kernel says at a time that something arrived.
_EVENTS_AT_ONCE = 256
#: Messages read of a connection before the next caller has its turn.
_TURN_MESSAGES = 8
#: How long a peer may take for its handshake, how often connections are looked at, how often memory is, in
#: seconds.
_HANDSHAKE_S, _ROUND_S, _MEASURE_S = 5.0, 0.25, 0.02
#: Connections that have sent no request may be this old, or this many of each caller, or both.
_SILENT_S, _SILENT_MOST = 1.0, 16
#: After this time a silent connection is counted and logged, once.
_SILENT_LONG_S = 10.0
#: A peer that takes nothing of what waits for it is disconnected after this time, in seconds.
_UNREAD_S = 30.0
#: Bytes of events that may wait for one subscriber; of more it misses some.
_UNREAD_EVENTS_BYTES = 1_048_576
#: Subscriptions of one subscriber, and subscribers of one caller: each costs time for each event.
_MOST_SUBSCRIPTIONS, _MOST_SUBSCRIBERS = 64, 64
#: For this time after its connections filled memory a caller gets no new one, in seconds; twice as long each
#: time that they do so again within the longest of them.
_KEPT_OUT_S, _KEPT_OUT_MOST_S = 1.0, 16.0


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
    return max(16, min(wanted, file_limit - _RESERVED_FILES))


class Connections:
    """The connections of `capacity` at most, which take `headroom_bytes` of memory at most."""

    def __init__(self, *, capacity: int, headroom_bytes: int, counters: Counter[str]) -> None:
        self._capacity = capacity
        self._headroom_bytes = headroom_bytes
        self._counters = counters
        self._epoll = select.epoll()
        self._listeners: dict[int, Listener] = {}
        #: Until when listeners rest, in monotonic nanoseconds.
        self._resting: dict[int, int] = {}
        #: All connections by descriptor, the oldest first.
        self._open: dict[int, Connection] = {}
        #: Those of which something may be read or taken out, with something to write, and that hold memory.
        self._readable: dict[int, Connection] = {}
        self._unflushed: dict[int, Connection] = {}
        self._holding: dict[int, Connection] = {}
        self._subscribers: dict[int, Connection] = {}
        #: When those that still had more to send last had a turn, in monotonic nanoseconds.
        self._turn_ns: dict[str, int] = {}
        self._ended: list[Lane] = []
        self._numbers = itertools.count(1)
        self._places = Places()
        #: Connections that are not of local users.
        self._remote = 0
        #: Until when callers may have no connection to ask by, in monotonic nanoseconds.
        self._barred_ns: dict[str, int] = {}
        #: Until when callers that filled memory get no new one.
        self._kept_out_ns: dict[str, int] = {}
        #: When callers last filled memory, and for how long they were kept out then, in seconds.
        self._filled: dict[str, tuple[int, float]] = {}
        self._limit = logs.Limit()
        self._measured_ns = self._round_ns = 0

    @property
    def open(self) -> int:
        """Connections that are open now. Any thread."""
        return len(self._open)

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody has subscribed to anything."""
        return bool(self._subscribers)

    def listen(self, listener: Listener) -> None:
        """Accept connections from now on."""
        self._listeners[listener.opened.fileno()] = listener
        self._epoll.register(listener.opened, select.EPOLLIN)

    def watch(self, descriptor: int) -> None:
        """End a `poll` early when this descriptor is readable."""
        self._epoll.register(descriptor, select.EPOLLIN)

    # ------------------------------------------------------------ in

    def poll(self, timeout_ms: float) -> None:
        """Wait until something arrives, at most so long; accept, write, and close what takes too much."""
        now_ns = time.monotonic_ns()
        if self._readable:
            timeout_ms = 0
        for descriptor, until_ns in list(self._resting.items()):
            if until_ns <= now_ns:
                del self._resting[descriptor]
                self._epoll.modify(descriptor, select.EPOLLIN)
            else:
                timeout_ms = min(timeout_ms, (until_ns - now_ns) / 1e6)
        if self._open:
            timeout_ms = min(timeout_ms, _ROUND_S * 1e3)
        accepting = []
        for descriptor, events in self._epoll.poll(timeout_ms / 1e3, _EVENTS_AT_ONCE):
            connection = self._open.get(descriptor)
            if connection is not None:
                self._note(connection, events)
            elif descriptor in self._listeners:
                accepting.append(descriptor)
        now_ns = time.monotonic_ns()
        for descriptor in accepting:  # last: a new connection may get the number of one that just ended
            self._accept(descriptor, now_ns)
        if now_ns - self._measured_ns >= _MEASURE_S * 1e9:
            self._measured_ns = now_ns
            self._relieve(now_ns)
        if now_ns - self._round_ns >= _ROUND_S * 1e9:
            self._round_ns = now_ns
            self._look_at_all(now_ns)

    def receive(self, most: int, until_ns: int) -> Iterator[tuple[Connection, Incoming]]:
        """Messages that have arrived, `most` at most and until then (monotonic): the callers in turn."""
        by_caller: dict[str, deque[Connection]] = {}
        for connection in self._readable.values():
            by_caller.setdefault(connection.lane.share, deque()).append(connection)
        self._turn_ns = {share: self._turn_ns.get(share, 0) for share in by_caller}
        turns = deque(by_caller[share] for share in sorted(by_caller, key=self._turn_ns.__getitem__))
        while turns and most > 0 and (now_ns := time.monotonic_ns()) < until_ns:
            turn = turns.popleft()
            connection = turn.popleft()
            self._turn_ns[connection.lane.share] = now_ns
            for _ in range(_TURN_MESSAGES):
                incoming = self._next_of(connection)
                if incoming is None:
                    break
                most, now_ns = most - 1, time.monotonic_ns()
                if incoming.frames:
                    connection.message_ns = now_ns
                    if connection.asks:
                        yield connection, incoming
                    else:
                        self._subscribe(connection, incoming)
                if now_ns >= until_ns:
                    break
            else:
                turn.append(connection)
            if not connection.closed:
                self._hold(connection)
            if self._readable.pop(connection.descriptor, None) is connection:  # it is the last of its caller
                self._readable[connection.descriptor] = connection
            if turn:
                turns.append(turn)

    def take_ended(self) -> list[Lane]:
        """The lanes of connections that have sent something, and ended since this was last called."""
        ended, self._ended = self._ended, []
        return ended

    def _note(self, connection: Connection, events: int) -> None:
        """What the kernel says of a connection."""
        if events & select.EPOLLOUT:
            self._flush(connection, time.monotonic_ns())
        if connection.closed:
            return
        if events & select.EPOLLIN:
            connection.may_read = True
            self._readable[connection.descriptor] = connection
        elif events & (select.EPOLLHUP | select.EPOLLERR):
            self._end(connection)

    def _next_of(self, connection: Connection) -> Incoming | None:
        """The next message of a connection; None if it has no more now, or has ended."""
        if connection.closed:
            return None
        if connection.is_full:  # until `_flush` has written some of it
            connection.is_paused = True
            self._readable.pop(connection.descriptor, None)
            self._watch(connection)
            return None
        try:
            incoming = connection.message()
            if incoming is None and connection.may_read:
                connection.may_read = False
                if not connection.read():
                    if connection.caller is None and not connection.session.is_ready:
                        self._counters["handshakes_failed"] += 1  # who is no local user may have no key
                    self._end(connection)
                    return None
                incoming = connection.message()
        except TooManyFrames:
            self._close_for("connections_closed_for_frames", connection)
            return None
        except Violation as violation:
            connection.queue_bytes(violation.reply)
            connection.flush(0)
            ready = connection.session.is_ready
            self._close_for("connections_closed_for_protocol" if ready else "handshakes_failed", connection)
            return None
        if connection.waiting_bytes:
            self._unflushed[connection.descriptor] = connection
        if not connection.sender and connection.session.is_ready:
            connection.sender = connection.listener.sender(connection.session.mechanism)
        if incoming is None:
            self._readable.pop(connection.descriptor, None)
        return incoming

    def _subscribe(self, connection: Connection, incoming: Incoming) -> None:
        """Take in a subscription, or its end: a byte and what the topic begins with."""
        kind, topic = incoming.frames[0][:1], incoming.frames[0][1:]
        if kind == b"\1" and len(connection.subscriptions) < _MOST_SUBSCRIPTIONS:
            its = (c for c in self._subscribers.values() if c.lane.share == connection.lane.share)
            if connection.descriptor not in self._subscribers and sum(1 for _ in its) >= _MOST_SUBSCRIBERS:
                self._close_for("connections_refused", connection)
                return
            connection.subscriptions.add(topic)
            self._subscribers[connection.descriptor] = connection
        elif kind == b"\0":
            connection.subscriptions.discard(topic)
            if not connection.subscriptions:
                self._subscribers.pop(connection.descriptor, None)
        else:
            self._close_for("connections_closed_for_protocol", connection)

    # ------------------------------------------------------------ out

    def send(self, connection: Connection, frames: Sequence[bytes]) -> bool:
        """Queue a message for `flush`; False if the connection has ended."""
        if connection.closed:
            return False
        connection.queue(frames)
        self._unflushed[connection.descriptor] = connection
        return True

    def publish(self, frames: Sequence[bytes]) -> None:
        """Queue an event for whoever subscribed; one that reads too slowly misses it."""
        data, topic = b"", frames[0]
        beginnings = [topic[:end] for end in range(len(topic) + 1)]
        for connection in self._subscribers.values():
            if connection.subscriptions.isdisjoint(beginnings):
                continue
            if connection.waiting_bytes > _UNREAD_EVENTS_BYTES:
                self._counters["events_missed"] += 1
                continue
            data = data or connection.session.encoded(frames)
            connection.queue_bytes(data)
            self._unflushed[connection.descriptor] = connection

    def flush(self) -> None:
        """Write what was queued, as much as the kernel takes."""
        if self._unflushed:
            now_ns, unflushed = time.monotonic_ns(), self._unflushed
            self._unflushed = {}
            for connection in unflushed.values():
                if not connection.closed and not connection.is_stuck:  # the kernel says when it takes more
                    self._flush(connection, now_ns)

    def _flush(self, connection: Connection, now_ns: int) -> None:
        if not connection.flush(now_ns):
            self._end(connection)
            return
        if connection.is_paused and not connection.is_full:
            connection.is_paused = False
            self._readable[connection.descriptor] = connection
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Let the kernel say what is wanted to be known of a connection now, and nothing else."""
        wanted = 0 if connection.is_paused else select.EPOLLIN
        if connection.waiting_bytes:
            wanted |= select.EPOLLOUT
        if wanted != connection.events:
            connection.events = wanted
            self._epoll.modify(connection.descriptor, wanted)
            self._hold(connection)

    # ------------------------------------------------------------ beginning and end

    def _accept(self, descriptor: int, now_ns: int) -> None:
        """Accept who waits, some of them; then the listener rests."""
        listener, rest_ns = self._listeners[descriptor], _LISTENER_REST_NS
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                opened, address = listener.opened.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _LACKS:
                    continue  # it has left
                self._counters["accepts_failed"] += 1
                rest_ns = _LACK_REST_NS
                break
            try:
                self._add(listener, opened, address, now_ns)
            except OSError:  # it has left
                opened.close()
        accepted_ns = time.monotonic_ns()
        self._resting[descriptor] = accepted_ns + max(rest_ns, _REST_FACTOR * (accepted_ns - now_ns))
        self._epoll.modify(descriptor, 0)

    def _add(self, listener: Listener, opened: socket.socket, address: Any, now_ns: int) -> None:
        """Take in a connection, unless it is one too many. Raises OSError."""
        caller = peer_of(opened) if opened.family == socket.AF_UNIX else None
        share = f"address:{address[0]}" if caller is None else caller.who or ""
        lane = Lane(share, next(self._numbers))
        session = Session(
            listener.mechanism(),
            socket_type=listener.socket_type,
            peer_types=listener.peer_types,
            bounds=listener.bounds,
        )
        opened.setblocking(False)
        connection = Connection(opened, session, caller=caller, lane=lane, listener=listener, now_ns=now_ns)
        self._epoll.register(connection.descriptor, select.EPOLLIN)
        has_place = self._places.has_place(lane, self._capacity)
        if caller is None:  # whoever has many addresses leaves half to local users
            has_place = has_place and self._remote < self._capacity // 2
            self._remote += 1
        self._places.take(lane)
        self._open[connection.descriptor] = connection
        if listener.bars and self.kept_out_until_ns(share) > now_ns:
            self._close_for("connections_refused", connection)
        elif not has_place:
            self._close_for("connections_refused", self._oldest_silent(share) or connection)
        if not connection.closed:
            connection.take_outgoing()
            self._flush(connection, now_ns)

    def _oldest_silent(self, share: str) -> Connection | None:
        """The oldest connection of a caller that could have sent a request, and has not."""
        for connection in self._open.values():
            if connection.lane.share == share and connection.asks and not connection.message_ns:
                return connection
        return None

    def _end(self, connection: Connection) -> None:
        """Forget a connection, and close it."""
        if connection.closed:
            return
        for table in (self._open, self._readable, self._unflushed, self._holding, self._subscribers):
            table.pop(connection.descriptor, None)
        connection.close()
        self._places.give_back(connection.lane)
        self._remote -= connection.caller is None
        if connection.asks and connection.message_ns:
            self._ended.append(connection.lane)

    def _close_for(self, counter: str, connection: Connection) -> None:
        """End a connection that has done what `counter` counts."""
        self._counters[counter] += 1
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            fields = logs.fields(reason=counter, peer=connection.lane.share, unlogged=unlogged or None)
            log.warning("a connection was closed", extra=fields)
        self._end(connection)

    def close(self, linger_s: float) -> None:
        """Write what waits, within so many seconds; then end all connections and listeners."""
        until_s = time.monotonic() + linger_s
        for connection in list(self._open.values()):
            if connection.waiting_bytes and not connection.is_stuck:
                connection.finish(until_s)
        for connection in list(self._open.values()):
            self._end(connection)
        for listener in self._listeners.values():
            listener.opened.close()
        self._epoll.close()

    # ------------------------------------------------------------ who is kept out

    def bar(self, sender: str, until_ns: int) -> None:
        """Close what this caller asks by, and accept no such connection of it until then (monotonic time)."""
        now_ns = time.monotonic_ns()
        self._barred_ns = {name: until for name, until in self._barred_ns.items() if until > now_ns}
        self._barred_ns[sender] = until_ns
        for connection in list(self._open.values()):
            if connection.listener.bars and sender in (connection.sender, connection.lane.share):
                self._close_for("connections_closed_barred", connection)

    def kept_out_until_ns(self, sender: str) -> int:
        """Until when a caller gets no new connection, in monotonic nanoseconds; 0 if it does."""
        return max(self._barred_ns.get(sender, 0), self._kept_out_ns.get(sender, 0))

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
        self._kept_out_ns = {name: until for name, until in self._kept_out_ns.items() if until > now_ns}
        self._kept_out_ns[share] = now_ns + int(for_s * 1e9)

    # ------------------------------------------------------------ rounds

    def _hold(self, connection: Connection) -> None:
        """Note whether a connection holds memory."""
        if connection.held_bytes:
            self._holding[connection.descriptor] = connection
        else:
            self._holding.pop(connection.descriptor, None)

    def _relieve(self, now_ns: int) -> None:
        """While memory is short, close the connection that holds most of the caller that holds most."""
        held = Counter({connection: connection.held_bytes for connection in self._holding.values()})
        excess_bytes = held.total() - self._headroom_bytes
        if excess_bytes <= 0:
            return
        of_share: Counter[str] = Counter()
        largest: dict[str, list[Connection]] = {}
        for connection, held_bytes in reversed(held.most_common()):
            of_share[connection.lane.share] += held_bytes
            largest.setdefault(connection.lane.share, []).append(connection)
        while excess_bytes > 0 and of_share:
            share, _ = of_share.most_common(1)[0]
            connection = largest[share].pop()
            self._close_for("connections_closed_for_memory", connection)
            self._keep_out(share, now_ns)
            excess_bytes -= held[connection]
            of_share[share] -= held[connection]
            if not largest[share]:
                del of_share[share]

    def _look_at_all(self, now_ns: int) -> None:
        """Close what shakes hands, is silent or reads nothing for too long."""
        silent: Counter[str] = Counter()
        for connection in reversed(list(self._open.values())):
            age_ns = now_ns - connection.accepted_ns
            if not connection.session.is_ready and age_ns > _HANDSHAKE_S * 1e9:
                self._close_for("handshakes_failed", connection)
            elif connection.is_stuck and now_ns - connection.progress_ns > _UNREAD_S * 1e9:
                self._close_for("connections_closed_unread", connection)
            elif connection.asks and not connection.message_ns:
                silent[connection.lane.share] += 1
                if age_ns > _SILENT_S * 1e9 and silent[connection.lane.share] > _SILENT_MOST:
                    self._close_for("connections_closed_silent", connection)
                elif age_ns > _SILENT_LONG_S * 1e9 and not connection.is_counted:
                    connection.is_counted = True
                    self._counters["connections_silent"] += 1
                    share = connection.lane.share
                    log.info("%s has a connection that sent no request for %g s", share, _SILENT_LONG_S)
