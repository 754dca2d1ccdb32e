"""Traces read back: each type of node and edge, written over the wire and shown; what was known at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import to_builtins
from msgspec.structs import replace

from tests.build import (
    EXPLAINED,
    NOON,
    PACK,
    by_model,
    by_rule,
    record,
    redecided,
    sent,
)
from tests.tasks import KIM, LEE, given, liftable, lifted, requested
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import graph, records
from thor_policy.core.decisions import Decision
from thor_policy.core.errors import JournalError
from thor_policy.core.lifting import Use
from thor_policy.core.requests import Json
from thor_policy.core.sources import Consulted
from thor_policy.daemon.journal_access import submit_record
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.testing import load_stub_engine
from thor_policy.trace.chains import MOST_STEPS
from thor_policy.trace.nodes import Link, Node
from thor_policy.trace.reading import Trace, read_trace

PATIENCE_MS = 20_000
#: A question that the rules decide.
QUESTION: Json = {
    "actor_id": "user:alice",
    "actor_role": "engineer",
    "t3_tensor": {"competence": 0.9, "reliability": 0.9, "integrity": 0.9},
    "action_type": "deploy",
    "resource": "env:production",
    "timestamp": "2026-05-13T10:00:00Z",
}


@dataclass
class World:
    """A journal in which a daemon recorded each type of node and edge."""

    path: Path
    #: Ids by the name that the world has for them.
    ids: dict[str, str]
    trace: Trace
    shown: str

    def types(self) -> dict[str, str]:
        """The type of each node of the trace, by its id."""
        nodes = [*(link.node for link in self.trace.links), *self.trace.superseded_by]
        nodes += [step.node for step in (*self.trace.causes, *self.trace.consequences)]
        return {str(node.id): node.type for node in nodes}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("w")
    config = Config(state_dir=folder, endpoint=f"ipc://{folder}/policy.sock")
    with (
        serving(config, load_engine=load_stub_engine),
        Client(config.endpoint, timeout_ms=PATIENCE_MS) as client,
    ):
        ids = populated(client)
    with Reader(config.journal_path) as reader:
        trace = read_trace(reader, ids["decision"], depth=4)
    arguments = ["trace", ids["decision"], "--depth", "4", "--state-dir", str(folder)]
    done = CliRunner().invoke(cli, arguments, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return World(config.journal_path, ids, trace, done.output)


def populated(client: Client) -> dict[str, str]:
    """Send one of each; returns the ids. Each edge ends at, or is near, the decision `decision`."""
    decided = [client.evaluate(QUESTION)["context"]["decision_id"] for _ in range(4)]
    ids = dict(zip(("decision", "precedent", "newer", "better"), decided, strict=True))
    for type_ in ("goal", "option", "action", "observation", "revisit", "entity", "event", "outcome"):
        ids[type_] = client.node(records.Node(type=type_, title=f"{type_}:{type_}s", session="s1"))  # type: ignore[arg-type]
    ids["older goal"] = client.node(records.Node(type="goal", title="the goal before", status="abandoned"))
    ids["option not taken"] = client.node(records.Node(type="option", title="wait"))
    ids["decision of work"] = client.node(records.Node(type="decision", title="build it"))
    ids["actor"] = client.node(
        records.Node(type="actor", title="the board", actor_type="committee", role="owner of the release")
    )
    this = ids["decision"]
    ids["source_data"] = client.consultation(
        records.Consultation(decision_id=this, system="crm", entity="tier", value="gold", took_ms=2.5)
    )
    client.approval(records.Approval(decision_id=this, approver="ines", role="manager"))
    client.approval(records.Approval(decision_id=this, approver="otto", role="director", step=2))
    client.approval(records.Approval(decision_id=this, approver="kim", verdict="rejected", evidence="no"))
    ids["result"] = client.outcome(this, "SUCCESS", 12.5, "sold")
    for source, type_, target in (
        (this, "APPLIES_TO", "entity"),
        (this, "APPLIES_TO", "actor"),
        (this, "TRIGGERED_BY", "event"),
        (this, "RESULTED_IN", "outcome"),
        ("goal", "leads_to", this),
        ("goal", "supersedes", "older goal"),
        (this, "chosen", "option"),
        (this, "rejected", "option not taken"),
        (this, "requires", "action"),
        ("observation", "blocks", this),
        ("revisit", "enables", this),
        ("decision of work", "leads_to", this),
    ):
        client.edge(records.Edge(source=ids.get(source, source), target=ids.get(target, target), type=type_))  # type: ignore[arg-type]
    client.edge(
        records.Edge(
            source=this, target=ids["precedent"], type="CITES",
            similarity=0.875, how="semantic", favourable=False, rationale="the same service",
        )
    )  # fmt: skip
    client.supersede(this, by=ids["newer"], because="a newer rule")
    client.overturn(this, by=ids["better"], because="the limit was misread")
    return ids


#: The far end of the edge of each type in the world: a name in `World.ids`, or an id.
FAR = {
    "DECIDED_BY": graph.DAEMON,
    "APPROVED_BY": "ines",
    "COUNTERSIGNED_BY": "otto",
    "APPLIES_TO": "entity",
    "CONSULTED": "source_data",
    "CITES": "precedent",
    "SUPERSEDED_BY": "newer",
    "OVERTURNED_BY": "better",
    "TRIGGERED_BY": "event",
    "RESULTED_IN": "result",
    "leads_to": "goal",
    "chosen": "option",
    "rejected": "option not taken",
    "requires": "action",
    "blocks": "observation",
    "enables": "revisit",
    "supersedes": "older goal",
}


@pytest.mark.parametrize("type_", graph.EDGES)
def test_each_type_of_edge_is_written_read_back_and_shown(world: World, type_: str) -> None:
    steps = (*world.trace.causes, *world.trace.consequences)
    ends = {str(link.node.id) for link in world.trace.links if link.type == type_}
    ends |= {str(step.node.id) for step in steps if step.type == type_}
    if type_ == "GOVERNED_BY":
        (version,) = ends
        assert version.startswith("team-governance@")
    else:
        assert world.ids.get(FAR[type_], FAR[type_]) in ends
    assert f" {type_}  " in world.shown


@pytest.mark.parametrize("type_", graph.NODES)
def test_each_type_of_node_is_written_read_back_and_shown(world: World, type_: str) -> None:
    nodes = {link.node.type: link.node for link in world.trace.links}
    nodes |= {step.node.type: step.node for step in (*world.trace.causes, *world.trace.consequences)}
    node = nodes[type_]
    if type_ in world.ids:
        assert type_ in ("decision",) or world.types()[world.ids[type_]] == type_
    assert node.name is not None
    assert node.name.split()[0] in world.shown


def test_what_a_precedent_an_approval_and_an_actor_say_is_kept(world: World) -> None:
    by_type: dict[str, list[Link]] = {}
    for link in world.trace.links:
        by_type.setdefault(link.type, []).append(link)
    (cited,) = by_type["CITES"]
    assert cited.details == {
        "similarity": 0.875, "how": "semantic", "favourable": False, "rationale": "the same service",
    }  # fmt: skip
    (approved,) = by_type["APPROVED_BY"]
    assert (approved.node.details, approved.details) == (
        {"actor_type": "human", "role": "manager"}, {"step": 1},
    )  # fmt: skip
    assert [rejection["approver"] for rejection in world.trace.rejections] == ["kim"]
    entity, named, board = (link.node for link in by_type["APPLIES_TO"])
    assert (entity.id, named.name) == ("env:production", "entity:entitys")
    assert board.details["actor_type"] == "committee"
    assert board.details["role"] == "owner of the release"
    (data,) = by_type["CONSULTED"]
    assert data.node.details == {"element": "tier", "value": "gold", "took_ms": 2.5}
    (policy,) = by_type["GOVERNED_BY"]
    assert policy.node.details["effective_from"] < world.trace.at
    assert "effective_to" not in policy.node.details


def test_the_tree_fits_80_columns(world: World) -> None:
    assert max(map(len, world.shown.splitlines())) <= 80
    assert "overturned" in world.shown.splitlines()[0]


def test_a_superseded_and_then_overturned_trace_has_both_edges_and_one_status(world: World) -> None:
    assert world.trace.status == "overturned"
    assert [(state["status"], state["because"]) for state in world.trace.states] == [
        ("superseded", "a newer rule"),
        ("overturned", "the limit was misread"),
    ]
    assert [node.id for node in world.trace.superseded_by] == [world.ids["better"]]


def test_a_node_that_another_supersedes_is_shown_as_superseded(world: World) -> None:
    (older,) = [step.node for step in world.trace.causes if step.node.id == world.ids["older goal"]]
    assert older.details["status"] == "superseded"
    assert older.details["superseded_by"] == world.ids["goal"]


# ---------------------------------------------------------------- at a time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def instant(seconds: float) -> str:
    return events.timestamp(NOON + seconds)


def told_over_time(path: Path) -> tuple[str, str]:
    """A decision at noon; every ten seconds something is recorded about it. Returns it and its successor."""
    decision, newer = by_model(), by_rule(at=NOON + 60)
    goal = sent(records.Node(type="goal", title="ship"), at=NOON)
    record(
        *(path, events.pack_activated(PACK, NOON - 5), decision, goal),
        sent(records.Consultation(decision_id=decision.id, system="crm"), at=NOON + 10),
        events.explanation_event(decision.id, EXPLAINED, NOON + 20),
        sent(records.Approval(decision_id=decision.id, approver="ines"), at=NOON + 30),
        sent(records.Outcome(decision_id=decision.id, status="PENDING"), at=NOON + 40),
        sent(records.Edge(source=goal.subject_id, target=decision.id, type="leads_to"), at=NOON + 50),
        newer,
        sent(records.Edge(source=newer.id, target=decision.id, type="CITES"), at=NOON + 70),
        sent(
            records.TraceState(decision_id=decision.id, status="superseded", because="b", by=newer.id),
            at=NOON + 80,
        ),
        *events.counterfactual_events(redecided(decision), NOON + 90),
        sent(records.Review(decision_id=decision.id, reviewer="ines", verdict="accept"), at=NOON + 100),
        events.pack_activated(replace(PACK, sha256="d" * 64), NOON + 110),
    )
    return decision.id, newer.id


def test_a_trace_at_a_time_has_what_was_recorded_before_it_and_nothing_later(path: Path) -> None:
    decision_id, newer = told_over_time(path)
    seen: list[tuple[Any, ...]] = []
    with Reader(path) as reader:
        for seconds in range(5, 125, 10):
            trace = read_trace(reader, decision_id, at=instant(seconds), depth=3)
            (policy,) = [link.node for link in trace.links if link.type == "GOVERNED_BY"]
            seen.append(
                (
                    sum(link.type in ("CONSULTED", "APPROVED_BY", "RESULTED_IN") for link in trace.links),
                    "reasoning" in trace.explanation,
                    len(trace.causes),
                    trace.cited_by,
                    trace.status,
                    [node.id for node in trace.superseded_by],
                    len(trace.counterfactuals),
                    len(trace.reviews),
                    "effective_to" in policy.details,
                )
            )
        now = read_trace(reader, decision_id, depth=3)
    plain: Any = ((), "active", [], 0, 0, False)
    assert seen[:7] == [
        (0, False, 0, *plain), (1, False, 0, *plain), (1, True, 0, *plain), (2, True, 0, *plain),
        (3, True, 0, *plain), (3, True, 1, *plain), (3, True, 1, *plain),
    ]  # fmt: skip
    late = (3, True, 1, (newer,))
    assert seen[7:] == [
        (*late, "active", [], 0, 0, False),
        (*late, "superseded", [newer], 0, 0, False),
        (*late, "superseded", [newer], 1, 0, False),
        (*late, "superseded", [newer], 1, 1, False),
        (*late, "superseded", [newer], 1, 1, True),
    ]
    assert now == replace(trace, as_of=None)


def test_a_request_for_approvals_has_the_fate_that_it_had_at_the_time(path: Path) -> None:
    denied = liftable(at=NOON)
    record(path, denied)
    record(path, requested(denied, at=NOON + 10), given(KIM, at=NOON + 20), given(LEE, at=NOON + 30))
    record(path, lifted(at=NOON + 40))
    statuses: list[Any] = []
    with Reader(path) as reader:
        for seconds in range(5, 50, 10):
            requests = read_trace(reader, denied.id, at=instant(seconds)).requests
            statuses += [(request["status"], len(request["used_by"])) for request in requests]
    assert statuses == [("pending", 0), ("partial", 0), ("approved", 0), ("approved", 1)]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (lifted(urgency="emergency"), ["lifted  require_attestation  emergency", "by task task-1"]),
        (
            liftable(use=Use(task="task-1", code="approval_used")),
            ["did not help  approval_used", "by task task-1"],
        ),
        (liftable(use=Use(task="", code="approval_unknown")), ["did not help  approval_unknown"]),
        (by_rule(use=Use(task="task-1")), ["not needed", "by task task-1"]),
    ],
    ids=["lifted", "used before", "without an id", "not needed"],
)
def test_the_tree_says_what_an_approval_did(path: Path, decision: Decision, expected: list[str]) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied, urgency="emergency", reason="fire"), given(KIM), decision)
    printed = CliRunner().invoke(cli, ["trace", decision.id, "--state-dir", str(path.parent)]).output
    branch = printed.partition("approvals\n")[2].partition("── summary")[0]
    lines = [line.lstrip("│├└─ ") for line in branch.splitlines()]
    assert lines[: len(expected)] == expected


def test_the_tree_says_who_rejected_a_request_and_what_became_of_it(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(
        path,
        requested(denied, urgency="urgent", reason="release 7"),
        given(KIM, denies=True, comment="too late today"),
    )
    printed = CliRunner().invoke(cli, ["trace", denied.id, "--state-dir", str(path.parent)]).output
    assert "rejected by  kim  as manager  comment too late today" in printed
    assert "by uid:1000  urgent" in printed
    assert "reason release 7" in printed
    assert "task task-1  denied" in printed


def test_a_trace_before_its_decision_is_refused(path: Path) -> None:
    decision_id, _ = told_over_time(path)
    with Reader(path) as reader:
        with pytest.raises(JournalError, match=r"at: the decision was made at .*, which is not before"):
            read_trace(reader, decision_id, at=instant(0))
        with pytest.raises(JournalError, match="at: 'noon' is not an RFC 3339 time"):
            read_trace(reader, decision_id, at="noon")
        with pytest.raises(JournalError, match="depth: must be from 0 to 1000"):
            read_trace(reader, decision_id, depth=1_001)
        with pytest.raises(JournalError, match="there is no decision 'x'"):
            read_trace(reader, "x")


def test_an_archived_decision_has_the_same_trace(path: Path) -> None:
    decision_id, _ = told_over_time(path)
    with Reader(path) as reader:
        before = [read_trace(reader, decision_id, at=instant(at), depth=2) for at in (15, 25, 500)]
    with Journal(path) as journal:
        assert archive_before(journal, "2100-01-01T00:00:00Z")
    with Reader(path) as reader:
        assert [read_trace(reader, decision_id, at=instant(at), depth=2) for at in (15, 25, 500)] == before


def test_an_erased_person_is_in_no_part_of_a_trace(path: Path) -> None:
    decision = by_model()
    newer = by_rule(evaluation=replace(decision.evaluation, context={}))
    record(
        *(path, decision, newer),
        sent(records.Approval(decision_id=decision.id, approver="alice")),
        sent(
            records.TraceState(
                decision_id=decision.id, status="superseded", by=newer.id, because="alice left"
            )
        ),
    )
    with Journal(path) as journal:
        assert erase(journal, "user:alice").left == ()
    with Reader(path) as reader:
        trace = read_trace(reader, decision.id, depth=2)
    assert "alice" not in str(to_builtins(trace))
    assert (trace.question, trace.actor, trace.status) == (None, None, "superseded")


# ---------------------------------------------------------------- chains, reports, old edges


def test_values_that_the_daemon_consulted_are_read_from_the_event(path: Path) -> None:
    entries: tuple[dict[str, Json], ...] = (
        {"source": "hr", "system": "ldap", "element": "role", "value": "lead", "took_ms": 1.5},
        {"source": "hr", "system": "ldap", "element": "pin", "digest": "ab", "took_ms": 0.0},
        {"source": "crm", "system": "https", "error": "timed out", "took_ms": 0.0},
    )
    decision = by_model(sources=tuple(Consulted(of="subject", **entry) for entry in entries))
    record(path, decision)
    with Reader(path) as reader:
        trace = read_trace(reader, decision.id)
    nodes = [link.node for link in trace.links if link.type == "CONSULTED"]
    assert [(node.id, node.name) for node in nodes] == [(None, "hr.role"), (None, "hr.pin"), (None, "crm")]
    assert [
        {name: value for name, value in node.details.items() if name not in ("of", "value")} for node in nodes
    ] == [
        {name: value for name, value in entry.items() if name not in ("source", "value")} for entry in entries
    ]
    assert nodes[0].details["value"] == "lead"


def test_a_reported_decision_names_who_decided_and_what_was_consulted_in_its_session(path: Path) -> None:
    gathered = sent(records.Consultation(session="s1", system="crm", value=1))
    for number, (made_by, actor_type) in enumerate(graph.ACTOR_OF.items()):
        report = records.DecisionReport(
            agent="the board", outcome="BUY", made_by=made_by, session="s1", prompt="Buy?",  # type: ignore[arg-type]
        )  # fmt: skip
        record(path, *([] if number else [gathered]), sent(report, record_id=f"report-{made_by}"))
        with Reader(path) as reader:
            trace = read_trace(reader, f"report-{made_by}")
        by_type = {link.type: link.node for link in trace.links}
        decider = by_type["DECIDED_BY"]
        assert (decider.name, decider.details["actor_type"]) == ("the board", actor_type)
        assert by_type["CONSULTED"].id == gathered.subject_id
        assert trace.question == {"prompt": "Buy?"}


def test_the_recorded_precedents_of_a_report_are_cited(config: Config) -> None:
    with (
        serving(config, load_engine=load_stub_engine),
        Client(config.endpoint, timeout_ms=PATIENCE_MS) as client,
    ):
        known = client.evaluate(QUESTION)["context"]["decision_id"]
        report = records.DecisionReport(agent="desk", outcome="ok", precedents=(known, "unknown", known))
        reported = client.decision_report(report)
        overturned = client.overturn(known, by=reported, because="wrong")
    assert overturned["cited_by"] == {"count": 1, "ids": [reported]}
    with Reader(config.journal_path) as reader:
        (link,) = [link for link in read_trace(reader, reported).links if link.type == "CITES"]
    assert (link.node.id, link.details) == (known, {"how": "reported"})


def test_a_report_that_a_command_records_cites_its_precedents_too(config: Config) -> None:
    precedent = by_rule()
    record(config.journal_path, precedent)
    report = records.DecisionReport(agent="desk", outcome="ok", precedents=(precedent.id,))
    reported = submit_record(config, report)
    with Reader(config.journal_path) as reader:
        assert read_trace(reader, precedent.id).cited_by == (reported,)


def test_a_chain_follows_edges_to_a_depth_and_ends_in_a_cycle(path: Path) -> None:
    goals = [sent(records.Node(type="goal", title=str(number))) for number in range(4)]
    ids = [goal.subject_id for goal in goals]
    decision = by_rule()
    links = [
        (ids[0], decision.id),
        (ids[1], ids[0]),
        (ids[2], ids[1]),
        (ids[0], ids[2]),
        (decision.id, ids[3]),
    ]
    record(
        path, decision, *goals,
        *(sent(records.Edge(source=source, target=target, type="leads_to")) for source, target in links),
    )  # fmt: skip
    with Reader(path) as reader:
        for depth in range(6):
            trace = read_trace(reader, decision.id, depth=depth)
            assert [step.node.id for step in trace.causes] == ids[: min(depth, 3)]
            assert [step.depth for step in trace.causes] == [1, 2, 3][:depth]
            assert [step.node.id for step in trace.consequences] == ids[3:] * (depth > 0)


def test_a_chain_has_a_bounded_number_of_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_STEPS == 1_000
    monkeypatch.setattr("thor_policy.trace.chains.MOST_STEPS", 3)
    decision, citing = by_rule(), [by_rule() for _ in range(5)]
    record(
        path, decision, *citing,
        *(sent(records.Edge(source=other.id, target=decision.id, type="CITES")) for other in citing),
    )  # fmt: skip
    with Reader(path) as reader:
        trace = read_trace(reader, decision.id, depth=2)
    assert [step.node.id for step in trace.consequences] == [other.id for other in citing[:3]]
    assert len(trace.cited_by) == 5


def test_an_edge_of_an_earlier_version_is_shown_with_an_unknown_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thor_policy.journal.graph.CHECKED", frozenset())
    decision = by_rule()
    record(path, decision, sent(records.Edge(source=decision.id, target="nobody", type="CITES")))
    with Reader(path) as reader:
        (link,) = [link for link in read_trace(reader, decision.id).links if link.type == "CITES"]
    assert link.node == Node(type="unknown", id="nobody")
