"""The nouns of the system and the seams between its rooms.

Owns every value that crosses a thread or a room. Invariant: all of them are frozen, none of them does
any input or output, and none imports anything but msgspec. Used by every thread.

The words are those of OpenID AuthZEN 1.0 (subject, action, resource, context, decision).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from msgspec import Struct

#: JSON as decoded: str, int, float, bool, None, list, dict.
Json: TypeAlias = Any

T = TypeVar("T")
#: Work in bounded steps, between which its thread may do something else; it ends in a value.
Steps: TypeAlias = Generator[None, None, T]

Risk = Literal["low", "medium", "high", "critical"]
#: Who answered: a rule alone, the exact cache, the model, or nobody (fail closed).
Tier = Literal["rule", "cache", "model", "fallback"]
#: Whether a decision is explained: not at all, in its reply, or afterwards as an event of its own.
Explain = Literal["none", "inline", "later"]
#: What a caller may do: ask, hand over records, approve, review, work on the journal.
Role = Literal["ask", "record", "approve", "review", "control"]

#: Risks from the mildest to the gravest.
RISKS: tuple[Risk, ...] = ("low", "medium", "high", "critical")


def all_steps(steps: Steps[T]) -> T:
    """What work in steps comes to, with nothing done in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


# ---------------------------------------------------------------- the question


class Entity(Struct, frozen=True, kw_only=True):
    """A subject or a resource: a type, an id within it, and properties."""

    type: str
    id: str
    properties: dict[str, Json] = {}


class Action(Struct, frozen=True, kw_only=True):
    """What the subject wants to do."""

    name: str
    properties: dict[str, Json] = {}


class Evaluation(Struct, frozen=True, kw_only=True):
    """One question: may `subject` do `action` on `resource`, in `context`?"""

    subject: Entity
    action: Action
    resource: Entity
    context: dict[str, Json] = {}


class Annotations(Struct, frozen=True, kw_only=True):
    """What a test knows about a question. Logged with the decision, never shown to rules or model.

    `expected` lists every outcome that counts as right.
    """

    scenario_id: str | None = None
    expected: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


