"""The drift sentinel: what it asks and when, what is a change to it, and that it tells each change once."""

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

from tests.build import write_pack
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
    """A stub whose logits move by `shift`, whose label is `told` if that is set, and that may fail."""

    def __init__(self) -> None:
        super().__init__(bias="deny")
        self.asked: list[str] = []
        self.keys: list[str] = []
        self.shift = 0.0
        self.told: str | None = None
        self.failing = False

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        if self.failing:
            raise EngineError("the decode failed")
        self.asked.append(question)
        self.keys.append(key)
        scored = super().score(key, question, 2**63 - 1)
        return replace(
            scored,
            label=self.told or scored.label,
            logits=tuple(logit + self.shift for logit in scored.logits),
        )


@pytest.fixture
def engine() -> ShiftingEngine:
    return ShiftingEngine()


@pytest.fixture
def policy(engine: ShiftingEngine, shipped_pack: Pack) -> Policy:
    return Policy(engine, shipped_pack)


class Watched:
    """A sentinel, what it recorded, and a whole replay at a time."""

    def __init__(self, policy: Policy, *, tolerance: float = 0.01, now_ns: int = 0) -> None:
        self.recorded: list[Event] = []
        self.policy = policy
        self.sentinel = DriftSentinel(
            self.recorded.append, every_s=EVERY_S, tolerance=tolerance, now_ns=now_ns
        )
        self.now_ns = now_ns

    def judged_by(self, **model: Any) -> None:
        """Exchange the active pack for itself under a model that differs so."""
        policy = self.policy
        old = policy.residents.active
        policy.engine.adopt(ADAPTER, Path())
        all_steps(policy.engine.loading(old.pack.prefix, model.get("adapter")))
        new = Resident(old.pack, replace(old.model, **model), old.loaded)
        policy.set_residents(policy.residents.with_replaced(old, new))

    def replay(self) -> list[Event]:
        """Wait until a replay is due and take every turn of it; what it recorded."""
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


def test_it_asks_each_example_of_the_pack_in_turn_and_then_waits(
    watched: Watched, engine: ShiftingEngine, shipped_pack: Pack
) -> None:
    assert watched.sentinel.wait_s(0) == EVERY_S
    assert watched.replay() == []
    examples = shipped_pack.examples
    assert engine.asked == [
        shipped_pack.question(one.evaluation, shipped_pack.book.apply(one.evaluation, one.at).facts)
        for one in examples
    ]
    assert watched.sentinel.wait_s(watched.now_ns) == EVERY_S
    assert watched.sentinel.wait_s(watched.now_ns + 45 * S) == 15
    assert (watched.sentinel.counters["answered"], watched.sentinel.status().golden) == (len(examples),) * 2


def test_without_an_interval_it_never_asks(policy: Policy) -> None:
    assert DriftSentinel(lambda _: None, every_s=0, tolerance=0, now_ns=0).wait_s(10**18) is None


def test_the_same_answers_are_no_drift(watched: Watched, engine: ShiftingEngine) -> None:
    watched.replay()
    engine.shift = 0.009
    assert watched.replay() == watched.replay() == []
    assert watched.sentinel.shift_max == pytest.approx(0.009)


def test_a_logit_that_moved_further_than_the_tolerance_is_told_once(
    watched: Watched, engine: ShiftingEngine, shipped_pack: Pack
) -> None:
    watched.replay()
    engine.shift = 0.5
    told = watched.replay()
    assert [event.body["golden"] for event in told] == [example.id for example in shipped_pack.examples]
    assert told[0].kind == "drift"
    assert told[0].body == {
        "golden": shipped_pack.examples[0].id,
        "label_before": "deny",
        "label": "deny",
        "shift": 0.5,
        "pack_sha256": shipped_pack.info.sha256,
        "model_sha256": engine.model.sha256,
    }
    assert watched.replay() == []
    engine.shift = 0.0
    assert len(watched.replay()) == len(told)
    assert watched.sentinel.counters["drifted"] == 2 * len(told)


def test_small_steps_add_up(watched: Watched, engine: ShiftingEngine) -> None:
    watched.replay()
    found = []
    for step in range(1, 4):
        engine.shift = 0.006 * step
        found.append(len(watched.replay()) > 0)
    assert found == [False, True, False]


