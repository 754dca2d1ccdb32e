"""The answer: a decision, and everything needed to explain it and to derive it again.

Owns floor, score, explanation, decision, and the identities of pack, model and adapter. Invariant: all
values are frozen, and nothing here does input or output. Used by every thread.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

from msgspec import Struct

from thor_policy.core.lifting import Offer, Use
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Annotations, Caller, Evaluation, Json, Risk, Urgency
from thor_policy.core.sources import Consulted

#: Who answered: a rule alone, the exact cache, the model, or nobody (fail closed).
Tier = Literal["rule", "cache", "model", "fallback"]


#: How much a decision can be relied on.
ConfidenceLevel: TypeAlias = Literal["high", "medium", "low"]
#: The type of a decision where neither its pack nor its reporter states another.
POLICY_APPLICATION = "policy_application"
#: Least calibrated confidence of the levels high and medium; below it is low. No other place has them.
HIGH_FROM, MEDIUM_FROM = 0.9, 0.7


def level_of(confidence: float | None, *, calibrated: bool) -> ConfidenceLevel | None:
    """The level of a confidence; None without a calibration, since uncalibrated numbers promise nothing."""
    if confidence is None or not calibrated:
        return None
    return "high" if confidence >= HIGH_FROM else "medium" if confidence >= MEDIUM_FROM else "low"


# ---------------------------------------------------------------- the answer


class Traits(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What kind of decision it is, by the section `trace` of its pack.

    `judgment_call` is None where the pack does not say. `required` names what a trace of this type must have
    (`core.traces`).
    """

    type: str = POLICY_APPLICATION
    is_exception: bool = False
    urgency: Urgency = "normal"
    judgment_call: bool | None = None
    required: tuple[str, ...] = ()


class Obligation(Struct, frozen=True, kw_only=True):
    """Something the caller must see to before it acts (AuthZEN obligations profile)."""

    id: str
    type: str
    properties: dict[str, Json] = {}


class Floor(Struct, frozen=True, kw_only=True):
    """What the operator's rules demand: no answer is looser than `outcome`.

    `rules` are the ids that fired, strictest first. `clauses` are those of the rules that demand `outcome`.
    `because` is the reason of the deciding rule: the first of these rules in the pack's order. `also_because`
    are the reasons of the others. `errors` maps the id of each rule or fact that failed to its message.
    `missing` are the required members of the request that are absent or of another type. `time_used` has
    each time that expressions read, by its origin (a member of the request, or `daemon`); None if the pack
    reads none. `final` says that no model is needed. `unavailable` are the required sources that failed.
    `traits` say what kind of decision it is.
    """

    outcome: str
    final: bool
    rules: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    because: str | None = None
    also_because: tuple[str, ...] = ()
    classification: str | None = None
    facts: dict[str, Json] = {}
    errors: dict[str, str] = {}
    missing: tuple[str, ...] = ()
    risk: Risk = "critical"
    traits: Traits = Traits()
    time_used: dict[str, str] | None = None
    unavailable: tuple[str, ...] = ()

    def settles(self, outcome: str) -> bool:
        """True when the rules alone demand `outcome` and say why."""
        return outcome == self.outcome and bool(self.because)

    @property
    def all_reasons(self) -> str:
        """The reasons of all rules that demand the outcome, the deciding one first; empty without one."""
        return " ".join((self.because, *self.also_because)) if self.because else ""


class Scored(Struct, frozen=True, kw_only=True):
    """What the model said: one label of the closed list.

    `probabilities` sums to 1 over the labels, in pack order. `logits` holds the raw logit of each edge of
    the label trie, in trie order, so that the probabilities can be derived again. `suffix_tokens` are the
    token ids that followed the prefix; `score_ms` is wall time.
    """

    label: str
    probabilities: dict[str, float]
    logits: tuple[float, ...]
    suffix_tokens: tuple[int, ...]
    prefix_tokens: int
    prefix_digest: str
    score_ms: float


#: Who gave the reason of an answer: the rules and limits of the pack, the model, or the rules in place of a
#: reason of the model that did not hold; or the daemon, if the model gave no answer.
Source: TypeAlias = Literal["rule", "model", "replaced", "failure"]
#: Why a reason of the model did not hold: it cites a clause that the rules exclude, repeats the reason of a
#: rule that demands less, states another outcome, or has a number or a name that is in neither question nor
#: policy; or there is none.
Fault: TypeAlias = Literal["clause", "rule", "outcome", "number", "name", "empty"]


class Explanation(Struct, frozen=True, kw_only=True):
    """Why: always well-formed, because its structure is forced and its enums are closed.

    `text` is the whole answer as the model would have written it; `generated_tokens` counts the tokens
    that the model chose; `explain_ms` is wall time from the decision on. `source` says who gave `reasoning`;
    `fault` is there if it was `replaced`.
    """

    classification: str | None
    clauses: tuple[str, ...]
    reasoning: str
    text: str
    truncated: bool = False
    generated_tokens: int = 0
    explain_ms: float = 0.0
    source: Source = "rule"
    fault: Fault | None = None


