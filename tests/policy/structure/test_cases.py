"""Calls of tools and devices whose outcome was too loose, and further ones of the same kinds.

The kinds: SQL that does more than read (K22), mail that goes to others (K28), ranges not all private (K29).
Each condition must hold for each case of its kind, and for none of the harmless calls.
"""

from __future__ import annotations

import collections
import json
from typing import Any

import pytest

from tests.documents import ROOT
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.rules import RuleBook

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (ROOT / "tests" / "data" / "structure" / "cases.json").read_text(encoding="utf-8")
)
#: When a call of a kind is not harmless.
CONDITIONS = {
    "K22": 'sql(given("action.properties.statement", "")).reads_only == false',
    "K28": """emails(action.properties.filter(k, k.lowerAscii() in ["to", "cc", "bcc", "recipients"])
        .map(k, action.properties[k])).exists(m, m.opaque != "" || m.domain != "firm.example")""",
    "K29": 'cidr(given("action.properties.reachable_from", "")).class != "private"',
}
HARMLESS = [
    ("K22", {"statement": "SELECT count(*) FROM orders"}),
    ("K28", {"to": ["amy@firm.example"], "Bcc": "Bo <BO@firm.example>, cy@firm.example"}),
    ("K29", {"reachable_from": "10.1.0.0/16"}),
]


def is_refused(kind: str, properties: dict[str, Any]) -> bool:
    """True if the condition of a kind holds for an action with these properties."""
    book = RuleBook(
        outcomes=("allow", "deny"),
        facts={},
        rules=(Rule(id="case", when=CONDITIONS[kind], outcome="deny", because="It is not harmless."),),
        risk=None,
    )
    evaluation = Evaluation(
        subject=Entity(type="agent", id="coder"),
        action=Action(name="call", properties=properties),
        resource=Entity(type="thing", id="x"),
    )
    floor = book.apply(evaluation, 0.0)
    assert floor.errors == {}
    return floor.outcome == "deny"


@pytest.mark.parametrize("case", [*CASES["given"], *CASES["further"]], ids=lambda case: ascii(case["id"]))
def test_a_call_that_is_not_harmless_is_seen(case: dict[str, Any]) -> None:
    assert is_refused(case["id"][:3], case["properties"])


@pytest.mark.parametrize(("kind", "properties"), HARMLESS)
def test_a_harmless_call_is_not_refused(kind: str, properties: dict[str, Any]) -> None:
    assert not is_refused(kind, properties)


def test_each_kind_has_ten_further_cases() -> None:
    kinds = collections.Counter(case["id"][:3] for case in CASES["further"])
    assert kinds == dict.fromkeys(CONDITIONS, 10)
