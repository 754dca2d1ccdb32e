"""Queries of the graph of work: filters, ends of ids, parts, sessions; each reads an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.build import NOON, by_rule, record, sent
from tests.work import DAY_S, TRACE, link, node, recorded_history
from thor_policy.core import records
from thor_policy.core.decisions import Traits
from thor_policy.core.errors import JournalError
from thor_policy.journal import events, work_queries
from thor_policy.journal.reader import Reader, open_read_only
from thor_policy.journal.trace_queries import Connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recorded_history(tmp_path / "j.db")


@pytest.fixture
def reader(path: Path) -> Iterator[Reader]:
    with Reader(path) as opened:
        yield opened


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [item["id"] for item in items]


def day(number: float) -> str:
    return events.timestamp(NOON + number * DAY_S)


def test_nodes_are_listed_by_each_filter_newest_first(reader: Reader) -> None:
    def listed(**filters: Any) -> list[str]:
        return ids(work_queries.nodes(reader, **filters))

    assert listed(type="goal") == ["given-up", "again", "old", "docs", "speed", "ship"]
    assert listed(type="goal", status="active") == ["again", "docs", "speed", "ship"]
    assert listed(status="superseded") == ["old", "outline"]
    assert listed(status="abandoned") == ["given-up", "sure"]
    assert listed(session="s1") == ["write", "use-fast", "slow-path", "fast-path", "ship"]
    assert listed(session="s1", type="option", limit=1) == ["slow-path"]
    assert listed(agent="coder") == ["use-fast", "ship"]
    assert listed(agent="nobody") == []
    assert listed(since=day(12), until=day(13)) == ["again", "outline-2"]
    assert listed(since=day(13)) == ["sure", "guess"]
    assert listed(since=day(14)) == []
    assert len(listed(limit=1_000)) == len(listed()) == 17


def test_the_filters_of_time_name_what_is_wrong(reader: Reader) -> None:
    with pytest.raises(JournalError, match="until: 'noon' is not an RFC 3339 time"):
        work_queries.nodes(reader, until="noon")


def test_an_item_shows_what_took_its_place(reader: Reader) -> None:
    with reader.snapshot() as connection:
        items = work_queries.items(connection, ["old", "again", TRACE, "nobody"])
    assert items.keys() == {"old", "again", TRACE}
    assert (items["old"]["status"], items["old"]["superseded_by"]) == ("superseded", "again")
    assert (items["again"]["status"], items["again"]["superseded_by"]) == ("active", None)
    trace = items[TRACE]
    assert (trace["type"], trace["title"], trace["recorded"]) == ("decision", "policy_application: deny", 1)
    assert set(work_queries.ITEM) == trace.keys() == items["old"].keys()


def test_an_id_may_be_given_by_its_end(reader: Reader) -> None:
    assert work_queries.resolve(reader, "fast-path") == "fast-path"
    assert work_queries.resolve(reader, "utline-2") == "outline-2"
    assert work_queries.resolve(reader, TRACE[-8:]) == TRACE
    with pytest.raises(JournalError, match="there is no node and no decision 'path'"):
        work_queries.resolve(reader, "path")
    with pytest.raises(JournalError, match="there is no node and no decision 'nobody-at-all'"):
        work_queries.resolve(reader, "nobody-at-all")


def test_an_end_of_several_ids_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "two.db", node("a-12345678", "goal"), node("b-12345678", "goal"))
    with Reader(tmp_path / "two.db") as two, pytest.raises(JournalError, match="several nodes end in"):
        work_queries.resolve(two, "12345678")


def test_more_ids_than_one_query_takes_are_all_found(tmp_path: Path) -> None:
    names = [f"n-{number}" for number in range(1_100)]
    links = [link(names[0], "leads_to", name) for name in names[1:]]
    record(tmp_path / "many.db", *(node(name, "action") for name in names), *links)
    with Reader(tmp_path / "many.db") as many, many.snapshot() as connection:
        assert sorted(work_queries.items(connection, names)) == sorted(names)
        assert len(work_queries.links_to(connection, names)) == 1_099
        assert len(work_queries.links_from(connection, names, ("leads_to",))) == 1_099
        assert work_queries.links_from(connection, names, ("blocks",)) == []


def test_the_decisions_of_the_work_are_nodes_and_linked_ones(reader: Reader) -> None:
    with reader.snapshot() as connection:
        assert ids(work_queries.decisions(connection, 10)) == ["sure", "guess", TRACE, "use-fast"]
        assert ids(work_queries.decisions(connection, 3)) == ["sure", "guess", TRACE]
        assert ids(work_queries.active_goals(connection, 2)) == ["again", "docs"]
        assert ids(work_queries.doubtful(connection, 9)) == ["guess", "speed"]
        assert ids(work_queries.newest(connection, 2)) == ["again", "given-up"]
        assert ids(work_queries.of_session(connection, "s2", 2)) == ["docs", "outline-2"]


def test_claims_and_decisions_in_quarantine_are_no_decisions_of_the_work(tmp_path: Path) -> None:
    decided = by_rule()
    held = replace(decided, id="held", floor=replace(decided.floor, traits=Traits(required=("outcome",))))
    report = records.DecisionReport(agent="a", outcome="hold")
    claimed = sent(report, record_id="claimed", claimed="yes")
    links = [link("goal", "leads_to", id) for id in (decided.id, "held", "claimed")]
    record(tmp_path / "j.db", node("goal", "goal"), decided, held, claimed, *links)
    with Reader(tmp_path / "j.db") as reader, reader.snapshot() as connection:
        assert ids(work_queries.decisions(connection, 9)) == [decided.id]


def test_each_query_reads_an_index_and_no_whole_table(path: Path) -> None:
    class Noting(sqlite3.Connection):
        """A connection that explains each query before it runs."""

        plans: list[str]

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.lstrip().startswith(("SELECT", "WITH")) and "sqlite_master" not in sql:
                self.plans += [row[3] for row in super().execute(f"EXPLAIN QUERY PLAN {sql}", *values)]
            return super().execute(sql, *values)

    uri = f"file:{path}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, factory=Noting, isolation_level=None)) as connection:
        connection.plans = []
        for call in (
            lambda: work_queries.items(connection, ["ship", TRACE]),
            lambda: work_queries.links_from(connection, ["ship"]),
            lambda: work_queries.links_from(connection, ["ship"], ("leads_to", "RESULTED_IN")),
            lambda: work_queries.links_to(connection, ["ship"]),
            lambda: work_queries.of_session(connection, "s1", 10),
            lambda: work_queries.active_goals(connection, 10),
            lambda: work_queries.doubtful(connection, 10),
            lambda: work_queries.decisions(connection, 10),
        ):
            call()
        assert len(connection.plans) > 20
        whole = [plan for plan in connection.plans if plan.startswith("SCAN") and "INDEX" not in plan]
        assert [plan for plan in whole if plan != "SCAN newest"] == []


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"type": "goal"}, "nodes_type"),
        ({"session": "s1"}, "nodes_session"),
        ({"agent": "coder"}, "nodes_agent"),
        ({"status": "abandoned"}, "nodes_ended"),
        ({"status": "superseded"}, "edges_superseding"),
        ({"status": "superseded", "session": "s1"}, "nodes_session"),
        ({"since": "2026-07-02T00:00:00Z"}, "nodes_timestamp"),
    ],
    ids=lambda value: str(value),
)
def test_each_filter_of_a_list_reads_its_index(
    path: Path, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any], index: str
) -> None:
    with Reader(path) as reader, closing(open_read_only(path)) as beside:
        statements: list[tuple[str, Any]] = []

        def noting(connection: Connection, sql: str, values: Any) -> list[dict[str, Any]]:
            statements.append((sql, values))
            return []

        monkeypatch.setattr(work_queries, "rows", noting)
        work_queries.nodes(reader, **filters)
        plans = [
            [row[3] for row in beside.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
            for sql, values in statements
        ]
    assert any(index in step for plan in plans for step in plan)
    assert not [step for plan in plans for step in plan if step in ("SCAN n", "SCAN nodes", "SCAN edges")]
    # of superseded nodes no more than a page is sorted, but for those of a session
    sorts = [plan for plan in plans if "USE TEMP B-TREE FOR ORDER BY" in plan]
    assert len(sorts) == (1 if len(filters) == 2 else 0)


def test_superseded_nodes_are_listed_by_when_they_were_superseded(tmp_path: Path) -> None:
    record(
        tmp_path / "j.db",
        *(node(name, "goal", session="s") for name in ("first", "second", "stated", "newer")),
        node("says-so", "goal", status="superseded", session="s"),
        link("newer", "supersedes", "second"),
        link("newer", "supersedes", "first"),
        node("newest", "goal"),
        link("newest", "supersedes", "second"),
        node("option", "option", status="superseded"),
    )
    with Reader(tmp_path / "j.db") as reader:

        def listed(**filters: Any) -> list[str]:
            return ids(work_queries.nodes(reader, status="superseded", **filters))

        assert listed() == ["option", "second", "first", "says-so"]
        assert listed(limit=2) == ["option", "second"]
        assert listed(type="goal") == listed(session="s") == ["second", "first", "says-so"]
        assert listed(type="option") == ["option"]


def test_a_node_is_found_by_its_end_in_an_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    with Reader(path) as reader, closing(open_read_only(path)) as beside:
        rows = work_queries.rows

        def noting(connection: Connection, sql: str, values: Any) -> list[dict[str, Any]]:
            plans.append([row[3] for row in beside.execute(f"EXPLAIN QUERY PLAN {sql}", values)])
            return rows(connection, sql, values)

        monkeypatch.setattr(work_queries, "rows", noting)
        assert work_queries.resolve(reader, "utline-2") == "outline-2"
    assert plans == [["SEARCH nodes USING INDEX nodes_end (<expr>=?)"]]


def test_a_walk_reads_the_first_links_of_each_item(tmp_path: Path) -> None:
    record(
        tmp_path / "j.db",
        *(node(name, "goal") for name in "abcd"),
        *(link("a", "leads_to", name) for name in "dcb"),
        link("a", "blocks", "b"),
        link("b", "requires", "c"),
    )
    with Reader(tmp_path / "j.db") as reader, reader.snapshot() as connection:
        two = work_queries.first_links(connection, ["a", "b", "nobody"], ("leads_to", "requires"), 2)
        assert two == {"a": [("leads_to", "d"), ("leads_to", "c")], "b": [("requires", "c")], "nobody": []}
        known = work_queries.parts(connection, ["a", "nobody"])
    assert [(part.id, part.type, part.status) for part in known.values()] == [("a", "goal", "active")]
