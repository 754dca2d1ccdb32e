"""A person's decision: the kernel says who decided, the daemon under which pack, the record the rest."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.build import write_rules_only_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import RequestError
from thor_policy.daemon.person_decision import known_of, record_decision
from thor_policy.daemon.service import serving
from thor_policy.journal import statistics
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.policy import pack_files
from thor_policy.security.curve_keys import Keys

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


def counted(config: Config) -> int:
    with Reader(config.journal_path) as reader:
        return int(statistics.statistics(reader)["decisions"])


@pytest.fixture(params=["through the daemon", "directly"])
def recorded(config: Config, request: pytest.FixtureRequest) -> Any:
    """A function that records the decision of a person, and one that records anything else about it."""
    if request.param == "directly":
        yield lambda report, **more: record_decision(config, report, **more)
        return
    with serving(config):
        yield lambda report, **more: record_decision(config, report, **more)


def test_a_decision_has_who_from_the_kernel_and_the_pack_that_governs_it(
    config: Config, recorded: Any
) -> None:
    pack = pack_files.load(Path(config.pack)).info
    known = known_of(config, "quote:Q-7")
    assert (known.pack, known.outcomes, known.consulted) == (
        pack,
        ("allow", "require_mfa", "deny"),
        (),
    )
    decision = recorded(REPORT)
    assert column(config, decision.id, "actor", "tier", "decision", "prompt_version") == (
        f"human:uid:{os.geteuid()}",
        "human",
        "12 %",
        f"alone@1+{pack.sha256[:12]}",
    )
    assert decision.lacks == ("approved_by", "source_data", "outcome")


def test_consents_and_data_are_recorded_with_the_decision_and_complete_its_trace(
    config: Config, recorded: Any
) -> None:
    decision = recorded(REPORT, consents=[KIM], consulted=[CRM])
    assert decision.lacks == ("outcome",)
    with Reader(config.journal_path) as reader:
        trace = reader.trace(decision.id)
    assert [(row["approver"], row["role"], row["channel"]) for row in trace["approvals"]] == [
        ("kim", "manager", "phone")
    ]
    assert [(row["system"], row["answer"]) for row in trace["consultations"]] == [("crm", "gold")]
    assert (len(decision.approvals), len(decision.consultations)) == (1, 1)


def test_a_trace_without_an_approver_is_held_and_counts_once_an_event_completes_it(config: Config) -> None:
    """In a running daemon: out of the statistics, then in them."""
    with serving(config), Client(config.endpoint) as client:
        client.evaluate(
            {
                "subject": {"type": "user", "id": "a"},
                "action": {"name": "look"},
                "resource": {"type": "r", "id": "1"},
            }
        )
        decision = record_decision(config, REPORT, consulted=[CRM])
        assert (decision.lacks, counted(config)) == (("approved_by", "outcome"), 1)
        client.outcome(decision.id, "SUCCESS")
        assert (column(config, decision.id, "lacks"), counted(config)) == ((["approved_by"],), 1)
        client.approval(replace_id(KIM, decision.id))
        assert (column(config, decision.id, "lacks"), counted(config)) == ((None,), 2)
    assert verify(config.journal_path).ok


def replace_id(approval: records.Approval, decision_id: str) -> records.Approval:
    return records.Approval(decision_id=decision_id, approver=approval.approver)


def test_a_consent_that_the_caller_may_not_record_leaves_the_decision_in_quarantine(
    config: Config, tcp_endpoint: str
) -> None:
    over_tcp = replace(config, tcp_endpoint=tcp_endpoint)
    key = Keys(over_tcp.keys_dir).new("seller", ("ask", "record"), 0.0)
    with serving(over_tcp):
        seller = replace(over_tcp, endpoint=tcp_endpoint, key=str(key))
        with pytest.raises(RequestError, match="approval needs the role approve") as refusal:
            record_decision(seller, REPORT, consents=[KIM])
        (note,) = refusal.value.__notes__
        decision_id = note.removeprefix("the decision itself is recorded as ")
        assert column(over_tcp, decision_id, "actor", "claimed") == ("human:key:seller", "report")
        assert "approved_by" in column(over_tcp, decision_id, "lacks")[0]


def test_what_the_sources_of_the_pack_say_of_the_entity_is_known_and_recorded(config: Config) -> None:
    pack = Path(config.pack)
    text = (pack / "pack.yaml").read_text(encoding="utf-8")
    described = "of: resource, types: [account], attributes: {tier: {type: string}}"
    sources = f"""
sources:
  crm: {{{described}, system: CRM, table: {{path: accounts.csv}}}}
  lost: {{{described}, required: false, table: {{path: nowhere.csv}}}}
  elsewhere: {{of: subject, attributes: {{tier: {{type: string}}}}, table: {{path: accounts.csv}}}}
  told: {{{described}, required: false, pushed: {{}}}}
"""
    (pack / "pack.yaml").write_text(text + sources, encoding="utf-8")
    (pack / "accounts.csv").write_text("id,tier\nacme,gold\n", encoding="utf-8")
    known = known_of(config, "account:acme")
    (data,) = known.consulted
    assert (data.system, data.entity, data.value) == ("CRM", "account:acme", {"tier": "gold"})
    assert list(known.failures) == ["lost"]
    assert known_of(config, "quote:Q-7").consulted == known_of(config, "acme").consulted == ()
    decision = record_decision(config, REPORT, consulted=known.consulted)
    assert decision.lacks == ("approved_by", "outcome")
    with serving(replace(config, pack=str(write_rules_only_pack(config.state_dir / "other", rules="[]")))):
        elsewhere = known_of(config, "account:acme")  # the daemon has another pack
    assert (elsewhere.pack.name, elsewhere.outcomes, elsewhere.consulted) == ("alone", None, ())
