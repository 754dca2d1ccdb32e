"""What people see: rich tables within 80 columns, colours only on a terminal.

Owns rich. Invariant: functions take plain values and print; they fetch and decide nothing.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.sax.saxutils import escape as escape_xml

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from thor_policy.cli.escape import visible
from thor_policy.core.requests import Json
from thor_policy.learning.training.settings import Point
from thor_policy.telemetry import logs

_BARS = " ▁▂▃▄▅▆▇█"
#: Characters to which a column is not cut any shorter.
_LEAST = 6
_STYLES = {
    "allow": "green",
    "deny": "red",
    "passed": "green",
    "failed": "red",
    "error": "red bold",
    "skipped": "dim",
    "ok": "green",
    "missing": "yellow",
    "warning": "yellow",
    "wrong": "red bold",
    "critical": "red",
    "high": "red",
    "medium": "yellow",
}


def console(*, stderr: bool = False) -> Console:
    """A console on standard output (or error), no wider than it has to be for a plain terminal."""
    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def as_json(value: Json) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def as_json_line(value: Json) -> None:
    """One JSON value on a line of its own, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV with a header; lists and objects as JSON."""
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(row[name]) for name in columns])


def _csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def sparkline(counts: Sequence[int]) -> str:
    """A row of bars, one a number, the highest full."""
    highest = max(counts, default=0) or 1
    return "".join(_BARS[max(1, round(count / highest * 8)) if count else 0] for count in counts)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, gap: int = 2, clipped: Sequence[int] = ()
) -> None:
    """A plain table, `gap` spaces between columns; cells that name a state are coloured.

    Where it does not fit, cells of the columns with the indexes `clipped` are cut short, the widest first.
    """
    out, shown = Table(box=None, padding=(0, gap, 0, 0), header_style="bold"), console()
    widths = [max(len(_told(cell)) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    while clipped and sum(widths) + gap * len(widths) > shown.width:
        widest = max(clipped, key=widths.__getitem__)
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
    for index, column in enumerate(columns):
        out.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        cells = [clip(cell, widths[i]) if i in clipped else cell for i, cell in enumerate(row)]
        out.add_row(*map(styled, cells))
    shown.print(out)


def clip(cell: Any, width: int) -> Any:
    """A text of at most so many characters; anything else as it is."""
    return f"{cell[: width - 1]}…" if isinstance(cell, str) and len(cell) > width else cell


def residents(packs: Sequence[Mapping[str, Json]]) -> None:
    """The packs that a daemon has resident."""
    columns = ("name", "version", "role", "prefix_tokens", "temperature", "adapter")
    rows = [[*(pack[name] for name in columns), pack["sha256"][:12]] for pack in packs]
    table(("pack", "version", "role", "tokens", "temperature", "adapter", "sha256"), rows, clipped=(0, 5))


def pairs(values: Mapping[str, Any], *, title: str | None = None) -> None:
    """Names and values, one a line; further lines of a value stand under its first."""
    width = max((len(name) for name in values), default=0)
    if title:
        console().print(f"[bold]{escape(visible(title, lines=True))}[/bold]")
    for name, value in values.items():
        text = styled(value).replace("\n", f"\n{' ' * (width + 4)}")
        console().print(f"  {name:<{width}}  {text}", soft_wrap=True)


def line(text: str, *, stderr: bool = False) -> None:
    """One line of plain text."""
    console(stderr=stderr).print(escape(visible(text, lines=True)), soft_wrap=True)


class LogHandler(logging.Handler):
    """Log lines for people, on standard error; from warnings on they name level and room."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            console(stderr=True).print(self._told(record), soft_wrap=True)
        except Exception:  # a terminal that went away ends no daemon
            self.handleError(record)

    def _told(self, record: logging.LogRecord) -> Text:
        told = Text()
        if sys.stderr.isatty():
            told.append(time.strftime("%H:%M:%S ", time.localtime(record.created)), style="dim")
        if record.levelno >= logging.WARNING:
            style = "yellow" if record.levelno == logging.WARNING else "red bold"
            told.append(f"{record.levelname} {logs.component_of(record)}: ", style=style)
        told.append(visible(record.getMessage()))
        for name, value in logs.fields_of(record).items():
            told.append(f" {name}={visible(str(value))}", style="dim")
        if record.exc_info and record.exc_info[1] is not None:
            for line in logs.stack_of(record.exc_info[1], with_text=logs.is_verbose()):
                told.append(f"\n    {visible(line)}", style="dim")
        return told


def styled(cell: Any) -> str:
    """Text of a cell, safe for rich, coloured when it names a state."""
    text, style = escape(_told(cell)), _STYLES.get(str(cell))
    return f"[{style}]{text}[/{style}]" if style else text


def _told(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    told = json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list) else str(cell)
    return visible(told, lines=True)


