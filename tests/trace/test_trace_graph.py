"""The graph of traces: which items and edges an export has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import by_rule, record
from tests.work import graph_of_traces
from thor_policy.core.errors import JournalError
from thor_policy.journal import work_queries
from thor_policy.journal.reader import Reader
from thor_policy.trace.trace_graph import around, newest
from thor_policy.trace.work_graph import GraphView


def edges(graph: GraphView) -> set[tuple[str, str, str]]:
    return {(edge["source"], edge["type"], edge["target"]) for edge in graph.edges}


def test_a_decision_is_shown_with_all_that_it_rests_on(tmp_path: Path) -> None:
    graph = graph_of_traces(tmp_path / "j.db")
    of_one = {(type_, target) for source, type_, target in edges(graph) if source == "decided-1"}
    types = {item["id"]: item["type"] for item in graph.items}
    assert {(type_, types[target]) for type_, target in of_one} == {
        ("DECIDED_BY", "actor"),
        ("GOVERNED_BY", "policy_version"),
        ("APPLIES_TO", "entity"),
        ("APPROVED_BY", "actor"),
        ("CONSULTED", "source_data"),
        ("RESULTED_IN", "outcome"),
        ("CITES", "decision"),
        ("SUPERSEDED_BY", "decision"),
        ("TRIGGERED_BY", "event"),
    }
    assert all(set(item) == set(work_queries.ITEM) for item in graph.items)
    assert all(set(edge) == set(work_queries.LINK) for edge in graph.edges)
    assert [edge["similarity"] for edge in graph.edges if edge["type"] == "CITES"] == [0.9]
    statuses = {item["id"]: item["status"] for item in graph.items if item["type"] == "decision"}
    assert statuses == {"decided-0": "active", "decided-1": "superseded", "decided-2": "active"}


def test_an_actor_and_an_entity_of_one_name_are_two_items(tmp_path: Path) -> None:
    graph = graph_of_traces(tmp_path / "j.db")
    derived = {item["id"].partition("/")[0] for item in graph.items if "/" in item["id"]}
    assert derived == {"actor", "policy_version", "entity"}


def test_around_a_decision_is_what_is_near_in_either_direction(tmp_path: Path) -> None:
    graph_of_traces(tmp_path / "j.db")
    with Reader(tmp_path / "j.db") as reader:
        near = around(reader, "decided-0", depth=1)
        far = around(reader, "decided-0", depth=3)
        with pytest.raises(JournalError, match="nothing is recorded under the id 'nobody'"):
            around(reader, "nobody", depth=1)
    assert ("decided-1", "CITES", "decided-0") in edges(near)
    assert "decided-2" not in {item["id"] for item in near.items}
    assert "decided-2" in {item["id"] for item in far.items}


def test_a_bound_is_kept_and_stated(tmp_path: Path) -> None:
    record(tmp_path / "j.db", *(by_rule() for _ in range(5)))
    with Reader(tmp_path / "j.db") as reader:
        assert not newest(reader, decisions=5).cut
        few = newest(reader, decisions=2)
        assert (len([item for item in few.items if item["type"] == "decision"]), few.cut) == (2, True)
        bounded = newest(reader, decisions=5, most=3)
    assert (len(bounded.items), bounded.cut) == (3, True)
