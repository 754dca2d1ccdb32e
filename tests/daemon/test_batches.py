"""A batch against single questions: what is recorded of a decision is the same, in a batch or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from msgspec import to_builtins

from tests.build import rows, write_pack, write_rules_only_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal.verification.verify import verify
from thor_policy.suites import suite_files
from thor_policy.testing import WordEmbedder, load_stub_engine

PATIENCE_MS = 20_000
PACKS = sorted(path.parent.name for path in data_path("prompts").glob("*/pack.yaml"))
#: Questions of a shipped pack that a batch has: no more than a test may take.
MOST_QUESTIONS = 12
#: Members of an event that differ from one decision to the next; that they are there must not.
OF_ITS_OWN = {"timings", "idempotency", "explain_ms", "took_ms"}

Question = dict[str, Any]


def shape(value: Any) -> Any:
    """A value without what is of this decision alone: there, the type alone counts."""
    if isinstance(value, dict):
        return {
            name: sorted(member) if isinstance(member, dict) and name in OF_ITS_OWN
            else type(member).__name__ if name in OF_ITS_OWN
            else shape(member)
            for name, member in value.items()
        }  # fmt: skip
    return [shape(member) for member in value] if isinstance(value, list) else value


def recorded(config: Config, decision_id: str) -> dict[str, Any]:
    """All that the journal has of a decision: its events, its row, its edges."""
    events = rows(
        config.journal_path,
        "SELECT e.kind, e.body, p.value FROM events e LEFT JOIN private p ON p.seq = e.seq "
        "WHERE e.subject_id = ? ORDER BY e.seq",
        decision_id,
    )
    edges = rows(
        config.journal_path,
        "SELECT type, target, how, similarity, favourable FROM edges WHERE source = ? ORDER BY target",
        decision_id,
    )
    return {
        "events": [
            (kind, shape(json.loads(body)), shape(json.loads(value)) if value else None)
            for kind, body, value in events
        ],
        "edges": edges,
    }


def ask_batch(client: Client, questions: Sequence[Question], **members: Any) -> list[Question]:
    fields = {"explain": "none"} | members | {"evaluations": list(questions)}
    items: list[Question] = client.call("evaluate", fields)["evaluations"]
    return items


def assert_recorded_alike(
    config: Config, client: Client, questions: Sequence[Question], **members: Any
) -> list[dict[str, Any]]:
    """Ask each question alone, then all of them in a batch; returns the contexts of the batch's replies."""
    key = members.pop("idempotency_key", None)

    def keyed(name: str) -> dict[str, Any]:
        return members if key is None else members | {"idempotency_key": f"{key} {name}"}

    alone = [
        client.evaluate(question, **keyed(str(number)))["context"]
        for number, question in enumerate(questions)
    ]
    together = [item["context"] for item in ask_batch(client, questions, **keyed("batch"))]
    marker = client.evaluate(questions[0])["context"]["decision_id"]
    client.outcome(marker, "SUCCESS")  # what was put before it is committed: the edges
    assert len(together) == len(alone)
    for single, item in zip(alone, together, strict=True):
        assert "error" not in item, item
        assert sorted(item) == sorted(single)
        assert recorded(config, item["decision_id"]) == recorded(config, single["decision_id"])
    assert verify(config.journal_path).ok
    return together


Serve = Callable[..., Client]


@pytest.fixture
def serve(config: Config) -> Iterator[Serve]:
    """Starts a daemon with a pack and the stub engine, and a client of it."""
    with ExitStack() as stack:

        def start(pack: str, **changes: Any) -> Client:
            given = {"load_embedder": changes.pop("load_embedder")} if "load_embedder" in changes else {}
            served = replace(config, pack=pack, **changes)
            stack.enter_context(serving(served, load_engine=load_stub_engine, **given))
            return stack.enter_context(Client(config.endpoint, timeout_ms=PATIENCE_MS))

        yield start


