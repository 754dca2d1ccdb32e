"""Coverage: the clauses that answers cite, the rules that questions fire, and those that none reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thor_policy.config import data_path
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.suites import suite_files
from thor_policy.suites.coverage import Coverage, cover
from thor_policy.suites.scenarios import Expectation, Scenario
from thor_policy.suites.verdicts import Result

AT = 1_767_279_600.0


def answered(scenario: Scenario, *clauses: str, outcome: str | None = "deny") -> Result:
    status: Any = "passed" if outcome else "error"
    return Result(scenario=scenario, status=status, outcome=outcome, answer={"clauses": clauses})


@pytest.fixture
def suspended() -> Scenario:
    """Rules deny it by clause R1."""
    return Scenario(
        id="S1",
        title="A suspended account",
        difficulty="easy",
        situation={
            "actor_id": "user:kofi",
            "action_type": "push",
            "resource": "repo:billing",
            "identity_metrics": {"account": "suspended"},
        },
        expect=Expectation(outcome="deny"),
    )


def test_every_clause_and_rule_of_the_pack_is_counted(shipped_pack: Pack, suspended: Scenario) -> None:
    coverage = cover(shipped_pack, [answered(suspended, "R1", "R1", "R2"), answered(suspended, "R1")], AT)
    fired = shipped_pack.book.apply(suspended.evaluation(), AT).rules
    assert (coverage.pack, coverage.scenarios) == (shipped_pack.info.name, 2)
    assert list(coverage.clauses) == list(shipped_pack.clauses)
    assert (coverage.clauses["R1"], coverage.clauses["R2"], coverage.clauses["R3"]) == (2, 1, 0)
    assert list(coverage.rules) == [rule.id for rule in shipped_pack.book.rules]
    assert fired
    assert {name: count for name, count in coverage.rules.items() if count} == dict.fromkeys(fired, 2)


def test_coverage_lists_what_no_scenario_reached_and_the_lower_share_counts() -> None:
    coverage = Coverage(
        pack="p", scenarios=3, clauses={"R1": 2, "R2": 0}, rules={"a": 0, "b": 1, "c": 0, "d": 0}
    )
    assert (coverage.never_cited, coverage.never_fired, coverage.share) == (("R2",), ("a", "c", "d"), 0.25)
    assert Coverage(pack="p", scenarios=0, clauses={"R1": 1}, rules={}).share == 1.0


def test_a_scenario_without_an_answer_covers_nothing(shipped_pack: Pack, suspended: Scenario) -> None:
    coverage = cover(shipped_pack, [answered(suspended, outcome=None)], AT)
    assert (coverage.scenarios, coverage.share) == (0, 0.0)
    assert not any(coverage.rules.values())


#: Rules that no scenario of the suite of their pack sets off; the suites are frozen.
UNREACHED = {
    "todo-app": (),
    "api-gateway": (),
    "agent-tools": (
        "metadata-address",
        "speaks-of-secrets",
        "address-not-public",
        "not-only-reading",
        "unread-arguments",
        "harmless-change",
        "harmless-query",
        "public-page",
        "lookup",
    ),
    "device-operations": (
        "battery-too-low",
        "locked-out",
        "lock-unreadable",
        "unknown-zone",
        "footage-leaves",
        "lock-unknown",
        "version-unknown",
        "unknown-operation",
    ),
    "discount-approval": ("long-price", "plain-and-small"),
    "invoice-exception": ("three-way-match",),
    "mcp-tools": (),
    "team-governance": (
        "unreadable-account",
        "unreadable-subject",
        "unknown-type",
        "production-without-time",
        "automation-privileged",
    ),
    "trade-risk": ("deep-drawdown", "conduct", "plain-exit"),
}


@pytest.mark.parametrize("path", suite_files.available(data_path("scenarios")), ids=lambda path: path.stem)
def test_the_shipped_suites_fire_every_rule_except_the_listed_ones(path: Path) -> None:
    loaded = suite_files.load(path)
    pack = pack_files.load(pack_files.find(loaded.pack, data_path("prompts")))
    coverage = cover(pack, [answered(scenario) for scenario in loaded.scenarios], AT)
    assert coverage.never_fired == UNREACHED[loaded.name]
