"""Two engines as one: each call reaches the engine that its key names, and nothing outlives the other one."""

from __future__ import annotations

import pytest

from thor_policy.core.engine import ChatTurn, Fixed, OneOf, PromptPrefix, WrittenExplanation, all_steps
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import NEVER_NS
from thor_policy.engine.engines import BESIDE, Engines
from thor_policy.testing import StubEngine

PREFIX = PromptPrefix(
    pack_sha256="a" * 64,
    turns=(ChatTurn(role="system", text="Decide."),),
    answer_head="outcome:",
    labels=(" allow", " deny"),
)
OWN = PREFIX.pack_sha256
OTHER = BESIDE + OWN
STEPS = (OneOf(name="classification", options=(" routine",)), Fixed(text="\n"))


class Trial:
    """An engine that allows, and beside it another that denies, both with the same prefix."""

    def __init__(self) -> None:
        self.own, self.other = StubEngine(bias="allow"), StubEngine(bias="deny")
        self.engines = Engines(self.own)
        self.engines.load(PREFIX)
        self.engines.take(self.other)
        all_steps(self.other.loading(PREFIX))

    def label(self, key: str) -> str:
        return self.engines.score(key, "who: a", NEVER_NS).label

    def explain(self, ticket: int, key: str) -> None:
        scored = self.engines.score(key, "who: a", NEVER_NS)
        self.engines.explain(ticket, key, scored, STEPS, NEVER_NS)

    def written(self) -> list[WrittenExplanation]:
        ended = []
        while self.engines.explaining:
            ended += self.engines.step()
        return ended


@pytest.fixture
def trial() -> Trial:
    return Trial()


def test_the_key_names_the_engine(trial: Trial) -> None:
    assert (trial.label(OWN), trial.label(OTHER)) == ("allow", "deny")
    assert trial.engines.model is trial.own.model


def test_explanations_of_both_are_counted_and_written(trial: Trial) -> None:
    trial.explain(1, OWN)
    trial.explain(2, OTHER)
    assert (trial.engines.explaining, trial.engines.explaining_beside) == (2, 1)
    assert {each.ticket for each in trial.written()} == {1, 2}


def test_without_the_other_engine_its_prefixes_give_an_error_and_the_own_ones_stay(trial: Trial) -> None:
    trial.engines.let_go()
    assert trial.other.closed
    with pytest.raises(EngineError, match="is not loaded any more"):
        trial.label(OTHER)
    assert trial.label(OWN) == "allow"
    assert trial.engines.explaining_beside == 0


def test_a_text_of_idle_time_ends_with_its_engine(trial: Trial) -> None:
    scored = trial.engines.score(OTHER, "who: a", NEVER_NS)
    trial.engines.enrich(-1, OTHER, scored, STEPS, NEVER_NS)
    trial.engines.let_go()
    with pytest.raises(EngineError, match="was unloaded while it wrote"):
        trial.engines.enrich_step()
    assert trial.engines.enrich_step() is None, "once is enough"


def test_another_engine_takes_the_place_of_the_other(trial: Trial) -> None:
    trial.engines.take(StubEngine())
    assert trial.other.closed
    assert not trial.own.closed


def test_both_are_given_up_and_closed(trial: Trial) -> None:
    trial.explain(1, OWN)
    trial.explain(2, OTHER)
    trial.engines.give_up()
    assert trial.engines.explaining == 0
    trial.engines.close()
    assert (trial.own.closed, trial.other.closed) == (True, True)


def test_unloading_a_prefix_leaves_that_of_the_other_engine(trial: Trial) -> None:
    assert not trial.engines.needs(OTHER)
    trial.engines.unload(OWN)
    assert trial.label(OTHER) == "deny"
    with pytest.raises(EngineError):
        trial.label(OWN)
