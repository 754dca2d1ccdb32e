"""Pairs of situations that differ in one fact.

Owns how one leaf of an evaluation is changed. Invariant: nothing but that leaf differs. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

#: What takes a leaf away.
GONE = object()


@dataclass(frozen=True)
class Difference:
    """One fact that two situations differ in.

    `start` is so in the looser one; at `path` stands what the stricter one says, by the looser evaluation
    (`GONE`: nothing); `made` is so in the stricter one. `suits` says whether an evaluation can be changed so.
    """

    start: dict[str, Any]
    path: tuple[str | int, ...]
    says: Callable[[dict[str, Any]], Any]
    made: dict[str, Any]
    suits: Callable[[dict[str, Any]], bool] = field(default=lambda evaluation: True)


def changed(evaluation: dict[str, Any], difference: Difference) -> dict[str, Any] | None:
    """The evaluation with that leaf changed; None, if it has no such leaf."""
    found = deepcopy(evaluation)
    *way, last = difference.path
    place: Any = found
    for step in way:
        if isinstance(place, dict) and step not in place:
            return None
        place = place[step]
    there = last in place if isinstance(place, dict) else isinstance(last, int) and last < len(place)
    if not there or not difference.suits(evaluation):
        return None
    says = difference.says(evaluation)
    if says is GONE:
        del place[last]
    else:
        place[last] = says
    return found


__all__ = ["GONE", "Difference", "changed"]
