"""The report files of a run: HTML and JUnit.

Owns when they are written. Invariant: from the moment a command knows the place of its JUnit file, that file
holds an error, until it gets the conclusion of the run as the last act of the command. So it agrees with the
exit status however the command ends: an exception, a signal, a machine that stops. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from thor_policy.suites import junit
from thor_policy.suites.conclusions import Conclusion, Point

#: What the JUnit file says until the run has ended.
UNFINISHED = "the run did not end: the command was killed, or the machine stopped"


class JUnitFile:
    """The JUnit file at `path`; without a path nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        #: Why the file cannot be written; None as long as it can.
        self.failed: Point | None = None

    def begin(self) -> None:
        """Make the file hold an error until it is concluded. A device or a pipe gets nothing yet."""
        if self._path is not None and (not self._path.exists() or self._path.is_file()):
            self.fail(UNFINISHED)

    def fail(self, message: str) -> None:
        """Make the file say that the run did not end, and why."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._write(junit.could_not_run(message, now))

    def conclude(self, conclusion: Conclusion) -> Point | None:
        """Write the whole file; returns why it could not be written."""
        self._write(junit.junit(conclusion))
        return self.failed

    def _write(self, content: bytes) -> None:
        if self._path is not None:
            path = self._path
            self.failed = _attempt("--junit", path, lambda: _write(path, content))


def write_html(conclusion: Conclusion, path: Path | None) -> Conclusion:
    """Write the HTML page, if there is a path; returns the conclusion with why it could not be written."""
    if path is None:
        return conclusion
    from thor_policy.suites.html_report import page  # jinja2 is needed only here

    content = page(conclusion).encode()
    failed = _attempt("--html", path, lambda: _write(path, content))
    return conclusion if failed is None else conclusion.adding(failed)


def _attempt(option: str, path: Path, write: Callable[[], None]) -> Point | None:
    try:
        write()
    except OSError as error:
        reason = f"{path} cannot be written: {error.strerror}; choose another file"
        return Point(name=option, reasons=(reason,), status=2)
    return None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
