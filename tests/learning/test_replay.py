"""Replay: what counts as identical, where a decision diverged, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from tests.build import NOON, erasing, note, record, sent, writing
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, Decision, Scored, identity_of
from thor_policy.core.errors import EngineError
from thor_policy.core.lifting import Use
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Request
from thor_policy.daemon.service import serving
from thor_policy.engine.absent import NoEngine
from thor_policy.journal import events
from thor_policy.journal.batch import Placed, prepare
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.learning.counterfactual import Counterfactual, Redecider
from thor_policy.learning.replay import Replayed, Replayer, difference
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.telemetry import clocks
from thor_policy.testing import StubEngine

NEVER = 2**62
TUNED = Adapter(name="tuned", sha256="c" * 64, scale=0.5)
PACK = """
name: small
version: "1"
clock: daemon
description: Three outcomes, a rule for each way to answer, and a fact that takes its time from the request.
outcomes: [{label: allow}, {label: require_mfa}, {label: deny}]
classifications: [routine]
fields: [{name: who, value: subject.id}, {name: does, value: action.name}, {name: late, value: facts.late}]
facts: {late: now.getHours() >= 18, hour: "now.getHours()"}
risk: '"low"'
limits: {abstain: {outcome: require_mfa, below: {low: 0.2}}}
"""
RULES = '- {id: banned, when: action.name == "banned", outcome: deny, clause: R1, because: It is banned.}\n'
EXAMPLE = """
- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: look}, resource: {type: doc, id: d}},
   outcome: allow, classification: routine, risk: low, clauses: [R1], reasoning: Fine.}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory of a small pack."""
    texts = {
        "pack.yaml": PACK,
        "rules.yaml": RULES,
        "examples.yaml": EXAMPLE,
        "clauses.yaml": "R1: One.\n",
        "system.md": "Decide.\n",
    }
    (tmp_path / "small").mkdir()
    for name, text in texts.items():
        (tmp_path / "small" / name).write_text(text)
    return tmp_path / "small"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def request_of(action: str, at: float = NOON) -> Request:
    return Request(
        ticket=1,
        evaluation=Evaluation(
            subject=Entity(type="user", id="ivo"),
            action=Action(name=action),
            resource=Entity(type="d", id="d"),
        ),
        caller=Caller(transport="ipc", uid=1000, gid=1000, pid=1),
        received_at=at,
        received_ns=0,
        deadline_ns=NEVER,
    )


def taken(folder: Path, action: str = "look", at: float = NOON, **options: Any) -> Decision:
    return Policy(holding(options.get("adapter")), pack_files.load(folder), **options).decide(
        request_of(action, at)
    )


def again(
    journal: Path,
    folder: Path,
    decision: Decision,
    engine: StubEngine | None = None,
    adapter: Adapter | None = None,
) -> Replayed:
    engine = engine or holding(adapter)
    with Reader(journal) as reader:
        replayed = Replayer(reader, engine, pack_files.load(folder), adapter=adapter, text_of=_letters)
        return replayed.replay(decision.id)


def holding(adapter: Adapter | None) -> StubEngine:
    """A stub engine that has the adapter open, if one is given."""
    engine = StubEngine()
    if adapter is not None:
        engine.adopt(adapter, Path())
    return engine


def _letters(tokens: Any) -> str:
    return "".join(map(chr, tokens))


class OtherEngine(StubEngine):
    """An engine whose scores are changed by a function."""

    def __init__(self, change: Callable[[Scored], Scored]) -> None:
        super().__init__()
        self._change = change

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        return self._change(super().score(pack_sha256, question, deadline_ns))


class TestIdentical:
    @pytest.mark.parametrize(("action", "tier"), [("look", "model"), ("banned", "rule")])
    def test_an_unchanged_decision_is_identical(
        self, folder: Path, journal: Path, action: str, tier: str
    ) -> None:
        decision = taken(folder, action)
        record(journal, decision)
        replayed = again(journal, folder, decision)
        assert replayed == Replayed(
            decision_id=decision.id, verdict="identical", outcome=decision.outcome, tier=tier
        )

    def test_rules_get_the_recorded_time_of_receipt(self, folder: Path, journal: Path) -> None:
        late = taken(folder, at=NOON + 8 * 3600 + 0.123456)
        record(journal, late)
        assert late.floor.facts["late"] is True
        assert again(journal, folder, late).verdict == "identical"

    def test_a_doubt_is_identical_because_its_threshold_is_part_of_the_pack(
        self, folder: Path, journal: Path
    ) -> None:
        text = (folder / "pack.yaml").read_text()
        (folder / "pack.yaml").write_text(re.sub("limits: .*", "limits: {tighten_at: 1.0}", text))
        decision = Policy(StubEngine(bias="deny"), pack_files.load(folder)).decide(request_of("look"))
        record(journal, decision)
        assert (decision.outcome, decision.reason_code) == ("allow", "doubt")
        assert again(journal, folder, decision, StubEngine(bias="deny")).verdict == "identical"
        (folder / "pack.yaml").write_text(re.sub("limits: .*", "limits: {tighten_at: 0.5}", text))
        assert again(journal, folder, decision, StubEngine(bias="deny")).verdict == "refused"

    def test_the_recorded_temperature_is_used(self, folder: Path, journal: Path) -> None:
        sha, engine = pack_files.load(folder).info.sha256, StubEngine()
        calibration = Calibration(
            temperature=2.5, pack_sha256=sha, model_sha256=engine.model.sha256, judged=60
        )
        decision = taken(folder, calibration=calibration)
        later = events.calibration_event(replace(calibration, temperature=0.5), NOON + 9)
        record(journal, events.calibration_event(calibration, NOON), decision, later)
        assert again(journal, folder, decision).verdict == "identical"

    def test_the_recorded_prior_says_whether_a_contextual_calibration_counted(
        self, folder: Path, journal: Path
    ) -> None:
        corrected, plain = taken(folder, contextual=True), taken(folder)
        assert corrected.prior
        assert corrected.confidence != plain.confidence
        record(journal, corrected, plain)
        with Reader(journal) as reader:
            replayer = Replayer(reader, StubEngine(), pack_files.load(folder))
            for past in (corrected, plain, corrected):
                assert replayer.replay(past.id).verdict == "identical"

    def test_another_prior_than_then_is_reported(self, folder: Path, journal: Path) -> None:
        decision = taken(folder, contextual=True)
        prior = decision.prior | {"allow": decision.prior["allow"] + 1e-9}
        record(journal, changed := replace(decision, prior=prior))
        replayed = again(journal, folder, changed)
        assert (replayed.verdict, replayed.step, replayed.where) == (
            "same_label",
            "probabilities",
            "prior.allow",
        )

    def test_the_adapter_has_a_temperature_of_its_own(self, folder: Path, journal: Path) -> None:
        sha, model = pack_files.load(folder).info.sha256, StubEngine().model
        fields = {"temperature": 2.5, "pack_sha256": sha, "judged": 60}
        calibration = Calibration(model_sha256=identity_of(model.sha256, TUNED), **fields)
        decision = taken(folder, adapter=TUNED, calibration=calibration)
        plain = taken(folder, adapter=TUNED)
        assert decision.model is not None
        assert decision.model.adapter == TUNED
        assert (decision.temperature, plain.temperature) == (2.5, 1.0)
        record(journal, events.calibration_event(calibration, NOON), decision, plain)
        renamed = replace(TUNED, name="renamed")
        with Reader(journal) as reader:
            replayer = Replayer(reader, holding(renamed), pack_files.load(folder), adapter=renamed)
            for past in (decision, plain, decision):
                assert replayer.replay(past.id).verdict == "identical"

    def test_a_cached_decision_is_compared_with_its_original(self, folder: Path, journal: Path) -> None:
        policy = Policy(StubEngine(), pack_files.load(folder), cache=ScoreCache(8, 1e6))
        first, second = policy.decide(request_of("look")), policy.decide(request_of("look"))
        record(journal, first, second)
        assert (second.tier, second.original) == ("cache", first.id)
        assert again(journal, folder, second).verdict == "identical"

    def test_a_reviewed_and_archived_decision_is_identical(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        review = records.Review(decision_id=decision.id, reviewer="kim", verdict="accept")
        record(journal, decision, sent(review), note())
        with Journal(journal, on_committed=lambda _: None, synchronous="OFF") as opened:
            (segment,) = archive_before(opened, "2030-01-01")
        assert segment.events == 2
        assert again(journal, folder, decision).verdict == "identical"


CONTEXT = st.dictionaries(
    st.sampled_from(["team_context", "details", "timestamp", "change", "approval_pending", "recent_history"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=30)
        | st.sampled_from(["2026-07-01T23:00:00Z", "unusual", "as agreed"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)
QUESTIONS = st.tuples(
    st.builds(
        Evaluation,
        subject=st.builds(
            Entity,
            type=st.sampled_from(["user", "service"]),
            id=st.text(min_size=1, max_size=20),
            properties=st.fixed_dictionaries(
                {"role": st.sampled_from(["admin", "intern"])},
                optional={"trust": st.dictionaries(st.sampled_from(["competence"]), st.floats(0, 1))},
            ),
        ),
        action=st.builds(Action, name=st.sampled_from(["deploy", "read", "deleteAuditLog", "rotate_key"])),
        resource=st.builds(
            Entity, type=st.sampled_from(["env", "doc"]), id=st.sampled_from(["production", "guide"])
        ),
        context=CONTEXT,
    ),
    st.floats(1.7e9, 1.9e9),
)


@settings(max_examples=25)
@given(st.lists(QUESTIONS, max_size=8), st.sampled_from([1.0, 0.37, 3.25]))
def test_any_decision_is_identical_on_the_engine_that_took_it(
    shipped_pack: Pack, questions: list[tuple[Evaluation, float]], temperature: float
) -> None:
    engine = StubEngine()
    calibration = Calibration(
        temperature=temperature,
        pack_sha256=shipped_pack.info.sha256,
        model_sha256=engine.model.sha256,
        judged=60,
    )
    policy = Policy(engine, shipped_pack, calibration=calibration, cache=ScoreCache(8, 1e6))
    decisions = [
        policy.decide(
            Request(
                ticket=1,
                evaluation=evaluation,
                caller=Caller(transport="inproc"),
                received_at=at,
                received_ns=0,
                deadline_ns=NEVER,
            )
        )
        for evaluation, at in (*questions, *questions[:1])
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy_decisions.db"
        record(path, events.calibration_event(calibration, NOON), *decisions)
        with Reader(path) as reader:
            replayer = Replayer(reader, StubEngine(), shipped_pack, text_of=_letters)
            assert [replayer.replay(decision.id).verdict for decision in decisions] == ["identical"] * len(
                decisions
            )


class TestDiverged:
    def test_a_changed_rule_diverges_at_the_rules(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        floor = replace(decision.floor, facts={**decision.floor.facts, "hour": 7})
        record(journal, changed := replace(decision, floor=floor))
        replayed = again(journal, folder, changed)
        assert (replayed.verdict, replayed.step, replayed.where) == ("diverged", "rules", "facts.hour")
        assert (replayed.recorded, replayed.now) == (7, 12)

    @pytest.mark.parametrize(
        ("change", "verdict", "step", "where"),
        [
            ({"suffix_tokens": tuple(map(ord, "who: eve"))}, "diverged", "question", "0"),
            ({"prefix_digest": "0" * 64}, "diverged", "prefix", "prefix_digest"),
            ({"logits": (1.0, 2.0, 3.0)}, "same_label", "logits", "logits.0"),
        ],
    )
    def test_the_first_step_that_differs_is_reported(
        self, folder: Path, journal: Path, change: dict[str, Any], verdict: str, step: str, where: str
    ) -> None:
        decision = taken(folder)
        record(journal, decision)
        replayed = again(journal, folder, decision, OtherEngine(lambda scored: replace(scored, **change)))
        assert (replayed.verdict, replayed.step, replayed.where) == (verdict, step, where)

    def test_the_same_text_in_other_tokens_diverges_at_the_tokens(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        record(journal, decision)
        engine = OtherEngine(lambda scored: replace(scored, suffix_tokens=(1, *scored.suffix_tokens)))
        with Reader(journal) as reader:
            replayed = Replayer(
                reader,
                engine,
                pack_files.load(folder),
                text_of=lambda tokens: _letters(token for token in tokens if token > 1),
            )
            assert replayed.replay(decision.id).step == "tokens"

    def test_another_label_diverges(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        record(journal, decision)
        label = next(name for name in decision.probabilities if name != decision.label)
        other = {name: float(name == label) for name in decision.probabilities}
        engine = OtherEngine(
            lambda scored: replace(scored, label=label, probabilities=other, logits=(0.0, 0.0, 9.0))
        )
        replayed = again(journal, folder, decision, engine)
        assert (replayed.verdict, replayed.step) == ("diverged", "logits")

    def test_changed_probabilities_with_the_same_logits_diverge(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        record(journal, changed := replace(decision, temperature=1.0, confidence=0.123))
        replayed = again(journal, folder, changed)
        assert (replayed.step, replayed.where, replayed.recorded) == ("probabilities", "confidence", 0.123)

    def test_a_changed_outcome_diverges(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        other = next(label for label in ("allow", "deny") if label != decision.outcome)
        record(journal, changed := replace(decision, outcome=other))
        replayed = again(journal, folder, changed)
        assert (replayed.verdict, replayed.step, replayed.where) == ("diverged", "outcome", "outcome")
        assert (replayed.recorded, replayed.now) == (other, decision.outcome)

    def test_a_cached_score_that_is_not_that_of_the_original_diverges(
        self, folder: Path, journal: Path
    ) -> None:
        policy = Policy(StubEngine(), pack_files.load(folder), cache=ScoreCache(8, 1e6))
        first, second = policy.decide(request_of("look")), policy.decide(request_of("look"))
        assert first.scored is not None
        record(journal, replace(first, scored=replace(first.scored, logits=(0.0, 1.0, 2.0))), second)
        assert again(journal, folder, second).step == "logits"

    def test_another_library_build_is_named_as_the_reason(self, folder: Path, journal: Path) -> None:
        decision, loaded = taken(folder), replace(StubEngine().model, build="an older one")
        record(journal, events.model_loaded(loaded, NOON), decision)
        engine = OtherEngine(lambda scored: replace(scored, logits=(1.0, 2.0, 3.0)))
        assert "an older one" in str(again(journal, folder, decision, engine).reason)

    def test_a_question_that_is_too_large_now_diverges(self, folder: Path, journal: Path) -> None:
        decision = taken(folder, "look" * 400)
        record(journal, decision)
        assert again(journal, folder, decision).verdict == "identical"
        long = replace(decision, id="x" * 36, evaluation=request_of("x" * 2100).evaluation)
        record(journal, long)
        replayed = again(journal, folder, long)
        assert (replayed.verdict, replayed.step) == ("diverged", "question")
        assert "the limit is 2000" in replayed.now


class TestRefused:
    def test_a_pack_with_one_changed_byte_is_refused(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        record(journal, decision)
        with (folder / "system.md").open("a") as file:
            file.write(" ")
        replayed = again(journal, folder, decision)
        assert replayed.verdict == "refused"
        assert f"had sha256 {decision.pack.sha256}" in str(replayed.reason)
        assert pack_files.load(folder).info.sha256 in str(replayed.reason)

    def test_another_model_is_refused(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        record(journal, decision)
        engine = StubEngine()
        engine.identity = replace(engine.identity, sha256="0" * 64)
        replayed = again(journal, folder, decision, engine)
        assert replayed.verdict == "refused"
        assert decision.model is not None
        assert f"had sha256 {decision.model.sha256}; the model here has {'0' * 64}" in str(replayed.reason)

    def test_a_model_without_a_recorded_field_is_refused(self, folder: Path, journal: Path) -> None:
        class Adapted(events.ModelName, frozen=True, kw_only=True):
            adapter_sha256: str

        decision = taken(folder)
        event = events.decision_event(decision)
        assert isinstance(event.body, events.DecisionBody)
        assert event.body.model is not None
        model = Adapted(**structs.asdict(event.body.model), adapter_sha256="a" * 64)
        record(journal, replace(event, body=replace(event.body, model=model)))
        replayed = again(journal, folder, decision)
        assert replayed.verdict == "refused"
        assert f"had adapter_sha256 {'a' * 64}; the model here has None" in str(replayed.reason)

    @pytest.mark.parametrize(
        ("then", "now"),
        [
            (TUNED, None),
            (None, TUNED),
            (TUNED, replace(TUNED, scale=1.0)),
            (TUNED, replace(TUNED, sha256="d" * 64)),
        ],
    )
    def test_another_adapter_or_scale_is_refused(
        self, folder: Path, journal: Path, then: Adapter | None, now: Adapter | None
    ) -> None:
        decision = taken(folder, adapter=then)
        record(journal, decision)
        replayed = again(journal, folder, decision, adapter=now)
        assert replayed.verdict == "refused"
        for adapter in (then, now):
            text = f"{adapter.name} {adapter.sha256} at scale {adapter.scale:g}" if adapter else "under none"
            assert text in str(replayed.reason)

    def test_a_decision_by_rule_is_replayed_on_any_model(self, folder: Path, journal: Path) -> None:
        decision = taken(folder, "banned")
        record(journal, decision)
        engine = StubEngine()
        engine.identity = replace(engine.identity, sha256="0" * 64)
        assert again(journal, folder, decision, engine).verdict == "identical"

    def test_a_missing_calibration_is_refused(self, folder: Path, journal: Path) -> None:
        decision = replace(taken(folder), temperature=1.75)
        record(journal, decision)
        replayed = again(journal, folder, decision)
        assert replayed.verdict == "refused"
        assert "temperature 1.75" in str(replayed.reason)

    @pytest.mark.parametrize("keep", [None, "something"])
    def test_an_erased_decision_is_refused(self, folder: Path, journal: Path, keep: str | None) -> None:
        decision = taken(folder)
        record(journal, decision)
        with Reader(journal) as reader:
            event = reader.trace(decision.id)["event"]
        left = None if keep is None else json.dumps({"evaluation": event["private"]["evaluation"]})
        record(journal, erasing(journal, event["seq"], keep=left))
        replayed = again(journal, folder, decision)
        assert replayed.verdict == "refused"
        assert "erased by event" in str(replayed.reason)

    def test_a_decision_with_a_masked_value_is_refused(self, folder: Path, journal: Path) -> None:
        decision = taken(folder)
        record(journal, decision, masked=("/subject/id",))
        replayed = again(journal, folder, decision)
        assert replayed.verdict == "refused"
        assert "/subject/id" in str(replayed.reason)

    def test_a_reported_decision_is_refused(self, folder: Path, journal: Path) -> None:
        reported = sent(records.DecisionReport(agent="trader", outcome="buy"), record_id="r-1")
        record(journal, reported)
        with Reader(journal) as reader:
            replayed = Replayer(reader, StubEngine(), pack_files.load(folder)).replay("r-1")
        assert replayed.verdict == "refused"
        assert "reported" in str(replayed.reason)

    def test_a_decision_without_a_model_answer_then_or_now_is_refused(
        self, folder: Path, journal: Path
    ) -> None:
        def fail(_: Scored) -> Scored:
            raise EngineError("no")

        without = Policy(OtherEngine(fail), pack_files.load(folder)).decide(request_of("look"))
        decision = taken(folder)
        record(journal, without, decision)
        assert "no answer then (engine_failed)" in str(again(journal, folder, without).reason)
        assert "no answer now" in str(again(journal, folder, decision, OtherEngine(fail)).reason)


class TestWhichDecisions:
    def test_random_draws_at_most_n_decisions_and_no_reported_ones(self, folder: Path, journal: Path) -> None:
        decisions = [taken(folder, at=NOON + number) for number in range(5)]
        record(journal, *decisions, sent(records.DecisionReport(agent="trader", outcome="buy")))
        ids = [decision.id for decision in decisions]
        with Reader(journal) as reader:
            assert reader.decided_here() == ids
            assert reader.decided_here(since="2026-07-01T12:00:03Z") == ids[3:]
            drawn = reader.decided_here(sample=3)
            assert len(drawn) == 3
            assert set(drawn) <= set(ids)


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ("a.b.1", 2, 3)),
        ({"a": 1}, {}, ("a", 1, None)),
        ([1], [1, 2], ("1", None, 2)),
        (1, "1", ("", 1, "1")),
    ],
)
def test_the_first_difference_is_reported_with_its_path(
    then: Any, now: Any, expected: tuple[Any, ...]
) -> None:
    assert difference(then, now) == expected


# ---------------------------------------------------------------- the real model


def situation(number: int) -> dict[str, Any]:
    chance = random.Random(number)
    trust = {name: round(chance.uniform(0.4, 1), 2) for name in ("competence", "reliability", "integrity")}
    return {
        "actor_id": f"user:u{number}",
        "actor_role": chance.choice(["engineer", "intern", "admin", "operator"]),
        "t3_tensor": trust,
        "action_type": chance.choice(["deploy", "read", "scale", "delete", "rotate_key", "publish"]),
        "resource": chance.choice(["env:production", "doc:guide", "db:orders", "service:mail"]),
        "details": chance.choice(["as agreed", "before the sale", "nobody else was there"]),
    }


@contextmanager
def daemon_that_was_asked(config: Config, count: int) -> Iterator[Counter[str]]:
    """A state directory in which a daemon on the real model took `count` decisions; yields counts by tier."""
    with serving(config), Client(config.endpoint, timeout_ms=120_000) as client:
        answers = [client.evaluate(situation(n), deadline_ms=110_000)["context"] for n in range(count)]
    yield Counter(answer["tier"] for answer in answers)


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    return lambda *arguments: CliRunner().invoke(cli, ["replay", *arguments])


@pytest.mark.model
def test_decisions_of_a_daemon_are_identical_and_refused_after_one_changed_byte_of_the_pack(
    config: Config, run: Callable[..., Result], tmp_path: Path
) -> None:
    with daemon_that_was_asked(config, 6) as tiers:
        assert set(tiers) == {"model", "rule"}
    report = json.loads(run("--since", "2026-01-01", "--json").stdout)
    assert report["counts"] == {"identical": 6}
    first = report["decisions"][0]["decision_id"]
    shown = run(first[-8:])
    assert shown.exit_code == 0, shown.output
    assert "identical" in shown.stdout
    pack = tmp_path / "changed"
    shutil.copytree(data_path("prompts") / "team-governance", pack)
    (pack / "system.md").write_text((pack / "system.md").read_text() + " ")
    refused = run(first, "--pack", str(pack))
    assert refused.exit_code == 2
    assert pack_files.load(data_path("prompts") / "team-governance").info.sha256 in refused.stdout
    assert run().exit_code == run(first, "--random", "1").exit_code == 2


@pytest.mark.model
def test_a_contextual_calibration_of_the_real_model_is_repeated_to_the_bit(
    config: Config, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once by the daemon that decided, once by the engine of the replay, which asks without content anew."""
    monkeypatch.setenv("THOR_POLICY_ADAPTER", "none")
    alone = dataclasses.replace(config, adapter="none")
    with daemon_that_was_asked(alone, 4) as tiers:
        assert "model" in tiers
    with Reader(config.journal_path) as reader:
        bodies = [reader.trace(row["decision_id"])["event"]["body"] for row in reader.decisions(limit=10)]
    priors = [body["prior"] for body in bodies if body["tier"] == "model"]
    assert priors[1:] == priors[:-1]
    assert sum(priors[0].values()) == pytest.approx(1)
    monkeypatch.setenv("THOR_POLICY_CONTEXTUAL_CALIBRATION", "off")  # a replay reads the record alone
    report = json.loads(run("--since", "2026-01-01", "--json").stdout)
    assert report["counts"] == {"identical": 4}


