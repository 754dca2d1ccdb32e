"""Printed output: rich tables within 80 columns, progress, colours only on a terminal, JSON, CSV, SVG.

Owns the library rich, with `steps`, which shows progress. Invariant: functions take plain values and print
them; they fetch and decide nothing. Main thread.
"""

from __future__ import annotations

import csv
import html
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from thor_policy.cli.page_text import fit
from thor_policy.cli.steps import Steps, error_console
from thor_policy.core.escape import cell as csv_cell
from thor_policy.core.escape import in_json, visible
from thor_policy.core.requests import Json
from thor_policy.learning.training.settings import Point

_BARS = " ▁▂▃▄▅▆▇█"
#: Shortest width of a clipped column; its name is never clipped.
_LEAST = 6
#: Columns that a replaced table leaves free: a terminal writes `^C` there, and must not begin a line.
_INTERRUPT_CELLS = 2
_STYLES = {
    "allow": "green",
    "deny": "red",
    "passed": "green",
    "failed": "red",
    "error": "red bold",
    "skipped": "dim",
    "too loose": "red bold",
    "too strict": "red",
    "refused": "red",
    "wrong otherwise": "yellow",
    "citation only": "yellow",
    "ok": "green",
    "missing": "yellow",
    "warning": "yellow",
    "wrong": "red bold",
    "critical": "red",
    "high": "red",
    "medium": "yellow",
    "urgent": "yellow bold",
    "emergency": "red bold",
    "approved": "green",
    "denied": "red",
}


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error."""
    return error_console() if stderr else Console(highlight=False, soft_wrap=False)


def as_json(value: Json) -> None:
    """Print one JSON value on standard output, indented."""
    sys.stdout.write(in_json(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def as_json_line(value: Json) -> None:
    """Print one JSON value on one line, and flush."""
    sys.stdout.write(in_json(json.dumps(value, ensure_ascii=False)) + "\n")
    sys.stdout.flush()


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], to: TextIO | None = None) -> None:
    """Print rows as CSV with a header, or write them `to` a file; lists and objects become JSON."""
    writer = csv.writer(to or sys.stdout)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_cell(row[name]) for name in columns])


def _csv_cell(value: Any) -> Any:
    """The value as a cell that no spreadsheet reads as a formula."""
    if isinstance(value, dict | list):
        return in_json(json.dumps(value, ensure_ascii=False))
    return csv_cell(value) if isinstance(value, str) else value


def sparkline(counts: Sequence[int]) -> str:
    """A row of bars, one for each number; the highest bar is full."""
    highest = max(counts, default=0) or 1
    return "".join(_BARS[max(1, round(count / highest * 8)) if count else 0] for count in counts)


class ShowTable(Protocol):
    """What `table` and `current_table` have in common."""

    def __call__(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, gap: int, clipped: Sequence[int]
    ) -> None: ...


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, gap: int = 2, clipped: Sequence[int] = ()
) -> None:
    """Print a plain table with `gap` spaces between columns; cells that name a state are coloured.

    If the table is too wide, cells of the columns with the indexes `clipped` are shortened, the widest first.
    """
    console().print(_table(columns, rows, gap=gap, clipped=clipped))


@contextmanager
def current_table() -> Iterator[ShowTable]:
    """Yields a function like `table`; each call replaces the table of the call before."""
    with Live(console=console(), auto_refresh=False) as live:

        def show(
            columns: Sequence[str], rows: Sequence[Sequence[Any]], *, gap: int, clipped: Sequence[int]
        ) -> None:
            output = _table(columns, rows, gap=gap, clipped=clipped, spare=_INTERRUPT_CELLS)
            # an interrupt in the middle of a line would have it written twice
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                live.update(output, refresh=True)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

        yield show


def _table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, gap: int, clipped: Sequence[int], spare: int = 0
) -> Table:
    output, width = Table(box=None, padding=(0, gap, 0, 0), header_style="bold"), console().width - spare
    texts = [[_cell_text(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    least = [max(_LEAST, cell_len(column)) for column in texts[0]]
    while sum(widths) + gap * len(widths) > width:
        widest = max((i for i in clipped if widths[i] > least[i]), key=widths.__getitem__, default=None)
        if widest is None:
            break
        widths[widest] -= 1
    for index, column in enumerate(texts[0]):
        output.add_column(escape(column), overflow="fold", no_wrap=index == 0)
    for row, row_texts in zip(rows, texts[1:], strict=True):
        cells = [fit(text, widths[i]) if i in clipped else text for i, text in enumerate(row_texts)]
        output.add_row(*map(_coloured, cells, row))
    return output


def clip(text: str, width: int) -> str:
    """A text cut to `width` characters."""
    return f"{text[: width - 1]}…" if len(text) > width else text


def residents(packs: Sequence[Mapping[str, Json]]) -> None:
    """Print a table of a daemon's resident packs."""
    columns = ("name", "version", "role", "prefix_tokens", "temperature", "adapter")
    rows = [[*(pack[name] for name in columns), pack["sha256"][:12]] for pack in packs]
    table(("pack", "version", "role", "tokens", "temperature", "adapter", "sha256"), rows, clipped=(0, 5))


