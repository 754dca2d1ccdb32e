"""`sql(text)`: what each labelled text comes to, what is opaque, and that no text changes what reads."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents import ROOT
from tests.structure_fuzz import hostile_texts, run
from thor_policy.policy import yaml_text
from thor_policy.policy.structure.sql import MAX_CHARS, Sql, sql

_FILE = ROOT / "tests" / "data" / "structure" / "sql.yaml"
LABELS = yaml_text.parse(_FILE.read_text(encoding="utf-8"), dict[str, list[str]], _FILE.name)
TEXTS = [text for texts in LABELS.values() for text in texts]
OPAQUE = {"statements": 0, "kinds": [], "tables": [], "functions": [], "reads_only": False}


def test_a_hundred_and_fifty_texts_are_labelled() -> None:
    assert len(TEXTS) >= 150
    assert len(set(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize("text", [*LABELS["ask"], *LABELS["dangerous"], *LABELS["later_ask"]], ids=ascii)
def test_a_text_that_changes_anything_does_not_only_read(text: str) -> None:
    assert not sql(text)["reads_only"]


@pytest.mark.parametrize("text", LABELS["safe"], ids=ascii)
def test_a_text_that_only_reads_is_understood(text: str) -> None:
    result = sql(text)
    assert (result["opaque"], result["reads_only"], result["kinds"]) == ("", True, ["read"])


def test_nine_of_ten_texts_that_only_read_are_known_to() -> None:
    texts = LABELS["safe"] + LABELS["later_safe"]
    assert sum(sql(text)["reads_only"] for text in texts) >= 0.9 * len(texts)


@pytest.mark.parametrize(
    ("text", "kinds", "tables", "functions"),
    [
        ("SELECT a FROM Shop.Customers", ["read"], ["shop.customers"], []),
        ("SELECT upper(a) FROM [dbo].[t]", ["read"], ["dbo.t"], ["upper"]),
        ("SELECT pg_catalog.lower(a), Other.f(b) FROM t", ["read"], ["t"], ["lower", "other.f"]),
        ("SELECT 1; DROP TABLE a.b; COMMIT", ["drop", "read", "transaction"], ["a.b"], []),
        ("INSERT INTO t (a) VALUES (now())", ["insert"], ["t"], ["now"]),
        (
            "INSERT INTO t (a) SELECT b FROM u ON CONFLICT (a) DO UPDATE SET b = 1",
            ["insert", "update"],
            ["t", "u"],
            [],
        ),
        ("WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone", ["delete", "read"], ["t"], []),
        ("WITH t AS (SELECT 1) SELECT * FROM t", ["read"], [], []),
        ("WITH t AS (SELECT * FROM t) SELECT * FROM t", ["read"], ["t"], []),
        ("WITH t(a, b) AS (SELECT 1, 2) SELECT a FROM t", ["read"], [], []),
        ("SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) x, t", ["read"], ["t"], []),
        ("ALTER TABLE t DROP COLUMN a", ["alter", "drop"], ["t"], []),
        ("CREATE TABLE t (a int REFERENCES u (a) ON DELETE CASCADE)", ["create"], ["t", "u"], []),
        ("GRANT INSERT, DELETE ON t TO amy", ["grant"], ["t"], []),
        ("EXEC xp_cmdshell 'dir'", ["call"], [], ["xp_cmdshell"]),
        ("CALL a.b(1)", ["call"], [], ["a.b"]),
        ("LOAD DATA INFILE 'x' INTO TABLE t", ["load"], ["t"], []),
        ("COPY t TO PROGRAM 'x'", ["copy"], ["t"], []),
        ("REPLACE INTO t VALUES (1)", ["insert"], ["t"], []),
        ("SELECT a INTO b FROM c", ["create", "read"], ["b", "c"], []),
        ("EXPLAIN ANALYZE DELETE FROM t", ["delete"], ["t"], []),
        ("DESCRIBE shop.t", ["read"], ["shop.t"], []),
        ("PRAGMA journal_mode = WAL", ["set"], [], []),
        ("VACUUM", ["other"], [], []),
        ("EXPLAIN TABLE shop.t", ["read"], ["shop.t"], []),
        ("SELECT a @@Evil(b), @Other(c) FROM t", ["read"], ["t"], ["evil", "other"]),
        ("SELECT (a)[1].f, a[b].h, c.d FROM c", ["read"], ["c"], ["f", "h"]),
        ("SELECT [i].j FROM [c].[d] [i]", ["read"], ["c.d"], []),
        ("SELECT ($1).g, (a.b).h", ["read"], [], ["g", "h"]),
        (
            "SELECT u.f, v.g, w.h FROM current_user u, (f(1)) AS v, t w",
            ["read"],
            ["current_user", "t"],
            ["f", "g"],
        ),
        ("SELECT ('x'::text).pg_read_file", ["read"], [], ["pg_read_file"]),
        ("SELECT x.pg_read_file FROM unnest(a) AS x", ["read"], [], ["pg_read_file", "unnest"]),
        ("SELECT unnest.pg_read_file FROM unnest(a)", ["read"], [], ["pg_read_file", "unnest"]),
    ],
)
def test_kinds_tables_and_functions_of_a_text(
    text: str, kinds: list[str], tables: list[str], functions: list[str]
) -> None:
    result = sql(text)
    assert result["opaque"] == ""
    assert (result["kinds"], result["tables"], result["functions"]) == (kinds, tables, functions)


def test_statements_are_counted_without_empty_ones() -> None:
    assert sql("SELECT 1;; SELECT ';' ; -- SELECT 3;\n")["statements"] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no statement"),
        ("SELECT 'a", "string without an end"),
        ("SELECT '\\''", "backslash before a quote"),
        ("SELECT 1 --x", "-- without a blank"),
        ("SELECT 1 /* /* */ */", "nested"),
        ("SELECT 1 /*! x */", "MySQL runs"),
        ("SELECT $$a$$", "$"),
        ("SELECT 1 # a", "#"),
        ("SELECT 1\nGO", "client"),
        ("SELECT 1 -- \\! ls", "backslash outside strings"),
        ("SELECT 1\u3000", "where databases differ"),
        ("SELECT " + "(" * 30 + "1" + ")" * 30, "24 open brackets"),
        ("SELECT a" + "[1]" * 9, "8 of [..]"),
        ("SELECT 1;" * 21, "20 statements"),
        ("SELECT " + "1," * 400 + "1", "600 words"),
        ("SELECT * FROM a" + " JOIN a" * 200, "too long to parse"),
        ("SELECT " + "NOT " * 500 + "1", "nests too deeply"),
        ("SELECT '" + "x" * MAX_CHARS + "'", "4000 characters"),
        ("CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; END", "body of a routine"),
        ("EXPLAIN ANALYZE, BUFFERS) SELECT 1", "more than names"),
        ("EXPLAIN", "explains nothing"),
        ("SELECT FROM WHERE", "number 1, that no database"),
    ],
    ids=lambda value: ascii(value[:40]),
)
def test_a_text_that_is_not_understood_is_opaque_for_a_reason(text: str, reason: str) -> None:
    result = sql(text)
    assert reason in result["opaque"]
    assert {name: value for name, value in result.items() if name != "opaque"} == OPAQUE


LOADS = """
import sys
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.rules import RuleBook
rule = Rule(id="case", when=sys.argv[1], outcome="deny", because="It changes data.")
RuleBook(outcomes=("allow", "deny"), facts={}, rules=(rule,), risk=None)
print(sorted({"sqlglot", "tree_sitter"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("condition", "loaded"),
    [
        ("sql(resource.id).reads_only", ["sqlglot"]),
        ('shell(resource.id).opaque == ""', ["tree_sitter"]),
        ('resource.type == "mysql" && context.sql == "" && context.shell == ""', []),
    ],
)
def test_the_parsers_of_sql_and_shell_are_loaded_with_a_pack_that_calls_them(
    condition: str, loaded: list[str]
) -> None:
    printed = subprocess.check_output([sys.executable, "-c", LOADS, condition], text=True)
    assert printed.strip() == str(loaded)


def test_sqlglot_writes_no_log_line_with_the_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        sql("ALTER SYSTEM SET secret_name = 'x'")
        sql("SELECT json_extract(a, 'q ! x') FROM secret_name")
    assert caplog.records == []


#: Actions of SQLite that change nothing. A pragma is harmless if its name is one that is read.
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_SCHEMA = "CREATE TABLE customers (id, name, mail); CREATE TABLE orders (id, customer_id, total);"


def _changes_in_sqlite(text: str) -> list[int]:
    """What SQLite does for a text, apart from reading, until it refuses something."""
    actions: list[int] = []
    connection = sqlite3.connect(":memory:")
    connection.executescript(_SCHEMA)

    def note(action: int, *_: object) -> int:
        if action not in (*_READS, sqlite3.SQLITE_PRAGMA):
            actions.append(action)
        return sqlite3.SQLITE_OK

    connection.set_authorizer(note)
    try:
        connection.executescript(text)
    except (sqlite3.Error, UnicodeEncodeError, ValueError):
        pass
    finally:
        connection.set_authorizer(None)
        connection.close()
    return actions


def _check(text: str) -> None:
    result: Sql = sql(text)
    assert bool(result["opaque"]) != bool(result["statements"])
    if result["reads_only"] and "explain" not in text.lower():  # SQLite plans what it only explains
        assert _changes_in_sqlite(text) == [], ascii(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_result(text: str) -> None:
    _check(text)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*TEXTS, ";", "'", '"', "\n", " ", "--", "/*", "*/", "("]), max_size=6).map(
        "".join
    )
)
def test_texts_joined_to_others_change_nothing_in_sqlite_if_they_only_read(text: str) -> None:
    _check(text)


@pytest.mark.soak
def test_a_hundred_thousand_hostile_texts_end_in_time_and_leave_memory_flat() -> None:
    run(_check, hostile_texts(21, 100_000, TEXTS), limit_s=1.0)
