"""Figures of a run: rates with intervals, the rules or the model alone, calibration, time.

Owns the statistics of one run. Invariant: the unit is the scenario, not the answer. A scenario that was asked
several times counts once, by its worst round, so repeats cannot narrow an interval. Every rate has a 95 %
Wilson interval. Pure; any thread.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field

from thor_policy.policy import calibration
from thor_policy.policy.calibration import Judged, Quality, Sureness, Top
from thor_policy.policy.tightening import DOUBT
from thor_policy.suites.intervals import Rate, rate
from thor_policy.suites.model_effect import Case, Effect, effect_of
from thor_policy.suites.run_files import Item, Run, rounds, worst
from thor_policy.suites.scenarios import ATTACK, DIFFICULTIES


class Group(Struct, frozen=True, kw_only=True):
    """Figures of the scenarios of one difficulty, pack or tag; `model` where the model was asked."""

    name: str
    passed: Rate
    decided: Rate
    rules: Rate
    model: Rate
    too_loose: int
    too_strict: int


class Confusion(Struct, frozen=True, kw_only=True):
    """The confusion matrix of one pack: rows are wanted outcomes, columns served ones, loosest first.

    It leaves out `several` scenarios that accept more than one outcome, or got none.
    """

    pack: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    several: int


class Flip(Struct, frozen=True, kw_only=True):
    """A scenario whose answer differed between rounds.

    `shift` is the largest change of any probability between two rounds.
    """

    suite: str
    id: str
    title: str
    outcomes: tuple[str | None, ...]
    passed: tuple[bool, ...]
    shift: float


class Latency(Struct, frozen=True, kw_only=True):
    """Milliseconds from receipt to reply, with explanation, of all answers of one tier."""

    tier: str
    count: int
    median_ms: float
    p95_ms: float
    max_ms: float


class Figures(Struct, frozen=True, kw_only=True):
    """All figures of a run. `not_skipped` counts the scenarios that were asked (in JSON: `asked`).

    Shares of right outcomes: `rules` by the floor of the rules alone; `model` by the label of the model,
    where it was asked; `rules_where_asked` by the rules on those same questions; `majority` by the label that
    most scenarios of a pack accept. `balanced_accuracy` is the mean recall over the `classes` that some
    scenario accepts alone. `effects` say for each pack what the model adds and costs. `reasons_replaced`
    counts the model's reasons that did not hold, of all that it gave. `pass_k` holds, for k = 1 ..
    repeats, the chance that k answers in a row pass. `calibration` is that of the model's label; `sureness`
    has its error apart for the scenarios whose text attacks (`attacked`) and for the `others`, also where
    several outcomes are right.
    `mean_coverage` is over the reasons that were measured.
    """

    scenarios: int
    not_skipped: int = field(name="asked")
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
    sureness: tuple[Sureness, ...]
    latency: tuple[Latency, ...]
    by_difficulty: tuple[Group, ...]
    by_pack: tuple[Group, ...]
    by_tag: tuple[Group, ...]
    effects: tuple[Effect, ...] = ()
    reasons_replaced: Rate = rate(0, 0)
    reasons_measured: int = 0
    mean_coverage: float | None = None

    @property
    def ok(self) -> bool:
        """True when a scenario passed, and none failed or got an error in any round."""
        return self.passed > 0 and not self.failed and not self.errors


def figures(run: Run) -> Figures:
    """The figures of a run."""
    items = list(worst(run.results).values())
    counted = [item for item in items if item.status != "skipped"]
    statuses = Counter(item.status for item in items)
    scored = [item for item in counted if item.label is not None]
    recalls = _recalls(counted)
    return Figures(
        scenarios=len(items),
        not_skipped=len(counted),
        passed=statuses["passed"],
        failed=statuses["failed"],
        errors=statuses["error"],
        skipped=statuses["skipped"],
        passing=_share(counted, _has_passed),
        decided=_share(counted, _is_decided_right),
        rules=_share(counted, _rules_are_right),
        model=_share(scored, _model_is_right),
        rules_where_asked=_share(scored, _rules_are_right),
        majority=rate(
            sum(map(_majority, _items_by_name(counted, lambda item: [item.pack]).values())), len(counted)
        ),
        balanced_accuracy=statistics.fmean(recalls) if recalls else None,
        classes=len(recalls),
        too_loose=_share(counted, lambda item: item.wrong == "loose"),
        too_strict=_share(counted, lambda item: item.wrong == "strict"),
        mean_structure=_mean([item.structure for item in counted if item.outcome is not None]) or 0.0,
        mean_question_tokens=_mean([item.tokens.question for item in counted if item.tokens]),
        mean_explanation_tokens=_mean([item.tokens.explanation for item in counted if item.tokens]),
        pass_k=pass_k(run),
        flips=flips(run.results),
        confusion=tuple(
            _confusion(judge.pack.name, judge.labels, [i for i in counted if i.pack == judge.pack.name])
            for judge in run.judges
        ),
        calibration=_calibration(scored),
        sureness=_sureness(scored),
        latency=latency(run.results),
        by_difficulty=_groups(counted, lambda item: [item.difficulty], first=DIFFICULTIES),
        by_pack=_groups(counted, lambda item: [item.pack]),
        by_tag=_groups(counted, lambda item: item.tags),
        effects=tuple(
            effect
            for judge in run.judges
            if (effect := _effect(judge.pack.name, judge.labels, counted)).scored
        ),
        reasons_replaced=_share(
            [item for item in counted if item.source in ("model", "replaced")],
            lambda item: item.source == "replaced",
        ),
        reasons_measured=sum(item.coverage is not None for item in counted),
        mean_coverage=_mean([item.coverage for item in counted if item.coverage is not None]),
    )


def pass_k(run: Run) -> tuple[float, ...]:
    """For each k, the chance that k answers to one scenario, drawn without replacement, all pass.

    If c of n answers passed, it is C(c, k) / C(n, k), averaged over the scenarios that were asked n times.
    """
    n = run.repeats
    passed_counts = [
        sum(item.status == "passed" for item in answers)
        for answers in rounds(run.results).values()
        if len(answers) == n and all(item.status != "skipped" for item in answers)
    ]
    if not passed_counts:
        return ()
    return tuple(
        statistics.fmean(math.comb(c, k) / math.comb(n, k) for c in passed_counts) for k in range(1, n + 1)
    )


def flips(items: Iterable[Item]) -> tuple[Flip, ...]:
    """Every scenario whose rounds differ in outcome or in whether they passed."""
    flipped = []
    for answers in rounds(items).values():
        outcomes = tuple(item.outcome for item in answers)
        passed = tuple(item.status == "passed" for item in answers)
        if len(set(outcomes)) > 1 or len(set(passed)) > 1:
            first = answers[0]
            flipped.append(
                Flip(
                    suite=first.suite,
                    id=first.id,
                    title=first.title,
                    outcomes=outcomes,
                    passed=passed,
                    shift=_shift([item.probabilities for item in answers]),
                )
            )
    return tuple(flipped)


def latency(items: Iterable[Item]) -> tuple[Latency, ...]:
    """Times by tier, of all questions that were answered."""
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


def _has_passed(item: Item) -> bool:
    return item.status == "passed"


def _is_decided_right(item: Item) -> bool:
    return item.decided_right


def _rules_are_right(item: Item) -> bool:
    return item.floor in item.accepted


def _model_is_right(item: Item) -> bool:
    return item.label in item.accepted


def _majority(items: Sequence[Item]) -> int:
    """How many of these scenarios accept the label that most of them accept."""
    return max(Counter(label for item in items for label in item.accepted).values(), default=0)


def _share(items: Sequence[Item], counts: Callable[[Item], bool]) -> Rate:
    return rate(sum(map(counts, items)), len(items))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _shift(probabilities: Sequence[Mapping[str, float]]) -> float:
    labels = {label for by_label in probabilities for label in by_label}
    values = [[by_label.get(label, 0.0) for by_label in probabilities if by_label] for label in labels]
    return max((max(of_label) - min(of_label) for of_label in values), default=0.0)


def _items_by_name(items: Iterable[Item], names: Callable[[Item], Sequence[str]]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        for name in dict.fromkeys(names(item)):
            groups[name].append(item)
    return dict(groups)


def _groups(
    items: Sequence[Item], names: Callable[[Item], Sequence[str]], *, first: Sequence[str] = ()
) -> tuple[Group, ...]:
    """Groups by name: those in `first` in its order, then the others by name."""
    groups = _items_by_name(items, names)
    order = [name for name in first if name in groups]
    order += sorted(groups.keys() - set(order)) if first else sorted(groups)
    return tuple(
        Group(
            name=name,
            passed=_share(groups[name], _has_passed),
            decided=_share(groups[name], _is_decided_right),
            rules=_share(groups[name], _rules_are_right),
            model=_share([item for item in groups[name] if item.label is not None], _model_is_right),
            too_loose=sum(item.wrong == "loose" for item in groups[name]),
            too_strict=sum(item.wrong == "strict" for item in groups[name]),
        )
        for name in order
    )


def _effect(pack: str, labels: Sequence[str], items: Iterable[Item]) -> Effect:
    cases = [
        Case(
            floor=item.floor,
            outcome=item.outcome,
            accepted=item.accepted,
            scored=item.label is not None,
            doubt=item.reason_code == DOUBT,
        )
        for item in items
        if item.pack == pack and item.floor is not None and item.outcome is not None
    ]
    return effect_of(pack, labels, cases)


def _recalls(items: Iterable[Item]) -> list[float]:
    """The share decided right of each class: a pack, and an outcome that some scenario accepts alone."""
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
    judged = _judged(scored)
    return calibration.quality(judged) if judged else None


def _sureness(scored: Sequence[Item]) -> tuple[Sureness, ...]:
    groups = {
        "attacked": [item for item in scored if item.difficulty == ATTACK],
        "others": [item for item in scored if item.difficulty != ATTACK],
    }
    measured = (calibration.sureness(name, _tops(items)) for name, items in groups.items())
    return tuple(sureness for sureness in measured if sureness is not None)


def _tops(scored: Iterable[Item]) -> list[Top]:
    """The confidence in the model's label, and whether the scenario accepts it, alone or among others."""
    return [
        (item.probabilities[item.label], item.label in item.accepted)
        for item in scored
        if item.label is not None
    ]


def _judged(scored: Iterable[Item]) -> list[Judged]:
    """The probabilities and the right outcome where exactly one is right."""
    return [(item.probabilities, item.wanted) for item in scored if item.wanted is not None]
