"""Geometry of graphs and plots."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.build import by_model, record, sent
from thor_policy.core import records
from thor_policy.journal.reader import Reader
from thor_policy.trace.reading import Trace, read_trace
from thor_policy.web import drawing


def traced(path: Path, *more: records.Record) -> Trace:
    decision = by_model(id="d-00000001")
    record(path, decision, *(sent(item) for item in more))
    with Reader(path) as reader:
        return read_trace(reader, "d-00000001")


def test_a_graph_has_what_the_decision_rests_on_at_the_left_and_what_followed_at_the_right(
    tmp_path: Path,
) -> None:
    trace = traced(
        tmp_path / "policy_decisions.db",
        records.Outcome(decision_id="d-00000001", status="SUCCESS"),
        records.Review(decision_id="d-00000001", reviewer="robin", verdict="accept"),
    )
    graph = drawing.graph(trace)
    assert {box.edge for box in graph.left} == {"DECIDED_BY", "GOVERNED_BY", "APPLIES_TO"}
    assert {box.edge for box in graph.right} == {"RESULTED_IN", "REVIEWED"}
    assert all(box.x + drawing.BOX < graph.centre.x for box in graph.left)
    assert all(graph.centre.x + drawing.BOX < box.x for box in graph.right)
    assert len(graph.narrow) == 6


def test_a_graph_has_a_bounded_number_of_boxes_that_do_not_overlap(tmp_path: Path) -> None:
    many = [
        records.Review(decision_id="d-00000001", reviewer=f"r{number}", verdict="accept")
        for number in range(50)
    ]
    graph = drawing.graph(traced(tmp_path / "policy_decisions.db", *many))
    assert len(graph.right) == drawing.MOST_BOXES + 1
    assert graph.right[-1].title == f"{50 - drawing.MOST_BOXES} more below"
    places = [box.y for box in graph.right]
    assert all(lower - upper >= drawing.HEIGHT for upper, lower in pairwise(places))
    assert max(places) + drawing.HEIGHT <= graph.height


@pytest.mark.parametrize("text", ["short", "a" * 500, "many words " * 50, ""])
def test_a_title_fits_its_box(text: str) -> None:
    assert len(drawing.fitted(text)) <= 28


def test_bars_are_shares_of_all_and_of_the_longest() -> None:
    bars = drawing.bars({"allow": 6, "deny": 2})
    assert [(bar.share, bar.length) for bar in bars] == [(0.75, 1.0), (0.25, 1 / 3)]
    assert drawing.bars({}) == ()
    assert [bar.length for bar in drawing.bars({"allow": 0})] == [0.0]


def test_columns_are_the_newest_hours() -> None:
    hours = [(f"2026-07-{day:02}T{hour:02}", hour) for day in range(1, 9) for hour in range(24)]
    columns = drawing.columns(hours)
    assert len(columns) == drawing.MOST_HOURS
    assert columns[-1].hour == "2026-07-08 23:00"
    assert (columns[-1].height, columns[0].left) == (1.0, 0.0)
    assert drawing.columns([]) == ()


def test_only_judged_buckets_are_points() -> None:
    buckets = [
        {"confidence": 0.7, "judged": 4, "correct": 3},
        {"confidence": 0.9, "judged": 0, "correct": 0},
    ]
    (point,) = drawing.reliability(buckets)
    assert (point.stated, point.right, point.judged) == (0.7, 0.75, 4)
