"""A run of scenarios: one frozen value from which every report, comparison and baseline is made.

Owns the type of a run and its JSON file. Invariant: a run holds nothing that can be computed from its items
(figures, verdicts), so no file can contradict itself. The JSON file shows figures too, but `load` ignores
them. Pure except `load`; any thread.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.decisions import Floor, PackInfo, Source
from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.suites.coverage import Coverage
from thor_policy.suites.leaks import Leak
from thor_policy.suites.reasoning import Element
from thor_policy.suites.verdicts import UNCITED, Result, Status

#: Most characters of a question in short.
SHORT_CHARS = 240
#: Version of the JSON format; a file of another version is refused.
FORMAT = 1

#: How an outcome is wrong: `loose` if it is looser than every accepted one, otherwise `strict`.
Wrong = Literal["loose", "strict"]
#: What became of a scenario, as reports show it.
ItemResult = Literal[
    "too loose", "too strict", "refused", "wrong otherwise", "citation only", "passed", "skipped"
]
#: The same, the gravest first.
ITEM_RESULTS: tuple[ItemResult, ...] = get_args(ItemResult)
#: Those of scenarios that did not pass.
FAILURES = ITEM_RESULTS[:5]
#: Identifies a scenario across runs: suite and id.
Key = tuple[str, str]

#: Statuses, the worst first.
_GRAVITY: tuple[Status, ...] = ("error", "failed", "passed", "skipped")


class Judge(Struct, frozen=True, kw_only=True):
    """What answered: a pack on a model. `labels` are the outcomes of the pack, loosest first.

    With an adapter, `model` is both names joined by a plus, and `model_sha256` is the digest of model,
    adapter and scale together.
    """

    pack: PackInfo
    labels: tuple[str, ...]
    model: str
    model_sha256: str
    quantisation: str = ""
    device: str = ""
    build: str = ""
    exact: bool = True


class Tokens(Struct, frozen=True, kw_only=True):
    """Token counts of one answer: prompt of the pack, question, and explanation."""

    prefix: int
    question: int
    explanation: int


class Why(Struct, frozen=True, kw_only=True):
    """What a reader of a failure needs: the question in short, what the rules demanded, the reason given.

    `rules` are the ids of the rules that fired, `because` their reasons; `errors` maps rules and facts that
    failed to their messages. `reasoning` is the reason of the answer, None without one.
    """

    question: str
    rules: tuple[str, ...] = ()
    because: str | None = None
    errors: dict[str, str] = {}
    reasoning: str | None = None


class Item(Struct, frozen=True, kw_only=True):
    """One answer to one scenario, in round `round` (from 1). Times are the daemon's, in milliseconds.

    `question` is a digest of the question, so that an edited scenario is not compared with its earlier form.
    `source` says whose the reason is. `elements` are those of a good reason. `coverage` is the share of
    them that the reason covers, None if it was not measured. `why` is there if it did not pass.
    """

    suite: str
    pack: str
    id: str
    title: str
    difficulty: str
    status: Status
    round: int = 1
    question: str = ""
    tags: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    outcome: str | None = None
    label: str | None = None
    floor: str | None = None
    tier: str | None = None
    wrong: Wrong | None = None
    probabilities: dict[str, float] = {}
    structure: float = 0.0
    misses: tuple[str, ...] = ()
    decision_id: str | None = None
    total_ms: float = 0.0
    score_ms: float = 0.0
    reason_code: str | None = None
    tokens: Tokens | None = None
    source: Source | None = None
    elements: tuple[Element, ...] = ()
    coverage: float | None = None
    why: Why | None = None

    @property
    def key(self) -> Key:
        return self.suite, self.id

    @property
    def decided_right(self) -> bool:
        """True when the outcome is accepted, whatever else is wrong."""
        return self.outcome in self.accepted

    @property
    def verdict(self) -> str:
        """The result in a few words; of a scenario without an answer, the reason."""
        if self.status in ("skipped", "error"):
            return f"{self.result}: {'; '.join(self.misses)}"
        if self.wrong is not None:
            return f"too {self.wrong}"
        return f"right, but {'; '.join(self.misses)}" if self.misses else "right"

    @property
    def result(self) -> ItemResult:
        """What became of it. `citation only`: right, but the answer does not cite an expected clause."""
        if self.status == "passed" or self.status == "skipped":
            return self.status
        if self.status == "error":
            return "refused"
        if self.wrong is not None:
            return "too loose" if self.wrong == "loose" else "too strict"
        uncited = all(miss.startswith(UNCITED) for miss in self.misses)
        return "citation only" if uncited else "wrong otherwise"

    @property
    def wanted(self) -> str | None:
        """The only outcome that counts as right; None if several do."""
        return self.accepted[0] if len(self.accepted) == 1 else None


class Run(Struct, frozen=True, kw_only=True):
    """One run: the packs and models that answered (`judges`), and the items.

    `at` is an RFC 3339 time. `where` says whether a daemon was asked, `selection` which scenarios, `machine`
    on which hardware. Items are in the order in which they were asked. `embedder` names the embedder that
    measured reasons, or says why there was none. `leaks` are scenarios that an example gives away, in a run
    with `allow_leak`. `coverage` counts the clauses and rules reached of each pack.
    """

    at: str
    version: str
    where: str
    machine: str
    selection: str
    repeats: int
    judges: tuple[Judge, ...]
    results: tuple[Item, ...]
    embedder: str = ""
    allow_leak: bool = False
    leaks: tuple[Leak, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    format: int = FORMAT

    def only(self, suite: str) -> Run:
        """The run with only the items and judges of one suite."""
        items = tuple(item for item in self.results if item.suite == suite)
        packs = {item.pack for item in items}
        judges = tuple(judge for judge in self.judges if judge.pack.name in packs)
        return msgspec.structs.replace(self, judges=judges, results=items)


def item(
    result: Result,
    *,
    suite: str,
    pack: str,
    labels: Sequence[str],
    round: int = 1,
    floor: Floor | None = None,
) -> Item:
    """The item of a result of `verdicts.run`. `labels` are those of the pack, loosest first.

    `floor` is what the rules demand, for the reader of a failure.
    """
    scenario, answer = result.scenario, result.answer or {}
    tokens = answer.get("tokens")
    return Item(
        suite=suite,
        pack=pack,
        id=scenario.id,
        title=scenario.title,
        difficulty=scenario.difficulty,
        status=result.status,
        round=round,
        question=hashlib.sha256(msgspec.json.encode(scenario.question(), order="sorted")).hexdigest(),
        tags=scenario.tags,
        accepted=tuple(result.accepted),
        outcome=result.outcome,
        label=result.label,
        floor=result.floor,
        tier=result.tier,
        wrong=how_wrong(result.outcome, result.accepted, labels),
        probabilities=answer.get("probabilities", {}),
        structure=result.structure,
        misses=result.misses,
        decision_id=result.decision_id,
        total_ms=result.total_ms,
        score_ms=answer.get("timings_ms", {}).get("score", 0.0),
        tokens=Tokens(**tokens) if tokens else None,
        reason_code=answer.get("reason_code"),
        source=answer.get("reasoning_source"),
        elements=result.elements,
        coverage=result.coverage,
        why=_why(result, floor) if result.status in ("failed", "error") else None,
    )


def _why(result: Result, floor: Floor | None) -> Why:
    question = in_short(result.scenario.evaluation())
    reasoning = (result.answer or {}).get("reasoning")
    if floor is None:
        return Why(question=question, reasoning=reasoning)
    return Why(
        question=question,
        rules=floor.rules,
        because=floor.because,
        errors=floor.errors,
        reasoning=reasoning if reasoning != floor.because else None,
    )


def in_short(evaluation: Evaluation) -> str:
    """The question on one line: who does what to what, then properties and context, cut at `SHORT_CHARS`."""
    subject, resource = evaluation.subject, evaluation.resource
    line = f"{subject.type}:{subject.id} {evaluation.action.name} {resource.type}:{resource.id}"
    rest: dict[str, Json] = {}
    for members in (subject.properties, evaluation.action.properties, resource.properties):
        rest |= members
    rest |= evaluation.context
    shown = "; ".join(f"{name} {_in_words(value)}" for name, value in rest.items())
    line += f"; {shown}" if shown else ""
    return line if len(line) <= SHORT_CHARS else f"{line[: SHORT_CHARS - 1]}…"


def _in_words(value: Json) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return f"({', '.join(f'{name} {_in_words(member)}' for name, member in value.items())})"
    return msgspec.json.encode(value).decode()


def how_wrong(outcome: str | None, accepted: Sequence[str], labels: Sequence[str]) -> Wrong | None:
    """How an outcome is wrong; None if it is accepted, or if there is no outcome."""
    if outcome is None or outcome in accepted:
        return None
    strictness = {label: number for number, label in enumerate(labels)}
    return "loose" if strictness[outcome] < min(strictness[label] for label in accepted) else "strict"


def rounds(items: Iterable[Item]) -> dict[Key, tuple[Item, ...]]:
    """The items of each scenario, in the order of their rounds."""
    by_key: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        by_key[item.key].append(item)
    return {key: tuple(sorted(of_key, key=lambda item: item.round)) for key, of_key in by_key.items()}


def worst(items: Iterable[Item]) -> dict[Key, Item]:
    """The worst item of each scenario, by which it counts. Of two failures, the loose one is worse."""

    def gravity(item: Item) -> tuple[int, int]:
        return _GRAVITY.index(item.status), ("loose", "strict", None).index(item.wrong)

    return {key: min(of_key, key=gravity) for key, of_key in rounds(items).items()}


def plain(run: Run, **beside: Any) -> dict[str, Json]:
    """The run as JSON values, with other values `beside` it that `load` ignores."""
    head: dict[str, Json] = msgspec.to_builtins(run)
    results = head.pop("results")
    return head | {name: msgspec.to_builtins(value) for name, value in beside.items()} | {"results": results}


def load(path: Path) -> Run:
    """A saved run. Raises SuiteError with the file and the error."""
    try:
        raw = path.read_bytes()
        if (version := msgspec.json.decode(raw, type=_Head).format) != FORMAT:
            raise SuiteError(
                f"{path}: has format {version}; this version reads format {FORMAT}: run it again"
            )
        return strict_json.decode_as(raw, Run)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SuiteError(
            f"{path}: is no saved run: {error}; make one with `thorpolicy test --json > FILE`"
        ) from error


class _Head(Struct):
    format: int
