"""The packs that ship: names that nobody knows, requests without a time, ranges, and what the model reads.

`cases/names.json` and `cases/ranges.json` have requests with their right outcomes by the rules alone.
`scenario-questions.json` has a digest of what the model reads of each scenario of their suites.
"""

from __future__ import annotations

import functools
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from thor_policy.config import data_path
from thor_policy.core import strict_json
from thor_policy.core.requests import Evaluation
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.suites import suite_files

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES: list[dict[str, Any]] = strict_json.decode((DATA / "cases" / "names.json").read_bytes())
RANGES: list[dict[str, Any]] = strict_json.decode((DATA / "cases" / "ranges.json").read_bytes())
QUESTIONS: dict[str, dict[str, str]] = strict_json.decode((DATA / "scenario-questions.json").read_bytes())
PACKS = pack_files.available(data_path("prompts"))
NOON = datetime.fromisoformat("2026-05-12T12:00:00Z").timestamp()
#: Tuesday in and after working hours, Sunday, New Year, and the last minute of a quarter.
RECEIPTS = [
    datetime.fromisoformat(at).timestamp()
    for at in (
        "2026-05-12T10:05:00Z",
        "2026-05-12T23:00:00Z",
        "2026-05-17T15:00:00Z",
        "2027-01-01T00:00:00Z",
        "2026-12-31T23:59:00Z",
    )
]


@functools.cache
def pack_of(name: str) -> Pack:
    return pack_files.load(data_path("prompts") / name)


@functools.cache
def scenarios_of(name: str) -> dict[str, Evaluation]:
    suite = suite_files.load(data_path("scenarios") / f"{name}.yaml")
    return {scenario.id: scenario.evaluation() for scenario in suite.scenarios}


def without_time(evaluation: Evaluation) -> Evaluation:
    context = {name: value for name, value in evaluation.context.items() if name not in ("time", "timestamp")}
    return msgspec.structs.replace(evaluation, context=context)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("case", NAMES, ids=[case["id"] for case in NAMES])
def test_a_name_that_is_misspelt_disguised_or_translated_gets_no_looser_answer(case: dict[str, Any]) -> None:
    floor = pack_of(case["pack"]).book.apply(msgspec.convert(case["request"], Evaluation), NOON)
    assert floor.outcome in case["right"], floor.rules


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_unknown_action_is_never_allowed_by_rule(name: str) -> None:
    pack = pack_of(name)
    for id, evaluation in scenarios_of(name).items():
        action = msgspec.structs.replace(evaluation.action, name="frobnicate")
        floor = pack.book.apply(msgspec.structs.replace(evaluation, action=action), NOON)
        assert floor.outcome != pack.loosest, id


@pytest.mark.parametrize("name", QUESTIONS)
def test_case_and_blanks_around_a_name_change_no_outcome(name: str) -> None:
    pack = pack_of(name)
    for id, evaluation in scenarios_of(name).items():
        action = msgspec.structs.replace(evaluation.action, name=f" {evaluation.action.name.upper()} ")
        changed = pack.book.apply(msgspec.structs.replace(evaluation, action=action), NOON)
        floor = pack.book.apply(evaluation, NOON)
        known = "vocabulary:action.name" not in floor.rules
        assert not known or (changed.outcome, changed.final) == (floor.outcome, floor.final), id


# ---------------------------------------------------------------- ranges


@pytest.mark.parametrize("case", RANGES, ids=[case["id"] for case in RANGES])
def test_only_a_range_inside_a_local_block_is_not_the_internet(case: dict[str, Any]) -> None:
    floor = pack_of("device-operations").book.apply(msgspec.convert(case["request"], Evaluation), NOON)
    assert floor.outcome in case["right"], floor.facts


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("name", PACKS)
def test_a_request_without_a_time_gets_the_same_answer_at_any_time_of_the_daemon(name: str) -> None:
    pack = pack_of(name)
    for id, evaluation in scenarios_of(name).items():
        floors = [pack.book.apply(without_time(evaluation), at) for at in RECEIPTS]
        assert floors[1:] == floors[:-1], id


@pytest.mark.parametrize("name", PACKS)
def test_a_request_without_a_time_gets_no_looser_answer_than_with_it(name: str) -> None:
    book = pack_of(name).book
    for id, evaluation in scenarios_of(name).items():
        timed, untimed = book.apply(evaluation, NOON), book.apply(without_time(evaluation), NOON)
        assert book.stricter(timed.outcome, untimed.outcome) == untimed.outcome, id
        assert timed.final or not (untimed.final and untimed.outcome == pack_of(name).loosest), id


@pytest.mark.parametrize(
    ("times", "outcome"),
    [
        ({"time": "2026-05-12T10:05:00Z"}, "allow"),
        ({"timestamp": "2026-05-12T10:05:00Z"}, "allow"),
        ({"time": "2026-05-12T06:59:59Z"}, "require_attestation"),
        ({"time": "2026-05-12T07:00:00Z"}, "allow"),
        ({"time": "2026-05-12T20:00:00Z"}, "require_attestation"),
        ({"time": "2026-05-12T23:00:00+04:00"}, "allow"),
        ({"time": "2026-05-17T10:05:00Z"}, "require_attestation"),
        ({"time": "2026-05-12T10:05:00Z", "timestamp": "2026-05-12T23:00:00Z"}, "require_attestation"),
        ({}, "require_attestation"),
        ({"time": "soon"}, "require_attestation"),
    ],
)
def test_working_hours_are_those_of_utc_by_every_time_that_the_request_states(
    times: dict[str, str], outcome: str
) -> None:
    trust = dict.fromkeys(("competence", "reliability", "integrity"), 0.9)
    request = {
        "subject": {"type": "user", "id": "ada", "properties": {"role": "engineer", "trust": trust}},
        "action": {"name": "deploy"},
        "resource": {"type": "service", "id": "billing-prod"},
        "context": times,
    }
    floor = pack_of("team-governance").book.apply(msgspec.convert(request, Evaluation), NOON)
    assert floor.outcome == outcome


# ---------------------------------------------------------------- what the model reads


def questions_of(name: str) -> dict[str, str]:
    """For each scenario, the beginning of the SHA-256 of what the model reads."""
    pack, digests = pack_of(name), {}
    for id, evaluation in scenarios_of(name).items():
        question = pack.question(evaluation, pack.book.apply(evaluation, NOON).facts)
        digests[id] = hashlib.sha256(question.encode()).hexdigest()[:16]
    return digests


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_model_reads_of_each_scenario_what_the_adapter_was_trained_on(name: str) -> None:
    """Whoever changes it on purpose trains the adapter anew, and writes these digests into the file."""
    assert questions_of(name) == QUESTIONS[name]