def questions_of(pack: str) -> list[Question]:
    """Questions of a pack's suite, spread over it, with different outcomes."""
    suite = suite_files.load(data_path("scenarios") / f"{pack}.yaml")
    step = max(1, len(suite.scenarios) // MOST_QUESTIONS)
    return [to_builtins(scenario.evaluation()) for scenario in suite.scenarios[::step][:MOST_QUESTIONS]]


@pytest.mark.parametrize("pack", PACKS)
class TestShippedPacks:
    def test_record_the_same_of_a_question_alone_and_in_a_batch(
        self, pack: str, serve: Serve, config: Config
    ) -> None:
        contexts = assert_recorded_alike(config, serve(pack), questions_of(pack))
        assert len({context["outcome"] for context in contexts}) > 1

    def test_record_what_comes_with_a_question_with_each_of_a_batch(
        self, pack: str, serve: Serve, config: Config
    ) -> None:
        annotations: dict[str, Json] = {"tags": ["night"], "scenario_id": "s-1", "expected": ["deny"]}
        assert_recorded_alike(
            config,
            serve(pack),
            questions_of(pack)[:4],
            annotations=annotations,
            idempotency_key="k",
            explain="inline",
            pack=pack,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )


# ---------------------------------------------------------------- what shipped packs lack


def question(subject: str = "ann", action: str = "refund", **context: Any) -> Question:
    return {
        "subject": {"type": "user", "id": subject},
        "action": {"name": action},
        "resource": {"type": "order", "id": "7"},
        "context": {"details": "a broken phone"} | context,
    }


SOURCES = """
sources:
  accounts:
    of: subject
    types: [user]
    system: CRM
    attributes: {tier: {type: string}, limit: {type: number, at: limits.discount}}
    table: {path: accounts.jsonl}
"""
BY_TIER = """
- {id: gold, when: 'sources.accounts.tier == "gold"', outcome: allow, final: true, because: It is gold.}
- {id: tin, when: 'sources.accounts.tier == "tin"', outcome: require_mfa, because: It is tin.}
"""


@pytest.mark.parametrize("masked", [(), ("/sources/accounts/limit", "/context/details")])
def test_the_values_of_sources_are_recorded_with_each_decision_of_a_batch(
    masked: tuple[str, ...], serve: Serve, config: Config
) -> None:
    folder = write_rules_only_pack(config.state_dir / "pack", rules=BY_TIER, more=SOURCES)
    entries = [{"id": name, "tier": tier, "limits": {"discount": 20}} for name, tier in TIERS.items()]
    (folder / "accounts.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    client = serve(str(folder), masked=masked)
    questions = [question("ann"), question("bob"), question("nobody"), question("ann", "read")]
    contexts = assert_recorded_alike(config, client, questions)
    assert [context["outcome"] for context in contexts] == ["allow", "require_mfa", "require_mfa", "allow"]
    events = [recorded(config, context["decision_id"])["events"] for context in contexts]
    assert all("consulted" in body for ((_, body, _),) in events)


TIERS = {"ann": "gold", "bob": "tin"}
PRECEDENTS = "precedents: {rules: true, budget_ms: 1000, least_similarity: 0.3}\n"
BY_PRECEDENTS = """
- {id: few, when: precedents.count < 2, outcome: allow, final: true, because: There are few like it.}
- {id: denied_before, when: 'precedents.share("deny") > 0.5', outcome: deny, because: Most were denied.}
"""


@pytest.mark.parametrize("model", [False, True], ids=["rules", "model"])
def test_the_precedents_of_each_decision_of_a_batch_are_recorded_and_cited(
    model: bool, serve: Serve, config: Config
) -> None:
    folder = config.state_dir / "pack"
    if model:
        write_pack(folder, more=PRECEDENTS.replace("rules: true, ", ""))
    else:
        write_rules_only_pack(folder, rules=BY_PRECEDENTS, more=PRECEDENTS)
    past = replace(config, pack=str(folder))
    with serving(past, load_engine=load_stub_engine), Client(config.endpoint) as client:
        for number in range(3):
            client.evaluate(question(details=f"a broken phone {number}"))
    # what comes from now on is no precedent: the daemon looks for new decisions after a while
    client = serve(str(folder), embeddings_per_s=1, load_embedder=lambda _: WordEmbedder())
    while client.status().journal.counters["vectors_made"] < 3:
        pass
    questions = [question(details="a broken phone"), question(details="a broken phone 2")]
    contexts = assert_recorded_alike(config, client, questions)
    for context in contexts:
        assert len(context["precedents"]) == 3
        assert len(recorded(config, context["decision_id"])["edges"]) == 3


def test_each_decision_of_a_batch_that_stops_at_the_first_answer_is_recorded_as_a_single_one(
    serve: Serve, config: Config
) -> None:
    client, questions = serve("todo-app"), questions_of("todo-app")
    alone = {json.dumps(each): client.evaluate(each)["context"]["decision_id"] for each in questions}
    for semantic in ("deny_on_first_deny", "permit_on_first_permit"):
        items = ask_batch(client, questions, options={"evaluations_semantic": semantic})
        for each, item in zip(questions, items, strict=False):
            assert recorded(config, item["context"]["decision_id"]) == recorded(
                config, alone[json.dumps(each)]
            )


def test_a_question_that_is_twice_in_a_batch_is_recorded_twice(serve: Serve, config: Config) -> None:
    questions = questions_of("agent-tools")[:2] * 3
    contexts = assert_recorded_alike(config, serve("agent-tools"), questions, idempotency_key="twice")
    assert len({context["decision_id"] for context in contexts}) == 6


def test_a_wrong_question_in_a_batch_changes_nothing_of_what_is_recorded_of_the_others(
    serve: Serve, config: Config
) -> None:
    client, questions = serve("api-gateway"), questions_of("api-gateway")[:4]
    alone = [client.evaluate(each)["context"]["decision_id"] for each in questions]
    items = ask_batch(client, [questions[0], {"action": 7}, *questions[1:]])
    assert items.pop(1)["context"]["error"]["code"] == "bad_request"
    for decision_id, item in zip(alone, items, strict=True):
        assert recorded(config, item["context"]["decision_id"]) == recorded(config, decision_id)
