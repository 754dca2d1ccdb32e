"""Mermaid and Cypher, read back by the parsers of others, which come from npm (`tests/data/npm`).

`scripts/test` installs them in build/npm where there is npm. Without them these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.work import graph_of_traces, hostile_graph
from thor_policy.trace import drawing, interchange

PACKAGES = Path(__file__).parents[2] / "build" / "npm"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not (PACKAGES / "node_modules" / "mermaid").is_dir(),
    reason="no parsers in build/npm: ./scripts/test installs them where npm is on the path",
)
MERMAID = """
import { JSDOM } from 'jsdom';
globalThis.window = new JSDOM('').window; globalThis.document = window.document;
const mermaid = (await import('mermaid')).default;
const texts = JSON.parse(await new Response(process.stdin).text());
const shown = [];
for (const text of texts) {
  try {
    await mermaid.parse(text);
    const { db } = await mermaid.mermaidAPI.getDiagramFromText(text);
    const vertices = [...db.getVertices().values()].map((vertex) => vertex.text);
    shown.push({ vertices, edges: db.getEdges().map((edge) => [edge.start, edge.text, edge.end]) });
  } catch (error) { shown.push({ error: error.message }); }
}
console.log(JSON.stringify(shown));
"""
CYPHER = """
import { lintCypherQuery } from '@neo4j-cypher/language-support';
const texts = JSON.parse(await new Response(process.stdin).text());
console.log(JSON.stringify(texts.map((text) => lintCypherQuery(text, {}).diagnostics
  .map((found) => found.message))));
"""


def run(script: str, texts: list[str]) -> list[object]:
    """What a script prints as JSON about these texts."""
    assert NODE is not None
    command = [NODE, "--input-type=module", "--eval", script]
    done = subprocess.run(
        command, cwd=PACKAGES, input=json.dumps(texts).encode(), capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    read: list[object] = json.loads(done.stdout.splitlines()[-1])
    return read


def test_the_parser_of_mermaid_reads_each_node_and_edge(tmp_path: Path) -> None:
    graphs = [hostile_graph(tmp_path / "j.db"), graph_of_traces(tmp_path / "traces.db")]
    *shown, broken = run(MERMAID, [*map(drawing.mermaid, graphs), 'flowchart TD\n a["x'])
    for graph, read in zip(graphs, shown, strict=True):
        assert isinstance(read, dict)
        assert "error" not in read, read
        assert len(read["vertices"]) == len(graph.items)
        assert [text for _, text, _ in read["edges"]] == [edge["type"] for edge in graph.edges]
    assert isinstance(broken, dict)
    assert "error" in broken


def test_the_parser_of_neo4j_finds_no_fault_in_cypher(tmp_path: Path) -> None:
    text = interchange.cypher(hostile_graph(tmp_path / "j.db"))
    good, unescaped = run(CYPHER, [text, text.replace("\\'", "'")])
    assert good == []
    assert unescaped
