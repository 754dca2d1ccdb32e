"""The watch for alerts on a real journal: each alert is one event when it is raised and one when cleared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.build import NOON, by_model, rows, sent
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.core.status import DriftStatus
from thor_policy.daemon import alerts
from thor_policy.daemon.alerts import MOST_POSTPONED, NEXT_S, REST_S, AlertWatch, Thresholds
from thor_policy.daemon.service import serving
from thor_policy.journal import alert_queries, events
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.testing import load_stub_engine

S = 10**9
RATE = "SELECT state, of, name, value, sample, threshold FROM alerts WHERE kind = 'success_rate' ORDER BY seq"
#: Rates of agents alone: the decisions have no model.
ONLY_RATES = Thresholds(least=10, window=50, volume_sigma=0.0)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "policy_decisions.db", synchronous="OFF") as journal:
        yield journal


class Watched:
    """A watch, its clock, and the counters of a sentinel."""

    def __init__(self, journal: Journal, thresholds: Thresholds = ONLY_RATES, **more: Any) -> None:
        self.journal, self.now_ns = journal, 0
        self.drift = {"drifted": 0, "answered": 0, "failed": 0}
        self.golden = 0
        self.watch = AlertWatch(journal, thresholds, drift=self.status, wall=lambda: NOON, now_ns=0, **more)

    def status(self) -> DriftStatus:
        return DriftStatus(every_s=1.0, golden=self.golden, shift_max=0.0, counters=self.drift)

    def catch_up(self) -> None:
        """Take turns until nothing new is left, and wait until what they record is committed."""
        while True:
            self.now_ns += round(self.watch.wait_s(self.now_ns) * S)
            self.watch.turn(self.now_ns)
            if self.watch.wait_s(self.now_ns) > NEXT_S:
                break
        self.journal.run(lambda _: None).result(60)


def reported(agent: str, number: int) -> tuple[str, Any]:
    record_id = f"report-{number:05}"
    return record_id, sent(records.DecisionReport(agent=agent, outcome="buy"), record_id=record_id)


_numbers = itertools.count()


def results(journal: Journal, agent: str, *successes: bool, **more: Any) -> list[str]:
    """Decisions of an agent with these results; returns the ids."""
    made = [reported(agent, next(_numbers)) for _ in successes]
    outcomes = [
        sent(records.Outcome(decision_id=id_, status="SUCCESS" if success else "FAILURE"), **more)
        for (id_, _), success in zip(made, successes, strict=True)
    ]
    journal.commit_all([event for _, event in made]).result(60)
    journal.commit_all(outcomes).result(60)
    return [id_ for id_, _ in made]


def test_a_low_success_rate_is_raised_by_one_event_and_cleared_by_one(journal: Journal) -> None:
    watched = Watched(journal)
    results(journal, "bob", *[False] * 20)
    results(journal, "eve", *[True] * 20)
    watched.catch_up()
    watched.catch_up()
    results(journal, "bob", *[False] * 5)
    watched.catch_up()
    assert rows(journal.path, RATE) == [("raised", "agent", "agent:bob", 0.0, 20, 0.5)]
    results(journal, "bob", *[True] * 40)
    watched.catch_up()
    assert [row[0] for row in rows(journal.path, RATE)] == ["raised", "cleared"]
    ((count,),) = rows(journal.path, "SELECT count(DISTINCT id) FROM alerts")
    assert count == 1
    assert (watched.watch.counters["alerts_raised"], watched.watch.counters["alerts_cleared"]) == (1, 1)
    assert watched.watch.status().raised == ()
    assert verify(journal.path).ok


def test_a_few_failures_raise_nothing(journal: Journal) -> None:
    watched = Watched(journal)
    results(journal, "bob", *[False] * 9)
    watched.catch_up()
    assert rows(journal.path, RATE) == []


def test_claims_pending_outcomes_and_tests_do_not_count(journal: Journal) -> None:
    watched = Watched(journal)
    results(journal, "bob", *[False] * 20, claimed="yes")
    ids = results(journal, "eve", *[True] * 3)
    pending = [sent(records.Outcome(decision_id=id_, status="PENDING")) for id_ in ids * 9]
    journal.commit_all(pending).result(60)
    watched.catch_up()
    assert rows(journal.path, RATE) == []
    assert watched.watch.status().watched == 1


def test_the_model_of_decisions_is_watched_beside_their_agents(journal: Journal) -> None:
    watched = Watched(journal)
    decisions = [by_model() for _ in range(12)]
    journal.commit_all([events.decision_event(decision) for decision in decisions]).result(60)
    journal.commit_all(
        [sent(records.Outcome(decision_id=decision.id, status="FAILURE")) for decision in decisions]
    ).result(60)
    watched.catch_up()
    assert [(row[1], row[2]) for row in rows(journal.path, RATE)] == [
        ("agent", "user:alice"),
        ("model", "phi-4-mini"),
    ]
    shown = watched.watch.status().raised
    assert [(alert.of, alert.name) for alert in shown] == [("agent", None), ("model", "phi-4-mini")]


def test_after_a_restart_a_raised_alert_is_not_raised_again_and_its_end_has_the_same_id(
    journal: Journal,
) -> None:
    first = Watched(journal)
    results(journal, "bob", *[False] * 20)
    first.catch_up()
    second = Watched(journal)
    second.catch_up()
    assert len(rows(journal.path, RATE)) == 1
    assert len(second.watch.status().raised) == 1
    results(journal, "bob", *[True] * 40)
    second.catch_up()
    assert rows(journal.path, "SELECT count(*), count(DISTINCT id) FROM alerts") == [(2, 1)]


def test_old_results_that_are_read_again_page_by_page_raise_nothing_that_is_over(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "PAGE", 7)
    results(journal, "bob", *[False] * 20, *[True] * 50)
    watched = Watched(journal)
    for _ in range(12):
        watched.catch_up()
    assert rows(journal.path, RATE) == []


def test_an_erased_agent_has_no_alert_and_no_name_left(journal: Journal) -> None:
    watched = Watched(journal)
    results(journal, "bob", *[False] * 20)
    watched.catch_up()
    watched.watch.forget()
    assert erase(journal, "agent:bob").left == ()
    watched.watch.forget()
    watched.catch_up()
    assert [row[0] for row in rows(journal.path, RATE)] == ["raised", "cleared"]
    assert "bob" not in str(rows(journal.path, RATE))
    assert watched.watch.status().watched == 0
    assert verify(journal.path).ok


def test_a_flood_of_decisions_is_raised_and_cleared(journal: Journal) -> None:
    watched = Watched(journal, changed(ONLY_RATES, volume_sigma=6.0, bucket_s=REST_S))
    watched.catch_up()
    counts = [20] * 15 + [400] + [20] * 2
    for count in counts:
        journal.commit_all([events.decision_event(by_model()) for _ in range(count)]).result(60)
        watched.catch_up()
    shown = rows(journal.path, "SELECT state, value FROM alerts WHERE kind = 'volume' ORDER BY seq")
    assert shown == [("raised", 400.0), ("cleared", 20.0)]


def test_drift_is_raised_with_a_change_and_cleared_after_a_round_without_one(journal: Journal) -> None:
    watched = Watched(journal)
    results(journal, "bob", True)
    watched.golden = 5
    for drifted, answered in ((0, 5), (2, 8), (2, 12), (2, 13)):
        watched.drift.update(drifted=drifted, answered=answered)
        watched.catch_up()
    assert rows(journal.path, "SELECT state, value FROM alerts WHERE kind = 'drift'") == [
        ("raised", 2.0),
        ("cleared", 0.0),
    ]


def test_a_turn_waits_while_requests_wait_but_not_for_ever(journal: Journal) -> None:
    results(journal, "bob", *[False] * 20)
    watched = Watched(journal, busy=lambda: True)
    for _ in range(MOST_POSTPONED):
        watched.watch.turn(0)
    assert watched.watch.status().watched == 0
    watched.watch.turn(0)
    assert watched.watch.status().watched == 1


def test_what_is_watched_is_bounded_and_a_raised_alert_is_kept(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "MOST_WATCHED", 3)
    watched = Watched(journal)
    results(journal, "bob", *[False] * 20)
    watched.catch_up()
    for number in range(6):
        results(journal, f"agent{number}", True)
    watched.catch_up()
    results(journal, "zoe", True)
    watched.catch_up()
    assert watched.watch.status().watched == 3
    results(journal, "bob", *[True] * 40)
    watched.catch_up()
    assert [row[0] for row in rows(journal.path, RATE)][-1] == "cleared"


def test_a_journal_that_cannot_be_read_is_counted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    results(journal, "bob", True)
    watched = Watched(journal)
    journal.run(lambda connection: connection.execute("ALTER TABLE outcomes RENAME TO other")).result(60)
    watched.watch.turn(0)
    assert watched.watch.counters["alerts_failed"] == 1


def test_each_query_searches_by_a_key_or_an_index(journal: Journal) -> None:
    """So a turn costs what is new, whatever the length of the journal."""
    results(journal, "bob", *[True, False])
    seen: list[str] = []
    with Reader(journal.path) as reader, reader.snapshot() as connection:
        connection.set_trace_callback(seen.append)
        alert_queries.results_after(connection, 0, 10)
        alert_queries.decisions_after(connection, 0, 10)
        alert_queries.newest_decision(connection)
        alert_queries.before_newest_outcomes(connection, 10)
        connection.set_trace_callback(None)
        assert len(seen) == 4
        for sql in seen:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
            # a part that is bounded by LIMIT may be read from its end
            scans = [step for step in plan if step.startswith("SCAN") and "outcomes" not in step]
            assert all(step in ("SCAN (subquery-1)", "SCAN o") for step in scans), plan


# ---------------------------------------------------------------- in a daemon


def test_a_daemon_raises_an_alert_and_status_metrics_and_the_command_show_it(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "REST_S", 0.01)
    watching = changed(config, alert_sample=5)
    with serving(watching, load_engine=load_stub_engine), Client(watching.endpoint) as client:
        for _ in range(8):
            decided = client.decision_report(records.DecisionReport(agent="bob", outcome="buy"))
            client.outcome(decided, "FAILURE")
        while not (status := client.status()).alerts.raised:  # type: ignore[union-attr]
            pass
        (alert,) = status.alerts.raised  # type: ignore[union-attr]
        assert (alert.kind, alert.of, alert.name) == ("success_rate", "agent", None)
        samples = client.metrics()["thorpolicy_alerts_raised"]["samples"]
        kinds: Json = {sample["labels"]["kind"]: sample["value"] for sample in samples}
        assert kinds == {"success_rate": 1, "volume": 0, "drift": 0, "shipping": 0, "canary": 0}
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", watching.endpoint)
        assert "success_rate of agent: 0 (0 to" in CliRunner().invoke(cli, ["status"]).stdout
    shown = CliRunner().invoke(cli, ["alerts", "--raised", "--state-dir", str(watching.state_dir)])
    assert shown.exit_code == 0, shown.output
    assert "agent agent:bob" in " ".join(shown.stdout.split())
    assert verify(watching.journal_path).ok
