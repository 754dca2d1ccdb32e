"""What is wrong with the facts, rules and risk of a pack.

Owns the faults of names, outcomes and expressions, and their places. Invariant: all faults are found at once,
and what uses a part at fault is not at fault for that. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from thor_policy.core.errors import PackError
from thor_policy.core.requests import RISKS
from thor_policy.policy.expressions import TOO_DEEP, Language, MemberType, Type
from thor_policy.policy.faults import Fault
from thor_policy.policy.functions import with_article
from thor_policy.policy.rule_specs import MEMBER, Clock, Requires, Rule
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.policy.source_specs import faults_of as faults_of_source
from thor_policy.policy.tokens import RESERVED, ROOTS, literal_values, names_in, position, tokenise
from thor_policy.policy.trace_section import PREFIX, TraceSection
from thor_policy.policy.trace_section import faults_of as faults_of_trace
from thor_policy.policy.vocabulary import RULE_ID, Vocabulary, faults_of
from thor_policy.policy.words import WordLists, fault_of

#: The name of a fact. One that begins with `STEP` is a step.
_FACT = re.compile(r"_?[a-z][a-z0-9_]*")
#: Types that no JSON value has, and what an author can write instead.
_NOT_JSON = {
    "TIMESTAMP": "wrap it in string(..)",
    "DURATION": "wrap it in string(..), or compare it in the fact",
    "BYTES": "wrap it in string(..)",
    "UINT": "wrap it in int(..)",
    "TYPE": "compare it in the fact",
}

_KEYS_NOT_TEXT = re.compile(r"MAP<(?!STRING|DYN)")
_UNKNOWN_NAME = re.compile(r"there is no name '([^'.]+)['.]")


class RuleFault(Struct, frozen=True, kw_only=True):
    """A fault in the text at `path` of `file`, at line and column (from 1) inside that text."""

    file: str
    path: str
    subject: str
    message: str
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        place = f" (at {self.line}:{self.column})" if (self.line, self.column) != (1, 1) else ""
        return f"{self.subject}: {self.message}{place}"


class RuleFaults(PackError):
    """Everything that is wrong with facts, rules and risk of a pack."""

    def __init__(self, faults: Sequence[RuleFault], where: str) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{where}: {fault}" for fault in faults))


class Stated(Struct, frozen=True, kw_only=True):
    """What a pack states, with the names that `RuleBook` has for it. `outcomes`: loosest first."""

    outcomes: Sequence[str]
    facts: Mapping[str, str]
    rules: Sequence[Rule]
    risk: str | None
    requires: Requires | None
    reads: Mapping[str, MemberType]
    vocabulary: Mapping[str, Vocabulary]
    default: str | None
    rules_only: bool
    clock: Clock
    sources: Mapping[str, SourceSpec]
    trace: TraceSection


def faults_of_words(words: Mapping[str, Sequence[str]]) -> Iterator[RuleFault]:
    """Word lists that cannot be used."""
    for name, entries in words.items():
        if fault := fault_of(entries):
            at, message = fault
            path = f"$.words.{name}" + ("" if at is None else f"[{at}]")
            yield RuleFault(file="pack.yaml", path=path, subject=f"words {name}", message=message)


def faults_of_names(stated: Stated) -> list[RuleFault]:
    """Names, paths and outcomes that a pack cannot have."""
    faults = []
    loosest, *stricter = stated.outcomes
    known = ", ".join(stated.outcomes)

    def fault(file: str, path: str, subject: str, message: str) -> None:
        faults.append(RuleFault(file=file, path=path, subject=subject, message=message))

    for number, rule in enumerate(stated.rules):
        if rule.outcome not in stated.outcomes:
            message = f"outcome {rule.outcome!r} is not one of {known}"
            fault("rules.yaml", f"$[{number}].outcome", f"rule {rule.id}", message)
        if rule.id == "risk" or rule.id.startswith(("fact:", PREFIX, RULE_ID)):
            message = f"the id {rule.id!r} is not free: replies use it for something else; rename the rule"
            fault("rules.yaml", f"$[{number}].id", f"rule {rule.id}", message)
        if any(rule.id == other.id for other in stated.rules[:number]):
            fault("rules.yaml", f"$[{number}].id", f"rule {rule.id}", f"the id {rule.id!r} appears twice")
    for name in stated.facts:
        if name in ROOTS or not _FACT.fullmatch(name):
            message = (
                f"must be lower case letters, digits and '_', begin with a letter, or with one '_' if it "
                f"is a step, and be none of {', '.join(ROOTS)}"
            )
            fault("pack.yaml", f"$.facts.{name}", f"fact {name!r}", message)
        elif name in RESERVED:
            message = "is a word of CEL, which no fact can have as its name"
            fault("pack.yaml", f"$.facts.{name}", f"fact {name!r}", message)
    requires = stated.requires
    required = requires.members if requires else {}
    for section, paths in (("requires.members", required), ("reads", stated.reads)):
        for path in paths:
            if not MEMBER.fullmatch(path):
                message = "must be a path below context, or below properties of subject, action or resource"
                fault("pack.yaml", f"$.{section}.{path}", f"{section} {path!r}", message)
    for path, vocabulary in stated.vocabulary.items():
        for place, message in faults_of(path, vocabulary):
            fault("pack.yaml", f"$.vocabulary.{path}{place}", f"vocabulary {path}", message)
        if vocabulary.unknown is not None and vocabulary.unknown not in stricter:
            message = f"{vocabulary.unknown!r} must be one of the outcomes stricter than {loosest}"
            fault("pack.yaml", f"$.vocabulary.{path}.unknown", f"vocabulary {path}: unknown", message)
    for name, source in stated.sources.items():
        for place, message in faults_of_source(name, source):
            fault("pack.yaml", f"$.sources.{name}{place}", f"source {name}", message)
    for place, message in faults_of_trace(stated.trace):
        fault("pack.yaml", f"$.trace.{place}", f"trace.{place}", message)
    if stated.default is not None and stated.default not in stated.outcomes:
        fault("pack.yaml", "$.default", "default", f"{stated.default!r} is not one of {known}")
    if stated.rules_only and stated.default is None:
        message = "a pack without a model needs `default`: the outcome where no rule decides"
        fault("pack.yaml", "$.model", "model", message)
    if requires is not None and (requires.outcome or stated.outcomes[-1]) not in stricter:
        message = f"{requires.outcome!r} must be one of the outcomes stricter than {loosest}"
        fault("pack.yaml", "$.requires.outcome", "requires.outcome", message)
    return faults


def check_expressions(stated: Stated, language: Language) -> tuple[dict[str, Type], list[RuleFault]]:
    """The types of the facts, and what is wrong with the expressions."""
    types: dict[str, Type] = {}
    faults: list[RuleFault] = []

    def note(text: str, file: str, path: str, subject: str, needed: str | None) -> Type | None:
        result = language.check(text, types)
        problems = result if isinstance(result, list) else _faults_of_type(text, result, needed)
        if stated.clock == "request":
            problems = [*problems, *_readings_of_now(text)]
        later = set(stated.facts) - set(types)
        for fault in problems:
            message = fault.message
            missing = _UNKNOWN_NAME.match(message)
            if missing and missing[1] in later:
                message = f"{missing[1]!r} is a fact further down; a fact sees only the facts above it"
            faults.append(
                RuleFault(
                    file=file,
                    path=path,
                    subject=subject,
                    message=message,
                    line=fault.line,
                    column=fault.column,
                )
            )
        return result if isinstance(result, Type) else None

    unknown = Language(words=WordLists({})).check("dyn(1)", {})
    assert isinstance(unknown, Type)  # noqa: S101
    for name, text in stated.facts.items():
        # A fact at fault is of unknown type, so that what uses it is not at fault too.
        checked = note(text, "pack.yaml", f"$.facts.{name}", f"fact {name}", None)
        if name not in RESERVED:
            types[name] = checked or unknown
    for number, rule in enumerate(stated.rules):
        note(rule.when, "rules.yaml", f"$[{number}].when", f"rule {rule.id}: when", "BOOL")
    if (risk := stated.risk) is not None:
        note(risk, "pack.yaml", "$.risk", "risk", "STRING")
        for value in sorted((literal_values(risk) or set()) - set(RISKS)):
            message = f"gives {value!r}, which is none of {', '.join(RISKS)}"
            faults.append(RuleFault(file="pack.yaml", path="$.risk", subject="risk", message=message))
    for name, (text, needed) in stated.trace.expressions.items():
        place = name.replace(":", ".")
        note(text, "pack.yaml", f"$.{place}", place, needed)
    return types, faults


def _faults_of_type(text: str, checked: Type, needed: str | None) -> list[Fault]:
    message = None
    names = re.findall(r"\w+", checked.name)
    given = with_article(checked.name.lower())
    if needed and checked.name not in (needed, "DYN"):
        message = f"gives {given}, not {with_article(needed.lower())}"
    elif needed is None and (kinds := [name for name in names if name in _NOT_JSON]):
        message = f"gives {given}, which a fact cannot be; {_NOT_JSON[kinds[0]]}"
    elif needed is None and _KEYS_NOT_TEXT.search(checked.name):
        message = f"gives {given}, which a fact cannot be; its keys must be strings"
    elif needed is None and "optional_type" in checked.name:
        message = "gives an optional value, which a fact cannot be; end it with .orValue(..)"
    return [Fault(line=1, column=1, message=message)] if message else []


def faults_of_depth(stated: Stated, language: Language) -> Iterator[RuleFault]:
    """Expressions that nest too deeply for a program."""
    places = [("pack.yaml", f"$.facts.{name}", f"fact {name}", text) for name, text in stated.facts.items()]
    places += [
        ("rules.yaml", f"$[{number}].when", f"rule {rule.id}: when", rule.when)
        for number, rule in enumerate(stated.rules)
    ]
    if stated.risk is not None:
        places.append(("pack.yaml", "$.risk", "risk", stated.risk))
    places += [
        ("pack.yaml", f"$.{name.replace(':', '.')}", name.replace(":", "."), text)
        for name, (text, _) in stated.trace.expressions.items()
    ]
    for file, path, subject, text in places:
        try:
            language.compile([text], stated.facts)
        except RuntimeError:
            yield RuleFault(file=file, path=path, subject=subject, message=TOO_DEEP)


def _readings_of_now(text: str) -> Iterator[Fault]:
    if "now" in names_in(text):
        at = next(token for token in tokenise(text) if token.text == "now")
        line, column = position(text, at.offset)
        message = "`now` is the daemon's clock; read stated_times(), or write `clock: daemon` in pack.yaml"
        yield Fault(line=line, column=column, message=message)
