"""Which things are alike: sets of features, their overlap, and groups of what overlaps.

Owns similarity without a model: Jaccard's share of common features, exact. Invariant: two things that are
as alike as the threshold asks are in one group, so what is held out never has its like elsewhere; the
same things give the same groups, whatever their order. Pure; any thread.

Pairs are found by prefix filtering (Chaudhuri et al. 2006): with features in one order, rarest first, two
sets that overlap enough share one of their first features, so only those are looked up.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

#: Words in a shingle.
SHINGLE_WORDS = 3
#: What a rounding error may not decide.
_TINY = 1e-9


def shingles(text: str) -> frozenset[str]:
    """Every run of three words of a text, in lower case; of a shorter text its words as one."""
    words = text.lower().split()
    runs = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(runs)) - {""}


def alike(one: AbstractSet[str], other: AbstractSet[str]) -> float:
    """Share of the features of either that both have; 0 of nothing."""
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0


def groups(things: Sequence[AbstractSet[str]], threshold: float) -> list[list[int]]:
    """Indexes of things in groups, the largest first: whoever is alike by `threshold` is in one.

    Groups are closed under likeness (single linkage): ends of a chain need not be alike themselves.
    """
    frequency = Counter(feature for thing in things for feature in thing)
    parent = list(range(len(things)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    seen: defaultdict[str, list[int]] = defaultdict(list)
    for index, thing in enumerate(things):
        ordered = sorted(thing, key=lambda feature: (frequency[feature], feature))
        first = ordered[: len(ordered) - math.ceil(threshold * len(ordered) - _TINY) + 1]
        for other in {other for feature in first for other in seen[feature]}:
            if root(other) != root(index) and alike(thing, things[other]) >= threshold - _TINY:
                parent[max(root(other), root(index))] = min(root(other), root(index))
        for feature in first:
            seen[feature].append(index)
    found: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(things)):
        found[root(index)].append(index)
    return sorted(found.values(), key=lambda group: (-len(group), group[0]))


def held_out(grouped: Sequence[Sequence[int]], names: Sequence[str], share: float) -> frozenset[int]:
    """Indexes of whole groups that make up at most `share` of all; which ones depends on the names alone."""

    def drawn(group: Sequence[int]) -> str:
        return hashlib.sha256(min(names[index] for index in group).encode()).hexdigest()

    most, chosen = share * len(names) + _TINY, set[int]()
    for group in sorted(grouped, key=drawn):
        if len(chosen) + len(group) <= most:
            chosen.update(group)
    return frozenset(chosen)
