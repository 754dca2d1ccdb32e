"""`thorpolicy similar`: through a daemon and without one, for an id, a question, a file and a text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.build import write_rules_only_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import RequestError
from thor_policy.core.recall import Filters, SimilarQuery
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.testing import WordEmbedder, load_stub_engine

Run = Callable[..., Result]


def asking(details: str, actor: str = "ivo") -> dict[str, Any]:
    return {
        "subject": {"type": "user", "id": actor},
        "action": {"name": "refund"},
        "resource": {"type": "order", "id": "7"},
        "context": {"details": details},
    }


@pytest.fixture
def settings(config: Config, tmp_path: Path) -> Config:
    write_rules_only_pack(tmp_path / "pack", rules="[]")
    return dataclasses.replace(config, pack=str(tmp_path / "pack"), embeddings_per_s=10_000)


@pytest.fixture
def run(settings: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", settings.endpoint)
    monkeypatch.setenv("THOR_POLICY_MODELS_DIR", str(settings.state_dir))
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["similar", *arguments], input=stdin)

    return invoke


def until_embedded(client: Client, count: int) -> None:
    while client.status().journal.counters["vectors_made"] < count:
        pass


def test_a_daemon_embeds_its_decisions_and_finds_similar_ones(settings: Config, run: Run) -> None:
    with serving(settings, load_engine=load_stub_engine), Client(settings.endpoint) as client:
        ids = [
            client.evaluate(asking(text))["context"]["decision_id"]
            for text in ("a broken phone", "a late parcel", "a broken screen of a phone")
        ]
        client.outcome(ids[0], "SUCCESS", value=3.0)
        client.review(records.Review(decision_id=ids[0], reviewer="carol", verdict="accept"))
    with (  # a daemon looks for what has no vector when it starts, and then every five seconds
        serving(settings, load_engine=load_stub_engine, load_embedder=lambda _: WordEmbedder()),
        Client(settings.endpoint) as client,
    ):
        until_embedded(client, 3)
        answer = client.similar(SimilarQuery(id=ids[2], k=2))
        assert [each.id for each in answer.precedents] == [ids[0], ids[1]]
        assert answer.by[0] == "similarity"
        assert answer.note is None
        assert answer.vectors == 3
        text = run(ids[2], "-k", "2", "--why").stdout
        assert "2 similar: 2 deny, 100 % of 1 confirmed by people, average value 3" in text
        assert ids[0][-8:] in text
        assert "judgment" in text
        question = json.dumps(asking("a broken phone"))
        by_question = json.loads(run(question, "--json").stdout)
        assert by_question["precedents"][0]["id"] == ids[0]
        (settings.state_dir / "q.json").write_text(question)
        assert (
            json.loads(run(str(settings.state_dir / "q.json"), "--json").stdout)["statistics"]["count"] == 3
        )
        assert json.loads(run("-", "--json", stdin=question).stdout)["statistics"]["count"] == 3
        none = client.similar(SimilarQuery(text="phone", filters=Filters(actor="nobody")))
        assert none.precedents == ()
        while (status := client.status().recall) is None or status.counters["searches"] < 6:
            pass  # a status may be as old as some milliseconds
        assert (status.vectors, status.problem) == (3, None)


def test_without_vectors_the_answer_says_so(settings: Config, run: Run) -> None:
    settings = dataclasses.replace(settings, embeddings_per_s=0)
    with serving(settings, load_engine=load_stub_engine), Client(settings.endpoint) as client:
        decision_id = client.evaluate(asking("a broken phone"))["context"]["decision_id"]
        result = run("refund", "--json")
    answer = json.loads(result.stdout)
    assert [each["id"] for each in answer["precedents"]] == [decision_id]
    assert answer["note"].startswith("similarity was not compared: the setting embeddings_per_s is 0")


def test_without_a_daemon_the_journal_is_read(settings: Config, run: Run) -> None:
    with serving(settings, load_engine=load_stub_engine), Client(settings.endpoint) as client:
        decision_id = client.evaluate(asking("a broken phone"))["context"]["decision_id"]
    result = run("a phone")
    assert result.stdout.startswith("1 similar: 1 deny")
    assert decision_id[-8:] in result.stdout
    assert "similarity was not compared: all-MiniLM-L6-v2.int8.onnx is not in" in " ".join(
        result.stderr.split()
    )
    with Reader(settings.journal_path) as reader:
        assert reader.get(decision_id) is not None


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("00000000-0000",), 4, "there is no decision"),
        (("phone", "--since", "yesterday"), 2, "not an RFC 3339 time"),
        (("phone", "-k", "51"), 2, "51 is not in the range"),
        (("{no json",), 2, "the question"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    settings: Config, run: Run, arguments: tuple[str, ...], status: int, message: str
) -> None:
    with serving(settings, load_engine=load_stub_engine), Client(settings.endpoint) as client:
        client.evaluate(asking("a broken phone"))
    result = run(*arguments)
    assert (result.exit_code, message in " ".join((result.stdout + result.stderr).split())) == (status, True)


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        ({}, "bad_request", "record: give one of id, question, situation and text"),
        ({"id": "x", "text": "y"}, "bad_request", "record: give one of id, question, situation and text"),
        ({"text": ""}, "bad_request", "record.text: must not be empty"),
        ({"text": "x" * 5_000}, "too_large", "record.text"),
        ({"text": "x", "k": 51}, "bad_request", "record.k: must be at most 50"),
        ({"text": "x", "k": 0}, "bad_request", "record.k: must be at least 1"),
        ({"text": "x", "filters": {"since": "soon"}}, "bad_request", "record.filters.since"),
        ({"text": "x", "filters": {"who": "me"}}, "bad_request", "record.filters"),
        ({"question": {"subject": {}}}, "bad_request", "record.question.subject"),
        ({"question": asking("x" * 5_000)}, "too_large", "record.question.context.details"),
        ({"situation": {"actor_id": "ivo"}}, "bad_request", "situation.action_type: is missing"),
        ({"id": "no-such-decision"}, "not_found", "record.id: there is no decision"),
        ([], "bad_request", "record: must be an object"),
    ],
)
def test_a_request_beyond_its_bounds_is_refused(
    settings: Config, record: Any, code: str, message: str
) -> None:
    with serving(settings, load_engine=load_stub_engine), Client(settings.endpoint) as client:
        client.evaluate(asking("a broken phone"))
        with pytest.raises(RequestError) as caught:
            client.call("similar", {"record": record})
    assert caught.value.code == code
    assert message in str(caught.value)


def test_a_flat_situation_is_a_question_too(settings: Config) -> None:
    with serving(settings, load_engine=load_stub_engine), Client(settings.endpoint) as client:
        client.evaluate(asking("a broken phone"))
        flat = {"actor_id": "user:ivo", "action_type": "refund", "resource": "order:7", "details": "a phone"}
        reply = client.call("similar", {"record": {"situation": flat}})
    assert reply["similar"]["statistics"]["count"] == 1
