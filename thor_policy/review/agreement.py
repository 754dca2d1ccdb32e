"""How far reviewers agree beyond chance, and how often the decisions were right.

Owns the standing verdicts and every figure made of them. Invariant: agreement is counted only between
independent verdicts, and accuracy is estimated only from the random sample. Other reviews are counted and
reported separately. Pure; any thread.

Kappa is (po - pe) / (1 - pe): po is the share of pairs that agree, pe the share expected by chance. Cohen's
kappa (1960) compares two reviewers, with the large-sample variance of Fleiss, Cohen and Everitt (1969).
Fleiss' kappa (1971) takes any number of verdicts per decision, with the jackknife variance over decisions.
Intervals are at 95 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from msgspec import Struct

from thor_policy.core.requests import Json

#: Quantile of the normal distribution for an interval at 95 %.
_Z = 1.959963984540054


class Rating(Struct, frozen=True, kw_only=True):
    """One verdict of one reviewer. `outcome` was served; `decision` is the correction, if there is one.

    `reviewer` is None if the name was erased. `seq` is that of the event.
    """

    id: str
    seq: int
    decision_id: str
    reviewer: str | None
    verdict: str
    outcome: str
    decision: str | None = None
    reasoning: str | None = None
    at: str = ""
    blind: bool = False
    adjudicates: bool = False
    sampled: bool = False

    @property
    def accepts_outcome(self) -> bool:
        """True if the outcome was found right, whatever the reasoning."""
        return self.verdict in ("accept", "correct_reasoning")

    @property
    def right(self) -> str:
        """The outcome that this reviewer found right."""
        if self.accepts_outcome:
            return self.outcome
        return self.decision or f"not {self.outcome}"


class Kappa(Struct, frozen=True, kw_only=True):
    """Agreement on `count` decisions: the share that agrees, and kappa (`value`) with its interval.

    `value` is None if kappa is undefined: nothing was rated, or everything got the same label.
    """

    count: int
    agreement: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None


class Proportion(Struct, frozen=True, kw_only=True):
    """`hits` of `count`, with Wilson's interval."""

    hits: int
    count: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


class Person(Struct, frozen=True, kw_only=True):
    """One reviewer's figures. `agrees` compares with independent verdicts of others on the same decisions."""

    reviewer: str
    reviews: int
    decisions: int
    blind: int
    adjudicated: int
    withdrawn: int
    accepted: int
    agrees: Proportion
    first: str
    last: str


class Pair(Struct, frozen=True, kw_only=True):
    """Two reviewers who judged the same decisions independently."""

    reviewers: tuple[str, str]
    kappa: Kappa


class Report(Struct, frozen=True, kw_only=True):
    """All figures. `fleiss` covers the decisions that have `raters` independent verdicts.

    `outcomes_right` is an unbiased estimate, from the random sample alone. `outcomes_right_all` is biased
    towards doubtful decisions, because they are reviewed first.
    """

    reviews: int
    decisions: int
    not_independent: int
    disagreements: int
    adjudicated: int
    outcomes_right: Proportion
    outcomes_right_all: Proportion
    pairs: tuple[Pair, ...]
    fleiss: Kappa
    raters: int
    people: tuple[Person, ...]


# ---------------------------------------------------------------- standing verdicts


def rating(row: Mapping[str, Json]) -> Rating:
    """A row of the table of reviews, with the `outcome` that was served beside it."""
    return Rating(
        id=row["id"],
        seq=row["seq"],
        decision_id=row["decision_id"],
        reviewer=row["reviewer"],
        verdict=row["verdict"],
        outcome=row["outcome"],
        decision=row["decision"],
        reasoning=row["reasoning"],
        at=row["timestamp"],
        blind=bool(row["blind"]),
        adjudicates=bool(row["adjudicates"]),
        sampled=bool(row["sampled"]),
    )


