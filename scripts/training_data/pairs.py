"""Pairs of situations that differ in one fact.

Owns how one leaf of an evaluation is changed. Invariant: no other leaf changes. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

#: The value that removes a leaf.
REMOVED = object()


@dataclass(frozen=True)
class Difference:
    """The one fact that two situations differ in.

    `loose` are the facts of the looser situation, `strict` those of the stricter one. The leaf stands at
    `path`; `value` computes what the stricter one has there from the looser evaluation (`REMOVED`: nothing).
    `applies` is false for an evaluation that cannot be changed in this way.
    """

    loose: dict[str, Any]
    path: tuple[str | int, ...]
    value: Callable[[dict[str, Any]], Any]
    strict: dict[str, Any]
    applies: Callable[[dict[str, Any]], bool] = field(default=lambda evaluation: True)


def with_difference(evaluation: dict[str, Any], difference: Difference) -> dict[str, Any] | None:
    """A copy of the evaluation with the leaf changed; None where it has no such leaf."""
    copy = deepcopy(evaluation)
    *folders, leaf = difference.path
    place: Any = copy
    for folder in folders:
        if isinstance(place, dict) and folder not in place:
            return None
        place = place[folder]
    exists = leaf in place if isinstance(place, dict) else isinstance(leaf, int) and leaf < len(place)
    if not exists or not difference.applies(evaluation):
        return None
    value = difference.value(evaluation)
    if value is REMOVED:
        del place[leaf]
    else:
        place[leaf] = value
    return copy
