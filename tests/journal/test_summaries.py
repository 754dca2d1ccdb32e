"""Stored summaries: of committed records only, made again after each, gone with what an erasure takes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.build import NOON, about, by_model, by_rule, erasing, record, rows, sent
from tests.tasks import lift
from thor_policy.core import records
from thor_policy.core.errors import JournalError
from thor_policy.core.summaries import summary
from thor_policy.journal import events, summaries
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.maintenance.rebuild import rebuild_in_place
from thor_policy.journal.reader import Reader
from thor_policy.journal.summaries import Made
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def made_now(path: Path) -> list[Made]:
    """The summaries that are due, made of what is committed."""
    with Reader(path) as reader:
        decision_ids, newest = reader.summaries_due(1_000)
        return [
            Made(decision_id=decision_id, text=summary(reader.trace(decision_id)), upto_seq=newest)
            for decision_id in decision_ids
        ]


def store(path: Path, made: list[Made]) -> int:
    with Journal(path) as journal:
        return journal.run(lambda db: summaries.store(db, made)).result(60)


def due(path: Path) -> list[str]:
    with Reader(path) as reader:
        return reader.summaries_due(1_000)[0]


def hits(path: Path, *words: str) -> list[str]:
    with Reader(path) as reader:
        return [row["decision_id"] for row in reader.search(words)]


def test_each_decision_gets_a_summary_of_its_records_and_is_found_by_its_words(path: Path) -> None:
    first, second = by_rule(), by_model(evaluation=about(details="rotate the Schlüssel of the vault"))
    record(path, first, second)
    assert due(path) == [first.id, second.id]
    assert store(path, made_now(path)) == 2
    assert due(path) == []
    assert hits(path, "freeze") == [first.id]
    assert hits(path, "SCHLUSSEL", "vault") == hits(path, "of the vault") == [second.id]
    assert hits(path, "vault the of") == []
    assert hits(path, "alice") == [second.id, first.id]
    with Reader(path) as reader:
        assert reader.summary(first.id) == summary(reader.trace(first.id))
    assert verify(path).ok


@pytest.mark.parametrize(
    "change",
    [
        lambda id_: sent(records.Approval(decision_id=id_, approver="kim")),
        lambda id_: sent(records.Outcome(decision_id=id_, status="SUCCESS", note="paid")),
        lambda id_: sent(records.Consultation(decision_id=id_, system="crm", value="gold")),
        lambda id_: sent(records.Review(decision_id=id_, reviewer="kim", verdict="accept")),
        lambda id_: sent(records.Supplement(decision_id=id_, values={"risk": "low"})),
    ],
)
def test_a_later_record_makes_the_summary_due_again(path: Path, change: object) -> None:
    decision, other = by_rule(), by_rule()
    record(path, decision, other)
    store(path, made_now(path))
    record(path, change(decision.id))  # type: ignore[operator]
    assert due(path) == [decision.id]
    with Reader(path) as reader:
        assert reader.summary(decision.id) is None
    store(path, made_now(path))
    assert due(path) == []
    with Reader(path) as reader:
        assert reader.summary(decision.id) == summary(reader.trace(decision.id))


def test_the_summary_of_a_lifted_decision_says_what_was_lifted_and_by_whom(path: Path) -> None:
    _, allowed = lift(path)
    with Reader(path) as reader:
        text = summary(reader.trace(allowed.id))
    assert "the outcome is allow (lifted from require_attestation)" in text
    assert "Approvals: approved by kim (manager); approved by lee (security)." in text


def test_the_erasure_of_an_approver_deletes_the_summary_of_the_decision_that_was_lifted(path: Path) -> None:
    denied, allowed = lift(path)
    store(path, made_now(path))
    assert hits(path, "kim", "lee") == [allowed.id, denied.id]
    with Journal(path) as journal:
        assert erase(journal, "user:kim").left == ()
    assert due(path) == [denied.id, allowed.id]
    assert hits(path, "lee") == []
    store(path, made_now(path))
    assert (hits(path, "kim"), hits(path, "lee")) == ([], [allowed.id, denied.id])


def test_the_words_of_an_old_summary_find_nothing(path: Path) -> None:
    decision = by_rule()
    record(path, decision)
    store(path, made_now(path))
    record(path, sent(records.Outcome(decision_id=decision.id, status="SUCCESS", note="paid")))
    store(path, made_now(path))
    assert hits(path, "paid") == [decision.id]
    assert hits(path, "none yet") == []


def test_a_summary_that_a_record_overtook_is_not_stored_and_stays_due(path: Path) -> None:
    decision, other = by_rule(), by_rule()
    record(path, decision, other)
    made = made_now(path)
    record(path, sent(records.Outcome(decision_id=decision.id, status="SUCCESS")))
    assert store(path, made) == 1
    assert due(path) == [decision.id]
    assert store(path, made_now(path)) == 1
    assert due(path) == []


def test_a_summary_that_an_erasure_overtook_is_not_stored(path: Path) -> None:
    decision = by_rule()
    record(path, decision)
    made = made_now(path)
    record(path, erasing(path, 1))
    assert store(path, made) == 0
    assert rows(path, "SELECT count(*) FROM summaries") == [(0,)]


def test_an_erasure_takes_the_name_out_of_summaries_and_of_the_index(path: Path) -> None:
    decision = by_rule()
    plain = by_rule(evaluation=about(details="nothing"))
    record(path, decision, plain)
    record(path, sent(records.Approval(decision_id=decision.id, approver="zoroaster")))
    store(path, made_now(path))
    assert hits(path, "zoroaster") == [decision.id]
    with Journal(path) as journal:
        assert erase(journal, "user:zoroaster").left == ()
    assert hits(path, "zoroaster") == []
    assert due(path) == [decision.id]
    assert all(b"zoroaster" not in file.read_bytes() for file in path.parent.glob("journal.db*"))
    assert words_of(path).isdisjoint({"zoroaster"})
    store(path, made_now(path))
    assert hits(path, "approved by") == [decision.id]
    assert verify(path).ok


def words_of(path: Path) -> set[str]:
    """Every word in the index, also of texts that were deleted."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        db.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab('main', 'summaries_words', 'row')")
        return {word for (word,) in db.execute("SELECT term FROM temp.words")}