class Caller(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who sent the request, as the kernel or a key vouches for it; never taken from a payload.

    `key` is the name of the CURVE key that a caller over tcp holds; the kernel's numbers are those of ipc.
    """

    transport: Literal["ipc", "tcp", "inproc"]
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    key: str | None = None


class Request(Struct, frozen=True, kw_only=True):
    """An admitted question on its way to the engine thread.

    `ticket` is the server's own handle for the reply. `received_at` is Unix time in seconds, stamped once
    at receipt and recorded; `received_ns` and `deadline_ns` are monotonic nanoseconds. `pack` is what the
    request calls the pack that it wants to be judged by; None: whichever is active. `idempotency` is
    recorded with the decision.
    """

    ticket: int
    evaluation: Evaluation
    caller: Caller
    received_at: float
    received_ns: int
    deadline_ns: int
    explain: Explain = "none"
    annotations: Annotations = Annotations()
    idempotency: str | None = None
    pack: str | None = None


# ---------------------------------------------------------------- the answer


class Obligation(Struct, frozen=True, kw_only=True):
    """Something the caller must see to before it acts (AuthZEN obligations profile)."""

    id: str
    type: str
    properties: dict[str, Json] = {}


class Floor(Struct, frozen=True, kw_only=True):
    """What the operator's rules demand: no answer is looser than `outcome`.

    `rules` are the ids that fired, strictest first; `clauses` and `because` are theirs. `errors` maps the
    id of each rule or fact that failed to its message. `final` says that no model is needed.
    """

    outcome: str
    final: bool
    rules: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    because: str | None = None
    classification: str | None = None
    facts: dict[str, Json] = {}
    errors: dict[str, str] = {}
    risk: Risk = "critical"

    def settles(self, outcome: str) -> bool:
        """True when the rules alone demand `outcome` and say why."""
        return outcome == self.outcome and bool(self.because)


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


class Explanation(Struct, frozen=True, kw_only=True):
    """Why: always well-formed, because its structure is forced and its enums are closed.

    `text` is the whole answer as the model would have written it; `generated_tokens` counts the tokens
    that the model chose; `explain_ms` is wall time from the decision on.
    """

    classification: str | None
    clauses: tuple[str, ...]
    reasoning: str
    text: str
    truncated: bool = False
    generated_tokens: int = 0
    explain_ms: float = 0.0


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


class DeviceMemory(Struct, frozen=True, kw_only=True):
    """Memory of a GPU that a model may be on."""

    device: str
    free_bytes: int
    total_bytes: int


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


class Decision(Struct, frozen=True, kw_only=True):
    """One answer, with everything needed to explain it and to derive it again.

    `original` is the decision whose score the cache gave again. `probabilities` are those of the score at
    `temperature`: calibrated where a calibration is in force, otherwise as the model gave them. `idempotency`
    is there if the request had a key: a digest of caller and key, a dash, a digest of what was asked.
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
    idempotency: str | None = None


class Recorded(Struct, frozen=True, kw_only=True):
    """What was recorded for an idempotency key: an event, and the decision that it tells of.

    `content` is the digest of what was asked; `id` that of the decision or record.
    """

    content: str
    kind: str
    id: str
    seq: int
    decision: Decision | None = None


# ---------------------------------------------------------------- the prompt


class Turn(Struct, frozen=True, kw_only=True):
    """One chat turn. Every byte of `text` is content: it can never become a special token."""

    role: Literal["system", "user", "assistant"]
    text: str


class PromptPrefix(Struct, frozen=True, kw_only=True):
    """Everything of a pack's prompt that does not depend on the request.

    `turns` are the system turn and the few-shot examples; `question_head` is how every question begins;
    `answer_head` opens the answer and ends where a label follows; `labels` is the closed list, loosest first.
    """

    pack_sha256: str
    turns: tuple[Turn, ...]
    answer_head: str
    labels: tuple[str, ...]
    question_head: str = ""


class Fixed(Struct, frozen=True, kw_only=True, tag="fixed"):
    """Text that is fed to the model, not asked of it."""

    text: str


class OneOf(Struct, frozen=True, kw_only=True, tag="one_of"):
    """The model chooses exactly one of `options`."""

    name: str
    options: tuple[str, ...]


class SomeOf(Struct, frozen=True, kw_only=True, tag="some_of"):
    """The model chooses one to `most` different `options`, written with `separator` between them."""

    name: str
    options: tuple[str, ...]
    most: int
    separator: str = ","


class FreeText(Struct, frozen=True, kw_only=True, tag="free_text"):
    """The model writes up to `max_tokens` tokens, greedily, to the end of the line."""

    name: str
    max_tokens: int


Step: TypeAlias = Fixed | OneOf | SomeOf | FreeText


class Written(Struct, frozen=True, kw_only=True):
    """An explanation as it came out of the engine: the value of each named step, and the whole text.

    `truncated` when the deadline or the stream's length ended it; then late steps are missing.
    """

    ticket: int
    values: dict[str, tuple[str, ...]]
    text: str
    truncated: bool
    generated_tokens: int
    explain_ms: float


class Loaded(Struct, frozen=True, kw_only=True):
    """How a prefix became resident: its length, whether a saved state was restored, and how often the
    golden question (no text at all) was scored alike before anything was served: with equal bits, or, where
    the model is not `exact`, with the same label.
    """

    prefix_tokens: int
    restored: bool
    golden_scores: int


# ---------------------------------------------------------------- the seams


class Engine(Protocol):
    """A model that scores a closed list of labels. One thread owns it and makes every call.

    `score` leaves the scored stream as it is until the next `score` of that prefix, so that `explain`,
    called next, can continue from it.
    """

    @property
    def model(self) -> ModelInfo:
        """The model by itself, without an adapter."""

    @property
    def explaining(self) -> int:
        """How many explanations are running or waiting."""

    def file_state(self) -> str | None:
        """What became of the model's file since it was loaded; None if there is none. Any thread."""

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Memory of each GPU; empty where there is none, or it cannot be told. Any thread."""

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        """Open a LoRA adapter, so that prefixes can be loaded under it.

        `vouched`: somebody we trust says that it was trained on this model. Raises EngineError if it is none,
        or not for this model.
        """

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[Loaded]:
        """Make `prefix` resident under an adopted adapter, in bounded steps with other calls in between.

        Its name is `resident_key`; it can be used once the last step is done. It is tested to score the same
        each time. Raises EngineError if it does not fit, or if the test fails.
        """

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Loaded:
        """All steps of `loading` at once."""

    def unload(self, key: str) -> None:
        """Forget a resident prefix; nothing may need it any more."""

    def needs(self, key: str) -> bool:
        """True while an explanation waits that begins with this prefix."""

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        """Score the labels. Raises RequestError `too_large`, DeadlineExceeded or EngineError."""

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Begin an explanation that continues `scored`; `step` moves it on until `deadline_ns`."""

    def step(self) -> list[Written]:
        """Advance every running explanation by one batched decode; returns those that ended."""

    def give_up(self) -> None:
        """Forget every explanation that runs or waits."""

    def close(self) -> None: ...


class DecisionLog(Protocol):
    """Where decisions go to be recorded. Calls return at once; the commit is reported elsewhere."""

    def decided(self, decision: Decision, ticket: int | None = None) -> None: ...

    def shadowed(self, served: Decision, shadow: Decision, at: float) -> None:
        """What another pack would have answered in the place of `served`; nobody was told."""

    def explained(
        self, decision_id: str, explanation: Explanation, at: float, ticket: int | None = None
    ) -> None: ...
