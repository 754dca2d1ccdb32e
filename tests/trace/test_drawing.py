"""Exports of the graph of work, read back by the parsers of others, with titles that try to break out."""

from __future__ import annotations

import csv
import io
import itertools
import re
import unicodedata
from pathlib import Path

import networkx as nx
import pydot
import pytest

from tests.build import record
from tests.work import HOSTILE, link, node, recorded_history
from thor_policy.core.escape import visible
from thor_policy.journal.reader import Reader
from thor_policy.trace import drawing
from thor_policy.trace.work_graph import WorkGraph, whole

#: pydot calls pyparsing by names that its newest version deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated - use:DeprecationWarning")


@pytest.fixture
def graph(tmp_path: Path) -> WorkGraph:
    """A chain of nodes with these titles."""
    titled = [node(name, "goal", title=title, session=title, agent=title) for name, title in HOSTILE.items()]
    links = [
        link(first, "leads_to", second, rationale=HOSTILE[first], weight=0.5) for first, second in chain()
    ]
    record(tmp_path / "j.db", *titled, *links)
    with Reader(tmp_path / "j.db") as reader:
        return whole(reader)


@pytest.fixture
def history(tmp_path: Path) -> WorkGraph:
    with Reader(recorded_history(tmp_path / "history.db")) as reader:
        return whole(reader)


def chain() -> list[tuple[str, str]]:
    names = list(HOSTILE)
    return list(itertools.pairwise(names))


def test_a_parser_of_dot_reads_the_same_graph(graph: WorkGraph) -> None:
    (parsed,) = pydot.graph_from_dot_data(drawing.dot(graph)) or []
    labels = {node.get_name().strip('"'): node.get("label") for node in parsed.get_nodes()}
    assert labels.keys() == HOSTILE.keys()
    for name, title in HOSTILE.items():
        plain = labels[name][1:-1].replace('\\"', '"').replace("\\\\", "\\").replace("&amp;", "&")
        assert plain == f"goal: {visible(title)}"
    edges = [(edge.get_source().strip('"'), edge.get_destination().strip('"')) for edge in parsed.get_edges()]
    assert edges == chain()


def test_networkx_reads_the_same_graph_from_graphml(graph: WorkGraph) -> None:
    parsed = nx.parse_graphml(drawing.graphml(graph))
    titles = {name: data["title"] for name, data in parsed.nodes(data=True)}
    assert titles == {name: visible(title) for name, title in HOSTILE.items()}
    assert list(parsed.edges) == chain()
    assert {data["weight"] for _, _, data in parsed.edges(data=True)} == {0.5}


def test_csv_has_one_line_for_each_node_and_no_formula(graph: WorkGraph) -> None:
    nodes = list(csv.DictReader(io.StringIO(drawing.csv_nodes(graph), newline="")))
    edges = list(csv.DictReader(io.StringIO(drawing.csv_edges(graph), newline="")))
    assert [row[":ID"] for row in nodes] == list(HOSTILE)
    assert [(row[":START_ID"], row[":END_ID"]) for row in edges] == chain()
    assert {row[":LABEL"] for row in nodes} == {"goal"}
    assert nodes[list(HOSTILE).index("formula")]["title"].startswith("'=")


def test_each_line_of_mermaid_is_a_node_or_an_edge_of_its_own(graph: WorkGraph) -> None:
    first, *lines = drawing.mermaid(graph).splitlines()
    assert first == "flowchart TD"
    node = re.compile(r'    n\d+\(\["goal#58;(?: |[A-Za-z0-9]|#\d+;)*"\]\)')
    edge = re.compile(r"    n\d+ -->\|leads_to\| n\d+")
    assert len([line for line in lines if node.fullmatch(line)]) == len(HOSTILE)
    assert len([line for line in lines if edge.fullmatch(line)]) == len(HOSTILE) - 1
    assert len(lines) == 2 * len(HOSTILE) - 1


@pytest.mark.parametrize("name", drawing.FORMATS)
def test_no_format_has_a_character_that_acts_on_a_terminal(graph: WorkGraph, name: str) -> None:
    text = drawing.FORMATS[name](graph)
    acting = {char for char in text if char not in "\n\r\t" and unicodedata.category(char)[0] in "CZ"} - {" "}
    assert acting == set()


def test_what_is_superseded_or_abandoned_is_dashed(history: WorkGraph) -> None:
    (parsed,) = pydot.graph_from_dot_data(drawing.dot(history)) or []
    dashed = {node.get_name().strip('"') for node in parsed.get_nodes() if node.get("style") == "dashed"}
    assert dashed == {"old", "outline", "given-up", "sure"}


def test_a_graph_that_is_cut_says_so(tmp_path: Path) -> None:
    with Reader(recorded_history(tmp_path / "cut.db")) as reader:
        cut = whole(reader, most=3)
    for name in ("mermaid", "dot", "graphml"):
        assert "cut: there are more nodes" in drawing.FORMATS[name](cut)
    assert len((pydot.graph_from_dot_data(drawing.dot(cut)) or [])[0].get_nodes()) == 3
    assert len(nx.parse_graphml(drawing.graphml(cut))) == 3
