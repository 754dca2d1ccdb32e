"""The maker of vectors: off the decision's path, each situation embedded alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.build import about, by_model, by_rule, rows, writing
from thor_policy.config import Config
from thor_policy.core.errors import CatalogError
from thor_policy.core.situations import situation_of
from thor_policy.daemon.vector_maker import MOST_POSTPONED, PAGE, REST_S, VectorMaker
from thor_policy.engine.embedder import QUICK_FILE, MiniLM, missing
from thor_policy.journal import events
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.writer import Journal
from thor_policy.testing import WordEmbedder

SECOND_NS = 10**9


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db", synchronous="OFF") as journal:
        yield journal


def recorded(journal: Journal, *decisions: Any) -> None:
    for decision in decisions:
        journal.commit(events.decision_event(decision)).result(60)


def maker_for(journal: Journal, **options: Any) -> VectorMaker:
    return VectorMaker(journal, **{"per_s": 10, "open_embedder": WordEmbedder, "now_ns": 0} | options)


def vectors_of(journal: Journal) -> list[bytes]:
    return [vector for (vector,) in rows(journal.path, "SELECT vector FROM vectors ORDER BY seq")]


def test_a_turn_makes_a_page_and_the_next_turn_the_rest(journal: Journal) -> None:
    recorded(journal, *(by_rule() for _ in range(PAGE + 2)))
    maker = maker_for(journal)
    maker.turn(0)
    assert len(vectors_of(journal)) == PAGE
    assert maker.wait_s(0) == PAGE / 10
    maker.turn(SECOND_NS)
    assert len(vectors_of(journal)) == PAGE + 2
    maker.turn(2 * SECOND_NS)
    assert maker.wait_s(2 * SECOND_NS) == REST_S
    assert maker.counters["vectors_made"] == PAGE + 2


def test_vectors_of_another_embedder_are_made_again(journal: Journal) -> None:
    """They are of another space."""
    recorded(journal, by_rule(), by_rule())
    maker_for(journal).turn(0)
    before = vectors_of(journal)

    class Other(WordEmbedder):
        name = "other"

        def embed(self, text: str) -> Any:
            return -super().embed(text)

    recorded(journal, by_rule())
    other = maker_for(journal, open_embedder=Other)
    other.turn(0)
    other.turn(SECOND_NS)
    names = {name for (name,) in rows(journal.path, "SELECT embedder FROM vectors")}
    assert names == {"other"}
    assert len(vectors_of(journal)) == 3
    assert not set(before) & set(vectors_of(journal))


def check_bits(journal: Journal, embedder: Any) -> None:
    decision = by_model(evaluation=about(details="refund of an order"))
    others = [by_rule(evaluation=about(details=f"number {n} " * n)) for n in range(4)]
    recorded(journal, others[0], others[1], decision, *others[2:])
    maker_for(journal, open_embedder=lambda: embedder).turn(0)
    alone = embedder.embed(situation_of(decision.evaluation)).astype(numpy.float16).tobytes()
    assert vectors_of(journal)[2] == alone


def test_a_vector_has_the_same_bits_alone_and_among_others(journal: Journal) -> None:
    check_bits(journal, WordEmbedder())


@pytest.mark.embedder
def test_a_vector_of_the_real_embedder_has_the_same_bits_alone_and_among_others(journal: Journal) -> None:
    if why := missing(Config().models_dir, QUICK_FILE):
        pytest.skip(why)
    check_bits(journal, MiniLM(Config().models_dir, QUICK_FILE))


def test_without_an_embedder_nothing_is_made_and_the_problem_is_known(journal: Journal) -> None:
    def none() -> WordEmbedder:
        raise CatalogError("the embedder is missing: run ./scripts/export-embedder")

    recorded(journal, by_rule())
    maker = maker_for(journal, open_embedder=none)
    maker.turn(0)
    assert "export-embedder" in (maker.problem or "")
    assert maker.wait_s(0) is None


def test_the_embedder_is_not_loaded_while_no_vector_is_due(journal: Journal) -> None:
    opened: list[int] = []

    def embedder() -> WordEmbedder:
        opened.append(1)
        return WordEmbedder()

    maker = maker_for(journal, open_embedder=embedder)
    maker.turn(0)
    assert not opened
    recorded(journal, by_rule())
    maker.turn(SECOND_NS)
    assert opened


def test_nothing_is_made_while_requests_wait_but_for_one_turn_in_many(journal: Journal) -> None:
    recorded(journal, by_rule())
    maker = maker_for(journal, busy=lambda: True)
    for turn in range(MOST_POSTPONED):
        maker.turn(turn)
    assert vectors_of(journal) == []
    maker.turn(MOST_POSTPONED)
    assert len(vectors_of(journal)) == 1


def test_an_erased_situation_has_an_empty_vector_and_is_not_due_for_ever(journal: Journal) -> None:
    recorded(journal, by_rule())
    maker = maker_for(journal)
    maker.turn(0)
    erase(journal, "user:alice")
    maker.turn(SECOND_NS)
    assert vectors_of(journal) == [b""]
    maker.turn(2 * SECOND_NS)
    assert maker.wait_s(2 * SECOND_NS) == REST_S


def test_a_decision_that_cannot_be_read_keeps_no_other_from_its_vector(journal: Journal) -> None:
    recorded(journal, by_rule(), by_rule())
    with writing(journal.path) as db:
        db.execute("UPDATE events SET body = 'no json' WHERE seq = 1")
    maker = maker_for(journal)
    maker.turn(0)
    assert [bool(vector) for vector in vectors_of(journal)] == [False, True]
    assert maker.counters["vectors_empty"] == 1
