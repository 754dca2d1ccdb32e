"""Policy packs: a versioned directory of clauses, rules, examples and the output contract.

Owns the files under `prompts/` and every byte of prompt text. Invariant: the prefix depends only on the
pack; the question depends only on the evaluation and its facts; nothing in a request can end the line that
contains it. Loaded on the main thread; immutable, so any thread may render.

A pack's sha256 covers its files and is the policy version. One more file may hold its signature. A pack of
rules alone (`model: never`) has no prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from thor_policy.core.decisions import Floor, Governing, Obligation, PackInfo
from thor_policy.core.engine import ChatTurn, Fixed, FreeText, OneOf, PromptPrefix, SomeOf, Step
from thor_policy.core.errors import PackError, RequestError
from thor_policy.core.lifting import LiftedBy, bare
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Evaluation, Json, Risk
from thor_policy.core.sources import Consulted
from thor_policy.policy.expressions import MemberType
from thor_policy.policy.lifting import Lifting, paths_that_count
from thor_policy.policy.precedent_specs import PrecedentsSpec
from thor_policy.policy.prompt_text import look_up, show, text_size, without
from thor_policy.policy.rule_specs import Clock, Requires, Rule
from thor_policy.policy.rules import RuleBook
from thor_policy.policy.source_specs import SourceSpec, stated
from thor_policy.policy.trace_section import TraceSection
from thor_policy.policy.vocabulary import Vocabulary

#: Values that every request has: if the first field shows one, all questions begin with the same text.
_ALWAYS_THERE = ("subject.type", "subject.id", "action.name", "resource.type", "resource.id")
#: What every field says in a question without content (Zhao et al. 2021, "Calibrate Before Use", section 5).
_CONTENT_FREE = ("N/A", "[MASK]", "")
#: The beginning of an answer; a label follows.
_ANSWER_HEAD = "outcome:"


class Outcome(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One label of the closed list, and the obligations of the caller when it is the outcome.

    `lifted_by` are the approvals that lift it. `step_up`: it allows, to a caller that supports its
    obligation.
    """

    label: str
    obligations: tuple[Obligation, ...] = ()
    lifted_by: LiftedBy | None = None
    step_up: bool = False


