"""The operator's rules, and the floor that they set.

Owns the semantics of facts, rules, risk, default and required members. Invariant: a rule can only make the
floor stricter, and so does an error: a rule that fails counts as matched if its outcome is stricter than the
loosest one, and any failure disables every `final` of that request. Pure: the same evaluation and receipt
time give the same floor; no clock is read. Checked once; applied on the engine thread, by commands on any.

Facts are computed by one program a layer: a layer holds the facts that need no fact of the same or a later
layer. The last program computes all rules and the risk. (One program for everything would nest one `cel.bind`
for each fact, and the runtime's parser allows 32 levels.) Only if a program fails are its expressions run one
by one, to name those that fail.

Rules read the names of the pack's vocabulary in its spelling. A name that is unknown counts as a rule that
matched (`vocabulary:PATH`). If it resembles known names, the rules are applied to each of them too, and the
strictest floor counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from msgspec import Struct, structs

from thor_policy.core.decisions import POLICY_APPLICATION, Floor, Traits
from thor_policy.core.errors import PackError
from thor_policy.core.lifting import bare
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import RISKS, Evaluation, Json, Risk
from thor_policy.core.sources import Consulted, values_of
from thor_policy.policy import budget
from thor_policy.policy.budget import Budget, StopCode
from thor_policy.policy.expressions import TOO_DEEP, Language, MemberType, Program, Type, as_type, is_json
from thor_policy.policy.faults import Fault
from thor_policy.policy.functions import (
    TIMES,
    as_text,
    name_kinds,
    roots,
    times_by_member,
    with_article,
)
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.policy.source_specs import faults_of as faults_of_source
from thor_policy.policy.structure.names import shown
from thor_policy.policy.tokens import (
    RESERVED,
    ROOTS,
    literal_values,
    names_in,
    parts_of,
    paths_in,
    position,
    tokenise,
)
from thor_policy.policy.trace_section import PREFIX, TraceSection
from thor_policy.policy.trace_section import faults_of as faults_of_trace
from thor_policy.policy.vocabulary import RULE_ID, Reading, Vocabularies, Vocabulary, faults_of
from thor_policy.policy.words import WordLists, fault_of

#: The name of a fact. One that begins with `STEP` is a step.
_FACT = re.compile(r"_?[a-z][a-z0-9_]*")
#: A path of a member that a pack declares.
MEMBER = re.compile(r"(?:(?:subject|action|resource)\.properties|context)(?:\.[A-Za-z_][A-Za-z0-9_]*)+")
#: The beginning of the name of a step: a fact that later expressions read, and nobody is shown.
STEP = "_"
#: Types of facts that need no look at their value, by CEL's names.
_PLAIN = ("BOOL", "INT", "STRING")
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

#: Whose time the expressions of a pack may read: that which a request states, or also the daemon's (`now`).
Clock: TypeAlias = Literal["request", "daemon"]


class _Fact(NamedTuple):
    """A fact. `is_checked`: its type says too little of its value. `is_shown`: it is no step."""

    name: str
    id: str
    is_checked: bool
    is_shown: bool


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


class Part(Struct, frozen=True, kw_only=True):
    """A part of a condition between `&&`, and what it gave: a value, or the message of its failure."""

    text: str
    value: Json = None
    error: str | None = None


class RuleTrace(Struct, frozen=True, kw_only=True):
    """What came of one rule: it `fired`, did `not`, or `failed` with `error`. `parts` says why."""

    rule: Rule
    state: Literal["fired", "not", "failed"]
    error: str | None
    parts: tuple[Part, ...]


class RuleFaults(PackError):
    """Everything that is wrong with facts, rules and risk of a pack."""

    def __init__(self, faults: Sequence[RuleFault], where: str) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{where}: {fault}" for fault in faults))


class RuleBook:
    """Checked facts, rules and risk of one pack.

    `outcomes` lists the labels, loosest first. `default` is the outcome where no rule decides; without one
    the model decides there. `rules_only`: there is no model, so every rule is final. `not_plain` is the least
    outcome of a request with a name that is not plain, where `vocabulary` says nothing about its member; by
    default the strictest. `sources` are those that expressions may read. `clock`: with `request` no
    expression may read `now`. Raises RuleFaults, which lists every fault.
    """

    def __init__(
        self,
        *,
        outcomes: Sequence[str],
        facts: Mapping[str, str],
        rules: Sequence[Rule],
        risk: str | None,
        words: Mapping[str, Sequence[str]] | None = None,
        data: Mapping[str, Json] | None = None,
        requires: Requires | None = None,
        reads: Mapping[str, MemberType] | None = None,
        vocabulary: Mapping[str, Vocabulary] | None = None,
        not_plain: str | None = None,
        default: str | None = None,
        rules_only: bool = False,
        clock: Clock = "request",
        sources: Mapping[str, SourceSpec] | None = None,
        trace: TraceSection | None = None,
        precedents: bool = False,
        where: str = "pack",
    ) -> None:
        self._rank = {outcome: rank for rank, outcome in enumerate(outcomes)}
        self._loosest, self._strictest = outcomes[0], outcomes[-1]
        self._default, self._rules_only, self._clock = default, rules_only, clock
        self._trace = trace if trace is not None else TraceSection()
        #: The traits of every decision, in a pack whose section has no expression.
        self._traits = None if self._trace.expressions else self._trace.traits({}, {})
        self._required = requires.members if requires else {}
        self._outcome_if_missing = (requires.outcome if requires else None) or self._strictest
        self.rules = tuple(rules)
        self._vocabulary = dict(vocabulary or {})
        self._vocabularies = Vocabularies(self._vocabulary)
        self._not_plain = not_plain if not_plain and not_plain in outcomes[1:] else self._strictest
        members = {**(reads or {}), **self._required}
        #: The sources of the pack by name.
        self.sources = dict(sources or {})
        faults = list(_faults_of_words(words or {}))
        # A list at fault has a word, so that what uses it is not at fault too.
        lists = {name: ["word"] if fault_of(entries) else entries for name, entries in (words or {}).items()}
        self._language = Language(
            words=WordLists(lists),
            data=data,
            members=members,
            vocabularies=self._vocabulary,
            sources={
                name: {attribute: declared.type for attribute, declared in spec.attributes.items()}
                for name, spec in self.sources.items()
            },
            outcomes_of_precedents=outcomes if precedents else (),
        )
        self._checks_members = bool(members)
        faults += self._faults_of_names(facts, requires, reads or {})
        self._types: dict[str, Type] = {}
        self._singles: dict[str, Program] = {}
        faults += self._check_expressions(facts, risk)
        if faults:
            raise RuleFaults(faults, where)
        self._compile(facts, risk if risk is not None else f'"{RISKS[-1]}"', where)

    # ------------------------------------------------------------ checking

    def _faults_of_names(
        self, facts: Mapping[str, str], requires: Requires | None, reads: Mapping[str, str]
    ) -> list[RuleFault]:
        faults = []
        known = ", ".join(self._rank)

        def fault(file: str, path: str, subject: str, message: str) -> None:
            faults.append(RuleFault(file=file, path=path, subject=subject, message=message))

        for number, rule in enumerate(self.rules):
            if rule.outcome not in self._rank:
                message = f"outcome {rule.outcome!r} is not one of {known}"
                fault("rules.yaml", f"$[{number}].outcome", f"rule {rule.id}", message)
            if rule.id == "risk" or rule.id.startswith(("fact:", PREFIX, RULE_ID)):
                message = (
                    f"the id {rule.id!r} is not free: replies use it for something else; rename the rule"
                )
                fault("rules.yaml", f"$[{number}].id", f"rule {rule.id}", message)
            if any(rule.id == other.id for other in self.rules[:number]):
                fault("rules.yaml", f"$[{number}].id", f"rule {rule.id}", f"the id {rule.id!r} appears twice")
        for name in facts:
            if name in ROOTS or not _FACT.fullmatch(name):
                message = (
                    f"must be lower case letters, digits and '_', begin with a letter, or with one '_' if it "
                    f"is a step, and be none of {', '.join(ROOTS)}"
                )
                fault("pack.yaml", f"$.facts.{name}", f"fact {name!r}", message)
            elif name in RESERVED:
                message = "is a word of CEL, which no fact can have as its name"
                fault("pack.yaml", f"$.facts.{name}", f"fact {name!r}", message)
        for section, paths in (("requires.members", self._required), ("reads", reads)):
            for path in paths:
                if not MEMBER.fullmatch(path):
                    message = (
                        "must be a path below context, or below properties of subject, action or resource"
                    )
                    fault("pack.yaml", f"$.{section}.{path}", f"{section} {path!r}", message)
        for path, vocabulary in self._vocabulary.items():
            for place, message in faults_of(path, vocabulary):
                fault("pack.yaml", f"$.vocabulary.{path}{place}", f"vocabulary {path}", message)
            if vocabulary.unknown is not None and vocabulary.unknown not in tuple(self._rank)[1:]:
                message = f"{vocabulary.unknown!r} must be one of the outcomes stricter than {self._loosest}"
                fault("pack.yaml", f"$.vocabulary.{path}.unknown", f"vocabulary {path}: unknown", message)
        for name, source in self.sources.items():
            for place, message in faults_of_source(name, source):
                fault("pack.yaml", f"$.sources.{name}{place}", f"source {name}", message)
        for place, message in faults_of_trace(self._trace):
            fault("pack.yaml", f"$.trace.{place}", f"trace.{place}", message)
        if self._default is not None and self._default not in self._rank:
            fault("pack.yaml", "$.default", "default", f"{self._default!r} is not one of {known}")
        if self._rules_only and self._default is None:
            message = "a pack without a model needs `default`: the outcome where no rule decides"
            fault("pack.yaml", "$.model", "model", message)
        if requires is not None and self._outcome_if_missing not in tuple(self._rank)[1:]:
            message = f"{requires.outcome!r} must be one of the outcomes stricter than {self._loosest}"
            fault("pack.yaml", "$.requires.outcome", "requires.outcome", message)
        return faults

    def _check_expressions(self, facts: Mapping[str, str], risk: str | None) -> list[RuleFault]:
        faults: list[RuleFault] = []

        def check(text: str, file: str, path: str, subject: str, needed: str | None) -> Type | None:
            result = self._language.check(text, self._types)
            problems = result if isinstance(result, list) else self._faults_of_type(text, result, needed)
            if self._clock == "request":
                problems = [*problems, *_readings_of_now(text)]
            later = set(facts) - set(self._types)
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
        for name, text in facts.items():
            # A fact at fault is of unknown type, so that what uses it is not at fault too.
            checked = check(text, "pack.yaml", f"$.facts.{name}", f"fact {name}", None)
            if name not in RESERVED:
                self._types[name] = checked or unknown
        for number, rule in enumerate(self.rules):
            check(rule.when, "rules.yaml", f"$[{number}].when", f"rule {rule.id}: when", "BOOL")
        if risk is not None:
            check(risk, "pack.yaml", "$.risk", "risk", "STRING")
            for value in sorted((literal_values(risk) or set()) - set(RISKS)):
                message = f"gives {value!r}, which is none of {', '.join(RISKS)}"
                faults.append(RuleFault(file="pack.yaml", path="$.risk", subject="risk", message=message))
        for name, (text, needed) in self._trace.expressions.items():
            place = name.replace(":", ".")
            check(text, "pack.yaml", f"$.{place}", place, needed)
        return faults

    @staticmethod
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

    # ------------------------------------------------------------ compiling

    def _compile(self, facts: Mapping[str, str], risk: str, where: str) -> None:
        layer_of: dict[str, int] = {}
        for name, text in facts.items():
            needed = [layer_of[other] for other in names_in(text) if other in layer_of]
            layer_of[name] = max(needed, default=-1) + 1
        layers: list[list[str]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
        for name, layer in layer_of.items():
            layers[layer].append(name)

        self._texts = {f"fact:{name}": text for name, text in facts.items()}
        self._texts |= {rule.id: rule.when for rule in self.rules} | {"risk": risk}
        traits = {name: text for name, (text, _) in self._trace.expressions.items()}
        self._texts |= traits
        #: The ids of the expressions of the last program, in its order.
        self._last_ids = [*(rule.id for rule in self.rules), "risk", *traits]
        try:
            self._layers = [
                (self._facts(layer), self._language.compile([facts[name] for name in layer], facts))
                for layer in layers
            ]
            self._last = self._language.compile([self._texts[name] for name in self._last_ids], facts)
        except RuntimeError:  # each checks, and in a list it stands a level deeper
            raise RuleFaults(list(self._too_deep(facts)), where) from None
        paths = {path for text in self._texts.values() for path in paths_in(text)}
        calls_times = any("stated_times" in names_in(text) for text in self._texts.values())
        self._reads_now = "now" in paths
        #: The members with a time that expressions read.
        self._times = tuple(path for path in TIMES if path in paths or calls_times)

    def _facts(self, names: Sequence[str]) -> tuple[_Fact, ...]:
        return tuple(
            _Fact(name, f"fact:{name}", self._types[name].name not in _PLAIN, not name.startswith(STEP))
            for name in names
        )

    def _too_deep(self, facts: Mapping[str, str]) -> Iterator[RuleFault]:
        places = [("pack.yaml", f"$.facts.{name}", f"fact {name}", text) for name, text in facts.items()]
        places += [
            ("rules.yaml", f"$[{number}].when", f"rule {rule.id}: when", rule.when)
            for number, rule in enumerate(self.rules)
        ]
        places.append(("pack.yaml", "$.risk", "risk", self._texts["risk"]))
        places += [
            ("pack.yaml", f"$.{name.replace(':', '.')}", name.replace(":", "."), text)
            for name, (text, _) in self._trace.expressions.items()
        ]
        for file, path, subject, text in places:
            try:
                self._language.compile([text], facts)
            except RuntimeError:
                yield RuleFault(file=file, path=path, subject=subject, message=TOO_DEEP)

    def _single(self, name: str) -> Program:
        """The program of one expression, by its id in `Floor.errors`; compiled when it is first needed."""
        if name not in self._singles:
            self._singles[name] = self._language.compile([self._texts[name]], self._types)
        return self._singles[name]

    # ------------------------------------------------------------ applying

    def apply(
        self,
        evaluation: Evaluation,
        received_at: float,
        limit: Budget | None = None,
        sources: Sequence[Consulted] = (),
        precedents: Sequence[Precedent] = (),
    ) -> Floor:
        """Compute facts, rules and risk of one evaluation; `received_at` is Unix time in seconds.

        `sources` is what the sources of the pack said. If a required one failed, or was not consulted, the
        floor is the strictest outcome, and no expression is run. Raises nothing but RulesStopped, and that
        only with a `limit`, when it is met: then see `stopped`. `Floor.errors` names each failure, and a
        failure makes the floor stricter.
        """
        values = self._values(sources)
        if self.sources and (unavailable := self._unavailable(evaluation, values)):
            return self._without(unavailable)
        evaluation = bare(evaluation)
        if limit is None:
            return self._apply(evaluation, received_at, values, precedents)
        with budget.spending(limit):
            return self._apply(evaluation, received_at, values, precedents)

    def _values(self, sources: Sequence[Consulted]) -> dict[str, dict[str, Json]]:
        """The attributes that expressions may read, of their declared types, by source.

        A value of another type is absent.
        """
        if not self.sources:
            return {}
        values: dict[str, dict[str, Json]] = {}
        for name, attributes in values_of(sources).items():
            declared = self.sources[name].attributes if name in self.sources else {}
            typed = {
                key: as_type(attributes[key], declared[key].type) for key in declared if key in attributes
            }
            if name in self.sources:
                values[name] = {key: value for key, value in typed.items() if value is not None}
        return values

    def _unavailable(self, evaluation: Evaluation, values: Mapping[str, Json]) -> tuple[str, ...]:
        """The required sources that describe a part of the question, and of which there is no answer."""
        return tuple(
            name
            for name, source in self.sources.items()
            if source.required and name not in values and source.describes(evaluation)
        )

    def _without(self, unavailable: tuple[str, ...]) -> Floor:
        """The floor of a request for which required sources gave no answer."""
        noun = "source" if len(unavailable) == 1 else "sources"
        because = f"The {noun} {', '.join(unavailable)} gave no answer, so the answer is {self._strictest}."
        return Floor(outcome=self._strictest, final=True, because=because, unavailable=unavailable)

    def _apply(
        self,
        evaluation: Evaluation,
        received_at: float,
        sources: Mapping[str, Mapping[str, Json]],
        precedents: Sequence[Precedent],
    ) -> Floor:
        inputs, missing, readings = self._inputs(evaluation, received_at, sources, precedents)
        unknown = [reading for reading in readings if reading.because]
        floor = self._floor(inputs, missing, unknown)
        for instead in _likely(unknown):
            inputs, missing, _ = self._inputs(evaluation, received_at, sources, precedents, instead, readings)
            floor = self._stricter_floor(floor, self._floor(inputs, missing, unknown), unknown, instead)
        return floor

    def stopped(self, code: StopCode) -> Floor:
        """The floor of a request whose rules were stopped: the strictest outcome, final, without facts."""
        limit = "the request's deadline" if code == "rules_deadline" else "their budget of processor time"
        because = f"The rules were stopped at {limit}, so the answer is {self._strictest}."
        traits = Traits(required=self._trace.required_of(POLICY_APPLICATION))
        return Floor(outcome=self._strictest, final=True, because=because, traits=traits)

    def _inputs(
        self,
        evaluation: Evaluation,
        received_at: float,
        sources: Mapping[str, Mapping[str, Json]],
        precedents: Sequence[Precedent] = (),
        instead: Mapping[str, Json] | None = None,
        readings: list[Reading] | None = None,
    ) -> tuple[dict[str, Any], dict[str, str], list[Reading]]:
        """What expressions read, what is wrong with declared members, and how names are read.

        `instead`: what to read at a member of the vocabulary, whatever was sent. `readings`: those of an
        earlier call with this evaluation, which need not be made again.
        """
        inputs = self._language.inputs(evaluation, received_at, sources, precedents)
        missing = self._language.members_at_fault(self._required) if self._checks_members else {}
        if readings is None:
            readings = self._vocabularies.read(roots())
        if readings or self._vocabulary:
            values = {reading.path: reading.value for reading in readings} | dict(instead or {})
            self._language.set_names(inputs, values)
            name_kinds(self._vocabularies.kinds(values))
        return inputs, missing, readings

    def _floor(self, inputs: dict[str, Any], missing: Mapping[str, str], unknown: Sequence[Reading]) -> Floor:
        """The floor of the request that `_inputs` prepared last on this thread; facts join the `inputs`."""
        errors: dict[str, str] = {}
        facts: dict[str, Json] = {}
        for layer, program in self._layers:
            values = program.run(inputs)
            budget.check()
            if isinstance(values, str):
                values = self._run_singly([fact.id for fact in layer], inputs, errors)
            for (name, id_, is_checked, is_shown), value in zip(layer, values, strict=True):
                if is_checked and not is_json(value):
                    errors[id_] = f"gave a {type(value).__name__}, not a plain value"
                elif not errors or id_ not in errors:
                    inputs[name] = value
                    if is_shown:
                        facts[name] = value
        values = self._last.run(inputs)
        budget.check()
        if isinstance(values, str):
            values = self._run_singly(self._last_ids, inputs, errors)
        traits = self._traits
        if traits is None:
            traits = self._trace.traits(dict(zip(self._last_ids, values, strict=True)), errors)

        fired = [self._rule_of(reading) for reading in unknown]
        finals: list[Rule] = []
        for rule, value in zip(self.rules, values, strict=False):
            if value is False:
                continue
            if value is True:
                (finals if rule.final and rule.outcome == self._loosest else fired).append(rule)
                continue
            errors.setdefault(rule.id, f"gave a {type(value).__name__}, not a bool")
            if rule.outcome != self._loosest and not missing:
                fired.append(rule)
        fired.sort(key=lambda rule: -self._rank[rule.outcome])
        outcome, final, deciding, reasons = (
            self._incomplete(missing, fired) if missing else self._decide(fired, finals, errors)
        )
        return Floor(
            outcome=outcome,
            final=final,
            rules=tuple(dict.fromkeys(rule.id for rule in (*fired, *deciding))),
            clauses=tuple(dict.fromkeys(rule.clause for rule in deciding if rule.clause)),
            because=reasons[0] if reasons else None,
            also_because=tuple(reasons[1:]),
            classification=next((rule.classification for rule in deciding if rule.classification), None),
            facts=facts,
            errors={} if missing else errors,  # whatever failed, failed because of what is missing
            missing=tuple(missing),
            risk=_as_risk(values[len(self.rules)]),
            traits=traits,
            time_used=self._time_used(inputs["now"]),
        )

    def _rule_of(self, reading: Reading) -> Rule:
        """The rule that an unknown name counts as."""
        vocabulary = self._vocabulary.get(reading.path)
        outcome = vocabulary.unknown or self._strictest if vocabulary else self._not_plain
        return Rule(
            id=f"{RULE_ID}{reading.path}",
            when=f"{reading.path} is unknown",
            outcome=outcome,
            because=reading.because or "",
            clause=vocabulary.clause if vocabulary else None,
            classification=vocabulary.classification if vocabulary else None,
        )

    def _stricter_floor(
        self, floor: Floor, other: Floor, unknown: Sequence[Reading], instead: Mapping[str, Json]
    ) -> Floor:
        """The stricter of a floor and that of names which unknown ones may stand for.

        The facts stay those of the names that were sent.
        """
        errors = {**other.errors, **floor.errors}
        risk = max(floor.risk, other.risk, key=RISKS.index)
        if self._rank[other.outcome] <= self._rank[floor.outcome]:
            return structs.replace(floor, errors=errors, risk=risk)  # its traits are of the names as sent
        read = [
            f"{reading.because} It may stand for {_names(instead[reading.path])}."
            for reading in unknown
            if reading.path in instead
        ]
        because = " ".join(filter(None, (other.because, *read)))
        rules = tuple(dict.fromkeys((*other.rules, *floor.rules)))
        return structs.replace(
            other,
            rules=rules,
            because=because,
            facts=floor.facts,
            errors=errors,
            risk=risk,
            traits=floor.traits,
        )

    def trace(
        self, evaluation: Evaluation, received_at: float, sources: Sequence[Consulted] = ()
    ) -> tuple[Floor, tuple[RuleTrace, ...]]:
        """The floor, and what came of each rule and of the parts of its condition. Slow: it compiles them."""
        floor = self.apply(evaluation, received_at, sources=sources)
        inputs, missing, readings = self._inputs(evaluation, received_at, self._values(sources))
        self._floor(inputs, missing, ())  # for its facts
        traces = [
            RuleTrace(rule=self._rule_of(reading), state="fired", error=None, parts=())
            for reading in readings
            if reading.because
        ]
        for rule in self.rules:
            whole = self._single(rule.id).run(inputs)
            error = whole if isinstance(whole, str) else None
            state: Literal["fired", "not", "failed"] = "failed" if error else "fired" if whole[0] else "not"
            parts = [self._part(text, inputs) for text in parts_of(rule.when)]
            traces.append(RuleTrace(rule=rule, state=state, error=error, parts=tuple(parts)))
        return floor, tuple(traces)

    def _part(self, text: str, inputs: Mapping[str, Any]) -> Part:
        result = self._language.compile([text], self._types).run(inputs)
        if isinstance(result, str):
            return Part(text=text, error=result)
        return Part(text=text, value=result[0])

    def _run_singly(self, ids: Sequence[str], inputs: Mapping[str, Any], errors: dict[str, str]) -> list[Any]:
        """The value of each expression; None for one that failed, with its message in `errors`."""
        values = []
        for name in ids:
            single = self._single(name).run(inputs)
            budget.check()
            if isinstance(single, str):
                errors[name] = single
            values.append(None if isinstance(single, str) else single[0])
        return values

    def _decide(
        self, fired: Sequence[Rule], finals: Sequence[Rule], errors: Mapping[str, str]
    ) -> tuple[str, bool, Sequence[Rule], Sequence[str]]:
        """Outcome, whether it is final, the rules that decide, and why. `fired` has the strictest first."""
        outcome = fired[0].outcome if fired else self._loosest
        deciding = [rule for rule in fired if rule.outcome == outcome]
        if outcome != self._loosest:
            decides = self._rules_only or (not errors and any(rule.final for rule in deciding))
            return outcome, decides or outcome == self._strictest, deciding, _reasons(deciding, errors)
        if not errors and (finals or (self._rules_only and deciding)):
            deciding = [*finals, *(deciding if self._rules_only else ())]
            deciding.sort(key=self.rules.index)
            return outcome, True, deciding, _reasons(deciding, errors)
        if errors and self._rules_only:
            failed = f"The rules failed ({', '.join(errors)}), so the answer is {self._strictest}."
            return self._strictest, True, (), [failed]
        if self._default is not None and (errors or not deciding):
            because = f"No rule decides this, so the answer is {self._default}."
            return self._default, not errors or self._default == self._strictest, (), [because]
        return outcome, False, deciding, _reasons(deciding, errors)

    def _incomplete(
        self, missing: Mapping[str, str], fired: Sequence[Rule]
    ) -> tuple[str, bool, Sequence[Rule], Sequence[str]]:
        """The answer to a request without required members: the stated outcome, or a stricter rule's."""
        outcome = self.stricter(self._outcome_if_missing, *(rule.outcome for rule in fired))
        deciding = [rule for rule in fired if rule.outcome == outcome]
        lacks = "; ".join(f"{path} {problem}" for path, problem in missing.items())
        first, *others = _reasons(deciding, {}) or [""]
        because = f"{first} The request is incomplete: {lacks}.".lstrip()
        return outcome, True, deciding, [because, *others]

    def _time_used(self, now: datetime) -> dict[str, str] | None:
        """The times that expressions read in this request, by their origin; None if they read none."""
        if not self._times and not self._reads_now:
            return None
        used = {path: time for path, time in times_by_member() if path in self._times}
        if self._reads_now:
            used["daemon"] = as_text(now)
        return used

    def stricter(self, *outcomes: str) -> str:
        """The strictest of `outcomes`."""
        return max(outcomes, key=self._rank.__getitem__)


