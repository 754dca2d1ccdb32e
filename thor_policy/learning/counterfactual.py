"""Counterfactuals: past requests decided again by another pack, model or adapter.

Owns which past decisions are decided again, how the two answers compare, and the summary of all comparisons.
Invariant: a request is decided by the code that decides live requests (`policy`), from its record alone (the
evaluation and the time of receipt), under the pack, weights and calibration that would decide now; `then` is
the answer that the record says was served. A decision that cannot be compared is counted by its reason, never
left out. One thread, which also owns the engine.

`learning.counterfactual_run` decides many of them while the daemon is idle.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.decisions import Adapter, ModelInfo, PackInfo, Tier
from thor_policy.core.engine import Engine
from thor_policy.core.errors import RequestError
from thor_policy.core.records import Calibration, Direction
from thor_policy.journal.past_requests import Lack, Unasked, request_of, use_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.suites.intervals import Paired, Rate, paired, rate

#: Why two answers cannot be compared: the record lacks something (`Lack`), a pack of another name decided,
#: the pack does not have the recorded outcome, the model gave no answer then or now, or the question does not
#: fit the model's context.
Reason = Lack | Literal["another_pack", "unknown_outcome", "no_answer_then", "no_answer_now", "too_large"]

#: Scores that the cache keeps, and for how long (seconds): repeated questions are scored once.
_CACHED, _CACHED_S = 1_024, 1e6


class Answer(Struct, frozen=True, kw_only=True):
    """One of the two answers. The new answer has the clauses of the rules: the model cites none here."""

    outcome: str
    tier: Tier
    floor: str
    label: str | None = None
    confidence: float | None = None
    clauses: tuple[str, ...] = ()
    reason_code: str | None = None


class Counterfactual(Struct, frozen=True, kw_only=True):
    """A past decision and the new answer to the same request.

    `at` is the time of the past decision (RFC 3339), `judge` the pack and model that took it. `score_ms` is
    the model's part of `took_ms`.
    """

    decision_id: str
    at: str
    actor: str | None
    judge: str
    then: Answer
    now: Answer
    direction: Direction
    score_ms: float
    took_ms: float


class Skipped(Struct, frozen=True, kw_only=True):
    """A past decision that was not compared; `message` explains the reason."""

    decision_id: str
    reason: Reason
    message: str


class Group(Struct, frozen=True, kw_only=True):
    """Compared decisions that share a value: an actor, a past judge, a clause of either answer.

    `value` is None for decisions that have no such value.
    """

    value: str | None
    compared: int
    loosened: int
    tightened: int


class Change(Struct, frozen=True, kw_only=True):
    """How many decisions changed from one outcome to another."""

    then: str
    now: str
    direction: Direction
    count: int


class Summary(Struct, frozen=True, kw_only=True):
    """The figures of all comparisons. Groups are sorted by loosened decisions, most first.

    `flipped` and `loosened_share` have Wilson intervals. `balance` compares loosened with tightened
    decisions: its difference is the loosened share minus the tightened share, its p-value that of McNemar's
    exact test.
    """

    compared: int
    same: int
    loosened: int
    tightened: int
    flipped: Rate
    loosened_share: Rate
    balance: Paired
    skipped: dict[Reason, int]
    changes: tuple[Change, ...]
    by_judge: tuple[Group, ...]
    by_actor: tuple[Group, ...]
    by_clause: tuple[Group, ...]
    score_ms: float
    took_ms: float

    @property
    def mean_ms(self) -> float:
        """Mean time of a compared decision, in milliseconds."""
        return self.took_ms / self.compared if self.compared else 0.0


class Redecider:
    """Decides past requests of one journal again, by one pack on one engine, under an adopted `adapter`.

    Only decisions by packs named `instead_of` are compared; the default is the name of `pack`. Raises
    EngineError if the pack cannot be loaded.
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        pack: Pack,
        *,
        adapter: Adapter | None = None,
        instead_of: str | None = None,
        contextual: bool = False,
    ) -> None:
        self._reader, self._pack = reader, pack
        self._instead_of = pack.info.name if instead_of is None else instead_of
        self._rank = {label: rank for rank, label in enumerate(pack.labels)}
        #: The pack, model and temperature that decide now.
        self.pack: PackInfo = pack.info
        self.model: ModelInfo = replace(engine.model, adapter=adapter)
        row = reader.calibration(pack.info.sha256, self.model.identity)
        calibration = Calibration(**row) if row else None
        self.temperature = calibration.temperature if calibration else 1.0
        self._policy = Policy(
            engine,
            pack,
            adapter=adapter,
            cache=ScoreCache(_CACHED, _CACHED_S),
            calibration=calibration,
            contextual=contextual,
        )

    def redecide(self, decision_id: str, *, known: Record | None = None) -> Counterfactual | Skipped:
        """Decide one request again, or return its `known` result: a row of the table `counterfactuals`.

        Raises JournalError if there is no such decision.
        """
        row, event = self._reader.recorded(decision_id)

        def skipped(reason: Reason, message: str) -> Skipped:
            return Skipped(decision_id=decision_id, reason=reason, message=message)

        try:
            request = request_of(self._reader, event)
        except Unasked as error:
            return skipped(error.lack, str(error))
        decided_by: str = event["body"]["pack"]["name"]
        if decided_by != self._instead_of:
            return skipped("another_pack", f"the pack {decided_by} decided, not {self._instead_of}")
        then = _answer(row)
        if then.tier == "fallback":
            return skipped("no_answer_then", f"the model gave no answer then: {then.reason_code}")
        if then.outcome not in self._rank:
            outcomes = ", ".join(self._rank)
            return skipped(
                "unknown_outcome", f"{self.pack.name} has no outcome {then.outcome}; it has {outcomes}"
            )
        if known is not None:
            return _from_rows(row, then, known)
        started_ns = time.monotonic_ns()
        try:
            decision = self._policy.decide(request, use=use_of(event))
        except RequestError as error:
            return skipped("too_large", error.message)
        took_ms = (time.monotonic_ns() - started_ns) / 1e6
        if decision.tier == "fallback":
            return skipped("no_answer_now", f"the model gave no answer: {decision.reason_code}")
        now = Answer(
            outcome=decision.outcome,
            tier=decision.tier,
            floor=decision.floor.outcome,
            label=decision.label,
            confidence=decision.confidence,
            clauses=decision.floor.clauses,
            reason_code=decision.reason_code,
        )
        return Counterfactual(
            **_identity(row),
            then=then,
            now=now,
            direction=self._direction(then, now, was_allow=bool(row["allow"]), is_allow=decision.allow),
            score_ms=decision.timings.score_ms,
            took_ms=took_ms,
        )

    def newest_run(self) -> str | None:
        """The id of the newest run of the same pack, model and temperature; None if there is none."""
        return self._reader.newest_run(self.pack.sha256, self.model.identity, self.temperature)

    def results_of(self, run: str) -> dict[str, Record]:
        """The recorded results of a run, by decision id."""
        return {row["decision_id"]: row for row in self._reader.counterfactuals(run)}

    def _direction(self, then: Answer, now: Answer, *, was_allow: bool, is_allow: bool) -> Direction:
        """A new allow is loosened, a lost allow tightened; other outcomes compare by the pack's order."""
        if was_allow or is_allow:
            return "same" if was_allow and is_allow else "loosened" if is_allow else "tightened"
        steps = self._rank[now.outcome] - self._rank[then.outcome]
        return "same" if steps == 0 else "tightened" if steps > 0 else "loosened"


