"""The watchdog: messages to the supervisor (ready, alive, stopping), and the detection of stalled threads.

Owns the notify socket of sd_notify(3) and the pulses of the threads. Invariant: WATCHDOG=1 is sent only if
each watched part made progress since the last one or has nothing to do. So a decode or a commit that never
returns stops the keep-alive messages, whatever the other threads do; after `stall_s` it ends the daemon,
also without a supervisor. Nothing here blocks. Main thread, except `Pulse`: the thread of its part writes
it, any thread reads it.
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
    """The time at which a thread last made progress while it had work."""

    def __init__(self) -> None:
        #: Monotonic nanoseconds; 0 while the thread has no work.
        self.since_ns = 0

    def beat(self) -> None:
        """The thread finished or began something, and has more work."""
        self.since_ns = time.monotonic_ns()

    def rest(self) -> None:
        """The thread has no work."""
        self.since_ns = 0

    @property
    def stalled_s(self) -> float:
        """Seconds without progress although there is work; 0 if there is none."""
        since_ns = self.since_ns
        return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0


class Part(Protocol):
    """A watched thread."""

    @property
    def alive(self) -> bool: ...
    @property
    def pulse(self) -> Pulse: ...


class Supervisor:
    """The supervisor (systemd) named in the environment; without one, nothing is sent.

    WATCHDOG=1 is due each half of WATCHDOG_USEC; `turn` must be called more often. A part that makes
    no progress for `stall_s` seconds (0: never) ends the daemon, with or without a supervisor.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, stall_s: float = 0.0) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environ.get("WATCHDOG_USEC", "") if ours else ""
        self._every_ns = int(limit_us) * 500 if limit_us.isdecimal() else 0
        self._stall_s = stall_s
        self._parts: Mapping[str, Part] = {}
        #: When a part was first seen dead, in monotonic nanoseconds.
        self._ended_ns: dict[str, int] = {}
        self._state = ""
        self._sent_ns = 0
        self._stalled: tuple[str, ...] = ()
        self._stopping = False
        self._send_failed = False

    def watch(self, parts: Mapping[str, Part]) -> None:
        """Set the parts, by name, that must make progress for WATCHDOG=1 to be sent."""
        self._parts = parts

    def loading(self, what: str) -> None:
        """Send that the daemon is starting; `what` is a text for people."""
        self._send(f"STATUS={what}")

    def ready(self, state: str, now_ns: int) -> None:
        """Send that the daemon serves; `state` is a short text for people, `now_ns` is monotonic."""
        self._state, self._sent_ns = state, now_ns
        self._send(f"READY=1\nSTATUS={state}")

    def turn(self, stopping: bool, now_ns: int) -> None:
        """Send the messages that are due; the main thread calls this again and again.

        Raises Stalled if a part made no progress for `stall_s`, unless the daemon is stopping.
        """
        if self._stall_s and not stopping:
            self._check_stall(now_ns)
        if stopping:
            if not self._stopping:
                self._send("STOPPING=1\nSTATUS=stopping: answering what is in flight")
            self._stopping = True
        elif self._every_ns and now_ns - self._sent_ns >= self._every_ns:
            stalled = tuple(name for name, part in self._parts.items() if self._is_stalled(part))
            if not stalled and self._send("WATCHDOG=1"):
                self._sent_ns = now_ns
            if stalled != self._stalled:
                self._report_stalled(stalled, now_ns)

    def _check_stall(self, now_ns: int) -> None:
        for name, part in self._parts.items():
            since_ns = part.pulse.since_ns if part.alive else self._ended_ns.setdefault(name, now_ns)
            if since_ns and (now_ns - since_ns) / 1e9 >= self._stall_s:
                seconds = f"{(now_ns - since_ns) / 1e9:.0f} s"
                stall = f"made no progress for {seconds}" if part.alive else f"ended {seconds} ago"
                message = f"{name} {stall}; stall_s is {self._stall_s:g}"
                self._send(f"STATUS={message}")
                raise Stalled(f"{message}: the daemon exits with status {Stalled.exit_code}, to be restarted")

    def _is_stalled(self, part: Part) -> bool:
        return not part.alive or 0 < part.pulse.since_ns <= self._sent_ns

    def _report_stalled(self, stalled: tuple[str, ...], now_ns: int) -> None:
        self._stalled = stalled
        if not stalled:
            log.warning("all parts make progress again")
            self._send(f"STATUS={self._state}")
            return
        silent_s = (now_ns - self._sent_ns) / 1e9
        message = f"{' and '.join(stalled)} made no progress for {silent_s:.0f} s"
        log.error(
            "%s: no WATCHDOG=1 until that changes; without it the supervisor restarts the daemon", message
        )
        self._send(f"STATUS={message}")

    def _send(self, message: str) -> bool:
        """Send a message; True if it was sent or there is no supervisor."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
                notify.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._send_failed:  # log the first failure only: each turn tries again
                log.warning("cannot send %r to the supervisor at %r: %s", message, self._address, error)
            self._send_failed = True
            return False
        self._send_failed = False
        return True