def _likely(unknown: Sequence[Reading]) -> Iterator[dict[str, Json]]:
    """What to read at unknown members: each likely name alone, and with the likeliest of the others."""
    likeliest = {reading.path: reading.likely[0] for reading in unknown if reading.likely}
    if len(likeliest) > 1:
        yield likeliest
    for reading in unknown:
        for at, name in enumerate(reading.likely):
            yield {reading.path: name}
            if at and len(likeliest) > 1:
                yield likeliest | {reading.path: name}


def _names(value: Json) -> str:
    return ", ".join(map(shown, value)) if isinstance(value, list) else shown(value)


def _faults_of_words(words: Mapping[str, Sequence[str]]) -> Iterator[RuleFault]:
    for name, entries in words.items():
        if fault := fault_of(entries):
            at, message = fault
            path = f"$.words.{name}" + ("" if at is None else f"[{at}]")
            yield RuleFault(file="pack.yaml", path=path, subject=f"words {name}", message=message)


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


def _reasons(deciding: Sequence[Rule], errors: Mapping[str, str]) -> list[str]:
    """The reason of each rule, each text one time, in the pack's order: the first is the deciding rule's."""
    reasons = [
        f"Rule {rule.id} could not be evaluated and counts as matched." if rule.id in errors else rule.because
        for rule in deciding
    ]
    return list(dict.fromkeys(reasons))


def _as_risk(value: Any) -> Risk:
    """The value if it is a risk; otherwise the highest risk, since an unknown risk may be high."""
    return next((risk for risk in RISKS if risk == value), RISKS[-1])


def _readings_of_now(text: str) -> Iterator[Fault]:
    if "now" in names_in(text):
        at = next(token for token in tokenise(text) if token.text == "now")
        line, column = position(text, at.offset)
        message = "`now` is the daemon's clock; read stated_times(), or write `clock: daemon` in pack.yaml"
        yield Fault(line=line, column=column, message=message)
