"""The engine of a daemon without a model: its packs are of rules alone (`model: never`).

Owns the refusal of whatever needs a model. Invariant: it scores nothing. Engine thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from thor_policy.core.decisions import Adapter, ModelInfo, Scored
from thor_policy.core.engine import DeviceMemory, LoadedPrefix, PromptPrefix, Step, Steps, WrittenExplanation
from thor_policy.core.errors import EngineError


class NoEngine:
    """An `Engine` without a model: every call that needs one raises EngineError that says what to do."""

    #: Nothing runs, ever.
    explaining = 0
    model = ModelInfo(
        name="none",
        sha256="",
        quantisation="none",
        architecture="none",
        parameters=0,
        build="none",
        device="none",
    )

    def file_state(self) -> str | None:
        """None: there is no file."""
        return None

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Nothing."""
        return ()

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        """Raises EngineError."""
        _refuse()

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        """Raises EngineError."""
        yield
        _refuse()

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        """Raises EngineError."""
        _refuse()

    def unload(self, key: str) -> None:
        """Nothing is loaded."""

    def needs(self, key: str) -> bool:
        """False: nothing is explained."""
        return False

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        """Raises EngineError."""
        _refuse()

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Raises EngineError."""
        _refuse()

    def enrich(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Raises EngineError."""
        _refuse()

    def enrich_step(self) -> WrittenExplanation | None:
        """None: nothing is written."""
        return None

    def step(self) -> list[WrittenExplanation]:
        """Nothing."""
        return []

    def give_up(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is open."""


def _refuse() -> NoReturn:
    raise EngineError(
        "this daemon has no model, because it started with a pack of rules alone (model: never); "
        "to use a pack that needs one, restart the daemon with that pack in the setting pack"
    )
