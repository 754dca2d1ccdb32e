"""A graph as a drawing: Mermaid and Graphviz.

Owns the escaping of each format. Invariant: a text from the journal is one text in the result, whatever
characters it has: it ends no string, opens no element and begins no line. Pure.
"""

from __future__ import annotations

import re

from thor_policy.core.escape import visible
from thor_policy.journal.reader import Record
from thor_policy.trace.work_graph import GraphView

_SHAPES = {
    "goal": ("stadium", "([", "])"),
    "decision": ("diamond", "{", "}"),
    "option": ("parallelogram", "[/", "/]"),
    "outcome": ("ellipse", "((", "))"),
    "actor": ("hexagon", "{{", "}}"),
}
_BOX = ("box", "[", "]")
#: What a graph says that has not all.
CUT = "cut: there are more nodes"
#: Longest title in a drawing, in characters.
MOST_CHARS = 80


def mermaid(graph: GraphView) -> str:
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


def dot(graph: GraphView) -> str:
    """A graph of Graphviz; the names of its nodes are the ids."""
    lines = [f"digraph {graph.of} {{"]
    for item in graph.items:
        shape = _SHAPES.get(item["type"], _BOX)[0].replace("stadium", "oval")
        style = "" if item["status"] in ("active", "pending") else ", style=dashed"
        lines.append(f"  {_quoted(item['id'])} [label={_quoted(_label(item))}, shape={shape}{style}];")
    lines += [
        f"  {_quoted(edge['source'])} -> {_quoted(edge['target'])} [label={_quoted(edge['type'])}];"
        for edge in graph.edges
    ]
    return "\n".join([*lines, *_cut(graph, "  // {}"), "}", ""])


def _label(item: Record) -> str:
    title = visible(item["title"] if item["title"] is not None else "(erased)")
    title = title if len(title) <= MOST_CHARS else f"{title[: MOST_CHARS - 1]}…"
    status = "" if item["status"] == "active" else f" ({item['status']})"
    return f"{item['type']}: {title}{status}"


def _quoted(text: str) -> str:
    """A string of the language DOT. Graphviz reads entities and escapes in a label, so none is left."""
    escaped = visible(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _cut(graph: GraphView, comment: str) -> list[str]:
    return [comment.format(CUT)] if graph.cut else []
