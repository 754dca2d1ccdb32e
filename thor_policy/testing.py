"""Public stand-ins for tests of the rooms around the engine and the journal.

Owns `StubEngine`, `StubEmbedder` and nothing that production code imports. Invariant: everything here
keeps the contract of the seam it stands in for; tests/test_engine.py runs the same contract over the stub
and over llama.cpp.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, ModelInfo, Scored, resident_key
from thor_policy.core.engine import (
    DeviceMemory,
    LoadedPrefix,
    PromptPrefix,
    Step,
    Steps,
    WrittenExplanation,
    all_steps,
)
from thor_policy.core.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.core.results import Committed
from thor_policy.daemon.loading import journal_options
from thor_policy.engine.explanations import ExplanationWriter
from thor_policy.journal.events import Event
from thor_policy.journal.writer import Journal, OnCommitted

#: The stub's context, in characters: its tokens are characters.
STUB_CONTEXT_CHARS = 4_096


class StubEngine:
    """An engine whose label is a digest of the question: deterministic, instant, and no judge at all.

    `bias` makes it answer that label, with probability 0.9, whenever the pack has it. Under an adapter the
    digest is another one. A prefix is loaded in `LOADING_STEPS` steps.
    """

    LOADING_STEPS = 3

    def __init__(self, *, bias: str | None = None) -> None:
        self._bias = bias
        self._prefixes: dict[str, PromptPrefix] = {}
        self._adapters: set[str] = set()
        self._running: deque[tuple[int, ExplanationWriter, int, int]] = deque()
        self.closed = False
        #: What it says it is; another model for whoever compares.
        self.identity = ModelInfo(
            name="stub",
            sha256=hashlib.sha256(b"stub").hexdigest(),
            quantisation="none",
            architecture="stub",
            parameters=0,
            build="thor_policy.testing",
            device="none",
        )

    @property
    def model(self) -> ModelInfo:
        return self.identity

    @property
    def explaining(self) -> int:
        return len(self._running)

    def file_state(self) -> str | None:
        return None

    def memory(self) -> tuple[DeviceMemory, ...]:
        return ()

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        self._adapters.add(adapter.sha256)

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        return all_steps(self.loading(prefix, adapter))

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        if adapter is not None and adapter.sha256 not in self._adapters:
            raise EngineError(f"the adapter {adapter.name} is not open")
        for _ in range(self.LOADING_STEPS):
            yield
        self._prefixes[resident_key(prefix.pack_sha256, adapter)] = prefix
        return LoadedPrefix(prefix_tokens=_size(prefix), restored=False, golden_scores=2)

    def unload(self, key: str) -> None:
        del self._prefixes[key]

    def needs(self, key: str) -> bool:
        return False

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        if key not in self._prefixes:
            raise EngineError(f"the pack {key} is not loaded")
        if time.monotonic_ns() >= deadline_ns:
            raise DeadlineExceeded("the deadline passed before the question was read")
        if len(question) > STUB_CONTEXT_CHARS:
            raise RequestError(
                "too_large",
                f"request: the situation has {len(question)} tokens; the limit is {STUB_CONTEXT_CHARS}",
            )
        labels = [label.strip() for label in self._prefixes[key].labels]
        _, _, adapter = key.partition("+")
        digest = hashlib.sha256((question + adapter).encode()).digest()
        weights = [1 + byte for byte in digest[: len(labels)]]
        if self._bias in labels:
            weights = [9 * (len(labels) - 1) if label == self._bias else 1 for label in labels]
        probabilities = {label: w / sum(weights) for label, w in zip(labels, weights, strict=True)}
        return Scored(
            label=max(labels, key=probabilities.__getitem__),
            probabilities=probabilities,
            logits=tuple(float(weight) for weight in weights),
            suffix_tokens=tuple(map(ord, question)),
            prefix_tokens=_size(self._prefixes[key]),
            prefix_digest=key.partition("+")[0],
            score_ms=0.0,
        )

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        writing = ExplanationWriter(
            steps,
            tokenise=lambda text: [ord(c) for c in text],
            text_of=_text_of,
            ends=lambda token: token == 0,
        )
        writing.begin()
        self._running.append((ticket, writing, deadline_ns, time.monotonic_ns()))

    def step(self) -> list[WrittenExplanation]:
        ended = []
        for ticket, writing, deadline_ns, started_ns in list(self._running):
            late = time.monotonic_ns() >= deadline_ns
            if not writing.done and not late:
                allowed = writing.allowed()
                writing.take(min(allowed) if allowed is not None else ord("\n"))
            if writing.done or late:
                self._running.remove((ticket, writing, deadline_ns, started_ns))
                ended.append(
                    WrittenExplanation(
                        ticket=ticket,
                        values=writing.values,
                        text=writing.text,
                        truncated=not writing.done,
                        generated_tokens=writing.generated_tokens,
                        explain_ms=(time.monotonic_ns() - started_ns) / 1e6,
                    )
                )
        return ended

    def give_up(self) -> None:
        self._running.clear()

    def close(self) -> None:
        self.closed = True


class StubEmbedder:
    """Takes texts for alike (0.95) that stand together in one of `groups`; others have nothing in common."""

    name = "stub"

    def __init__(self, *groups: Sequence[str]) -> None:
        self._groups = [frozenset(group) for group in groups]

    def similarities(self, texts: Sequence[str], others: Sequence[str]) -> list[list[float]]:
        return [[self._similarity(text, other) for other in others] for text in texts]

    def _similarity(self, text: str, other: str) -> float:
        if text == other:
            return 1.0
        return 0.95 if any({text, other} <= group for group in self._groups) else 0.0


def load_stub_engine(_config: Config) -> StubEngine:
    """For `app.open_service(load_engine=..)`."""
    return StubEngine()


class HastyJournal(Journal):
    """A journal that breaks the promise: it acknowledges a decision before its commit.

    It exists so that the crash test can show that it would notice.
    """

    def append(self, event: Event) -> None:
        if event.ticket is not None:
            self._on_committed([Committed(ticket=event.ticket, kind=event.kind)])
        super().append(event)

    def _report(self, fates: list[Committed]) -> None:
        super()._report([fate for fate in fates if fate.ticket is None])


def open_hasty_journal(config: Config, on_committed: OnCommitted) -> Journal:
    """For `app.open_service(open_journal=..)`."""
    return HastyJournal(config.journal_path, on_committed=on_committed, **journal_options(config))


def _size(prefix: PromptPrefix) -> int:
    return sum(len(turn.text) for turn in prefix.turns)


def _text_of(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))
