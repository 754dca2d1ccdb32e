"""SQLite sources: read-only, bounded in time, rows and bytes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.source import SourceError
from thor_policy.sources.sqlite import SqliteSource

Make = Callable[..., SqliteSource]


def soon(ms: int = 20_000) -> int:
    return time.monotonic_ns() + ms * 1_000_000


@pytest.fixture
def make(tmp_path: Path) -> Make:
    with closing(sqlite3.connect(tmp_path / "t.db")) as database:
        database.execute("CREATE TABLE t (id TEXT, tier TEXT, blocked INT)")
        database.execute("INSERT INTO t VALUES ('ann', 'gold', 1)")
        database.commit()

    def source(query: str, *, path: str = "t.db", listing: str | None = None, **types: str) -> SqliteSource:
        attributes = {name: {"type": kind} for name, kind in (types or {"tier": "string"}).items()}
        place: dict[str, Any] = {"path": path, "query": query, "listing": listing}
        spec = msgspec.convert({"of": "subject", "attributes": attributes, "sqlite": place}, SourceSpec)
        assert spec.sqlite is not None
        return SqliteSource(spec, spec.sqlite, tmp_path / path)

    return source


def fault(source: SqliteSource, deadline_ns: int | None = None) -> str:
    with pytest.raises(SourceError) as failed:
        source.look_up("user", "ann", deadline_ns or soon())
    return str(failed.value)


def test_a_query_cannot_change_the_file(make: Make) -> None:
    assert "readonly" in fault(make("UPDATE t SET tier = :id RETURNING tier")).lower()
    answer = make("SELECT tier FROM t WHERE id = :id").look_up("user", "ann", soon())
    assert answer is not None
    assert answer.values == {"tier": "gold"}


def test_a_query_cannot_open_another_file(make: Make, tmp_path: Path) -> None:
    assert "attached" in fault(make(f"ATTACH '{tmp_path}/other.db' AS :id")).lower()
    assert not (tmp_path / "other.db").exists()


def test_a_query_without_end_is_stopped_at_its_deadline(make: Make) -> None:
    endless = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT count(*) AS tier FROM n WHERE :id = :id"
    )
    assert fault(make(endless), soon(50)) == "the query was stopped at its deadline"


def test_a_locked_file_gives_no_answer_by_the_deadline(make: Make, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "t.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert (
            fault(make("SELECT tier FROM t WHERE id = :id"), soon(50)) == "t.db is locked by another program"
        )


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("SELECT tier FROM nowhere WHERE id = :id", "t.db: no such table: nowhere"),
        ("SELECT id FROM t WHERE id = :id", "the query gives no column tier"),
        ("SELECT 7 AS tier WHERE :id = :id", "the attribute tier is not of the type string"),
        ("SELECT x'00' AS tier WHERE :id = :id", "the attribute tier is not of the type string"),
        ("SELECT printf('%.*c', 20000, 'x') AS tier WHERE :id = :id", "the limit is 16384"),
        ("SELECT hex(zeroblob(50000)) AS tier WHERE :id = :id", "SQLITE_TOOBIG"),
        ("SELECT tier FROM t WHERE id = :id; DELETE FROM t", "one statement at a time"),
        ("SELECT tier FROM t WHERE id = :id AND tier = :other", "t.db: "),
    ],
)
def test_a_query_that_goes_wrong_says_why_without_values(make: Make, query: str, problem: str) -> None:
    assert problem in fault(make(query))


def test_a_missing_file_is_not_made(make: Make, tmp_path: Path) -> None:
    assert "unable to open" in fault(make("SELECT :id AS tier", path="none.db"))
    assert not (tmp_path / "none.db").exists()


def test_whole_numbers_are_truth_values_where_the_pack_declares_them(make: Make) -> None:
    answer = make("SELECT blocked FROM t WHERE id = :id", blocked="bool").look_up("user", "ann", soon())
    assert answer is not None
    assert answer.values == {"blocked": True}


def test_a_replaced_file_is_read_at_the_next_look_up(make: Make, tmp_path: Path) -> None:
    source = make("SELECT tier FROM t WHERE id = :id")
    assert source.look_up("user", "ann", soon()) is not None
    with closing(sqlite3.connect(tmp_path / "new.db")) as database:
        database.execute("CREATE TABLE t (id TEXT, tier TEXT)")
        database.execute("INSERT INTO t VALUES ('ann', 'tin')")
        database.commit()
    (tmp_path / "new.db").rename(tmp_path / "t.db")
    answer = source.look_up("user", "ann", soon())
    assert answer is not None
    assert answer.values == {"tier": "tin"}


def test_a_listing_is_bounded_and_only_of_ids(make: Make) -> None:
    assert make("SELECT :id", listing="SELECT id FROM t").listing("user", soon()) == ["ann"]
    with pytest.raises(SourceError, match=r"add sqlite\.listing"):
        make("SELECT :id").listing("user", soon())
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100002) SELECT i FROM n"
    with pytest.raises(SourceError, match="more than 100000 ids"):
        make("SELECT :id", listing=many).listing("user", soon())
    with pytest.raises(SourceError, match="something that is no id"):
        make("SELECT :id", listing="SELECT 1.5").listing("user", soon())