#: How a question is put: with clauses and examples before it, or with the rules' floor at its end.
Rendering: TypeAlias = Literal["full", "brief"]


class Adapter(Struct, frozen=True, kw_only=True, gc=False):
    """Identity of a LoRA adapter: `sha256` is that of its file, `scale` how strongly it counts.

    `rendering` is how the questions were put that it was trained on.
    """

    name: str
    sha256: str
    scale: float = 1.0
    rendering: Rendering = "full"

    @property
    def key(self) -> str:
        """Text that differs wherever the weights that an adapter adds differ."""
        return f"{self.sha256}*{self.scale!r}"


def identity_of(model_sha256: str, adapter: Adapter | None) -> str:
    """Digest of the weights that judge: that of the file, or of file, adapter and scale together."""
    if adapter is None:
        return model_sha256
    return hashlib.sha256(f"{model_sha256}+{adapter.key}".encode()).hexdigest()


def resident_key(pack_sha256: str, adapter: Adapter | None) -> str:
    """What an engine calls a prefix that was loaded under an adapter, or under none."""
    return pack_sha256 if adapter is None else f"{pack_sha256}+{adapter.key}"


class ModelInfo(Struct, frozen=True, kw_only=True):
    """Identity of the loaded model. `sha256` is that of the file; `build` names the inference library.

    `exact`: the same question gives the same bits. An engine that cannot promise it (a server elsewhere,
    where no file can be hashed either) says so here, and each of its decisions carries it. `adapter` is the
    one it judges with.
    """

    name: str
    sha256: str
    quantisation: str
    architecture: str
    parameters: int
    build: str
    device: str
    exact: bool = True
    adapter: Adapter | None = None

    @property
    def identity(self) -> str:
        """Digest of the weights that judge, adapter and scale included."""
        return identity_of(self.sha256, self.adapter)


class PackInfo(Struct, frozen=True, kw_only=True):
    """Identity of a policy pack. `sha256` over its files *is* the policy version."""

    name: str
    version: str
    sha256: str


class Timings(Struct, frozen=True, kw_only=True):
    """Where the time went, in milliseconds."""

    queue_ms: float = 0.0
    rules_ms: float = 0.0
    score_ms: float = 0.0


#: What a decision of a canary's candidate is noted for: its rules asked for less than those of the active
#: pack, or it gave no answer, so that the active pack decided.
Note: TypeAlias = Literal["looser", "failed"]


class Trial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a decision records of a canary: its arm, and what the active pack's rules asked for.

    `bound` is the floor of the active pack where it is stricter than that of the candidate; `own` is then the
    outcome of the candidate's own floor.
    """

    id: str
    arm: Literal["canary", "control"]
    note: Note | None = None
    own: str | None = None
    bound: Floor | None = None


class Decision(Struct, frozen=True, kw_only=True):
    """One answer, with everything needed to explain it and to derive it again.

    `original` is the decision whose score the cache gave again. `probabilities` are those of the score at
    `temperature`: calibrated where a calibration is in force, otherwise as the model gave them. `prior` has
    the label probabilities of questions without content, if `confidence` has a contextual calibration by
    them. `idempotency`
    is there if the request had a key: the text of its `Mark`. `sources` is what the sources of the pack said,
    `precedents` what was beside the question.
    `offer` says which approvals can lift the outcome, `use` what an approval of the request did.
    `stepped_up`: allowed although the outcome is not the loosest, because the caller sees to its obligation.
    `trial`: the canary that ran, and its arm.
    """

    id: str
    at: float
    evaluation: Evaluation
    caller: Caller
    outcome: str
    allow: bool
    tier: Tier
    floor: Floor
    risk: Risk
    pack: PackInfo
    model: ModelInfo | None
    reason_code: str | None = None
    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = {}
    scored: Scored | None = None
    explanation: Explanation | None = None
    obligations: tuple[Obligation, ...] = ()
    annotations: Annotations = Annotations()
    timings: Timings = Timings()
    original: str | None = None
    temperature: float = 1.0
    confidence_level: ConfidenceLevel | None = None
    idempotency: str | None = None
    sources: tuple[Consulted, ...] = ()
    offer: Offer | None = None
    use: Use | None = None
    stepped_up: bool = False
    precedents: tuple[Precedent, ...] = ()
    precedents_note: str | None = None
    prior: dict[str, float] = {}
    trial: Trial | None = None

    @property
    def judged(self) -> str:
        """What rules and model made of the question, before an approval lifted it."""
        return (self.use.lifts if self.use is not None else None) or self.outcome


class Governing(Struct, frozen=True, kw_only=True):
    """What governs a decision that somebody else made: the active pack, and what it requires of the type."""

    pack: PackInfo
    required: tuple[str, ...] = ()
