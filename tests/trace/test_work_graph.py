"""Which nodes and edges an export has: the whole graph, or what is near a node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.work import TRACE, recorded_history
from thor_policy.core.errors import JournalError
from thor_policy.journal.reader import Reader
from thor_policy.trace.work_graph import GraphView, around, whole


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Reader(recorded_history(tmp_path / "j.db")) as opened:
        yield opened


def ids(graph: GraphView) -> list[str]:
    return [item["id"] for item in graph.items]


def ends(graph: GraphView) -> set[tuple[str, str]]:
    return {(edge["source"], edge["target"]) for edge in graph.edges}


def test_the_whole_graph_has_the_nodes_of_work_and_the_linked_decisions(reader: Reader) -> None:
    graph = whole(reader)
    assert len(graph.items) == 17  # 16 nodes of the work, and the recorded decision
    assert {"ship", "given-up", TRACE} <= set(ids(graph))
    assert "env:production" not in ids(graph)
    assert ("docs", TRACE) in ends(graph)
    assert not graph.cut


def test_both_ends_of_each_edge_are_in_a_graph_that_is_cut(reader: Reader) -> None:
    for most in range(1, 18):
        graph = whole(reader, most=most)
        assert (len(graph.items), graph.cut) == (most, most < 17)
        assert {end for pair in ends(graph) for end in pair} <= set(ids(graph))


def test_what_is_near_a_node_is_reached_in_both_directions(reader: Reader) -> None:
    assert ids(around(reader, "use-fast", depth=0)) == ["use-fast"]
    assert ids(around(reader, "use-fast", depth=1)) == ["fast-path", "use-fast", "write"]
    assert ids(around(reader, "use-fast", depth=2)) == ["ship", "fast-path", "use-fast", "write", "worked"]
    assert "slow-path" in ids(around(reader, "use-fast", depth=3))
    few = around(reader, "use-fast", depth=3, most=2)
    assert (len(few.items), few.cut) == (2, True)
    with pytest.raises(JournalError, match="no node is recorded under the id 'nobody'"):
        around(reader, "nobody", depth=1)
