"""Log lines for people, on standard error: coloured on a terminal, plain elsewhere.

Owns how a log line reads. Invariant: control characters of a message are shown as text. Without a terminal
the library rich is not imported: a daemon that nobody watches needs none of it. Any thread.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator

from thor_policy.core.escape import visible
from thor_policy.telemetry import logs


class LogHandler(logging.Handler):
    """Prints each line on standard error; warnings and errors name level and component."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            on_terminal = sys.stderr.isatty()
            parts = _parts(record, with_time=on_terminal)
            if on_terminal:
                _print_coloured(parts)
            else:
                sys.stderr.write("".join(text for text, _ in parts) + "\n")
                sys.stderr.flush()
        except Exception:  # a closed terminal must not end the daemon
            self.handleError(record)


def _print_coloured(parts: Iterator[tuple[str, str]]) -> None:
    from rich.text import Text

    from thor_policy.cli.steps import error_console

    error_console().print(Text.assemble(*parts), soft_wrap=True)


def _parts(record: logging.LogRecord, *, with_time: bool) -> Iterator[tuple[str, str]]:
    """The pieces of a line, each with its style."""
    if with_time:
        yield time.strftime("%H:%M:%S ", time.localtime(record.created)), "dim"
    if record.levelno >= logging.WARNING:
        style = "yellow" if record.levelno == logging.WARNING else "red bold"
        yield f"{record.levelname} {logs.component_of(record)}: ", style
    yield visible(logs.message_of(record)), ""
    for name, value in logs.fields_of(record).items():
        yield f" {name}={visible(str(value))}", "dim"
    if record.exc_info and record.exc_info[1] is not None:
        for line in logs.stack_of(record.exc_info[1], with_text=logs.is_verbose()):
            yield f"\n    {visible(line)}", "dim"
