"""A journal written before 0.1.0 is refused by every way to open it, and stays as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlite_utils import Database, Migrations

from thor_policy.cli.main import cli
from thor_policy.core.errors import JournalError
from thor_policy.journal.maintenance.rebuild import rebuild
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal

REFUSAL = "was written before the release of thor-policy 0.1.0"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal to which the earlier set of migrations was applied, with one event."""
    path = tmp_path / "policy_decisions.db"
    migrations = Migrations("thor_policy")

    @migrations(name="0001_chain")
    def chain(db: Database) -> None:
        db.execute(
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, hash BLOB NOT NULL) STRICT"
        )

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        migrations.apply(Database(connection))
        connection.execute("INSERT INTO events VALUES (1, 'reported', x'00')")
    return path


@pytest.mark.parametrize(
    "open_it",
    [Journal, Reader, verify, lambda path: rebuild(path, path.with_name("copy.db"))],
    ids=["writer", "reader", "verify", "rebuild"],
)
def test_a_journal_from_before_0_1_0_is_refused_and_left_alone(
    path: Path, open_it: Callable[[Path], object]
) -> None:
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalError, match=REFUSAL) as refused:
            open_it(path)
        assert str(path) in str(refused.value)
        assert f"move {path.name}*, checkpoints/ and archive/ out of {path.parent}" in str(refused.value)
    assert path.read_bytes() == before
    left = {path.name, f"{path.name}-wal", f"{path.name}-shm", path.with_suffix(".lock").name}
    assert {file.name for file in path.parent.iterdir()} <= left


@pytest.mark.parametrize(
    "command",
    [
        "log",
        "log show 12345678",
        "log verify",
        "log outcome 12345678 SUCCESS",
        "log erase user:alice --yes",
        "log archive --before 2026-01-01T00:00:00Z",
        "log checkpoint",
        "log rebuild",
        "log rebuild --to copy",
        "stats",
    ],
)
def test_commands_refuse_a_journal_from_before_0_1_0(
    path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    before = path.read_bytes()
    options = ("--state-dir", str(path.parent))
    words = command.split()
    at = 2 if words[1:] else 1
    result = CliRunner().invoke(cli, [*words[:at], *options, *words[at:]])
    assert result.exit_code == 2, result.output
    assert REFUSAL in result.stderr
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.damaged-*"))


def test_after_it_was_moved_aside_a_new_journal_begins(path: Path) -> None:
    (path.parent / "earlier").mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        file.rename(path.parent / "earlier" / file.name)
    with Journal(path) as journal:
        assert journal.seq == 0
    assert verify(path).ok
