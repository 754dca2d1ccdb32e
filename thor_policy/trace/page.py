"""A graph as one page of HTML: pan, zoom, filter, click; it works without a network.

Owns the markup. Invariant: the page is self-contained, its security policy allows only the scripts in it, by
their digests, and forbids the network; the graph is in it as JSON whose text can end no element. Pure but for
the reading of the scripts (`assets`, with their licences).
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

import msgspec

from thor_policy.core.escape import in_json, visible
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Record
from thor_policy.trace.work_graph import GraphView

_SCRIPTS = ("cytoscape.min.js", "cytoscape-dagre.min.js", "graph.js")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Graph of {of}</title>
<style>
{style}</style>
</head>
<body>
<aside>
<h1>Graph of {of}</h1>
<p id="count" role="status"></p>
<p id="cut" hidden>There are more nodes than this page has.</p>
<input id="search" type="search" placeholder="Filter by title or id" aria-label="Filter by title or id">
<button id="arrange" type="button">Arrange</button><button id="fit" type="button">Fit</button>
<h2>Type</h2><div id="type"></div>
<h2>Status</h2><div id="status"></div>
<h2>Properties</h2><div id="properties"><p>Click a node or a link.</p></div>
</aside>
<main id="drawing" aria-label="Drawing of the graph"></main>
<script type="application/json" id="graph">{graph}</script>
{scripts}
</body>
</html>
"""


def html(graph: GraphView) -> str:
    """The page of a graph."""
    scripts = [_asset(name) for name in _SCRIPTS]
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return _PAGE.format(
        of=graph.of,
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:",
        style=_asset("graph.css"),
        graph=_as_data(graph),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _as_data(graph: GraphView) -> str:
    """The graph as JSON inside an element: no text has a character that could end the element."""
    shown = {
        "of": graph.of,
        "items": [_shown(item) for item in graph.items],
        "edges": [_shown(edge) for edge in graph.edges],
        "cut": graph.cut,
    }
    text = in_json(msgspec.json.encode(shown).decode())
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _shown(record: Record) -> dict[str, Json]:
    """The columns of an item or an edge; no text has a character that hides or reorders others."""
    plain: dict[str, Json] = {}
    for name, value in record.items():
        text = msgspec.json.encode(value).decode() if isinstance(value, dict) else value
        plain[name] = visible(text, lines=name == "description") if isinstance(text, str) else text
    return plain


@cache
def _asset(name: str) -> str:
    return resources.files("thor_policy.trace").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
