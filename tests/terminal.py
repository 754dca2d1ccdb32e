"""A command on a terminal of its own: keys that are typed, and the text on its screen."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

import pyte

from thor_policy.config import Config

#: No test waits longer than this for a terminal, in seconds.
PATIENCE_S = 30
ROOT = Path(__file__).resolve().parents[1]
COLUMNS, LINES = 80, 24


class Terminal:
    """A command on its own terminal of 80 by 24, and the text on its screen."""

    def __init__(self, config: Config, *arguments: str) -> None:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        state = {"THOR_POLICY_STATE_DIR": str(config.state_dir), "THOR_POLICY_ENDPOINT": config.endpoint}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from thor_policy.cli.main import main; main()", *arguments],
            cwd=ROOT,
            env=os.environ | state | {"TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._terminal = ours
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE_S)
        os.close(self._terminal)

    @property
    def text(self) -> str:
        return "\n".join(self._screen.display)

    def until(self, pattern: str) -> re.Match[str]:
        """Read until the screen shows the pattern."""
        ends = time.monotonic() + PATIENCE_S
        while (match := re.search(pattern, self.text, re.DOTALL)) is None:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, ends - time.monotonic()))
            assert ready, f"{pattern!r} never came:\n{self.text}"
            try:
                self._take(os.read(self._terminal, 65_536))
            except OSError as error:  # the other end is closed
                raise AssertionError(f"{pattern!r} never came:\n{self.text}") from error
        return match

    def type(self, keys: str, then: str) -> re.Match[str]:
        """Type keys, then read until the screen shows the pattern `then`."""
        os.write(self._terminal, keys.encode())
        return self.until(then)

    def end(self, keys: str = "q") -> int:
        """Type keys that end the command, read to the end, and return the exit status.

        The terminal controls no session, so it shows Ctrl-C but sends no signal: this does.
        """
        os.write(self._terminal, keys.encode())
        if keys == "\x03":
            self._process.send_signal(signal.SIGINT)
        while select.select([self._terminal], [], [], PATIENCE_S)[0]:
            try:
                data = os.read(self._terminal, 65_536)
            except OSError:
                break
            if not data:
                break
            self._take(data)
        return self._process.wait(PATIENCE_S)

    def _take(self, data: bytes) -> None:
        self.raw += data
        self._stream.feed(data)
