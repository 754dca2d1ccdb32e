"""The graph in the journal: what its writer refuses, states of traces, the view of edges, old journals."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.build import NOON, PACK, Fates, by_model, by_rule, record, rows, sent, undo_migrations
from thor_policy.core import graph, records
from thor_policy.core.results import Committed
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.dispatch import run_maintenance
from thor_policy.journal.maintenance.rebuild import rebuild, rebuild_in_place
from thor_policy.journal.projections import version_of
from thor_policy.journal.reader import Reader
from thor_policy.journal.trace_queries import _INCOMING, _OUTGOING, EVER, traces
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path, synchronous="OFF") as opened:
        yield opened


def keep(journal: Journal, event: Event) -> Committed:
    """Record one event in a transaction of its own."""
    return journal.commit(event).result()


def node(journal: Journal, type_: str, **fields: Any) -> str:
    event = sent(records.Node(type=type_, title=f"a {type_}", **fields))  # type: ignore[arg-type]
    assert keep(journal, event).error is None
    return event.subject_id


def decided(journal: Journal, count: int = 1) -> list[str]:
    made = [by_rule() for _ in range(count)]
    for decision in made:
        assert keep(journal, events.decision_event(decision)).error is None
    return [decision.id for decision in made]


def edge(source: str, type_: str, target: str) -> Event:
    return sent(records.Edge(source=source, target=target, type=type_))  # type: ignore[arg-type]


def state(decision_id: str, status: str, by: str | None = None) -> Event:
    return sent(records.TraceState(decision_id=decision_id, status=status, because="so", by=by))  # type: ignore[arg-type]


def of(fate: Committed) -> tuple[str | None, str | None]:
    return fate.error, fate.message


# ---------------------------------------------------------------- refusals of the writer


def test_an_edge_to_or_from_what_nobody_recorded_is_refused(journal: Journal) -> None:
    goal = node(journal, "goal")
    assert of(keep(journal, edge("x", "leads_to", goal))) == (
        "not_found", "source: nothing is recorded under the id 'x'",
    )  # fmt: skip
    assert of(keep(journal, edge(goal, "leads_to", "user:alice"))) == (
        "not_found", "target: nothing is recorded under the id 'user:alice'",
    )  # fmt: skip


@pytest.mark.parametrize("type_", [name for name, known in graph.EDGES.items() if "edge" in known.ops])
def test_an_edge_with_ends_that_do_not_fit_its_type_is_refused(journal: Journal, type_: str) -> None:
    event = node(journal, "event")
    actor = node(journal, "actor", actor_type="human")
    code, message = of(keep(journal, edge(actor, type_, event)))
    assert code == "bad_request"
    assert f"type: {type_} cannot lead from actor to event; it leads from " in (message or "")


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        ("likes", "type: 'likes' is no type of edge; it must be one of "),
        ("APPROVED_BY", "type: APPROVED_BY is not for the op edge; the op approval states it"),
        ("DECIDED_BY", "type: DECIDED_BY is not for the op edge; it follows from "),
        ("SUPERSEDED_BY", "type: SUPERSEDED_BY is not for the op edge; the op trace_state states it"),
    ],
)
def test_the_writer_refuses_types_as_the_wire_does(journal: Journal, type_: str, message: str) -> None:
    first, second = decided(journal, 2)
    code, text = of(keep(journal, edge(first, type_, second)))
    assert code == "bad_request"
    assert (text or "").startswith(message)


@pytest.mark.parametrize("type_", ["person", "policy_version", "source_data"])
def test_the_writer_refuses_nodes_as_the_wire_does(journal: Journal, type_: str) -> None:
    assert keep(journal, sent(records.Node(type=type_, title="t"))).error == "bad_request"  # type: ignore[arg-type]


def test_a_loop_is_refused(journal: Journal) -> None:
    (decision,) = decided(journal)
    loops = [edge(decision, "CITES", decision), state(decision, "superseded", decision)]
    assert [keep(journal, loop).error for loop in loops] == ["bad_request", "bad_request"]


def test_a_cycle_of_supersedes_is_refused_whatever_its_length(journal: Journal) -> None:
    goals = [node(journal, "goal") for _ in range(4)]
    for newer, older in itertools.pairwise(goals):
        assert keep(journal, edge(newer, "supersedes", older)).error is None
    for newer in goals[1:]:
        assert of(keep(journal, edge(newer, "supersedes", goals[0]))) == (
            "conflict", "type: this edge would close a cycle of supersedes",
        )  # fmt: skip
    assert keep(journal, edge(goals[0], "supersedes", goals[3])).error is None  # a shortcut is no cycle


def test_a_node_and_the_link_to_what_it_supersedes_are_recorded_together(
    path: Path, journal: Journal
) -> None:
    older = node(journal, "goal")
    newer = node(journal, "goal", supersedes=older, rationale="clearer")
    links = rows(path, "SELECT source, target, rationale FROM edges WHERE type = 'supersedes'")
    assert links == [(newer, older, "clearer")]
    assert verify(path).ok


@pytest.mark.parametrize(("type_", "target"), [("option", "the goal"), ("goal", "nobody")])
def test_a_node_is_refused_with_the_link_that_is_refused(
    path: Path, journal: Journal, type_: str, target: str
) -> None:
    target = node(journal, "goal") if target == "the goal" else target
    lone, refused = (
        sent(records.Node(type="goal", title="t")),
        sent(records.Node(type=type_, title="t", supersedes=target)),  # type: ignore[arg-type]
    )
    fates = journal.commit_all(
        [refused, lone, edge(refused.subject_id, "leads_to", lone.subject_id)]
    ).result()
    assert [fate.error for fate in fates][1:] == [None, "not_found"]
    assert fates[0].error == ("bad_request" if type_ == "option" else "not_found")
    kept = [id for (id,) in rows(path, "SELECT id FROM nodes")]
    assert lone.subject_id in kept
    assert refused.subject_id not in kept


def test_an_import_keeps_ids_leaves_what_is_known_and_names_what_breaks_a_rule(
    path: Path, journal: Journal
) -> None:
    known = node(journal, "goal")
    kept = [("a", "goal"), ("b", "option"), (known, "action")]
    links = [("e1", "a", "chosen", "b"), ("e2", "b", "chosen", "a"), ("e3", "a", "leads_to", "nobody")]
    graph_import = records.GraphImport(
        nodes=tuple(
            records.ImportedNode(id=id, node=records.Node(type=type_, title="t"))  # type: ignore[arg-type]
            for id, type_ in kept
        ),
        edges=tuple(
            records.ImportedEdge(id=id, edge=records.Edge(source=source, target=target, type=type_))  # type: ignore[arg-type]
            for id, source, type_, target in links
        ),
    )
    task = records.Maintenance(task="import_graph", graph=graph_import)
    done = run_maintenance(journal, task, by_uid=7)
    assert (done["recorded"], done["known"]) == (3, 1)
    assert [row["id"] for row in done["refused"]] == ["e2", "e3"]
    again = run_maintenance(journal, task, by_uid=7)
    assert (again["recorded"], again["known"]) == (0, 4)
    shown = rows(path, "SELECT id, type, caller_uid FROM nodes WHERE title = 't' ORDER BY id")
    assert shown == [("a", "goal", 7), ("b", "option", 7)]
    assert verify(path).ok


def test_supersedes_cannot_lead_to_a_recorded_decision(journal: Journal) -> None:
    (decision,) = decided(journal)
    planned = node(journal, "decision")
    fate = keep(journal, edge(planned, "supersedes", decision))
    assert (fate.error, "trace_state" in (fate.message or "")) == ("bad_request", True)
    assert keep(journal, edge(decision, "supersedes", planned)).error is None


@pytest.mark.parametrize("last", ["superseded", "overturned"])
def test_a_cycle_of_successors_is_refused(journal: Journal, last: str) -> None:
    first, second, third = decided(journal, 3)
    assert keep(journal, state(first, "superseded", second)).error is None
    assert keep(journal, state(second, "overturned", third)).error is None
    for decision in (first, second):
        fate = keep(journal, state(third, last, decision))
        assert (fate.error, fate.message) == (
            "conflict", f"type: this edge would close a cycle of {graph.EDGE_OF_STATE[last]}",
        )  # fmt: skip


def test_a_decision_is_superseded_by_a_recorded_decision_only(journal: Journal) -> None:
    (decision,) = decided(journal)
    for other in ("x", node(journal, "decision"), node(journal, "goal")):
        fate = keep(journal, state(decision, "superseded", other))
        assert of(fate) == ("not_found", f"by: there is no decision {other!r}")
    assert keep(journal, state("x", "under_review")).error == "not_found"


def test_only_a_state_that_another_decision_makes_names_that_decision(journal: Journal) -> None:
    decision, other = decided(journal, 2)
    for status, by in (("superseded", None), ("overturned", None), ("under_review", other)):
        fate = keep(journal, state(decision, status, by))
        assert of(fate) == ("bad_request", f"by: does not fit the status {status}")


@pytest.mark.parametrize("before", graph.NEXT_STATES)
@pytest.mark.parametrize("status", graph.NEXT_STATES)
def test_a_state_follows_another_only_if_the_table_says_so(
    journal: Journal, before: str, status: str
) -> None:
    decision, second, third = decided(journal, 3)
    if before != "active":
        by = second if before in graph.EDGE_OF_STATE else None
        assert keep(journal, state(decision, before, by)).error is None
    fate = keep(journal, state(decision, status, third if status in graph.EDGE_OF_STATE else None))
    assert fate.error == (None if status in graph.NEXT_STATES[before] else "conflict")
    if fate.error is not None:
        assert f"status: the decision is {before}; " in (fate.message or "")


def test_an_edge_behind_which_too_much_lies_is_refused(journal: Journal) -> None:
    """A fan of superseded goals. An edge is searched for a cycle if something supersedes its source."""
    old, middle, new = (node(journal, "goal") for _ in range(3))
    below = [
        sent(records.Node(type="goal", title=str(number))) for number in range(graph.MAX_WALK["supersedes"])
    ]
    journal.commit_all(below).result()
    journal.commit_all([edge(old, "supersedes", goal.subject_id) for goal in below[:-1]]).result()
    assert keep(journal, edge(new, "supersedes", middle)).error is None
    other = node(journal, "goal")
    assert keep(journal, edge(new, "supersedes", other)).error is None
    assert keep(journal, edge(middle, "supersedes", old)).error is None
    assert keep(journal, edge(old, "supersedes", below[-1].subject_id)).error is None
    assert of(keep(journal, edge(other, "supersedes", old))) == (
        "too_large", "type: more than 100 nodes lie behind this edge by supersedes",
    )  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_a_chain_of_a_thousand_states_is_recorded_in_either_order(journal: Journal, order: int) -> None:
    made = [by_rule() for _ in range(1_000)]
    journal.commit_all([events.decision_event(decision) for decision in made]).result()
    changes = [state(older.id, "superseded", newer.id) for older, newer in itertools.pairwise(made)]
    fates = journal.commit_all(changes[::order]).result()
    assert {fate.error for fate in fates} == {None}
    assert keep(journal, state(made[-1].id, "superseded", made[0].id)).error == "conflict"


def test_the_rules_hold_within_one_transaction_too(journal: Journal) -> None:
    """Events of one batch are checked against those before them, which are not committed yet."""
    first, second, third = by_rule(), by_rule(), by_rule()
    goals = [sent(records.Node(type="goal", title=str(number))) for number in range(2)]
    ids = [goal.subject_id for goal in goals]
    gathered = sent(records.Consultation(system="crm", session="s"))
    turned_out = sent(records.Outcome(decision_id=first.id, status="SUCCESS"))
    batch = [
        *map(events.decision_event, (first, second, third)),
        *goals,
        gathered,
        turned_out,
        edge(first.id, "CONSULTED", gathered.subject_id),
        edge(second.id, "RESULTED_IN", turned_out.body["id"]),  # type: ignore[index]
        edge(*(ids[0], "supersedes", ids[1])),
        edge(*(ids[1], "supersedes", ids[0])),
        state(first.id, "superseded", second.id),
        state(second.id, "superseded", first.id),
        state(first.id, "superseded", third.id),
        edge(third.id, "leads_to", "nothing"),
    ]
    fates = journal.commit_all(batch).result()
    assert [fate.error for fate in fates] == [
        *[None] * 10, "conflict", None, "conflict", "conflict", "not_found",
    ]  # fmt: skip


# ---------------------------------------------------------------- states


def test_a_change_of_state_names_what_cites_the_decision(journal: Journal) -> None:
    first, second, *citing = decided(journal, 5)
    for decision in citing:
        for _ in range(2):  # counts once
            assert keep(journal, edge(decision, "CITES", first)).error is None
    for status, by in (("under_review", None), ("overturned", second)):
        assert keep(journal, state(first, status, by)).cited_by == {"count": 3, "ids": citing}
    assert keep(journal, state(second, "under_review")).cited_by == {"count": 0, "ids": []}


def test_state_and_edge_are_one_event_with_a_row_and_a_column(path: Path) -> None:
    first, second = by_model(), by_model()
    record(path, first, second, state(first.id, "superseded", second.id))
    assert rows(path, 'SELECT seq, decision_id, status, "by", because FROM trace_states') == [
        (3, first.id, "superseded", second.id, "so")
    ]
    assert rows(path, "SELECT trace_status, status_seq FROM decisions ORDER BY seq") == [
        ("superseded", 3),
        ("active", None),
    ]
    assert rows(path, "SELECT source, type, target FROM trace_edges WHERE type = 'SUPERSEDED_BY'") == [
        (first.id, "SUPERSEDED_BY", second.id)
    ]
    assert verify(path).ok


def test_a_changed_state_is_found_by_verification(path: Path) -> None:
    first, second = by_model(), by_model()
    record(path, first, second, state(first.id, "overturned", second.id))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE decisions SET trace_status = 'active' WHERE seq = 1")
    assert verify(path).problem == "event 3: the row of its decision does not match it"


def test_lists_filter_by_state_and_by_entity(path: Path) -> None:
    first, second, third = by_model(), by_rule(), by_rule()
    entity = sent(records.Node(type="entity", title="customer:acme"))
    record(
        *(path, first, second, third, entity),
        edge(first.id, "APPLIES_TO", entity.subject_id),
        edge(third.id, "APPLIES_TO", entity.subject_id),
        state(first.id, "superseded", second.id),
        state(second.id, "under_review"),
    )
    with Reader(path) as reader:

        def ids(**filters: Any) -> list[str]:
            return [row["decision_id"] for row in traces(reader, **filters)]

        assert ids() == ids(entity="env:production") == [third.id, second.id, first.id]
        assert ids(entity="customer:acme") == [third.id, first.id]
        assert ids(entity="customer:acme", limit=1) == [third.id]
        assert ids(entity="customer:acme", before=third.id) == [first.id]
        assert ids(entity="customer:acme", status="superseded") == [first.id]
        assert ids(entity="customer:acme", status="active") == [third.id]
        assert [ids(status=status) for status in graph.NEXT_STATES] == [
            [third.id], [second.id], [first.id], [],
        ]  # fmt: skip


# ---------------------------------------------------------------- the view, and journals of earlier versions


def everything(path: Path) -> None:
    first, second = by_model(), by_rule()
    goal = sent(records.Node(type="goal", title="ship"))
    record(
        *(path, first, second, goal),
        edge(goal.subject_id, "leads_to", first.id),
        edge(second.id, "CITES", first.id),
        sent(records.Outcome(decision_id=first.id, status="SUCCESS")),
        sent(records.Consultation(decision_id=first.id, system="crm")),
        sent(records.Approval(decision_id=first.id, approver="kim")),
        state(first.id, "under_review"),
        state(first.id, "superseded", second.id),
    )


def test_the_view_has_what_follows_from_columns_and_what_is_stated(path: Path) -> None:
    everything(path)
    edges = rows(path, "SELECT source, type, target FROM trace_edges")
    ids = [id for (id,) in rows(path, "SELECT decision_id FROM decisions ORDER BY seq")]
    (goal,), (outcome,), (value,) = (
        rows(path, f"SELECT id FROM {table}")[0] for table in ("nodes", "outcomes", "consultations")
    )
    of_each = [
        ("DECIDED_BY", graph.DAEMON),
        ("GOVERNED_BY", version_of(PACK)),
        ("APPLIES_TO", "env:production"),
    ]
    assert sorted(edges) == sorted(
        [
            *((id, *edge) for id in ids for edge in of_each),
            (ids[0], "RESULTED_IN", outcome),
            (ids[0], "CONSULTED", value),
            (ids[0], "APPROVED_BY", "kim"),
            (ids[0], "SUPERSEDED_BY", ids[1]),
            (ids[1], "CITES", ids[0]),
            (goal, "leads_to", ids[0]),
        ]
    )


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: rows(path, f"SELECT * FROM {table}")
        for table in ("decisions", "nodes", "edges", "trace_states", "trace_edges")
    }


def test_a_rebuild_gives_the_same_tables_and_the_same_view(path: Path) -> None:
    everything(path)
    before = dump(path)
    other = path.parent / "copy" / path.name
    rebuild(path, other)
    assert dump(other) == before
    with Journal(path) as journal:
        rebuild_in_place(journal)
    assert dump(path) == before
    assert verify(path).ok


def test_a_journal_of_the_version_before_gets_the_graph_and_stays_valid(path: Path) -> None:
    """Its edges may have any type and any end; they stay, and rebuild gives the same."""
    decision = by_model()
    record(path, decision, sent(records.Node(type="goal", title="t"), record_id="n"))
    undo_migrations(path, "0013_graph")
    Journal(path).close()
    assert rows(path, "SELECT trace_status, status_seq FROM decisions") == [("active", None)]
    free = sent(records.Edge(source="n", target="nobody", type="leads_to"))
    free.body["type"] = "led_to"  # type: ignore[index]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thor_policy.journal.graph.CHECKED", frozenset())
        record(path, free)
    before = dump(path)
    assert verify(path).ok
    with Journal(path) as journal:
        rebuild_in_place(journal)
    assert dump(path) == before


@pytest.mark.parametrize("sql", [_OUTGOING, _INCOMING])
def test_edges_of_a_decision_are_read_from_indexes_alone(path: Path, sql: str) -> None:
    everything(path)
    with closing(sqlite3.connect(path)) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", {"id": "x", "until": EVER})]
    assert {step for step in plan if step.startswith("SCAN")} <= {"SCAN trace_edges"}  # the view itself


def test_the_fates_of_a_batch_name_what_cites_only_for_states(path: Path) -> None:
    fates = Fates()
    with Journal(path, on_committed=fates) as journal:
        journal.append(events.decision_event(by_model()))
        journal.append(sent(records.Node(type="goal", title="t"), at=NOON))
        assert [fate.cited_by for fate in fates.wait(2)] == [None, None]
