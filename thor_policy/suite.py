"""Scenario suites: questions with expected answers, and what came of them.

Owns the scenario format and the verdict on each answer. Invariant: a suite takes a plain callable from
request fields to a reply, so it runs the same against a live daemon and in process, and it never sees more
than a client does. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from msgspec import UNSET, Struct, UnsetType

from thor_policy import packs, wire
from thor_policy.core import Evaluation, Json, Risk
from thor_policy.errors import PackError, RequestError, SuiteError

Difficulty = Literal["easy", "medium", "hard", "edge_case", "attack"]
#: Difficulties in the order in which reports show them.
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)

Status = Literal["passed", "failed", "error", "skipped"]
#: Asks one question: request fields in, the reply out; raises RequestError.
Ask = Callable[[dict[str, Json]], dict[str, Json]]

#: Parts of an answer that a complete one has.
_STRUCTURE = ("outcome", "classification", "risk", "clauses", "reasoning")
#: Share of those parts that an answer needs to pass.
STRUCTURE_NEEDED = 0.67


class Expectation(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What counts as right: exactly one of `outcome`, `one_of`, `never`; the rest is optional."""

    outcome: str | None = None
    one_of: tuple[str, ...] = ()
    never: str | None = None
    risk: Risk | None = None
    clauses: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()

    def accepted(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Every outcome that counts as right, of those the pack has."""
        if self.outcome is not None:
            return (self.outcome,)
        return self.one_of or tuple(label for label in labels if label != self.never)


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question and its expected answer. `quick` ones make up the short run."""

    id: str
    title: str
    difficulty: Difficulty
    expect: Expectation
    request: dict[str, Json] | UnsetType = UNSET
    situation: dict[str, Json] | UnsetType = UNSET
    tags: tuple[str, ...] = ()
    quick: bool = False
    skip: str | None = None

    def question(self) -> dict[str, Json]:
        """The request fields that ask it."""
        if isinstance(self.request, dict):
            return {"request": self.request}
        return {"situation": self.situation}

    def evaluation(self) -> Evaluation:
        """The question as rules and model see it. Raises RequestError if it is malformed."""
        return wire.evaluation_from(self.question())


class Suite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of scenarios for one pack."""

    name: str
    pack: str
    scenarios: tuple[Scenario, ...]
    description: str = ""


class Result(Struct, frozen=True, kw_only=True):
    """What came of one scenario. `structure` is the share of answer parts that were there; `answer` is the
    context of the reply, as it came.
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

    @property
    def decided_right(self) -> bool:
        """True when the outcome is an accepted one, whatever else missed."""
        return self.outcome in self.accepted


class Summary(Struct, frozen=True, kw_only=True):
    """Figures over a run. Rates are shares of the scenarios that were asked, 0 to 1.

    `labels_right` counts the model's own label where the model was asked; `floors_right` what the rules
    alone would have answered.
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

    @property
    def ok(self) -> bool:
        """True when something ran and all of it passed."""
        return self.passed > 0 and not self.failed and not self.errors


def load(path: Path) -> Suite:
    """The suite in a YAML file. Raises SuiteError naming file and scenario."""
    try:
        suite: Suite = packs.parse_yaml(path.read_text(encoding="utf-8"), Suite, path)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from error
    except PackError as error:
        raise SuiteError(str(error)) from error
    seen: set[str] = set()
    for scenario in suite.scenarios:
        where = f"{path}: scenario {scenario.id}"
        if scenario.id in seen:
            raise SuiteError(f"{where}: the id appears twice")
        seen.add(scenario.id)
        expect = scenario.expect
        if sum((expect.outcome is not None, bool(expect.one_of), expect.never is not None)) != 1:
            raise SuiteError(f"{where}: expect needs exactly one of outcome, one_of, never")
        if (scenario.request is UNSET) == (scenario.situation is UNSET):
            raise SuiteError(f"{where}: needs either request or situation")
        try:
            scenario.evaluation()
        except RequestError as error:
            raise SuiteError(f"{where}: {error.message}") from error
    return suite


def available(folder: Path) -> list[Path]:
    """The suite files in a folder."""
    return sorted(folder.glob("*.yaml"))


def run(suite: Suite, ask: Ask, *, labels: Sequence[str], quick: bool) -> Iterator[Result]:
    """Ask every scenario (or the quick ones) in order; a result as soon as each is there.

    Raises SuiteError if one expects an outcome that the pack does not have: it would be right or wrong
    whatever the answer.
    """
    for scenario in suite.scenarios:
        expect = scenario.expect
        for named in (expect.outcome, expect.never, *expect.one_of):
            if named is not None and named not in labels:
                known = ", ".join(labels)
                raise SuiteError(
                    f"{suite.name}: scenario {scenario.id}: expects {named!r}, not one of {known}"
                )
    for scenario in suite.scenarios:
        if quick and not scenario.quick:
            continue
        if scenario.skip is not None:
            yield Result(scenario=scenario, status="skipped", misses=(scenario.skip,))
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
        yield judge(scenario, reply["context"], accepted)


def judge(scenario: Scenario, answer: dict[str, Json], accepted: tuple[str, ...]) -> Result:
    """Hold the context of a reply against the expectation."""
    expect = scenario.expect
    misses = []
    if answer["outcome"] not in accepted:
        misses.append(f"answered {answer['outcome']}, expected {' or '.join(accepted)}")
    if expect.risk is not None and answer["risk"] != expect.risk:
        misses.append(f"risk {answer['risk']}, expected {expect.risk}")
    if uncited := [clause for clause in expect.clauses if clause not in answer["clauses"]]:
        misses.append(f"did not cite {', '.join(uncited)}")
    structure = sum(bool(answer.get(part)) for part in _STRUCTURE) / len(_STRUCTURE)
    if structure < STRUCTURE_NEEDED:
        misses.append(f"structure {structure:.2f}, needed {STRUCTURE_NEEDED}")
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
        total_ms=answer["timings_ms"]["total"],
        answer=answer,
    )


def summarise(results: Sequence[Result]) -> Summary:
    """Figures over the results of one or more suites."""
    asked = [result for result in results if result.outcome is not None]
    counts = {status: sum(r.status == status for r in results) for status in get_args(Status)}
    by_difficulty: dict[str, tuple[int, int]] = {}
    for difficulty in DIFFICULTIES:
        of_it = [r for r in results if r.scenario.difficulty == difficulty and r.status != "skipped"]
        if of_it:
            by_difficulty[difficulty] = (sum(r.status == "passed" for r in of_it), len(of_it))
    return Summary(
        scenarios=len(results),
        passed=counts["passed"],
        failed=counts["failed"],
        errors=counts["error"],
        skipped=counts["skipped"],
        decisions_right=sum(r.decided_right for r in asked),
        model_asked=sum(r.label is not None for r in asked),
        labels_right=sum(r.label in r.accepted for r in asked if r.label is not None),
        floors_right=sum(r.floor in r.accepted for r in asked),
        mean_structure=sum(r.structure for r in asked) / len(asked) if asked else 0.0,
        by_difficulty=by_difficulty,
    )
