"""Compare two runs of the same scenarios: what differs, how surely, and which side to take.

Owns the paired comparison and its recommendation. Invariant: no side is recommended for a difference that may
be chance. Accuracy needs an exact McNemar test below `SIGNIFICANT`. Speed needs a 95 % interval that excludes
1 and an accuracy that is shown to be no worse. Pure; any thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from thor_policy.suites.intervals import CONFIDENCE, Rate, paired, rate
from thor_policy.suites.run_files import Item, Key, Run, rounds, worst

#: A difference counts as shown if its probability by chance alone is below this.
SIGNIFICANT = 0.05
#: Loss of accuracy, as a share, that more speed may cost: the interval must lie above its negative.
MARGIN = 0.05
#: A side is recommended for speed only if the ratio of times is below this, or above its inverse.
WORTH = 0.9

Choice = Literal["before", "after", "neither"]


class Change(Struct, frozen=True, kw_only=True):
    """One scenario whose outcome or verdict differs. `loosened`: only the later run is too loose."""

    suite: str
    id: str
    title: str
    before: str | None
    after: str | None
    right_before: bool
    right_after: bool
    passed_before: bool
    passed_after: bool
    loosened: bool
    tightened: bool
    tags: tuple[str, ...] = ()


class Ratio(Struct, frozen=True, kw_only=True):
    """The median of later over earlier time in `count` pairs, with an exact 95 % interval of that median.

    The interval is that of order statistics. Fewer than 6 pairs have none (`low` 0, `high` None).
    """

    count: int
    ratio: float
    low: float
    high: float | None


class Comparison(Struct, frozen=True, kw_only=True):
    """Two runs over the scenarios that both asked. `redefined` ones are left out: their question or their
    accepted outcomes differ.

    `fixed` scenarios are right only after, `broken` ones only before. `p_value` is that of McNemar's exact
    test. `difference` is the gain in the share decided right; its 95 % interval is exact given how many
    differ. `latency` covers questions that the model answered in both runs.
    """

    before: str
    after: str
    paired: int
    decided_before: Rate
    decided_after: Rate
    both_right: int
    fixed: int
    broken: int
    both_wrong: int
    p_value: float
    difference: float
    low: float
    high: float
    loosened: int
    tightened: int
    latency: Ratio | None
    question_tokens: tuple[float, float] | None
    explanation_tokens: tuple[float, float] | None
    same_machine: bool
    changes: tuple[Change, ...]
    only_before: tuple[Key, ...]
    only_after: tuple[Key, ...]
    redefined: tuple[Key, ...]
    choice: Choice
    reason: str


def compare(before: Run, after: Run, *, names: tuple[str, str] = ("before", "after")) -> Comparison:
    """Compare `after` with `before`, scenario by scenario; each counts by its worst round."""
    old, new = _not_skipped(before), _not_skipped(after)
    redefined = tuple(key for key in old if key in new and not _same(old[key], new[key]))
    pairs = [(old[key], new[key]) for key in old if key in new and key not in redefined]
    fixed = sum(not a.decided_right and b.decided_right for a, b in pairs)
    broken = sum(a.decided_right and not b.decided_right for a, b in pairs)
    both = sum(a.decided_right and b.decided_right for a, b in pairs)
    test = paired(fixed, broken, len(pairs))
    changes = tuple(
        _change(a, b)
        for a, b in pairs
        if (a.outcome, a.decided_right, a.status) != (b.outcome, b.decided_right, b.status)
    )
    loosened, tightened = sum(c.loosened for c in changes), sum(c.tightened for c in changes)
    same_machine = before.machine == after.machine
    latency = _latency(before, after)
    choice, reason = _recommend(
        names=names,
        paired=len(pairs),
        p_value=test.p_value,
        gain=fixed - broken,
        low=test.low,
        high=test.high,
        loosened=loosened,
        tightened=tightened,
        latency=latency if same_machine else None,
    )
    return Comparison(
        before=names[0],
        after=names[1],
        paired=len(pairs),
        decided_before=rate(both + broken, len(pairs)),
        decided_after=rate(both + fixed, len(pairs)),
        both_right=both,
        fixed=fixed,
        broken=broken,
        both_wrong=len(pairs) - both - fixed - broken,
        p_value=test.p_value,
        difference=test.difference,
        low=test.low,
        high=test.high,
        loosened=loosened,
        tightened=tightened,
        latency=latency,
        question_tokens=_tokens(pairs, "question"),
        explanation_tokens=_tokens(pairs, "explanation"),
        same_machine=same_machine,
        changes=changes,
        only_before=tuple(key for key in old if key not in new),
        only_after=tuple(key for key in new if key not in old),
        redefined=redefined,
        choice=choice,
        reason=reason,
    )


def _not_skipped(run: Run) -> Mapping[Key, Item]:
    return {key: item for key, item in worst(run.results).items() if item.status != "skipped"}


def _same(a: Item, b: Item) -> bool:
    return (a.question, set(a.accepted)) == (b.question, set(b.accepted))


def _change(a: Item, b: Item) -> Change:
    return Change(
        suite=a.suite,
        id=a.id,
        title=b.title,
        before=a.outcome,
        after=b.outcome,
        right_before=a.decided_right,
        right_after=b.decided_right,
        passed_before=a.status == "passed",
        passed_after=b.status == "passed",
        loosened=b.wrong == "loose" and a.wrong != "loose",
        tightened=a.wrong == "loose" and b.wrong != "loose",
        tags=b.tags,
    )


def _latency(before: Run, after: Run) -> Ratio | None:
    """The ratio of times where the model answered in both runs; of several rounds the median counts."""
    old, new = _times(before), _times(after)
    ratios = [new[key] / old[key] for key in old if key in new and old[key] > 0]
    if not ratios:
        return None
    low, high = 0.0, None
    if len(ratios) >= 6:  # of fewer, no two order statistics enclose 95 %
        from scipy.stats import quantile_test

        interval: Any = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    return Ratio(count=len(ratios), ratio=statistics.median(ratios), low=low, high=high)


def _times(run: Run) -> dict[Key, float]:
    medians = {}
    for key, answers in rounds(run.results).items():
        times = [item.total_ms for item in answers if item.tier == "model"]
        if times:
            medians[key] = statistics.median(times)
    return medians


def _tokens(
    pairs: Sequence[tuple[Item, Item]], kind: Literal["question", "explanation"]
) -> tuple[float, float] | None:
    """Mean tokens before and after, over the scenarios where the model was asked in both."""
    counts = [(getattr(a.tokens, kind), getattr(b.tokens, kind)) for a, b in pairs if a.tokens and b.tokens]
    if not counts:
        return None
    return statistics.fmean(a for a, _ in counts), statistics.fmean(b for _, b in counts)


def _recommend(
    *,
    names: tuple[str, str],
    paired: int,
    p_value: float,
    gain: int,
    low: float,
    high: float,
    loosened: int,
    tightened: int,
    latency: Ratio | None,
) -> tuple[Choice, str]:
    """Which run to take, and why. `gain` is the number of scenarios gained minus those lost."""
    if not paired:
        return "neither", "no scenario was asked in both runs"
    if p_value < SIGNIFICANT:
        better = names[1] if gain > 0 else names[0]
        shown = f"{better} decides {abs(gain)} more of {paired} right (exact McNemar p = {p_value:.2g})"
        newly_loose = loosened if gain > 0 else tightened
        if newly_loose:
            only_here = f"{newly_loose} that the other does not: look at those first"
            return "neither", f"{shown}, but answers too loosely {only_here}"
        return ("after" if gain > 0 else "before"), shown
    no_difference = (
        f"no difference shown: {'one is' if abs(gain) == 1 else f'{abs(gain)} are'} "
        f"{'gained' if gain >= 0 else 'lost'} of {paired} (exact McNemar p = {p_value:.2g}, 95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f} points)"
    )
    if loosened or tightened:
        return (
            "neither",
            f"{no_difference}; too loose only in {names[1]}: {loosened}, only in {names[0]}: {tightened}",
        )
    if latency is not None and latency.high is not None:
        factor = f"{latency.ratio:.2f} ({latency.low:.2f} to {latency.high:.2f}) of the time"
        if latency.ratio <= WORTH and latency.high < 1 and low > -MARGIN:
            return "after", f"{no_difference}; {names[1]} takes {factor}"
        if latency.ratio >= 1 / WORTH and latency.low > 1 and high < MARGIN:
            return "before", f"{no_difference}; {names[1]} takes {factor}"
    return "neither", no_difference
