"""How far reviewers agree, beyond what chance gives, and how often the decisions were right.

Owns the standing verdicts and every figure made of them. Invariant: agreement is counted only between
verdicts that were given independently, and accuracy is estimated only from decisions drawn at random;
what else was reviewed is counted and told apart. Pure; any thread.

Kappa is (po - pe) / (1 - pe): po the share of pairs that agree, pe what chance would give. Cohen's (1960)
is of two reviewers, with the large-sample variance of Fleiss, Cohen and Everitt (1969); Fleiss' (1971) is
of any number of verdicts a decision, with the jackknife's variance over decisions. Intervals are at 95 %.
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
    """One verdict of one reviewer. `outcome` is what was served, `decision` the correction, if there is one.

    `reviewer` is None where the name was erased. `seq` is the event's.
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
        """True where the outcome was found right, whatever the reasoning."""
        return self.verdict in ("accept", "correct_reasoning")

    @property
    def right(self) -> str:
        """The outcome that this reviewer found right."""
        if self.accepts_outcome:
            return self.outcome
        return self.decision or f"not {self.outcome}"


class Kappa(Struct, frozen=True, kw_only=True):
    """Agreement of `count` decisions: the share that agrees, and kappa with its interval.

    `value` is None where kappa is undefined: nothing was rated, or everything got the same label.
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
    """What one reviewer did; `agrees` compares with independent verdicts of others on the same decisions."""

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
    """All figures. `fleiss` is over the decisions that have `raters` independent verdicts.

    `outcomes_right` is an estimate: of decisions drawn at random alone. `outcomes_right_all` is biased
    towards what was reviewed first, which is what looked doubtful.
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


# ---------------------------------------------------------------- what stands


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
    """What counts of rows of reviews: the newest verdict of each reviewer on each decision that was not taken
    back, in the order in which they were given. A verdict that settles a disagreement stands beside those of
    its reviewer that do not. Only its own reviewer takes a verdict back.
    """
    rows = sorted(rows, key=lambda row: row["seq"])
    back = {
        (row["withdraws"], row["decision_id"], row["reviewer"])
        for row in rows
        if row["verdict"] == "withdrawn"
    }
    newest: dict[tuple[str, str, bool], Rating] = {}
    for row in rows:
        if row["verdict"] == "withdrawn" or (row["id"], row["decision_id"], row["reviewer"]) in back:
            continue
        who = row["reviewer"] or f"\0{row['id']}"  # an erased name may be anybody's
        newest[row["decision_id"], who, bool(row["adjudicates"])] = rating(row)
    return sorted(newest.values(), key=lambda one: one.seq)


def independent(ratings: Sequence[Rating]) -> list[Rating]:
    """Of the standing verdicts on one decision: the first, and those given without sight of it."""
    plain = [one for one in ratings if not one.adjudicates]
    return [one for number, one in enumerate(plain) if number == 0 or one.blind]


def disagree(ratings: Sequence[Rating]) -> bool:
    """True if verdicts on one decision find different outcomes right, and nobody settled it since."""
    settled = max((one.seq for one in ratings if one.adjudicates), default=0)
    plain = [one for one in ratings if not one.adjudicates]
    return len({one.right for one in plain}) > 1 and any(one.seq > settled for one in plain)


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
    """Fleiss' kappa of the labels of each decision, equally many for each and at least two."""
    count = len(labels)
    if not count:
        return Kappa(count=0)
    patterns = Counter(tuple(sorted(Counter(row).items())) for row in labels)
    each = len(labels[0])
    agreeing = {
        pattern: (sum(times**2 for _, times in pattern) - each) / (each * (each - 1)) for pattern in patterns
    }
    totals: Counter[str] = Counter()
    for pattern, often in patterns.items():
        for label, times in pattern:
            totals[label] += often * times
    same = sum(agreeing[pattern] * often for pattern, often in patterns.items()) / count
    value = _fleiss(same * count, totals.values(), count, each)
    if value is None:
        return Kappa(count=count, agreement=same)
    without: list[tuple[float, int]] = []
    for pattern, often in patterns.items():
        left = totals - Counter(dict(pattern))
        one = _fleiss(same * count - agreeing[pattern], left.values(), count - 1, each)
        if one is None:  # all the rest is of one label: no variance can be told
            return Kappa(count=count, agreement=same, value=value)
        without.append((one, often))
    mean = sum(one * often for one, often in without) / count
    variance = (count - 1) / count * sum(often * (one - mean) ** 2 for one, often in without)
    return _kappa(count, same, value, variance)


