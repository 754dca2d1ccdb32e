"""Scenario suites: which files load, how an answer is judged, and the summary of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from thor_policy.core.errors import RequestError, SuiteError
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.replies import encode_request
from thor_policy.protocol.requests import decode_request
from thor_policy.suites import suite_files, verdicts
from thor_policy.suites.scenarios import DIFFICULTIES, Expectation, Scenario, Suite
from thor_policy.suites.verdicts import Result

LABELS = ("allow", "require_mfa", "deny")

SITUATION = {"actor_id": "user:alice", "action_type": "read", "resource": "doc:handbook"}
REQUEST = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "handbook"},
}
#: The context of a reply with everything in it.
ANSWER: dict[str, Any] = {
    "decision_id": "0198",
    "outcome": "allow",
    "classification": "routine",
    "risk": "low",
    "reasoning": "An ordinary read.",
    "clauses": ["R1", "R2"],
    "probabilities": {"allow": 0.7, "require_mfa": 0.2, "deny": 0.1},
    "tier": "model",
    "floor": "allow",
    "timings_ms": {"total": 12.5},
}

Write = Callable[..., Path]


def entry(**changes: Any) -> dict[str, Any]:
    """A scenario as in a file; `...` removes a member."""
    whole = {
        "id": "E1",
        "title": "Alice reads",
        "difficulty": "easy",
        "situation": SITUATION,
        "expect": {"outcome": "allow"},
    } | changes
    return {name: value for name, value in whole.items() if value is not ...}


def scenario(id: str = "E1", **changes: Any) -> Scenario:
    fields: dict[str, Any] = {
        "title": "Alice reads",
        "difficulty": "easy",
        "situation": SITUATION,
        "expect": Expectation(outcome="allow"),
    }
    return Scenario(id=id, **fields | changes)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*scenarios: dict[str, Any], **members: Any) -> Path:
        path = tmp_path / "suite.yaml"
        whole = {"name": "trial", "pack": "small", "scenarios": list(scenarios)} | members
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        return path

    return write


# ---------------------------------------------------------------- loading


def test_a_suite_asks_in_either_form_and_both_are_the_same_question(write: Write) -> None:
    path = write(entry(), entry(id="E2", situation=..., request=REQUEST), description="A trial.")
    loaded = suite_files.load(path)
    assert (loaded.name, loaded.pack, loaded.description) == ("trial", "small", "A trial.")
    flat, whole = loaded.scenarios
    assert flat.question() == {"situation": SITUATION}
    assert whole.question() == {"request": REQUEST}
    assert (
        flat.evaluation()
        == whole.evaluation()
        == Evaluation(
            subject=Entity(type="user", id="alice"),
            action=Action(name="read"),
            resource=Entity(type="doc", id="handbook"),
        )
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expect": {}}, "expect needs exactly one of outcome, one_of, never"),
        ({"expect": {"risk": "low"}}, "expect needs exactly one of outcome, one_of, never"),
        ({"expect": {"outcome": "allow", "never": "deny"}}, "expect needs exactly one of"),
        ({"expect": {"one_of": ["allow"], "never": "deny"}}, "expect needs exactly one of"),
        ({"expect": {"one_of": []}}, "expect needs exactly one of"),
        ({"situation": ...}, "needs either request or situation"),
        ({"request": REQUEST}, "needs either request or situation"),
        ({"situation": {"actor_id": "alice"}}, "situation.action_type: is missing"),
        ({"situation": ..., "request": {}}, "request: object missing required field `subject`"),
        (
            {"situation": SITUATION | {"actor_id": "a" * 257}},
            "situation.actor_id: has 257 characters; the limit is 256",
        ),
        ({"id": "E0"}, "the id appears twice"),
    ],
)
def test_a_scenario_that_asks_or_expects_nothing_definite_is_refused_by_its_id(
    write: Write, changes: dict[str, Any], message: str
) -> None:
    bad = entry(**changes)
    path = write(entry(id="E0"), bad)
    with pytest.raises(SuiteError) as refusal:
        suite_files.load(path)
    place, _, rest = str(refusal.value).removeprefix(f"{path}:").partition(": ")
    assert rest.startswith(f"scenario {bad['id']}: {message}")
    assert re.fullmatch("[0-9]+:[0-9]+", place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"difficulty": "brutal"}, r"Invalid enum value 'brutal' - at `\$\.scenarios\[1\]\.difficulty`"),
        ({"expect": {"outcome": 1}}, r"Expected `str \| null`, got `int` - at `\$\.scenarios\[1\]\.expect"),
        ({"expect": {"verdict": "x"}}, r"unknown field `verdict` - at `\$\.scenarios\[1\]\.expect`"),
        ({"expect": ...}, r"missing required field `expect` - at `\$\.scenarios\[1\]`"),
        ({"hurry": True}, r"unknown field `hurry` - at `\$\.scenarios\[1\]`"),
        ({"situation": "who knows"}, r"got `str` - at `\$\.scenarios\[1\]\.situation`"),
    ],
)
def test_a_scenario_of_the_wrong_form_is_refused_with_its_place(
    write: Write, changes: dict[str, Any], message: str
) -> None:
    path = write(entry(id="E0"), entry(**changes))
    with pytest.raises(SuiteError, match=rf"^{path}:\d+:\d+: .*{message}"):
        suite_files.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "2:1: did not find expected node content"),
        (b"name: a\nname: b\n", "2:1: the key 'name' appears twice"),
        (b"name: \xff", " cannot be read: 'utf-8'"),
        (b"", "1:1: Expected `object`, got `null`"),
        (b"name: a\npack: b\n", "1:1: there is no scenario in it"),
        (b"name: a\npack: b\nscenarios: []\n", "1:1: there is no scenario in it"),
    ],
)
def test_a_file_that_is_no_suite_is_refused_with_its_path(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_bytes(content)
    with pytest.raises(SuiteError, match=f"(?m)^{path}:{message}"):
        suite_files.load(path)


def test_a_missing_suite_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=f"^{tmp_path / 'absent.yaml'}: cannot be read: .*No such file"):
        suite_files.load(tmp_path / "absent.yaml")


def test_the_suites_of_a_folder_come_in_order(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yaml", "c.txt"):
        (tmp_path / name).touch()
    assert suite_files.available(tmp_path) == [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    assert suite_files.available(tmp_path / "nowhere") == []


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("expect", "accepted"),
    [
        (Expectation(outcome="deny"), ("deny",)),
        (Expectation(one_of=("deny", "require_mfa")), ("deny", "require_mfa")),
        (Expectation(never="allow"), ("require_mfa", "deny")),
    ],
)
def test_an_expectation_accepts_the_outcomes_that_it_names(
    expect: Expectation, accepted: tuple[str, ...]
) -> None:
    assert expect.accepted(LABELS) == accepted


def judged(
    answer: dict[str, Any] | None = None, *, accepted: tuple[str, ...] = ("allow",), **expect: Any
) -> Result:
    question = scenario(expect=Expectation(outcome="allow", **expect))
    return verdicts.judge(question, ANSWER | (answer or {}), accepted)


def test_a_complete_and_right_answer_passes_and_is_in_the_result() -> None:
    result = judged(risk="low", clauses=("R2",))
    assert result == Result(
        scenario=scenario(expect=Expectation(outcome="allow", risk="low", clauses=("R2",))),
        status="passed",
        accepted=("allow",),
        decision_id="0198",
        outcome="allow",
        label="allow",
        floor="allow",
        tier="model",
        structure=1.0,
        total_ms=12.5,
        answer=ANSWER,
    )
    assert result.decided_right


def test_a_wrong_outcome_fails_and_the_miss_names_the_expected_ones() -> None:
    result = judged({"outcome": "deny"}, accepted=("allow", "require_mfa"))
    assert (result.status, result.misses) == ("failed", ("answered deny, expected allow or require_mfa",))
    assert not result.decided_right


def test_a_wrong_risk_fails_a_right_decision() -> None:
    result = judged({"risk": "high"}, risk="low")
    assert (result.status, result.misses) == ("failed", ("risk high, expected low",))
    assert result.decided_right
    assert judged({"risk": "high"}).status == "passed"


def test_a_clause_that_was_not_cited_fails() -> None:
    result = judged(clauses=("R1", "R7", "R9"))
    assert (result.status, result.misses) == ("failed", ("did not cite R7, R9",))


def test_an_answer_that_took_too_long_fails_a_right_decision() -> None:
    result = judged(max_latency_ms=12)
    assert (result.status, result.misses) == ("failed", ("took 12.5 ms, expected at most 12",))
    assert result.decided_right
    assert judged(max_latency_ms=12.5).status == "passed"


@pytest.mark.parametrize(
    ("missing", "structure", "status"),
    [((), 1.0, "passed"), (("reasoning",), 0.8, "passed"), (("reasoning", "classification"), 0.6, "failed")],
)
def test_an_answer_needs_two_thirds_of_its_parts(
    missing: tuple[str, ...], structure: float, status: str
) -> None:
    result = judged(dict.fromkeys(missing))
    assert (result.status, result.structure) == (status, pytest.approx(structure))
    assert result.misses == (() if status == "passed" else ("structure 0.60, needed 0.67",))


def test_an_empty_part_is_a_missing_part() -> None:
    assert judged({"clauses": [], "reasoning": ""}).structure == pytest.approx(0.6)


def test_a_result_lists_every_miss() -> None:
    result = judged(
        {"outcome": "deny", "risk": "high", "clauses": [], "classification": None},
        risk="low",
        clauses=("R1",),
    )
    assert len(result.misses) == 4


def test_the_label_is_the_likeliest_one_or_none_if_the_model_was_not_asked() -> None:
    result = judged({"probabilities": {"allow": 0.2, "require_mfa": 0.5, "deny": 0.3}})
    assert (result.outcome, result.label) == ("allow", "require_mfa")
    assert judged({"probabilities": {}, "tier": "rule"}).label is None


# ---------------------------------------------------------------- running


class StubAsk:
    """Gives every question the same answer, or refuses it, and records the questions."""

    def __init__(self, *, refuse: tuple[str, ...] = ()) -> None:
        self.fields: list[dict[str, Any]] = []
        self._refuse = refuse

    def __call__(self, fields: dict[str, Any]) -> dict[str, Any]:
        self.fields.append(fields)
        if fields["annotations"]["scenario_id"] in self._refuse:
            raise RequestError("busy", "the queue is full")
        return {"context": ANSWER}


TRIAL = Suite(
    name="trial",
    pack="small",
    scenarios=(
        scenario("E1", quick=True),
        scenario("E2", expect=Expectation(never="allow"), tags=("night",), difficulty="hard"),
        scenario("E3", skip="needs a calendar", quick=True),
        scenario("E4"),
    ),
)


def run(ask: StubAsk, *, quick: bool = False) -> list[Result]:
    return list(verdicts.run(TRIAL, ask, labels=LABELS, quick=quick))


def test_every_scenario_is_asked_in_order_except_skipped_ones() -> None:
    ask = StubAsk()
    results = run(ask)
    assert [result.status for result in results] == ["passed", "failed", "skipped", "passed"]
    assert [fields["annotations"]["scenario_id"] for fields in ask.fields] == ["E1", "E2", "E4"]
    assert results[2].misses == ("needs a calendar",)
    assert results[2].outcome is None


def test_a_quick_run_asks_the_quick_ones_only() -> None:
    results = run(StubAsk(), quick=True)
    assert [(result.scenario.id, result.status) for result in results] == [
        ("E1", "passed"),
        ("E3", "skipped"),
    ]


def test_a_question_carries_pack_and_annotations_and_wants_to_be_explained() -> None:
    ask = StubAsk()
    run(ask)
    assert ask.fields[1] == {
        "situation": SITUATION,
        "explain": "inline",
        "pack": "small",
        "annotations": {
            "scenario_id": "E2",
            "expected": ("require_mfa", "deny"),
            "tags": ("trial", "hard", "night"),
        },
    }


def test_every_question_of_a_suite_is_a_valid_request_of_the_protocol() -> None:
    ask = StubAsk()
    run(ask)
    for fields in ask.fields:
        raw = encode_request("q", "evaluate", fields)
        message = decode_request(raw, max_bytes=len(raw), max_deadline_ms=1)
        assert isinstance(message, EvaluateRequest)
        assert message.evaluation == TRIAL.scenarios[0].evaluation()
        assert message.annotations.tags[0] == "trial"


def test_a_refusal_is_an_error_of_that_scenario_and_the_run_goes_on() -> None:
    results = run(StubAsk(refuse=("E1",)))
    assert [result.status for result in results] == ["error", "failed", "skipped", "passed"]
    assert results[0].misses == ("busy: the queue is full",)
    assert (results[0].accepted, results[0].outcome) == (("allow",), None)


def test_a_result_is_yielded_as_soon_as_its_answer_arrives() -> None:
    ask = StubAsk()
    running = verdicts.run(TRIAL, ask, labels=LABELS, quick=False)
    next(running)
    assert len(ask.fields) == 1


# ---------------------------------------------------------------- figures


def test_a_summary_counts_the_results_of_a_run() -> None:
    results = [
        judged(),
        judged({"outcome": "deny", "floor": "deny", "probabilities": {}}),
        judged({"probabilities": {"deny": 0.9, "allow": 0.1}, "reasoning": None}),
        judged({"risk": "high"}, risk="low"),
        Result(scenario=scenario(difficulty="hard"), status="error", accepted=("allow",)),
        Result(scenario=scenario(difficulty="attack"), status="skipped"),
    ]
    summary = verdicts.summarise(results)
    assert summary == verdicts.Summary(
        scenarios=6,
        passed=2,
        failed=2,
        errors=1,
        skipped=1,
        decisions_right=3,
        model_asked=3,
        labels_right=2,
        floors_right=3,
        mean_structure=pytest.approx((1 + 1 + 0.8 + 1) / 4),
        by_difficulty={"easy": (2, 4), "hard": (0, 1)},
    )
    assert not summary.ok


def test_a_summary_lists_difficulties_from_easy_to_attack() -> None:
    results = [
        verdicts.judge(scenario(difficulty=name), ANSWER, ("allow",)) for name in reversed(DIFFICULTIES)
    ]
    assert tuple(verdicts.summarise(results).by_difficulty) == DIFFICULTIES


def test_a_run_is_ok_when_something_passed_and_nothing_went_wrong() -> None:
    passed, failed = judged(), judged({"outcome": "deny"})
    error = Result(scenario=scenario(), status="error")
    skipped = Result(scenario=scenario(), status="skipped")
    assert verdicts.summarise([passed, skipped]).ok
    for results in ([], [skipped], [passed, failed], [passed, error], [failed]):
        assert not verdicts.summarise(results).ok


def test_a_summary_of_no_results_is_empty_and_not_ok() -> None:
    summary = verdicts.summarise([])
    assert (summary.scenarios, summary.mean_structure, summary.by_difficulty) == (0, 0.0, {})
