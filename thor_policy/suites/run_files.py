"""A run of scenarios as it is kept: one frozen value that every report, comparison and baseline is made of.

Owns that form and its JSON. Invariant: whatever can be derived from the items (figures, verdicts) is not
in it, so no file can contradict itself; the JSON shows figures beside it and they are not read back. Pure
but for `load`; any thread.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Json
from thor_policy.suites.coverage import Coverage
from thor_policy.suites.leaks import Leak
from thor_policy.suites.reasoning import Element
from thor_policy.suites.verdicts import Result, Status

#: Version of the JSON form; a file of another one is refused.
FORMAT = 1

#: How an outcome that is not accepted is wrong: looser than all that are, or not.
Wrong = Literal["loose", "strict"]
#: What identifies a scenario across runs: suite and id.
Key = tuple[str, str]

#: Statuses from the gravest to the mildest.
_GRAVITY: tuple[Status, ...] = ("error", "failed", "passed", "skipped")


class Judge(Struct, frozen=True, kw_only=True):
    """What was judged: a pack on a model. `labels` are the outcomes of the pack, loosest first.

    Under an adapter, `model` is the names of both with a plus between, and `model_sha256` the digest of the
    weights that judge, adapter and scale included.
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
    """Tokens that one answer took: of the pack's prompt, of the question, chosen for the explanation."""

    prefix: int
    question: int
    explanation: int


class Item(Struct, frozen=True, kw_only=True):
    """One scenario asked once, in round `round` (from 1). Times are the daemon's own, in milliseconds.

    `question` is a digest of what was asked, so that an edited scenario is not taken for the one before.
    `elements` are those of a good reason, `coverage` the share that is there; None where it was not measured.
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
    tokens: Tokens | None = None
    elements: tuple[Element, ...] = ()
    coverage: float | None = None

    @property
    def key(self) -> Key:
        return self.suite, self.id

    @property
    def decided_right(self) -> bool:
        """True when the outcome is an accepted one, whatever else missed."""
        return self.outcome in self.accepted

    @property
    def wanted(self) -> str | None:
        """The one outcome that counts as right; None where several do."""
        return self.accepted[0] if len(self.accepted) == 1 else None


class Run(Struct, frozen=True, kw_only=True):
    """One run: who judged, what was asked, what came of it.

    `at` is an RFC 3339 time. `where` says whether a daemon was asked, `selection` which scenarios of the
    suites, `machine` what it ran on. Items are in the order in which they were asked. `embedder` names what
    measured reasons, or says why nothing did; `leaks` are scenarios that an example gives away, in a run that
    `allow_leak` let begin all the same; `coverage` is what was reached of each pack.
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
        """The part of the run that one suite is."""
        items = tuple(item for item in self.results if item.suite == suite)
        judged = {item.pack for item in items}
        judges = tuple(judge for judge in self.judges if judge.pack.name in judged)
        return msgspec.structs.replace(self, judges=judges, results=items)


def item(result: Result, *, suite: str, pack: str, labels: Sequence[str], round: int = 1) -> Item:
    """What is kept of a result of `suite.run`; `labels` are those of the pack, loosest first."""
    scenario, answer = result.scenario, result.answer or {}
    told = answer.get("tokens")
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
        tokens=Tokens(**told) if told else None,
        elements=result.elements,
        coverage=result.coverage,
    )


def how_wrong(outcome: str | None, accepted: Sequence[str], labels: Sequence[str]) -> Wrong | None:
    """How an outcome is wrong; None where it is accepted, or there is none."""
    if outcome is None or outcome in accepted:
        return None
    strictness = {label: number for number, label in enumerate(labels)}
    return "loose" if strictness[outcome] < min(strictness[label] for label in accepted) else "strict"


def rounds(items: Iterable[Item]) -> dict[Key, tuple[Item, ...]]:
    """The items of each scenario, in the order of their rounds."""
    found: dict[Key, list[Item]] = defaultdict(list)
    for one in items:
        found[one.key].append(one)
    return {key: tuple(sorted(of_key, key=lambda one: one.round)) for key, of_key in found.items()}


def worst(items: Iterable[Item]) -> dict[Key, Item]:
    """The gravest item of each scenario: what it counts as. Of two failures a loose one is the graver."""

    def gravity(one: Item) -> tuple[int, int]:
        return _GRAVITY.index(one.status), ("loose", "strict", None).index(one.wrong)

    return {key: min(of_key, key=gravity) for key, of_key in rounds(items).items()}


def plain(run: Run, **beside: Any) -> dict[str, Json]:
    """The run as JSON values, with what else is to be shown `beside` it (and is not read back)."""
    head: dict[str, Json] = msgspec.to_builtins(run)
    results = head.pop("results")
    return head | {name: msgspec.to_builtins(value) for name, value in beside.items()} | {"results": results}


def load(path: Path) -> Run:
    """A run that was saved. Raises SuiteError naming the file and what is wrong with it."""
    try:
        raw = path.read_bytes()
        if (found := msgspec.json.decode(raw, type=_Head).format) != FORMAT:
            raise SuiteError(f"{path}: has format {found}; this version reads format {FORMAT}: run it again")
        return msgspec.json.decode(raw, type=Run)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told = f"{path}: is no saved run: {error}; make one with `thorpolicy test --json > FILE`"
        raise SuiteError(told) from error


class _Head(Struct):
    format: int