def test_another_label_is_drift_whatever_the_logits(watched: Watched, engine: ShiftingEngine) -> None:
    watched.replay()
    engine.told = "allow"
    told = watched.replay()
    assert {(event.body["label_before"], event.body["label"]) for event in told} == {("deny", "allow")}


def test_where_bits_are_not_promised_only_labels_count(watched: Watched, engine: ShiftingEngine) -> None:
    watched.judged_by(exact=False)
    watched.replay()
    engine.shift = 5.0
    assert watched.replay() == []
    engine.told = "allow"
    assert watched.replay() != []


@pytest.mark.parametrize("other", [{"sha256": "9" * 64}, {"build": "newer"}, {"adapter": ADAPTER}])
def test_another_model_is_no_drift_and_begins_anew(
    watched: Watched, engine: ShiftingEngine, other: Json
) -> None:
    watched.replay()
    watched.judged_by(**other)
    engine.shift = 5.0
    assert watched.replay() == watched.replay() == []
    engine.shift = 6.0
    assert watched.replay() != []


def test_another_pack_that_was_activated_is_asked_its_own_examples(
    watched: Watched, engine: ShiftingEngine, tmp_path: Path
) -> None:
    watched.replay()
    other = pack_files.load(write_pack(tmp_path / "small"))
    resident = all_steps(watched.policy.loading(other, None, 0.0))
    watched.policy.set_residents(watched.policy.residents.with_candidate(resident).with_active(resident))
    engine.shift = 5.0
    engine.asked.clear()
    assert watched.replay() == []
    assert len(engine.asked) == len(other.examples)
    engine.shift = 6.0
    assert {event.body["pack_sha256"] for event in watched.replay()} == {other.info.sha256}


def test_a_drift_under_an_adapter_is_one_of_the_weights_that_judge(
    watched: Watched, engine: ShiftingEngine
) -> None:
    watched.judged_by(adapter=ADAPTER)
    watched.replay()
    engine.shift = 5.0
    assert {event.body["model_sha256"] for event in watched.replay()} == {
        identity_of(engine.model.sha256, ADAPTER)
    }
    assert set(engine.keys[1:]) == {watched.policy.residents.active.key}


def test_a_question_without_an_answer_is_counted_and_the_next_is_asked(
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
def test_the_shift_of_logits(before: tuple[float, ...], now: tuple[float, ...], shift: float) -> None:
    assert shifted(before, now) == shift


@given(st.lists(st.floats(), min_size=1))
def test_a_shift_is_never_less_than_nothing_nor_no_number(logits: list[float]) -> None:
    assert shifted(tuple(logits), tuple(reversed(logits))) >= 0


# ---------------------------------------------------------------- in a daemon


class Stepping(ShiftingEngine):
    """Tells when a replay has begun, and waits there until it may go on."""

    def __init__(self, replays: Callable[[], None]) -> None:
        super().__init__()
        self._replays = replays

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        scored = super().score(key, question, deadline_ns)
        self._replays()
        return scored


def test_an_idle_daemon_finds_a_drift_and_says_so(
    config: Config, shipped_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = len(shipped_pack.examples)
    drifted = threading.Event()

    def count() -> None:
        if len(engine.asked) == 1 + examples:  # one by the warm-up, then a whole replay
            engine.told = "allow"
        if len(engine.asked) == 1 + 3 * examples:
            drifted.set()

    engine = Stepping(count)
    often = changed(config, drift_every_s=0.001)
    with serving(often, load_engine=lambda _: engine), Client(config.endpoint) as client:
        assert drifted.wait(60)
        answered: Json = client.evaluate(
            {
                "subject": {"type": "user", "id": "a"},
                "action": {"name": "deploy"},
                "resource": {"type": "env", "id": "x"},
            }
        )
        assert answered["context"]["outcome"]
        drift = client.status().drift
        assert (drift.counters["drifted"], drift.counters["failed"]) == (examples, 0)
        assert drift.golden == examples
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
        shown = CliRunner().invoke(cli, ["status"]).stdout
        assert f"{examples} changes in" in shown
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