@pytest.mark.model
@pytest.mark.soak
def test_five_hundred_random_decisions_are_identical(config: Config, run: Callable[..., Result]) -> None:
    drawn = 500
    with daemon_that_was_asked(config, drawn + 100) as tiers:
        print(f"recorded by tier: {dict(tiers)}")
    result = run("--random", str(drawn), "--json")
    assert result.exit_code == 0, result.stdout
    assert json.loads(result.stdout)["counts"] == {"identical": drawn}


LIFTABLE = """
name: small
version: "1"
description: A look needs a person.
model: never
default: deny
outcomes: [{label: allow}, {label: ask, lifted_by: {steps: [{role: manager}]}}, {label: deny}]
"""
LOOK = "- {{id: look, when: 'action.name == \"look\"', outcome: {outcome}, because: So.}}\n"


def liftable(folder: Path, outcome: str = "ask") -> Pack:
    folder.mkdir()
    (folder / "pack.yaml").write_text(LIFTABLE)
    (folder / "rules.yaml").write_text(LOOK.format(outcome=outcome))
    return pack_files.load(folder)


def record_unchecked(path: Path, decision: Decision) -> None:
    """Record a decision as the journal of a daemon has it, where the task of its use was checked."""
    record(path, note())
    with writing(path) as connection:
        seq, head = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        placed = Placed(seq, head, clocks.now)
        placed.add(prepare(events.decision_event(decision), 0))
        placed.write(connection)


