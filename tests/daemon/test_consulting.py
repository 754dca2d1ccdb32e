"""Sources of a running daemon: real files, a real SQLite file and a real server, with the stub engine.

Each decision records what it consulted; a source that fails, hangs or is replaced delays and loosens nothing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.build import write_rules_only_pack
from tests.json_server import JsonServer, json_server
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.fair_queue import Lane
from thor_policy.core.requests import NEVER_NS, Action, Caller, Entity, Evaluation, Request
from thor_policy.core.sources import Push
from thor_policy.daemon.consulting import Consulting
from thor_policy.daemon.service import serving
from thor_policy.engine.absent import NoEngine
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.learning.replay import Replayer
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.sources.pushed import PushedValues
from thor_policy.testing import load_stub_engine

PATIENCE_MS = 20_000
RULES = """
- {id: gold, when: 'sources.accounts.tier == "gold"', outcome: allow, final: true, because: It is gold.}
"""
#: A rule that decides without a source that is optional.
OPTIONAL_RULES = """
- id: gold
  when: has(sources.accounts.tier) && sources.accounts.tier == "gold"
  outcome: allow
  final: true
  because: It is gold.
- {id: known, when: 'has(sources.accounts.tier)', outcome: require_mfa, because: The account is known.}
"""
SOURCE = """
sources:
  accounts:
    of: subject
    types: [user]
    system: CRM
    attributes: {{tier: {{type: string}}, limit: {{type: number, at: limits.discount}}}}
    {more}
"""
TABLE = "table: {path: accounts.jsonl}"


def row(id: str, tier: str) -> str:
    return f'{{"id": "{id}", "tier": "{tier}", "limits": {{"discount": 20}}}}\n'


def question(id: str = "ann", type: str = "user", **properties: Any) -> dict[str, Any]:
    return {
        "subject": {"type": type, "id": id, "properties": properties},
        "action": {"name": "buy"},
        "resource": {"type": "doc", "id": "guide"},
    }


Serve = Callable[..., Client]


@pytest.fixture
def serve(config: Config) -> Iterator[Serve]:
    """Starts a daemon with a pack that has one source, and a client of it."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(
            more: str = TABLE, *, rules: str = RULES, table: str | None = None, **changes: Any
        ) -> Client:
            folder = write_rules_only_pack(
                config.state_dir / "pack", rules=rules, more=SOURCE.format(more=more)
            )
            if more.startswith("table") or table is not None:
                write(folder, table or row("ann", "gold") + row("bob", "tin"))
            stack.enter_context(
                serving(replace(config, pack=str(folder), **changes), load_engine=load_stub_engine)
            )
            return stack.enter_context(Client(config.endpoint, timeout_ms=PATIENCE_MS))

        yield start


def write(folder: Path, text: str, age_s: float = 60.0) -> None:
    """Replace the table as an operator does: a new file, renamed; it rests since `age_s`."""
    new = folder / "accounts.new"
    new.write_text(text)
    at = time.time() - age_s
    os.utime(new, (at, at))
    new.rename(folder / "accounts.jsonl")


def context_of(client: Client, question: dict[str, Any], **more: Any) -> dict[str, Any]:
    context: dict[str, Any] = client.evaluate(question, **more)["context"]
    return context


def recorded(config: Config, context: dict[str, Any]) -> dict[str, Any]:
    with Reader(config.journal_path) as reader:
        event: dict[str, Any] = reader.trace(context["decision_id"])["event"]
        return event


