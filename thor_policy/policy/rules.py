"""The operator's rules, and the floor that they set.

Owns the semantics of facts, rules, risk, default and required members. Invariant: a rule can only make the
floor stricter, and so does an error: a rule that fails counts as matched if its outcome is stricter than the
loosest one, and any failure disables every `final` of that request. Pure: the same evaluation and receipt
time give the same floor; no clock is read. Checked once; applied on the engine thread, by commands on any.

Rules read the names of the pack's vocabulary in its spelling. A name that is unknown counts as a rule that
matched (`vocabulary:PATH`). If it resembles known names, the rules are applied to each of them too, and the
strictest floor counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from msgspec import Struct, structs

from thor_policy.core.decisions import POLICY_APPLICATION, Floor, Traits
from thor_policy.core.lifting import bare
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import RISKS, Evaluation, Json, Risk
from thor_policy.core.sources import Consulted, values_of
from thor_policy.policy import budget
from thor_policy.policy.budget import Budget, StopCode
from thor_policy.policy.expressions import Language, MemberType, as_type
from thor_policy.policy.functions import TIMES, as_text, name_kinds, roots, times_by_member
from thor_policy.policy.rule_checks import (
    RuleFaults,
    Stated,
    check_expressions,
    faults_of_depth,
    faults_of_names,
    faults_of_words,
)
from thor_policy.policy.rule_programs import Programs
from thor_policy.policy.rule_specs import Clock, Requires, Rule
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.policy.structure.names import shown
from thor_policy.policy.tokens import names_in, parts_of, paths_in
from thor_policy.policy.trace_section import TraceSection
from thor_policy.policy.vocabulary import RULE_ID, Reading, Vocabularies, Vocabulary
from thor_policy.policy.words import WordLists, fault_of


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
        self._default, self._rules_only = default, rules_only
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
        stated = Stated(
            outcomes=tuple(self._rank),
            facts=facts,
            rules=self.rules,
            risk=risk,
            requires=requires,
            reads=reads or {},
            vocabulary=self._vocabulary,
            default=default,
            rules_only=rules_only,
            clock=clock,
            sources=self.sources,
            trace=self._trace,
        )
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
        types, at_fault = check_expressions(stated, self._language)
        if faults := [*faults_of_words(words or {}), *faults_of_names(stated), *at_fault]:
            raise RuleFaults(faults, where)
        others = {rule.id: rule.when for rule in self.rules}
        others |= {"risk": f'"{RISKS[-1]}"' if risk is None else risk}
        others |= {name: text for name, (text, _) in self._trace.expressions.items()}
        self._ids = tuple(others)
        try:
            self._programs = Programs(self._language, facts, types, others)
        except RuntimeError:  # each checks, and in a list it stands a level deeper
            raise RuleFaults(list(faults_of_depth(stated, self._language)), where) from None
        self._language.forget_environments()
        texts = [*facts.values(), *others.values()]
        paths = {path for text in texts for path in paths_in(text)}
        calls_times = any("stated_times" in names_in(text) for text in texts)
        self._reads_now = "now" in paths
        #: The members with a time that expressions read.
        self._times = tuple(path for path in TIMES if path in paths or calls_times)

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
        facts, values, errors = self._programs.run(inputs)
        traits = self._traits
        if traits is None:
            traits = self._trace.traits(dict(zip(self._ids, values, strict=True)), errors)

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
            whole = self._programs.single(rule.id).run(inputs)
            error = whole if isinstance(whole, str) else None
            state: Literal["fired", "not", "failed"] = "failed" if error else "fired" if whole[0] else "not"
            parts = [self._part(text, inputs) for text in parts_of(rule.when)]
            traces.append(RuleTrace(rule=rule, state=state, error=error, parts=tuple(parts)))
        return floor, tuple(traces)

    def _part(self, text: str, inputs: Mapping[str, Any]) -> Part:
        result = self._programs.compiled(text).run(inputs)
        if isinstance(result, str):
            return Part(text=text, error=result)
        return Part(text=text, value=result[0])

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
