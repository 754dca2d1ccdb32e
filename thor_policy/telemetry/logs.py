"""Log lines: JSON for a log collector, plain text for people.

Owns the format of a line and the rate limit of lines that clients can cause. Invariant: a line never contains
text of a request, unless the level is debug. Its fields are ids, codes and numbers; of an exception it has
the type and the stack; a text that may repeat a request is a `Hidden`; of a line of another library it has
the name of the logger. Suppressed lines are counted. Any thread.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

_PACKAGE = "thor_policy"
#: Syslog priorities; journald reads one at the beginning of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """Named values of a line, for the argument `extra`; a value of None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The named values of a line."""
    values: dict[str, Any] = getattr(record, "fields", {})
    return values


def component_of(record: logging.LogRecord) -> str:
    """The component that logged a line: a subpackage of ours, or the logger name of another library."""
    package, _, rest = record.name.partition(".")
    return rest.split(".")[0] if package == _PACKAGE and rest else record.name


def stack_of(error: BaseException, *, with_text: bool) -> list[str]:
    """Types and stacks of an exception and its causes, the first cause last; `with_text`: messages too."""
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


class Hidden:
    """A value of a line that may repeat text of a request: shown at level debug only."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return str(self._value) if is_verbose() else "(text at level debug)"


def message_of(record: logging.LogRecord) -> str:
    """The message of a line. That of another library may repeat a request: only level debug shows it."""
    if record.name.partition(".")[0] == _PACKAGE or is_verbose():
        return record.getMessage()
    return f"a message of the library {record.name} (text at level debug)"


class Limit:
    """Rate limit: admits `burst` lines at once and then `per_s` each second; counts the suppressed lines."""

    def __init__(self, burst: int = 10, per_s: float = 1.0) -> None:
        self._burst, self._per_ns = burst, per_s / 1e9
        self._left, self._at_ns = float(burst), 0
        self._suppressed = 0

    def admit(self, now_ns: int) -> int | None:
        """Lines suppressed since the last admitted one, if this line may be logged; otherwise None."""
        earned = max(0, now_ns - self._at_ns) * self._per_ns
        self._left, self._at_ns = min(self._burst, self._left + earned), now_ns
        if self._left < 1:
            self._suppressed += 1
            return None
        self._left -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


class JsonFormatter(logging.Formatter):
    """One JSON object a line; with `for_journal` after a syslog priority, which journald removes."""

    def __init__(self, *, for_journal: bool = False) -> None:
        super().__init__()
        self._for_journal = for_journal

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "component": component_of(record),
            "thread": record.threadName,
            "message": message_of(record),
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["stack"] = stack_of(record.exc_info[1], with_text=is_verbose())
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>" if self._for_journal else ""
        return prefix + json.dumps(line, default=str)


def is_verbose() -> bool:
    """True when the level is debug."""
    return logging.getLogger(_PACKAGE).isEnabledFor(logging.DEBUG)


def goes_to_journal(stream: IO[str], environ: Mapping[str, str] = os.environ) -> bool:
    """True when systemd's journal reads `stream` (JOURNAL_STREAM in systemd.exec(5))."""
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
    """Set up logging: `form` json, or the handler `pretty`; auto: json if systemd's journal reads `stream`.

    `level` is the level of this program; other libraries log from warning on. An exception that ends a thread
    or the process is logged too, as are warnings of Python.
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
    threading.excepthook = _log_thread_end
    sys.excepthook = _log_process_end
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Set the lowest level that this program logs: debug, info, warning or error."""
    logging.getLogger(_PACKAGE).setLevel(level.upper())


def structured() -> bool:
    """True when log lines are JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _log_process_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("the process has ended", exc_info=(kind, error, trace))


def _log_thread_end(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = args.thread.name if args.thread else "unknown"
        error = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger(__name__).critical("thread %s has ended", name, exc_info=error)
