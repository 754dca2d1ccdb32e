"""Figures over a run: rates with intervals, what rules or model alone would have got, calibration, time.

Owns the statistics of one run. Invariant: the unit is the scenario, not the answer: one that was asked
several times counts once, by its worst round, so that repeats cannot narrow an interval. Every rate comes
with a 95 % Wilson interval. Pure; any thread.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from thor_policy.policy import calibration
from thor_policy.policy.calibration import Quality
from thor_policy.suites.intervals import Rate, rate
from thor_policy.suites.run_files import Item, Run, rounds, worst
from thor_policy.suites.scenarios import DIFFICULTIES


class Group(Struct, frozen=True, kw_only=True):
    """Scenarios that have something in common. `model` is about those where the model was asked."""

    name: str
    passed: Rate
    decided: Rate
    rules: Rate
    model: Rate
    too_loose: int
    too_strict: int


class Confusion(Struct, frozen=True, kw_only=True):
    """Wanted (rows) against served (columns) outcomes of one pack, loosest first.

    `several` scenarios accept more than one outcome, or got none, and are not in it.
    """

    pack: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    several: int


class Flip(Struct, frozen=True, kw_only=True):
    """A scenario that was not answered alike in every round.

    `shift` is the largest change of any probability between two rounds.
    """

    suite: str
    id: str
    title: str
    outcomes: tuple[str | None, ...]
    passed: tuple[bool, ...]
    shift: float


class Latency(Struct, frozen=True, kw_only=True):
    """Milliseconds from receipt to reply, explanation included, of all answers of one tier."""

    tier: str
    count: int
    median_ms: float
    p95_ms: float
    max_ms: float


class Figures(Struct, frozen=True, kw_only=True):
    """What a run shows.

    `rules` is what the rules' floor alone would have got; `model` what the model's own label gets where it
    was asked, and `rules_where_asked` what the rules get on the same questions; `majority` what the label
    that most scenarios of a pack accept would get. `balanced_accuracy` is the mean recall over the `classes`
    that some scenario wants alone. `pass_k` holds, for k = 1 .. repeats, the chance that k answers in a row
    pass. `calibration` is that of the model's label, `mean_coverage` that of the reasons that were measured.
    """

    scenarios: int
    asked: int
    passed: int
    failed: int
    errors: int
    skipped: int
    passing: Rate
    decided: Rate
    rules: Rate
    model: Rate
    rules_where_asked: Rate
    majority: Rate
    balanced_accuracy: float | None
    classes: int
    too_loose: Rate
    too_strict: Rate
    mean_structure: float
    mean_question_tokens: float | None
    mean_explanation_tokens: float | None
    pass_k: tuple[float, ...]
    flips: tuple[Flip, ...]
    confusion: tuple[Confusion, ...]
    calibration: Quality | None
    latency: tuple[Latency, ...]
    by_difficulty: tuple[Group, ...]
    by_pack: tuple[Group, ...]
    by_tag: tuple[Group, ...]
    reasons_measured: int = 0
    mean_coverage: float | None = None

    @property
    def ok(self) -> bool:
        """True when something ran and all of it passed, in every round."""
        return self.passed > 0 and not self.failed and not self.errors


def figures(run: Run) -> Figures:
    """The figures of a run."""
    items = list(worst(run.results).values())
    asked = [item for item in items if item.status != "skipped"]
    statuses = Counter(item.status for item in items)
    scored = [item for item in asked if item.label is not None]
    recalls = _recalls(asked)
    return Figures(
        scenarios=len(items),
        asked=len(asked),
        passed=statuses["passed"],
        failed=statuses["failed"],
        errors=statuses["error"],
        skipped=statuses["skipped"],
        passing=_share(asked, _passed),
        decided=_share(asked, _decided),
        rules=_share(asked, _by_rules),
        model=_share(scored, _by_model),
        rules_where_asked=_share(scored, _by_rules),
        majority=rate(sum(map(_majority, _grouped(asked, lambda item: [item.pack]).values())), len(asked)),
        balanced_accuracy=statistics.fmean(recalls) if recalls else None,
        classes=len(recalls),
        too_loose=_share(asked, lambda item: item.wrong == "loose"),
        too_strict=_share(asked, lambda item: item.wrong == "strict"),
        mean_structure=_mean([item.structure for item in asked if item.outcome is not None]) or 0.0,
        mean_question_tokens=_mean([item.tokens.question for item in asked if item.tokens]),
        mean_explanation_tokens=_mean([item.tokens.explanation for item in asked if item.tokens]),
        pass_k=pass_k(run),
        flips=flips(run.results),
        confusion=tuple(
            _confusion(judge.pack.name, judge.labels, [i for i in asked if i.pack == judge.pack.name])
            for judge in run.judges
        ),
        calibration=_calibration(scored),
        latency=latency(run.results),
        by_difficulty=_groups(asked, lambda item: [item.difficulty], first=DIFFICULTIES),
        by_pack=_groups(asked, lambda item: [item.pack]),
        by_tag=_groups(asked, lambda item: item.tags),
        reasons_measured=sum(item.coverage is not None for item in asked),
        mean_coverage=_mean([item.coverage for item in asked if item.coverage is not None]),
    )


def pass_k(run: Run) -> tuple[float, ...]:
    """The chance that k answers to one scenario, drawn without putting back, all pass; for each k.

    With c of n answers passed it is C(c, k) / C(n, k), averaged over the scenarios that were asked n times.
    """
    n = run.repeats
    counted = [
        sum(item.status == "passed" for item in of_one)
        for of_one in rounds(run.results).values()
        if len(of_one) == n and all(item.status != "skipped" for item in of_one)
    ]
    if not counted:
        return ()
    return tuple(
        statistics.fmean(math.comb(c, k) / math.comb(n, k) for c in counted) for k in range(1, n + 1)
    )


def flips(items: Iterable[Item]) -> tuple[Flip, ...]:
    """Every scenario whose rounds differ in outcome or in whether they passed."""
    found = []
    for of_one in rounds(items).values():
        outcomes = tuple(item.outcome for item in of_one)
        passed = tuple(item.status == "passed" for item in of_one)
        if len(set(outcomes)) > 1 or len(set(passed)) > 1:
            one = of_one[0]
            shift = _shift([item.probabilities for item in of_one])
            found.append(
                Flip(
                    suite=one.suite, id=one.id, title=one.title, outcomes=outcomes, passed=passed, shift=shift
                )
            )
    return tuple(found)


def latency(items: Iterable[Item]) -> tuple[Latency, ...]:
    """Times by tier; an answer that never came has none."""
    of_tier: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if item.tier is not None:
            of_tier[item.tier].append(item.total_ms)
    return tuple(
        Latency(
            tier=tier,
            count=len(times),
            median_ms=statistics.median(times),
            p95_ms=sorted(times)[math.ceil(0.95 * len(times)) - 1],
            max_ms=max(times),
        )
        for tier, times in sorted(of_tier.items())
    )


# ---------------------------------------------------------------- what counts


def _passed(item: Item) -> bool:
    return item.status == "passed"


def _decided(item: Item) -> bool:
    return item.decided_right


def _by_rules(item: Item) -> bool:
    return item.floor in item.accepted


def _by_model(item: Item) -> bool:
    return item.label in item.accepted


def _majority(items: Sequence[Item]) -> int:
    """How many the label gets right that most of these scenarios accept."""
    return max(Counter(label for item in items for label in item.accepted).values(), default=0)


def _share(items: Sequence[Item], counts: Callable[[Item], bool]) -> Rate:
    return rate(sum(map(counts, items)), len(items))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shift(probabilities: Sequence[Mapping[str, float]]) -> float:
    labels = {label for one in probabilities for label in one}
    values = [[one.get(label, 0.0) for one in probabilities if one] for label in labels]
    return max((max(of_label) - min(of_label) for of_label in values), default=0.0)


def _grouped(items: Iterable[Item], names: Callable[[Item], Sequence[str]]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        for name in dict.fromkeys(names(item)):
            found[name].append(item)
    return dict(found)


def _groups(
    items: Sequence[Item], names: Callable[[Item], Sequence[str]], *, first: Sequence[str] = ()
) -> tuple[Group, ...]:
    """Groups by name: those of `first` in its order, then the others by their own."""
    found = _grouped(items, names)
    order = [name for name in first if name in found]
    order += sorted(found.keys() - set(order)) if first else sorted(found)
    return tuple(
        Group(
            name=name,
            passed=_share(found[name], _passed),
            decided=_share(found[name], _decided),
            rules=_share(found[name], _by_rules),
            model=_share([item for item in found[name] if item.label is not None], _by_model),
            too_loose=sum(item.wrong == "loose" for item in found[name]),
            too_strict=sum(item.wrong == "strict" for item in found[name]),
        )
        for name in order
    )


def _recalls(items: Iterable[Item]) -> list[float]:
    """The share decided right of each class: a pack, and an outcome that some scenario wants alone."""
    classes: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item in items:
        if item.wanted is not None:
            classes[item.pack, item.wanted].append(item.decided_right)
    return [statistics.fmean(hits) for hits in classes.values()]


def _confusion(pack: str, labels: Sequence[str], items: Sequence[Item]) -> Confusion:
    counted = Counter((item.wanted, item.outcome) for item in items)
    counts = tuple(tuple(counted[wanted, served] for served in labels) for wanted in labels)
    several = len(items) - sum(map(sum, counts))
    return Confusion(pack=pack, labels=tuple(labels), counts=counts, several=several)


def _calibration(scored: Iterable[Item]) -> Quality | None:
    judged = [(item.probabilities, item.wanted) for item in scored if item.wanted is not None]
    return calibration.quality(judged) if judged else None
