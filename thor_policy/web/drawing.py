"""Geometry of what pages draw: the graph of a trace, bars, columns, and confidence against what was right.

Owns coordinates, never markup: the templates write the SVG, and escape its texts. Invariant: a drawing has a
bounded number of shapes. Pure; any thread.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.journal.reader import Record
from thor_policy.trace.nodes import Link
from thor_policy.trace.reading import Trace

#: Boxes on each side of a graph; more are counted in one box.
MOST_BOXES = 12
#: Width of a graph and of its boxes, height of a box and the space to the next, in SVG units.
WIDTH, BOX, HEIGHT, GAP = 860, 250, 44, 14
#: Where the line and the boxes of the narrow form begin.
_LINE_X, _BOX_X = 16, 44
#: Characters of a line in a box.
_LINE = 28
#: Edges that lead from a decision to what became of it; all others lead to what it rests on.
_AFTER = frozenset({"RESULTED_IN", "SUPERSEDED_BY", "OVERTURNED_BY", "APPROVED_BY", "COUNTERSIGNED_BY"})
#: Hours that the columns of a plot show.
MOST_HOURS = 72


class Box(Struct, frozen=True, kw_only=True):
    """A node of a graph: its place, the edge to it, two lines of text, and what a click opens."""

    x: float
    y: float
    edge: str
    title: str
    kind: str
    decision: str | None = None
    curve: str = ""
    at: tuple[float, float] = (0.0, 0.0)


class Graph(Struct, frozen=True, kw_only=True):
    """A decision in the middle, what it rests on at the left, what became of it at the right.

    `narrow` is the same for small screens, one box below the other, with the decision first.
    """

    height: float
    centre: Box
    left: tuple[Box, ...]
    right: tuple[Box, ...]
    narrow: tuple[Box, ...]
    narrow_height: float


def graph(trace: Trace) -> Graph:
    """The graph of a trace."""
    before = [_of_link(link) for link in trace.links if link.type not in _AFTER]
    after = [_of_link(link) for link in trace.links if link.type in _AFTER]
    after += [
        ("SUPERSEDED_BY", node.name or node.id or "", node.type, node.id)
        for node in trace.superseded_by
        if node.id not in {decision for *_, decision in after}
    ]
    after += [
        ("REVIEWED", f"{words_of(review['verdict'])} by {review['reviewer'] or '(erased)'}", "review", None)
        for review in trace.reviews
    ]
    after += [("CITED_BY", decision[-8:], "decision", decision) for decision in trace.cited_by]
    rows = max(1, min(len(before), MOST_BOXES + 1), min(len(after), MOST_BOXES + 1))
    height = rows * (HEIGHT + GAP) + GAP
    middle = height / 2
    centre = Box(
        x=(WIDTH - BOX) / 2,
        y=middle - HEIGHT / 2,
        edge="",
        title=fitted(str(trace.answer.get("outcome") or trace.type)),
        kind=fitted(f"{trace.action or trace.type} {trace.entity or ''}".strip()),
    )
    left, right = _column(before, 0, height, middle), _column(after, WIDTH - BOX, height, middle)
    narrow = _stacked(centre, (*left, *right))
    return Graph(
        height=height,
        centre=centre,
        left=left,
        right=right,
        narrow=narrow,
        narrow_height=len(narrow) * (HEIGHT + GAP),
    )


def _stacked(centre: Box, boxes: Sequence[Box]) -> tuple[Box, ...]:
    """The decision, and below it every other box at a line that begins at the decision."""
    placed = [replace(centre, x=0.0, y=2.0)]
    for place, box in enumerate(boxes, 1):
        y = 2.0 + place * (HEIGHT + GAP)
        line = y + HEIGHT / 2
        curve = f"M{_LINE_X} {HEIGHT + 2} V{line:g} H{_BOX_X}"
        placed.append(replace(box, x=float(_BOX_X), y=y, curve=curve, at=(float(_BOX_X), line)))
    return tuple(placed)


def _of_link(link: Link) -> tuple[str, str, str, str | None]:
    node = link.node
    decision = node.id if node.type == "decision" else None
    return link.type, str(node.name or node.id or "(erased)"), node.type, decision


def _column(
    nodes: Sequence[tuple[str, str, str, str | None]], x: float, height: float, middle: float
) -> tuple[Box, ...]:
    shown = list(nodes[:MOST_BOXES])
    if len(nodes) > MOST_BOXES:
        shown.append(("", f"{len(nodes) - MOST_BOXES} more below", "", None))
    top = (height - len(shown) * (HEIGHT + GAP) + GAP) / 2
    to_left = x < WIDTH / 2
    start = (WIDTH - BOX) / 2 if to_left else (WIDTH + BOX) / 2
    end = x + BOX if to_left else x
    half = (start + end) / 2
    boxes = []
    for place, (edge, title, kind, decision) in enumerate(shown):
        y = top + place * (HEIGHT + GAP)
        line = y + HEIGHT / 2
        boxes.append(
            Box(
                x=x,
                y=y,
                edge=edge,
                title=fitted(title),
                kind=fitted(f"{words_of(edge)} · {words_of(kind)}" if edge else kind),
                decision=decision,
                curve=f"M{start:g} {middle:g} C{half:g} {middle:g} {half:g} {line:g} {end:g} {line:g}",
                at=(end, line),
            )
        )
    return tuple(boxes)


def words_of(name: str) -> str:
    """A type as words: `GOVERNED_BY` becomes `governed by`."""
    return name.lower().replace("_", " ")


def fitted(text: str) -> str:
    """The text as one line that fits a box."""
    return textwrap.shorten(text, _LINE, placeholder="…") if " " in text else _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= _LINE else f"{text[: _LINE - 1]}…"


class Bar(Struct, frozen=True, kw_only=True):
    """One bar: its name, its count, and its share of all and of the longest bar."""

    name: str
    count: int
    share: float
    length: float


def bars(counts: Mapping[str, int]) -> tuple[Bar, ...]:
    """Counts as bars, in the order that they have."""
    total, longest = sum(counts.values()) or 1, max(counts.values(), default=0) or 1
    return tuple(
        Bar(name=str(name), count=count, share=count / total, length=count / longest)
        for name, count in counts.items()
    )


class Column(Struct, frozen=True, kw_only=True):
    """One hour of a plot: its place from the left and its height, each from 0 to 1."""

    hour: str
    count: int
    left: float
    height: float


def columns(hours: Sequence[tuple[str, int]]) -> tuple[Column, ...]:
    """The newest hours that have decisions, as columns of one plot."""
    newest = hours[-MOST_HOURS:]
    most = max((count for _, count in newest), default=1)
    return tuple(
        Column(hour=f"{hour[:10]} {hour[11:]}:00", count=count, left=place / len(newest), height=count / most)
        for place, (hour, count) in enumerate(newest)
    )


class Point(Struct, frozen=True, kw_only=True):
    """A bucket of confidence: what was stated and what was right (0 to 1), and how many were judged."""

    stated: float
    right: float
    judged: int


def reliability(buckets: Sequence[Record]) -> tuple[Point, ...]:
    """The buckets with judged decisions."""
    return tuple(
        Point(
            stated=bucket["confidence"], right=bucket["correct"] / bucket["judged"], judged=bucket["judged"]
        )
        for bucket in buckets
        if bucket["judged"]
    )
