"""A search: which subjects, resources or actions would be allowed.

Owns the words of AuthZEN's Search APIs. Invariant: all values are frozen, and nothing here does input or
output. Used by every thread.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.requests import Evaluation

#: What is searched for: the part of a question that a search leaves open.
Target: TypeAlias = Literal["subject", "resource", "action"]


class Search(Struct, frozen=True, kw_only=True):
    """Which values of `target` make `evaluation` an allow: ids of its type, or names of actions.

    The id or name at the target means nothing. `limit` is the most results of a page, None: as many as fit;
    `token` is that of the page before.
    """

    target: Target
    evaluation: Evaluation
    limit: int | None = None
    token: str | None = None

    def candidate(self, name: str) -> Evaluation:
        """The question whose answer says whether `name` is a result."""
        evaluation = self.evaluation
        if self.target == "subject":
            return replace(evaluation, subject=replace(evaluation.subject, id=name))
        if self.target == "resource":
            return replace(evaluation, resource=replace(evaluation.resource, id=name))
        return replace(evaluation, action=replace(evaluation.action, name=name))
