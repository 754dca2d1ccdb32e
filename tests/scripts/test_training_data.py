"""The generated and the written situations that adapters are trained on, and the command that prints them.

Labels come from a reference policy. Where the rules of a pack are final, both must agree.
"""

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
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.policy import pack_files, yaml_text
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.requests import decode_request
from thor_policy.suites import suite_files
from training_data.cases import WRITTEN, part_of
from training_data.domains import DOMAINS, team
from training_data.situations import Chance, Domain, draw_balanced, flat_form

ROOT = Path(__file__).resolve().parents[2]

RISKS = ("low", "medium", "high", "critical")
EACH_DOMAIN = [pytest.param(domain, id=name) for name, domain in DOMAINS.items()]
WRITTEN_FILES = sorted(WRITTEN.glob("*.yaml"))
PACKS = {name: pack_files.load(pack_files.find(name, data_path("prompts"))) for name in DOMAINS}
#: The domains of packs that ask a model. A pack of rules alone allows only what it knows to be harmless, so
#: its answers are stricter than the labels, which read the task.
JUDGED_DOMAINS = [
    pytest.param(domain, id=name) for name, domain in DOMAINS.items() if not PACKS[name].rules_only
]


def make_training_data(*arguments: str) -> str:
    """What the script prints, as a user runs it."""
    command = [sys.executable, str(ROOT / "scripts" / "make_training_data.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    ).stdout


def test_there_is_a_generator_and_a_written_file_for_each_pack_that_ships() -> None:
    shipped = {path.parent.name for path in data_path("prompts").glob("*/system.md")}  # those with a prompt
    assert DOMAINS.keys() == shipped
    assert {path.stem for path in WRITTEN_FILES} == shipped


@pytest.mark.parametrize("domain", EACH_DOMAIN)
def test_outcomes_are_equally_frequent_and_a_seed_gives_the_same_situations(domain: Domain) -> None:
    situations = list(draw_balanced(domain.make, 84, 3, domain.OUTCOMES))
    counts = Counter(situation.outcome for situation in situations)
    assert set(counts.values()) == {84 // len(domain.OUTCOMES)}
    assert situations == list(draw_balanced(domain.make, 84, 3, domain.OUTCOMES))
    assert situations != list(draw_balanced(domain.make, 84, 4, domain.OUTCOMES))


@pytest.mark.parametrize("domain", EACH_DOMAIN)
def test_held_out_situations_use_kinds_or_phrasings_that_training_never_shows(domain: Domain) -> None:
    chance, kinds, phrasings = Chance(5), defaultdict(set), defaultdict(list)
    for _ in range(4_000):
        chance.ways.clear()
        situation = domain.make(chance)
        part = part_of(situation, chance.ways)
        kinds[part].add(situation.evidence)
        phrasings[part].append({situation.template, *chance.ways})
    trained = set().union(*phrasings["train"])
    assert all(phrasings[part] for part in ("train", "check", "templates", "kinds"))
    assert kinds["kinds"].isdisjoint(kinds["train"] | kinds["check"] | kinds["templates"])
    assert all(used - trained for used in phrasings["templates"]), "each has a phrasing that was not trained"


@pytest.mark.parametrize("domain", JUDGED_DOMAINS)
@given(seed=st.integers(0, 2**32))
def test_no_label_is_looser_than_the_rules_of_the_pack(domain: Domain, seed: int) -> None:
    """Reference policy and rules are two readings of the same clauses: where rules are final, both agree."""
    situation, pack = domain.make(Chance(seed)), PACKS[domain.PACK]
    floor = pack.book.apply(msgspec.convert(situation.evaluation, Evaluation), time.time())
    order = domain.OUTCOMES
    assert not floor.errors
    assert order.index(floor.outcome) <= order.index(situation.outcome), (floor.rules, situation)
    if floor.final:
        assert situation.outcome == floor.outcome
    assert RISKS.index(floor.risk) <= RISKS.index(situation.risk)


@pytest.mark.parametrize("domain", [team])
@given(seed=st.integers(0, 2**32))
def test_the_flat_form_is_read_as_the_same_evaluation(domain: Domain, seed: int) -> None:
    situation = domain.make(Chance(seed))
    assume(situation.has_flat_form)

    def read(**question: Any) -> Evaluation:
        frame = json.dumps({"v": 1, **question}).encode()
        message = decode_request(frame, max_bytes=65_536, max_deadline_ms=1_000)
        assert isinstance(message, EvaluateRequest)
        return message.evaluation

    assert read(situation=flat_form(situation)) == read(request=situation.evaluation)


@pytest.mark.parametrize("domain", EACH_DOMAIN)
def test_no_phrasing_of_a_generator_stands_in_a_suite(domain: Domain) -> None:
    """Otherwise an adapter could learn the suites by heart."""
    suites = " ".join(path.read_text(encoding="utf-8") for path in data_path("scenarios").glob("*.yaml"))
    texts = [way for _, ways in domain.TEXTS.values() for way in ways]
    assert [text for text in texts if text in suites] == []


def test_a_printed_suite_loads_and_printed_lines_hold_labels(tmp_path: Path) -> None:
    path = tmp_path / "generated.yaml"
    path.write_text(
        make_training_data("--count", "12", "--seed", "5", "--suite", "--only-judged"), encoding="utf-8"
    )
    assert len(suite_files.load(path).scenarios) == 12
    scenarios = yaml_text.parse(path.read_text(encoding="utf-8"), Any, path)["scenarios"]
    assert {"request", "situation"} <= {key for scenario in scenarios for key in scenario}
    lines = [json.loads(line) for line in make_training_data("--count", "12", "--seed", "5").splitlines()]
    assert len(lines) == 12
    members = {"evaluation", "outcome", "risk", "clauses", "reasoning", "template", "evidence"}
    assert members <= lines[0].keys()


def leaves(value: Any, *path: str | int) -> dict[tuple[str | int, ...], Any]:
    """The leaf at each path of an evaluation."""
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {at: leaf for step, member in items for at, leaf in leaves(member, *path, step).items()}


@pytest.mark.parametrize("domain", JUDGED_DOMAINS)
@given(seed=st.integers(0, 2**32))
def test_a_pair_differs_in_one_fact_and_in_its_outcome(domain: Domain, seed: int) -> None:
    """Neither label of a pair is looser than the rules."""
    pack, order = PACKS[domain.PACK], domain.OUTCOMES
    for kind, loose, strict in islice(domain.pairs(Chance(seed)), 20):
        first, second = leaves(loose.evaluation), leaves(strict.evaluation)
        differing = {at for at in first.keys() | second.keys() if first.get(at) != second.get(at)}
        assert len(differing) == 1, (kind, differing)
        assert order.index(loose.outcome) < order.index(strict.outcome), kind
        assert loose.evidence == strict.evidence
        for side in (loose, strict):
            floor = pack.book.apply(msgspec.convert(side.evaluation, Evaluation), time.time())
            assert not floor.errors
            assert order.index(floor.outcome) <= order.index(side.outcome), (kind, floor.rules, side)
            assert RISKS.index(floor.risk) <= RISKS.index(side.risk), (kind, side)
            assert side.outcome == floor.outcome or not floor.final


@pytest.mark.parametrize("path", WRITTEN_FILES, ids=[path.stem for path in WRITTEN_FILES])
def test_written_situations_have_valid_labels_and_unique_texts(path: Path) -> None:
    """Labels exist in the pack and are not looser than its rules; no text is repeated or in a suite."""
    pack = PACKS[path.stem]
    entries = yaml_text.parse(path.read_text(encoding="utf-8"), Any, path)
    suites = " ".join(suite.read_text(encoding="utf-8") for suite in data_path("scenarios").glob("*.yaml"))
    assert len({entry["id"] for entry in entries}) == len(entries) >= 100
    for entry in entries:
        id, context = entry["id"], entry["evaluation"].get("context", {})
        at = datetime.fromisoformat(context.get("timestamp", "2026-01-01T15:00:00Z")).timestamp()
        floor = pack.book.apply(msgspec.convert(entry["evaluation"], Evaluation), at)
        assert not floor.errors, id
        if not pack.rules_only:
            assert pack.labels.index(floor.outcome) <= pack.labels.index(entry["outcome"]), (id, floor.rules)
            assert entry["outcome"] == floor.outcome or not floor.final, id
            assert RISKS.index(floor.risk) <= RISKS.index(entry["risk"]), id
        assert set() < set(entry["clauses"]) <= pack.clauses.keys(), id
        assert 1 <= len(entry["rationale"].split()) <= 20, id
        assert entry["kind"], id
        in_a_suite = str(context.get("details") or "?") in suites and "details" in context
        assert not in_a_suite, id
    texts = Counter(entry["evaluation"].get("context", {}).get("details") for entry in entries)
    assert [text for text, times in texts.items() if text and times > 1] == []