def pairs(values: Mapping[str, Any], *, title: str | None = None) -> None:
    """Print names and values, one pair a line; further lines of a value align with its first."""
    named = [(visible(name), value) for name, value in values.items()]
    width = max((len(name) for name, _ in named), default=0)
    if title:
        console().print(f"[bold]{escape(visible(title))}[/bold]")
    for name, value in named:
        text = _coloured(_cell_text(value, lines=True), value).replace("\n", f"\n{' ' * (width + 4)}")
        console().print(f"  {escape(f'{name:<{width}}')}  {text}", soft_wrap=True)


def time_used(times: Mapping[str, str] | None) -> str | None:
    """The times that rules read, with where they come from; None if the pack reads none."""
    if times is None:
        return None
    return ", ".join(f"{time} ({source})" for source, time in times.items()) or "none is stated"


def line(text: str, *, stderr: bool = False) -> None:
    """Print one line of plain text; a line end in the text is shown as an escape."""
    console(stderr=stderr).print(escape(visible(text)), soft_wrap=True)


def lines(text: str, *, stderr: bool = False) -> None:
    """Print a text of several lines. The caller makes sure that no data in it begins a line."""
    console(stderr=stderr).print(escape(visible(text, lines=True)), soft_wrap=True)


def _coloured(text: str, cell: Any) -> str:
    """The text of a cell, escaped for rich, coloured if the cell names a state."""
    style = _STYLES.get(str(cell))
    return f"[{style}]{escape(text)}[/{style}]" if style else escape(text)


def _cell_text(cell: Any, *, lines: bool = False) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    text = json.dumps(cell, ensure_ascii=False) if isinstance(cell, dict | list) else str(cell)
    return visible(text, lines=lines)


@contextmanager
def working(activity: str, *, with_lines: bool = True) -> Iterator[None]:
    """A spinner for work without steps; `with_lines` prints lines where standard error is no terminal."""
    with Steps(activity, with_lines=with_lines):
        yield


@contextmanager
def progress(total: int | None, activity: str, *, first: str = "") -> Iterator[Callable[[], None]]:
    """Show how many of `total` items are done. Call the yielded function after each item.

    `first` says what happens before the first item is done.
    """
    with Steps(activity, total, note=first) as steps:
        yield lambda: steps.update(by=1, note="")


@contextmanager
def asking(total: int) -> Iterator[Callable[[str, str, str | None, str, float], None]]:
    """Show how many of `total` scenarios are answered; without a terminal, a line for each of them.

    Call the yielded function with the id, status, outcome, verdict in words and milliseconds of each.
    """
    counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0}
    width = len(str(total))
    with Steps("asking", total) as steps:

        def advance(id: str, status: str, outcome: str | None, verdict: str, ms: float) -> None:
            counts[status] += 1
            tally = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            steps.update(by=1, note=tally if sum(counts.values()) == total else f"{tally}; {id}")
            if not steps.on_terminal:
                words = [part for part in (id, outcome, verdict, f"{ms:,.0f} ms" if outcome else "") if part]
                steps.log(f"{sum(counts.values()):>{width}}/{total} {'  '.join(words)}")

        yield advance