@contextmanager
def progress(total: int | None, told: str) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error for `total` items; call what it yields after each."""
    with _bar(BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(told, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def asking(total: int) -> Iterator[Callable[[str, str], None]]:
    """A progress bar for `total` scenarios; call what it yields with the id and the status of each."""
    counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    tally = TextColumn("{task.fields[told]}")
    with _bar(BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), tally) as bar:
        task = bar.add_task("asking", total=total, told="")

        def advance(id: str, status: str) -> None:
            counts[status] += 1
            told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            bar.update(task, advance=1, told=escape(f"{told}; {id}"))

        yield advance


@contextmanager
def redeciding(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar for `total` past decisions; call what it yields with where each went, or `waiting`."""
    counts = {"loosened": 0, "tightened": 0}
    tally = TextColumn("{task.fields[told]}")
    with _bar(BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), tally) as bar:
        task = bar.add_task("deciding again", total=total, told="")

        def advance(what: str) -> None:
            if what in counts:
                counts[what] += 1
            shown = [f"{count} {name}" for name, count in counts.items() if count]
            if what == "waiting":
                shown.append("the daemon is busy")
            bar.update(task, advance=int(what != "waiting"), told=", ".join(shown))

        yield advance


@contextmanager
def counting(told: str) -> Iterator[Callable[[int], None]]:
    """A running count on standard error; call what it yields with the number so far."""
    with _bar(TextColumn("{task.completed:,}")) as bar:
        task = bar.add_task(told, total=None)
        yield lambda count: bar.update(task, completed=count)


@contextmanager
def training() -> Iterator[tuple[Callable[[int, int, float], None], Callable[[Point], None]]]:
    """A bar for the steps of a training, and a line on standard error for each look at held-out cases."""
    with _bar(BarColumn(bar_width=24), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("training", total=None)

        def checked(point: Point) -> None:
            line(
                f"step {point.step} of {point.steps}: loss {point.label_loss:.3f}, of the rest "
                f"{point.rest_loss:.3f}; held out: loss {point.held_out_loss:.3f}, balanced accuracy "
                f"{point.held_out_accuracy:.3f}",
                stderr=True,
            )

        yield lambda step, steps, _loss: bar.update(task, completed=step, total=steps), checked


@contextmanager
def download(told: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for bytes; call what it yields with (bytes so far, bytes in all)."""
    with _bar(BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn()) as bar:
        task = bar.add_task(told, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(*columns: ProgressColumn) -> Progress:
    """A bar that goes when it is done, and shows only on a terminal."""
    shown = console(stderr=True)
    told = TextColumn("{task.description}")
    return Progress(told, *columns, console=shown, transient=True, disable=not shown.is_terminal)


def reliability_svg(title: str, series: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """Confidence against accuracy as an SVG document: (confidence, accuracy, count) by name."""
    size, left, top = 360, 60, 50
    parts = [
        f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="#999"/>',
        f'<line x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}" stroke="#bbb"/>',
        f'<text x="{left + size / 2}" y="{top + size + 36}" text-anchor="middle">confidence</text>',
        f'<text x="{left}" y="{top - 8}">share that was right</text>',
    ]
    for tick in (0, 0.5, 1):
        x, y = left + tick * size, top + size - tick * size
        parts.append(f'<text x="{x}" y="{top + size + 18}" text-anchor="middle">{tick}</text>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{tick}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = ("#c05a3c", "#2f6f9f", "#5a8f4a")[number % 3]
        most = max((count for _, _, count in points), default=1)
        for confidence, accuracy, count in points:
            parts.append(
                f'<circle cx="{left + confidence * size:.1f}" cy="{top + size - accuracy * size:.1f}" '
                f'r="{3 + 9 * (count / most) ** 0.5:.1f}" fill="{colour}" fill-opacity="0.6"/>'
            )
        parts.append(
            f'<circle cx="{left + size + 30}" cy="{top + 14 + 24 * number}" r="6" fill="{colour}"/>'
            f'<text x="{left + size + 42}" y="{top + 18 + 24 * number}">{escape_xml(name)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{top + size + 56}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="22" font-size="15" font-weight="bold">{escape_xml(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def bars_svg(title: str, values_ms: Mapping[str, float]) -> str:
    """A bar chart of milliseconds as an SVG document."""
    longest = max(values_ms.values(), default=1.0) or 1.0
    rows = []
    for number, (name, value) in enumerate(values_ms.items()):
        y, width = 40 + 28 * number, max(1.0, 380 * value / longest)
        rows.append(
            f'<text x="250" y="{y + 14}" text-anchor="end">{escape_xml(name)}</text>'
            f'<rect x="260" y="{y}" width="{width:.1f}" height="18" fill="#4a7a9c"/>'
            f'<text x="{266 + width:.1f}" y="{y + 14}">{value:.2f} ms</text>'
        )
    height = 56 + 28 * len(values_ms)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" '
        f'font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="24" font-size="15" font-weight="bold">{escape_xml(title)}: median, one run</text>'
        f"{''.join(rows)}</svg>\n"
    )


@contextmanager
def measuring(
    total: int | None, activity: str, *, stderr: bool
) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A progress bar for `total` items, and a function that prints a line at once, whole, beside the bar."""
    with _bar(BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(activity, total=total)

        def print_line(text: str) -> None:
            if bar.disable:
                line(text, stderr=stderr)
            else:  # the bar redraws itself in place: take it away while the line is printed
                bar.live.stop()
                line(text, stderr=stderr)
                bar.live.start(refresh=True)
            (sys.stderr if stderr else sys.stdout).flush()

        yield lambda: bar.advance(task), print_line
