"""The journal: recorded before acknowledged, projected as queried, and no change unnoticed."""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import queue
import random
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thor_policy.core import (
    Action,
    Annotations,
    Caller,
    Decision,
    Entity,
    Evaluation,
    Explanation,
    Floor,
    Json,
    ModelInfo,
    PackInfo,
    Scored,
    Timings,
)
from thor_policy.errors import AlreadyRunning, JournalError
from thor_policy.journal import chain, events, schema
from thor_policy.journal.events import Event
from thor_policy.journal.reader import Reader, read_only_uri
from thor_policy.journal.verify import PAGE, Verdict, verify
from thor_policy.journal.writer import MAX_BATCH, Committed, Journal
from thor_policy.testing import HastyJournal

#: How long a test waits for what must come; far more than it takes.
WAIT_S = 60.0
#: 2026-07-01T12:00:00Z.
NOON = 1_782_907_200.0
#: For properties: a slow machine is no fault of the journal.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PACK = PackInfo(name="core", version="1.2.0", sha256="c0ffee" + "0" * 58)
MODEL = ModelInfo(
    name="phi-4-mini",
    sha256="f" * 64,
    quantisation="Q4_K_M",
    architecture="phi3",
    parameters=3_800_000_000,
    build="llama-cpp-python 0.3.36",
    device="cpu",
)
ASKED = Evaluation(
    subject=Entity(type="user", id="alice", properties={"role": "developer", "trust": {"competence": 0.9}}),
    action=Action(name="deploy"),
    resource=Entity(type="env", id="production"),
    context={"team_context": "platform", "details": "the release, on a Friday", "change/~7": [1, 2]},
)
SCORED = Scored(
    label="deny",
    probabilities={"allow": 0.25, "deny": 0.75},
    logits=(1.5, 2.25, -3.0),
    suffix_tokens=(17, 4, 99),
    prefix_tokens=1527,
    prefix_digest="ab" * 32,
    score_ms=12.5,
)
EXPLAINED = Explanation(
    classification="freeze_violation",
    clauses=("R3", "R1"),
    reasoning="Nobody deploys on a Friday.",
    text="deny\nR3,R1\nNobody deploys on a Friday.",
    generated_tokens=9,
    explain_ms=80.5,
)
_numbers = itertools.count(1)


def by_model(**changes: Any) -> Decision:
    """A decision that the model took, not explained yet."""
    fields: dict[str, Any] = {
        "id": f"018f-{next(_numbers):08}",
        "at": NOON,
        "evaluation": ASKED,
        "caller": Caller(transport="ipc", uid=1000, gid=1000, pid=42),
        "outcome": "deny",
        "allow": False,
        "tier": "model",
        "floor": Floor(outcome="allow", final=False, facts={"friday": True}, risk="high"),
        "risk": "high",
        "pack": PACK,
        "model": MODEL,
        "label": "deny",
        "confidence": 0.75,
        "probabilities": SCORED.probabilities,
        "scored": SCORED,
        "timings": Timings(queue_ms=0.5, rules_ms=0.25, score_ms=12.5),
    }
    return Decision(**fields | changes)


def without_model(**changes: Any) -> Decision:
    """A decision for which no model was asked."""
    nothing = {"model": None, "label": None, "confidence": None, "probabilities": {}, "scored": None}
    return by_model(**nothing | {"timings": Timings()} | changes)


def by_rule(**changes: Any) -> Decision:
    """A decision that a rule took alone, with its reason."""
    floor = Floor(
        outcome="deny",
        final=True,
        rules=("freeze",),
        clauses=("R3",),
        because="the freeze is on",
        classification="freeze_violation",
    )
    explanation = Explanation(
        classification="freeze_violation", clauses=("R3",), reasoning="the freeze is on", text=""
    )
    return without_model(**{"tier": "rule", "floor": floor, "explanation": explanation} | changes)


def fallback(**changes: Any) -> Decision:
    """A decision that nobody could take, so that it is the strictest."""
    return without_model(**{"tier": "fallback", "reason_code": "engine_failed"} | changes)


def note(text: str = "", **changes: Any) -> Event:
    """An event that no table shows: it stands on the chain alone."""
    fields: dict[str, Any] = {"kind": "node", "subject_id": "n", "at": NOON, "body": {"text": text}}
    return Event(**fields | changes)


def about(**properties: Json) -> Evaluation:
    """The usual question, with this context."""
    return Evaluation(subject=ASKED.subject, action=ASKED.action, resource=ASKED.resource, context=properties)


class Fates:
    """The callback of a journal: what became of each event, in the order in which it was told."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[list[Committed]] = queue.SimpleQueue()
        self._go_on = threading.Event()
        self._go_on.set()

    def __call__(self, batch: list[Committed]) -> None:
        self._told.put(batch)
        assert self._go_on.wait(WAIT_S)

    @property
    def silent(self) -> bool:
        return self._told.empty()

    def batch(self) -> list[Committed]:
        """The next batch."""
        return self._told.get(timeout=WAIT_S)

    def wait(self, count: int) -> list[Committed]:
        """The fates of the next `count` events, which whole batches must make up."""
        fates: list[Committed] = []
        while len(fates) < count:
            fates += self.batch()
        assert len(fates) == count
        return fates

    @contextmanager
    def one_batch(self, journal: Journal) -> Iterator[None]:
        """What is appended inside arrives while the journal is busy with an event of ours."""
        self._go_on.clear()
        journal.append(note("keeps the journal busy"))
        self.batch()
        try:
            yield
        finally:
            self._go_on.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def fates() -> Fates:
    return Fates()


@pytest.fixture
def journal(path: Path, fates: Fates) -> Iterator[Journal]:
    with Journal(path, on_committed=fates) as journal:
        yield journal


def record(path: Path, *what: Decision | Event, erasable: tuple[str, ...] = ()) -> list[Committed]:
    """Open the journal, record all this, and close it. No test pulls the plug, so nothing is synced."""
    fates = Fates()
    with Journal(path, on_committed=fates, synchronous="OFF", erasable=erasable) as journal:
        for one in what:
            journal.append(events.decided(one) if isinstance(one, Decision) else one)
    told = fates.wait(len(what))
    assert [fate.error for fate in told] == [None] * len(what)
    return told


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a process beside the daemon sees."""
    with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
        return connection.execute(sql, values).fetchall()


