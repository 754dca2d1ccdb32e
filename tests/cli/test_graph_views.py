"""The views of `graph`: timeline, pulse, context, export."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import pytest
from click.testing import CliRunner, Result

from tests.work import TRACE, recorded_history
from thor_policy.cli.main import cli
from thor_policy.config import Config


@pytest.fixture
def graph(config: Config, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command on the made history; there is no model file."""
    recorded_history(config.journal_path)

    def run(*arguments: str) -> Result:
        where = ["--state-dir", str(config.state_dir)]
        where += ["--models-dir", str(tmp_path)] if arguments[0] == "context" else []
        done = CliRunner().invoke(cli, ["graph", *arguments, *where], env={"COLUMNS": "80"})
        assert done.exit_code == 0, done.output
        return done

    return run


def test_a_timeline_says_by_which_link_and_what_is_left_out(graph: Callable[..., Result]) -> None:
    lines = graph("timeline", "--goal", "ship", "-n", "2").stdout.splitlines()
    assert (lines[0].split()[:3], len(lines)) == (["depth", "by", "time"], 4)
    assert lines[-1] == "more items are left out: -n 2"
    entries = json.loads(graph("timeline", "--session", "s2", "--json").stdout)["entries"]
    assert [entry["item"]["id"] for entry in entries] == ["worked", "is-slow", "docs", "outline-2"]


def test_the_pulse_begins_with_its_summary(graph: Callable[..., Result]) -> None:
    shown = graph("pulse", "--stale-days", "36500").stdout.splitlines()
    assert shown[0] == (
        "4 active goals (2 without a decision or action, 0 stale for 36500 days), "
        "4 decisions (2 without an outcome), 2 below 50 % confidence"
    )
    assert "decisions without an outcome:" in shown
    assert not [line for line in shown if line.startswith("goals with nothing new")]
    assert json.loads(graph("pulse", "--json").stdout)["cut"] is False


def test_a_context_says_what_counted_its_tokens(graph: Callable[..., Result]) -> None:
    done = graph("context", "--session", "s1", "--tokens", "256")
    assert done.stdout.startswith("# Work\n\n## Active goals\n\n- again (id ..again)\n")
    assert done.stderr.endswith(" tokens, counted by an estimate\n")
    made = json.loads(graph("context", "--json").stdout)
    assert (made["counted_by"], made["left_out"]) == ("an estimate", 0)


@pytest.mark.model
def test_a_context_is_counted_by_the_tokenizer_of_the_model(config: Config) -> None:
    recorded_history(config.journal_path)
    arguments = ["graph", "context", "--json", "--state-dir", str(config.state_dir)]
    done = CliRunner().invoke(cli, [*arguments, "--model", "smollm2-135m-instruct-q4_1"])
    assert json.loads(done.stdout)["counted_by"] == "the tokenizer of smollm2-135m-instruct-q4_1"


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("mermaid", "flowchart TD\n"),
        ("dot", "digraph work {\n"),
        ("graphml", "<graphml "),
        ("csv", ":ID,:LABEL,"),
        ("csv-edges", ":START_ID,:END_ID,:TYPE,"),
        ("cypher", "CREATE CONSTRAINT "),
        ("prov-json", "{"),
        ("jsonld", '{\n  "@context": {'),
        ("html", "<!doctype html>\n"),
        ("json", '{\n  "format": "thor-policy graph 1",'),
    ],
)
def test_the_graph_is_exported_whole_or_around_a_node(
    graph: Callable[..., Result], name: str, beginning: str
) -> None:
    whole = graph("export", "--format", name).stdout
    near = graph("export", "--format", name, "--around", "ship", "--depth", "1").stdout
    assert whole.startswith(beginning)
    assert near.startswith(beginning)
    assert len(near) < len(whole)


def test_an_export_around_a_node_has_what_is_near(graph: Callable[..., Result]) -> None:
    near = nx.parse_graphml(graph("export", "--format", "graphml", "--around", "ship", "--depth", "1").stdout)
    assert set(near) == {"ship", "fast-path", "slow-path"}


def test_the_graph_of_traces_is_exported_around_a_decision(graph: Callable[..., Result]) -> None:
    text = graph("export", "--of", "traces", "--format", "graphml").stdout
    types = {data["type"] for _, data in nx.parse_graphml(text).nodes(data=True)}
    assert {"decision", "actor", "policy_version", "entity"} <= types
    near = graph("export", "--of", "traces", "--around", TRACE, "--depth", "0", "--format", "json").stdout
    assert [item["id"] for item in json.loads(near)["items"]] == [TRACE]


def test_an_export_goes_to_a_new_file(config: Config, graph: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "graph.html"
    done = graph("export", "--format", "html", "--output", str(file))
    assert (done.exit_code, done.stdout) == (0, "")
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    where = ["--state-dir", str(config.state_dir)]
    again = CliRunner().invoke(cli, ["graph", "export", "--output", str(file), *where])
    assert (again.exit_code, "exists; give the name of a new file" in again.output) == (2, True)
