"""The curve of `tune` as a page of HTML: asks a day against false allows, with intervals and the chosen band.

Owns the page and the geometry of its chart. Invariant: the page is self-contained (its security policy
forbids scripts and the network), and the template escapes every text. It shows a refusal too: then no band is
marked, and the reason is there. Pure but for the template, which is read beside this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.escape import in_html
from thor_policy.learning.tuning import Evidence, promise_over
from thor_policy.policy import bands
from thor_policy.policy.bands import CONFIDENCE, Point, Promise

#: The size of the chart and of its frame, in SVG units.
WIDTH, HEIGHT = 720.0, 460.0
LEFT, TOP, RIGHT, BOTTOM = 64.0, 18.0, 18.0, 52.0
#: Bands that are drawn with their interval and listed: each of so many hundredths, and the chosen one.
_EVERY = 10


class Mark(Struct, frozen=True, kw_only=True):
    """A band as drawn: its point, and the ends of both intervals, in SVG units."""

    x: float
    y: float
    left: float
    right: float
    top: float
    bottom: float
    text: str
    is_chosen: bool


class Chart(Struct, frozen=True, kw_only=True):
    """The chart: ticks as (text, place), the promised corner, the path of all bands, the marked bands."""

    x_ticks: tuple[tuple[str, float], ...]
    y_ticks: tuple[tuple[str, float], ...]
    promised_x: float
    promised_y: float
    path: str
    marks: tuple[Mark, ...]


def page(pack: PackInfo, outcome: str, evidence: Evidence, promise: Promise) -> str:
    """The whole page. `outcome` is that of an ask.

    Raises CalibrationError if nothing was reviewed or served.
    """
    promise = promise_over(evidence, promise)
    points = bands.curve(evidence.reviewed, evidence.served, promise)
    chosen = bands.chosen(points)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=in_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda share: f"{100 * share:.2f} %"}
    text = environment.get_template("tuning_page.html").render(
        pack=pack,
        outcome=outcome,
        evidence=evidence,
        promise=promise,
        confidence=CONFIDENCE,
        chosen=chosen,
        refusal=None if chosen else bands.refusal(points, len(evidence.reviewed), promise),
        listed=[point for point in points if _is_listed(point, chosen)],
        chart=chart(points, chosen, promise),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        top=TOP,
        right=WIDTH - RIGHT,
        bottom=HEIGHT - BOTTOM,
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # replaces lone surrogates


def _is_listed(point: Point, chosen: Point | None) -> bool:
    return point is chosen or round(point.below * 100) % _EVERY == 0


def chart(points: Sequence[Point], chosen: Point | None, promise: Promise) -> Chart:
    """The geometry of the chart of a curve."""
    x_top, x_ticks = _axis(max(max(point.asks_per_day_at_most for point in points), promise.asks_per_day))
    y_top, y_ticks = _axis(
        100 * max(max(point.false_allows_at_most for point in points), promise.false_allows)
    )

    def x(asks: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(asks / x_top, 1.0)

    def y(false_allows: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(100 * false_allows / y_top, 1.0)

    marks: dict[tuple[float, float], Mark] = {}
    for point in points:
        at = x(point.asks_per_day), y(point.false_allows)
        if _is_listed(point, chosen) and (at not in marks or point is chosen):  # else it would hide another
            marks[at] = Mark(
                x=at[0],
                y=at[1],
                left=x(point.asks_per_day_at_least),
                right=x(point.asks_per_day_at_most),
                top=y(point.false_allows_at_most),
                bottom=y(point.false_allows_at_least),
                text=f"{point.below:.2f}",
                is_chosen=point is chosen,
            )
    return Chart(
        x_ticks=tuple((f"{tick:g}", x(tick)) for tick in x_ticks),
        y_ticks=tuple((f"{tick:g} %", y(tick / 100)) for tick in y_ticks),
        promised_x=x(promise.asks_per_day),
        promised_y=y(promise.false_allows),
        path=" ".join(f"{x(point.asks_per_day):.1f},{y(point.false_allows):.1f}" for point in points),
        marks=tuple(marks.values()),
    )


def _axis(most: float) -> tuple[float, tuple[float, ...]]:
    """The end of an axis from 0 that holds `most`, and its ticks, at 1, 2 or 5 times a power of ten."""
    most = max(most, 1e-9)
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(power * times for times in (1, 2, 5, 10) if most / (power * times) <= 8)
    ticks = math.ceil(most / step)
    return ticks * step, tuple(round(step * number, 12) for number in range(ticks + 1))