@contextmanager
def redeciding(total: int) -> Iterator[Callable[[str], None]]:
    """Show how many of `total` past decisions are decided again. Call it with each result, or `waiting`."""
    counts = {"loosened": 0, "tightened": 0}
    with Steps("deciding again", total, note="loading the model") as steps:

        def advance(result: str) -> None:
            if result in counts:
                counts[result] += 1
            shown = [f"{count} {name}" for name, count in counts.items() if count]
            if result == "waiting":
                shown.append("the daemon is busy")
            steps.update(by=int(result != "waiting"), note=", ".join(shown))

        yield advance


@contextmanager
def counting(activity: str) -> Iterator[Callable[[int], None]]:
    """Show a count of unknown total. Call the yielded function with the number so far."""
    with Steps(activity) as steps:
        yield lambda count: steps.update(done=count)


@contextmanager
def training() -> Iterator[tuple[Callable[[int, int, float], None], Callable[[Point], None]]]:
    """Show the steps of a training, and a line for each check on held-out cases.

    Yields the function to call after each step, and the one to call after each check.
    """
    with Steps("training") as steps:

        def checked(point: Point) -> None:
            steps.log(
                f"step {point.step} of {point.steps}: label loss {point.label_loss:.3f}, "
                f"text loss {point.rest_loss:.3f}; held out: loss {point.held_out_loss:.3f}, "
                f"balanced accuracy {point.held_out_accuracy:.3f}"
            )

        yield lambda step, total, loss: steps.update(done=step, total=total, note=f"loss {loss:.3f}"), checked


@contextmanager
def reading_bytes(activity: str) -> Iterator[Callable[[int, int], None]]:
    """Show how much of a file is done. Call the yielded function with (bytes so far, bytes in total)."""
    with Steps(activity, in_bytes=True) as steps:
        yield lambda done, total: steps.update(done=done, total=total)


@contextmanager
def measuring(
    total: int | None, activity: str, *, stderr: bool
) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Show how many of `total` items are done, and yield a function that prints a line at once, whole."""
    with Steps(activity, total) as steps:

        def print_line(text: str) -> None:
            steps.print_with(lambda: line(text, stderr=stderr))
            (sys.stderr if stderr else sys.stdout).flush()

        yield lambda: steps.update(by=1), print_line


def reliability_svg(title: str, series: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """An SVG plot of accuracy by confidence. `series` holds (confidence, accuracy, count) by name."""
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
            f'<text x="{left + size + 42}" y="{top + 18 + 24 * number}">{html.escape(name)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{top + size + 56}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="22" font-size="15" font-weight="bold">{html.escape(title)}</text>'
        f"{''.join(parts)}</svg>\n"
    )


def bars_svg(title: str, values_ms: Mapping[str, float]) -> str:
    """A bar chart of milliseconds as an SVG document."""
    longest = max(values_ms.values(), default=1.0) or 1.0
    rows = []
    for number, (name, value) in enumerate(values_ms.items()):
        y, width = 40 + 28 * number, max(1.0, 380 * value / longest)
        rows.append(
            f'<text x="250" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="260" y="{y}" width="{width:.1f}" height="18" fill="#4a7a9c"/>'
            f'<text x="{266 + width:.1f}" y="{y + 14}">{value:.2f} ms</text>'
        )
    height = 56 + 28 * len(values_ms)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" '
        f'font-family="sans-serif" font-size="13">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="20" y="24" font-size="15" font-weight="bold">{html.escape(title)}: median, one run</text>'
        f"{''.join(rows)}</svg>\n"
    )
