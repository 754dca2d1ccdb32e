"""The drift sentinel: when it asks which questions, and what counts as drift."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import SCORES_AT_START, write_pack
from thor_policy import catalog
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, Scored, identity_of
from thor_policy.core.engine import all_steps
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Json
from thor_policy.daemon.drift import DriftSentinel, shifted
from thor_policy.daemon.loading import load_engine
from thor_policy.daemon.service import serving
from thor_policy.journal.events import Event
from thor_policy.journal.verification.verify import verify
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import Resident
from thor_policy.testing import StubEngine

ADAPTER = Adapter(name="tuned", sha256="c" * 64, scale=0.5)
EVERY_S = 60.0
S = 10**9


class ShiftingEngine(StubEngine):
    """A stub whose logits move by `shift`, whose label is `fixed_label` if that is set, and that may fail."""

    def __init__(self) -> None:
        super().__init__(bias="deny")
        self.questions: list[str] = []
        self.keys: list[str] = []
        self.shift = 0.0
        self.fixed_label: str | None = None
        self.failing = False

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        if self.failing:
            raise EngineError("the decode failed")
        self.questions.append(question)
        self.keys.append(key)
        scored = super().score(key, question, 2**63 - 1)
        return replace(
            scored,
            label=self.fixed_label or scored.label,
            logits=tuple(logit + self.shift for logit in scored.logits),
        )


@pytest.fixture
def engine() -> ShiftingEngine:
    return ShiftingEngine()


@pytest.fixture
def policy(engine: ShiftingEngine, shipped_pack: Pack) -> Policy:
    return Policy(engine, shipped_pack)


class Watched:
    """A sentinel, the events that it recorded, and a method that runs a whole replay."""

    def __init__(self, policy: Policy, *, tolerance: float = 0.01, now_ns: int = 0) -> None:
        self.recorded: list[Event] = []
        self.policy = policy
        self.sentinel = DriftSentinel(
            self.recorded.append, every_s=EVERY_S, tolerance=tolerance, now_ns=now_ns
        )
        self.now_ns = now_ns

    def change_model(self, **model: Any) -> None:
        """Load the active pack again under a model with these fields changed."""
        policy = self.policy
        old = policy.residents.active
        policy.engine.adopt(ADAPTER, Path())
        all_steps(policy.engine.loading(old.pack.prefix, model.get("adapter")))
        new = Resident(old.pack, replace(old.model, **model), old.loaded)
        policy.set_residents(policy.residents.with_replaced(old, new))

    def replay(self) -> list[Event]:
        """Advance the time until a replay is due, run it, and return the events that it recorded."""
        before = len(self.recorded)
        wait_s = self.sentinel.wait_s(self.now_ns)
        assert wait_s is not None
        self.now_ns += int(wait_s * S)
        while self.sentinel.wait_s(self.now_ns) == 0:
            self.sentinel.turn(self.policy, self.now_ns, at=1.0)
        return self.recorded[before:]


@pytest.fixture
def watched(policy: Policy) -> Watched:
    return Watched(policy)


def test_the_sentinel_asks_each_example_of_the_pack_in_order_and_then_waits(
    watched: Watched, engine: ShiftingEngine, shipped_pack: Pack
) -> None:
    assert watched.sentinel.wait_s(0) == EVERY_S
    assert watched.replay() == []
    examples = shipped_pack.examples
    assert engine.questions == [
        shipped_pack.question(
            example.evaluation, shipped_pack.book.apply(example.evaluation, example.at).facts
        )
        for example in examples
    ]
    assert watched.sentinel.wait_s(watched.now_ns) == EVERY_S
    assert watched.sentinel.wait_s(watched.now_ns + 45 * S) == 15
    assert (watched.sentinel.counters["answered"], watched.sentinel.status().golden) == (len(examples),) * 2


def test_an_interval_of_zero_turns_the_sentinel_off(policy: Policy) -> None:
    assert DriftSentinel(lambda _: None, every_s=0, tolerance=0, now_ns=0).wait_s(10**18) is None


def test_shifts_within_the_tolerance_are_no_drift(watched: Watched, engine: ShiftingEngine) -> None:
    watched.replay()
    engine.shift = 0.009
    assert watched.replay() == watched.replay() == []
    assert watched.sentinel.shift_max == pytest.approx(0.009)


def test_a_logit_shift_beyond_the_tolerance_is_recorded_once(
    watched: Watched, engine: ShiftingEngine, shipped_pack: Pack
) -> None:
    watched.replay()
    engine.shift = 0.5
    drifts = watched.replay()
    assert [event.body["golden"] for event in drifts] == [example.id for example in shipped_pack.examples]
    assert drifts[0].kind == "drift"
    assert drifts[0].body == {
        "golden": shipped_pack.examples[0].id,
        "label_before": "deny",
        "label": "deny",
        "shift": 0.5,
        "pack_sha256": shipped_pack.info.sha256,
        "model_sha256": engine.model.sha256,
    }
    assert watched.replay() == []
    engine.shift = 0.0
    assert len(watched.replay()) == len(drifts)
    assert watched.sentinel.counters["drifted"] == 2 * len(drifts)


def test_small_shifts_add_up_to_drift(watched: Watched, engine: ShiftingEngine) -> None:
    watched.replay()
    drifted = []
    for step in range(1, 4):
        engine.shift = 0.006 * step
        drifted.append(len(watched.replay()) > 0)
    assert drifted == [False, True, False]


def test_a_changed_label_is_drift_even_if_no_logit_moved(watched: Watched, engine: ShiftingEngine) -> None:
    watched.replay()
    engine.fixed_label = "allow"
    drifts = watched.replay()
    assert {(event.body["label_before"], event.body["label"]) for event in drifts} == {("deny", "allow")}


def test_only_a_changed_label_is_drift_on_a_model_that_does_not_promise_equal_bits(
    watched: Watched, engine: ShiftingEngine
) -> None:
    watched.change_model(exact=False)
    watched.replay()
    engine.shift = 5.0
    assert watched.replay() == []
    engine.fixed_label = "allow"
    assert watched.replay() != []


@pytest.mark.parametrize("other", [{"sha256": "9" * 64}, {"build": "newer"}, {"adapter": ADAPTER}])
def test_a_change_of_the_model_is_no_drift_and_starts_a_new_baseline(
    watched: Watched, engine: ShiftingEngine, other: Json
) -> None:
    watched.replay()
    watched.change_model(**other)
    engine.shift = 5.0
    assert watched.replay() == watched.replay() == []
    engine.shift = 6.0
    assert watched.replay() != []


def test_a_newly_activated_pack_is_replayed_with_its_own_examples(
    watched: Watched, engine: ShiftingEngine, tmp_path: Path
) -> None:
    watched.replay()
    other = pack_files.load(write_pack(tmp_path / "small"))
    resident = all_steps(watched.policy.loading(other, None, 0.0))
    watched.policy.set_residents(watched.policy.residents.with_candidate(resident).with_active(resident))
    engine.shift = 5.0
    engine.questions.clear()
    assert watched.replay() == []
    assert len(engine.questions) == len(other.examples)
    engine.shift = 6.0
    assert {event.body["pack_sha256"] for event in watched.replay()} == {other.info.sha256}


def test_drift_under_an_adapter_names_the_digest_of_the_model_with_the_adapter(
    watched: Watched, engine: ShiftingEngine
) -> None:
    watched.change_model(adapter=ADAPTER)
    watched.replay()
    engine.shift = 5.0
    assert {event.body["model_sha256"] for event in watched.replay()} == {
        identity_of(engine.model.sha256, ADAPTER)
    }
    assert set(engine.keys[1:]) == {watched.policy.residents.active.key}


def test_a_question_that_fails_is_counted_and_the_replay_goes_on(
    watched: Watched, engine: ShiftingEngine, shipped_pack: Pack
) -> None:
    engine.failing = True
    assert watched.replay() == []
    engine.failing = False
    assert watched.replay() == []
    assert (watched.sentinel.counters["failed"], watched.sentinel.counters["answered"]) == (
        len(shipped_pack.examples),
    ) * 2


@pytest.mark.parametrize(
    ("before", "now", "shift"),
    [
        ((1.0, 2.0), (1.0, 2.5), 0.5),
        ((1.0, -math.inf), (1.0, -math.inf), 0.0),
        ((1.0,), (math.nan,), math.inf),
        ((math.nan,), (math.nan,), math.inf),
        ((1.0,), (math.inf,), math.inf),
        ((1.0, 2.0), (1.0,), math.inf),
        ((), (), 0.0),
    ],
)
def test_the_shift_is_the_largest_change_of_a_logit(
    before: tuple[float, ...], now: tuple[float, ...], shift: float
) -> None:
    assert shifted(before, now) == shift


@given(st.lists(st.floats(), min_size=1))
def test_a_shift_is_never_negative_nor_nan(logits: list[float]) -> None:
    assert shifted(tuple(logits), tuple(reversed(logits))) >= 0


# ---------------------------------------------------------------- in a daemon


class ObservedEngine(ShiftingEngine):
    """A shifting stub that calls `after_score` after each score, on the engine thread."""

    def __init__(self, after_score: Callable[[], None]) -> None:
        super().__init__()
        self._after_score = after_score

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        scored = super().score(key, question, deadline_ns)
        self._after_score()
        return scored


def test_an_idle_daemon_detects_drift_and_status_and_journal_show_it(
    config: Config, shipped_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = len(shipped_pack.examples)
    drifted = threading.Event()

    def count() -> None:
        if len(engine.questions) == SCORES_AT_START + examples:  # then a whole replay
            engine.fixed_label = "allow"
        if len(engine.questions) == SCORES_AT_START + 3 * examples:
            drifted.set()

    engine = ObservedEngine(count)
    often = changed(config, drift_every_s=0.001)
    with serving(often, load_engine=lambda _: engine), Client(config.endpoint) as client:
        assert drifted.wait(60)
        reply: Json = client.evaluate(
            {
                "subject": {"type": "user", "id": "a"},
                "action": {"name": "deploy"},
                "resource": {"type": "env", "id": "x"},
            }
        )
        assert reply["context"]["outcome"]
        drift = client.status().drift
        assert (drift.counters["drifted"], drift.counters["failed"]) == (examples, 0)
        assert drift.golden == examples
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
        printed = CliRunner().invoke(cli, ["status"]).stdout
        assert f"{examples} changes in" in printed
    with closing(sqlite3.connect(config.journal_path)) as db:
        assert db.execute("SELECT DISTINCT label_before, label FROM drifts").fetchall() == [("deny", "allow")]
        assert db.execute("SELECT count(*) FROM drifts").fetchone() == (examples,)
    assert verify(config.journal_path).ok


@pytest.mark.model
@pytest.mark.parametrize("pack", ["small", pytest.param("shipped", marks=pytest.mark.soak)])
def test_the_embedded_model_does_not_drift(
    config: Config, shipped_pack: Pack, model_file: catalog.ModelFile, tmp_path: Path, pack: str
) -> None:
    """Two replays of a small pack are equal to the last bit; with `-m soak`, those of the shipped pack."""
    active = shipped_pack if pack == "shipped" else pack_files.load(write_pack(tmp_path / "small"))
    engine = load_engine(config)
    try:
        watched = Watched(Policy(engine, active), tolerance=0.0, now_ns=time.monotonic_ns())
        assert watched.replay() == watched.replay() == []
        assert watched.sentinel.counters["answered"] == 2 * len(active.examples)
        assert watched.sentinel.counters["failed"] == 0
        assert watched.sentinel.shift_max == 0.0
    finally:
        engine.close()
