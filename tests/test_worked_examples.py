"""The worked examples of docs/examples: an exception from the request to its outcome, in a running daemon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.build import WAIT_S
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal import statistics
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.policy.lint import lint
from thor_policy.trace.reading import read_trace

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


class Daemon:
    """A daemon with the pack of an example, as its callers see it."""

    def __init__(self, config: Config, client: Client) -> None:
        self.config, self.client = config, client
        question = EXAMPLES / f"{Path(config.pack).name}-question.json"
        self.question = json.loads(question.read_text(encoding="utf-8"))

    def ask(self, **changes: Json) -> dict[str, Json]:
        reply = self.client.evaluate(self.question | changes)
        assert "rule_errors" not in reply["context"]
        return reply["context"]

    def lacks(self, decision_id: str) -> list[str]:
        with Reader(self.config.journal_path) as reader:
            decision = reader.get(decision_id)
        assert decision is not None
        return decision["lacks"] or []

    def counted(self) -> int:
        with Reader(self.config.journal_path) as reader:
            return int(statistics.statistics(reader)["decisions"])

    def summary(self, decision_id: str) -> str:
        """The summary, as soon as the daemon has made it of the newest records."""
        until = time.monotonic() + WAIT_S
        with Reader(self.config.journal_path) as reader:
            while (text := reader.summary(decision_id)) is None:
                assert time.monotonic() < until
        return text


@contextmanager
def daemon(config: Config, example: str) -> Iterator[Daemon]:
    with_pack = replace(config, pack=str(EXAMPLES / example))
    with serving(with_pack), Client(config.endpoint) as client:
        yield Daemon(with_pack, client)


@pytest.mark.parametrize("example", ["discount-exception", "invoice-exception"])
def test_the_pack_of_a_worked_example_has_no_finding(example: str) -> None:
    assert [str(finding) for finding in lint(EXAMPLES / example)] == []


def test_a_discount_exception_from_the_request_to_its_outcome(config: Config) -> None:
    with daemon(config, "discount-exception") as running:
        client = running.client
        small = running.ask(action={"name": "give_discount", "properties": {"percent": 8}})
        precedent = client.decision_report(
            records.DecisionReport(
                made_by="human", outcome="15 %", reasoning="An outage.", entity="quote:Q-3"
            )
        )
        assert (small["outcome"], running.counted()) == ("allow", 2)

        decision = running.ask()
        decision_id = decision["decision_id"]
        assert (decision["outcome"], decision["obligations"][0]["id"]) == ("require_manager", "manager")
        assert running.lacks(decision_id) == ["edge:CITES", "approved_by", "outcome"]
        assert decision["floor"] == "require_manager"
        with Reader(running.config.journal_path) as reader:
            assert [row["decision_id"] for row in reader.decisions(type="exception", urgency="urgent")] == [
                decision_id
            ]
            links = read_trace(reader, decision_id).links
        data = [link.node.details for link in links if link.type == "CONSULTED"]
        assert {(each["system"], each["element"], each["value"]) for each in data} == {
            ("accounts", "arr", 240_000.0),
            ("accounts", "tier", "gold"),
            ("tickets", "severity_1", 2.0),
        }

        client.edge(
            records.Edge(source=decision_id, target=precedent, type="CITES", rationale="an outage too")
        )
        assert (running.lacks(decision_id), running.counted()) == (["approved_by", "outcome"], 2)

        client.approval(
            records.Approval(decision_id=decision_id, approver="kim", role="manager", channel="phone")
        )
        client.outcome(decision_id, "SUCCESS", value=196_800, note="renewed for two years")
        assert (running.lacks(decision_id), running.counted()) == ([], 3)

        text = running.summary(decision_id)
        assert text.startswith("user:sam asked for give_discount on account:acme, which is over the limit")
        assert "Approvals: approved by kim (manager) by phone." in text
        assert "Result: SUCCESS, value 196800.0, renewed for two years. Missing: nothing." in text
    assert verify(config.journal_path).ok


def test_an_invoice_exception_from_the_request_to_its_outcome(config: Config) -> None:
    with daemon(config, "invoice-exception") as running:
        client = running.client
        decision = running.ask()
        decision_id = decision["decision_id"]
        assert decision["outcome"] == "require_second_approval"
        for title in ("supplier:S-9", "order:PO-17"):
            entity = client.node(records.Node(type="entity", title=title))
            client.edge(records.Edge(source=decision_id, target=entity, type="APPLIES_TO"))
        with Reader(running.config.journal_path) as reader:
            links = read_trace(reader, decision_id).links
        assert {link.node.name for link in links if link.type == "APPLIES_TO"} == {
            "invoice:4711",
            "supplier:S-9",
            "order:PO-17",
        }
        data = [link.node.details for link in links if link.type == "CONSULTED"]
        assert ("erp", "order_amount", 10_000.0) in {
            (each["system"], each["element"], each["value"]) for each in data
        }
        client.approval(records.Approval(decision_id=decision_id, approver="lee", verdict="rejected"))
        assert running.lacks(decision_id) == ["approved_by", "outcome"]
        client.approval(records.Approval(decision_id=decision_id, approver="kim", role="second approver"))
        client.outcome(decision_id, "SUCCESS", note="paid")
        assert (running.lacks(decision_id), running.counted()) == ([], 1)
        text = running.summary(decision_id)
        assert "variance 4.5" in text
        assert "erp order_amount = 10000.0" in text
    assert verify(config.journal_path).ok
