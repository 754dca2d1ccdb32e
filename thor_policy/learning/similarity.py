"""Near-duplicates: the overlap of feature sets, and groups of sets that overlap.

Owns similarity without a model: exact Jaccard similarity. Invariant: two sets at or above the threshold are
in one group, so a held-out item has no near-duplicate outside its group; the same sets give the same groups
in any order. Pure; any thread.

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
#: Tolerance for rounding errors.
_TINY = 1e-9


def shingles(text: str) -> frozenset[str]:
    """Every run of three words of a text, in lower case; a shorter text is one run."""
    words = text.lower().split()
    runs = max(1, len(words) - SHINGLE_WORDS + 1)
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in range(runs)) - {""}


def alike(first: AbstractSet[str], second: AbstractSet[str]) -> float:
    """Jaccard similarity: the share of all features that both sets have; 0 if they share none."""
    common = len(first & second)
    return common / (len(first) + len(second) - common) if common else 0.0


def groups(sets: Sequence[AbstractSet[str]], threshold: float) -> list[list[int]]:
    """Indexes of sets in groups, the largest first: sets with at least this similarity are in one group.

    Groups are closed (single linkage): the ends of a chain need not be similar to each other.
    """
    frequency = Counter(feature for features in sets for feature in features)
    parent = list(range(len(sets)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    seen: defaultdict[str, list[int]] = defaultdict(list)
    for index, features in enumerate(sets):
        ordered = sorted(features, key=lambda feature: (frequency[feature], feature))
        prefix = ordered[: len(ordered) - math.ceil(threshold * len(ordered) - _TINY) + 1]
        for other in {other for feature in prefix for other in seen[feature]}:
            if root(other) != root(index) and alike(features, sets[other]) >= threshold - _TINY:
                parent[max(root(other), root(index))] = min(root(other), root(index))
        for feature in prefix:
            seen[feature].append(index)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for index in range(len(sets)):
        members[root(index)].append(index)
    return sorted(members.values(), key=lambda group: (-len(group), group[0]))


def held_out(grouped: Sequence[Sequence[int]], names: Sequence[str], share: float) -> frozenset[int]:
    """Indexes of whole groups that make up at most `share` of all; only the names decide which groups."""

    def digest(group: Sequence[int]) -> str:
        return hashlib.sha256(min(names[index] for index in group).encode()).hexdigest()

    most, chosen = share * len(names) + _TINY, set[int]()
    for group in sorted(grouped, key=digest):
        if len(chosen) + len(group) <= most:
            chosen.update(group)
    return frozenset(chosen)