def redecide(
    reader: Reader,
    engine: Engine,
    pack: Pack,
    decision_ids: Sequence[str],
    *,
    adapter: Adapter | None = None,
    instead_of: str | None = None,
) -> Iterator[Counterfactual | Skipped]:
    """Decide these past requests again (`Reader.past` lists them); each when the iterator advances.

    The arguments are those of `Redecider`. Raises EngineError, JournalError.
    """
    redecider = Redecider(reader, engine, pack, adapter=adapter, instead_of=instead_of)
    for decision_id in decision_ids:
        yield redecider.redecide(decision_id)


# ---------------------------------------------------------------- the summary


def summarise(results: Iterable[Counterfactual | Skipped]) -> Summary:
    """The figures of all comparisons; `results` is iterated once."""
    directions: Counter[Direction] = Counter()
    skipped: Counter[Reason] = Counter()
    changes: Counter[tuple[str, str, Direction]] = Counter()
    judges: defaultdict[str | None, Counter[Direction]] = defaultdict(Counter)
    actors: defaultdict[str | None, Counter[Direction]] = defaultdict(Counter)
    clauses: defaultdict[str | None, Counter[Direction]] = defaultdict(Counter)
    score_ms = took_ms = 0.0
    for result in results:
        if isinstance(result, Skipped):
            skipped[result.reason] += 1
            continue
        then, now, direction = result.then, result.now, result.direction
        directions[direction] += 1
        if direction != "same":
            changes[then.outcome, now.outcome, direction] += 1
        judges[result.judge][direction] += 1
        actors[result.actor][direction] += 1
        for clause in {*then.clauses, *now.clauses} or (None,):
            clauses[clause][direction] += 1
        score_ms += result.score_ms
        took_ms += result.took_ms
    compared, loosened, tightened = directions.total(), directions["loosened"], directions["tightened"]
    return Summary(
        compared=compared,
        same=directions["same"],
        loosened=loosened,
        tightened=tightened,
        flipped=rate(loosened + tightened, compared),
        loosened_share=rate(loosened, compared),
        balance=paired(loosened, tightened, compared),
        skipped=dict(sorted(skipped.items())),
        changes=tuple(
            Change(then=then, now=now, direction=direction, count=count)
            for (then, now, direction), count in sorted(changes.items(), key=lambda item: (-item[1], item[0]))
        ),
        by_judge=_groups(judges),
        by_actor=_groups(actors),
        by_clause=_groups(clauses),
        score_ms=score_ms,
        took_ms=took_ms,
    )


def _answer(row: Record) -> Answer:
    """The answer in a row of `decisions` or `counterfactuals`."""
    return Answer(
        outcome=row["decision"],
        tier=row["tier"],
        floor=row["floor"],
        label=row["label"],
        confidence=row["confidence"],
        clauses=tuple(row["clauses"]),
        reason_code=row["reason_code"],
    )


def _from_rows(row: Record, then: Answer, known: Record) -> Counterfactual:
    """The result of an earlier run, from a row of `decisions` and a row of `counterfactuals`."""
    return Counterfactual(
        **_identity(row),
        then=then,
        now=_answer(known),
        direction=known["direction"],
        score_ms=known["score_ms"],
        took_ms=known["took_ms"],
    )


def _identity(row: Record) -> Record:
    """Id, time, actor and judge of a row of `decisions`, as fields of a Counterfactual."""
    pack, model = row["prompt_version"], row["model_name"]
    return {
        "decision_id": row["decision_id"],
        "at": row["timestamp"],
        "actor": row["actor"],
        "judge": f"{pack} on {model}" if model else f"{pack}, its rules",
    }


def _groups(directions: dict[str | None, Counter[Direction]]) -> tuple[Group, ...]:
    groups = [
        Group(
            value=value,
            compared=counts.total(),
            loosened=counts["loosened"],
            tightened=counts["tightened"],
        )
        for value, counts in directions.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.loosened, -group.tightened, group.value or "")))
