"""The command `graph`: nodes and links with and without a daemon, lists, replacement of a node."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.build import record, undo_migrations
from tests.work import TRACE, history, recorded_history
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import load_stub_engine

Run = Callable[..., Any]
_WRITES = ("add", "link", "supersede")


@pytest.fixture
def graph(config: Config) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        where = ["--state-dir", str(config.state_dir)]
        where += ["--endpoint", config.endpoint] if arguments[0] in _WRITES else []
        return CliRunner().invoke(cli, ["graph", *arguments, *where], env={"COLUMNS": "80"})

    return run


@pytest.fixture
def read(graph: Callable[..., Result]) -> Run:
    """Run a command with --json and decode what it prints."""

    def run(*arguments: str) -> Any:
        done = graph(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("with_daemon", [False, True])
def test_nodes_and_links_are_recorded_with_and_without_a_daemon(
    config: Config, graph: Callable[..., Result], read: Run, *, with_daemon: bool
) -> None:
    record(config.journal_path)
    with serving(config, load_engine=load_stub_engine) if with_daemon else nullcontext():
        goal = read(
            *("add", "goal", "Ship it", "--description", "soon", "--confidence", "80", "--session", "s"),
            *("--agent", "coder", "--meta", '{"ticket": 7}'),
        )["id"]
        decision = read("add", "decision", "Use SQLite", "--status", "abandoned")["id"]
        edge = read("link", goal, "leads_to", decision[-8:], "--weight", "2", "--rationale", "it is there")
        assert edge["type"] == "leads_to"
        shown = read("show", goal[-8:])
        assert read("list", "--agent", "coder") == [{k: v for k, v in shown.items() if k != "links"}]
        assert graph("add", "goal", "Ship it").output.startswith("goal recorded as ")
    names = ("type", "title", "description", "status", "confidence", "session", "agent", "metadata")
    assert {name: shown[name] for name in names} == {
        "type": "goal",
        "title": "Ship it",
        "description": "soon",
        "status": "active",
        "confidence": 80,
        "session": "s",
        "agent": "coder",
        "metadata": {"ticket": 7},
    }
    (leading,) = shown["links"]
    assert (leading["target"], leading["weight"], leading["rationale"]) == (decision, 2, "it is there")


@pytest.mark.parametrize("with_daemon", [False, True])
def test_a_newer_node_takes_the_place_of_an_older_one(
    config: Config, graph: Callable[..., Result], read: Run, *, with_daemon: bool
) -> None:
    recorded_history(config.journal_path)
    with serving(config, load_engine=load_stub_engine) if with_daemon else nullcontext():
        made = read(
            "supersede", "speed", "--title", "Be fast", "--confidence", "60", "--rationale", "clearer"
        )
        assert read("show", "speed")["status"] == "superseded"
        assert read("show", "speed")["superseded_by"] == made["id"]
        newer = read("show", made["id"])
        assert (newer["type"], newer["title"], newer["confidence"]) == ("goal", "Be fast", 60)
        done = graph("supersede", "docs", "--by", made["id"])
        assert done.output == f"docs is superseded by {made['id']}\n"
    assert verify(config.journal_path).ok


def test_a_replacement_that_closes_a_cycle_is_refused(config: Config, graph: Callable[..., Result]) -> None:
    recorded_history(config.journal_path)
    cycle = graph("supersede", "again", "--by", "old")
    assert (cycle.exit_code, "would close a cycle of supersedes" in cycle.output) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["supersede", "old"], "give --by ID or --title TITLE"),
        (["supersede", "old", "--by", "again", "--title", "x"], "give --by ID or --title TITLE"),
        (["supersede", "old", "--by", "again", "--confidence", "3"], "leave out what describes a new one"),
        (["supersede", TRACE, "--title", "x"], "use `thorpolicy trace supersede`"),
        (["add", "goal", "x", "--meta", "[1]"], "--meta: must be an object of JSON"),
        (["add", "goal", "x", "--meta", "{"], "--meta: "),
        (["add", "goal", "x", "--confidence", "101"], "0<=x<=100"),
        (["add", "policy_version", "x"], "'policy_version' is not one of"),
        (["link", "ship", "DECIDED_BY", "docs"], "'DECIDED_BY' is not one of"),
        (["link", "ship", "leads_to", "nobody-at-all"], "there is no node and no decision 'nobody-at-all'"),
        (["link", "ship", "leads_to", "docs", "--weight", "nan"], "is not finite"),
        (["list", "--since", "noon"], "since: 'noon' is not an RFC 3339 time"),
        (["show", "nobody-at-all"], "there is no node and no decision 'nobody-at-all'"),
        (["timeline"], "give --session NAME or --goal ID"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_has_status_2_and_says_what_to_do(
    config: Config, graph: Callable[..., Result], arguments: list[str], problem: str
) -> None:
    recorded_history(config.journal_path)
    done = graph(*arguments)
    assert (done.exit_code, problem in done.output) == (2, True), done.output
    with Reader(config.journal_path) as reader:
        assert reader.newest_seq() >= len(history())


def test_an_edge_that_the_journal_refuses_has_status_4(config: Config, graph: Callable[..., Result]) -> None:
    recorded_history(config.journal_path)
    done = graph("link", "ship", "chosen", "docs")
    assert (done.exit_code, "cannot lead from goal to goal" in done.output) == (4, True)


def test_lists_take_filters_and_tables_fit_80_columns(
    config: Config, graph: Callable[..., Result], read: Run
) -> None:
    recorded_history(config.journal_path)
    read(
        "add", "goal", "A title that is much longer than a table has room for it " * 3, "--session", "s" * 90
    )
    assert [item["id"] for item in read("list", "--type", "decision", "--until", "2026-07-03T00:00:00Z")] == [
        "use-fast"
    ]
    assert [item["id"] for item in read("goals")][1:] == ["again", "docs", "speed", "ship"]
    assert [item["id"] for item in read("recent", "-n", "3")][1:] == ["given-up", "again"]
    for arguments in (["list"], ["goals"], ["recent"], ["pulse"], ["timeline", "--goal", "ship"]):
        lines = graph(*arguments).stdout.splitlines()
        tables = [line for line in lines if line.startswith(("time", "depth")) or " 12:00 " in line]
        assert len(tables) > 1
        assert max(map(len, tables)) <= 80


def test_a_node_is_shown_with_its_links(config: Config, graph: Callable[..., Result]) -> None:
    recorded_history(config.journal_path)
    lines = graph("show", "fast-path").output.splitlines()
    assert lines[-2:] == [
        "leads_to -> decision use-fast (use-fast)",
        "<- leads_to goal ship (ship): it is quick",
    ]


def test_a_journal_of_an_earlier_version_is_migrated_first(config: Config, read: Run) -> None:
    recorded_history(config.journal_path)
    undo_migrations(config.journal_path, "0016_work")
    assert [item["id"] for item in read("list", "--agent", "coder")] == []
    assert len(read("goals")) == 4