class Field(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the question: `name: value`, where `value` is a dotted path into the request or facts.

    A field without a value has no line. `rest`: the line shows the members of the map at `value` that no
    other field shows.
    """

    name: str
    value: str
    rest: bool = False


#: A probability that a pack states.
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]


class Abstention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An allow with less confidence than `below` (by risk) becomes `outcome`."""

    outcome: str
    below: dict[Risk, Share]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a question and of an explanation.

    A value longer than `max_field_chars` (without its quotes) is truncated, with an ellipsis. A value longer
    than `max_text_chars` is refused, because the model would not read most of it. `texts` gives paths of a
    request whose texts may be longer than the setting `max_text_chars`, in characters. `max_clauses` limits
    the clauses that the model cites. A label stricter than the floor counts from the doubt `tighten_at` on,
    which is one number or one for each risk; 0, also for a risk that is not named, lets every such label
    count.
    """

    max_reasoning_tokens: Annotated[int, Meta(ge=1)] = 48
    max_field_chars: Annotated[int, Meta(ge=1)] = 160
    max_text_chars: Annotated[int, Meta(ge=1)] = 2000
    texts: dict[str, Annotated[int, Meta(ge=1)]] = {}
    max_clauses: Annotated[int, Meta(ge=1)] = 3
    tighten_at: Share | dict[Risk, Share] = 0.0
    abstain: Abstention | None = None

    def tightens_at(self, risk: Risk) -> float:
        """The doubt from which a label stricter than the floor counts at this risk."""
        return self.tighten_at.get(risk, 0.0) if isinstance(self.tighten_at, dict) else self.tighten_at


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of pack.yaml.

    `model: never` makes a pack of rules alone. `default` is the outcome where no rule decides; without it the
    model decides there. `requires` and `reads` declare members of a request with their types: those that it
    must have, and those that it may have. `vocabulary` lists the names that members can have, by their path.
    `sources` are where the daemon looks attributes up, by name.
    `cache: false`: the model scores every question, repeated ones too. `clock: daemon`:
    expressions may read `now`, the receipt time, so outcomes may change with it. `trace` says what kind of
    decision an answer is, and when its trace is complete. `precedents`: past decisions are looked up and
    shown beside the question.
    """

    name: str
    version: str
    description: str
    outcomes: tuple[Outcome, ...]
    model: Literal["tightens", "never"] = "tightens"
    default: str | None = None
    requires: Requires | None = None
    reads: dict[str, MemberType] = {}
    classifications: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    words: dict[str, tuple[str, ...]] = {}
    vocabulary: dict[str, Vocabulary] = {}
    sources: dict[str, SourceSpec] = {}
    facts: dict[str, str] = {}
    risk: str | None = None
    supersedes: str | None = None
    limits: Limits = Limits()
    cache: bool = True
    clock: Clock = "request"
    trace: TraceSection = TraceSection()
    precedents: PrecedentsSpec | None = None


class Example(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One few-shot example; `at` (Unix seconds) is used as the receipt time.

    `sources` has what the sources of the pack say in it: attributes by source.
    """

    id: str
    evaluation: Evaluation
    outcome: str
    classification: str
    risk: Risk
    clauses: tuple[str, ...]
    reasoning: str
    at: float = 1_767_279_600.0  # 2026-01-01 15:00 UTC, a Thursday
    sources: dict[str, dict[str, Json]] = {}


class Pack:
    """A loaded pack. Attributes are read-only; `path` is the directory that it was loaded from."""

    def __init__(
        self,
        *,
        path: Path,
        manifest: Manifest,
        clauses: Mapping[str, str],
        rules: tuple[Rule, ...],
        system: str,
        examples: tuple[Example, ...],
        sha256: str,
        data: Mapping[str, Json] | None = None,
        book: RuleBook | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.data = dict(data or {})
        self.clauses = dict(clauses)
        self.examples = examples
        self.system = system
        self.info = PackInfo(name=manifest.name, version=manifest.version, sha256=sha256)
        self.labels = tuple(outcome.label for outcome in manifest.outcomes)
        self.obligations = {outcome.label: outcome.obligations for outcome in manifest.outcomes}
        #: True for a pack of rules alone: no model is asked, and there is no prompt.
        self.rules_only = manifest.model == "never"
        self.book = book or rule_book(manifest, rules, self.data, str(path))
        #: Characters that a text of a request may have at a path, where that is more than usual.
        self.long_texts = _long_texts(manifest)
        #: Which outcomes approvals can lift.
        self.lifting = lifting_of(manifest, self.book.rules)
        self._prefixes = None if self.rules_only else (self._full_prefix(), self._brief_prefix())

    def stated(self, sources: Mapping[str, Mapping[str, Json]]) -> tuple[Consulted, ...]:
        """Attributes that an example states, by source, as if the sources had said them."""
        return stated(self.manifest.sources, sources)

    @property
    def loosest(self) -> str:
        """The only outcome that is an AuthZEN `decision: true`."""
        return self.labels[0]

    @property
    def strictest(self) -> str:
        """The outcome of every failure."""
        return self.labels[-1]

    @property
    def by_rule_alone(self) -> bool:
        """True if a model is asked nothing, but for requests on which an expression fails."""
        every_rule_settles = all(rule.final or rule.outcome == self.strictest for rule in self.book.rules)
        return self.rules_only or (self.manifest.default is not None and every_rule_settles)

    @property
    def prefix(self) -> PromptPrefix:
        """The prompt before every question. Raises PackError if the pack has none (`model: never`)."""
        return self._prompts()[0]

    @property
    def brief_prefix(self) -> PromptPrefix:
        """The prompt before every question of an adapter with the brief rendering. Raises PackError."""
        return self._prompts()[1]

    def governing(self, decision_type: str) -> Governing:
        """What governs a decision of this type that somebody else made."""
        return Governing(pack=self.info, required=self.manifest.trace.required_of(decision_type))

    def _prompts(self) -> tuple[PromptPrefix, PromptPrefix]:
        if self._prefixes is None:
            raise PackError(f"{self.info.name} is a pack of rules alone (model: never); it has no prompt")
        return self._prefixes

    def shown_values(self, evaluation: Evaluation) -> list[Json]:
        """The values of a request that the model is shown, without facts, which rules computed."""
        roots = msgspec.to_builtins(bare(evaluation))
        paths = (field.value for field in self.manifest.fields if not field.value.startswith("facts."))
        return [value for path in paths if (value := look_up(roots, path)) is not None]

    def question(
        self, evaluation: Evaluation, facts: Mapping[str, Json], precedents: Sequence[Precedent] = ()
    ) -> str:
        """The text of one evaluation: one line for each field that has a value, in the pack's order.

        A line for each precedent follows, if the pack shows the model some.
        Raises RequestError `too_large` that names the field that is too long.
        """
        limits = self.manifest.limits
        roots = msgspec.to_builtins(bare(evaluation)) | {"facts": facts}
        lines = []
        for field in self.manifest.fields:
            value = look_up(roots, field.value)
            if field.rest and isinstance(value, Mapping):
                value = without(value, self._shown_elsewhere(field)) or None
            if value is not None:
                if (size := text_size(value)) > limits.max_text_chars:
                    raise RequestError(
                        "too_large",
                        f"{field.value}: has {size} characters; the limit is {limits.max_text_chars}",
                    )
                lines.append(f"{field.name}: {show(value, limits.max_field_chars)}")
        if self.manifest.precedents is not None and self.manifest.precedents.prompt:
            lines += [each.line for each in precedents]
        return "\n".join(lines)

    def _shown_elsewhere(self, field: Field) -> list[str]:
        """The paths, below the value of a field with `rest`, of the values that other fields show."""
        below = field.value + "."
        values = [other.value for other in self.manifest.fields]
        return [value.removeprefix(below) for value in values if value.startswith(below)]

    def brief_question(
        self, evaluation: Evaluation, floor: Floor, precedents: Sequence[Precedent] = ()
    ) -> str:
        """The text of one evaluation behind `brief_prefix`. Raises RequestError `too_large`.

        The brief prefix shows no clauses, so the text ends with the floor and all reasons for it.
        """
        because = f", for {floor.all_reasons}" if floor.because else ""
        return f"{self.question(evaluation, floor.facts, precedents)}\nrules ask: {floor.outcome}{because}"

    def content_free(self, floor: str | None = None) -> tuple[str, ...]:
        """Questions that say nothing: each field of the pack has a filler for its value.

        `floor` is the outcome of the rules that a brief question ends with; None: behind the full prefix.
        """
        filler_chars = self.manifest.limits.max_field_chars
        fillers = (show(filler, filler_chars) for filler in _CONTENT_FREE)
        ending = "" if floor is None else f"\nrules ask: {floor}"
        names = [field.name for field in self.manifest.fields]
        return tuple("\n".join(f"{name}: {filler}" for name in names) + ending for filler in fillers)

    def explanation_steps(self, outcome: str, floor: Floor, reason: str | None) -> tuple[Step, ...]:
        """The steps of an answer after `outcome:`.

        If there is a `reason` already, it and the clauses of the floor are fixed text; the model does not
        write them.
        """
        by_rules = reason is not None
        limits = self.manifest.limits
        classes = tuple(f" {name}" for name in self.manifest.classifications)
        cited = tuple(f" {clause}" for clause in (floor.clauses if by_rules else self.clauses))
        steps: list[Step] = [Fixed(text=f" {outcome}\nclass:")]
        if by_rules and floor.classification:
            steps.append(OneOf(name="classification", options=(f" {floor.classification}",)))
        else:
            steps.append(OneOf(name="classification", options=classes))
        steps.append(Fixed(text="\nclauses:"))
        if by_rules:
            steps.append(Fixed(text=",".join(cited) or " none"))
        else:
            steps.append(SomeOf(name="clauses", options=cited, most=limits.max_clauses))
        steps.append(Fixed(text="\nbecause:"))
        if by_rules:
            steps.append(Fixed(text=f" {reason}"))
        else:
            steps.append(FreeText(name="reasoning", max_tokens=limits.max_reasoning_tokens))
        return tuple(steps)

    def revised(
        self, *, rules: Sequence[Rule] | None = None, examples: Sequence[Example] | None = None
    ) -> Pack:
        """This pack with other rules or examples, for lint and trials. Its sha256 is empty.

        Raises PackError if a rule is invalid.
        """
        return Pack(
            path=self.path,
            manifest=self.manifest,
            clauses=self.clauses,
            rules=self.book.rules if rules is None else tuple(rules),
            system=self.system,
            examples=self.examples if examples is None else tuple(examples),
            sha256="",
            data=self.data,
        )

    def _brief_prefix(self) -> PromptPrefix:
        text = f"{self.manifest.description}\n{self._outcome_order}"
        return self._prefix([ChatTurn(role="system", text=text)])

    def _full_prefix(self) -> PromptPrefix:
        clauses = "\n".join(f"{name}: {text}" for name, text in self.clauses.items())
        turns = [
            ChatTurn(
                role="system", text=f"{self.system.strip()}\n\nClauses:\n{clauses}\n\n{self._outcome_order}"
            )
        ]
        for example in self.examples:
            sources = self.stated(example.sources)
            facts = self.book.apply(example.evaluation, example.at, sources=sources).facts
            turns.append(ChatTurn(role="user", text=self.question(example.evaluation, facts)))
            text = answer(example.outcome, example.classification, example.clauses, example.reasoning)
            turns.append(ChatTurn(role="assistant", text=text))
        return self._prefix(turns)

    @property
    def _outcome_order(self) -> str:
        return f"Outcomes, loosest first: {' < '.join(self.labels)}"

    def _prefix(self, turns: Sequence[ChatTurn]) -> PromptPrefix:
        first = self.manifest.fields[0]
        return PromptPrefix(
            pack_sha256=self.info.sha256,
            turns=tuple(turns),
            answer_head=_ANSWER_HEAD,
            question_head=f"{first.name}:" if first.value in _ALWAYS_THERE else "",
            labels=tuple(f" {label}" for label in self.labels),
        )


def _long_texts(manifest: Manifest) -> dict[str, int]:
    """The limits of texts by path: those that the manifest states, and that of the fields for the model."""
    shown = [field.value for field in manifest.fields if not field.value.startswith("facts.")]
    limits = dict.fromkeys(shown, manifest.limits.max_text_chars)
    return limits | {path: max(most, limits.get(path, 0)) for path, most in manifest.limits.texts.items()}


def lifting_of(manifest: Manifest, rules: Sequence[Rule]) -> Lifting:
    """Which outcomes of a pack approvals can lift, and what they bind."""
    lifted_by, step_ups = liftable(manifest)
    if not lifted_by and not step_ups:
        return Lifting([outcome.label for outcome in manifest.outcomes], {}, {}, ())
    shown = [field.value for field in manifest.fields]
    declared = [*manifest.vocabulary, *(manifest.requires.members if manifest.requires else ())]
    return Lifting(
        [outcome.label for outcome in manifest.outcomes],
        lifted_by,
        step_ups,
        paths_that_count(expressions_of(manifest, rules), shown, declared),
    )


def liftable(manifest: Manifest) -> tuple[dict[str, LiftedBy], dict[str, tuple[Obligation, ...]]]:
    """The approvals of the outcomes that have some, and the obligations of those that can be stepped up."""
    outcomes = manifest.outcomes
    lifted_by = {outcome.label: outcome.lifted_by for outcome in outcomes if outcome.lifted_by is not None}
    return lifted_by, {outcome.label: outcome.obligations for outcome in outcomes if outcome.step_up}


def expressions_of(manifest: Manifest, rules: Sequence[Rule]) -> list[str]:
    """The texts of all expressions of a pack."""
    traits = [text for text, _ in manifest.trace.expressions.values()]
    risk = [] if manifest.risk is None else [manifest.risk]
    return [*(rule.when for rule in rules), *manifest.facts.values(), *risk, *traits]


def rule_book(manifest: Manifest, rules: tuple[Rule, ...], data: Mapping[str, Json], where: str) -> RuleBook:
    """The checked rules of a pack. Raises RuleFaults that lists every fault."""
    return RuleBook(
        outcomes=[outcome.label for outcome in manifest.outcomes],
        facts=manifest.facts,
        rules=rules,
        risk=manifest.risk,
        words=manifest.words,
        data=data,
        requires=manifest.requires,
        reads=manifest.reads,
        vocabulary=manifest.vocabulary,
        not_plain=manifest.limits.abstain.outcome if manifest.limits.abstain else None,
        default=manifest.default,
        rules_only=manifest.model == "never",
        clock=manifest.clock,
        sources=manifest.sources,
        trace=manifest.trace,
        precedents=manifest.precedents is not None and manifest.precedents.rules,
        where=where,
    )


def answer(outcome: str, classification: str, clauses: Sequence[str], reasoning: str) -> str:
    """A complete answer as in the examples; `reasoning` is one line."""
    cited = ", ".join(clauses) or "none"
    return f"{_ANSWER_HEAD} {outcome}\nclass: {classification}\nclauses: {cited}\nbecause: {reasoning}"
