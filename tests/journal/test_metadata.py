"""docs/metadata.yml, with which datasette opens a journal: every query runs, every table is there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from thor_policy.journal.writer import Journal

METADATA = yaml.safe_load((Path(__file__).parents[2] / "docs" / "metadata.yml").read_text(encoding="utf-8"))
JOURNAL = METADATA["databases"]["policy_decisions"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metadata") / "policy_decisions.db"
    Journal(path).close()
    return path


@pytest.mark.parametrize("name", JOURNAL["queries"])
def test_every_canned_query_runs(path: Path, name: str) -> None:
    query = JOURNAL["queries"][name]
    assert query["title"]
    with closing(sqlite3.connect(path)) as db:
        db.execute(query["sql"], {"days": "7", "decision_id": "none"}).fetchall()


@pytest.mark.parametrize("name", JOURNAL["tables"])
def test_every_described_table_and_column_is_there(path: Path, name: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        columns = {row[1] for row in db.execute(f"PRAGMA table_info({name})")}
    table = JOURNAL["tables"][name]
    described = {*table.get("facets", ()), *table.get("units", ()), table.get("sort_desc", "seq")}
    assert described <= columns
