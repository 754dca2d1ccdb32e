"""How far a long task is, on standard error: a bar on a terminal, lines of text elsewhere.

Owns the bar, the lines, and how often a line is printed. Invariant: standard output gets nothing, so it can
be piped while the bar is on the screen; and no task is silent for long, because a thread prints the lines,
also while the task reports nothing. A task that ends within `PAUSE_S` prints no such line. Main thread;
`Steps` starts and joins the thread of its lines.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.table import Column
from rich.text import Text

from thor_policy.core.escape import visible

#: Time before the first line, and the shortest time between two lines, in seconds.
PAUSE_S = 2.0
#: A long task prints fewer lines: it pauses for this share of the time that it has taken so far.
PAUSE_SHARE = 0.1
#: Name of the thread that prints lines.
THREAD = "progress-lines"


#: The consoles of the bars that are shown, the newest last.
_consoles: list[Console] = []


def error_console() -> Console:
    """The console on standard error; while a bar is shown it is the bar's, so that lines appear above it."""
    return _consoles[-1] if _consoles else Console(stderr=True, highlight=False, soft_wrap=False)


class Pace:
    """When the next line is due. Times are monotonic, in seconds; `now` is an argument."""

    def __init__(self, now: float, pause_s: float = PAUSE_S) -> None:
        self._began, self._last, self._pause_s = now, now, pause_s

    def wait_s(self, now: float) -> float:
        """Seconds until a line is due; not above 0 if it is due now."""
        return self._last + max(self._pause_s, PAUSE_SHARE * (self._last - self._began)) - now

    def printed(self, now: float) -> None:
        """A line was printed."""
        self._last = now

    def elapsed_s(self, now: float) -> float:
        """Seconds since the task began."""
        return now - self._began


class Steps:
    """A display of one long task, for the length of a `with` block.

    `total` is the number of steps, None if it is unknown. With `in_bytes` the steps are bytes. `note` is a
    few words beside the count. Without `with_lines` the display is shown only on a terminal.
    """

    def __init__(
        self,
        activity: str,
        total: int | None = None,
        *,
        note: str = "",
        in_bytes: bool = False,
        with_lines: bool = True,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._activity, self._total, self._note, self._in_bytes = activity, total, note, in_bytes
        self._done: int | None = None
        self._pace = Pace(time.monotonic(), pause_s)
        self._has_lines = False
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._screen = error_console()
        #: True if a bar is shown, False if lines are printed.
        self.on_terminal = sys.stderr.isatty() and not self._screen.is_dumb_terminal
        self._bar = self._new_bar() if self.on_terminal else None
        self._thread = (
            threading.Thread(target=self._print_when_due, name=THREAD, daemon=True)
            if with_lines and not self.on_terminal
            else None
        )

    def __enter__(self) -> Steps:
        if self._bar is not None:
            _consoles.append(self._screen)
            self._bar.start()
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
            _consoles.pop()
        if self._thread is not None:
            self._thread.join()
            if self._has_lines and kind is None:
                with suppress(OSError, ValueError):  # standard error was closed
                    self._print(self._line())

    def update(
        self, *, by: int = 0, done: int | None = None, total: int | None = None, note: str | None = None
    ) -> None:
        """Report `by` more steps, or the number `done` so far; a new `total`; a new note."""
        with self._lock:
            if by or done is not None:
                self._done = (self._done or 0) + by if done is None else done
            self._total = self._total if total is None else total
            self._note = self._note if note is None else note
            if self._bar is not None:
                task = self._bar.task_ids[0]
                self._bar.update(
                    task,
                    completed=self._done or 0,
                    total=self._total,
                    **self._texts(),
                )

    def log(self, text: str) -> None:
        """Print a line about a finished step on standard error; on a terminal it appears above the bar."""
        with self._lock:
            self._print(text)

    def print_with(self, show: Callable[[], None]) -> None:
        """Call `show`, which prints on either stream, with the bar taken away meanwhile."""
        with self._lock:
            if self._bar is None:
                show()
                return
            self._bar.live.stop()
            show()
            self._bar.live.start(refresh=True)

    # ------------------------------------------------------------ the bar

    def _new_bar(self) -> Progress:
        columns: list[ProgressColumn] = [SpinnerColumn(), _Shortened("what")]
        if self._total is not None or self._in_bytes:
            columns.append(BarColumn(bar_width=12))
        columns += [_CountAndTime(Column(no_wrap=True)), _Shortened("note")]
        # what is printed on standard output belongs there, not on the console of the bar
        bar = Progress(*columns, console=self._screen, transient=True, redirect_stdout=False)
        bar.add_task("", total=self._total, **self._texts())
        return bar

    def _texts(self) -> dict[str, Any]:
        """What the columns show."""
        return {"what": visible(self._activity), "count": self._count(), "note": visible(self._note)}

    # ------------------------------------------------------------ the lines

    def _print_when_due(self) -> None:
        wait_s = self._pace.wait_s(time.monotonic())
        while not self._ended.wait(max(0.0, wait_s)):
            with self._lock:
                wait_s = self._pace.wait_s(time.monotonic())
                if wait_s > 0:
                    continue
                try:
                    self._print(self._line())
                except (OSError, ValueError):  # standard error was closed: the task goes on without lines
                    return
                self._has_lines = True
                wait_s = self._pace.wait_s(time.monotonic())

    def _print(self, text: str) -> None:
        error_console().print(escape(visible(text)), soft_wrap=True)
        self._pace.printed(time.monotonic())

    def _line(self) -> str:
        parts = [part for part in (self._count(), _duration(self._pace.elapsed_s(time.monotonic()))) if part]
        if self._total and self._done is not None:
            parts.insert(1, f"{100 * self._done // self._total} %")
        note = f"; {self._note}" if self._note else ""
        return f"{self._activity}: {', '.join(parts)}{note}"

    def _count(self) -> str:
        """The steps so far, of all; empty if neither is known."""
        if self._done is None and self._total is None:
            return ""
        show = _megabytes if self._in_bytes else "{:,}".format
        of_all = f" of {show(self._total)}" if self._total is not None else ""
        return f"{show(self._done or 0)}{of_all}{' MB' if self._in_bytes else ''}"


class _Shortened(ProgressColumn):
    """A text that is cut where the line has no room for it."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self._field = field

    def render(self, task: Task) -> Text:
        return Text(task.fields[self._field], no_wrap=True, overflow="ellipsis")


class _CountAndTime(ProgressColumn):
    """The count, the time so far, and the time left where it can be known."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining if task.total is not None else None
        parts = [
            task.fields["count"],
            _duration(task.elapsed or 0.0),
            f"{_duration(left)} left" if left else "",
        ]
        return Text(", ".join(part for part in parts if part))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _duration(seconds: float) -> str:
    """A time in words: 12 s, 3 min 5 s, 2 h 10 min."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
