"""`decide`, `trace quarantine` and `log search`: people record decisions, and complete and find traces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.build import WAIT_S, write_rules_only_pack
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.daemon.person_decision import record_decision
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader

TRACE = """
trace:
  types: [exception]
  complete:
    exception: [reasoning, approved_by, source_data, outcome]
"""
RULES = "- {id: look, when: 'action.name == \"look\"', outcome: allow, final: true, because: Fine.}"
REPORT = records.DecisionReport(made_by="human", outcome="12 %", reasoning="It waits.", type="exception")
KIM = records.Approval(decision_id="-", approver="kim", role="manager", channel="phone")
CRM = records.Consultation(decision_id="-", system="crm", value="gold")


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return replace(config, pack=str(write_rules_only_pack(tmp_path / "alone", rules=RULES, more=TRACE)))


def column(config: Config, decision_id: str, *names: str) -> tuple[Any, ...]:
    with Reader(config.journal_path) as reader:
        row = reader.get(decision_id)
    assert row is not None
    return tuple(row[name] for name in names)


def run(config: Config, *arguments: str, **more: Any) -> Result:
    options = ["--state-dir", str(config.state_dir), "--endpoint", config.endpoint]
    return CliRunner().invoke(cli, [*arguments, *options], **more)


def test_the_command_records_a_decision_and_says_what_its_trace_lacks(config: Config) -> None:
    result = run(
        config,
        *("decide", "quote:Q-7", "--pack", config.pack, "--type", "exception", "--exception"),
        *("--outcome", "12 %", "--because", "It waits.", "--consent", "kim:manager@phone"),
        *("--data", "crm=gold", "--urgency", "urgent", "--made-at", "2026-05-13T12:00:00+02:00"),
        *("--confidence-level", "medium", "--judgment-call", "--context", '{"ticket": "T-1"}', "--json"),
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert (answer["lacks"], answer["pack"]["name"]) == (["outcome"], "alone")
    names = ("entity", "is_exception", "urgency", "timestamp_decision", "confidence_level", "judgment_call")
    assert column(config, answer["id"], *names, "situation") == (
        *("quote:Q-7", 1, "urgent", "2026-05-13T10:00:00.000000Z", "medium", 1),
        {"context": {"ticket": "T-1"}},
    )
    shown = run(
        config, "decide", "--pack", config.pack, "--type", "exception", "--outcome", "no", "--because", "x"
    )
    assert "in quarantine: lacks approved_by; a record of the kind approval adds it" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--because", "x"], "--outcome is needed where no terminal can be asked"),
        (["--outcome", "x"], "--because is needed where no terminal can be asked"),
        (["--type", "whim"], "--type 'whim': alone has the types policy_application, exception"),
        (["--outcome", "x", "--because", "y", "--consent", ":lead"], "give NAME, NAME:ROLE"),
        (["--outcome", "x", "--because", "y", "--data", "crm"], "give SYSTEM=VALUE"),
        (["--outcome", "x", "--because", "y", "--context", "[1]"], "is neither JSON nor a readable file"),
        (
            ["--outcome", "x", "--because", "y", "--made-at", "noon"],
            "record.timestamp_decision: must be an RFC",
        ),
    ],
)
def test_the_command_refuses_what_it_cannot_record(
    config: Config, arguments: list[str], message: str
) -> None:
    result = run(config, "decide", "--pack", config.pack, *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert not config.journal_path.exists()


def test_the_quarantine_lists_shows_and_completes_traces(config: Config) -> None:
    report = records.DecisionReport(made_by="human", outcome="12 %", type="exception", entity="quote:Q-7")
    decision = record_decision(config, report, consents=[KIM], consulted=[CRM])
    listed = json.loads(CliRunner().invoke(cli, quarantine(config, "list", "--json")).output)
    assert [(row["decision_id"], row["lacks"]) for row in listed] == [(decision.id, ["reasoning", "outcome"])]
    table = CliRunner().invoke(cli, quarantine(config, "list")).output
    assert decision.id[-8:] in table
    shown = CliRunner().invoke(cli, quarantine(config, "show", decision.id[-8:]))
    assert "supplement" in shown.output
    assert "no: in quarantine" in shown.output
    shown = CliRunner().invoke(cli, quarantine(config, "show", decision.id, "--json"))
    assert json.loads(shown.output)["lacks"]["outcome"]["added_by"] == "outcome"
    done = run(config, *quarantine(config, "complete", decision.id, "reasoning=It waits.", "--json"))
    assert json.loads(done.output)["lacks"] == ["outcome"]
    stats = CliRunner().invoke(cli, ["stats", "--state-dir", str(config.state_dir)])
    assert "1; not counted (trace quarantine list)" in stats.output
    run(config, "log", "outcome", decision.id, "SUCCESS")
    assert json.loads(CliRunner().invoke(cli, quarantine(config, "list", "--json")).output) == []
    stats = CliRunner().invoke(cli, ["stats", "--state-dir", str(config.state_dir)])
    assert "in quarantine" not in stats.output


def quarantine(config: Config, *arguments: str) -> list[str]:
    return ["trace", "quarantine", arguments[0], "--state-dir", str(config.state_dir), *arguments[1:]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("reasoning", "give NAME=VALUE"),
        ("confidence=high", "is not a number"),
        ("confidence=2", "record.values.confidence: must be a number from 0 to 1"),
        ("approved_by=kim", "record.values.approved_by: a supplement can have"),
    ],
)
def test_a_value_that_completes_no_trace_is_refused(config: Config, value: str, message: str) -> None:
    decision = record_decision(config, REPORT)
    result = run(config, *quarantine(config, "complete", decision.id, value))
    assert (result.exit_code, message in result.output) == (4 if "record." in message else 2, True), (
        result.output
    )


def test_a_summary_is_shown_before_and_after_the_daemon_made_it(config: Config) -> None:
    decision = record_decision(config, REPORT)
    shown = CliRunner().invoke(
        cli, ["log", "show", decision.id, "--state-dir", str(config.state_dir), "--json"]
    )
    text = json.loads(shown.output)["decision"]["summary"]
    assert "Reasons: It waits." in text
    search = ["log", "search", "waits", "--json", "--state-dir", str(config.state_dir)]
    result = CliRunner().invoke(cli, search)
    assert json.loads(result.stdout) == []
    assert "1 decisions have no summary of their newest records yet" in result.stderr
    with serving(config), Reader(config.journal_path) as reader:
        until = time.monotonic() + WAIT_S
        while reader.summary(decision.id) is None:
            assert time.monotonic() < until
    result = CliRunner().invoke(cli, search)
    assert [row["summary"] for row in json.loads(result.stdout)] == [text]
    assert result.stderr == ""


def test_in_a_terminal_the_command_asks_only_for_outcome_reason_and_consents(config: Config) -> None:
    terminal, stdin = os.openpty()
    os.write(terminal, b"12 %\nIt waits.\nkim:manager@phone\n\n")
    options = ["--state-dir", str(config.state_dir), "--endpoint", config.endpoint, "--pack", config.pack]
    program = "from thor_policy.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "decide", "quote:Q-7", "--type", "exception", *options],
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    os.close(terminal)
    os.close(stdin)
    assert "alone 1 (" in done.stdout
    assert f"uid {os.getuid()}" in done.stdout
    assert "outcome (allow, require_mfa, deny, or your own words)" in done.stdout
    assert "in quarantine: lacks source_data; a record of the kind consultation adds it" in done.stdout
    with Reader(config.journal_path) as reader:
        trace = reader.trace(reader.decisions()[0]["decision_id"])
    assert (trace["decision"]["decision"], trace["decision"]["reasoning"]) == ("12 %", "It waits.")
    assert [row["approver"] for row in trace["approvals"]] == ["kim"]


def test_decisions_are_listed_by_their_flags(config: Config) -> None:
    record_decision(config, REPORT)
    decision = record_decision(
        config,
        records.DecisionReport(
            made_by="human",
            outcome="no",
            is_exception=True,
            judgment_call=True,
            urgency="emergency",
            confidence_level="low",
        ),
    )
    for flags in (
        ["--exceptions"],
        ["--judgment-calls"],
        ["--urgency", "emergency"],
        ["--confidence-level", "low"],
        ["--type", "policy_application"],
    ):
        listed = CliRunner().invoke(cli, ["log", "--json", "--state-dir", str(config.state_dir), *flags])
        assert [row["decision_id"] for row in json.loads(listed.stdout)] == [decision.id], flags
