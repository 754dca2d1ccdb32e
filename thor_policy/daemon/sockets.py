"""What a server stands on: its lock, its sockets, its signals, and how other threads wake it.

Owns the rules for a ZeroMQ endpoint on this host. Invariant: an endpoint has one daemon, and nothing here
blocks. Main thread, but for what says that it is for any.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from thor_policy.config import Config
from thor_policy.core.errors import AlreadyRunning, ConfigError
from thor_policy.core.requests import Caller
from thor_policy.core.results import Closed, Committed, Report
from thor_policy.security import files

#: A frame that is this many times as long as Config.max_request_bytes drops the connection inside ZeroMQ,
#: before it is read; between the two there is a reply.
_FRAME_FACTOR = 2
#: Requests of one peer that ZeroMQ reads ahead, and replies and events that may wait for one peer; more are
#: dropped, and counted.
_READ_AHEAD, _UNREAD_REPLIES, _UNREAD_EVENTS = 64, 1_000, 1_000
#: How long a peer may take for its handshake, in milliseconds.
_HANDSHAKE_MS = 5_000
#: Longest subscription, in bytes.
_SUBSCRIPTION_BYTES = 1_024
#: How much less often ZeroMQ's threads run than the daemon's others where both want a processor. A decode's
#: threads wait for each other some hundred times. Beside connections that came without end they waited each
#: time for a turn of ZeroMQ's: it took 1.1 s where it took 0.2. With 10, answers to others came too late.
_NICE = 4
#: The threads of this process, by number.
_THREADS = Path("/proc/self/task")


@dataclass
class Mailbox:
    """What other threads report to the main thread, and how they wake it.

    An item is a report with its ticket, what became of an event, or a connection that ended.
    """

    items: deque[tuple[int, Report] | Committed | Closed] = field(default_factory=deque)
    wakeup_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def put(self, *items: tuple[int, Report] | Committed | Closed, wake: bool = True) -> None:
        """Any thread; never blocks. Without `wake` the items lie until something else wakes the loop."""
        self.items.extend(items)
        if wake:
            os.eventfd_write(self.wakeup_fd, 1)

    def take(self) -> Iterator[tuple[int, Report] | Committed | Closed]:
        """Main thread: everything that has arrived."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wakeup_fd)
        while self.items:
            yield self.items.popleft()

    def close(self) -> None:
        os.close(self.wakeup_fd)


def open_router(context: zmq.Context[zmq.Socket[bytes]], config: Config) -> zmq.Socket[bytes]:
    """A ROUTER with our limits, not bound yet."""
    # libzmq draws the first routing id that it gives out from rand(), which nothing seeds: it would be the
    # same in every process, and a peer that takes a later one before its turn makes libzmq abort.
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
    router = context.socket(zmq.ROUTER)
    router.set(zmq.ROUTER_MANDATORY, 1)
    router.set(zmq.LINGER, 1_000)
    router.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    router.set(zmq.MAXMSGSIZE, _FRAME_FACTOR * config.max_request_bytes)
    router.set(zmq.RCVHWM, _READ_AHEAD)
    router.set(zmq.SNDHWM, _UNREAD_REPLIES)
    return router


def open_publisher(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """The socket that events go out of, not bound yet. A subscriber that is too slow misses events."""
    publisher = context.socket(zmq.PUB)
    publisher.set(zmq.LINGER, 1_000)
    publisher.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    publisher.set(zmq.MAXMSGSIZE, _SUBSCRIPTION_BYTES)
    publisher.set(zmq.SNDHWM, _UNREAD_EVENTS)
    return publisher


def bind(opened: zmq.Socket[bytes], endpoint: str, path: Path, mode: int) -> None:
    """Bind a socket at an ipc endpoint whose file is `path`. Raises ConfigError.

    Peers must speak ZMTP 3: a socket with a ZAP domain refuses older versions, whose connections libzmq leaks
    in part. There must be no ZAP handler in the socket's context, or each handshake would wait for it.
    """
    opened.set(zmq.ZAP_DOMAIN, b"ipc")
    old_mask = os.umask(0o177)
    try:
        opened.bind(endpoint)
        path.chmod(mode)
    except (zmq.ZMQError, OSError) as error:
        raise ConfigError(f"cannot listen at endpoint {endpoint}: {error}") from error
    finally:
        os.umask(old_mask)


def caller_of(frame: zmq.Frame) -> Caller:
    """Who sent a frame over ipc, as the kernel vouches for it: `Peer-Address` is `localhost:UID:GID:PID`."""
    _, uid, gid, pid = str(frame.get("Peer-Address")).split(":")
    return Caller(transport="ipc", uid=int(uid), gid=int(gid), pid=int(pid))


@contextlib.contextmanager
def endpoint_lock(path: Path) -> Iterator[None]:
    """Hold the endpoint at `path`: binding an ipc path twice succeeds silently and steals it.

    Raises AlreadyRunning if another daemon holds it, ConfigError if its directory cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = files.open_own(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o640)
    except ValueError as error:
        raise ConfigError(f"the lock {path}.lock of the endpoint {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot use the socket directory {path.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunning(
                f"the endpoint ipc://{path} is already served; stop that daemon, "
                "or choose another with --endpoint"
            ) from error
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def stop_on_signals(stop: Callable[[], None], *, reload: Callable[[], None] | None = None) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`; a second one ends the process at once. SIGHUP calls `reload`.

    Off the main thread nothing happens: whoever runs there handles signals. A poll is retried after a
    signal, but `stop` makes the mailbox readable, so the loop wakes all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def handle(number: int, _frame: object) -> None:
        if seen:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        seen.append(number)
        stop()

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    if reload is not None:
        old[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: reload())
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def let_zeromq_yield() -> int:
    """Let ZeroMQ's threads in this process run less often than others; how many there are. Any thread.

    A thread has its name only once it runs.
    """
    threads = [int(thread.name) for thread in _THREADS.iterdir() if _name_of(thread).startswith("ZMQbg/IO")]
    niceness = os.getpriority(os.PRIO_PROCESS, os.getpid()) + _NICE
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended, or this is not allowed
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
    return len(threads)


def _name_of(thread: Path) -> str:
    try:
        return (thread / "comm").read_text()
    except OSError:  # it has ended
        return ""
