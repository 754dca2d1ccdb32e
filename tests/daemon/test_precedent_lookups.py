"""Precedents beside questions: recorded, shown to rules and model, bounded in time, the same in a replay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.build import rows, write_pack, write_rules_only_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core.records import Review
from thor_policy.daemon.service import serving
from thor_policy.engine.absent import NoEngine
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.learning.cases import case_of
from thor_policy.learning.export import gather
from thor_policy.learning.replay import Replayer
from thor_policy.policy import pack_files
from thor_policy.testing import StubEngine, WordEmbedder, load_stub_engine
from thor_policy.trace.impact import of_precedent

PATIENCE_MS = 20_000
RULES = """
- id: few
  when: precedents.count < 2
  outcome: allow
  final: true
  because: There are few like it.
- id: denied_before
  when: precedents.share("deny") > 0.5
  outcome: deny
  because: Most cases like it were denied.
"""
CITED = """
- id: cited
  when: precedents.count == 3
  outcome: require_mfa
  clause: R2
  because: There are three like it.
"""
SEEN = "precedents: {rules: true, budget_ms: 1000, least_similarity: 0.3}\n"
SHOWN = "precedents: {budget_ms: 1000, least_similarity: 0.3}\n"


def question(details: str = "a broken phone", **context: Any) -> dict[str, Any]:
    return {
        "subject": {"type": "user", "id": "ivo"},
        "action": {"name": "refund"},
        "resource": {"type": "order", "id": "7"},
        "context": {"details": details, **context},
    }


class Ended(WordEmbedder):
    """An embedder that waits for ever, until the test lets it go on."""

    def __init__(self) -> None:
        self.let = threading.Event()

    def embed(self, text: str) -> Any:
        self.let.wait(PATIENCE_MS / 1e3)
        return super().embed(text)


Serve = Callable[..., Client]


@pytest.fixture
def serve(config: Config) -> Iterator[Serve]:
    """A daemon with a pack that asks for precedents, and a history of three decisions with vectors."""
    with ExitStack() as stack:

        def start(folder: Path, *, history: int = 3, embedder: WordEmbedder | None = None) -> Client:
            past = replace(config, pack=str(folder))
            with serving(past, load_engine=load_stub_engine), Client(config.endpoint) as client:
                for number in range(history):
                    client.evaluate(question(f"a broken phone {number}"), explain="none")
            # a daemon embeds what it finds when it starts, then it looks again after some seconds
            asking = replace(past, embeddings_per_s=1, cache_size=100)
            stack.enter_context(
                serving(
                    asking,
                    load_engine=load_stub_engine,
                    load_embedder=lambda _: embedder or WordEmbedder(),
                )
            )
            client = stack.enter_context(Client(config.endpoint, timeout_ms=PATIENCE_MS))
            made = 0
            while embedder is None and made < history:
                made = client.status().journal.counters["vectors_made"]
            return client

        yield start


def event_of(config: Config, decision_id: str) -> dict[str, Any]:
    with Reader(config.journal_path) as reader:
        _, event = reader.recorded(decision_id)
    return event


def test_rules_see_precedents_which_are_recorded_and_cited(serve: Serve, config: Config) -> None:
    folder = write_rules_only_pack(config.state_dir / "pack", rules=RULES, more=SEEN)
    client = serve(folder)
    reply = client.evaluate(question())["context"]
    client.outcome(reply["decision_id"], "SUCCESS")  # the edges are committed before it
    event = event_of(config, reply["decision_id"])
    stated = event["body"]["precedents"]
    assert reply["precedents"] == [each["id"] for each in stated]
    assert len(stated) == 3
    assert {each["outcome"] for each in stated} == {"allow"}
    assert all(line.startswith("similar case: allow: ") for line in event["private"]["precedents"])
    edges = rows(
        config.journal_path,
        "SELECT target, how, similarity, favourable FROM edges WHERE source = ? AND type = 'CITES'",
        reply["decision_id"],
    )
    outcome = reply["outcome"]
    assert [edge[0] for edge in edges] == reply["precedents"]
    assert [edge[2] for edge in edges] == [each["similarity"] for each in stated]
    assert {edge[3] for edge in edges} == {int(outcome == "allow")}
    with Reader(config.journal_path) as reader:
        resting = of_precedent(reader, reply["precedents"][0])
    assert [row["id"] for row in resting.decisions] == [reply["decision_id"]]
    assert verify(config.journal_path).ok


def test_the_share_of_denials_raises_the_floor(serve: Serve, config: Config) -> None:
    folder = write_rules_only_pack(
        config.state_dir / "pack", rules=RULES.replace("count < 2", "count < 0"), more=SEEN
    )
    client = serve(folder)  # nothing is allowed by rule, so all of the history was denied by default
    context = client.evaluate(question())["context"]
    assert context["outcome"] == "deny"
    assert context["rules"] == ["denied_before"]


def test_a_replay_uses_the_recorded_precedents_and_looks_nothing_up(serve: Serve, config: Config) -> None:
    folder = write_rules_only_pack(config.state_dir / "pack", rules=RULES, more=SEEN)
    context = serve(folder).evaluate(question())["context"]
    with Reader(config.journal_path) as reader:
        replayed = Replayer(reader, NoEngine(), pack_files.load(folder)).replay(context["decision_id"])
    assert (replayed.verdict, replayed.outcome) == ("identical", context["outcome"])


def test_the_model_is_shown_a_line_for_each_and_repeat_and_replay_give_equal_bits(
    serve: Serve, config: Config
) -> None:
    folder = write_pack(config.state_dir / "pack", more=SHOWN)
    client = serve(folder)
    first, second = (client.evaluate(question())["context"] for _ in range(2))
    assert len(first["precedents"]) == 3
    assert first["precedents"] == second["precedents"]
    assert (first["probabilities"], first["outcome"]) == (second["probabilities"], second["outcome"])
    assert second["tier"] == "cache"
    with Reader(config.journal_path) as reader:
        replayer = Replayer(reader, StubEngine(), pack_files.load(folder))
        assert replayer.replay(first["decision_id"]).verdict == "identical"
    tokens = event_of(config, first["decision_id"])["private"]["suffix_tokens"]
    text = "".join(map(chr, tokens))
    assert text.count("similar case: ") == 3 or len(tokens) > 3 * len("similar case: ")


def test_what_is_learnt_from_a_decision_has_its_recorded_precedents(serve: Serve, config: Config) -> None:
    folder = write_pack(config.state_dir / "pack", more=SHOWN.replace("{", "{rules: true, "))
    rules = folder / "rules.yaml"
    rules.write_text(rules.read_text() + CITED)
    client = serve(folder)
    context = client.evaluate(question())["context"]
    assert "cited" in context["rules"]
    client.review(
        Review(
            decision_id=context["decision_id"], reviewer="ana", verdict="correct_decision", decision="deny"
        )
    )
    pack = pack_files.load(folder)
    with Reader(config.journal_path) as reader:
        (correction,) = gather(reader, pack).corrections
        row = reader.get(context["decision_id"])
        assert row is not None
        case = case_of(reader, row, pack)
    assert correction.question.count("similar case: ") == 3
    assert case is not None
    assert "cited" in case.floor.rules


def test_other_precedents_make_another_question(serve: Serve, config: Config) -> None:
    folder = write_pack(config.state_dir / "pack", more=SHOWN.replace("{", "{k: 1, "))
    client = serve(folder)
    first, other, again = (
        client.evaluate(question(f"a broken phone {number}"))["context"] for number in (0, 1, 0)
    )
    assert first["precedents"] == again["precedents"] != other["precedents"]
    assert (other["tier"], again["tier"]) == ("model", "cache")  # the pack shows the model no details


def test_a_look_up_beyond_its_budget_leaves_the_question_without_and_says_so(
    serve: Serve, config: Config
) -> None:
    folder = write_rules_only_pack(config.state_dir / "pack", rules=RULES, more=SEEN.replace("1000", "1"))
    embedder = Ended()
    client = serve(folder, embedder=embedder)
    try:
        context = client.evaluate(question())["context"]
    finally:
        embedder.let.set()
    assert (context["outcome"], context["precedents"]) == ("allow", [])
    body = event_of(config, context["decision_id"])["body"]
    assert body["precedents_note"] == "none were looked up within the budget"
    with Reader(config.journal_path) as reader:
        replayed = Replayer(reader, NoEngine(), pack_files.load(folder)).replay(context["decision_id"])
    assert replayed.verdict == "identical"


def test_without_vectors_there_are_no_precedents_and_the_note_says_why(config: Config) -> None:
    folder = write_rules_only_pack(config.state_dir / "pack", rules=RULES, more=SEEN)
    with (
        serving(replace(config, pack=str(folder)), load_engine=load_stub_engine),
        Client(config.endpoint) as client,
    ):
        client.evaluate(question())
        context = client.evaluate(question())["context"]
    assert context["precedents"] == []
    note = event_of(config, context["decision_id"])["body"]["precedents_note"]
    assert note.startswith("similarity was not compared: the setting embeddings_per_s is 0")


def test_a_question_of_a_test_gets_none_but_a_claim_to_be_one_does_not_avoid_them(
    serve: Serve, config: Config
) -> None:
    folder = write_rules_only_pack(config.state_dir / "pack", rules=RULES, more=SEEN)
    client = serve(folder)
    of_test = client.evaluate(question(), annotations={"scenario_id": "s1"})["context"]
    assert of_test["precedents"] == []
    assert "precedents_note" not in event_of(config, of_test["decision_id"])["body"]


def test_no_shipped_pack_asks_for_precedents() -> None:
    for folder in sorted(path.parent for path in data_path("prompts").glob("*/pack.yaml")):
        assert pack_files.load(folder).manifest.precedents is None
