"""Generated situations: the same for the same seed, balanced, and labelled by a policy that agrees with the
rules wherever rules have a say. scripts/make-training-data, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from situations import Chance, agent, device, discount, drawn, flat, invoice, team, trade
from training_cases import part_of

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.policy import pack_files
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.requests import decode_request
from thor_policy.suites import suite_files

ROOT = Path(__file__).resolve().parents[2]

RISKS = ("low", "medium", "high", "critical")
DOMAINS = [pytest.param(domain, id=domain.PACK) for domain in (agent, device, discount, invoice, team, trade)]
WRITTEN = sorted((ROOT / "scripts" / "situations" / "written").glob("*.yaml"))
LOADED = {
    domain.values[0].PACK: pack_files.load(pack_files.find(domain.values[0].PACK, data_path("prompts")))
    for domain in DOMAINS
}


def make(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "make_training_data.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    ).stdout


@pytest.mark.parametrize("domain", DOMAINS)
def test_as_many_of_each_outcome_and_the_same_for_the_same_seed(domain: ModuleType) -> None:
    found = list(drawn(domain.make, 84, 3, domain.OUTCOMES))
    assert set(Counter(one.outcome for one in found).values()) == {84 // len(domain.OUTCOMES)}
    assert found == list(drawn(domain.make, 84, 3, domain.OUTCOMES))
    assert found != list(drawn(domain.make, 84, 4, domain.OUTCOMES))


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_figures_are_taken_from_was_not_learned_in_that_kind_or_those_words(domain: ModuleType) -> None:
    chance, kinds, words = Chance(5), defaultdict(set), defaultdict(list)
    for _ in range(4_000):
        chance.ways.clear()
        one = domain.make(chance)
        part = part_of(one, chance.ways)
        kinds[part].add(one.evidence)
        words[part].append({one.template, *chance.ways})
    learned = set().union(*words["train"])
    assert all(words[part] for part in ("train", "check", "templates", "kinds"))
    assert kinds["kinds"].isdisjoint(kinds["train"] | kinds["check"] | kinds["templates"])
    assert all(used - learned for used in words["templates"]), "each says something in a way of its own"


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 2**32))
def test_no_label_is_looser_than_the_rules_of_the_pack(domain: ModuleType, seed: int) -> None:
    """Two readings of the same clauses, by different hands: what rules settle, the labels settle alike."""
    one, pack = domain.make(Chance(seed)), LOADED[domain.PACK]
    floor = pack.book.apply(msgspec.convert(one.evaluation, Evaluation), time.time())
    assert not floor.errors
    assert domain.OUTCOMES.index(floor.outcome) <= domain.OUTCOMES.index(one.outcome), (floor.rules, one)
    if floor.final:
        assert one.outcome == floor.outcome
    assert RISKS.index(floor.risk) <= RISKS.index(one.risk)


@pytest.mark.parametrize("domain", [team])
@given(seed=st.integers(0, 2**32))
def test_both_forms_say_the_same(domain: ModuleType, seed: int) -> None:
    one = domain.make(Chance(seed))
    assume(one.has_flat_form)

    def read(**question: Any) -> Evaluation:
        frame = json.dumps({"v": 1, **question}).encode()
        message = decode_request(frame, max_bytes=65_536, max_deadline_ms=1_000)
        assert isinstance(message, EvaluateRequest)
        return message.evaluation

    assert read(situation=flat(one)) == read(request=one.evaluation)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_text_of_a_suite_is_used(domain: ModuleType) -> None:
    """What a suite asks must not be learned by heart."""
    suites = " ".join(path.read_text(encoding="utf-8") for path in data_path("scenarios").glob("*.yaml"))
    texts = [way for _, ways in domain.TEXTS.values() for way in ways]
    assert [text for text in texts if text in suites] == []


def test_a_suite_of_them_loads_and_lines_hold_labels(tmp_path: Path) -> None:
    path = tmp_path / "generated.yaml"
    path.write_text(make("--count", "12", "--seed", "5", "--suite", "--only-judged"), encoding="utf-8")
    loaded = suite_files.load(path)
    assert len(loaded.scenarios) == 12
    assert {"request", "situation"} <= {
        key for one in yaml.safe_load(path.read_text())["scenarios"] for key in one
    }
    lines = [json.loads(line) for line in make("--count", "12", "--seed", "5").splitlines()]
    assert len(lines) == 12
    assert {"evaluation", "outcome", "risk", "clauses", "reasoning", "template", "evidence"} <= lines[
        0
    ].keys()


def leaves(value: Any, *path: str | int) -> dict[tuple[str | int, ...], Any]:
    """What stands at each path of an evaluation."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {at: leaf for step, one in items for at, leaf in leaves(one, *path, step).items()}


@pytest.mark.parametrize("domain", DOMAINS)
@given(seed=st.integers(0, 2**32))
def test_a_pair_differs_in_one_fact(domain: ModuleType, seed: int) -> None:
    """And in its outcome; neither label is looser than the rules."""
    pack, order = LOADED[domain.PACK], domain.OUTCOMES
    for kind, loose, strict in islice(domain.pairs(Chance(seed)), 20):
        first, second = leaves(loose.evaluation), leaves(strict.evaluation)
        differing = {at for at in first.keys() | second.keys() if first.get(at) != second.get(at)}
        assert len(differing) == 1, (kind, differing)
        assert order.index(loose.outcome) < order.index(strict.outcome), kind
        assert loose.evidence == strict.evidence
        for one in (loose, strict):
            floor = pack.book.apply(msgspec.convert(one.evaluation, Evaluation), time.time())
            assert not floor.errors
            assert order.index(floor.outcome) <= order.index(one.outcome), (kind, floor.rules, one)
            assert RISKS.index(floor.risk) <= RISKS.index(one.risk), (kind, one)
            assert one.outcome == floor.outcome or not floor.final


@pytest.mark.parametrize("path", WRITTEN, ids=[path.stem for path in WRITTEN])
def test_written_situations_are_whole(path: Path) -> None:
    """Labels that the pack knows, none looser than its rules, each text once and none of a suite."""
    pack = LOADED[path.stem]
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    suites = " ".join(one.read_text(encoding="utf-8") for one in data_path("scenarios").glob("*.yaml"))
    assert len({one["id"] for one in found}) == len(found) >= 100
    for one in found:
        id, context = one["id"], one["evaluation"].get("context", {})
        at = datetime.fromisoformat(context.get("timestamp", "2026-01-01T15:00:00Z")).timestamp()
        floor = pack.book.apply(msgspec.convert(one["evaluation"], Evaluation), at)
        assert not floor.errors, id
        assert pack.labels.index(floor.outcome) <= pack.labels.index(one["outcome"]), (id, floor.rules)
        assert one["outcome"] == floor.outcome or not floor.final, id
        assert RISKS.index(floor.risk) <= RISKS.index(one["risk"]), id
        assert set() < set(one["clauses"]) <= pack.clauses.keys(), id
        assert 1 <= len(one["rationale"].split()) <= 20, id
        assert one["kind"], id
        learned_by_heart = str(context.get("details") or "?") in suites and "details" in context
        assert not learned_by_heart, id
    texts = Counter(one["evaluation"].get("context", {}).get("details") for one in found)
    assert [text for text, times in texts.items() if text and times > 1] == []