class TestAnApproval:
    """A decision that came with an approval is taken again with what the approval did then."""

    def with_use(self, pack: Pack, use: Use) -> Decision:
        request = request_of("look")
        evaluation = replace(request.evaluation, context={"approval": {"id": use.task}})
        return Policy(NoEngine(), pack).decide(replace(request, evaluation=evaluation), use=use)

    @pytest.mark.parametrize(
        ("use", "outcome"),
        [
            (Use(task="t", lifts="ask", urgency="emergency"), "allow"),
            (Use(task="t", code="approval_used"), "ask"),
            (Use(task="", code="approval_unknown"), "ask"),
        ],
    )
    def test_that_was_honoured_or_refused_makes_the_same_decision(
        self, tmp_path: Path, journal: Path, use: Use, outcome: str
    ) -> None:
        pack = liftable(tmp_path / "pack")
        decision = self.with_use(pack, use)
        assert decision.outcome == outcome
        record_unchecked(journal, decision)
        with Reader(journal) as reader:
            replayed = Replayer(reader, NoEngine(), pack).replay(decision.id)
            changed = Redecider(reader, NoEngine(), pack).redecide(decision.id)
        assert replayed.verdict == "identical", replayed
        assert isinstance(changed, Counterfactual)
        assert (changed.then.outcome, changed.now.outcome) == (outcome, outcome)

    def test_lifts_nothing_under_a_pack_whose_outcome_is_stricter(
        self, tmp_path: Path, journal: Path
    ) -> None:
        decision = self.with_use(liftable(tmp_path / "pack"), Use(task="t", lifts="ask"))
        record_unchecked(journal, decision)
        with Reader(journal) as reader:
            pack = liftable(tmp_path / "stricter", outcome="deny")
            changed = Redecider(reader, NoEngine(), pack).redecide(decision.id)
        assert isinstance(changed, Counterfactual)
        assert (changed.then.outcome, changed.now.outcome) == ("allow", "deny")
