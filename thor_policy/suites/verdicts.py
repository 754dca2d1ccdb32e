"""Ask the scenarios of a suite in order, judge each answer, and count the results.

Owns the verdict on an answer. Invariant: an answer is judged by the expectation of its scenario alone. A
refused request is an error of its scenario, not of the run. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from thor_policy.core.errors import RequestError, SuiteError
from thor_policy.core.requests import Json
from thor_policy.suites import reasoning
from thor_policy.suites.reasoning import Element
from thor_policy.suites.scenarios import DIFFICULTIES, Embedder, Reasoning, Scenario, Suite

Status = Literal["passed", "failed", "error", "skipped"]
#: Asks one question: request fields in, the reply out; raises RequestError.
Ask = Callable[[dict[str, Json]], dict[str, Json]]

#: Parts of a complete answer.
_STRUCTURE = ("outcome", "classification", "risk", "clauses", "reasoning")
#: Parts of an answer by rule: a pack need not give its rules a class and a clause.
_STRUCTURE_BY_RULE = ("outcome", "risk", "reasoning")
#: Begins the miss of an answer without an expected clause.
UNCITED = "did not cite "
#: Share of those parts that an answer needs to pass.
STRUCTURE_NEEDED = 0.67


#: Why a daemon is not asked a scenario that states what sources say.
_ASKS_SOURCES = "it states what sources say, and this daemon asks them; `test --no-record` does not"


class Result(Struct, frozen=True, kw_only=True):
    """The result of one scenario.

    `structure` is the share of the answer's parts that are present. `answer` is the context of the reply,
    unchanged. `elements` are those of a good reason and `coverage` is the share of them that the reason
    covers, None if it was not measured.
    """

    scenario: Scenario
    status: Status
    accepted: tuple[str, ...] = ()
    decision_id: str | None = None
    outcome: str | None = None
    label: str | None = None
    floor: str | None = None
    tier: str | None = None
    structure: float = 0.0
    misses: tuple[str, ...] = ()
    total_ms: float = 0.0
    answer: dict[str, Json] | None = None
    elements: tuple[Element, ...] = ()
    coverage: float | None = None

    @property
    def decided_right(self) -> bool:
        """True when the outcome is accepted, whatever else is wrong."""
        return self.outcome in self.accepted


class Summary(Struct, frozen=True, kw_only=True):
    """Figures of a run. Rates are shares of the scenarios that were asked, 0 to 1.

    `labels_right` counts right labels of the model where the model was asked. `floors_right` counts right
    answers of the rules alone. `mean_coverage` is the mean over the reasons that were measured.
    """

    scenarios: int
    passed: int
    failed: int
    errors: int
    skipped: int
    decisions_right: int
    model_asked: int
    labels_right: int
    floors_right: int
    mean_structure: float
    by_difficulty: dict[str, tuple[int, int]]
    reasons_measured: int = 0
    mean_coverage: float | None = None

    @property
    def ok(self) -> bool:
        """True when a scenario passed, and none failed or got an error."""
        return self.passed > 0 and not self.failed and not self.errors


def run(
    suite: Suite,
    ask: Ask,
    *,
    labels: Sequence[str],
    quick: bool,
    embedder: Embedder | None = None,
    states_sources: bool = True,
) -> Iterator[Result]:
    """Ask every scenario (or the quick ones) in order, and yield each result when its answer arrives.

    Without an embedder, the coverage of reasons is not measured. Unless `states_sources`, who answers looks
    values of sources up, and scenarios that state them are skipped.

    Raises SuiteError if a scenario expects an outcome that the pack does not have: its verdict would not
    depend on the answer.
    """
    for scenario in suite.scenarios:
        expect = scenario.expect
        for named in (expect.outcome, expect.never, *expect.one_of):
            if named is not None and named not in labels:
                known = ", ".join(labels)
                raise SuiteError(
                    f"{suite.name}: scenario {scenario.id}: expects {named!r}, which the pack does not have; "
                    f"its outcomes are {known}"
                )
    for scenario in suite.scenarios:
        if quick and not scenario.quick:
            continue
        if scenario.skip is not None:
            yield Result(scenario=scenario, status="skipped", misses=(scenario.skip,))
            continue
        if scenario.sources and not states_sources:
            yield Result(scenario=scenario, status="skipped", misses=(_ASKS_SOURCES,))
            continue
        accepted = scenario.expect.accepted(labels)
        fields = scenario.question() | {
            "explain": "inline",
            "pack": suite.pack,
            "annotations": {
                "scenario_id": scenario.id,
                "expected": accepted,
                "tags": (suite.name, scenario.difficulty, *scenario.tags),
            },
        }
        try:
            reply = ask(fields)
        except RequestError as error:
            yield Result(
                scenario=scenario, status="error", accepted=accepted, misses=(f"{error.code}: {error}",)
            )
            continue
        result = judge(scenario, reply["context"], accepted)
        yield with_coverage(result, suite.reasoning, embedder) if embedder else result


def judge(scenario: Scenario, answer: dict[str, Json], accepted: tuple[str, ...]) -> Result:
    """Judge the context of a reply by the expectation of its scenario."""
    expect = scenario.expect
    misses = []
    if answer["outcome"] not in accepted:
        misses.append(f"answered {answer['outcome']}, expected {' or '.join(accepted)}")
    if expect.risk is not None and answer["risk"] != expect.risk:
        misses.append(f"risk {answer['risk']}, expected {expect.risk}")
    if uncited := [clause for clause in expect.clauses if clause not in answer["clauses"]]:
        misses.append(f"{UNCITED}{', '.join(uncited)}")
    parts = _STRUCTURE if answer["tier"] in ("model", "cache") else _STRUCTURE_BY_RULE
    structure = sum(bool(answer.get(part)) for part in parts) / len(parts)
    if structure < STRUCTURE_NEEDED:
        misses.append(f"structure {structure:.2f}, needed {STRUCTURE_NEEDED}")
    total_ms = answer["timings_ms"]["total"]
    if expect.max_latency_ms is not None and total_ms > expect.max_latency_ms:
        misses.append(f"took {total_ms:.1f} ms, expected at most {expect.max_latency_ms:g}")
    probabilities: dict[str, float] = answer["probabilities"]
    return Result(
        scenario=scenario,
        status="failed" if misses else "passed",
        accepted=accepted,
        decision_id=answer["decision_id"],
        outcome=answer["outcome"],
        label=max(probabilities, key=probabilities.__getitem__) if probabilities else None,
        floor=answer["floor"],
        tier=answer["tier"],
        structure=structure,
        misses=tuple(misses),
        total_ms=total_ms,
        answer=answer,
    )


def with_coverage(result: Result, how: Reasoning, embedder: Embedder) -> Result:
    """The result with the coverage of its reason. It fails if the suite needs more coverage."""
    expected = result.scenario.expect.reasoning
    if not expected:
        return result
    elements = reasoning.measure(expected, (result.answer or {}).get("reasoning"), embedder, how.similarity)
    coverage = reasoning.share(elements)
    measured = msgspec.structs.replace(result, elements=elements, coverage=coverage)
    if how.needed is None or coverage >= how.needed:
        return measured
    lacking = ", ".join(element.text for element in elements if not element.covered)
    miss = f"the reason covers {coverage:.2f} of its elements, needed {how.needed:g}; it lacks {lacking}"
    return msgspec.structs.replace(measured, status="failed", misses=(*result.misses, miss))


def summarise(results: Sequence[Result]) -> Summary:
    """Figures over the results of one or more suites."""
    answered = [result for result in results if result.outcome is not None]
    counts = {status: sum(r.status == status for r in results) for status in get_args(Status)}
    coverages = [result.coverage for result in results if result.coverage is not None]
    by_difficulty: dict[str, tuple[int, int]] = {}
    for difficulty in DIFFICULTIES:
        matching = [r for r in results if r.scenario.difficulty == difficulty and r.status != "skipped"]
        if matching:
            by_difficulty[difficulty] = (sum(r.status == "passed" for r in matching), len(matching))
    return Summary(
        scenarios=len(results),
        passed=counts["passed"],
        failed=counts["failed"],
        errors=counts["error"],
        skipped=counts["skipped"],
        decisions_right=sum(r.decided_right for r in answered),
        model_asked=sum(r.label is not None for r in answered),
        labels_right=sum(r.label in r.accepted for r in answered if r.label is not None),
        floors_right=sum(r.floor in r.accepted for r in answered),
        mean_structure=sum(r.structure for r in answered) / len(answered) if answered else 0.0,
        by_difficulty=by_difficulty,
        reasons_measured=len(coverages),
        mean_coverage=sum(coverages) / len(coverages) if coverages else None,
    )
