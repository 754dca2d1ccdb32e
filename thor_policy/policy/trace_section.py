"""The section `trace` of pack.yaml: what kind of decision an answer is, and when its trace is complete.

Owns the members of the section, and how values of its expressions become `Traits`. Invariant: the type of a
decision is one that the pack declares; an expression that fails or gives anything else counts as a failed
expression of the pack, so it is recorded and makes the answer stricter. Pure; checked once, used on the
engine thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from msgspec import Struct

from thor_policy.core.decisions import POLICY_APPLICATION, Traits
from thor_policy.core.requests import Urgency
from thor_policy.core.summaries import fault_of_template
from thor_policy.core.traces import REQUIREMENTS, is_requirement

#: What the id of an expression of this section begins with, in `Floor.errors`.
PREFIX = "trace:"
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_URGENCIES = get_args(Urgency)


class TraceSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What kind of decision an answer is.

    `decision_type`, `is_exception`, `urgency` and `judgment_call` are expressions in CEL.
    `types` are the types of decisions besides `policy_application`. `complete` says, by type, what a trace
    must have before it counts; `summaries` are the templates of context summaries, by type.
    """

    types: tuple[str, ...] = ()
    decision_type: str | None = None
    is_exception: str | None = None
    urgency: str | None = None
    judgment_call: str | None = None
    complete: dict[str, tuple[str, ...]] = {}
    summaries: dict[str, str] = {}

    @property
    def all_types(self) -> tuple[str, ...]:
        """Every type that a decision of the pack can have."""
        return (POLICY_APPLICATION, *(name for name in self.types if name != POLICY_APPLICATION))

    @property
    def expressions(self) -> dict[str, tuple[str, str]]:
        """The expressions that the pack states: id -> text, and the type that the text must give."""
        needed = {
            "decision_type": "STRING",
            "is_exception": "BOOL",
            "urgency": "STRING",
            "judgment_call": "BOOL",
        }
        return {
            f"{PREFIX}{name}": (text, kind)
            for name, kind in needed.items()
            if (text := getattr(self, name)) is not None
        }

    def required_of(self, decision_type: str) -> tuple[str, ...]:
        """What a trace of a decision of this type must have."""
        return self.complete.get(decision_type, ())

    def traits(self, values: Mapping[str, Any], errors: dict[str, str]) -> Traits:
        """The traits that the values of the expressions give, by id.

        A value that cannot be used is noted in `errors`; the trait is then that of a section without the
        expression. Values of failed expressions are None.
        """

        def use(name: str, default: Any, allowed: tuple[Any, ...]) -> Any:
            value = values.get(f"{PREFIX}{name}")
            if value is None:
                return default
            if any(value is option or (type(value) is str and value == option) for option in allowed):
                return value
            shown = ", ".join(str(option).lower() for option in allowed)
            errors.setdefault(f"{PREFIX}{name}", f"gave {str(value)[:64]!r}, which is none of {shown}")
            return default

        decision_type = use("decision_type", POLICY_APPLICATION, self.all_types)
        return Traits(
            type=decision_type,
            is_exception=use("is_exception", False, (True, False)),
            urgency=use("urgency", "normal", _URGENCIES),
            judgment_call=use("judgment_call", None, (True, False)),
            required=self.required_of(decision_type),
        )


def faults_of(section: TraceSection) -> Iterator[tuple[str, str]]:
    """What is wrong with the names of a section: the path below `$.trace`, and the problem."""
    for at, name in enumerate(section.types):
        if not _TYPE.fullmatch(name):
            yield f"types[{at}]", f"{name!r} must be lower case letters, digits and '_'"
    for part, by_type in (("complete", section.complete), ("summaries", section.summaries)):
        for decision_type in by_type:
            if decision_type not in section.all_types:
                known = ", ".join(section.all_types)
                yield (
                    f"{part}.{decision_type}",
                    f"{decision_type!r} is none of the types {known}; add it to types",
                )
    for decision_type, names in section.complete.items():
        for at, name in enumerate(names):
            if not is_requirement(name):
                known = ", ".join(REQUIREMENTS)
                yield (
                    f"complete.{decision_type}[{at}]",
                    f"{name!r} is none of {known}, and no edge such as edge:CITES",
                )
    for decision_type, template in section.summaries.items():
        if fault := fault_of_template(template):
            yield f"summaries.{decision_type}", fault
