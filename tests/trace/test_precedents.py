"""Precedents: which decisions are given, in which order and why; which never are; what is compared."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import pytest
from msgspec import structs

from tests.build import NOON, PACK, about, by_model, by_rule, record, sent
from thor_policy.core import records
from thor_policy.core.decisions import Decision, PackInfo, Traits
from thor_policy.core.errors import RequestError
from thor_policy.core.recall import Filters, Similar, SimilarQuery, Weights
from thor_policy.core.requests import Annotations
from thor_policy.core.situations import situation_in, situation_of
from thor_policy.journal import summaries, vectors
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.reader import Reader
from thor_policy.journal.vectors import Change, Made
from thor_policy.journal.writer import Journal
from thor_policy.testing import WordEmbedder
from thor_policy.trace import precedent_index, precedents
from thor_policy.trace.precedent_index import PrecedentIndex
from thor_policy.trace.precedents import Recall

EMBEDDER = WordEmbedder()
#: Searches with vectors, and without.
ALONE_AND_WITH: tuple[dict[str, Any], ...] = ({}, {"embedder": None})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def case(details: str, **changes: Any) -> Decision:
    return by_rule(evaluation=about(details=details), **changes)


def embed(path: Path) -> None:
    """Store the vector and a summary of each decision that has none."""
    with Reader(path) as reader:
        ids, newest = reader.vectors_due(10_000)
        rows = {id: reader.recorded(id) for id in ids}
    made, texts = [], []
    for id, (row, event) in rows.items():
        text = situation_in(event["private"], row)
        vector = EMBEDDER.embed(text).astype("<f2").tobytes() if text else b""
        made.append(Made(seq=row["seq"], vector=vector, upto_seq=newest))
        texts.append(summaries.Made(decision_id=id, text=text, upto_seq=newest))
    with Journal(path) as journal:
        journal.run(lambda db: vectors.store(db, EMBEDDER.name, made)).result(60)
        journal.run(lambda db: summaries.store(db, texts)).result(60)


def search(path: Path, query: SimilarQuery, *, now: float = NOON, **options: Any) -> Similar:
    with Reader(path) as reader:
        return Recall(reader, **{"embedder": EMBEDDER} | options).search(query, now=now)


def ids(answer: Similar) -> list[str]:
    return [each.id for each in answer.precedents]


def like(text: str, k: int = 5, **options: Any) -> SimilarQuery:
    return SimilarQuery(question=about(details=text), k=k, **options)


def test_a_question_finds_the_decisions_that_are_about_the_same(path: Path) -> None:
    refund, table, order = case("refund of a broken phone"), case("drop the table"), case("refund of a phone")
    record(path, refund, table, order)
    embed(path)
    answer = search(path, like("refund of a phone"))
    assert ids(answer) == [order.id, refund.id, table.id]
    assert answer.precedents[0].similarity == pytest.approx(1, abs=1e-3)
    assert answer.by[0] == "similarity"
    assert answer.note is None


def test_a_decision_finds_others_and_not_itself(path: Path) -> None:
    first, second = case("refund of a phone"), case("refund of a phone")
    record(path, first, second)
    embed(path)
    assert ids(search(path, SimilarQuery(id=first.id))) == [second.id]
    assert ids(search(path, SimilarQuery(id=first.id[-12:]))) == [second.id]


def test_a_text_finds_decisions_too(path: Path) -> None:
    first, second = case("refund of a phone"), case("drop the table")
    record(path, first, second)
    embed(path)
    assert ids(search(path, SimilarQuery(text="drop table", k=1))) == [second.id]


# ---------------------------------------------------------------- what is no precedent


def test_an_overturned_or_questioned_decision_is_never_a_precedent(path: Path) -> None:
    good, overturned, superseded, questioned, other = (case("refund of a phone") for _ in range(5))
    record(path, good, overturned, superseded, questioned, other)
    embed(path)
    for decision, status, by in (
        (overturned, "overturned", other.id),
        (superseded, "superseded", other.id),
        (questioned, "under_review", None),
    ):
        record(
            path,
            sent(records.TraceState(decision_id=decision.id, status=status, by=by, because="b")),  # type: ignore[arg-type]
        )
    for options in ALONE_AND_WITH:
        assert set(ids(search(path, like("refund of a phone"), **options))) == {good.id, other.id}


def test_overturned_decisions_do_not_hide_others_however_many_there_are(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(precedents, "BY_SIMILARITY", 4)
    many = [case("refund of a phone") for _ in range(12)]
    good = case("refund of one old phone")
    record(path, *many, good)
    embed(path)
    record(
        path,
        *(sent(records.TraceState(decision_id=each.id, status="under_review", because="b")) for each in many),
    )
    assert ids(search(path, like("refund of a phone"))) == [good.id]
    monkeypatch.setattr(precedents, "MOST_NOT_COUNTED", 1)  # then more and more are read
    assert ids(search(path, like("refund of a phone"))) == [good.id]


def test_a_trace_in_quarantine_and_a_decision_of_a_test_are_no_precedents(path: Path) -> None:
    complete = Traits(required=("approval",))
    floor = structs.replace(by_rule().floor, traits=complete)
    lacking = case("refund of a phone", floor=floor)
    tested = case("refund of a phone", annotations=Annotations(scenario_id="s1"))
    good = case("refund of a phone")
    record(path, lacking, tested, good)
    embed(path)
    assert ids(search(path, like("refund of a phone"))) == [good.id]
    assert set(ids(search(path, like("refund of a phone"), tests=True))) == {good.id, tested.id}


def test_an_erasure_takes_a_precedent_out_of_an_open_index(path: Path) -> None:
    record(path, case("refund of a phone"))
    embed(path)
    with Reader(path) as reader:
        recall = Recall(reader, embedder=EMBEDDER)
        assert len(recall.search(like("refund of a phone"), now=NOON).precedents) == 1
        with Journal(path) as journal:
            erase(journal, "user:alice")
        answer = recall.search(like("refund of a phone"), now=NOON)
        assert (answer.vectors, [each.similarity for each in answer.precedents]) == (0, [None])


# ---------------------------------------------------------------- filters


def test_each_filter_holds_exactly(path: Path) -> None:
    other_pack = PackInfo(name="other", version="2.0.0", sha256="d" * 64)
    bob = structs.replace(about(details="refund"), subject=structs.replace(about().subject, id="bob"))
    of_alice, of_bob = case("refund"), by_rule(evaluation=bob)
    by_other, later = case("refund", pack=other_pack), case("refund", at=NOON + 86_400)
    exceptional = structs.replace(by_rule().floor, traits=Traits(type="exception"))
    exception = case("refund", floor=exceptional)
    record(path, of_alice, of_bob, by_other, later, exception)
    embed(path)
    everything = {of_alice.id, of_bob.id, by_other.id, later.id, exception.id}
    entity = "resource:doc"
    with Reader(path) as reader:
        row = reader.get(of_alice.id) or {}
        entity = row["entity"]
    for filters, expected in (
        (Filters(), everything),
        (Filters(actor="bob"), {of_bob.id}),
        (Filters(actor="user:bob"), {of_bob.id}),
        (Filters(pack="other"), {by_other.id}),
        (Filters(pack="other@2.0.0"), {by_other.id}),
        (Filters(pack=PACK.name), everything - {by_other.id}),
        (Filters(pack="co"), set()),
        (Filters(type="exception"), {exception.id}),
        (Filters(entity=entity), everything),
        (Filters(entity="none"), set()),
        (Filters(since=later_text()), {later.id}),
        (Filters(until=later_text()), everything - {later.id}),
        (Filters(actor="bob", pack="other"), set()),
    ):
        for options in ALONE_AND_WITH:
            answer = search(path, like("refund", 20, filters=filters), **options)
            assert set(ids(answer)) == expected, (filters, options)


def later_text() -> str:
    return datetime.fromtimestamp(NOON + 86_400, UTC).isoformat()


def test_similarity_below_the_least_is_left_out(path: Path) -> None:
    record(path, case("refund of a phone"), case("drop the table"))
    embed(path)
    assert len(ids(search(path, like("refund of a phone", least_similarity=0.9)))) == 1


# ---------------------------------------------------------------- ranking


def pair(path: Path, name: str) -> tuple[str, str]:
    """Two decisions that differ in one component; the older one is the better by that component.

    The newer one would be first without it, because of two equal ones the newer is first.
    """
    better, worse = case("refund of a phone"), case("refund of a phone")
    if name == "judgment_call":
        better = by_model(evaluation=about(details="refund of a phone"))
        worse = by_rule(evaluation=about(details="refund of a phone"))
    if name in ("similarity", "words"):
        worse = case("refund of a broken grey radio")
    if name == "recent":
        worse = case("refund of a phone", at=NOON - 400 * 86_400)
    record(path, better, worse)
    if name == "favourable":
        record(path, sent(records.Outcome(decision_id=better.id, status="SUCCESS")))
    if name == "reviewed":
        record(
            path,
            sent(records.Review(decision_id=better.id, reviewer="carol", verdict="accept")),
        )
    if name == "cited":
        citing = case("another matter")
        record(path, citing, sent(records.Edge(source=citing.id, target=better.id, type="CITES")))
    embed(path)
    return better.id, worse.id


def first_of(path: Path, weights: Weights) -> str:
    return ids(search(path, like("refund of a phone"), weights=weights))[0]


#: Only the component that a test is about counts, so that nothing else decides.
NOTHING = Weights(**dict.fromkeys((each.name for each in structs.fields(Weights)), 0.0))


@pytest.mark.parametrize("name", [each.name for each in structs.fields(Weights)])
def test_each_component_raises_a_precedent_and_without_its_weight_it_does_not(path: Path, name: str) -> None:
    better, worse = pair(path, name)
    assert first_of(path, structs.replace(NOTHING, **{name: 1.0})) == better
    assert first_of(path, NOTHING) != better
    with_default = search(path, like("refund of a phone"))
    scores = {each.id: each.components[name] for each in with_default.precedents}
    assert scores[better] > scores[worse]


@pytest.mark.parametrize("name", ["favourable", "reviewed", "judgment_call", "cited"])
def test_with_the_default_weights_each_merit_raises_a_precedent(path: Path, name: str) -> None:
    better, _ = pair(path, name)
    assert first_of(path, Weights()) == better
    assert first_of(path, structs.replace(Weights(), **{name: 0.0})) != better


def test_the_components_and_weights_that_are_shown_give_the_score(path: Path) -> None:
    pair(path, "cited")
    answer = search(path, like("refund of a phone"))
    for each in answer.precedents:
        total = sum(answer.weights[name] * value for name, value in each.components.items())
        assert each.score == pytest.approx(total, abs=1e-3)
        assert each.components.keys() == answer.weights.keys()


# ---------------------------------------------------------------- statistics


def test_the_statistics_count_outcomes_reviews_values_agents_and_patterns(path: Path) -> None:
    strict = [case("refund of a phone", outcome="require_attestation") for _ in range(4)]
    loose = case("refund of a phone", outcome="allow", allow=True)
    record(path, *strict, loose)
    for number, decision in enumerate([*strict, loose]):
        verdict = "accept" if number else "correct"
        changed = {"decision": "deny"} if number == 0 else {}
        record(
            path,
            sent(records.Review(decision_id=decision.id, reviewer="carol", verdict=verdict, **changed)),  # type: ignore[arg-type]
            sent(records.Outcome(decision_id=decision.id, status="SUCCESS", value=float(number))),
        )
    embed(path)
    statistics = search(path, like("refund of a phone")).statistics
    assert statistics["line"] == (
        "5 similar: 3 require_attestation, 1 allow, 1 deny, 80 % of 5 confirmed by people, "
        "average value 2, 5 of 5 turned out well"
    )
    assert statistics["by_agent"] == [
        {"name": "user:alice", "decisions": 5, "successes": 5, "failures": 0, "average_value": 2.0}
    ]
    assert statistics["patterns"][0]["name"].endswith(": require_attestation")
    assert len(statistics["recent"]) == 3
    assert statistics["recent"][0]["id"] == loose.id


def test_no_precedent_gives_empty_statistics(path: Path) -> None:
    record(path, case("refund"))
    answer = search(path, SimilarQuery(text="nothing like it", filters=Filters(actor="nobody")))
    assert answer.precedents == ()
    assert answer.statistics["line"] == "0 similar"


# ---------------------------------------------------------------- without vectors


def test_without_an_embedder_words_and_fields_are_compared_and_the_answer_says_so(path: Path) -> None:
    refund, table = case("refund of a broken phone"), case("drop the table")
    record(path, refund, table)
    embed(path)
    answer = search(path, like("phone refund", 2), embedder=None, problem="the embedder is missing: run it")
    assert ids(answer)[0] == refund.id
    assert answer.by == ("words", "fields")[: len(answer.by)]
    assert answer.note == "similarity was not compared: the embedder is missing: run it"
    assert {each.similarity for each in answer.precedents} == {None}


def test_without_vectors_and_summaries_the_newest_of_the_same_action_are_found(path: Path) -> None:
    first, second = case("a"), case("b")
    record(path, first, second)
    answer = search(path, like("refund"), embedder=None)
    assert ids(answer) == [second.id, first.id]
    assert answer.by == ("fields",)
    assert {each.how for each in answer.precedents} == {"fields"}


@pytest.mark.parametrize(
    "text", ['"', "a OR b", "NEAR(x y)", "te*", "(", "\0abc", "' OR 1=1 --", "^abc -def"]
)
def test_no_character_of_a_text_is_an_operator(path: Path, text: str) -> None:
    record(path, case("refund"))
    embed(path)
    assert search(path, SimilarQuery(text=text)).statistics["count"] <= 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (SimilarQuery(), "give one of id, question and text"),
        (SimilarQuery(id="x", text="y"), "give one of id, question and text"),
        (SimilarQuery(id="no-such-decision"), "record.id: there is no decision"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(path: Path, query: SimilarQuery, message: str) -> None:
    record(path, case("refund"))
    with pytest.raises(RequestError, match=message):
        search(path, query)


# ---------------------------------------------------------------- the index


def change(seq: int, vector: Any, number: int | None = None) -> Change:
    stored = b"" if vector is None else numpy.asarray(vector, "<f2").tobytes()
    at = "2026-07-01T12:00:00.000Z"
    return Change(
        number or seq, seq, stored, at, "policy_application", "core@1+c", "user:a", f"e:{seq % 1000}"
    )


def unit(count: int, seed: int = 1) -> Any:
    rows = numpy.random.default_rng(seed).standard_normal((count, 384))
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


#: Rows of 100 groups.
ROWS = numpy.repeat(unit(100), 30, axis=0) + 0.6 * unit(3_000, seed=3)


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> PrecedentIndex:
    monkeypatch.setattr(precedent_index, "FEW", 50)
    index = PrecedentIndex(10_000)
    index.add([change(seq, vector) for seq, vector in enumerate(ROWS, start=1)])
    return index


def test_the_search_in_two_steps_finds_what_the_exact_search_finds(filled: PrecedentIndex) -> None:
    for query in ROWS[:20] + 0.1 * unit(20, seed=2):
        near = filled.nearest(query, Filters(), 10)
        exact = filled.exact(query, Filters(), 10)
        assert len({seq for seq, _ in near} & {seq for seq, _ in exact}) >= 9
        assert dict(near)[exact[0][0]] == exact[0][1]


def test_a_filter_decides_before_the_search(filled: PrecedentIndex) -> None:
    query = unit(1, seed=2)[0]
    near = filled.nearest(query, Filters(entity="e:7"), 10)
    assert {seq for seq, _ in near} == {7, 1_007, 2_007}
    without = filled.nearest(query, Filters(), 10, without=[near[0][0], 5])
    assert near[0][0] not in dict(without)


def test_the_cosine_of_a_pair_has_the_same_bits_whatever_else_is_there(filled: PrecedentIndex) -> None:
    query = unit(1, seed=2)[0]
    (best, cosine), *_ = filled.nearest(query, Filters(), 1)
    alone = PrecedentIndex(10)
    alone.add([change(1, ROWS[best - 1])])
    assert alone.nearest(query, Filters(), 1) == [(1, cosine)]
    stored = numpy.asarray(ROWS[best - 1], "<f2").tobytes()
    assert alone.cosines(query, {9: stored}) == {9: cosine}


def test_a_vector_that_is_emptied_or_replaced_is_not_found_any_more(filled: PrecedentIndex) -> None:
    query = ROWS[41]
    assert filled.nearest(query, Filters(), 1)[0][0] == 42
    filled.add([change(42, None, 3_001)])
    assert filled.nearest(query, Filters(), 1)[0][0] != 42
    filled.add([change(42, query, 3_002)])
    assert filled.nearest(query, Filters(), 1)[0][0] == 42
    assert (len(filled), filled.change) == (3_000, 3_002)
    filled.add([change(42, -query, 3_003), change(42, None, 3_004)])
    assert len(filled) == 2_999


def test_of_more_than_the_most_the_newest_decisions_are_kept() -> None:
    index = PrecedentIndex(100)
    rows = unit(250)
    for start in range(0, 250, 10):
        index.add([change(seq, rows[seq - 1]) for seq in range(start + 1, start + 11)])
    assert len(index) <= 110
    assert index.nearest(rows[249], Filters(), 1)[0][0] == 250
    assert index.nearest(rows[0], Filters(), 1)[0][0] != 1


def test_an_empty_index_finds_nothing() -> None:
    index = PrecedentIndex(10)
    assert index.nearest(unit(1)[0], Filters(), 5) == []
    index.add([change(1, None)])
    assert index.nearest(unit(1)[0], Filters(), 5) == []


def test_an_index_that_is_filled_page_by_page_equals_one_that_is_filled_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(path, *(case(f"refund number {n}") for n in range(30)))
    embed(path)
    with Reader(path) as reader:
        whole, pages = Recall(reader, embedder=EMBEDDER), Recall(reader, embedder=EMBEDDER)
        whole.refresh()
        steps: list[int] = []
        monkeypatch.setattr(precedents, "PAGE", 7)
        pages.refresh(steps.append)
        question = EMBEDDER.embed(situation_of(about(details="refund number 7")))
        assert whole.index is not None
        assert pages.index is not None
        near = whole.index.nearest(question, Filters(), 30)
        assert near == pages.index.nearest(question, Filters(), 30)
        assert steps[-1] == len(near) == 30
