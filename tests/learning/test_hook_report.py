"""The report of hooks.

Calls by what their pack decided, what people accepted, and rules that would spare questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.learning import hook_report
from thor_policy.policy import pack_files
from thor_policy.testing import load_stub_engine

SINCE = "2020-01-01T00:00:00Z"
PACK = {
    "pack.yaml": """name: calls
version: "1"
description: Calls of agents.
model: never
outcomes:
  - {label: allow}
  - label: confirm
    obligations: [{id: confirm, type: custom, properties: {kind: confirmation}}]
  - {label: deny}
default: confirm
fields:
  - {name: tool, value: action.name}
  - {name: command, value: action.properties.command}
""",
    "clauses.yaml": "R1: What is not known is confirmed.\n",
    "rules.yaml": """
- {id: reads, when: action.name == 'read', outcome: allow, final: true, clause: R1, because: It only reads.}
- {id: wipes, when: action.name == 'wipe', outcome: deny, clause: R1, because: It wipes.}
""",
}


def asked_about(tool: str, number: int, *, observe: bool = False, hook: bool = True) -> dict[str, Any]:
    context = {"hook": {"agent": "claude", "tool": tool, "observe": observe}} if hook else {}
    return {
        "subject": {"type": "agent", "id": "claude"},
        "action": {"name": tool, "properties": {"command": f"{tool} {number}"}},
        "resource": {"type": "host", "id": "local"},
        "context": context,
    }


class Calls:
    """A daemon with the pack `calls`, and calls of an agent with what became of them."""

    def __init__(self, client: Client, config: Config, folder: Path) -> None:
        self._client, self._config, self._folder = client, config, folder

    def ask(self, tool: str, *, ran: bool = False, right: str | None = None, **about: bool) -> str:
        context = self._client.evaluate(asked_about(tool, len(tool), **about))["context"]
        decision_id: str = context["decision_id"]
        if ran:
            self._client.outcome(decision_id, "SUCCESS")
        if right is not None:
            same = right == context["outcome"]
            about_it: dict[str, Any] = {"decision_id": decision_id, "reviewer": "ines"}
            about_it |= {"verdict": "accept"} if same else {"verdict": "correct_decision", "decision": right}
            self._client.review(records.Review(**about_it))
        return decision_id

    def report(self, since: str = SINCE) -> hook_report.HookReport:
        with Reader(self._config.journal_path) as reader:
            return hook_report.report(reader, pack_files.load(self._folder), since=since)


@pytest.fixture
def calls(short_dir: Path) -> Iterator[Calls]:
    folder = short_dir / "calls"
    folder.mkdir()
    for name, text in PACK.items():
        (folder / name).write_text(text)
    config = Config(state_dir=short_dir, endpoint=f"ipc://{short_dir}/policy.sock", pack=str(folder))
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
        yield Calls(client, config, folder)


def test_calls_are_counted_by_what_the_pack_decided_and_by_what_people_made_of_it(calls: Calls) -> None:
    for _ in range(3):
        calls.ask("read", ran=True)
    calls.ask("build", ran=True)
    calls.ask("build")
    calls.ask("wipe", observe=True)
    calls.ask("push", observe=True, ran=True)
    false_block = calls.ask("deploy", right="allow")
    calls.ask("build", hook=False)
    report = calls.report()
    (figures,) = report.agents
    assert figures == hook_report.Figures(
        agent="claude",
        calls=8,
        allowed=3,
        questions=4,
        denied=1,
        observed=2,
        would_block=2,
        accepted=2,
        reviewed=1,
        false_blocks=1,
        failed=0,
    )
    assert (report.prompts_saved, report.prompts_asked, report.complete) == (3, 4, True)
    assert [(block.decision_id, block.tool) for block in report.false_blocks] == [(false_block, "deploy")]


def test_decisions_before_the_time_do_not_count(calls: Calls) -> None:
    calls.ask("build")
    assert calls.report("2999-01-01T00:00:00Z").agents == ()


def test_a_rule_is_proposed_from_what_people_accepted_and_was_tested_on_the_record(calls: Calls) -> None:
    for _ in range(16):
        calls.ask("build", ran=True)
    for _ in range(4):
        calls.ask("deploy")
    (pattern,) = calls.report().proposals
    assert (pattern.kind, pattern.change, len(pattern.cases)) == ("accepted", "confirm -> allow", 16)
    assert pattern.proposal is not None
    assert 'action.name == "build"' in pattern.proposal.rule
    assert "final: true" in pattern.proposal.rule
    assert (pattern.proposal.changes, pattern.proposal.against) == ({"confirm -> allow": 16}, 0)


def test_fewer_cases_are_shown_without_a_rule(calls: Calls) -> None:
    for _ in range(5):
        calls.ask("build", ran=True)
    calls.ask("deploy")
    (pattern,) = calls.report().proposals
    assert pattern.proposal is None
    assert pattern.why_not == "a rule is proposed from 15 cases on"


def test_what_a_reviewer_wanted_otherwise_is_not_counted_as_accepted(calls: Calls) -> None:
    for _ in range(16):
        calls.ask("build", ran=True, right="deny")
    calls.ask("deploy")
    assert calls.report().proposals == ()


def test_a_rule_that_contradicts_a_review_is_not_offered(calls: Calls) -> None:
    for _ in range(16):
        calls.ask("build", ran=True)
    calls.ask("build", right="confirm")
    for _ in range(8):
        calls.ask("deploy")
    assert [pattern.proposal for pattern in calls.report().proposals if pattern.proposal] == []
