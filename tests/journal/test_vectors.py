"""Vectors in the journal: stored beside the events, emptied by an erasure, and made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import about, by_rule, erasing, record, rows, undo_migrations
from thor_policy.journal import vectors
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.maintenance.rebuild import rebuild, rebuild_in_place
from thor_policy.journal.reader import Reader
from thor_policy.journal.vectors import Made
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal

VECTOR = bytes(range(256)) * 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def due(path: Path) -> list[str]:
    with Reader(path) as reader:
        return reader.vectors_due(1_000)[0]


def newest(path: Path) -> int:
    with Reader(path) as reader:
        return reader.newest_seq()


def store(path: Path, *seqs: int, upto: int | None = None) -> int:
    made = [Made(seq=seq, vector=VECTOR, upto_seq=newest(path) if upto is None else upto) for seq in seqs]
    with Journal(path) as journal:
        return journal.run(lambda db: vectors.store(db, "words", made)).result(60)


def changes(path: Path, after: int = 0) -> list[vectors.Change]:
    with Reader(path) as reader, reader.snapshot() as connection:
        return vectors.changes(connection, after=after, limit=1_000)


def test_a_decision_is_due_until_its_vector_is_stored(path: Path) -> None:
    first, second = by_rule(), by_rule()
    record(path, first, second)
    assert due(path) == [first.id, second.id]
    store(path, 1)
    assert due(path) == [second.id]
    store(path, 2)
    assert due(path) == []


def test_a_reader_of_changes_gets_each_vector_with_the_columns_of_its_decision(path: Path) -> None:
    decision = by_rule()
    record(path, decision)
    store(path, 1)
    (change,) = changes(path)
    assert (change.seq, change.vector, change.actor) == (1, VECTOR, "user:alice")
    assert change.pack is not None
    assert changes(path, change.change) == []


def test_an_erasure_empties_the_vector_under_a_new_change_and_makes_it_due(path: Path) -> None:
    decision = by_rule()
    record(path, decision)
    store(path, 1)
    (before,) = changes(path)
    with Journal(path) as journal:
        assert erase(journal, "user:alice").left == ()
    (after,) = changes(path, before.change)
    assert (after.seq, after.vector) == (1, b"")
    assert due(path) == [decision.id]
    assert VECTOR not in b"".join(file.read_bytes() for file in path.parent.glob("journal.db*"))
    assert verify(path).ok


def test_a_vector_that_an_erasure_overtook_is_not_stored(path: Path) -> None:
    record(path, by_rule())
    upto = newest(path)
    record(path, erasing(path, 1))
    assert store(path, 1, upto=upto) == 0
    assert len(due(path)) == 1


def test_a_rebuild_keeps_the_vectors_in_place_and_in_a_copy(path: Path, tmp_path: Path) -> None:
    record(path, by_rule(), by_rule())
    store(path, 1, 2)
    with Journal(path) as journal:
        rebuild_in_place(journal)
    rebuild(path, tmp_path / "copy" / "journal.db")
    for each in (path, tmp_path / "copy" / "journal.db"):
        assert [(change.seq, change.vector) for change in changes(each)] == [(1, VECTOR), (2, VECTOR)]
        assert due(each) == []


def test_a_journal_of_an_earlier_version_can_be_copied(path: Path, tmp_path: Path) -> None:
    record(path, by_rule())
    undo_migrations(path, "0017")
    rebuild(path, tmp_path / "copy" / "journal.db")
    assert changes(tmp_path / "copy" / "journal.db") == []


def test_an_archived_decision_keeps_its_vector_until_its_actor_is_erased(path: Path) -> None:
    record(path, by_rule(), by_rule(evaluation=about(details="other")))
    store(path, 1, 2)
    with Journal(path) as journal:
        archive_before(journal, "2999-01-01T00:00:00Z")
    assert [change.vector for change in changes(path)] == [VECTOR, VECTOR]
    with Journal(path) as journal:
        erase(journal, "user:alice")
    assert [change.vector for change in changes(path)] == [b"", b""]


def test_a_transaction_that_fails_stores_nothing(path: Path) -> None:
    record(path, by_rule())
    good = Made(seq=1, vector=VECTOR, upto_seq=1)
    broken = Made(seq=2, vector="x", upto_seq=1)  # type: ignore[arg-type]
    with Journal(path) as journal:
        stored = journal.run(lambda db: vectors.store(db, "words", [good, broken]))
        with pytest.raises(Exception, match="cannot store"):
            stored.result(60)
    assert rows(path, "SELECT count(*) FROM vectors") == [(0,)]
