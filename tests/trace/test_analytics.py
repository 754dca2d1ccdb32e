"""Analytics of a made history, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import by_rule, record, sent
from tests.work import link, node
from thor_policy.core import records
from thor_policy.journal.reader import Reader
from thor_policy.trace import analytics as analytics_module
from thor_policy.trace.analytics import Analytics, analytics, share


def made(path: Path) -> Analytics:
    """Four decisions of work, and a recorded one: two successes, a failure, one unknown, one without."""
    record(
        path,
        node("d1", "decision", 0, agent="coder", confidence=90),
        node("o1", "outcome", 1, metadata={"success": True}),
        link("d1", "leads_to", "o1"),
        node("d2", "decision", 0, agent="coder", confidence=60),
        node("o2", "outcome", 1, metadata={"success": False}),
        link("d2", "leads_to", "o2"),
        node("d3", "decision", 31, agent="planner"),
        node("o3", "outcome", 32),
        link("d3", "leads_to", "o3"),
        node("d4", "decision", 31, agent="planner", confidence=20, status="abandoned"),
        by_rule(id="decided"),
        sent(records.Outcome(decision_id="decided", status="SUCCESS")),
        node("goal", "goal"),
        link("goal", "leads_to", "decided"),
    )
    with Reader(path) as reader:
        return analytics(reader)


def test_the_figures_equal_hand_counted_ones(tmp_path: Path) -> None:
    read = made(tmp_path / "j.db")
    assert (read.decisions, read.cut) == (5, False)
    counts = {name: (value.count, value.sample) for name, value in read.quality.items()}
    assert counts == {"with an outcome": (4, 5), "standing": (4, 5), "successful": (2, 3)}
    of_agent = {
        group.name: (group.decisions, group.success.count, group.success.sample) for group in read.by_agent
    }
    assert of_agent["coder"] == (2, 1, 2)
    assert of_agent["planner"] == (2, 0, 0)
    of_type = {group.name: (group.decisions, group.success.count) for group in read.by_type}
    assert of_type == {"work": (4, 1), "policy_application": (1, 1)}
    assert [(period.month, period.sample, period.mean) for period in read.confidence] == [
        ("2026-07", 2, 75.0),
        ("2026-08", 1, 20.0),
    ]
    assert read.judged == 2
    assert read.brier == pytest.approx((0.1**2 + 0.6**2) / 2)


def test_a_share_has_the_wilson_interval_of_its_sample() -> None:
    seven = share(7, 10)
    assert (seven.low, seven.high) == (pytest.approx(0.3968, abs=1e-4), pytest.approx(0.8922, abs=1e-4))
    assert share(0, 0).share is None
    assert share(0, 5).low == pytest.approx(0.0, abs=1e-12)
    assert share(5, 5).high == pytest.approx(1.0)


def test_only_the_newest_decisions_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytics_module, "MOST", 2)
    read = made(tmp_path / "j.db")
    assert (read.decisions, read.cut) == (2, True)