def standing(rows: Iterable[Mapping[str, Json]]) -> list[Rating]:
    """The verdicts that count: of each reviewer on each decision the newest that was not withdrawn, in order.

    A verdict that settles a disagreement stands beside an ordinary one of the same reviewer. Only its own
    reviewer can withdraw a verdict.
    """
    rows = sorted(rows, key=lambda row: row["seq"])
    withdrawn = {
        (row["withdraws"], row["decision_id"], row["reviewer"])
        for row in rows
        if row["verdict"] == "withdrawn"
    }
    newest: dict[tuple[str, str, bool], Rating] = {}
    for row in rows:
        if row["verdict"] == "withdrawn" or (row["id"], row["decision_id"], row["reviewer"]) in withdrawn:
            continue
        who = row["reviewer"] or f"\0{row['id']}"  # erased names may belong to different people
        newest[row["decision_id"], who, bool(row["adjudicates"])] = rating(row)
    return sorted(newest.values(), key=lambda rating: rating.seq)


def independent(ratings: Sequence[Rating]) -> list[Rating]:
    """Of the standing verdicts on one decision: the first, and those that were given blind."""
    ordinary = [rating for rating in ratings if not rating.adjudicates]
    return [rating for number, rating in enumerate(ordinary) if number == 0 or rating.blind]


def disagree(ratings: Sequence[Rating]) -> bool:
    """True if verdicts on one decision name different outcomes, and no later verdict settles it."""
    settled_seq = max((rating.seq for rating in ratings if rating.adjudicates), default=0)
    ordinary = [rating for rating in ratings if not rating.adjudicates]
    outcomes = {rating.right for rating in ordinary}
    return len(outcomes) > 1 and any(rating.seq > settled_seq for rating in ordinary)


# ---------------------------------------------------------------- kappa


def cohen(pairs: Sequence[tuple[str, str]]) -> Kappa:
    """Cohen's kappa of the labels that two reviewers gave to the same decisions."""
    count = len(pairs)
    if not count:
        return Kappa(count=0)
    cells = Counter(pairs)
    rows, columns = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    same = sum(times for (a, b), times in cells.items() if a == b) / count
    chance = sum(rows[label] * columns[label] for label in rows) / count**2
    if chance >= 1:
        return Kappa(count=count, agreement=same)
    value = (same - chance) / (1 - chance)
    spread = 0.0
    for (a, b), times in cells.items():
        if a == b:
            spread += times / count * ((1 - chance) - (rows[a] + columns[a]) / count * (1 - same)) ** 2
        else:
            spread += times / count * (1 - same) ** 2 * ((columns[a] + rows[b]) / count) ** 2
    spread -= (same * chance - 2 * chance + same) ** 2
    return _kappa(count, same, value, max(spread, 0.0) / (count * (1 - chance) ** 4))


def fleiss(labels: Sequence[Sequence[str]]) -> Kappa:
    """Fleiss' kappa of the labels of each decision; every decision has the same number, at least two."""
    count = len(labels)
    if not count:
        return Kappa(count=0)
    patterns = Counter(tuple(sorted(Counter(row).items())) for row in labels)
    raters = len(labels[0])
    agreeing = {
        pattern: (sum(times**2 for _, times in pattern) - raters) / (raters * (raters - 1))
        for pattern in patterns
    }
    totals: Counter[str] = Counter()
    for pattern, frequency in patterns.items():
        for label, times in pattern:
            totals[label] += frequency * times
    same = sum(agreeing[pattern] * frequency for pattern, frequency in patterns.items()) / count
    value = _fleiss(same * count, totals.values(), count, raters)
    if value is None:
        return Kappa(count=count, agreement=same)
    # kappa without one decision, and how many decisions give the same
    left_out: list[tuple[float, int]] = []
    for pattern, frequency in patterns.items():
        rest = totals - Counter(dict(pattern))
        kappa = _fleiss(same * count - agreeing[pattern], rest.values(), count - 1, raters)
        if kappa is None:  # all the rest has one label, so the variance is undefined
            return Kappa(count=count, agreement=same, value=value)
        left_out.append((kappa, frequency))
    mean = sum(kappa * frequency for kappa, frequency in left_out) / count
    variance = (count - 1) / count * sum(frequency * (kappa - mean) ** 2 for kappa, frequency in left_out)
    return _kappa(count, same, value, variance)


