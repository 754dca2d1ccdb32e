"""What a supervisor is told: that the daemon is ready, that it gets on with its work, that it stops.

Owns the notify socket of sd_notify(3) and the pulses of the threads. Invariant: a sign of life is sent
only if each watched part got something done since the last one, or has nothing to do; so a decode or a
commit that never returns ends the signs, however lively the other threads are; and after a while the
daemon too, where no supervisor does. Nothing here blocks. Main thread, but for `Pulse`, which the thread
of its part writes and any thread reads.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Protocol

from thor_policy.core.errors import Stalled

log = logging.getLogger(__name__)


class Pulse:
    """When a thread last got something done while it had more to do."""

    def __init__(self) -> None:
        #: Monotonic nanoseconds; 0 at rest.
        self.since_ns = 0

    def beat(self) -> None:
        """Something is done or begun, and there is more to do."""
        self.since_ns = time.monotonic_ns()

    def rest(self) -> None:
        """There is nothing to do."""
        self.since_ns = 0

    @property
    def stalled_s(self) -> float:
        """How long nothing has been done although there is something to do, in seconds."""
        since_ns = self.since_ns
        return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0


class Part(Protocol):
    """A thread that is watched."""

    @property
    def alive(self) -> bool: ...
    @property
    def pulse(self) -> Pulse: ...


class Supervisor:
    """Whoever started the daemon, as far as the environment names one; without one, calls do nothing.

    A sign of life is due each half of WATCHDOG_USEC. `turn` has to be called more often than that. Whoever
    started it or not, a part that stands still for `stall_s` seconds (0: never) ends it.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, stall_s: float = 0.0) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environ.get("WATCHDOG_USEC", "") if ours else ""
        self._every_ns = int(limit_us) * 500 if limit_us.isdecimal() else 0
        self._stall_s = stall_s
        self._parts: Mapping[str, Part] = {}
        #: When a part was first found to have ended, monotonic nanoseconds.
        self._ended_ns: dict[str, int] = {}
        self._state = ""
        self._signed_ns = 0
        self._still: tuple[str, ...] = ()
        self._stopping = False
        self._deaf = False

    def watch(self, parts: Mapping[str, Part]) -> None:
        """The parts, by name, without whose progress there is no sign of life."""
        self._parts = parts

    def loading(self, what: str) -> None:
        """The daemon is starting; `what` is for people."""
        self._tell(f"STATUS={what}")

    def ready(self, state: str, now_ns: int) -> None:
        """The daemon serves; `state` says in a few words what, and `now_ns` is monotonic."""
        self._state, self._signed_ns = state, now_ns
        self._tell(f"READY=1\nSTATUS={state}")

    def turn(self, stopping: bool, now_ns: int) -> None:
        """Called again and again by the main thread: says that it stops, or what is due.

        Raises Stalled when a part has stood still for too long, unless the daemon is stopping anyway.
        """
        if self._stall_s and not stopping:
            self._check_stall(now_ns)
        if stopping:
            if not self._stopping:
                self._tell("STOPPING=1\nSTATUS=stopping: answering what is in flight")
            self._stopping = True
        elif self._every_ns and now_ns - self._signed_ns >= self._every_ns:
            still = tuple(name for name, part in self._parts.items() if self._is_stalled(part))
            if not still and self._tell("WATCHDOG=1"):
                self._signed_ns = now_ns
            if still != self._still:
                self._say_what_is_stalled(still, now_ns)

    def _check_stall(self, now_ns: int) -> None:
        for name, part in self._parts.items():
            since_ns = part.pulse.since_ns if part.alive else self._ended_ns.setdefault(name, now_ns)
            if since_ns and (now_ns - since_ns) / 1e9 >= self._stall_s:
                what = "got nothing done" if part.alive else "has ended"
                told = f"{name} {what} for {(now_ns - since_ns) / 1e9:.0f} s; stall_s is {self._stall_s:g}"
                self._tell(f"STATUS={told}")
                raise Stalled(f"{told}: the daemon ends, to be started again")

    def _is_stalled(self, part: Part) -> bool:
        return not part.alive or 0 < part.pulse.since_ns <= self._signed_ns

    def _say_what_is_stalled(self, still: tuple[str, ...], now_ns: int) -> None:
        self._still = still
        if not still:
            log.warning("all parts get on again")
            self._tell(f"STATUS={self._state}")
            return
        unsigned_s = (now_ns - self._signed_ns) / 1e9
        told = f"{' and '.join(still)} got nothing done for {unsigned_s:.0f} s"
        log.error("%s: no sign of life until that changes, then the supervisor restarts the daemon", told)
        self._tell(f"STATUS={told}")

    def _tell(self, message: str) -> bool:
        """True unless there is somebody who cannot be told."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
                opened.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._deaf:  # once, for a sign of life is tried again at each turn
                log.warning("the supervisor at %r cannot be told %r: %s", self._address, message, error)
            self._deaf = True
            return False
        self._deaf = False
        return True
