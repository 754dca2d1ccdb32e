"""Drawings, read back by the parsers of others, with titles that try to break out."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pydot
import pytest

from tests.work import HOSTILE, chain, graph_of_traces, hostile_graph, recorded_history
from thor_policy.core.escape import visible
from thor_policy.journal.reader import Reader
from thor_policy.trace import drawing
from thor_policy.trace.work_graph import GraphView, whole

GRAPHVIZ = shutil.which("dot")
SVG = "{http://www.w3.org/2000/svg}"

#: pydot calls pyparsing by names that its newest version deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated - use:DeprecationWarning")


@pytest.fixture
def graph(tmp_path: Path) -> GraphView:
    return hostile_graph(tmp_path / "j.db")


@pytest.fixture
def history(tmp_path: Path) -> GraphView:
    with Reader(recorded_history(tmp_path / "history.db")) as reader:
        return whole(reader)


def test_a_parser_of_dot_reads_the_same_graph(graph: GraphView) -> None:
    (parsed,) = pydot.graph_from_dot_data(drawing.dot(graph)) or []
    labels = {node.get_name().strip('"'): node.get("label") for node in parsed.get_nodes()}
    assert labels.keys() == HOSTILE.keys()
    for name, title in HOSTILE.items():
        plain = labels[name][1:-1].replace('\\"', '"').replace("\\\\", "\\").replace("&amp;", "&")
        assert plain == f"goal: {visible(title)}"
    edges = [(edge.get_source().strip('"'), edge.get_destination().strip('"')) for edge in parsed.get_edges()]
    assert edges == chain()


def test_each_line_of_mermaid_is_a_node_or_an_edge_of_its_own(graph: GraphView) -> None:
    first, *lines = drawing.mermaid(graph).splitlines()
    assert first == "flowchart TD"
    node = re.compile(r'    n\d+\(\["goal#58;(?: |[A-Za-z0-9]|#\d+;)*"\]\)')
    edge = re.compile(r"    n\d+ -->\|leads_to\| n\d+")
    assert len([line for line in lines if node.fullmatch(line)]) == len(HOSTILE)
    assert len([line for line in lines if edge.fullmatch(line)]) == len(HOSTILE) - 1
    assert len(lines) == 2 * len(HOSTILE) - 1


@pytest.mark.skipif(GRAPHVIZ is None, reason="no dot on the path; .ci/run installs graphviz")
def test_graphviz_draws_each_node_and_each_edge(graph: GraphView, tmp_path: Path) -> None:
    assert GRAPHVIZ is not None
    for drawn in (graph, graph_of_traces(tmp_path / "traces.db")):
        svg = subprocess.run(
            [GRAPHVIZ, "-Tsvg"],
            input=drawing.dot(drawn).encode(),
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert svg.stderr == b""
        tree = ElementTree.fromstring(svg.stdout)  # noqa: S314 (Graphviz wrote it)
        groups = [group.get("class") for group in tree.iter(f"{SVG}g")]
        assert (groups.count("node"), groups.count("edge")) == (len(drawn.items), len(drawn.edges))


def test_what_is_superseded_or_abandoned_is_dashed(history: GraphView) -> None:
    (parsed,) = pydot.graph_from_dot_data(drawing.dot(history)) or []
    dashed = {node.get_name().strip('"') for node in parsed.get_nodes() if node.get("style") == "dashed"}
    assert dashed == {"old", "outline", "given-up", "sure"}


def test_a_graph_that_is_cut_says_so(tmp_path: Path) -> None:
    with Reader(recorded_history(tmp_path / "cut.db")) as reader:
        cut = whole(reader, most=3)
    for draw in (drawing.mermaid, drawing.dot):
        assert "cut: there are more nodes" in draw(cut)
    assert len((pydot.graph_from_dot_data(drawing.dot(cut)) or [])[0].get_nodes()) == 3
