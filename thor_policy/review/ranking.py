"""Which decision a reviewer sees first, and why.

Owns the order of a queue. Invariant: whether a decision is in the random sample, or is judged twice,
follows from its id alone, so every reviewer's queue agrees on it and nothing that was seen can change it.
Bounded: `WINDOW` decisions against `COMPARED` reviewed ones. Pure; any thread.

    score = (0.1 + 0.9 unsure) x risk x (0.1 + 0.9 novel)

`unsure` is the entropy of the calibrated probabilities over its maximum, 0 to 1 (a rule's answer has
none: 0; an answer that nobody could give: 1). `risk` is 0.25, 0.5, 0.75 or 1. `novel` is 1 less the
greatest overlap (Jaccard) of the question's words with those of a reviewed question.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from thor_policy.core.requests import RISKS, Json

#: Decisions that are put in order, and reviewed ones that their questions are compared with.
WINDOW, COMPARED = 500, 200
#: Words of a question that are compared.
MOST_WORDS = 200
#: Shares of the decisions that are drawn at random, and that a second person judges blind.
RANDOM_SHARE, SECOND_SHARE = 0.2, 0.1
#: What no factor of a score falls below, so that none hides the others.
_LEAST = 0.1
_WORD = re.compile(r"\w+")


class Pick(Struct, frozen=True, kw_only=True):
    """A decision in a queue and why it stands where it does. `score` is None where none was needed.

    `sampled`: drawn at random; `blind`: a second verdict, given without sight of the first; `adjudicates`:
    reviewers disagree about it. More verdicts of others than `others` leave nothing to do; None: as many as
    there are.
    """

    decision_id: str
    why: str
    score: float | None = None
    sampled: bool = False
    blind: bool = False
    adjudicates: bool = False
    others: int | None = 0


class Signals(Struct, frozen=True, kw_only=True):
    """The three factors of a score."""

    unsure: float
    risk: float
    novel: float
    risk_level: str | None

    @property
    def score(self) -> float:
        return (_LEAST + (1 - _LEAST) * self.unsure) * self.risk * (_LEAST + (1 - _LEAST) * self.novel)

    def __str__(self) -> str:
        return f"unsure {self.unsure:.2f} x risk {self.risk_level or 'unknown'} x new {self.novel:.2f}"


def drawn(decision_id: str, purpose: str, share: float) -> bool:
    """True for that share of all decisions, the same ones for everybody."""
    return lot(decision_id, purpose) < share


def lot(decision_id: str, purpose: str) -> float:
    """A number from 0 to 1 that follows from the id, and differently for each purpose."""
    digest = hashlib.sha256(f"{purpose}:{decision_id}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def signals(row: Mapping[str, Json], reviewed: Sequence[frozenset[str]]) -> Signals:
    """The factors of one row of the table of decisions; `reviewed` are the words of reviewed questions."""
    risk = row["risk_level"]
    return Signals(
        unsure=unsure(row["probabilities"], row["tier"]),
        risk=(RISKS.index(risk) + 1) / len(RISKS) if risk in RISKS else 0.5,
        novel=novelty(words(row), reviewed),
        risk_level=risk,
    )


def unsure(probabilities: Mapping[str, float], tier: str) -> float:
    """Entropy over its maximum."""
    shares = [share for share in probabilities.values() if share > 0]
    if len(probabilities) < 2 or not shares:
        return 0.0 if tier == "rule" else 1.0
    entropy = -sum(share * math.log(share) for share in shares)
    return min(1.0, max(0.0, entropy / math.log(len(probabilities))))


def words(row: Mapping[str, Json]) -> frozenset[str]:
    """The words of a question, without the name of whom it is about."""
    situation = row["situation"]
    if not isinstance(situation, dict):
        return frozenset()
    found: set[str] = set()
    for text in _texts({name: part for name, part in situation.items() if name != "subject"}):
        found.update(match.group().casefold() for match in _WORD.finditer(text))
    subject = situation.get("subject")
    if isinstance(subject, dict):
        for text in _texts(subject.get("properties")):
            found.update(match.group().casefold() for match in _WORD.finditer(text))
    return frozenset(sorted(found)[:MOST_WORDS])


def _texts(value: Json) -> Iterator[str]:
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            yield from one
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
        elif one is not None:
            yield str(one)


def novelty(of: frozenset[str], reviewed: Sequence[frozenset[str]]) -> float:
    """1 less the greatest Jaccard overlap with any of them; 1 where there is none."""
    nearest = 0.0
    for other in reviewed:
        either = len(of | other)
        nearest = max(nearest, len(of & other) / either if either else 1.0)
    return 1.0 - nearest


def queue(
    rows: Sequence[Mapping[str, Json]],
    *,
    reviewed: Sequence[Mapping[str, Json]] = (),
    again: Sequence[Mapping[str, Json]] = (),
    mine: frozenset[str] = frozenset(),
    random_share: float = RANDOM_SHARE,
    verdicts: int = 2,
) -> list[Pick]:
    """The decisions `rows` in the order in which they should be reviewed.

    `reviewed` are rows of reviewed decisions to compare with, the newest first; `again` those that wait for a
    blind verdict, up to `verdicts` each; `mine` the ids assigned to this reviewer, which come before all. The
    random sample has every n-th place (n = 1 / `random_share`), a blind verdict every tenth; the score orders
    the rest.
    """
    known = [words(row) for row in reviewed[:COMPARED]]
    own: list[Pick] = []
    ranked: list[Pick] = []
    sample: list[tuple[float, Pick]] = []
    for row in rows[:WINDOW]:
        decision_id = row["decision_id"]
        factors = signals(row, known)
        is_mine, at_random = decision_id in mine, drawn(decision_id, "sample", random_share)
        pick = Pick(decision_id=decision_id, why=str(factors), score=factors.score)
        if is_mine:
            own.append(_with(pick, f"assigned to you; {factors}"))
        elif at_random:
            why = f"drawn at random, as {random_share:.0%} are, so that estimates stay honest"
            pick = Pick(decision_id=decision_id, why=why, sampled=True)
            sample.append((lot(decision_id, "sample"), pick))
        else:
            ranked.append(pick)
    for picks in (own, ranked):
        picks.sort(key=lambda pick: -(pick.score or 0.0))
    sample.sort(key=lambda one: one[0])
    blind = [
        Pick(
            decision_id=row["decision_id"],
            why="judged before; your verdict, without sight of that one, tells how far people agree",
            blind=True,
            others=verdicts - 1,
        )
        for row in sorted(again, key=lambda row: lot(row["decision_id"], "second"))
    ]
    every = round(1 / max(random_share, 1 / WINDOW)) if random_share > 0 else 0
    return own + _merged(ranked, [pick for _, pick in sample], blind, every)


def _with(pick: Pick, why: str) -> Pick:
    return Pick(decision_id=pick.decision_id, why=why, score=pick.score)


def _merged(ranked: list[Pick], sample: list[Pick], blind: list[Pick], every: int) -> list[Pick]:
    ranked, sample, blind = ranked[::-1], sample[::-1], blind[::-1]
    merged: list[Pick] = []
    while ranked or sample or blind:
        place = len(merged) + 1
        if blind and (place % 10 == 3 or not (ranked or sample)):
            merged.append(blind.pop())
        elif sample and (not ranked or (every and place % every == 0)):
            merged.append(sample.pop())
        elif ranked:
            merged.append(ranked.pop())
        else:
            merged.append(blind.pop())
    return merged
