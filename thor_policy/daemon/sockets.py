"""What a server stands on: its lock, its sockets, its signals, and how other threads wake it.

Owns the rules for an endpoint on this host. Invariant: an endpoint has one daemon, and nothing here blocks.
Main thread, but for what says that it is for any.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from thor_policy.core.errors import AlreadyRunning, ConfigError
from thor_policy.core.results import Committed, Report
from thor_policy.daemon.connection import Listener
from thor_policy.protocol.zmtp import Bounds
from thor_policy.security import files

#: Connections that the kernel keeps until they are accepted.
BACKLOG = 128
#: The type of a socket that requests come to, and of those that may send them.
REQUESTS = (b"ROUTER", (b"REQ", b"DEALER", b"ROUTER"))
#: Longest subscription, in bytes.
_TOPIC_BYTES = 1_024


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


def bind(path: Path, mode: int) -> socket.socket:
    """A Unix socket that listens at `path`, whose lock the caller holds. Raises ConfigError."""
    opened = socket.socket(socket.AF_UNIX)
    opened.setblocking(False)
    old_mask = os.umask(0o177)
    try:
        if path.is_socket():  # of a daemon that was ended
            path.unlink()
        opened.bind(str(path))
        path.chmod(mode)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise ConfigError(f"cannot listen at endpoint ipc://{path}: {error.strerror or error}") from error
    finally:
        os.umask(old_mask)
    return opened


def subscriptions(opened: socket.socket) -> Listener:
    """A listener for subscribers; the first byte of a subscription says whether it begins or ends."""
    bounds = Bounds(frame_bytes=1 + _TOPIC_BYTES)
    return Listener(opened, b"PUB", (b"SUB", b"XSUB"), bounds, asks=False)


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