def _fleiss(agreeing: float, totals: Iterable[int], count: int, raters: int) -> float | None:
    if not count:
        return None
    chance = sum((total / (count * raters)) ** 2 for total in totals)
    return None if chance >= 1 - 1e-12 else (agreeing / count - chance) / (1 - chance)


def _kappa(count: int, same: float, value: float, variance: float) -> Kappa:
    half = _Z * math.sqrt(variance)
    return Kappa(
        count=count, agreement=same, value=value, low=max(-1.0, value - half), high=min(1.0, value + half)
    )


def proportion(hits: int, count: int) -> Proportion:
    """A share with its Wilson interval."""
    if not count:
        return Proportion(hits=0, count=0)
    share, z2 = hits / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Proportion(
        hits=hits, count=count, share=share, low=max(0.0, middle - half), high=min(1.0, middle + half)
    )


# ---------------------------------------------------------------- the report


def report(rows: Sequence[Mapping[str, Json]]) -> Report:
    """All figures of these rows of reviews; each row has the `outcome` that was served."""
    ratings = standing(rows)
    by_decision: dict[str, list[Rating]] = {}
    for rating in ratings:
        by_decision.setdefault(rating.decision_id, []).append(rating)
    fair = {decision_id: independent(verdicts) for decision_id, verdicts in by_decision.items()}
    latest = [verdicts[-1] for verdicts in by_decision.values()]
    in_sample = [
        verdicts[-1] for verdicts in by_decision.values() if any(rating.sampled for rating in verdicts)
    ]
    sizes = Counter(len(verdicts) for verdicts in fair.values() if len(verdicts) > 1)
    raters = max(sizes, key=lambda size: (sizes[size], size), default=0)
    return Report(
        reviews=len(ratings),
        decisions=len(by_decision),
        not_independent=len(ratings) - sum(map(len, fair.values())),
        disagreements=sum(map(disagree, by_decision.values())),
        adjudicated=sum(any(rating.adjudicates for rating in verdicts) for verdicts in by_decision.values()),
        outcomes_right=_right(in_sample),
        outcomes_right_all=_right(latest),
        pairs=_pairs(fair.values()),
        fleiss=fleiss(
            [[rating.right for rating in verdicts] for verdicts in fair.values() if len(verdicts) == raters]
        ),
        raters=raters,
        people=_people(rows, ratings, fair),
    )


def _right(ratings: Sequence[Rating]) -> Proportion:
    return proportion(sum(rating.accepts_outcome for rating in ratings), len(ratings))


def _pairs(fair: Iterable[Sequence[Rating]]) -> tuple[Pair, ...]:
    both: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for verdicts in fair:
        named = sorted((rating.reviewer, rating.right) for rating in verdicts if rating.reviewer is not None)
        for (a, label_a), (b, label_b) in combinations(named, 2):
            both.setdefault((a, b), []).append((label_a, label_b))
    return tuple(Pair(reviewers=names, kappa=cohen(labels)) for names, labels in sorted(both.items()))


def _people(
    rows: Sequence[Mapping[str, Json]], ratings: Sequence[Rating], fair: Mapping[str, Sequence[Rating]]
) -> tuple[Person, ...]:
    withdrawn = Counter(row["reviewer"] for row in rows if row["verdict"] == "withdrawn")
    people = []
    for name in sorted({rating.reviewer for rating in ratings if rating.reviewer is not None}):
        own = [rating for rating in ratings if rating.reviewer == name]
        same = compared = 0
        for verdicts in fair.values():
            mine = [rating for rating in verdicts if rating.reviewer == name]
            others = [rating for rating in verdicts if rating.reviewer != name]
            compared += len(mine) * len(others)
            same += sum(rating.right == other.right for rating in mine for other in others)
        people.append(
            Person(
                reviewer=name,
                reviews=len(own),
                decisions=len({rating.decision_id for rating in own}),
                blind=sum(rating.blind for rating in own),
                adjudicated=sum(rating.adjudicates for rating in own),
                withdrawn=withdrawn[name],
                accepted=sum(rating.verdict == "accept" for rating in own),
                agrees=proportion(same, compared),
                first=min(rating.at for rating in own),
                last=max(rating.at for rating in own),
            )
        )
    return tuple(people)
