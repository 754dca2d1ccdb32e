"""A daemon refuses texts out of bounds at its door, and stops rules that take too long, on the record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.build import write_rules_only_pack
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.learning.replay import Replayer
from thor_policy.policy import pack_files
from thor_policy.testing import StubEngine, load_stub_engine

RULES = """
- {id: ok, when: 'texts(context).all(text, !mentions(text, "bad"))', outcome: allow, because: Fine.}
"""
MORE = "words: {bad: [rm]}\nlimits: {texts: {context.diff: 9000}}\n"


def question(**context: Json) -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": "ivo"},
        "action": {"name": "read"},
        "resource": {"type": "doc", "id": "guide"},
        "context": context,
    }


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    pack = write_rules_only_pack(tmp_path / "alone", rules=RULES, more=MORE)
    return replace(config, pack=str(pack))


@contextmanager
def daemon(config: Config) -> Iterator[Client]:
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint, timeout_ms=20_000) as client:
        yield client


def test_long_texts_are_refused_unless_setting_or_pack_allow_them(config: Config) -> None:
    with daemon(replace(config, max_text_chars=300)) as client:
        with pytest.raises(RequestError, match=r"request\.context\.details: has 301 .* the limit is 300"):
            client.evaluate(question(details="a" * 301))
        assert client.evaluate(question(details="a" * 300))["decision"]
        assert client.evaluate(question(diff="a" * 9_000))["decision"]
        with pytest.raises(RequestError, match="the limit is 9000"):
            client.evaluate(question(diff="a" * 9_001))


def test_stopped_rules_are_recorded_as_a_fallback_that_replays(config: Config) -> None:
    many = {f"t{at}": f"{at} text of a thousand" for at in range(1_000)}
    with daemon(replace(config, rule_budget_ms=1)) as client:
        reply = client.evaluate(question(**many), explain="inline")
        context = reply["context"]
        assert (reply["decision"], context["outcome"], context["tier"]) == (False, "deny", "fallback")
        assert (context["reason_code"], context["reasoning_source"]) == ("rules_budget", "failure")
        assert "budget of processor time" in context["reasoning"]
        assert client.status().engine.counters["rules_stopped"] == 1
    with closing(Reader(config.journal_path)) as reader:
        pack = pack_files.load(Path(config.pack))
        replayed = Replayer(reader, StubEngine(), pack).replay(context["decision_id"])
        assert (replayed.verdict, replayed.tier) == ("identical", "fallback")
        assert replayed.reason == (
            "its rules were stopped then (rules_budget); what follows from that is as recorded"
        )
    with daemon(config) as client:
        assert client.evaluate(question(**many))["context"]["tier"] == "rule"
