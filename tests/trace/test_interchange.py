"""GraphML, CSV, Cypher, JSON-LD and JSON, read back by parsers of others, with hostile titles."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from pyld import jsonld

from tests.work import HOSTILE, chain, graph_of_traces, hostile_graph, recorded_history
from thor_policy.core.escape import visible
from thor_policy.journal.reader import Reader
from thor_policy.trace import interchange
from thor_policy.trace.formats import FORMATS
from thor_policy.trace.interchange import ITEMS, TERMS
from thor_policy.trace.work_graph import GraphView, whole


@pytest.fixture
def graph(tmp_path: Path) -> GraphView:
    return hostile_graph(tmp_path / "j.db")


@pytest.fixture
def traces(tmp_path: Path) -> GraphView:
    return graph_of_traces(tmp_path / "traces.db")


def test_networkx_reads_the_same_graph_from_graphml(graph: GraphView) -> None:
    parsed = nx.parse_graphml(interchange.graphml(graph))
    titles = {name: data["title"] for name, data in parsed.nodes(data=True)}
    assert titles == {name: visible(title) for name, title in HOSTILE.items()}
    assert list(parsed.edges) == chain()
    assert {data["weight"] for _, _, data in parsed.edges(data=True)} == {0.5}


def test_csv_has_one_line_for_each_node_and_no_formula(graph: GraphView) -> None:
    nodes = list(csv.DictReader(io.StringIO(interchange.csv_nodes(graph), newline="")))
    edges = list(csv.DictReader(io.StringIO(interchange.csv_edges(graph), newline="")))
    assert [row[":ID"] for row in nodes] == list(HOSTILE)
    assert [(row[":START_ID"], row[":END_ID"]) for row in edges] == chain()
    assert {row[":LABEL"] for row in nodes} == {"goal"}
    assert nodes[list(HOSTILE).index("formula")]["title"].startswith("'=")


#: What `neo4j-admin database import` reads in a header: a name, a type, an id or a label.
TYPES_OF_NEO4J = {"", "int", "long", "float", "double", "boolean", "string"}


@pytest.mark.parametrize(
    ("write", "needed"),
    [
        (interchange.csv_nodes, {":ID", ":LABEL"}),
        (interchange.csv_edges, {":START_ID", ":END_ID", ":TYPE"}),
    ],
)
def test_csv_has_the_header_and_the_values_that_neo4j_imports(
    graph: GraphView, traces: GraphView, write: Any, needed: set[str]
) -> None:
    for drawn in (graph, traces):
        header, *lines = csv.reader(io.StringIO(write(drawn), newline=""))
        assert needed <= set(header)
        plain = [name for name in header if name not in needed]
        types = dict(name.partition(":")[::2] for name in plain)
        assert set(types.values()) <= TYPES_OF_NEO4J
        assert len(types) == len(plain)  # a name is there one time
        assert lines
        for line in lines:
            assert len(line) == len(header)
            row = dict(zip(header, line, strict=True))
            assert all(row[name] for name in needed)
            assert not any("\n" in value or "\r" in value for value in line)  # one record is one line
            for name, type in types.items():
                if type in ("int", "double") and row[f"{name}:{type}"]:
                    float(row[f"{name}:{type}"])
    ids = [row[":ID"] for row in csv.DictReader(io.StringIO(interchange.csv_nodes(traces), newline=""))]
    assert len(ids) == len(set(ids))
    for row in csv.DictReader(io.StringIO(interchange.csv_edges(traces), newline="")):
        assert {row[":START_ID"], row[":END_ID"]} <= set(ids)


def test_a_processor_of_json_ld_reads_the_same_graph(graph: GraphView, traces: GraphView) -> None:
    (node,) = jsonld.expand(json.loads(interchange.jsonld(graph)))
    by_id = {item["@id"]: item for item in node["@graph"]}
    for name, title in HOSTILE.items():
        item = by_id[interchange.iri(ITEMS, name)]
        assert item["@type"] == [f"{TERMS}goal"]
        assert item[f"{TERMS}title"] == [{"@value": visible(title)}]
    leading = [
        (item["@id"], target["@id"]) for item in by_id.values() for target in item.get(f"{TERMS}leads_to", [])
    ]
    assert leading == [tuple(interchange.iri(ITEMS, end) for end in ends) for ends in chain()]
    triples = jsonld.to_rdf(json.loads(interchange.jsonld(traces)))["urn:thor-policy:graph:traces"]
    cites = [triple for triple in triples if triple["predicate"]["value"] == f"{TERMS}CITES"]
    assert [(triple["subject"]["value"], triple["object"]["value"]) for triple in cites] == [
        (f"{ITEMS}decided-1", f"{ITEMS}decided-0")
    ]


def test_json_has_every_column_and_its_form(graph: GraphView) -> None:
    read = json.loads(interchange.json(graph))
    assert (read["format"], read["of"], read["cut"]) == ("thor-policy graph 1", "work", False)
    assert [item["title"] for item in read["items"]] == list(HOSTILE.values())
    assert [(edge["source"], edge["target"], edge["stated"]) for edge in read["edges"]] == [
        (*ends, 1) for ends in chain()
    ]


def test_cypher_makes_the_constraint_first_and_then_batches(
    graph: GraphView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interchange, "_BATCH", 5)
    statements = interchange.cypher(graph).split(";\n")
    assert statements[0].startswith("CREATE CONSTRAINT thor_policy_id IF NOT EXISTS")
    kinds = ["SET n:`goal`" if "SET n:" in text else "MATCH" for text in statements[1:-1]]
    nodes, links = -(-len(HOSTILE) // 5), -(-(len(HOSTILE) - 1) // 5)
    assert kinds == ["SET n:`goal`"] * nodes + ["MATCH"] * links
    assert statements[-1] == ""


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("it's", r"'it\'s'"),
        ("a\\", r"'a\\'"),
        ("\\'", r"'\\\''"),
        ("\n", r"'\\n'"),
        (r"\u0027", r"'\\u0027'"),
    ],
)
def test_no_text_ends_a_string_of_cypher(text: str, literal: str) -> None:
    assert interchange._literal(text) == literal


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_has_a_character_that_acts_on_a_terminal(
    graph: GraphView, traces: GraphView, name: str
) -> None:
    for drawn in (graph, traces):
        text = FORMATS[name](drawn)
        if name == "html":  # the scripts of others have spaces of every kind
            text = text[text.index('id="graph">') : text.index("</script>")]
        acting = {char for char in text if char not in "\n\r\t" and unicodedata.category(char)[0] in "CZ"}
        assert acting - {" "} == set()


def test_a_graph_that_is_cut_says_so(tmp_path: Path) -> None:
    with Reader(recorded_history(tmp_path / "cut.db")) as reader:
        cut = whole(reader, most=3)
    for name in ("graphml", "cypher"):
        assert "cut: there are more nodes" in FORMATS[name](cut)
    for name in ("json", "jsonld"):
        assert json.loads(FORMATS[name](cut))["cut"] is True
    assert len(nx.parse_graphml(interchange.graphml(cut))) == 3
