"""What a pack states of its rules: a rule, the members that it requires, and what a rule reads.

Owns the types of rules.yaml and of `requires`, and which facts and members a rule reads. Invariant: nothing
here is checked or run. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import Struct

from thor_policy.policy.expressions import MemberType
from thor_policy.policy.tokens import names_in, paths_in

#: A path of a member that a pack declares.
MEMBER = re.compile(r"(?:(?:subject|action|resource)\.properties|context)(?:\.[A-Za-z_][A-Za-z0-9_]*)+")
#: The beginning of the name of a step: a fact that later expressions read, and nobody is shown.
STEP = "_"
#: Whose time the expressions of a pack may read: that which a request states, or also the daemon's (`now`).
Clock: TypeAlias = Literal["request", "daemon"]


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """If the expression `when` is true, no outcome is looser than `outcome`.

    `final`: the rule decides without the model if no stricter rule matched. `clause` is the policy clause
    that it enforces; `because` is the reason in words.
    """

    id: str
    when: str
    outcome: str
    because: str
    clause: str | None = None
    classification: str | None = None
    final: bool = False


class Requires(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members that a request must have, with their types, and the outcome of a request without them."""

    members: dict[str, MemberType]
    outcome: str | None = None


def texts_read(rule: Rule, facts: Mapping[str, str]) -> list[str]:
    """The condition of a rule, and the expressions of the facts that it reads."""
    texts, seen = [rule.when], set[str]()
    for text in texts:
        used = (names_in(text) & facts.keys()) - seen
        texts += [facts[name] for name in used]
        seen |= used
    return texts


def paths_read(rule: Rule, facts: Mapping[str, str]) -> set[str]:
    """The members of a request that a rule and its facts read."""
    return {path for text in texts_read(rule, facts) for path in paths_in(text)}


def reads_only_subject_properties(rule: Rule, facts: Mapping[str, str]) -> bool:
    """True when a rule and its facts read nothing but `subject.properties`, which the caller asserts."""
    paths = paths_read(rule, facts)
    return bool(paths) and all(path.startswith("subject.properties") for path in paths)
