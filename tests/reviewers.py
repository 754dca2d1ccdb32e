"""Simulated reviewers with known error rates, and how often a tuned band keeps its promise with them.

`python -m tests.reviewers` prints for each kind of reviewer in how many of 100 runs both promises were true.
"""

from __future__ import annotations

import random

from thor_policy.core.errors import CalibrationError
from thor_policy.policy.bands import Promise, Reviewed, Served, choose

#: A model that allows 80 % of its questions; an allow of confidence c is right with probability c.
ALLOWS = 0.8
#: Shares of false allows that reviewers accept, and of right allows that they correct.
REVIEWERS = ((0.0, 0.0), (0.1, 0.0), (0.2, 0.05), (0.4, 0.1))


def question(rng: random.Random) -> tuple[float | None, bool]:
    """The confidence of an allow, and whether an allow is right."""
    if rng.random() >= ALLOWS:
        return None, False
    confidence = 0.5 + 0.5 * rng.random() ** 0.5
    return confidence, rng.random() < confidence


def sample(rng: random.Random, count: int, misses: float = 0.0, alarms: float = 0.0) -> list[Reviewed]:
    """Reviews by people who accept a share `misses` of false allows, and correct `alarms` of right ones."""
    questions = []
    for _ in range(count):
        confidence, right = question(rng)
        may_allow = rng.random() >= alarms if right else rng.random() < misses
        questions.append(Reviewed(confidence=confidence, may_allow=may_allow))
    return questions


def traffic(rng: random.Random, count: int) -> list[Served]:
    return [Served(confidence=question(rng)[0], asks=rng.random() < 0.02) for _ in range(count)]


def true_false_allows(below: float) -> float:
    """The rate over all questions, by numeric integration of the model above."""
    steps = [0.5 + 0.5 * ((step + 0.5) / 20_000) ** 0.5 for step in range(20_000)]
    return ALLOWS * sum(1 - c for c in steps if c >= below) / len(steps)


def true_asks(below: float, a_day: float) -> float:
    steps = [0.5 + 0.5 * ((step + 0.5) / 20_000) ** 0.5 for step in range(20_000)]
    banded = ALLOWS * sum(c < below for c in steps) / len(steps)
    return a_day * (banded + (1 - banded) * 0.02)


def held(runs: int, misses: float, alarms: float) -> tuple[int, int]:
    """Of so many runs, those in which both promises are true, and those that were not refused."""
    kept = chosen = 0
    for seed in range(runs):
        rng = random.Random(seed)
        promise = Promise(asks_per_day=70, false_allows=0.06, days=30, reviewers_miss=misses)
        try:
            below = choose(sample(rng, 1_500, misses, alarms), traffic(rng, 3_000), promise).below
        except CalibrationError:
            kept += 1  # nothing was promised
            continue
        chosen += 1
        kept += true_false_allows(below) <= 0.06 and true_asks(below, 100) <= 70
    return kept, chosen


if __name__ == "__main__":
    for misses, alarms in REVIEWERS:
        kept, chosen = held(100, misses, alarms)
        print(
            f"misses {misses:.0%}, false alarms {alarms:.0%}: "
            f"kept in {kept} of 100 runs, {100 - chosen} of them refused"
        )
