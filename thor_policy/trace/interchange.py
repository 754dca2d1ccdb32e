"""A graph in the formats that other programs load: GraphML, CSV and Cypher for Neo4j, JSON-LD, JSON.

Owns the escaping of each format. Invariant: a text from the journal is one text in the result, whatever
characters it has: it ends no string, opens no element and begins no line. Pure.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import msgspec

from thor_policy.core.escape import cell, in_json, visible
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Record
from thor_policy.trace.drawing import CUT
from thor_policy.trace.work_graph import GraphView

#: What an item and an edge show in each format, with the type of GraphML.
OF_ITEM = {
    "type": "string",
    "title": "string",
    "status": "string",
    "confidence": "int",
    "session": "string",
    "agent": "string",
    "at": "string",
}
OF_EDGE = {"type": "string", "weight": "double", "rationale": "string", "at": "string"}
#: The label of every node of Neo4j, which carries the constraint; the type is a second label.
_LABEL = "ThorPolicy"
#: Nodes or links of one UNWIND: a statement of some 100 kB.
_BATCH = 500
#: Begins the IRIs of JSON-LD and PROV: of terms, of items, of links.
TERMS, ITEMS, LINKS = "urn:thor-policy:term:", "urn:thor-policy:item:", "urn:thor-policy:link:"
#: The first member of the JSON that `import` reads.
FORMAT = "thor-policy graph 1"


def graphml(graph: GraphView) -> str:
    """GraphML: a directed graph with the columns of items and edges as data."""
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    for domain, columns in (("node", OF_ITEM), ("edge", OF_EDGE)):
        for name, type in columns.items():
            attributes = {"id": f"{domain}.{name}", "for": domain, "attr.name": name, "attr.type": type}
            ElementTree.SubElement(root, "key", attributes)
    drawn = ElementTree.SubElement(root, "graph", id=graph.of, edgedefault="directed")
    for item in graph.items:
        node = ElementTree.SubElement(drawn, "node", id=visible(item["id"]))
        _data(node, "node", item, OF_ITEM)
    for edge in graph.edges:
        ends = {end: visible(edge[end]) for end in ("source", "target")}
        _data(ElementTree.SubElement(drawn, "edge", ends), "edge", edge, OF_EDGE)
    if graph.cut:
        root.append(ElementTree.Comment(CUT))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def csv_nodes(graph: GraphView) -> str:
    """The items as CSV in the form that `neo4j-admin database import` reads as nodes."""
    header = [":ID", ":LABEL", "title", "status", "confidence:int", "session", "agent", "at"]
    columns = ("id", *OF_ITEM)
    return _csv(header, [[item[name] for name in columns] for item in graph.items])


def csv_edges(graph: GraphView) -> str:
    """The edges as CSV in the form that `neo4j-admin database import` reads as relationships."""
    columns = ("source", "target", *OF_EDGE)
    header = [":START_ID", ":END_ID", ":TYPE", "weight:double", "rationale", "at"]
    return _csv(header, [[edge[name] for name in columns] for edge in graph.edges])


def cypher(graph: GraphView) -> str:
    """Statements of Cypher for Neo4j 5: the constraint first, then the items and the edges in batches.

    MERGE by id, so a second run changes nothing.
    """
    out = [
        f"CREATE CONSTRAINT thor_policy_id IF NOT EXISTS FOR (n:{_LABEL}) REQUIRE n.id IS UNIQUE;",
        *([f"// {CUT}"] if graph.cut else []),
    ]
    for type_, items in _by_type(graph.items):
        for batch in _batches(items):
            rows = [_literal({"id": item["id"], "properties": _shown(item, OF_ITEM)}) for item in batch]
            out.append(
                f"{_unwind(rows)}\nMERGE (n:{_LABEL} {{id: row.id}})\n"
                f"SET n:{_name(type_)}, n += row.properties;"
            )
    for type_, edges in _by_type(graph.edges):
        for batch in _batches(edges):
            rows = [
                _literal(
                    {
                        "id": link_id(edge),
                        "source": edge["source"],
                        "target": edge["target"],
                        "properties": _shown(edge, OF_EDGE),
                    }
                )
                for edge in batch
            ]
            out.append(
                f"{_unwind(rows)}\nMATCH (a:{_LABEL} {{id: row.source}})\n"
                f"MATCH (b:{_LABEL} {{id: row.target}})\n"
                f"MERGE (a)-[r:{_name(type_)} {{id: row.id}}]->(b) SET r += row.properties;"
            )
    return "\n".join([*out, ""])


def jsonld(graph: GraphView) -> str:
    """JSON-LD 1.1 with its context: each item, an edge as a property, and each link with what it says."""
    context: dict[str, Json] = {
        "@version": 1.1,
        "@vocab": TERMS,
        "id": "@id",
        "type": "@type",
        "at": {"@type": "http://www.w3.org/2001/XMLSchema#dateTime"},
        "source": {"@type": "@id"},
        "target": {"@type": "@id"},
        **{type_: {"@type": "@id"} for type_ in sorted({edge["type"] for edge in graph.edges})},
    }
    targets: dict[str, dict[str, list[str]]] = {}
    for edge in graph.edges:
        of_type = targets.setdefault(edge["source"], {}).setdefault(edge["type"], [])
        if (target := iri(ITEMS, edge["target"])) not in of_type:
            of_type.append(target)
    items = [
        {"id": iri(ITEMS, item["id"]), **_shown(item, OF_ITEM), **targets.get(item["id"], {})}
        for item in graph.items
    ]
    links = [
        {
            "id": iri(LINKS, link_id(edge)),
            **_shown(edge, OF_EDGE),
            "type": "Link",
            "link": edge["type"],
            "source": iri(ITEMS, edge["source"]),
            "target": iri(ITEMS, edge["target"]),
        }
        for edge in graph.edges
    ]
    cut: dict[str, Json] = {"cut": True} if graph.cut else {}
    whole = {
        "@context": context,
        "id": f"urn:thor-policy:graph:{graph.of}",
        **cut,
        "@graph": [*items, *links],
    }
    return in_json(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()) + "\n"


def json(graph: GraphView) -> str:
    """Items and edges with all columns, in the form that `import` reads."""
    whole = {"format": FORMAT, **msgspec.to_builtins(graph)}
    return in_json(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()) + "\n"


def link_id(edge: Record) -> str:
    """The id of the record behind an edge; of one that follows from columns, its ends and its type."""
    return edge["id"] or f"{edge['source']} {edge['type']} {edge['target']}"


def iri(begin: str, id: str) -> str:
    """An IRI of an id: every character but letters, digits and `-._~` is an escape."""
    return begin + quote(id, safe="", errors="surrogatepass")


def _data(parent: ElementTree.Element, domain: str, values: Record, columns: dict[str, str]) -> None:
    for name in columns:
        if values[name] is not None:
            data = ElementTree.SubElement(parent, "data", key=f"{domain}.{name}")
            data.text = visible(str(values[name]))


def _csv(header: list[str], lines: list[list[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(header)
    for line in lines:
        writer.writerow([cell(visible(value)) if isinstance(value, str) else value for value in line])
    return out.getvalue()


def _shown(values: Record, columns: Iterable[str]) -> dict[str, Json]:
    """What a format shows of an item or an edge; texts are as `visible`."""
    return {
        name: visible(values[name]) if isinstance(values[name], str) else values[name]
        for name in columns
        if values[name] is not None
    }


def _by_type(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    ordered = sorted(records, key=lambda record: str(record["type"]))
    for type_, some in groupby(ordered, key=lambda record: str(record["type"])):
        yield type_, list(some)


def _batches(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    for start in range(0, len(records), _BATCH):
        yield records[start : start + _BATCH]


def _unwind(rows: Sequence[str]) -> str:
    listed = ",\n  ".join(rows)
    return f"UNWIND [\n  {listed}\n] AS row"


def _name(type_: str) -> str:
    """A label or a type of relationship of Cypher."""
    return f"`{re.sub('[^A-Za-z0-9_]', '_', type_)}`"


def _literal(value: Json) -> str:
    """A literal of Cypher. A backslash is doubled and a quote escaped, so no text ends its string."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_literal(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str):
        escaped = visible(value).replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return repr(value)
