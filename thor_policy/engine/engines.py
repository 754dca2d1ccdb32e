"""Two engines as one: that of the daemon, and for the time of a canary that of its candidate model.

Owns which engine a prefix is on: the key of one on the other engine begins with `BESIDE`. Invariant: the
engine of the daemon decides as if it were alone; without the other one, its prefixes give an error. Engine
thread, but for `file_state` and `memory`.
"""

from __future__ import annotations

from pathlib import Path

from thor_policy.core.decisions import Adapter, ModelInfo, Scored
from thor_policy.core.engine import (
    DeviceMemory,
    Engine,
    LoadedPrefix,
    PromptPrefix,
    Step,
    Steps,
    WrittenExplanation,
)
from thor_policy.core.errors import EngineError

#: How the key of a prefix begins that is on the other engine.
BESIDE = "beside:"


class Engines:
    """An `Engine` that passes each call to `own`, or to the other one if the key says so."""

    def __init__(self, own: Engine) -> None:
        self._own = own
        self._other: Engine | None = None
        #: True while the text of idle time is written by the other one.
        self._writes_beside = False

    def take(self, other: Engine) -> None:
        """Take another engine; prefixes are loaded into it directly. The former one is closed."""
        self.let_go()
        self._other = other

    def let_go(self) -> None:
        """Close the other engine; nothing may need it any more."""
        if self._other is not None:
            self._other.close()
            self._other = None

    @property
    def explaining_beside(self) -> int:
        """How many explanations run or wait on the other engine."""
        return self._other.explaining if self._other is not None else 0

    def _of(self, key: str) -> tuple[Engine, str]:
        if not key.startswith(BESIDE):
            return self._own, key
        if self._other is None:
            raise EngineError("the model of the canary is not loaded any more")
        return self._other, key.removeprefix(BESIDE)

    @property
    def _both(self) -> tuple[Engine, ...]:
        return (self._own,) if self._other is None else (self._own, self._other)

    # ------------------------------------------------------------ as an engine

    @property
    def model(self) -> ModelInfo:
        return self._own.model

    @property
    def explaining(self) -> int:
        return sum(engine.explaining for engine in self._both)

    def file_state(self) -> str | None:
        return self._own.file_state()

    def memory(self) -> tuple[DeviceMemory, ...]:
        return self._own.memory()

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        self._own.adopt(adapter, path, vouched=vouched)

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        return self._own.loading(prefix, adapter)

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        return self._own.load(prefix, adapter)

    def unload(self, key: str) -> None:
        engine, key = self._of(key)
        engine.unload(key)

    def needs(self, key: str) -> bool:
        engine, key = self._of(key)
        return engine.needs(key)

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        engine, key = self._of(key)
        return engine.score(key, question, deadline_ns)

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        engine, key = self._of(key)
        engine.explain(ticket, key, scored, steps, deadline_ns)

    def enrich(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        engine, own_key = self._of(key)
        engine.enrich(ticket, own_key, scored, steps, deadline_ns)
        self._writes_beside = engine is self._other

    def enrich_step(self) -> WrittenExplanation | None:
        if not self._writes_beside:
            return self._own.enrich_step()
        if self._other is None:
            self._writes_beside = False
            raise EngineError("the model of the canary was unloaded while it wrote")
        return self._other.enrich_step()

    def step(self) -> list[WrittenExplanation]:
        return [written for engine in self._both if engine.explaining for written in engine.step()]

    def give_up(self) -> None:
        self._writes_beside = False
        for engine in self._both:
            engine.give_up()

    def close(self) -> None:
        self.let_go()
        self._own.close()
