"""Idempotency keys: a repeated request gets the first answer again and is not decided or recorded again."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.build import SCORES_AT_START, booted, by_model, by_rule, fallback, write_adapter_header, write_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Floor, Scored
from thor_policy.core.errors import RequestError
from thor_policy.core.idempotency import DigestKey, Mark
from thor_policy.core.requests import Caller, Json, Role
from thor_policy.core.results import PriorRecord
from thor_policy.daemon.idempotency import IdempotencyKeys, Keyed
from thor_policy.daemon.inflight import InFlight
from thor_policy.daemon.service import serving
from thor_policy.journal import schema
from thor_policy.journal.idempotency import IS_KEYED, KEY_DIGEST, KEY_WINDOW_S, find_recorded
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.rebuild import rebuild
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.replies import decision_item
from thor_policy.protocol.requests import decode_request
from thor_policy.security.curve_keys import Keys
from thor_policy.telemetry.clocks import Instant
from thor_policy.telemetry.metrics import Metrics
from thor_policy.testing import StubEngine, load_stub_engine

PATIENCE_MS = 20_000
NOON = 1_778_668_800.0
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
KEY = DigestKey(b"the secret of a journal")


def by_a_rule_that_reads_a_time(**changes: Any) -> Decision:
    floor = Floor(
        outcome="deny",
        final=True,
        because="the freeze is on",
        time_used={"context.time": "2026-05-13T10:00:00Z"},
    )
    return by_rule(floor=floor, **changes)


#: A question that the rules leave to the model.
DEPLOY: dict[str, Json] = {
    "subject": {
        "type": "user",
        "id": "alice",
        "properties": {"role": "engineer", "trust": {"competence": 0.9, "reliability": 0.9}},
    },
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
    "context": {"timestamp": "2026-05-13T10:00:00Z", "details": "Release 8."},
}
#: Questions that the rules answer alone: with an allow, and with a denial.
READ = {**DEPLOY, "action": {"name": "read"}, "resource": {"type": "doc", "id": "guide"}}
TAMPER = {**DEPLOY, "action": {"name": "delete"}, "resource": {"type": "audit", "id": "log"}}


def digest_of(caller: Caller, key: str) -> str:
    return KEY.mark(caller, key, "c").digest


def decode(**members: Json) -> Any:
    frame = json.dumps({"v": 1, "request": DEPLOY, "idempotency_key": "k"} | members).encode()
    return decode_request(frame, max_bytes=2**20, max_deadline_ms=60_000)


def content(**members: Json) -> str:
    text: str = decode(**members).idempotency.content
    return text


def error_of(call: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value


def rows(config: Config, table: str = "decisions") -> int:
    with closing(sqlite3.connect(config.journal_path)) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)


def without_round_trip(reply: dict[str, Json]) -> dict[str, Json]:
    """A reply without its id and without the timings of this round trip."""
    context = dict(reply["context"])
    timings = {name: ms for name, ms in context.pop("timings_ms").items() if name not in ("total", "commit")}
    return {"decision": reply["decision"], "context": context, "timings": timings}


# ---------------------------------------------------------------- digests of contents and keys


class TestContentDigest:
    def test_is_the_same_for_any_order_of_members_and_for_the_flat_situation(self) -> None:
        flat = {
            "actor_id": "user:alice",
            "actor_role": "engineer",
            "t3_tensor": DEPLOY["subject"]["properties"]["trust"],
            "action_type": "deploy",
            "resource": "env:production",
            **DEPLOY["context"],
        }
        reordered = {name: DEPLOY[name] for name in reversed(DEPLOY)}
        frame = {"v": 1, "idempotency_key": "k", "situation": flat}
        message = decode_request(json.dumps(frame).encode(), max_bytes=2**20, max_deadline_ms=60_000)
        assert isinstance(message, EvaluateRequest)
        assert message.idempotency is not None
        assert content() == content(request=reordered) == message.idempotency.content

    def test_does_not_depend_on_id_deadline_or_explain(self) -> None:
        assert content() == content(id="again", deadline_ms=7, explain="inline")

    @given(
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=3),
            st.integers(-9, 9) | st.booleans() | st.none(),
            max_size=4,
        )
    )
    def test_differs_between_different_questions(self, context: dict[str, Json]) -> None:
        same = json.dumps(context, sort_keys=True) == json.dumps({"a": 1}, sort_keys=True)
        drawn, fixed = (content(request=DEPLOY | {"context": value}) for value in (context, {"a": 1}))
        assert (drawn == fixed) == same

    @pytest.mark.parametrize("members", [{"pack": "p"}, {"annotations": {"tags": ["t"]}}, {"request": READ}])
    def test_differs_with_pack_annotations_and_request(self, members: dict[str, Json]) -> None:
        assert content(**members) != content()

    def test_of_a_record_differs_with_its_fields_and_the_op(self) -> None:
        outcome = {"decision_id": "d", "status": "SUCCESS"}
        assert content(op="outcome", record=outcome) != content(op="outcome", record=outcome | {"value": 1})
        assert content(op="node", record={"type": "goal", "title": "t"}) != content(
            op="outcome", record=outcome
        )

    def test_of_a_batch_comes_with_a_key_of_its_own_for_each_item(self) -> None:
        first, repeated = (decode(evaluations=[{}, {}, READ]).items for _ in range(2))
        assert len({item.idempotency.key for item in first} | {decode().idempotency.key}) == 4
        assert [item.idempotency for item in first] == [item.idempotency for item in repeated]

    @pytest.mark.parametrize(("op", "task"), [("maintenance", "checkpoint"), ("control", "reload")])
    def test_of_maintenance_and_control_requests_takes_no_key(self, op: str, task: str) -> None:
        error = error_of(lambda: decode(op=op, record={"task": task}))
        assert error.message == "idempotency_key: is only for questions and records; leave it out"


def test_a_mark_begins_with_the_digest_and_parses_to_an_equal_mark() -> None:
    mark = KEY.mark(CALLER, "k", "c0" * 32)
    assert str(mark).startswith(mark.digest)
    assert Mark.parse(str(mark)) == mark


class TestKeyDigest:
    @given(st.text(max_size=5), st.text(max_size=5))
    def test_depends_on_the_idempotency_key_and_on_the_caller(self, key: str, other: str) -> None:
        ipc, tcp = CALLER, Caller(transport="tcp", key="console")
        assert (digest_of(ipc, key) == digest_of(ipc, other)) == (key == other)
        assert digest_of(ipc, key) != digest_of(tcp, key)
        assert digest_of(tcp, key) != digest_of(Caller(transport="tcp", key="till"), key)

    def test_depends_on_the_secret_of_the_journal_and_so_does_that_of_the_content(self) -> None:
        other = DigestKey(b"another secret").mark(CALLER, "k", "c")
        assert not {other.digest, other.content} & {*msgspec.structs.astuple(KEY.mark(CALLER, "k", "c"))}

    @given(st.text(max_size=5), st.text(max_size=5))
    def test_of_a_content_depends_on_the_content_the_idempotency_key_and_the_caller(
        self, content: str, other: str
    ) -> None:
        def digest(caller: Caller, key: str, content: str) -> str:
            return KEY.mark(caller, key, content).content

        assert (digest(CALLER, "k", content) == digest(CALLER, "k", other)) == (content == other)
        assert digest(CALLER, "k", content) != digest(CALLER, "l", content)
        assert digest(CALLER, "k", content) != digest(Caller(transport="ipc", uid=1), "k", content)

    def test_does_not_depend_on_the_process_of_the_caller(self) -> None:
        restarted = Caller(transport="ipc", uid=1000, gid=1000, pid=43)
        assert (
            digest_of(CALLER, "k")
            == digest_of(restarted, "k")
            != digest_of(Caller(transport="ipc", uid=1), "k")
        )


# ---------------------------------------------------------------- requests in flight


@dataclass(frozen=True)
class SceneWork:
    """The work of a request in a scene: beginning it adds it to `scene.started`, or is refused."""

    scene: Scene
    ticket: int
    digest: str
    content: str
    refused: bool

    def begin(self, idempotency: str | None) -> None:
        assert idempotency == f"{self.digest}-{self.content}"
        if self.refused:
            raise RequestError("busy", "come again")
        assert all(work.digest != self.digest for work in self.scene.started), (
            "two requests with the same key are under way"
        )
        self.scene.started.append(self)

    def repeat(self, prior: PriorRecord) -> dict[str, Json]:
        return {"id": prior.id, "content": prior.content}


@dataclass
class Scene:
    """Requests with keys, and the events of the rest of the daemon, which a test plays in any order."""

    committed: dict[str, PriorRecord] = field(default_factory=dict)
    answers: dict[int, list[Json]] = field(default_factory=dict)
    started: list[SceneWork] = field(default_factory=list)
    lookups: list[tuple[str, int]] = field(default_factory=list)
    contents: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.in_flight = InFlight(publish=lambda *_: None, counters=Counter(), metrics=Metrics())
        self.keys = IdempotencyKeys(
            self.in_flight,
            recall=lambda digest, ticket: self.lookups.append((digest, ticket)),
            counters=Counter(),
        )

    def arrive(self, key: str, text: str, *, refused: bool = False) -> int:
        answers: list[Json] = []
        ticket = self.in_flight.admit(answers.append, received_ns=0, deadline_ns=10, record_id="r")
        self.answers[ticket], self.contents[ticket] = answers, (key, text)

        work = SceneWork(self, ticket, key, text, refused)
        self.keys.enter(Keyed(ticket, Mark(key, text), work))
        return ticket

    def look_up(self) -> None:
        """The journal answers the oldest lookup."""
        if self.lookups:
            digest, ticket = self.lookups.pop(0)
            self.keys.recalled(ticket, self.committed.get(digest))

    def end(self, *, lost: bool) -> None:
        """The oldest work that was started is committed, or lost."""
        if self.started:
            work = self.started.pop(0)
            if lost:
                self.in_flight.settle(work.ticket, RequestError("unavailable", "lost"))
            else:
                assert work.digest not in self.committed, "a key got two decisions"
                prior = PriorRecord(content=work.content, kind="node", id=f"d{work.ticket}", seq=1)
                self.committed[work.digest] = prior
                self.in_flight.settle(work.ticket, work.repeat(prior))
            self.keys.ended(work.ticket)


class TestInFlight:
    @given(st.lists(st.integers(0, 9), max_size=60))
    def test_in_any_order_of_events_each_key_gets_one_decision_and_each_request_one_answer(
        self, steps: list[int]
    ) -> None:
        scene = Scene()
        for step in steps:
            if step < 4:
                scene.arrive(f"k{step % 2}", f"c{step // 3}")
            elif step == 4:
                scene.arrive("k0", "c0", refused=True)
            elif step == 5:
                scene.end(lost=True)
            elif step == 6:
                scene.end(lost=False)
            elif step == 7:
                scene.in_flight.expire(10)
            else:
                scene.look_up()
        while scene.lookups or scene.started:
            scene.look_up()
            scene.end(lost=False)
        scene.in_flight.expire(10)
        for ticket, answers in scene.answers.items():
            assert len(answers) == 1
            key, text = scene.contents[ticket]
            if isinstance(answers[0], dict):
                assert answers[0] == {"id": scene.committed[key].id, "content": text}
        assert not scene.keys._first
        assert not scene.keys._waiting

    def test_a_second_request_waits_for_the_first_and_gets_the_same_answer(self) -> None:
        scene = Scene()
        first, second = scene.arrive("k", "c"), scene.arrive("k", "c")
        scene.look_up()
        assert not scene.lookups
        scene.end(lost=False)
        scene.look_up()
        assert scene.answers[first] == scene.answers[second] == [{"id": f"d{first}", "content": "c"}]

    def test_a_second_request_begins_if_the_work_of_the_first_was_lost(self) -> None:
        scene = Scene()
        _, second = scene.arrive("k", "c"), scene.arrive("k", "c")
        scene.look_up()
        scene.end(lost=True)
        scene.look_up()
        scene.end(lost=False)
        assert scene.answers[second] == [{"id": f"d{second}", "content": "c"}]

    def test_a_second_request_waits_for_the_first_even_if_the_first_has_expired(self) -> None:
        scene = Scene()
        first = scene.arrive("k", "c")
        scene.look_up()
        scene.in_flight.expire(10)
        second = scene.arrive("k", "c")
        scene.look_up()
        assert len(scene.started) == 1
        scene.end(lost=False)
        scene.look_up()
        assert scene.answers[first][0].code == "expired"
        assert scene.answers[second] == [{"id": f"d{first}", "content": "c"}]

    def test_expired_requests_behind_a_hanging_first_request_are_forgotten(self) -> None:
        scene = Scene()
        scene.arrive("k", "c")
        for _ in range(100):
            scene.arrive("k", "c")
            scene.in_flight.expire(10)
        assert len(scene.keys._waiting["k"]) <= 2


# ---------------------------------------------------------------- in the journal


class TestJournal:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "policy_decisions.db"

    def node(self, journal: Journal, name: str, idempotency: str | None, at: float = NOON) -> None:
        node = records.Node(type="goal", title=name)
        journal.write(node, record_id=name, at=at, caller=CALLER, idempotency=idempotency)

    def find(self, journal: Journal, digest: str) -> PriorRecord | None:
        return journal.run(lambda connection: find_recorded(connection, digest, journal.now())).result()

    def test_returns_the_record_of_a_key_within_the_time_window(self, path: Path) -> None:
        known, unknown = "1" * 64, "2" * 64
        with Journal(path, now=booted(5)) as journal:
            self.node(journal, "n1", f"{known}-c")
            self.node(journal, "n2", None)
            assert self.find(journal, known) == PriorRecord(content="c", kind="node", id="n1", seq=1)
            assert self.find(journal, unknown) is None
        with Journal(path, now=booted(5 + KEY_WINDOW_S - 0.001)) as journal:
            assert self.find(journal, known) is not None
        with Journal(path, now=booted(5 + KEY_WINDOW_S)) as journal:
            assert self.find(journal, known) is None

    @pytest.mark.parametrize("decision", [by_model, by_rule, fallback, by_a_rule_that_reads_a_time])
    def test_returns_a_decision_with_every_field_of_its_reply(
        self, path: Path, decision: Callable[..., Decision]
    ) -> None:
        digest = "1" * 64
        made = decision(idempotency=f"{digest}-c")
        with Journal(path) as journal:
            journal.decided(made)
            prior = self.find(journal, digest)
        assert prior is not None
        assert prior.decision is not None
        repeated, original = (
            decision_item(decision, explained=True, commit_ms=0.0, total_ms=0.0)
            for decision in (prior.decision, made)
        )
        for item in (repeated, original):  # no model_loaded event is in this journal, so `exact` is unknown
            item["context"]["model"] = None
        assert repeated == original
        assert prior.decision.evaluation == made.evaluation

    def test_looks_a_key_up_by_the_index(self, path: Path) -> None:
        def plan(connection: sqlite3.Connection) -> str:
            sql = f"SELECT 1 FROM events e WHERE {IS_KEYED} AND {KEY_DIGEST} = ? ORDER BY e.seq DESC"
            return str(connection.execute(f"EXPLAIN QUERY PLAN {sql}", ("",)).fetchone()[3])

        with Journal(path) as journal:
            assert "USING INDEX events_idempotency (<expr>=?)" in journal.run(plan).result()

    def test_of_an_older_version_is_migrated_to_the_index(self, path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            schema.migrate(connection)
            connection.execute("DROP INDEX events_idempotency")
            connection.execute("DELETE FROM _sqlite_migrations WHERE name = '0005_idempotency'")
        with Journal(path) as journal:
            self.node(journal, "n1", f"{'1' * 64}-c")
            assert self.find(journal, "1" * 64) is not None

    def test_with_keys_verifies_and_its_rebuilt_copy_has_them(self, path: Path, tmp_path: Path) -> None:
        with Journal(path) as journal:
            self.node(journal, "n1", f"{'1' * 64}-c")
        assert verify(path).ok
        rebuild(path, tmp_path / "copy" / path.name)
        with Journal(tmp_path / "copy" / path.name) as copy:
            assert self.find(copy, "1" * 64) is not None

    def test_does_not_archive_an_event_whose_key_is_within_the_window(self, path: Path) -> None:
        with Journal(path, now=booted(5)) as journal:
            self.node(journal, "old", f"{'1' * 64}-c")
            self.node(journal, "plain", None)
        with Journal(path, now=booted(5 + KEY_WINDOW_S)) as journal:
            self.node(journal, "young", f"{'2' * 64}-c")
            self.node(journal, "later", None)
            assert self.find(journal, "2" * 64) is not None  # so all four nodes are committed
            (segment,) = archive_before(journal, "9999-01-01T00:00:00Z")
            assert (segment.first_seq, segment.last_seq) == (1, 2)
            assert self.find(journal, "2" * 64) is not None
        assert verify(path).ok

    @given(st.text("0123456789abcdef'-\"{}", max_size=70))
    def test_treats_no_digest_as_sql(self, digest: str) -> None:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            schema.migrate(connection)
            assert find_recorded(connection, digest, Instant("a", 0)) is None


# ---------------------------------------------------------------- over the sockets


class GatedEngine(StubEngine):
    """A stub that scores nothing after the start until its gate opens; `scores` counts the questions."""

    scores = 0

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.scoring = threading.Semaphore(0)

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        self.scores += 1
        if self.scores > SCORES_AT_START:
            self.scoring.release()
            assert self.gate.wait(PATIENCE_MS / 1000)
        return super().score(pack_sha256, question, deadline_ns)


class BrokenEngine(StubEngine):
    """A stub whose first score after the start raises an unexpected error."""

    scores = 0

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        self.scores += 1
        if self.scores == SCORES_AT_START + 1:
            raise ZeroDivisionError("a bug")
        return super().score(pack_sha256, question, deadline_ns)


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


@contextmanager
def client_of(config: Config) -> Iterator[Client]:
    with Client(config.endpoint, timeout_ms=PATIENCE_MS) as opened:
        yield opened


class TestQuestions:
    @pytest.mark.parametrize("explain", ["none", "inline"])
    @pytest.mark.parametrize("question", [DEPLOY, READ, TAMPER], ids=["model", "allowed", "denied"])
    def test_repeated_with_the_same_key_get_the_same_reply_and_no_second_row(
        self, served: Config, question: dict[str, Json], explain: str
    ) -> None:
        with client_of(served) as client:
            first, repeated = (
                client.evaluate(question, explain=explain, idempotency_key="k") for _ in range(2)
            )
            status = client.status()
        assert without_round_trip(first) == without_round_trip(repeated)
        assert rows(served) == 1
        decisions = status.rules.counters["decisions"] + status.engine.counters["decisions"]
        assert decisions == status.counters["repeats_answered"] == 1

    def test_without_a_key_or_with_another_key_are_decided_each_time(self, served: Config) -> None:
        with client_of(served) as client:
            ids = {client.evaluate(READ)["context"]["decision_id"] for _ in range(2)}
            ids.add(client.evaluate(READ, idempotency_key="k")["context"]["decision_id"])
            ids.add(client.evaluate(READ, idempotency_key="other")["context"]["decision_id"])
        assert len(ids) == rows(served) == 4

    def test_with_the_key_of_another_question_get_a_conflict_and_no_row(self, served: Config) -> None:
        with client_of(served) as client:
            client.evaluate(READ, idempotency_key="k")
            error = error_of(lambda: client.evaluate(TAMPER, idempotency_key="k"))
            assert error.code == "conflict"
            assert "another request of yours was sent with this key" in error.message
            assert client.status().counters["refused_conflict"] == 1
        assert rows(served) == 1

    def test_repeated_after_an_unload_name_the_pack_and_adapter_that_decided(
        self, config: Config, tmp_path: Path
    ) -> None:
        adapter = tmp_path / "tuned.gguf"
        write_adapter_header(adapter)
        folder = str(write_pack(tmp_path / "small"))
        tuned = replace(config, adapter=str(adapter), adapter_scale=0.5)
        with serving(tuned, load_engine=load_stub_engine), client_of(config) as client:
            client.control(records.Control(task="load", pack=folder))
            first = client.evaluate(DEPLOY, idempotency_key="k", pack="small")
            assert error_of(lambda: client.evaluate(DEPLOY, idempotency_key="k")).code == "conflict"
            client.control(records.Control(task="adapter", adapter="none"))
            client.control(records.Control(task="unload", pack="small"))
            repeated = client.evaluate(DEPLOY, idempotency_key="k", pack="small")
            assert error_of(lambda: client.evaluate(DEPLOY, pack="small")).code == "not_found"
        assert without_round_trip(first) == without_round_trip(repeated)
        assert repeated["context"]["pack"]["name"] == "small"
        assert repeated["context"]["model"]["adapter"]["scale"] == 0.5
        assert rows(config) == 1

    def test_repeated_after_a_restart_get_the_same_reply(self, config: Config) -> None:
        replies = []
        for _ in range(2):
            with serving(config, load_engine=load_stub_engine), client_of(config) as client:
                replies.append(client.evaluate(DEPLOY, explain="inline", idempotency_key="k"))
        assert without_round_trip(replies[0]) == without_round_trip(replies[1])
        assert rows(config) == 1
        assert verify(config.journal_path).ok

    def test_with_the_same_key_from_different_callers_are_decided_separately(
        self, config: Config, tcp_endpoint: str
    ) -> None:
        keys = Keys(config.keys_dir)
        paths = [keys.new(name, ("ask",), NOON) for name in ("console", "till")]
        both = replace(config, tcp_endpoint=tcp_endpoint)
        ids = []
        with serving(both, load_engine=load_stub_engine):
            for path in (None, *paths):
                with Client(
                    tcp_endpoint if path else both.endpoint, key=path, timeout_ms=PATIENCE_MS
                ) as client:
                    replies = [client.evaluate(READ, idempotency_key="k") for _ in range(2)]
                assert without_round_trip(replies[0]) == without_round_trip(replies[1])
                ids.append(replies[0]["context"]["decision_id"])
        assert len(set(ids)) == rows(config) == 3

    def test_sent_five_times_at_once_are_decided_once(self, config: Config) -> None:
        engine = GatedEngine()
        frame = {"v": 1, "op": "evaluate", "request": DEPLOY, "idempotency_key": "k"}
        with (
            serving(config, load_engine=lambda _: engine),
            zmq.Context() as context,
            context.socket(zmq.DEALER) as opened,
        ):
            opened.set(zmq.LINGER, 0)
            opened.set(zmq.RCVTIMEO, PATIENCE_MS)
            opened.connect(config.endpoint)
            for number in range(5):
                opened.send(json.dumps(frame | {"id": str(number)}).encode())
            opened.send(json.dumps(frame | {"id": "other", "request": READ}).encode())
            refused = json.loads(opened.recv())
            assert (refused["id"], refused["error"]["code"]) == ("other", "conflict")
            assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
            engine.gate.set()
            replies = [json.loads(opened.recv()) for _ in range(5)]
        assert {reply["id"] for reply in replies} == set("01234")
        assert len({reply["context"]["decision_id"] for reply in replies}) == 1
        assert (engine.scores, rows(config)) == (SCORES_AT_START + 1, 1)

    def test_repeated_after_they_expired_get_the_decision_that_was_recorded(self, config: Config) -> None:
        engine = GatedEngine()
        with serving(config, load_engine=lambda _: engine), client_of(config) as client:
            late = error_of(lambda: client.evaluate(DEPLOY, deadline_ms=50, idempotency_key="k"))
            assert late.code == "expired"
            assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
            engine.gate.set()
            reply = client.evaluate(DEPLOY, idempotency_key="k")
            counters = client.status().counters
        assert (counters["decisions_recorded"], counters["decisions_late"]) == (1, 1)
        with Reader(config.journal_path) as reader:
            assert [row["decision_id"] for row in reader.decisions()] == [reply["context"]["decision_id"]]

    def test_repeated_after_a_refusal_are_tried_again(self, config: Config) -> None:
        broken = BrokenEngine()
        with serving(config, load_engine=lambda _: broken), client_of(config) as client:
            unknown = {"request": READ, "pack": "payroll", "idempotency_key": "unknown"}
            for _ in range(2):
                assert error_of(lambda: client.call("evaluate", unknown)).code == "not_found"
            assert error_of(lambda: client.evaluate(DEPLOY, idempotency_key="k")).code == "internal"
            assert client.evaluate(DEPLOY, idempotency_key="k")["context"]["decision_id"]
        assert rows(config) == 1

    def test_repeated_after_an_erasure_get_the_outcome_without_the_reasoning(self, served: Config) -> None:
        with client_of(served) as client:
            first = client.evaluate(TAMPER, explain="inline", idempotency_key="k")["context"]
            assert first["reasoning"]
            client.maintenance(records.Maintenance(task="erase", actor="user:alice"))
            repeated = client.evaluate(TAMPER, explain="inline", idempotency_key="k")["context"]
        assert (repeated["decision_id"], repeated["outcome"]) == (first["decision_id"], first["outcome"])
        assert not repeated["reasoning"]

    def test_of_a_repeated_batch_are_each_answered_again(self, served: Config) -> None:
        batch = {"request": DEPLOY, "evaluations": [READ, {}, TAMPER], "idempotency_key": "k"}
        with client_of(served) as client:
            first, repeated = (client.call("evaluate", batch)["evaluations"] for _ in range(2))
            changed = client.call("evaluate", batch | {"evaluations": [READ, TAMPER]})["evaluations"]
        assert [without_round_trip(item) for item in first] == [without_round_trip(item) for item in repeated]
        assert without_round_trip(changed[0]) == without_round_trip(first[0])
        assert changed[1]["context"]["error"]["code"] == "conflict"
        assert rows(served) == 3

    def test_repeated_while_the_engine_is_blocked_are_answered(self, config: Config) -> None:
        engine = GatedEngine()
        engine.gate.set()
        with serving(config, load_engine=lambda _: engine), client_of(config) as client:
            first = client.evaluate(DEPLOY, idempotency_key="k")
            engine.gate.clear()
            frame = {"v": 1, "op": "evaluate", "request": DEPLOY | {"context": {}}}
            with zmq.Context() as context, context.socket(zmq.DEALER) as other:
                other.set(zmq.LINGER, 0)
                other.connect(config.endpoint)
                other.send(json.dumps(frame).encode())
                assert engine.scoring.acquire(timeout=PATIENCE_MS / 1000)
                repeated = client.evaluate(DEPLOY, idempotency_key="k")
                engine.gate.set()
        assert without_round_trip(repeated) == without_round_trip(first)


class TestRecords:
    def test_of_every_kind_are_recorded_once(self, served: Config) -> None:
        with client_of(served) as client:
            decision_id = client.decision_report(
                records.DecisionReport(agent="trader", outcome="HOLD"), idempotency_key="r"
            )
            goal = client.record(records.Node(type="goal", title="Ship"), idempotency_key="nodes")
            samples: dict[str, records.Record] = {
                "decisions": records.DecisionReport(agent="trader", outcome="HOLD"),
                "consultations": records.Consultation(system="crm", session="s"),
                "outcomes": records.Outcome(decision_id=decision_id, status="SUCCESS"),
                "reviews": records.Review(decision_id=decision_id, reviewer="ines", verdict="accept"),
                "approvals": records.Approval(decision_id=decision_id, approver="ines"),
                "nodes": records.Node(type="goal", title="Ship"),
                "edges": records.Edge(source=goal, target=decision_id, type="leads_to"),
                "trace_states": records.TraceState(
                    decision_id=decision_id, status="under_review", because="a doubt"
                ),
            }
            for table, record in samples.items():
                key = "r" if table == "decisions" else table
                assert len({client.record(record, idempotency_key=key) for _ in range(3)}) == 1
                assert rows(served, table) == 1
            other = records.Node(type="goal", title="Sink")
            assert error_of(lambda: client.record(other, idempotency_key="nodes")).code == "conflict"
        assert verify(served.journal_path).ok

    def test_share_their_keys_with_questions(self, served: Config) -> None:
        with client_of(served) as client:
            client.evaluate(READ, idempotency_key="k")
            node = records.Node(type="goal", title="Ship")
            assert error_of(lambda: client.record(node, idempotency_key="k")).code == "conflict"

    def test_refused_by_the_journal_may_be_sent_again_with_the_same_key(self, served: Config) -> None:
        with client_of(served) as client:
            early = records.Outcome(decision_id="0198", status="SUCCESS")
            for _ in range(2):
                assert error_of(lambda: client.record(early, idempotency_key="k")).code == "not_found"


# ---------------------------------------------------------------- the path that users take


@pytest.mark.model
def test_a_repeated_request_over_tcp_is_scored_by_the_embedded_model_once(
    config: Config, tcp_endpoint: str
) -> None:
    path = Keys(config.keys_dir).new("console", get_args(Role), NOON)
    both = replace(config, tcp_endpoint=tcp_endpoint)
    options = {"explain": "inline", "deadline_ms": 60_000, "idempotency_key": "k"}
    with serving(both), Client(tcp_endpoint, key=path, timeout_ms=120_000) as client:
        replies = [client.evaluate(DEPLOY, **options) for _ in range(2)]
        status = client.status()
    assert without_round_trip(replies[0]) == without_round_trip(replies[1])
    assert replies[0]["context"]["model"]["exact"]
    assert replies[0]["context"]["reasoning"]
    assert (rows(config), status.engine.counters["decisions"]) == (1, 1)
    assert verify(config.journal_path).ok