def _fleiss(agreeing: float, totals: Iterable[int], count: int, each: int) -> float | None:
    if not count:
        return None
    chance = sum((total / (count * each)) ** 2 for total in totals)
    return None if chance >= 1 - 1e-12 else (agreeing / count - chance) / (1 - chance)


def _kappa(count: int, same: float, value: float, variance: float) -> Kappa:
    half = _Z * math.sqrt(variance)
    return Kappa(
        count=count, agreement=same, value=value, low=max(-1.0, value - half), high=min(1.0, value + half)
    )


def proportion(hits: int, count: int) -> Proportion:
    """Wilson's interval of a share."""
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
    """Every figure of these rows of reviews, each with the `outcome` that was served."""
    ratings = standing(rows)
    by_decision: dict[str, list[Rating]] = {}
    for one in ratings:
        by_decision.setdefault(one.decision_id, []).append(one)
    fair = {decision_id: independent(given) for decision_id, given in by_decision.items()}
    counting = [given[-1] for given in by_decision.values()]
    drawn = [given[-1] for given in by_decision.values() if any(one.sampled for one in given)]
    sizes = Counter(len(given) for given in fair.values() if len(given) > 1)
    raters = max(sizes, key=lambda size: (sizes[size], size), default=0)
    return Report(
        reviews=len(ratings),
        decisions=len(by_decision),
        not_independent=len(ratings) - sum(map(len, fair.values())),
        disagreements=sum(map(disagree, by_decision.values())),
        adjudicated=sum(any(one.adjudicates for one in given) for given in by_decision.values()),
        outcomes_right=_right(drawn),
        outcomes_right_all=_right(counting),
        pairs=_pairs(fair.values()),
        fleiss=fleiss([[one.right for one in given] for given in fair.values() if len(given) == raters]),
        raters=raters,
        people=_people(rows, ratings, fair),
    )


def _right(ratings: Sequence[Rating]) -> Proportion:
    return proportion(sum(one.accepts_outcome for one in ratings), len(ratings))


def _pairs(fair: Iterable[Sequence[Rating]]) -> tuple[Pair, ...]:
    both: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for given in fair:
        named = sorted((one.reviewer, one.right) for one in given if one.reviewer is not None)
        for (a, label_a), (b, label_b) in combinations(named, 2):
            both.setdefault((a, b), []).append((label_a, label_b))
    return tuple(Pair(reviewers=names, kappa=cohen(labels)) for names, labels in sorted(both.items()))


def _people(
    rows: Sequence[Mapping[str, Json]], ratings: Sequence[Rating], fair: Mapping[str, Sequence[Rating]]
) -> tuple[Person, ...]:
    back = Counter(row["reviewer"] for row in rows if row["verdict"] == "withdrawn")
    people = []
    for name in sorted({one.reviewer for one in ratings if one.reviewer is not None}):
        own = [one for one in ratings if one.reviewer == name]
        same = compared = 0
        for given in fair.values():
            mine = [one for one in given if one.reviewer == name]
            others = [one for one in given if one.reviewer != name]
            compared += len(mine) * len(others)
            same += sum(one.right == other.right for one in mine for other in others)
        people.append(
            Person(
                reviewer=name,
                reviews=len(own),
                decisions=len({one.decision_id for one in own}),
                blind=sum(one.blind for one in own),
                adjudicated=sum(one.adjudicates for one in own),
                withdrawn=back[name],
                accepted=sum(one.verdict == "accept" for one in own),
                agrees=proportion(same, compared),
                first=min(one.at for one in own),
                last=max(one.at for one in own),
            )
        )
    return tuple(people)