def decision_row(path: Path, decision_id: str) -> dict[str, Any]:
    """The stored row as it stands, nothing decoded."""
    with closing(sqlite3.connect(read_only_uri(path), uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return dict(
            connection.execute("SELECT * FROM decisions WHERE decision_id = ?", (decision_id,)).fetchone()
        )


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that may write, as somebody has who owns the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        yield connection


@contextmanager
def stalled(path: Path) -> Iterator[None]:
    """While this lasts no commit comes through: somebody else holds the write lock."""
    with writing(path) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


# ---------------------------------------------------------------- recorded, then acknowledged


def test_a_decision_is_acknowledged_only_after_its_commit(path: Path) -> None:
    seen: queue.SimpleQueue[tuple[list[Committed], list[Any], list[Any]]] = queue.SimpleQueue()

    def look(batch: list[Committed]) -> None:
        stored = rows(path, "SELECT seq FROM events ORDER BY seq")
        shown = rows(path, "SELECT decision_id, reasoning FROM decisions ORDER BY seq")
        seen.put((batch, stored, shown))

    decision = by_model()
    with Journal(path, on_committed=look) as journal:
        journal.decided(decision, ticket=7)
        (fate,), stored, shown = seen.get(timeout=WAIT_S)
        assert (fate.ticket, fate.kind, fate.seq, fate.error) == (7, "decision", 1, None)
        assert stored == [(1,)]
        assert shown == [(decision.id, None)]

        journal.explained(decision.id, EXPLAINED, NOON + 1, ticket=7)
        (fate,), stored, shown = seen.get(timeout=WAIT_S)
        assert (fate.ticket, fate.kind, fate.seq, fate.error) == (7, "explanation", 2, None)
        assert stored == [(1,), (2,)]
        assert shown == [(decision.id, EXPLAINED.reasoning)]


def test_nothing_is_acknowledged_while_nothing_can_be_committed(
    path: Path, journal: Journal, fates: Fates
) -> None:
    with stalled(path):
        journal.decided(by_model(), ticket=1)
        assert fates.silent
        assert rows(path, "SELECT count(*) FROM events") == [(0,)]
    (fate,) = fates.wait(1)
    assert fate.seq == 1
    assert fate.commit_ms > 0


def test_a_hasty_journal_acknowledges_before_the_commit(path: Path, fates: Fates) -> None:
    """It is the counter-example: the tests above would find it out."""
    with HastyJournal(path, on_committed=fates) as journal:
        with stalled(path):
            journal.decided(by_model(), ticket=1)
            (fate,) = fates.wait(1)
            assert (fate.ticket, fate.error) == (1, None)
            assert rows(path, "SELECT count(*) FROM events") == [(0,)]
        journal.decided(by_model(), ticket=2)
    assert [fate.ticket for fate in fates.wait(1)] == [2]
    assert rows(path, "SELECT count(*) FROM events") == [(2,)]


def test_append_never_waits_for_the_disk(path: Path, journal: Journal, fates: Fates) -> None:
    with stalled(path):
        started = time.monotonic()
        for number in range(600):
            journal.append(note(str(number)))
        assert time.monotonic() - started < 2
        assert fates.silent
        assert journal.committed_events == 0
        assert journal.waiting >= 600 - MAX_BATCH
    told = fates.wait(600)
    assert [fate.seq for fate in told] == list(range(1, 601))
    assert rows(path, "SELECT body FROM events ORDER BY seq") == [
        (f'{{"text":"{number}"}}',) for number in range(600)
    ]
    assert journal.batches <= 4
    assert verify(path).ok


def test_what_arrives_during_a_commit_is_the_next_batch(journal: Journal, fates: Fates) -> None:
    with fates.one_batch(journal):
        for number in range(100):
            journal.append(note(ticket=number))
    assert [fate.ticket for fate in fates.batch()] == list(range(100))
    assert (journal.batches, journal.committed_events, journal.seq) == (2, 101, 101)


def test_a_batch_is_bounded(journal: Journal, fates: Fates) -> None:
    with fates.one_batch(journal):
        for _ in range(MAX_BATCH + 1):
            journal.append(note())
    assert len(fates.batch()) == MAX_BATCH
    assert len(fates.batch()) == 1


def test_events_of_many_threads_keep_the_order_of_each(path: Path, journal: Journal, fates: Fates) -> None:
    def append_all(name: int) -> None:
        for number in range(50):
            journal.append(note(subject_id=str(name), body={"number": number}, ticket=name))

    threads = [threading.Thread(target=append_all, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    told = fates.wait(400)
    assert [fate.seq for fate in told] == list(range(1, 401))
    for name in range(8):
        stored = rows(path, "SELECT seq, body FROM events WHERE subject_id = ? ORDER BY seq", str(name))
        assert [body for _, body in stored] == [f'{{"number":{number}}}' for number in range(50)]
        assert [seq for seq, _ in stored] == [fate.seq for fate in told if fate.ticket == name]
    assert verify(path).ok


@pytest.mark.parametrize(("chosen", "level"), [({}, 2), ({"synchronous": "NORMAL"}, 1)])
def test_a_commit_is_synced_unless_the_operator_chose_otherwise(
    path: Path, chosen: dict[str, str], level: int
) -> None:
    with Journal(path, on_committed=Fates(), **chosen) as journal:
        assert journal._connection.execute("PRAGMA synchronous").fetchall() == [(level,)]


def test_close_commits_what_was_appended_and_may_be_called_twice(path: Path, fates: Fates) -> None:
    journal = Journal(path, on_committed=fates)
    for number in range(1_000):
        journal.append(note(ticket=number))
    journal.close()
    assert not journal.alive
    assert [fate.ticket for fate in fates.wait(1_000)] == list(range(1_000))
    assert verify(path).events == 1_000
    journal.close()


def test_close_says_so_when_it_cannot_drain(path: Path, journal: Journal, fates: Fates) -> None:
    with stalled(path):
        journal.append(note())
        with pytest.raises(JournalError, match=r"did not drain within 0\.01 s"):
            journal.close(timeout_s=0.01)
    assert fates.wait(1)[0].seq == 1
    journal.close()


def test_every_event_says_where_and_when_it_was_written(path: Path) -> None:
    before_ns = time.monotonic_ns()
    record(path, note(at=NOON), note(at=NOON + 0.25))
    stored = rows(path, "SELECT seq, at, boot_id, mono_ns FROM events ORDER BY seq")
    assert [row[:2] for row in stored] == [
        (1, "2026-07-01T12:00:00.000000Z"),
        (2, "2026-07-01T12:00:00.250000Z"),
    ]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert {row[2] for row in stored} == {boot_id}
    assert before_ns < stored[0][3] < stored[1][3] < time.monotonic_ns()


# ---------------------------------------------------------------- the table people query

#: The columns by which people and their scripts know a decision; none may be renamed.
PROMISED = (
    "decision_id timestamp situation team_context model_name model_version prompt_version decision "
    "classification risk_level reasoning full_response expected_decision decision_correct "
    "reasoning_coverage reviewed review_decision review_reasoning review_timestamp scenario_id tags"
)


def test_decisions_has_every_promised_column(path: Path) -> None:
    record(path)
    columns = {name for _, name, *_ in rows(path, "PRAGMA table_info(decisions)")}
    assert columns >= set(PROMISED.split())


@pytest.mark.parametrize("column", ["timestamp", "reviewed", "decision_correct"])
def test_decisions_has_the_promised_indexes(path: Path, column: str) -> None:
    record(path)
    first = {
        rows(path, f"PRAGMA index_info({name})")[0][2]
        for _, name, *_ in rows(path, "PRAGMA index_list(decisions)")
    }
    assert column in first


def test_a_decision_by_the_model(path: Path) -> None:
    decision = by_model(
        annotations=Annotations(scenario_id="s-7", expected=("deny", "require_mfa"), tags=("night", "ci"))
    )
    record(path, decision)
    assert decision_row(path, decision.id) == {
        "decision_id": decision.id,
        "seq": 1,
        "timestamp": "2026-07-01T12:00:00.000000Z",
        "situation": events.encode(ASKED),
        "team_context": "platform",
        "model_name": "phi-4-mini",
        "model_version": "Q4_K_M",
        "prompt_version": "core@1.2.0+c0ffee000000",
        "decision": "deny",
        "classification": None,
        "risk_level": "high",
        "reasoning": None,
        "full_response": None,
        "expected_decision": "deny|require_mfa",
        "decision_correct": 1,
        "reasoning_coverage": None,
        "reviewed": 0,
        "review_decision": None,
        "review_reasoning": None,
        "review_timestamp": None,
        "scenario_id": "s-7",
        "tags": '["night","ci"]',
        "allow": 0,
        "tier": "model",
        "reason_code": None,
        "floor": "allow",
        "label": "deny",
        "confidence": 0.75,
        "probabilities": '{"allow":0.25,"deny":0.75}',
        "clauses": "[]",
        "subject_type": "user",
        "subject_id": "alice",
        "action": "deploy",
        "resource_type": "env",
        "resource_id": "production",
        "caller_uid": 1000,
        "pack_name": "core",
        "pack_sha256": PACK.sha256,
        "model_sha256": MODEL.sha256,
        "queue_ms": 0.5,
        "rules_ms": 0.25,
        "score_ms": 12.5,
        "explain_ms": None,
    }


def test_a_decision_by_rule_names_its_clauses_and_no_model(path: Path) -> None:
    decision = by_rule()
    record(path, decision)
    row = decision_row(path, decision.id)
    assert (row["decision"], row["tier"], row["floor"], row["allow"]) == ("deny", "rule", "deny", 0)
    assert (row["classification"], row["reasoning"]) == ("freeze_violation", "the freeze is on")
    assert row["clauses"] == '["R3"]'
    for column in ("model_name", "model_version", "model_sha256", "label", "confidence", "reason_code"):
        assert row[column] is None
    assert (row["probabilities"], row["score_ms"]) == ("{}", 0.0)


def test_a_fallback_says_why(path: Path) -> None:
    decision = fallback()
    record(path, decision)
    row = decision_row(path, decision.id)
    assert (row["decision"], row["tier"], row["reason_code"]) == ("deny", "fallback", "engine_failed")
    assert row["model_name"] is None


def test_an_allow_is_marked(path: Path) -> None:
    decision = by_model(outcome="allow", allow=True)
    record(path, decision)
    row = decision_row(path, decision.id)
    assert (row["decision"], row["allow"]) == ("allow", 1)


@pytest.mark.parametrize(
    ("expected", "shown", "correct"),
    [
        ((), None, None),
        (("deny",), "deny", 1),
        (("allow", "deny"), "allow|deny", 1),
        (("allow",), "allow", 0),
    ],
)
def test_an_expectation_is_compared(
    path: Path, expected: tuple[str, ...], shown: str | None, correct: int | None
) -> None:
    decision = by_model(annotations=Annotations(expected=expected))
    record(path, decision)
    row = decision_row(path, decision.id)
    assert (row["expected_decision"], row["decision_correct"]) == (shown, correct)


@pytest.mark.parametrize(
    ("context", "shown"),
    [
        ({}, None),
        ({"team_context": None}, None),
        ({"team_context": "night shift"}, "night shift"),
        ({"team_context": {"on_call": ["bo"]}}, '{"on_call":["bo"]}'),
        ({"team_context": 5}, "5"),
    ],
)
def test_the_team_context_is_text_or_json(path: Path, context: dict[str, Json], shown: str | None) -> None:
    decision = by_model(evaluation=about(**context))
    record(path, decision)
    assert decision_row(path, decision.id)["team_context"] == shown
    assert verify(path).ok


def test_an_explanation_completes_its_decision_and_no_other(path: Path) -> None:
    decision, other = by_model(), by_model()
    record(path, decision, other)
    before, untouched = decision_row(path, decision.id), decision_row(path, other.id)
    record(path, events.explained(decision.id, EXPLAINED, NOON + 1))
    assert decision_row(path, decision.id) == before | {
        "classification": "freeze_violation",
        "clauses": '["R3","R1"]',
        "reasoning": "Nobody deploys on a Friday.",
        "full_response": EXPLAINED.text,
        "explain_ms": 80.5,
    }
    assert decision_row(path, other.id) == untouched
    assert verify(path).ok


def test_the_event_of_a_decision_holds_all_that_derives_it_again(path: Path) -> None:
    record(path, by_model())
    ((text,),) = rows(path, "SELECT body FROM events")
    body = events.decode(text)
    assert body["prompt"] == {
        "prefix_digest": SCORED.prefix_digest,
        "prefix_tokens": SCORED.prefix_tokens,
        "suffix_tokens": list(SCORED.suffix_tokens),
        "logits": list(SCORED.logits),
    }
    assert body["evaluation"]["context"] == ASKED.context
    assert body["floor"]["facts"] == {"friday": True}
    assert body["caller"]["uid"] == 1000
    assert (body["pack"]["sha256"], body["model"]["sha256"]) == (PACK.sha256, MODEL.sha256)


def test_packs_and_models_are_events_of_their_own(path: Path) -> None:
    record(path, events.pack_activated(PACK, NOON), events.model_loaded(MODEL, NOON))
    assert rows(path, "SELECT kind, subject_id FROM events ORDER BY seq") == [
        ("pack_activated", PACK.sha256),
        ("model_loaded", MODEL.sha256),
    ]


# ---------------------------------------------------------------- times


def test_a_timestamp_is_rfc_3339_in_utc() -> None:
    assert events.timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert events.timestamp(NOON + 0.000001) == "2026-07-01T12:00:00.000001Z"


#: Microseconds since 1970, to the year 2200.
microseconds = st.integers(0, 7_258_118_400_000_000)


@patiently
@given(microseconds, microseconds)
def test_timestamps_sort_as_text(one: int, other: int) -> None:
    first, second = events.timestamp(one / 1e6), events.timestamp(other / 1e6)
    for text in (first, second):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert (first < second) == (one < other)
    assert round(datetime.fromisoformat(first).timestamp() * 1e6) == one


# ---------------------------------------------------------------- erasable values


def escaped(part: str) -> str:
    """One step of a JSON pointer."""
    return part.replace("~", "~0").replace("/", "~1")


def pointers_into(value: Json, to_here: str = "") -> Iterator[str]:
    """The JSON pointer of everything that stands in nested objects."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{to_here}/{escaped(name)}"
            yield from pointers_into(inner, f"{to_here}/{escaped(name)}")


names = st.text(st.sampled_from("ab~/01 é"), max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def bodies_and_pointers(draw: st.DrawFn) -> tuple[dict[str, Json], list[str]]:
    """A body, and pointers in any order: to what is there, within one another, and to nothing."""
    body = draw(st.dictionaries(names, values, max_size=4))
    nowhere = st.lists(names, min_size=1, max_size=3).map(
        lambda parts: "".join(f"/{escaped(p)}" for p in parts)
    )
    inside = sorted(set(pointers_into(body)))
    pointer = st.sampled_from(inside) | nowhere if inside else nowhere
    return body, draw(st.lists(pointer, max_size=5))


@patiently
@given(bodies_and_pointers())
def test_what_was_split_can_be_joined(case: tuple[dict[str, Json], list[str]]) -> None:
    body, pointers = case
    before = copy.deepcopy(body)
    kept, private = events.split(body, pointers)
    assert body == before
    assert not set(pointers) & set(pointers_into(kept))
    assert set(private) <= set(pointers) & set(pointers_into(body))
    stored = events.decode(events.encode(kept)), events.decode(events.encode(private))
    assert events.join(*stored) == before


def test_pointers_are_those_of_rfc_6901() -> None:
    body = {"a/b": {"m~n": 1, "~1": 2}, "": 3, "list": [{"x": 4}]}
    assert events.split(body, ["/a~1b/m~0n", "/a~1b/~01", "/"]) == (
        {"a/b": {}, "list": [{"x": 4}]},
        {"/a~1b/m~0n": 1, "/a~1b/~01": 2, "/": 3},
    )
    for missing in ("/no", "/a~1b/no", "/a~1b/m~0n/deeper", "/list/0/x"):
        assert events.split(body, [missing]) == (body, {})


def test_an_erasable_value_leaves_the_body_and_its_digest_stays(path: Path) -> None:
    decision = by_model()
    record(path, decision, erasable=("/evaluation/context/details", "/evaluation/context/change~1~07", "/no"))
    ((text,),) = rows(path, "SELECT body FROM events")
    ((seq, salt, value),) = rows(path, "SELECT seq, salt, value FROM private")
    assert "Friday" not in text
    assert events.decode(text)["evaluation"]["context"] == {"team_context": "platform"}
    assert seq == 1
    assert events.decode(value) == {
        "/evaluation/context/details": "the release, on a Friday",
        "/evaluation/context/change~1~07": [1, 2],
    }
    assert events.decode(text)["private"] == hashlib.sha256(salt + value.encode()).hexdigest()
    assert events.decode(decision_row(path, decision.id)["situation"])["context"] == ASKED.context
    assert verify(path).ok


def test_equal_values_have_different_digests(path: Path) -> None:
    record(path, note("secret"), note("secret"), erasable=("/text",))
    salts = {salt for (salt,) in rows(path, "SELECT salt FROM private")}
    digests = {events.decode(body)["private"] for (body,) in rows(path, "SELECT body FROM events")}
    assert (len(salts), len(digests)) == (2, 2)
    assert {len(salt) for salt in salts} == {16}


@pytest.mark.parametrize("erasable", [(), ("/nowhere",), ("/evaluation/subject/id/deeper",)])
def test_without_a_pointer_that_fits_nothing_moves(path: Path, erasable: tuple[str, ...]) -> None:
    record(path, by_model(), erasable=erasable)
    assert rows(path, "SELECT * FROM private") == []
    ((text,),) = rows(path, "SELECT body FROM events")
    assert "private" not in events.decode(text)


@pytest.mark.parametrize(
    "erasable",
    [
        ("/evaluation/subject/id", "/evaluation/resource/id"),
        ("/evaluation/subject/properties/role", "/evaluation/subject", "/evaluation"),
        ("/probabilities/allow", "/annotations/tags", "/caller/uid", "/outcome", "/decision_id"),
        ("/evaluation/context/team_context", "/reasoning", "/text", "/clauses", "/classification"),
    ],
)
def test_whatever_is_erasable_the_rows_can_be_rebuilt(path: Path, erasable: tuple[str, ...]) -> None:
    told = by_model(evaluation=about(team_context={"b": 1, "a": [2]}, z=1, a=2))
    record(path, told, events.explained(told.id, EXPLAINED, NOON), by_rule(), fallback(), erasable=erasable)
    assert len(rows(path, "SELECT * FROM private")) >= 3
    assert verify(path) == Verdict(
        events=4, head=verify(path).head, chain_ok=True, projections_ok=True, bad_seq=None, problem=None
    )
    row = decision_row(path, told.id)
    assert (row["subject_id"], row["resource_id"], row["decision"]) == ("alice", "production", "deny")
    assert row["reasoning"] == EXPLAINED.reasoning


# ---------------------------------------------------------------- the chain

COLUMNS = st.tuples(
    st.binary(min_size=32, max_size=32),
    st.integers(1, 2**62),
    st.text(max_size=8),
    st.text(max_size=8),
    st.integers(0, 2**62),
    st.text(max_size=8),
    st.text(max_size=8),
    st.text(max_size=8),
)


def test_the_hash_is_what_it_was_in_every_version() -> None:
    link = chain.hash_of(chain.GENESIS, 1, "2026-07-01T12:00:00.000000Z", "b", 5, "node", "é", '{"a":1}')
    assert link.hex() == "40d9632c52c2b585c5a71265dfcd183e04caac0f24b6e246b4f9be092f192088"


@patiently
@given(COLUMNS, st.data())
def test_the_hash_covers_every_column(columns: tuple[Any, ...], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(columns) - 1))
    other = data.draw(COLUMNS.filter(lambda drawn: drawn[place] != columns[place]))
    changed = (*columns[:place], other[place], *columns[place + 1 :])
    assert chain.hash_of(*changed) != chain.hash_of(*columns)


@patiently
@given(COLUMNS, st.integers(0, 8))
def test_text_cannot_move_from_one_column_to_the_next(columns: tuple[Any, ...], cut: int) -> None:
    *others, kind, subject_id, body = columns
    text = kind + subject_id
    moved = (*others, text[:cut], text[cut:], body)
    assert (chain.hash_of(*moved) == chain.hash_of(*columns)) == (moved == columns)


def test_each_event_stands_on_the_one_before(path: Path) -> None:
    record(path, *mixed_events())
    head = chain.GENESIS
    for row in map(chain.Row._make, rows(path, "SELECT * FROM events ORDER BY seq")):
        assert row.prev_hash == head
        assert row.hash == chain.hash_of(*[head, *row[:7]])
        head = row.hash
    assert verify(path).head == head.hex()


def test_reopening_continues_the_chain(path: Path, fates: Fates) -> None:
    record(path, by_model(), note())
    head = verify(path).head
    with Journal(path, on_committed=fates) as journal:
        assert journal.seq == 2
        journal.append(note())
        assert fates.wait(1)[0].seq == 3
        assert journal.seq == 3
    assert rows(path, "SELECT lower(hex(prev_hash)) FROM events WHERE seq = 3") == [(head,)]
    assert verify(path).ok


# ---------------------------------------------------------------- tampering

#: Values of the mixed events that are set aside.
ERASABLE = ("/evaluation/context/details", "/evaluation/subject/id")


def mixed_events() -> list[Event]:
    """Sixty events of every kind that is written today."""
    mixed: list[Event] = []
    for number in range(12):
        asked = by_model(
            evaluation=about(details=f"change {number}", team_context="platform"),
            annotations=Annotations(scenario_id=f"s-{number}", expected=("deny",), tags=("night",)),
        )
        mixed += [
            events.decided(asked),
            events.decided(by_rule(at=NOON + number)),
            events.explained(asked.id, EXPLAINED, NOON + number),
            events.decided(fallback())
            if number % 2
            else events.decided(by_model(outcome="allow", allow=True)),
            (note(f"note {number}"), events.pack_activated(PACK, NOON), events.model_loaded(MODEL, NOON))[
                number % 3
            ],
        ]
    return mixed


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound journal, closed; whoever tampers with it takes a copy."""
    path = tmp_path_factory.mktemp("original") / "journal.db"
    record(path, *mixed_events(), erasable=ERASABLE)
    assert verify(path).ok
    return path


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Callable[[], Path]:
    """Gives fresh copies of the original."""

    def fresh() -> Path:
        return Path(shutil.copy(original, tmp_path / "copy.db"))

    return fresh


def another(value: Any, chance: random.Random) -> Any:
    """A value of the same type that differs a little."""
    if value is None:
        return "1"  # a column of numbers stores it as one
    if isinstance(value, int):
        return value + chance.choice([-1, 1, 1 << chance.randrange(40)])
    if isinstance(value, float):
        return value + chance.choice([-0.5, 1e-9, 7.0])
    raw = value if isinstance(value, bytes) else value.encode()
    place = chance.randrange(len(raw) + 1)
    grown = raw[:place] + bytes([chance.randrange(32, 127)]) + raw[place:]
    changed = chance.choice([grown, grown, raw[:place] + raw[place + 1 :] if place < len(raw) else grown])
    return changed if isinstance(value, bytes) else changed.decode("utf-8", "replace")


def pick(db: sqlite3.Connection, chance: random.Random, table: str, column: str) -> tuple[int, Any]:
    """rowid and value of one column, in a row of anybody's choosing."""
    return chance.choice(db.execute(f"SELECT rowid, {column} FROM {table} ORDER BY rowid").fetchall())


def change_a_column(db: sqlite3.Connection, chance: random.Random) -> None:
    column = chance.choice(["at", "boot_id", "mono_ns", "kind", "subject_id", "body", "prev_hash", "hash"])
    row, value = pick(db, chance, "events", column)
    db.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (another(value, chance), row))


def change_any_byte(db: sqlite3.Connection, chance: random.Random) -> None:
    table, column = chance.choice(
        [("events", name) for name in ("at", "kind", "subject_id", "body", "body", "prev_hash", "hash")]
        + [("private", "salt"), ("private", "value")]
        + [("decisions", name) for name in ("decision_id", "situation", "decision", "clauses", "subject_id")]
    )
    row, raw = pick(db, chance, table, f"CAST({column} AS BLOB)")
    place = chance.randrange(len(raw))
    flipped = raw[:place] + bytes([raw[place] ^ chance.randrange(1, 256)]) + raw[place + 1 :]
    value = "?" if column in ("salt", "prev_hash", "hash") else "CAST(? AS TEXT)"
    db.execute(f"UPDATE {table} SET {column} = {value} WHERE rowid = ?", (flipped, row))


def move_an_event(db: sqlite3.Connection, chance: random.Random) -> None:
    row, _ = pick(db, chance, "events", "seq")
    db.execute("UPDATE events SET seq = ? WHERE seq = ?", (chance.choice([-5, 0, 62, 9_999]), row))


def swap_two_events(db: sqlite3.Connection, chance: random.Random) -> None:
    one, other = sorted(chance.sample(range(1, 61), 2))
    for old, new in ((one, -1), (other, one), (-1, other)):
        db.execute("UPDATE events SET seq = ? WHERE seq = ?", (new, old))


def remove_an_event(db: sqlite3.Connection, chance: random.Random) -> None:
    seq = chance.randrange(1, 60)
    db.execute("DELETE FROM events WHERE seq = ?", (seq,))
    if chance.random() < 0.5:  # and close the gap
        db.execute("UPDATE events SET seq = -seq WHERE seq > ?", (seq,))
        db.execute("UPDATE events SET seq = -seq - 1 WHERE seq < 0")


def insert_an_event(db: sqlite3.Connection, chance: random.Random) -> None:
    seq, copied_from = chance.choice([0, -3, 61, chance.randrange(1, 61)]), chance.randrange(1, 61)
    if seq >= 1:  # and make room
        db.execute("UPDATE events SET seq = -seq WHERE seq >= ?", (seq,))
        db.execute("UPDATE events SET seq = -seq + 1 WHERE seq < 0")
    db.execute(
        "INSERT INTO events SELECT ?, at, boot_id, mono_ns, kind, 'x' || subject_id, body, prev_hash, hash "
        "FROM events WHERE seq = ?",
        (seq, copied_from + (1 <= seq <= copied_from)),
    )


def change_a_private_value(db: sqlite3.Connection, chance: random.Random) -> None:
    column = chance.choice(["seq", "salt", "value"])
    row, value = pick(db, chance, "private", column)
    new = -value if column == "seq" else another(value, chance)
    db.execute(f"UPDATE private SET {column} = ? WHERE seq = ?", (new, row))


def swap_two_private_values(db: sqlite3.Connection, chance: random.Random) -> None:
    one, other = chance.sample([row for (row,) in db.execute("SELECT seq FROM private")], 2)
    for old, new in ((one, -1), (other, one), (-1, other)):
        db.execute("UPDATE private SET seq = ? WHERE seq = ?", (new, old))


def remove_a_private_value(db: sqlite3.Connection, chance: random.Random) -> None:
    db.execute("DELETE FROM private WHERE seq = ?", (pick(db, chance, "private", "seq")[0],))


def add_a_private_value(db: sqlite3.Connection, chance: random.Random) -> None:
    taken = {row for (row,) in db.execute("SELECT seq FROM private")}
    seq = chance.choice([seq for seq in range(-1, 63) if seq not in taken])
    db.execute("INSERT INTO private VALUES (?, ?, ?)", (seq, chance.randbytes(16), '{"/text":"planted"}'))


def change_a_decision(db: sqlite3.Connection, chance: random.Random) -> None:
    column = chance.choice([name for _, name, *_ in db.execute("PRAGMA table_info(decisions)")])
    row, value = pick(db, chance, "decisions", column)
    db.execute(f"UPDATE decisions SET {column} = ? WHERE rowid = ?", (another(value, chance), row))


def swap_two_decisions(db: sqlite3.Connection, chance: random.Random) -> None:
    one, other = chance.sample([row for (row,) in db.execute("SELECT decision_id FROM decisions")], 2)
    for old, new in ((one, "-"), (other, one), ("-", other)):
        db.execute("UPDATE decisions SET decision_id = ? WHERE decision_id = ?", (new, old))


def remove_a_decision(db: sqlite3.Connection, chance: random.Random) -> None:
    db.execute("DELETE FROM decisions WHERE rowid = ?", (pick(db, chance, "decisions", "seq")[0],))


def add_a_decision(db: sqlite3.Connection, chance: random.Random) -> None:
    columns = [name for _, name, *_ in db.execute("PRAGMA table_info(decisions)")][1:]
    row, _ = pick(db, chance, "decisions", "seq")
    db.execute(
        f"INSERT INTO decisions SELECT 'planted', {', '.join(columns)} FROM decisions WHERE rowid = ?", (row,)
    )


TAMPERINGS = (
    change_a_column,
    change_any_byte,
    move_an_event,
    swap_two_events,
    remove_an_event,
    insert_an_event,
    change_a_private_value,
    swap_two_private_values,
    remove_a_private_value,
    add_a_private_value,
    change_a_decision,
    swap_two_decisions,
    remove_a_decision,
    add_a_decision,
)


def content(db: sqlite3.Connection) -> bytes:
    """A digest of everything that is stored."""
    db.text_factory = bytes
    digest = hashlib.sha256()
    for table in ("events", "private", "decisions"):
        digest.update(repr(db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()).encode())
    return digest.digest()


#: Each kind of tampering is tried as often, on a fresh copy: 840 attempts in all.
ATTEMPTS = 60


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_tampering_is_found(
    original: Path,
    copied: Callable[[], Path],
    tamper: Callable[[sqlite3.Connection, random.Random], None],
) -> None:
    with writing(original) as db:
        untouched = content(db)
    contents = set()
    for attempt in range(ATTEMPTS):
        path = copied()
        with writing(path) as db:
            tamper(db, random.Random(f"{tamper.__name__} {attempt}"))
            contents.add(content(db))
        verdict = verify(path)
        assert not verdict.ok, f"attempt {attempt} was not found"
        assert verdict.problem
    assert untouched not in contents
    assert len(contents) > ATTEMPTS / 3, "most attempts were the same one"


def decision_columns() -> list[str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        schema.migrate(db)
        return [name for _, name, *_ in db.execute("PRAGMA table_info(decisions)")]


@pytest.mark.parametrize("column", decision_columns())
def test_an_edit_of_any_column_of_a_decision_is_found(copied: Callable[[], Path], column: str) -> None:
    chance = random.Random(column)
    for _ in range(3):
        path = copied()
        with writing(path) as db:
            row, value = pick(db, chance, "decisions", column)
            db.execute(f"UPDATE decisions SET {column} = ? WHERE rowid = ?", (another(value, chance), row))
        verdict = verify(path)
        assert (verdict.chain_ok, verdict.projections_ok) == (True, False)
        assert "decision" in str(verdict.problem)


@pytest.mark.parametrize(
    ("sql", "bad_seq", "problem"),
    [
        (
            "UPDATE events SET subject_id = 'x' WHERE seq = 7",
            7,
            "event 7: its content does not match its hash",
        ),
        ("DELETE FROM events WHERE seq = 7", 7, "event 7: it is missing"),
        (
            "UPDATE events SET prev_hash = x'00' WHERE seq = 7",
            7,
            "event 7: it does not follow the event before",
        ),
        ("UPDATE events SET seq = 0 WHERE seq = 60", 0, "event 0: it stands before the first event"),
        ("UPDATE private SET value = '{}' WHERE seq = 6", 6, "event 6: its private value was changed"),
        ("DELETE FROM private WHERE seq = 6", 6, "event 6: its private value is gone"),
        ("INSERT INTO private VALUES (3, x'', '{}')", None, "a private value belongs to no event"),
        ("UPDATE decisions SET decision = 'allow' WHERE seq = 2", None, "is not what its events say"),
        ("DELETE FROM decisions WHERE seq = 2", None, "is missing, or is not what its events say"),
    ],
)
def test_the_verdict_says_what_is_wrong_and_where(
    copied: Callable[[], Path], sql: str, bad_seq: int | None, problem: str
) -> None:
    path = copied()
    with writing(path) as db:
        assert db.execute(sql).rowcount == 1
    verdict = verify(path)
    assert verdict.bad_seq == bad_seq
    assert problem in str(verdict.problem)
    assert verdict.chain_ok == (bad_seq is None)
    assert not verdict.projections_ok


def test_bytes_cannot_move_between_a_salt_and_its_value(tmp_path: Path) -> None:
    """Salt and value are hashed as one run of bytes, so the salt's length is part of what is checked."""
    path = tmp_path / "journal.db"
    record(path, note("secret"), erasable=("/text",))
    with writing(path) as db:
        ((salt, value),) = db.execute("SELECT salt, value FROM private").fetchall()
        db.execute("UPDATE private SET salt = ?, value = ?", (salt + value[:1].encode(), value[1:]))
    assert verify(path).problem == "event 1: its private value was changed"


def cut_tail(path: Path, first: int) -> None:
    with writing(path) as db:
        db.execute("DELETE FROM events WHERE seq >= ?", (first,))
        db.execute("DELETE FROM private WHERE seq >= ?", (first,))
        db.execute("DELETE FROM decisions WHERE seq >= ?", (first,))


def test_a_cut_tail_is_seen_only_by_who_kept_the_head(copied: Callable[[], Path]) -> None:
    """The limit of a bare chain: what was never kept elsewhere cannot be missed."""
    path = copied()
    kept = verify(path)
    assert (kept.events, kept.ok) == (60, True)
    cut_tail(path, 60)
    cut = verify(path)
    assert cut.ok
    assert (cut.events, cut.head) != (kept.events, kept.head)


def test_a_cut_tail_whose_decisions_stay_is_found(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        db.execute("DELETE FROM events WHERE seq >= 56")
    assert not verify(path).ok


def test_a_chain_stamped_anew_is_seen_only_by_who_kept_the_head(copied: Callable[[], Path]) -> None:
    """The other limit: whoever can write the whole file can write another history."""
    path = copied()
    kept = verify(path)
    with writing(path) as db:
        db.execute("""UPDATE events SET body = '{"text":"another story"}' WHERE kind = 'node' AND seq = 5""")
        head = chain.GENESIS
        for row in map(chain.Row._make, db.execute("SELECT * FROM events ORDER BY seq").fetchall()):
            link = chain.hash_of(*[head, *row[:7]])
            db.execute("UPDATE events SET prev_hash = ?, hash = ? WHERE seq = ?", (head, link, row.seq))
            head = link
    assert verify(path).ok
    assert verify(path).head != kept.head


def test_a_kept_head_stays_on_the_chain_that_grows(copied: Callable[[], Path]) -> None:
    path = copied()
    kept = verify(path)
    record(path, note(), by_rule())
    assert rows(path, "SELECT lower(hex(hash)) FROM events WHERE seq = ?", kept.events) == [(kept.head,)]
    assert verify(path).ok


# ---------------------------------------------------------------- verification


def test_an_empty_journal_is_sound(path: Path) -> None:
    record(path)
    assert verify(path) == Verdict(events=0, head="00" * 32, chain_ok=True, projections_ok=True)


def test_a_missing_file_is_no_journal(path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal at"):
        verify(path)
    assert not path.exists()


@pytest.mark.parametrize("body", [b"", b"GGUF" + bytes(8_000), b"SQLite format 3\0" + bytes(4_000)])
def test_another_file_is_no_journal(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    for open_it in (verify, Reader):
        with pytest.raises(JournalError, match="cannot be read as a journal"):
            open_it(path)
    assert path.read_bytes() == body


def test_another_database_is_no_journal(path: Path) -> None:
    with writing(path) as db:
        db.execute("CREATE TABLE somebody (elses)")
    for open_it in (verify, Reader):
        with pytest.raises(JournalError, match="cannot be read as a journal"):
            open_it(path)


def test_verification_reads_pages_and_holds_nothing_between_them(path: Path) -> None:
    record(path, *(note() for _ in range(2 * PAGE)), by_rule())
    done: list[int] = []
    with writing(path) as db:
        db.execute("PRAGMA busy_timeout = 0")

        def checkpoint(count: int) -> None:
            done.append(count)
            db.execute("UPDATE _sqlite_migrations SET applied_at = applied_at || '.'")
            ((busy, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            assert not busy, "a reader holds the log back"

        assert verify(path, progress=checkpoint).ok
    assert done == [PAGE, 2 * PAGE, 2 * PAGE + 1]


def test_what_is_written_between_two_pages_is_verified_too(
    path: Path, journal: Journal, fates: Fates
) -> None:
    decisions = [by_model(), by_model(), by_model()]
    for decision in decisions:
        journal.decided(decision)
    fates.wait(3)
    left = list(decisions)

    def goes_on(_: int) -> None:
        if left:
            journal.explained(left.pop().id, EXPLAINED, NOON)
            journal.decided(by_rule())
            fates.wait(2)

    verdict = verify(path, progress=goes_on)
    assert (verdict.events, verdict.problem) == (9, None)


def test_verification_beside_a_live_writer(path: Path, journal: Journal, fates: Fates) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            decision = by_model()
            journal.decided(decision)
            journal.explained(decision.id, EXPLAINED, NOON)
            fates.wait(2)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [verify(path) for _ in range(30)]
        while writer.is_alive() and seen[-1].events == seen[0].events:
            seen.append(verify(path))
    finally:
        stop.set()
        writer.join(WAIT_S)
    assert {verdict.problem for verdict in seen} == {None}
    assert seen[-1].events > seen[0].events


# ---------------------------------------------------------------- opening


def test_a_second_journal_is_told_who_holds_the_file(path: Path, journal: Journal) -> None:
    with pytest.raises(AlreadyRunning, match=f"in use by process {os.getpid()};.*--state-dir"):
        Journal(path, on_committed=Fates())
    assert journal.alive


def test_the_file_is_free_again_when_its_holder_dies(path: Path) -> None:
    holder = (
        "import sys, pathlib\n"
        "from thor_policy.journal.writer import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), on_committed=lambda _: None)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        with pytest.raises(AlreadyRunning, match=f"process {process.pid};"):
            Journal(path, on_committed=Fates())
        process.kill()
        process.wait(WAIT_S)
    record(path, note())
    assert verify(path).ok


def test_only_owner_and_group_may_read_the_files(path: Path, journal: Journal, fates: Fates) -> None:
    journal.append(note())
    fates.wait(1)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) & 0o027 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["journal.db", "journal.db-wal", "journal.db-shm", "journal.lock"], 0)


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    record(path, note())
    path.chmod(0o666)
    record(path, note())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    record(path, note())
    with writing(path) as db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
            "VALUES ('thor_policy', '9999_from_the_future', '2099-01-01')"
        )
    with pytest.raises(JournalError, match=r"newer version \(it has 9999_from_the_future\); upgrade"):
        Journal(path, on_committed=Fates())
    with writing(path) as db:
        db.execute("DELETE FROM _sqlite_migrations WHERE name = '9999_from_the_future'")
    record(path, note())
    assert verify(path).events == 2


def no_database(path: Path) -> None:
    path.write_bytes(b"GGUF" + bytes(range(256)) * 64)


def damaged_pages(path: Path) -> None:
    record(path, *(by_model() for _ in range(20)))
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xa5" * (path.stat().st_size - 4_096))


def lost_root_page(path: Path) -> None:
    """The schema can be read, and the events cannot."""
    record(path, *(by_model() for _ in range(20)))
    ((root, page_size),) = rows(
        path,
        "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'events'",
    )
    with path.open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(b"\xa5" * page_size)


def cut_short(path: Path) -> None:
    record(path, *(by_model() for _ in range(20)))
    os.truncate(path, 6_000)


@pytest.mark.parametrize("damage", [no_database, damaged_pages, lost_root_page, cut_short])
def test_a_damaged_file_is_refused_in_words(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="cannot be used as a journal"):
        Journal(path, on_committed=Fates())
    for read in (verify, Reader):
        with pytest.raises(JournalError, match="cannot be read as a journal"):
            read(path)
    assert path.read_bytes() == before
    path.unlink()
    record(path, note())  # nothing holds the lock


def test_a_folder_is_no_journal(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalError):
        Journal(path, on_committed=Fates())


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(JournalError, match=f"cannot write in the state directory {tmp_path}/file"):
        Journal(tmp_path / "file" / "journal.db", on_committed=Fates())


def test_the_state_directory_is_made(tmp_path: Path) -> None:
    record(tmp_path / "var" / "lib" / "journal.db", note())
    assert verify(tmp_path / "var" / "lib" / "journal.db").ok


# ---------------------------------------------------------------- what cannot be recorded


def test_a_full_disk_acknowledges_nothing_and_the_chain_goes_on_afterwards(
    path: Path, journal: Journal, fates: Fates
) -> None:
    def allow_pages(count: int) -> None:
        """The journal's thread is idle; its connection is the one that SQLite holds to this limit."""
        journal._connection.execute(f"PRAGMA max_page_count = {count}")

    journal.append(note("before"))
    fates.wait(1)
    ((pages,),) = rows(path, "PRAGMA page_count")
    with fates.one_batch(journal):
        allow_pages(pages + 3)
        journal.append(note("a small one", ticket=1))
        journal.decided(by_model(evaluation=about(details="x" * 100_000)), ticket=2)
        journal.append(note("another small one", ticket=3))
    assert [(fate.ticket, fate.seq, fate.error) for fate in fates.wait(3)] == [
        (1, 0, "disk_full"),
        (2, 0, "disk_full"),
        (3, 0, "disk_full"),
    ]
    assert (journal.committed_events, journal.failed_events, journal.seq) == (2, 3, 2)
    assert "full" in str(journal.failing)
    assert journal.alive
    assert rows(path, "SELECT count(*), (SELECT count(*) FROM decisions) FROM events") == [(2, 0)]
    assert verify(path).ok

    allow_pages(1_000_000)
    journal.decided(by_model(evaluation=about(details="x" * 100_000)), ticket=4)
    assert [(fate.ticket, fate.seq, fate.error) for fate in fates.wait(1)] == [(4, 3, None)]
    assert journal.failing is None
    assert (verify(path).ok, verify(path).events) == (True, 3)


KNOWN = by_model()


@pytest.mark.parametrize(
    "bad",
    [
        note(body={"value": object()}, ticket=0),
        note("lone surrogate \ud800", ticket=0),
        note(subject_id="\ud800", ticket=0),
        note(at=float("inf"), ticket=0),
        note(at=float("nan"), ticket=0),
        note(kind=None, ticket=0),
        Event(kind="decision", subject_id="x", at=NOON, body={"not": "a decision"}, ticket=0),
        events.decided(KNOWN, ticket=0),
    ],
    ids=["object", "body", "subject", "infinity", "nan", "null", "incomplete", "repeated"],
)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_event_that_cannot_be_stored_fails_alone(
    path: Path, journal: Journal, fates: Fates, bad: Event, place: int
) -> None:
    journal.decided(KNOWN)
    fates.wait(1)
    batch = [events.decided(by_model(), ticket=number) for number in range(1, 7)]
    batch.insert(place, bad)
    with fates.one_batch(journal):
        for event in batch:
            journal.append(event)
    told = fates.batch()
    assert [fate.ticket for fate in told] == [event.ticket for event in batch]
    assert [fate.error for fate in told if fate.ticket == 0] == ["unavailable"]
    assert [(fate.seq, fate.error) for fate in told if fate.ticket] == [(seq, None) for seq in range(3, 9)]
    assert (journal.committed_events, journal.failed_events) == (8, 1)
    assert (verify(path).ok, verify(path).events) == (True, 8)


# ---------------------------------------------------------------- reading


@pytest.fixture
def library(path: Path) -> Path:
    """Six decisions, an hour apart, from noon on."""
    hour = 3_600.0
    bob = Entity(type="user", id="bob")
    by_bob = Evaluation(subject=bob, action=Action(name="read"), resource=ASKED.resource)
    record(
        path,
        by_model(id="d1", at=NOON, annotations=Annotations(expected=("deny",))),
        by_model(id="d2", at=NOON + hour, outcome="allow", allow=True, risk="low", evaluation=by_bob),
        note(),
        by_rule(id="d3", at=NOON + 2 * hour, annotations=Annotations(expected=("allow",))),
        fallback(id="d4", at=NOON + 3 * hour, risk="critical"),
        by_model(id="d5", at=NOON + 4 * hour, annotations=Annotations(expected=("allow",))),
        by_model(id="d6", at=NOON + 5 * hour, outcome="allow", allow=True),
    )
    return path


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "d6 d5 d4 d3 d2 d1"),
        ({"limit": 2}, "d6 d5"),
        ({"outcome": "allow"}, "d6 d2"),
        ({"tier": "rule"}, "d3"),
        ({"risk": "critical"}, "d4"),
        ({"subject": "bob"}, "d2"),
        ({"subject": "' OR 1 = 1 --"}, ""),
        ({"correct": True}, "d1"),
        ({"correct": False}, "d5 d3"),
        ({"reviewed": False}, "d6 d5 d4 d3 d2 d1"),
        ({"reviewed": True}, ""),
        ({"since": "2026-07-01T16:00:00Z"}, "d6 d5"),
        ({"since": "2026-07-01T16:00:00.000001Z"}, "d6"),
        ({"since": "2026-07-01T18:00:00+02:00"}, "d6 d5"),
        ({"since": "2026-07-01 16:00"}, "d6 d5"),
        ({"since": "2026-07-02"}, ""),
        ({"outcome": "deny", "tier": "model", "correct": False}, "d5"),
    ],
)
def test_decisions_are_found_by_what_is_asked(library: Path, filters: dict[str, Any], found: str) -> None:
    with Reader(library) as reader:
        assert [row["decision_id"] for row in reader.decisions(**filters)] == found.split()


def test_since_must_be_a_time(library: Path) -> None:
    with Reader(library) as reader:
        for ask in (reader.decisions, reader.statistics):
            with pytest.raises(JournalError, match="since: 'yesterday' is no RFC 3339 time"):
                ask(since="yesterday")


def test_pages_go_on_where_the_last_one_ended(path: Path) -> None:
    decisions = [by_model() for _ in range(10)]
    record(path, *decisions)
    with Reader(path) as reader:
        pages = [reader.decisions(limit=3)]
        while pages[-1] and len(pages) < 9:
            pages.append(reader.decisions(limit=3, before_seq=pages[-1][-1]["seq"]))
    assert [len(page) for page in pages] == [3, 3, 3, 1, 0]
    found = [row["decision_id"] for page in pages for row in page]
    assert found == [decision.id for decision in reversed(decisions)]


def test_one_decision_with_its_json_decoded(library: Path) -> None:
    with Reader(library) as reader:
        row = reader.get("d3")
        assert row is not None
        assert (row["decision"], row["clauses"], row["tags"], row["probabilities"]) == (
            "deny",
            ["R3"],
            [],
            {},
        )
        assert row["situation"]["subject"]["id"] == "alice"
        assert reader.get("d9") is None


def test_statistics_count_and_compare(library: Path) -> None:
    with Reader(library) as reader:
        assert reader.statistics() == {
            "decisions": 6,
            "first": "2026-07-01T12:00:00.000000Z",
            "last": "2026-07-01T17:00:00.000000Z",
            "outcomes": {"deny": 4, "allow": 2},
            "tiers": {"model": 4, "rule": 1, "fallback": 1},
            "risks": {"high": 4, "low": 1, "critical": 1},
            "expected": 3,
            "correct": 1,
            "score_ms": {"p50": 12.5, "p90": 12.5, "p99": 12.5},
        }
        later = reader.statistics(since="2026-07-01T15:30:00Z")
        assert (later["decisions"], later["expected"], later["correct"]) == (2, 1, 0)
        assert later["first"] == "2026-07-01T16:00:00.000000Z"
        assert later["tiers"] == {"model": 2}


@pytest.mark.parametrize(
    ("count", "percentiles"),
    [
        (1, {"p50": 1, "p90": 1, "p99": 1}),
        (2, {"p50": 1, "p90": 2, "p99": 2}),
        (100, {"p50": 50, "p90": 90, "p99": 99}),
        (1_000, {"p50": 500, "p90": 900, "p99": 990}),
    ],
)
def test_percentiles_are_those_of_the_model(path: Path, count: int, percentiles: dict[str, float]) -> None:
    taken_ms = list(range(1, count + 1))
    random.Random(count).shuffle(taken_ms)
    record(
        path,
        *(by_model(timings=Timings(score_ms=float(ms))) for ms in taken_ms),
        *(by_rule() for _ in range(count)),
    )
    with Reader(path) as reader:
        assert reader.statistics()["score_ms"] == percentiles


def test_statistics_of_nothing(path: Path) -> None:
    record(path)
    with Reader(path) as reader:
        nothing = reader.statistics()
        assert (nothing["decisions"], nothing["first"], nothing["outcomes"]) == (0, None, {})
        assert (nothing["expected"], nothing["correct"], nothing["score_ms"]) == (0, 0, None)
        assert reader.decisions() == []


def test_a_reader_says_how_a_journal_comes_to_be(path: Path) -> None:
    with pytest.raises(JournalError, match=r"no journal at .*journal\.db; `thorpolicy serve` makes one"):
        Reader(path)
    assert not path.exists()


def test_a_reader_cannot_write(library: Path) -> None:
    with Reader(library) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._connection.execute("DELETE FROM events")


def test_a_reader_sees_what_was_committed_since_it_opened(path: Path, journal: Journal, fates: Fates) -> None:
    with Reader(path) as reader:
        assert reader.statistics()["decisions"] == 0
        journal.decided(by_model(id="new"))
        fates.wait(1)
        assert reader.get("new") is not None


def test_statistics_beside_a_live_writer_are_of_one_moment(
    path: Path, journal: Journal, fates: Fates
) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            journal.decided(by_model())
            fates.wait(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with Reader(path) as reader:
            while writer.is_alive() and (figures := reader.statistics())["decisions"] < 200:
                for counts in ("outcomes", "tiers", "risks"):
                    assert sum(figures[counts].values()) == figures["decisions"]
    finally:
        stop.set()
        writer.join(WAIT_S)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE decisions SET tags = 'not json'",
        "UPDATE decisions SET decision = CAST(x'ff' AS TEXT)",
        "DROP TABLE decisions",
    ],
)
def test_a_reader_refuses_what_it_cannot_read_in_words(library: Path, sql: str) -> None:
    with writing(library) as db:
        db.execute(sql)
    with Reader(library) as reader, pytest.raises(JournalError, match="cannot be read as a journal"):
        reader.decisions()
