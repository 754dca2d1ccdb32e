"""The formats of an export of a graph, by their names on the command line.

Owns the list. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from thor_policy.trace import drawing, interchange, page, provenance
from thor_policy.trace.work_graph import GraphView

FORMATS: dict[str, Callable[[GraphView], str]] = {
    "mermaid": drawing.mermaid,
    "dot": drawing.dot,
    "graphml": interchange.graphml,
    "cypher": interchange.cypher,
    "csv": interchange.csv_nodes,
    "csv-edges": interchange.csv_edges,
    "prov-json": provenance.prov_json,
    "jsonld": interchange.jsonld,
    "html": page.html,
    "json": interchange.json,
}
