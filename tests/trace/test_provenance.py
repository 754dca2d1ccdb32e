"""PROV-JSON, read back by the library of others and checked against the relations of PROV."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from prov.model import ProvDocument

from tests.work import HOSTILE, graph_of_traces, hostile_graph
from thor_policy.core.errors import ConfigError
from thor_policy.core.escape import visible
from thor_policy.trace.provenance import prov_json
from thor_policy.trace.work_graph import GraphView


def parsed(graph: GraphView) -> ProvDocument:
    return ProvDocument.deserialize(source=io.StringIO(prov_json(graph)), format="json")


def test_titles_and_links_are_read_back(tmp_path: Path) -> None:
    document = parsed(hostile_graph(tmp_path / "j.db"))
    records = document.get_records()
    labels = [str(record.label) for record in records if record.is_element()]
    assert labels == [visible(title) for title in HOSTILE.values()]
    assert len([record for record in records if record.is_relation()]) == len(HOSTILE) - 1


def test_a_trace_has_the_relations_of_prov(tmp_path: Path) -> None:
    graph = graph_of_traces(tmp_path / "j.db")
    document = parsed(graph)
    shown = sorted(
        (
            record.get_type().localpart,
            *(str(value.localpart) for _, value in record.formal_attributes[:2]),
        )
        for record in document.get_records()
        if record.is_relation() and "decided-1" in str(record)
    )
    relations = {(kind, first, second) for kind, first, second in shown}
    assert ("Association", "decided-1", "actor%2FInes") in relations
    assert ("Influence", "decided-1", "decided-0") in relations  # CITES: the precedent is the cause
    assert ("Influence", "decided-2", "decided-1") in relations  # SUPERSEDED_BY
    assert ("Influence", "decided-1", "alert") in relations
    assert {kind for kind, *_ in shown} == {"Association", "Generation", "Influence", "Usage"}
    assert len([record for record in document.get_records() if record.is_relation()]) == len(graph.edges)


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = hostile_graph(tmp_path / "j.db")
    for name in [name for name in sys.modules if name == "prov" or name.startswith("prov.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prov", None)
    with pytest.raises(ConfigError, match=r"needs the extra \[graph\]: prov"):
        prov_json(graph)
