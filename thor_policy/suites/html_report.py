"""An HTML page about a run: verdict, intervals, confusion, reliability, time, flips, every scenario.

Owns the page and the geometry of its charts. Invariant: the page is self-contained (its security policy
forbids scripts and the network), and the template escapes every text, because scenarios are untrusted. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import Struct

from thor_policy.core.escape import in_html
from thor_policy.suites.conclusions import Conclusion, details, kinds
from thor_policy.suites.figures import Confusion
from thor_policy.suites.intervals import Rate
from thor_policy.suites.run_files import FAILURES, Item, worst

#: Width of every chart in SVG units; on a phone one unit is about one pixel.
WIDTH = 360
#: A tag gets a row only if it has this many scenarios.
_MIN_SCENARIOS_OF_TAG = 3


class Cell(Struct, frozen=True, kw_only=True):
    """A count of the confusion matrix. `kind` is right, loose or strict; `weight` is its share of the row."""

    x: float
    y: float
    width: float
    count: int
    kind: str
    weight: float


class Matrix(Struct, frozen=True, kw_only=True):
    """A confusion matrix as drawn: cells, row labels (text, y) and column labels (text, x)."""

    pack: str
    height: float
    left: float
    top: float
    cells: tuple[Cell, ...]
    rows: tuple[tuple[str, float], ...]
    columns: tuple[tuple[str, float], ...]
    several: int


class Strip(Struct, frozen=True, kw_only=True):
    """Times of one tier on a logarithmic axis: dots (x, y), the median and the caption."""

    tier: str
    y: float
    dots: tuple[tuple[float, float], ...]
    median_x: float
    caption: str


class Times(Struct, frozen=True, kw_only=True):
    """The chart of times: one strip for each tier, ticks as (text, x)."""

    height: float
    strips: tuple[Strip, ...]
    ticks: tuple[tuple[str, float], ...]


def page(conclusion: Conclusion) -> str:
    """The whole page."""
    run, figures = conclusion.run, conclusion.figures
    items = list(worst(run.results).values())
    failures = conclusion.failures
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=in_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "between": _between, "ms": _ms}
    text = environment.get_template("html_report.html").render(
        run=run,
        figures=figures,
        reasons=[f"{point.name}: {reason}" for point in conclusion.points for reason in point.reasons],
        width=WIDTH,
        verdict=_verdict(conclusion),
        kinds=kinds(failures),
        command=conclusion.command,
        details=details,
        matrices=[_matrix(confusion) for confusion in figures.confusion],
        times=_times(run.results),
        tags=[group for group in figures.by_tag if group.passed.of >= _MIN_SCENARIOS_OF_TAG],
        not_passed={name: [item for item in failures if item.result == name] for name in FAILURES},
        skipped=[item for item in items if item.status == "skipped"],
        passed=[item for item in items if item.status == "passed"],
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # replaces lone surrogates


def _verdict(conclusion: Conclusion) -> str:
    """What the exit status says, in words."""
    figures = conclusion.figures
    if conclusion.gate is not None and conclusion.status < 2:
        return "The gate is passed" if conclusion.ok else "The gate is not passed"
    if not figures.not_skipped:
        return "Nothing was asked"
    if figures.failed or figures.errors:
        return f"{figures.failed + figures.errors} of {figures.not_skipped} did not pass"
    return "All passed" if conclusion.ok else "All scenarios passed, but the run is no success"


def _percent(rate: Rate) -> str:
    return "–" if rate.share is None else f"{100 * rate.share:.0f} %"


def _between(rate: Rate) -> str:
    return "–" if rate.share is None else f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _tick(ms: float) -> str:
    """A label of the time axis: short, so that neighbours do not overlap."""
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def _matrix(confusion: Confusion) -> Matrix:
    labels = confusion.labels
    left, top = 10 + 6.2 * max(map(len, labels)), 8 + 4.4 * max(map(len, labels))
    size = (WIDTH - left - 4) / len(labels)
    height = min(size, 40)
    cells = tuple(
        Cell(
            x=left + size * column,
            y=top + height * row,
            width=size,
            count=count,
            kind="right" if column == row else "loose" if column < row else "strict",
            weight=count / (sum(counts) or 1),
        )
        for row, counts in enumerate(confusion.counts)
        for column, count in enumerate(counts)
    )
    return Matrix(
        pack=confusion.pack,
        height=top + height * len(labels) + 4,
        left=left,
        top=height,
        cells=cells,
        rows=tuple((label, top + height * (row + 0.5)) for row, label in enumerate(labels)),
        columns=tuple((label, left + size * (column + 0.5)) for column, label in enumerate(labels)),
        several=confusion.several,
    )


def _times(items: Sequence[Item]) -> Times | None:
    """The chart with one dot for each answer; None if there is no answer."""
    of_tier: dict[str, list[float]] = {}
    for item in items:
        if item.tier is not None:
            of_tier.setdefault(item.tier, []).append(max(item.total_ms, 0.01))
    if not of_tier:
        return None
    everything = [value for values in of_tier.values() for value in values]
    lowest, highest = math.floor(math.log10(min(everything))), math.ceil(math.log10(max(everything)))
    highest = max(highest, lowest + 1)

    def x(value: float) -> float:
        return 12 + (WIDTH - 24) * (math.log10(value) - lowest) / (highest - lowest)

    strips = []
    for number, (tier, values) in enumerate(sorted(of_tier.items())):
        y, middle = 34 + 66 * number, sorted(values)[(len(values) - 1) // 2]
        strips.append(
            Strip(
                tier=tier,
                y=y,
                # a fixed pattern spreads the dots over the strip, so that equal times do not hide each other
                dots=tuple((x(value), y + (index * 7 % 13 - 6) * 1.6) for index, value in enumerate(values)),
                median_x=x(middle),
                caption=f"{tier}: {len(values)}, median {_ms(middle)}",
            )
        )
    ticks = tuple((_tick(10.0**power), x(10.0**power)) for power in range(lowest, highest + 1))
    return Times(height=34 + 66 * len(strips), strips=tuple(strips), ticks=ticks)
