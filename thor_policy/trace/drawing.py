"""The graph of work in the formats of other programs: Mermaid, Graphviz, GraphML, CSV.

Owns the escaping of each format. Invariant: a text from the journal is one text in the result, whatever
characters it has: it ends no string, opens no element and begins no line. Pure.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from thor_policy.core.escape import cell, visible
from thor_policy.journal.reader import Record
from thor_policy.trace.work_graph import WorkGraph

#: What an item and an edge show in GraphML and CSV, with the type of GraphML.
_OF_ITEM = {
    "type": "string",
    "title": "string",
    "status": "string",
    "confidence": "int",
    "session": "string",
    "agent": "string",
    "at": "string",
}
_OF_EDGE = {"type": "string", "weight": "double", "rationale": "string", "at": "string"}
_SHAPES = {
    "goal": ("stadium", "([", "])"),
    "decision": ("diamond", "{", "}"),
    "option": ("parallelogram", "[/", "/]"),
    "outcome": ("ellipse", "((", "))"),
}
_BOX = ("box", "[", "]")
#: Longest title in a drawing, in characters.
MOST_CHARS = 80


def mermaid(graph: WorkGraph) -> str:
    """A flow chart of Mermaid; every character of a title but letters, digits and blanks is an entity."""
    names = {item["id"]: f"n{number}" for number, item in enumerate(graph.items)}
    lines = ["flowchart TD"]
    for item in graph.items:
        _, opening, closing = _SHAPES.get(item["type"], _BOX)
        text = re.sub(r"[^A-Za-z0-9 ]", lambda char: f"#{ord(char[0])};", _label(item))
        lines.append(f'    {names[item["id"]]}{opening}"{text}"{closing}')
    lines += [
        f"    {names[edge['source']]} -->|{edge['type']}| {names[edge['target']]}" for edge in graph.edges
    ]
    return "\n".join([*lines, *_cut(graph, "    %% {}"), ""])


def dot(graph: WorkGraph) -> str:
    """A graph of Graphviz; the names of its nodes are the ids."""
    lines = ["digraph work {"]
    for item in graph.items:
        shape = _SHAPES.get(item["type"], _BOX)[0].replace("stadium", "oval")
        style = "" if item["status"] in ("active", "pending") else ", style=dashed"
        lines.append(f"  {_quoted(item['id'])} [label={_quoted(_label(item))}, shape={shape}{style}];")
    lines += [
        f"  {_quoted(edge['source'])} -> {_quoted(edge['target'])} [label={_quoted(edge['type'])}];"
        for edge in graph.edges
    ]
    return "\n".join([*lines, *_cut(graph, "  // {}"), "}", ""])


def graphml(graph: WorkGraph) -> str:
    """GraphML: a directed graph with the columns of items and edges as data."""
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    for domain, columns in (("node", _OF_ITEM), ("edge", _OF_EDGE)):
        for name, type in columns.items():
            attributes = {"id": f"{domain}.{name}", "for": domain, "attr.name": name, "attr.type": type}
            ElementTree.SubElement(root, "key", attributes)
    drawn = ElementTree.SubElement(root, "graph", id="work", edgedefault="directed")
    for item in graph.items:
        node = ElementTree.SubElement(drawn, "node", id=visible(item["id"]))
        _data(node, "node", item, _OF_ITEM)
    for edge in graph.edges:
        ends = {end: visible(edge[end]) for end in ("source", "target")}
        _data(ElementTree.SubElement(drawn, "edge", ends), "edge", edge, _OF_EDGE)
    if graph.cut:
        root.append(ElementTree.Comment(_CUT))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def csv_nodes(graph: WorkGraph) -> str:
    """The items as CSV in the form that `neo4j-admin database import` reads as nodes."""
    header = [":ID", ":LABEL", "title", "status", "confidence:int", "session", "agent", "at"]
    columns = ("id", *_OF_ITEM)
    return _csv(header, [[item[name] for name in columns] for item in graph.items])


def csv_edges(graph: WorkGraph) -> str:
    """The edges as CSV in the form that `neo4j-admin database import` reads as relationships."""
    columns = ("source", "target", *_OF_EDGE)
    header = [":START_ID", ":END_ID", ":TYPE", "weight:double", "rationale", "at"]
    return _csv(header, [[edge[name] for name in columns] for edge in graph.edges])


#: Each format by its name on the command line, beside json.
FORMATS: dict[str, Callable[[WorkGraph], str]] = {
    "mermaid": mermaid,
    "dot": dot,
    "graphml": graphml,
    "csv": csv_nodes,
    "csv-edges": csv_edges,
}
_CUT = "cut: there are more nodes"


def _label(item: Record) -> str:
    title = visible(item["title"] if item["title"] is not None else "(erased)")
    title = title if len(title) <= MOST_CHARS else f"{title[: MOST_CHARS - 1]}…"
    status = "" if item["status"] == "active" else f" ({item['status']})"
    return f"{item['type']}: {title}{status}"


def _quoted(text: str) -> str:
    """A string of the language DOT. Graphviz reads entities and escapes in a label, so none is left."""
    escaped = visible(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _cut(graph: WorkGraph, comment: str) -> list[str]:
    return [comment.format(_CUT)] if graph.cut else []


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
