"""Public stubs for tests of the packages around the engine and the journal.

Owns `StubEngine`, `StubEmbedder`, `WordEmbedder` and `HastyJournal`; production code imports none of them,
except the benchmarks. Invariant: each stub keeps the contract of the interface it implements, except
`HastyJournal`, which breaks it on purpose; tests/engine/test_engine.py runs one contract over the stub and
over llama.cpp.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from msgspec import structs

from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, ModelInfo, PackInfo, Scored, resident_key
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
from thor_policy.core.recall import DIMENSIONS
from thor_policy.core.results import Committed
from thor_policy.core.status import (
    CacheStatus,
    DriftStatus,
    EngineStatus,
    JobStatus,
    JournalStatus,
    ModelStatus,
    PackManagerStatus,
    PartsStatus,
    RulesStatus,
)
from thor_policy.daemon.loading import journal_options
from thor_policy.engine.explanations import ExplanationWriter
from thor_policy.journal.events import Event
from thor_policy.journal.writer import Journal, OnCommitted

#: The stub's context, in characters: its tokens are characters.
STUB_CONTEXT_CHARS = 4_096


class StubEngine:
    """An engine that derives the label from a digest of the question: deterministic and instant.

    `bias` makes it answer that label, with probability 0.9, whenever the pack has it. It writes `writes`
    wherever a text is free. An adapter changes the digest. A prefix is loaded in `LOADING_STEPS` steps.
    """

    LOADING_STEPS = 3

    def __init__(self, *, bias: str | None = None, writes: str = "") -> None:
        self._bias = bias
        self._writes = writes
        self._prefixes: dict[str, PromptPrefix] = {}
        self._adapters: set[str] = set()
        self._running: deque[tuple[int, ExplanationWriter, int, int]] = deque()
        self._idle: tuple[int, ExplanationWriter, int, int] | None = None
        self.closed = False
        #: The model that it reports; a test may replace it to simulate another model.
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
        self._running.append(_begun(ticket, steps, deadline_ns))

    def step(self) -> list[WrittenExplanation]:
        ended = []
        for run in list(self._running):
            if (written := _advanced(run, self._writes)) is not None:
                self._running.remove(run)
                ended.append(written)
        return ended

    def enrich(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        self._idle = _begun(ticket, steps, deadline_ns)

    def enrich_step(self) -> WrittenExplanation | None:
        if self._idle is None:
            return None
        written = _advanced(self._idle, self._writes)
        if written is not None:
            self._idle = None
        return written

    def give_up(self) -> None:
        self._running.clear()
        self._idle = None

    def close(self) -> None:
        self.closed = True


def _begun(ticket: int, steps: tuple[Step, ...], deadline_ns: int) -> tuple[int, ExplanationWriter, int, int]:
    """A text that the stub writes."""
    writer = ExplanationWriter(
        steps,
        tokenise=lambda text: [ord(c) for c in text],
        text_of=_text_of,
        ends=lambda token: token == 0,
    )
    writer.begin()
    return ticket, writer, deadline_ns, time.monotonic_ns()


def _advanced(run: tuple[int, ExplanationWriter, int, int], text: str) -> WrittenExplanation | None:
    """The whole text, when it has ended: each call makes a choice or writes one free `text`."""
    ticket, writer, deadline_ns, started_ns = run
    late = time.monotonic_ns() >= deadline_ns
    if not writer.done and not late:
        allowed = writer.allowed()
        values = len(writer.values)
        for token in map(ord, f"{text}\n") if allowed is None else [min(allowed)]:
            if allowed is not None or len(writer.values) == values:  # a text ends at its limit
                writer.take(token)
    if not writer.done and not late:
        return None
    return WrittenExplanation(
        ticket=ticket,
        values=writer.values,
        text=writer.text,
        truncated=not writer.done,
        generated_tokens=writer.generated_tokens,
        explain_ms=(time.monotonic_ns() - started_ns) / 1e6,
    )


class StubEmbedder:
    """Gives texts in the same one of `groups` a similarity of 0.95, equal texts 1, and all others 0."""

    name = "stub"

    def __init__(self, *groups: Sequence[str]) -> None:
        self._groups = [frozenset(group) for group in groups]

    def similarities(self, texts: Sequence[str], others: Sequence[str]) -> list[list[float]]:
        return [[self._similarity(text, other) for other in others] for text in texts]

    def _similarity(self, text: str, other: str) -> float:
        if text == other:
            return 1.0
        return 0.95 if any({text, other} <= group for group in self._groups) else 0.0


class WordEmbedder:
    """An embedder without a model: texts with common words have similar vectors, equal texts equal ones."""

    name = "words"

    def embed(self, text: str) -> Any:
        total = numpy.zeros(DIMENSIONS)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            total += numpy.random.default_rng(seed).standard_normal(DIMENSIONS)
        return (total / max(float(numpy.linalg.norm(total)), 1e-9)).astype(numpy.float32)


def load_stub_engine(_config: Config) -> StubEngine:
    """A `load_engine` for `daemon.service.open_service`."""
    return StubEngine()


def stub_parts(pack: PackInfo) -> PartsStatus:
    """What the parts of a daemon would say that has decided nothing, on the stub engine."""
    model = StubEngine().model
    job = JobStatus(alive=True, stalled_s=0.0, task=None, waiting=0, counters={})
    return PartsStatus(
        pack=pack,
        model=ModelStatus(
            name=model.name,
            sha256=model.sha256,
            quantisation=model.quantisation,
            device=model.device,
            build=model.build,
            exact=model.exact,
        ),
        packs=(),
        rules=RulesStatus(alive=True, stalled_s=0.0, waiting=0, mean_ms=0.0, counters={}),
        engine=EngineStatus(
            alive=True,
            stalled_s=0.0,
            waiting=0,
            explaining=0,
            shadows_waiting=0,
            memory=(),
            prefix_tokens=0,
            prefix_restored=False,
            self_test="passed",
            warm_up_ms=0.0,
            mean_decision_ms=0.0,
            explanation_step_ms_max=0.0,
            loading_step_ms_max=0.0,
            wait_for_step_ms_max=0.0,
            counters={},
        ),
        cache=CacheStatus(entries=0, counters={}),
        journal=JournalStatus(
            alive=True,
            stalled_s=0.0,
            path="",
            seq=0,
            waiting=0,
            batches=0,
            failing=None,
            free_mb=None,
            min_free_mb=0,
            ballast=False,
            counters={},
        ),
        maintenance=job,
        pack_manager=PackManagerStatus(**structs.asdict(job), refused={}, max_packs=3),
        drift=DriftStatus(every_s=0.0, golden=0, shift_max=0.0, counters={}),
    )


class HastyJournal(Journal):
    """A journal that acknowledges a decision before its commit, which a journal must never do.

    With it the crash test shows that it detects such a journal.
    """

    def append(self, event: Event) -> None:
        if event.ticket is not None:
            self._on_committed([Committed(ticket=event.ticket, kind=event.kind)])
        super().append(event)

    def _report(self, commits: list[Committed]) -> None:
        super()._report([commit for commit in commits if commit.ticket is None])


def open_hasty_journal(config: Config, on_committed: OnCommitted) -> Journal:
    """An `open_journal` for `daemon.service.open_service`."""
    return HastyJournal(config.journal_path, on_committed=on_committed, **journal_options(config))


def _size(prefix: PromptPrefix) -> int:
    return sum(len(turn.text) for turn in prefix.turns)


def _text_of(tokens: Sequence[int]) -> str:
    return "".join(map(chr, tokens))
