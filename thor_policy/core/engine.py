"""The seams: what a model engine and a decision log must do, and the values that cross them.

Owns the Protocols `Engine` and `DecisionLog`, the prompt and the steps of an explanation. Invariant: all
values are frozen, and nothing here does input or output.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypeVar

from msgspec import Struct

from thor_policy.core.decisions import Adapter, Decision, Explanation, ModelInfo, Scored

T = TypeVar("T")
#: Work in bounded steps, between which its thread may do something else; it ends in a value.
Steps: TypeAlias = Generator[None, None, T]


def all_steps(steps: Steps[T]) -> T:
    """The result of work in steps, with nothing done in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


class DeviceMemory(Struct, frozen=True, kw_only=True):
    """Memory of a GPU that a model may be on."""

    device: str
    free_bytes: int
    total_bytes: int


# ---------------------------------------------------------------- the prompt


class ChatTurn(Struct, frozen=True, kw_only=True):
    """One chat turn. Every byte of `text` is content: it can never become a special token."""

    role: Literal["system", "user", "assistant"]
    text: str


class PromptPrefix(Struct, frozen=True, kw_only=True):
    """Everything of a pack's prompt that does not depend on the request.

    `turns` are the system turn and the few-shot examples; `question_head` is how every question begins;
    `answer_head` opens the answer and ends where a label follows; `labels` is the closed list, loosest first.
    """

    pack_sha256: str
    turns: tuple[ChatTurn, ...]
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


class WrittenExplanation(Struct, frozen=True, kw_only=True):
    """An explanation as it came out of the engine: the value of each named step, and the whole text.

    `truncated` when the deadline or the stream's length ended it; then late steps are missing.
    """

    ticket: int
    values: dict[str, tuple[str, ...]]
    text: str
    truncated: bool
    generated_tokens: int
    explain_ms: float


class LoadedPrefix(Struct, frozen=True, kw_only=True):
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
        """Memory of each GPU; empty where there is none, or it is unknown. Any thread."""

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        """Open a LoRA adapter, so that prefixes can be loaded under it.

        `vouched`: a trusted source says that it was trained on this model. Raises EngineError if the file is
        no adapter, or is not for this model.
        """

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        """Make `prefix` resident under an adopted adapter, in bounded steps with other calls in between.

        Its name is `resident_key`; it can be used once the last step is done. It is tested to score the same
        each time. Raises EngineError if it does not fit, or if the test fails.
        """

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
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

    def enrich(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Begin a text of idle time that continues `scored`, in place of the one that is being written.

        It shares no decode and no stream with explanations; only `enrich_step` moves it on. Raises
        EngineError if the engine was opened without a stream for it.
        """

    def enrich_step(self) -> WrittenExplanation | None:
        """Advance the text of idle time by one short decode; returns it when it has ended, else None."""

    def step(self) -> list[WrittenExplanation]:
        """Advance every running explanation by one batched decode; returns those that ended."""

    def give_up(self) -> None:
        """Forget every explanation that runs or waits, and the text of idle time."""

    def close(self) -> None: ...


class DecisionLog(Protocol):
    """Where decisions go to be recorded. Calls return at once; the commit is reported elsewhere."""

    def decided(self, decision: Decision, ticket: int | None = None) -> None: ...

    def shadowed(self, served: Decision, shadow: Decision, at: float) -> None:
        """What the shadow pack decides in place of `served`; no client gets it."""

    def explained(
        self,
        decision_id: str,
        explanation: Explanation,
        at: float,
        ticket: int | None = None,
        sender: str | None = None,
    ) -> None: ...
