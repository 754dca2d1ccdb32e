"""What the daemon logs, and how: JSON lines for a log collector, plain lines for people.

Owns the form of a line and the bound on lines that others can cause. Invariant: a line holds what this
program says, never what a request says: fields are ids, codes and numbers; of an exception it has type and
stack, and the text at level debug alone. Whatever is left out for being too much is counted. Any thread.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping
from typing import IO, Any

_PACKAGE = "thor_policy"
#: Priorities of syslog, which journald reads from the beginning of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def fields(**told: Any) -> dict[str, dict[str, Any]]:
    """Named values of a line, for `extra`; those that are None are left out."""
    return {"fields": {name: value for name, value in told.items() if value is not None}}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The named values of a line."""
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


def component_of(record: logging.LogRecord) -> str:
    """Which component a line comes from; of another library, its whole name."""
    package, _, rest = record.name.partition(".")
    return rest.split(".")[0] if package == _PACKAGE and rest else record.name


def stack_of(error: BaseException, *, with_text: bool) -> list[str]:
    """Types and stacks of an exception and of those behind it, the first cause last."""
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines.append(f"{type(current).__name__}: {current}" if with_text else type(current).__name__)
        lines += [
            f"{frame.filename}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(current.__traceback__)
        ]
        current = current.__cause__ or current.__context__
    return lines


class Limit:
    """Lets `burst` lines through at once and `per_s` each second after that; counts what it holds back."""

    def __init__(self, burst: int = 10, per_s: float = 1.0) -> None:
        self._burst, self._per_ns = burst, per_s / 1e9
        self._left, self._at_ns = float(burst), 0
        self._held = 0

    def admit(self, now_ns: int) -> int | None:
        """How many lines were held back since the last one, if this one may be logged; None if it may not."""
        earned = max(0, now_ns - self._at_ns) * self._per_ns
        self._left, self._at_ns = min(self._burst, self._left + earned), now_ns
        if self._left < 1:
            self._held += 1
            return None
        self._left -= 1
        held, self._held = self._held, 0
        return held


class JsonFormatter(logging.Formatter):
    """One JSON object a line; `for_journal` puts the priority before it, which journald takes off again."""

    def __init__(self, *, for_journal: bool = False) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "component": component_of(record),
            "thread": record.threadName,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            told["stack"] = stack_of(record.exc_info[1], with_text=is_verbose())
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>" if self._for_journal else ""
        return prefix + json.dumps(told, default=str)


def is_verbose() -> bool:
    """True when the level is debug."""
    return logging.getLogger(_PACKAGE).isEnabledFor(logging.DEBUG)


def goes_to_journal(stream: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
    """True when what is written to `stream` arrives in systemd's journal (see systemd.exec(5))."""
    try:
        at = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}"


def set_up(
    form: str,
    level: str,
    *,
    stream: IO[str],
    pretty: logging.Handler,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Log from here on, in `form` json or through `pretty`; auto: json if `stream` goes to the journal.

    `level` is that of this program; other libraries are heard from warnings on. What ends a thread is logged.
    """
    journal = goes_to_journal(stream, environ)
    handler = pretty
    if form == "json" or (form == "auto" and journal):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter(for_journal=journal))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)
    threading.excepthook = _log_the_end


def set_level(level: str) -> None:
    """Log from this level on: debug, info, warning or error."""
    logging.getLogger(_PACKAGE).setLevel(level.upper())


def structured() -> bool:
    """True when lines are JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _log_the_end(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = args.thread.name if args.thread else "unknown"
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger(__name__).critical("thread %s has ended", name, exc_info=error)
