"""Coverage of a pack by a run: the clauses that its answers cite, and the rules that its questions fire.

Owns these counts. Invariant: only scenarios with an answer count, and every clause and rule of the pack is
counted, so those that no scenario reaches are listed. Rules are applied here again to the same questions,
because an answer names the clauses it cites but not the rules behind it. Pure; main thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from thor_policy.policy.pack import Pack
from thor_policy.suites.scenarios import floor_of
from thor_policy.suites.verdicts import Result


class Coverage(Struct, frozen=True, kw_only=True):
    """How often each clause of a pack was cited and each rule fired, in the order of the pack."""

    pack: str
    scenarios: int
    clauses: dict[str, int]
    rules: dict[str, int]

    @property
    def never_cited(self) -> tuple[str, ...]:
        return tuple(name for name, count in self.clauses.items() if not count)

    @property
    def never_fired(self) -> tuple[str, ...]:
        return tuple(name for name, count in self.rules.items() if not count)

    @property
    def share(self) -> float:
        """The lower of two shares, 0 to 1: of cited clauses and of fired rules."""
        return min(_share(self.clauses), _share(self.rules))

    def reaches(self, threshold_percent: float | None) -> bool:
        """True when the share is not below the threshold, or there is none."""
        return threshold_percent is None or 100 * self.share >= threshold_percent


def cover(pack: Pack, results: Sequence[Result], at: float) -> Coverage:
    """Count the clauses and rules of a pack that the answered scenarios of a run reach.

    `at` is the Unix time at which rules take the questions as received.
    """
    answered = [result for result in results if result.outcome is not None]
    cited = Counter(clause for result in answered for clause in set((result.answer or {}).get("clauses", ())))
    fired = Counter(rule for result in answered for rule in floor_of(pack, result.scenario, at).rules)
    return Coverage(
        pack=pack.info.name,
        scenarios=len(answered),
        clauses={clause: cited[clause] for clause in pack.clauses},
        rules={rule.id: fired[rule.id] for rule in pack.book.rules},
    )


def _share(counts: Mapping[str, int]) -> float:
    return sum(map(bool, counts.values())) / len(counts) if counts else 1.0
