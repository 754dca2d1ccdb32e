"""The order in which a reviewer sees decisions, with the reason for each place.

Owns the order of a queue. Invariant: whether a decision is in the random sample, and whether it gets a second
verdict, depends on its id alone. So all reviewers' queues agree, and no verdict can change it. The cost is
bounded: `WINDOW` decisions are compared with `COMPARED` reviewed ones. Pure; any thread.

    score = (0.1 + 0.9 uncertainty) x risk x (0.1 + 0.9 novelty)

`uncertainty` is the entropy of the calibrated probabilities divided by its maximum, 0 to 1. It is 0 for an
answer of the rules, 1 for a fallback, and 1 for a doubt: a decision in which the model's label was stricter
than the floor and did not count. An allow by the approval of an emergency has the greatest score. `risk` is
0.25, 0.5, 0.75 or 1. `novelty` is 1 minus the greatest overlap (Jaccard) of the question's words with those
of a reviewed question.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from thor_policy.core.requests import RISKS, Json
from thor_policy.policy.tightening import DOUBT

#: Number of decisions that are ranked, and of reviewed ones with which they are compared.
WINDOW, COMPARED = 500, 200
#: Number of words of a question that are compared.
MOST_WORDS = 200
#: Shares of the decisions in the random sample, and of those that get a blind second verdict.
RANDOM_SHARE, SECOND_SHARE = 0.2, 0.1
#: Lower bound of the factors `uncertainty` and `novelty`, so that neither hides the others.
_LEAST = 0.1
_WORD = re.compile(r"\w+")


class Pick(Struct, frozen=True, kw_only=True):
    """A decision in a queue, with the reason for its place (`why`). `score` is None if the place needs none.

    `sampled`: from the random sample. `blind`: a second verdict, given without seeing the first.
    `adjudicates`: the verdict settles a disagreement. If other reviewers gave more than `others` verdicts,
    none is needed any more; None means no limit.
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

    uncertainty: float
    risk: float
    novelty: float
    risk_level: str | None

    @property
    def score(self) -> float:
        uncertainty = _LEAST + (1 - _LEAST) * self.uncertainty
        return uncertainty * self.risk * (_LEAST + (1 - _LEAST) * self.novelty)

    def __str__(self) -> str:
        risk = self.risk_level or "unknown"
        return f"uncertainty {self.uncertainty:.2f} x risk {risk} x novelty {self.novelty:.2f}"


def drawn(decision_id: str, purpose: str, share: float) -> bool:
    """True for this share of all decisions, the same ones for every reviewer."""
    return draw(decision_id, purpose) < share


def draw(decision_id: str, purpose: str) -> float:
    """A number from 0 to 1 computed from the id, a different one for each purpose."""
    digest = hashlib.sha256(f"{purpose}:{decision_id}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def signals(row: Mapping[str, Json], reviewed: Sequence[frozenset[str]]) -> Signals:
    """The factors of one row of the table of decisions. `reviewed` are the words of reviewed questions."""
    if _is_emergency(row):
        return Signals(uncertainty=1.0, risk=1.0, novelty=1.0, risk_level=row["risk_level"])
    risk = row["risk_level"]
    return Signals(
        uncertainty=1.0 if row["reason_code"] == DOUBT else uncertainty(row["probabilities"], row["tier"]),
        risk=(RISKS.index(risk) + 1) / len(RISKS) if risk in RISKS else 0.5,
        novelty=novelty(words(row), reviewed),
        risk_level=risk,
    )


def _is_emergency(row: Mapping[str, Json]) -> bool:
    """True for a decision that the approval of an emergency allowed: people look at it first."""
    return row.get("lifted") is not None and row.get("urgency") == "emergency"


def uncertainty(probabilities: Mapping[str, float], tier: str) -> float:
    """The entropy divided by its maximum, 0 to 1; without probabilities 0 for a rule, otherwise 1."""
    shares = [share for share in probabilities.values() if share > 0]
    if len(probabilities) < 2 or not shares:
        return 0.0 if tier == "rule" else 1.0
    entropy = -sum(share * math.log(share) for share in shares)
    return min(1.0, max(0.0, entropy / math.log(len(probabilities))))


def words(row: Mapping[str, Json]) -> frozenset[str]:
    """The words of a question, without the id of its subject."""
    situation = row["situation"]
    if not isinstance(situation, dict):
        return frozenset()
    all_words: set[str] = set()
    for text in _texts({name: part for name, part in situation.items() if name != "subject"}):
        all_words.update(match.group().casefold() for match in _WORD.finditer(text))
    subject = situation.get("subject")
    if isinstance(subject, dict):
        for text in _texts(subject.get("properties")):
            all_words.update(match.group().casefold() for match in _WORD.finditer(text))
    return frozenset(sorted(all_words)[:MOST_WORDS])


def _texts(value: Json) -> Iterator[str]:
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            yield from part
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)
        elif part is not None:
            yield str(part)


def novelty(question: frozenset[str], reviewed: Sequence[frozenset[str]]) -> float:
    """1 minus the greatest Jaccard overlap with the words of a reviewed question; 1 if there is none."""
    nearest = 0.0
    for other in reviewed:
        union = len(question | other)
        nearest = max(nearest, len(question & other) / union if union else 1.0)
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

    `reviewed` are rows of reviewed decisions for comparison, newest first. `again` are those that wait for a
    blind verdict, up to `verdicts` each. `mine` are the ids assigned to this reviewer, which come first. The
    random sample gets every n-th place (n = 1 / `random_share`), blind verdicts get every tenth. The score
    orders the others.
    """
    known = [words(row) for row in reviewed[:COMPARED]]
    own: list[Pick] = []
    ranked: list[Pick] = []
    sample: list[tuple[float, Pick]] = []
    for row in rows[:WINDOW]:
        decision_id = row["decision_id"]
        factors = signals(row, known)
        is_mine, is_sampled = decision_id in mine, drawn(decision_id, "sample", random_share)
        why = str(factors)
        if _is_emergency(row):
            why = f"an approval lifted {row['lifted']} in an emergency; {why}"
        if row["reason_code"] == DOUBT:
            why = f"the model's answer {row['label']} did not count; {why}"
        pick = Pick(decision_id=decision_id, why=why, score=factors.score)
        if is_mine:
            own.append(_with_reason(pick, f"assigned to you; {why}"))
        elif is_sampled and not _is_emergency(row):
            why = f"random sample ({random_share:.0%} of decisions), so that estimates are unbiased"
            pick = Pick(decision_id=decision_id, why=why, sampled=True)
            sample.append((draw(decision_id, "sample"), pick))
        else:
            ranked.append(pick)
    for picks in (own, ranked):
        picks.sort(key=lambda pick: -(pick.score or 0.0))
    sample.sort(key=lambda drawn_pick: drawn_pick[0])
    blind = [
        Pick(
            decision_id=row["decision_id"],
            why="already judged; a blind second verdict shows how far reviewers agree",
            blind=True,
            others=verdicts - 1,
        )
        for row in sorted(again, key=lambda row: draw(row["decision_id"], "second"))
    ]
    every = round(1 / max(random_share, 1 / WINDOW)) if random_share > 0 else 0
    return own + _interleaved(ranked, [pick for _, pick in sample], blind, every)


def _with_reason(pick: Pick, why: str) -> Pick:
    return Pick(decision_id=pick.decision_id, why=why, score=pick.score)


def _interleaved(ranked: list[Pick], sample: list[Pick], blind: list[Pick], every: int) -> list[Pick]:
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