def test_the_index_holds_no_word_of_a_deleted_summary_after_an_erasure(path: Path) -> None:
    decisions = [by_rule(evaluation=about(details=f"word{number} alice")) for number in range(40)]
    record(path, *decisions)
    store(path, made_now(path))
    assert "word7" in words_of(path)
    with Journal(path) as journal:
        erase(journal, "user:alice")
    assert not any(word.startswith(("word", "alice")) for word in words_of(path))


def test_a_masked_value_is_in_no_summary(path: Path) -> None:
    decision = by_model(evaluation=about(details="secret7"))
    with Journal(path, masked=("/context/details",)) as journal:
        journal.decided(decision)
    store(path, made_now(path))
    with Reader(path) as reader:
        assert "Details: [masked]." in (reader.summary(decision.id) or "")
    assert hits(path, "secret7") == []


def test_a_rebuild_of_the_tables_leaves_summaries_that_can_be_made_again(path: Path) -> None:
    decision = by_rule()
    record(path, decision, sent(records.Outcome(decision_id=decision.id, status="SUCCESS")))
    store(path, made_now(path))
    before = rows(path, "SELECT seq, text FROM summaries")
    with Journal(path) as journal:
        rebuild_in_place(journal)
    store(path, made_now(path))
    assert rows(path, "SELECT seq, text FROM summaries") == before


@pytest.mark.parametrize(
    "word",
    [
        '"',
        'a" OR "alice',
        "a OR",
        "NEAR(x y)",
        "te*",
        "(",
        "text:alice",
        "^alice",
        "al'ice",
        "-alice",
        "{a b}",
        "\0a",
        "a\0",
        "\udc80a",
    ],
)
def test_no_character_of_a_word_is_an_operator(path: Path, word: str) -> None:
    record(path, by_rule(evaluation=about(details="te text")))
    store(path, made_now(path))
    if any(char.isalnum() for char in word):
        assert hits(path, word, "alice") in ([], hits(path, "alice"))
        assert hits(path, word, "nobodyhere") == []
    else:
        with pytest.raises(JournalError, match="give at least one word"):
            hits(path, word)


def test_a_search_is_bounded_and_newest_first(path: Path) -> None:
    decisions = [by_rule() for _ in range(5)]
    record(path, *decisions)
    store(path, made_now(path))
    with Reader(path) as reader:
        assert [row["decision_id"] for row in reader.search(["alice"], 2)] == [
            decisions[4].id,
            decisions[3].id,
        ]
        assert "alice" in reader.search(["alice"], 1)[0]["summary"]


def test_a_transaction_that_fails_stores_nothing(path: Path) -> None:
    record(path, by_rule())
    made = made_now(path)
    unknown = Made(decision_id="nobody", text="x", upto_seq=made[0].upto_seq)
    with Journal(path) as journal:
        with pytest.raises(TypeError):
            journal.run(lambda db: summaries.store(db, [*made, unknown])).result(60)
        journal.append(events.gap_event("the connection still works", NOON))
    assert rows(path, "SELECT count(*) FROM summaries") == [(0,)]
    assert due(path) == [made[0].decision_id]
