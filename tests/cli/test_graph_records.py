"""`graph import`, `new`, `templates`, `import-git` and `analytics`, with a daemon and without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.trace.test_git_history import MESSAGES, commit
from tests.work import hostile_graph, recorded_history
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import load_stub_engine
from thor_policy.trace import interchange
from thor_policy.trace.work_graph import whole


@pytest.fixture
def graph(config: Config) -> Callable[..., Result]:
    """Runs a command of `graph` on the journal of the settings."""
    state, endpoint = ["--state-dir", str(config.state_dir)], ["--endpoint", config.endpoint]
    where = {"templates": [], "list": state, "analytics": state}

    def run(*arguments: str) -> Result:
        places = where.get(arguments[0], [*state, *endpoint])
        return CliRunner().invoke(cli, ["graph", *arguments, *places], env={"COLUMNS": "80"})

    return run


def content(path: Path) -> list[list[str]]:
    """Nodes and edges as they are stated, but for when they were recorded."""
    with Reader(path) as reader:
        read = whole(reader)
    kept = (
        [item for item in read.items if not item["recorded"]],
        [edge for edge in read.edges if edge["stated"]],
    )
    return [
        sorted(
            repr({name: value for name, value in row.items() if name not in ("seq", "at")}) for row in rows
        )
        for rows in kept
    ]


@pytest.mark.parametrize("with_daemon", [False, True])
def test_an_exported_graph_keeps_its_ids_and_a_second_import_changes_nothing(
    config: Config, graph: Callable[..., Result], tmp_path: Path, *, with_daemon: bool
) -> None:
    file = tmp_path / "graph.json"
    file.write_text(interchange.json(hostile_graph(tmp_path / "other.db")), encoding="utf-8")
    recorded_history(config.journal_path)
    before = content(config.journal_path)
    with serving(config, load_engine=load_stub_engine) if with_daemon else nullcontext():
        dry = json.loads(graph("import", str(file), "--dry-run", "--json").stdout)
        assert (dry["nodes"], dry["edges"], dry["recorded"]) == (16, 15, 0)
        assert content(config.journal_path) == before
        done = json.loads(graph("import", str(file), "--json").stdout)
        assert (done["recorded"], done["known"], done["problems"]) == (31, 0, [])
        after = content(config.journal_path)
        again = json.loads(graph("import", str(file), "--json").stdout)
        assert (again["recorded"], again["known"], again["problems"]) == (0, 31, [])
        assert content(config.journal_path) == after
    added = [[row for row in rows if row not in old] for rows, old in zip(after, before, strict=True)]
    assert added == content(tmp_path / "other.db")
    assert verify(config.journal_path).ok


def test_states_and_links_of_a_history_are_imported_but_no_recorded_decision(
    config: Config, graph: Callable[..., Result], tmp_path: Path
) -> None:
    path = recorded_history(tmp_path / "other.db")
    with Reader(path) as reader:
        read = json.loads(interchange.json(whole(reader)))
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(read))
    hostile_graph(config.journal_path)
    done = json.loads(graph("import", str(file), "--json").stdout)
    assert {row["why"] for row in done["problems"]} == {
        "'018f-decided' is neither in the file nor recorded here"
    }
    recorded = {item["id"] for item in read["items"] if item["recorded"]}
    read["edges"] = [edge for edge in read["edges"] if not {edge["source"], edge["target"]} & recorded]
    file.write_text(json.dumps(read))
    done = json.loads(graph("import", str(file), "--json").stdout)
    assert (done["problems"], done["left_out"]) == ([], len(recorded))
    with Reader(config.journal_path) as reader:
        states = {item["id"]: item["status"] for item in whole(reader).items}
    assert (states["old"], states["given-up"], states["ship"]) == ("superseded", "abandoned", "active")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda file: file["items"][0].update(title="another"), "title: differs from what is recorded"),
        (lambda file: file["items"][0].update(type="action"), "type: differs from what is recorded"),
        (lambda file: file["edges"][0].update(weight=2.0), "weight: differs from what is recorded"),
        (lambda file: file["items"].append({"id": "x", "type": "goal"}), "title: was erased"),
        (
            lambda file: file["items"].append({"id": "x", "type": "nobody", "title": "t"}),
            "Invalid enum value",
        ),
        (lambda file: file["items"].append({"id": 7, "type": "goal", "title": "t"}), "Expected `str`"),
        (lambda file: file["items"].append(file["items"][1]), "is there twice"),
        (
            lambda file: file["edges"].append(
                {"id": "x", "source": "quote", "target": "nobody", "type": "leads_to", "stated": 1}
            ),
            "'nobody' is neither in the file nor recorded here",
        ),
        (
            lambda file: file["edges"].append(
                {"id": "x", "source": "quote", "target": "comma", "type": "chosen", "stated": 1}
            ),
            "chosen cannot lead from goal to goal",
        ),
    ],
)
def test_a_conflict_is_named_and_nothing_is_recorded(
    config: Config,
    graph: Callable[..., Result],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    problem: str,
) -> None:
    hostile_graph(config.journal_path)
    with Reader(config.journal_path) as reader:
        read = json.loads(interchange.json(whole(reader)))
    read["items"].append({"id": "new", "type": "goal", "title": "new"})
    change(read)
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(read), encoding="utf-8")
    before = content(config.journal_path)
    done = graph("import", str(file), "--json")
    assert done.exit_code == 1
    assert problem in json.loads(done.stdout)["problems"][0]["why"]
    assert content(config.journal_path) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[]", "format: must be 'thor-policy graph 1'"),
        ('{"format": "thor-policy graph 1", "items": {}, "edges": []}', "items: must be a list of objects"),
        ('{"format": "a", "format": "b"}', "format"),
    ],
)
def test_a_file_of_another_form_is_refused(
    config: Config, graph: Callable[..., Result], tmp_path: Path, text: str, problem: str
) -> None:
    hostile_graph(config.journal_path)
    file = tmp_path / "graph.json"
    file.write_text(text)
    done = graph("import", str(file))
    assert (done.exit_code, problem in done.output) == (2, True), done.output


@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_template_begins_work(config: Config, graph: Callable[..., Result], *, with_daemon: bool) -> None:
    recorded_history(config.journal_path)
    assert "api-design" in graph("templates").output
    with serving(config, load_engine=load_stub_engine) if with_daemon else nullcontext():
        done = json.loads(graph("new", "--template", "release", "2.0", "--session", "s9", "--json").stdout)
        assert (len(done["nodes"]), done["recorded"], done["refused"]) == (7, 14, [])
        listed = json.loads(graph("list", "--session", "s9", "--json").stdout)
    assert [item["id"] for item in listed][::-1] == [kept["id"] for kept in done["nodes"]]
    assert listed[-1]["title"] == "Release: 2.0"


def test_commits_are_imported_no_more_than_one_time(
    config: Config, graph: Callable[..., Result], tmp_path: Path
) -> None:
    recorded_history(config.journal_path)
    repository = tmp_path / "repository"
    repository.mkdir()
    for message in MESSAGES:
        commit(repository, message)
    dry = graph("import-git", str(repository), "--dry-run")
    assert "3 commits read, 2 with trailers of the work" in dry.output
    assert "7 nodes and 7 links are new, 0 are known" in dry.output
    assert "nothing is recorded" in dry.output
    assert "14 are recorded" in graph("import-git", str(repository)).output
    again = json.loads(graph("import-git", str(repository), "--json").stdout)
    assert (again["recorded"], again["known"], again["problems"]) == (0, 14, [])


def test_analytics_say_their_samples(config: Config, graph: Callable[..., Result]) -> None:
    recorded_history(config.journal_path)
    shown = graph("analytics")
    assert shown.exit_code == 0
    assert "25% of 4 (5% to 70%)" in shown.output
    assert json.loads(graph("analytics", "--json").stdout)["decisions"] == 4