def consulted(config: Config, context: dict[str, Any]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = recorded(config, context)["body"].get("consulted", [])
    return entries


class TestAnswers:
    def test_rules_believe_the_source_and_not_the_caller(self, serve: Serve) -> None:
        client = serve()
        assert context_of(client, question("ann", tier="tin"))["outcome"] == "allow"
        assert context_of(client, question("bob", tier="gold"))["outcome"] == "deny"

    def test_each_value_is_recorded_with_system_time_and_freshness(
        self, serve: Serve, config: Config
    ) -> None:
        context = context_of(serve(), question("ann"))
        event = recorded(config, context)
        assert [(e["source"], e["of"], e["system"], e["element"]) for e in event["body"]["consulted"]] == [
            ("accounts", "subject", "CRM", "tier"),
            ("accounts", "subject", "CRM", "limit"),
        ]
        for entry in event["body"]["consulted"]:
            assert entry["took_ms"] > 0
            assert entry["fresh_at"].endswith("Z")
            assert "error" not in entry
        assert event["private"]["consulted"] == {"accounts": {"tier": "gold", "limit": 20.0}}
        assert verify(config.journal_path).ok

    def test_the_values_are_beside_the_chain_and_the_body_has_none_of_them(
        self, serve: Serve, config: Config
    ) -> None:
        context = context_of(serve(table=row("ann", "gold-of-ann")), question("ann"))
        assert "gold-of-ann" not in str(recorded(config, context)["body"])

    def test_an_entity_that_the_source_does_not_know_has_no_attributes(
        self, serve: Serve, config: Config
    ) -> None:
        context = context_of(serve(rules=OPTIONAL_RULES), question("zoe"))
        assert (context["outcome"], context.get("reason_code")) == ("deny", None)
        (entry,) = consulted(config, context)
        assert "element" not in entry
        assert "error" not in entry

    def test_a_rule_that_reads_an_absent_attribute_fails_closed(self, serve: Serve) -> None:
        context = context_of(serve(), question("zoe"))
        assert (context["outcome"], context["reason_code"]) == ("deny", "rule_error")

    def test_a_question_of_another_type_is_not_looked_up(self, serve: Serve, config: Config) -> None:
        context = context_of(serve(rules=OPTIONAL_RULES), question("ann", type="agent"))
        assert context["outcome"] == "deny"
        assert consulted(config, context) == []

    def test_each_item_of_a_batch_has_its_own_values(self, serve: Serve) -> None:
        client = serve()
        reply = client.call("evaluate", {"evaluations": [question("ann"), question("bob")]})
        assert [item["context"]["outcome"] for item in reply["evaluations"]] == ["allow", "deny"]

    def test_a_file_replaced_while_the_daemon_runs_counts_at_the_next_question(
        self, serve: Serve, config: Config
    ) -> None:
        client = serve()
        assert context_of(client, question("bob"))["outcome"] == "deny"
        write(config.state_dir / "pack", row("bob", "gold"), age_s=30)
        assert context_of(client, question("bob"))["outcome"] == "allow"

    def test_a_broken_replacement_leaves_the_old_rows_and_shows_in_status(
        self, serve: Serve, config: Config
    ) -> None:
        client = serve()
        assert context_of(client, question("ann"))["outcome"] == "allow"
        write(config.state_dir / "pack", row("ann", "tin").rstrip("\n"), age_s=30)
        assert context_of(client, question("ann"))["outcome"] == "allow"
        (source,) = client.status().sources
        assert source.problem is not None
        assert "half-written" in source.problem
        assert source.problem.endswith("still count")

    def test_a_sqlite_file_answers_for_the_operators_path(
        self, serve: Serve, config: Config, tmp_path: Path
    ) -> None:
        with closing(sqlite3.connect(tmp_path / "crm.db")) as database:
            database.execute("CREATE TABLE a (id TEXT, tier TEXT)")
            database.execute("INSERT INTO a VALUES ('ann', 'gold')")
            database.commit()
        query = "SELECT tier, NULL AS limits FROM a WHERE id = :id"
        more = f'sqlite: {{path: nowhere.db, query: "{query}"}}'
        client = serve(more, sources=(f"accounts.path={tmp_path}/crm.db",))
        context = context_of(client, question("ann"))
        assert context["outcome"] == "allow"
        assert [entry["element"] for entry in consulted(config, context)] == ["tier"]


@pytest.fixture
def server() -> Iterator[JsonServer]:
    with json_server() as running:
        yield running


class TestFailures:
    @pytest.mark.parametrize(
        ("way", "problem"),
        [
            ("status", "the endpoint answered 503"),
            ("text", "the answer is not application/json"),
            ("broken", "the answer is no JSON"),
            ("wrong", "the attribute tier is not of the type string"),
            ("large", "the answer has more than 65536 bytes (http.max_bytes)"),
            ("elsewhere", "the endpoint redirects to another host; add that host to http.hosts in pack.yaml"),
        ],
    )
    def test_a_required_endpoint_that_fails_gives_the_strictest_outcome_and_its_name(
        self, serve: Serve, config: Config, server: JsonServer, way: str, problem: str
    ) -> None:
        server.elsewhere = f"http://localhost:{server.server_address[1]}/people/ann"
        client = serve(f'http: {{url: "{server.url}/{way}/{{id}}"}}\n    timeout_ms: 10000')
        context = context_of(client, question("ann"), explain="inline")
        assert (context["outcome"], context["tier"], context["reason_code"]) == (
            "deny",
            "fallback",
            "source_failed",
        )
        assert context["reasoning"] == "The source accounts gave no answer, so the answer is deny."
        (entry,) = consulted(config, context)
        assert (entry["source"], entry["error"]) == ("accounts", problem)
        (source,) = client.status().sources
        assert (source.counters["failures"], source.problem) == (1, problem)
        assert client.status().engine.counters["source_failed"] == 1

    def test_an_endpoint_that_is_down_fails_closed(
        self, serve: Serve, config: Config, free_port: int
    ) -> None:
        client = serve(f'http: {{url: "http://127.0.0.1:{free_port}/{{id}}"}}\n    timeout_ms: 10000')
        context = context_of(client, question("ann"))
        assert (context["outcome"], context["reason_code"]) == ("deny", "source_failed")
        assert consulted(config, context)[0]["error"] == "the endpoint cannot be reached: ConnectError"

    def test_an_optional_source_that_fails_is_noted_and_its_attributes_are_absent(
        self, serve: Serve, config: Config, server: JsonServer
    ) -> None:
        more = f'http: {{url: "{server.url}/status/{{id}}"}}\n    required: false\n    timeout_ms: 10000'
        context = context_of(serve(more, rules=OPTIONAL_RULES), question("ann"))
        assert (context["outcome"], context["tier"], context.get("reason_code")) == ("deny", "rule", None)
        assert consulted(config, context)[0]["error"] == "the endpoint answered 503"

    def test_a_rule_that_needs_an_optional_source_that_failed_fails_closed(
        self, serve: Serve, server: JsonServer
    ) -> None:
        more = f'http: {{url: "{server.url}/status/{{id}}"}}\n    required: false\n    timeout_ms: 10000'
        context = context_of(serve(more), question("ann"))
        assert (context["outcome"], context["reason_code"]) == ("deny", "rule_error")

    def test_a_hung_source_is_given_up_at_its_timeout(
        self, serve: Serve, config: Config, server: JsonServer
    ) -> None:
        client = serve(f'http: {{url: "{server.url}/slow/{{id}}"}}\n    timeout_ms: 50\n    workers: 1')
        for _ in range(3):  # its only worker hangs from the first on
            context = context_of(client, question("ann"))
            assert (context["outcome"], context["reason_code"]) == ("deny", "source_failed")
            assert "error" in consulted(config, context)[0]

    def test_a_worker_that_never_comes_back_holds_up_no_answer_beyond_the_timeout(
        self, serve: Serve, config: Config, server: JsonServer
    ) -> None:
        client = serve(f'http: {{url: "{server.url}/drip/{{id}}"}}\n    timeout_ms: 50\n    workers: 1')
        for _ in range(3):  # the first is with the worker, the others wait for it
            context = context_of(client, question("ann"))
            assert (context["outcome"], context["reason_code"]) == ("deny", "source_failed")
            assert consulted(config, context)[0]["error"] == "it gave no answer in time"
        assert len(server.requests) == 1
        (source,) = client.status().sources
        assert (source.counters["failures"], source.waiting) == (3, 2)
        server.gate.set()

    def test_a_hung_source_holds_up_no_question_that_does_not_need_it(
        self, serve: Serve, config: Config, server: JsonServer
    ) -> None:
        client = serve(f'http: {{url: "{server.url}/slow/{{id}}"}}\n    timeout_ms: 60000')
        with ThreadPoolExecutor(1) as pool:

            def ask() -> dict[str, Any]:
                with Client(config.endpoint, timeout_ms=PATIENCE_MS) as other:
                    return context_of(other, question("ann"))

            waiting = pool.submit(ask)
            assert server.arrivals.acquire(timeout=20)
            assert context_of(client, question("ann", type="agent"))["outcome"] == "deny"
            assert not waiting.done()
            server.gate.set()
            assert waiting.result()["outcome"] == "allow"

    def test_the_sources_of_a_request_end_before_its_deadline(self, serve: Serve, server: JsonServer) -> None:
        client = serve(f'http: {{url: "{server.url}/slow/{{id}}"}}\n    timeout_ms: 60000')
        context = context_of(client, question("ann"), deadline_ms=1_000)
        assert (context["outcome"], context["reason_code"]) == ("deny", "source_failed")

    def test_a_setting_that_does_not_fit_a_source_keeps_the_daemon_from_starting(self, serve: Serve) -> None:
        with pytest.raises(
            ConfigError, match=r"sources: accounts\.url is set, but accounts is a table source"
        ):
            serve(sources=("accounts.url=https://x.example/{id}",))


class TestKeys:
    """Promise 3: the values of sources are part of what makes a question the same."""

    def test_a_repeated_idempotency_key_gets_the_recorded_decision_and_asks_no_source(
        self, serve: Serve, server: JsonServer
    ) -> None:
        client = serve(f'http: {{url: "{server.url}/people/{{id}}"}}\n    timeout_ms: 10000')
        first, again = (context_of(client, question("ann"), idempotency_key="k") for _ in range(2))
        assert first["decision_id"] == again["decision_id"]
        assert len(server.requests) == 1

    def test_a_replay_uses_the_recorded_values_and_asks_no_source(
        self, serve: Serve, config: Config, server: JsonServer
    ) -> None:
        client = serve(f'http: {{url: "{server.url}/people/{{id}}"}}\n    timeout_ms: 10000')
        contexts = [context_of(client, question(id)) for id in ("ann", "bob")]
        asked_before = len(server.requests)
        with Reader(config.journal_path) as reader:
            replayer = Replayer(reader, NoEngine(), pack_files.load(config.state_dir / "pack"))
            verdicts = [replayer.replay(context["decision_id"]) for context in contexts]
        assert [(v.verdict, v.outcome) for v in verdicts] == [("identical", "allow"), ("identical", "deny")]
        assert len(server.requests) == asked_before

    def test_a_replay_of_a_failed_source_fails_in_the_same_way(
        self, serve: Serve, config: Config, server: JsonServer
    ) -> None:
        client = serve(f'http: {{url: "{server.url}/status/{{id}}"}}\n    timeout_ms: 10000')
        context = context_of(client, question("ann"))
        with Reader(config.journal_path) as reader:
            replayer = Replayer(reader, NoEngine(), pack_files.load(config.state_dir / "pack"))
            replayed = replayer.replay(context["decision_id"])
        assert replayed.step is None
        assert replayed.outcome == "deny"


class TestMasking:
    def test_a_masked_value_is_not_recorded_and_a_keyed_digest_stands_for_it(
        self, serve: Serve, config: Config
    ) -> None:
        both = row("ann", "gold") + row("bob", "gold") + row("cleo", "tin")
        client = serve(table=both, masked=("/sources/accounts/tier",))
        ann, bob, cleo = (context_of(client, question(id)) for id in ("ann", "bob", "cleo"))
        assert ann["outcome"] == "allow"
        digests = [consulted(config, context)[0]["digest"] for context in (ann, bob, cleo)]
        assert digests[0] == digests[1] != digests[2]
        event = recorded(config, ann)
        assert event["private"]["consulted"] == {"accounts": {"tier": "[masked]", "limit": 20.0}}
        assert event["private"]["masked"] == ["/sources/accounts/tier"]
        assert "gold" not in str(event["private"])
        with Reader(config.journal_path) as reader:
            replayer = Replayer(reader, NoEngine(), pack_files.load(config.state_dir / "pack"))
            assert replayer.replay(ann["decision_id"]).verdict == "refused"

    @pytest.mark.parametrize("pointer", ["/sources/accounts", "/sources/", "/sources"])
    def test_a_pointer_must_name_an_attribute(self, pointer: str) -> None:
        with pytest.raises(ConfigError):
            Config(masked=(pointer,))


PUSHED = "pushed: {max_ttl_s: 60}"


class TestPushed:
    def push(self, client: Client, **changes: Any) -> None:
        fields = {"source": "accounts", "type": "user", "id": "ann", "values": {"tier": "gold"}, "ttl_s": 30}
        client.push(Push(**(fields | changes)))

    def test_a_pushed_value_counts_from_then_on_with_its_freshness_and_quality(
        self, serve: Serve, config: Config
    ) -> None:
        client = serve(PUSHED)
        assert context_of(client, question("ann"))["reason_code"] == "source_failed"
        self.push(client, fresh_at="2026-05-13T10:00:00Z", quality=0.5)
        context = context_of(client, question("ann"))
        assert context["outcome"] == "allow"
        (entry,) = consulted(config, context)
        assert (entry["fresh_at"], entry["quality"]) == ("2026-05-13T10:00:00Z", 0.5)
        status = client.status()
        assert status.pushed is not None
        assert (status.pushed.entries, status.pushed.counters["pushed"]) == (1, 1)

    @pytest.mark.parametrize(
        ("changes", "code", "message"),
        [
            (
                {"source": "other"},
                "not_found",
                "record.source: no resident pack has the pushed source 'other'",
            ),
            ({"type": "agent"}, "bad_request", "record.type: the source accounts describes user"),
            (
                {"values": {"tier": 7}},
                "bad_request",
                "record.values: the attribute tier is not of the type string",
            ),
            ({"ttl_s": 0}, "bad_request", "record.ttl_s"),
            ({"fresh_at": "today"}, "bad_request", "record.fresh_at: must be an RFC 3339 time"),
            ({"quality": 2}, "bad_request", "record.quality: must be at most 1"),
            ({"id": ""}, "bad_request", "record.id: must not be empty"),
        ],
    )
    def test_a_push_that_does_not_fit_is_refused_with_field_and_cure(
        self, serve: Serve, changes: dict[str, Any], code: str, message: str
    ) -> None:
        client = serve(PUSHED)
        with pytest.raises(RequestError) as refused:
            self.push(client, **changes)
        assert refused.value.code == code
        assert refused.value.message.startswith(message)

    def test_a_caller_may_hold_a_bounded_number(self, serve: Serve) -> None:
        client = serve(PUSHED, max_pushed=1)
        self.push(client)
        with pytest.raises(RequestError) as refused:
            self.push(client, id="bob")
        assert refused.value.code == "busy"


class TestCommands:
    def test_log_show_prints_each_value_with_its_system(self, serve: Serve, config: Config) -> None:
        context = context_of(serve(), question("ann"))
        arguments = ["log", "show", context["decision_id"], "--state-dir", str(config.state_dir)]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0
        for text in ("CRM", "tier = gold", "limit = 20.0"):
            assert text in result.output


class EngineRoom:
    """Takes what is handed over, as the engine's queue does."""

    mean_decision_ms = 0.0

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.arrived = threading.Semaphore(0)

    def ahead(self, lane: Lane) -> int:
        return 0

    def submit(self, request: Request, lane: Lane) -> None:
        self.requests.append(request)
        self.arrived.release()

    def drop(self, lane: Lane) -> list[Request]:
        return []


class TestHandingOver:
    def consulting(self, folder: Path, more: str, engine: EngineRoom, **settings: Any) -> Consulting:
        pack = pack_files.load(write_rules_only_pack(folder, rules=RULES, more=more))
        residents = Policy(NoEngine(), pack).residents
        return Consulting(engine, lambda: residents, pushed=PushedValues(1, 1_000), **settings)

    def request(self, ticket: int, id: str = "ann", deadline_ns: int = NEVER_NS) -> Request:
        return Request(
            ticket=ticket,
            evaluation=Evaluation(
                subject=Entity(type="user", id=id),
                action=Action(name="buy"),
                resource=Entity(type="doc", id="guide"),
            ),
            caller=Caller(transport="inproc"),
            received_at=1.8e9,
            received_ns=time.monotonic_ns(),
            deadline_ns=deadline_ns,
        )

    def test_a_request_of_a_pack_without_sources_goes_straight_on(self, tmp_path: Path) -> None:
        engine = EngineRoom()
        folder = write_rules_only_pack(
            tmp_path, rules='- {id: a, when: "true", outcome: allow, because: Yes.}'
        )
        residents = Policy(NoEngine(), pack_files.load(folder)).residents
        consulting = Consulting(engine, lambda: residents, pushed=PushedValues(1, 1))
        threads = threading.active_count()
        request = self.request(1)
        consulting.submit(request, Lane("uid:1"))
        assert engine.requests[0] is request
        assert threading.active_count() == threads

    def test_a_request_of_an_ended_connection_is_not_handed_over(
        self, tmp_path: Path, server: JsonServer
    ) -> None:
        engine = EngineRoom()
        more = SOURCE.format(
            more=f'http: {{url: "{server.url}/slow/{{id}}"}}\n    timeout_ms: 60000\n    workers: 1'
        )
        consulting = self.consulting(tmp_path, more, engine)
        ended, other = Lane("uid:1", "ended"), Lane("uid:1", "other")
        for ticket in (1, 2):
            consulting.submit(self.request(ticket), ended)
        consulting.submit(self.request(3), other)
        assert [request.ticket for request in consulting.drop(ended)] == [1, 2]
        server.gate.set()
        assert engine.arrived.acquire(timeout=20)
        assert [request.ticket for request in engine.requests] == [3]
        assert len(server.requests) <= 2  # the second of the ended connection was not asked for
        consulting.stop()

    def test_the_look_ups_that_wait_for_a_source_are_bounded(
        self, tmp_path: Path, server: JsonServer
    ) -> None:
        engine = EngineRoom()
        more = SOURCE.format(
            more=f'http: {{url: "{server.url}/slow/{{id}}"}}\n    timeout_ms: 60000\n    workers: 1'
        )
        consulting = self.consulting(tmp_path, more, engine, max_waiting=8)
        for ticket in range(12):
            consulting.submit(self.request(ticket), Lane("uid:1", "c"))
        (status,) = consulting.status()
        assert status.waiting <= 8
        assert status.counters["refused"] >= 4
        errors = {entry.error for request in engine.requests for entry in request.sources}
        assert all(error and error.endswith("(max_source_waiting)") for error in errors)
        server.gate.set()
        for _ in range(12):
            assert engine.arrived.acquire(timeout=20)
        assert sorted(request.ticket for request in engine.requests) == list(range(12))
        consulting.stop()

    def test_sources_are_consulted_in_parallel_and_recorded_in_the_packs_order(
        self, tmp_path: Path, server: JsonServer
    ) -> None:
        engine = EngineRoom()
        url = f"{server.url}/slow/{{id}}"
        names = ("zeta", "accounts", "beta")
        place = (
            "{of: subject, timeout_ms: 60000, attributes: {tier: {type: string}}, "
            f'http: {{url: "{url}"}}}}'
        )
        more = "sources:\n" + "".join(f"  {name}: {place}\n" for name in names)
        consulting = self.consulting(tmp_path, more, engine)
        consulting.submit(self.request(1), Lane("uid:1"))
        for _ in names:  # all three wait at the same time
            assert server.arrivals.acquire(timeout=20)
        server.gate.set()
        assert engine.arrived.acquire(timeout=20)
        assert tuple(entry.source for entry in engine.requests[0].sources) == names
        consulting.stop()
