"""What a server stands on: its lock, its sockets, its signals, and how other threads wake it.

Owns the rules for a ZeroMQ endpoint on this host. Invariant: an endpoint has one daemon, and nothing here
blocks. Main thread, but for `Mailbox.put`.
"""

from __future__ import annotations

import contextlib
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
from thor_policy.core.results import Committed, Report
from thor_policy.security import files

#: Frames above this drop the connection inside ZeroMQ; the limit with a reply is Config.max_request_bytes.
MAX_FRAME_BYTES = 64 * 1024 * 1024
#: Messages that may wait for one peer before more are dropped, and counted.
PEER_QUEUE = 10_000


@dataclass
class Mailbox:
    """What other threads report to the main thread, and how they wake it.

    An item is a report with its ticket, or what became of an event.
    """

    items: deque[tuple[int, Report] | Committed] = field(default_factory=deque)
    wakeup_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))

    def put(self, *items: tuple[int, Report] | Committed, wake: bool = True) -> None:
        """Any thread; never blocks. Without `wake` the items lie until something else wakes the loop."""
        self.items.extend(items)
        if wake:
            os.eventfd_write(self.wakeup_fd, 1)

    def take(self) -> Iterator[tuple[int, Report] | Committed]:
        """Main thread: everything that has arrived."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wakeup_fd)
        while self.items:
            yield self.items.popleft()

    def close(self) -> None:
        os.close(self.wakeup_fd)


def bind_router(context: zmq.Context[zmq.Socket[bytes]], config: Config) -> zmq.Socket[bytes]:
    """The socket that local requests come to. Raises ConfigError."""
    router = context.socket(zmq.ROUTER)
    router.set(zmq.ROUTER_MANDATORY, 1)
    _bind(router, config.endpoint, config.socket_path, config.socket_mode)
    return router


def bind_publisher(context: zmq.Context[zmq.Socket[bytes]], config: Config) -> zmq.Socket[bytes]:
    """The socket that events go out of; a subscriber that is too slow makes a send fail, not vanish."""
    publisher = context.socket(zmq.PUB)
    publisher.set(zmq.XPUB_NODROP, 1)
    _bind(publisher, config.events_endpoint, config.events_path, config.socket_mode)
    return publisher


def limit(opened: zmq.Socket[bytes]) -> None:
    """Limit what a socket of ours holds for its peers."""
    opened.set(zmq.LINGER, 1_000)
    opened.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    opened.set(zmq.SNDHWM, PEER_QUEUE)
    opened.set(zmq.RCVHWM, PEER_QUEUE)


def _bind(opened: zmq.Socket[bytes], endpoint: str, path: Path, mode: int) -> None:
    limit(opened)
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
