"""How long the rules of a request take, by pack, beside another version of the pack.

Owns the timing of `RuleBook.apply`. Invariant: both versions of a pack see each question in turns, and no
text has been parsed before: what structure functions remember is cleared before each call. Main thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from importlib.metadata import version

from msgspec import Struct

from thor_policy.bench.figures import Advance, Announce, Report, Series, ratio
from thor_policy.core.requests import Evaluation
from thor_policy.policy import functions
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: The receipt time of every question: 2026-07-01T12:00:00Z.
_RECEIVED_AT = 1_782_907_200.0


class Contest(Struct, frozen=True, kw_only=True):
    """A pack, its questions, and the version of the pack to compare it with."""

    pack: Pack
    questions: tuple[Evaluation, ...]
    against: Pack | None = None


def rules(contests: Sequence[Contest], *, rounds: int, advance: Advance, announce: Announce) -> Report:
    """Time the rules of each pack on its questions, `rounds` times each."""
    series: list[Series] = []
    ratios = []
    for contest in contests:
        name, against = contest.pack.info.name, contest.against
        ours, theirs = _timed(contest, rounds, advance)
        series.append(Series(name=name, ms=tuple(ours)))
        announce(series[-1])
        if against is not None:
            series.append(Series(name=f"{name}, compared", ms=tuple(theirs)))
            ratios.append(ratio(series[-2], series[-1]))
            announce(series[-1])
            announce(ratios[-1])
    return Report(
        name="rules",
        machine=machine(),
        versions={"cel-expr-python": version("cel-expr-python")},
        questions=sum(len(contest.questions) for contest in contests),
        rounds=rounds,
        series=tuple(series),
        ratios=tuple(ratios),
    )


def _timed(contest: Contest, rounds: int, advance: Advance) -> tuple[list[float], list[float]]:
    """Milliseconds of each question and round, for the pack and for the one to compare it with."""
    ours: list[float] = []
    theirs: list[float] = []
    order = random.Random(0)  # noqa: S311
    for pack in (contest.pack, contest.against):  # the first request makes what later ones use
        if pack is not None:
            pack.book.apply(contest.questions[0], _RECEIVED_AT)
    for _ in range(rounds):
        for question in contest.questions:
            turns = [(contest.pack, ours), (contest.against, theirs)]
            order.shuffle(turns)
            for pack, ms in turns:
                if pack is not None:
                    ms.append(_apply_ms(pack, question))
            advance()
    return ours, theirs


def _apply_ms(pack: Pack, question: Evaluation) -> float:
    functions.forget()
    started_ns = time.perf_counter_ns()
    pack.book.apply(question, _RECEIVED_AT)
    return (time.perf_counter_ns() - started_ns) / 1e6
