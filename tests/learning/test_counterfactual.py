"""Counterfactuals: which past decisions are compared, how they compare, runs, and the command `whatif`."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace as replace_config
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import NOON, erasing, record, rows, sent, write_pack, writing
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, Decision, Scored, identity_of
from thor_policy.core.errors import AlreadyRunning, ConfigError, EngineError, JournalError, RequestError
from thor_policy.core.records import Calibration, Direction
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Json, Request
from thor_policy.daemon import journal_access, loading
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.maintenance import dispatch
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.learning.counterfactual import (
    Answer,
    Counterfactual,
    Redecider,
    Skipped,
    Summary,
    redecide,
    summarise,
)
from thor_policy.learning.counterfactual_run import NICENESS, REST_S, moment, on_idle_time, run
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.testing import StubEngine

NEVER = 2**62
TUNED = Adapter(name="tuned", sha256="c" * 64, scale=0.5)
TRUSTED = {"role": "developer", "trust": {"competence": 0.9, "reliability": 0.9, "integrity": 0.9}}
SUSPENDED = TRUSTED | {"suspended": True}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def request(
    action: str, *, who: str = "ivo", at: float = NOON, resource: str = "guide", **properties: Json
) -> Request:
    return Request(
        ticket=1,
        evaluation=Evaluation(
            subject=Entity(type="user", id=who, properties=properties),
            action=Action(name=action),
            resource=Entity(type="doc", id=resource),
        ),
        caller=Caller(transport="ipc", uid=1000, gid=1000, pid=1),
        received_at=at,
        received_ns=0,
        deadline_ns=NEVER,
    )


def taken(pack: Pack, *requests: Request, engine: StubEngine | None = None, **options: Any) -> list[Decision]:
    """Decisions by a pack, as a daemon records them."""
    policy = Policy(engine or StubEngine(bias="allow"), pack, **options)
    return [policy.decide(request) for request in requests]


def without(folder: Path, rule: str) -> Pack:
    """A copy of the shipped pack without one of its rules."""
    shutil.copytree(data_path("prompts") / "team-governance", folder)
    rules = yaml_text.parse((folder / "rules.yaml").read_text(encoding="utf-8"), Any, "rules.yaml")
    left = [entry for entry in rules if entry["id"] != rule]
    assert len(left) == len(rules) - 1
    (folder / "rules.yaml").write_text(yaml.safe_dump(left), encoding="utf-8")
    return pack_files.load(folder)


def again(
    journal: Path,
    pack: Pack,
    *,
    engine: StubEngine | None = None,
    adapter: Adapter | None = None,
    instead_of: str | None = None,
    **selection: Any,
) -> list[Counterfactual | Skipped]:
    engine = engine or StubEngine(bias="allow")
    if adapter is not None:
        engine.adopt(adapter, Path())
    with Reader(journal) as reader:
        chosen = reader.past(**selection)
        return list(redecide(reader, engine, pack, chosen, adapter=adapter, instead_of=instead_of))


def changed(results: Sequence[Counterfactual | Skipped], direction: Direction) -> set[str]:
    return {
        result.decision_id
        for result in results
        if isinstance(result, Counterfactual) and result.direction == direction
    }


def reasons(results: Sequence[Counterfactual | Skipped]) -> dict[str, str]:
    return {result.decision_id: result.reason for result in results if isinstance(result, Skipped)}


class TestRedecidingByAnotherPack:
    def test_a_pack_without_a_rule_loosens_the_decisions_that_only_the_rule_denied(
        self, shipped_pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        decisions = taken(
            shipped_pack,
            request("read", **TRUSTED),
            request("read", who="eve", **SUSPENDED),
            request("delete_audit_log", **SUSPENDED),  # another rule denies that too
            request("edit", who="eve", **SUSPENDED),
            request("delete_audit_log", **TRUSTED),
        )
        assert [decision.outcome for decision in decisions] == ["allow", "deny", "deny", "deny", "deny"]
        record(journal, *decisions)
        results = again(journal, without(tmp_path / "looser", "suspended-account"))
        assert changed(results, "loosened") == {decisions[1].id, decisions[3].id}
        assert changed(results, "tightened") == set()
        summary = summarise(results)
        assert (summary.compared, summary.same, summary.loosened, summary.skipped) == (5, 3, 2, {})
        assert [(group.value, group.compared, group.loosened) for group in summary.by_actor] == [
            ("user:eve", 2, 2),
            ("user:ivo", 3, 0),
        ]
        assert next((group.value, group.loosened) for group in summary.by_clause) == ("R1", 2)
        assert [(change.then, change.now, change.count) for change in summary.changes] == [
            ("deny", "allow", 2)
        ]
        version = f"{shipped_pack.info.name}@{shipped_pack.info.version}+{shipped_pack.info.sha256[:12]}"
        assert [(group.value, group.compared) for group in summary.by_judge] == [(f"{version}, its rules", 5)]

    def test_a_pack_with_one_more_rule_tightens_what_the_rule_denies(
        self, shipped_pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        (decision,) = taken(without(tmp_path / "looser", "suspended-account"), request("read", **SUSPENDED))
        record(journal, decision)
        (result,) = again(journal, shipped_pack)
        assert isinstance(result, Counterfactual)
        assert (result.then.outcome, result.now.outcome, result.direction) == ("allow", "deny", "tightened")
        assert "R1" in result.now.clauses
        assert "R1" not in result.then.clauses

    def test_the_same_pack_changes_nothing(self, shipped_pack: Pack, journal: Path) -> None:
        requests = [request("read", who=f"u{number}", **TRUSTED) for number in range(5)]
        engine = StubEngine()  # it answers each question differently
        decisions = taken(shipped_pack, *requests, request("read", **SUSPENDED), engine=engine)
        record(journal, *decisions)
        summary = summarise(again(journal, shipped_pack, engine=StubEngine()))
        assert (summary.compared, summary.same, summary.flipped.hits) == (6, 6, 0)
        assert summary.balance.p_value == 1.0

    def test_another_model_or_adapter_can_change_decisions(self, journal: Path, tmp_path: Path) -> None:
        pack = pack_files.load(write_pack(tmp_path / "small"))
        requests = [request("look", who=f"u{number}") for number in range(20)]
        record(journal, *taken(pack, *requests, engine=StubEngine()))
        assert summarise(again(journal, pack, engine=StubEngine(bias="allow"))).tightened == 0
        assert summarise(again(journal, pack, engine=StubEngine(bias="deny"))).loosened == 0
        tuned = summarise(again(journal, pack, engine=StubEngine(), adapter=TUNED))
        assert tuned.loosened > 0
        assert tuned.tightened > 0

    def test_rules_get_the_recorded_time_of_receipt(self, journal: Path, tmp_path: Path) -> None:
        folder = write_pack(
            tmp_path / "small",
            rules="- {id: late, when: now.getHours() >= 18, outcome: deny, clause: R1, because: Late.}\n",
            more="clock: daemon\n",
        )
        pack = pack_files.load(folder)
        decisions = taken(pack, request("look"), request("look", at=NOON + 8 * 3600))
        assert [decision.outcome for decision in decisions] == ["allow", "deny"]
        record(journal, *decisions)
        assert summarise(again(journal, pack)).same == 2

    def test_the_calibration_in_force_now_is_used(self, journal: Path, tmp_path: Path) -> None:
        folder = write_pack(tmp_path / "small")
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        unsure = "limits: {abstain: {outcome: deny, below: {low: 0.8}}, "
        (folder / "pack.yaml").write_text(text.replace("limits: {", unsure), encoding="utf-8")
        pack = pack_files.load(folder)
        (decision,) = taken(pack, request("look"))
        assert decision.outcome == "allow"
        fields = {"pack_sha256": pack.info.sha256, "judged": 60, "temperature": 5.0}
        other = Calibration(model_sha256=identity_of(StubEngine().model.sha256, TUNED), **fields)
        record(journal, decision, events.calibration_event(other, NOON))
        assert summarise(again(journal, pack)).same == 1
        ours = Calibration(model_sha256=StubEngine().model.sha256, **fields)
        record(journal, events.calibration_event(ours, NOON))
        (result,) = again(journal, pack)
        assert isinstance(result, Counterfactual)
        assert (result.direction, result.now.reason_code) == ("tightened", "low_confidence")

    def test_a_threshold_that_turns_a_tightening_into_a_doubt_is_loosened(
        self, journal: Path, tmp_path: Path
    ) -> None:
        folder = write_pack(tmp_path / "small")
        (decision,) = taken(pack_files.load(folder), request("look"), engine=StubEngine(bias="deny"))
        assert (decision.outcome, decision.reason_code) == ("deny", None)
        record(journal, decision)
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        (folder / "pack.yaml").write_text(text.replace("limits: {", "limits: {tighten_at: 0.97, "))
        (result,) = again(journal, pack_files.load(folder), engine=StubEngine(bias="deny"))
        assert isinstance(result, Counterfactual)
        assert (result.direction, result.now.outcome) == ("loosened", "allow")
        assert (result.now.reason_code, result.now.label) == ("doubt", "deny")

    def test_a_change_to_allow_is_loosened_in_any_order_of_outcomes(
        self, journal: Path, tmp_path: Path
    ) -> None:
        decisions = taken(pack_files.load(write_pack(tmp_path / "small")), request("look"), request("banned"))
        record(journal, *decisions)
        folder = write_pack(tmp_path / "turned", version="2", rules="[]\n")
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        turned = text.replace("label: allow", "label: x").replace("label: deny", "label: allow")
        (folder / "pack.yaml").write_text(turned.replace("label: x", "label: deny"), encoding="utf-8")
        results = again(journal, pack_files.load(folder), engine=StubEngine(bias="deny"))
        assert changed(results, "same") == {decisions[0].id}
        assert changed(results, "loosened") == {decisions[1].id}


class TestSkippedDecisions:
    def test_each_skipped_decision_is_counted_by_its_reason(self, journal: Path, tmp_path: Path) -> None:
        pack = pack_files.load(write_pack(tmp_path / "small"))
        other = pack_files.load(data_path("prompts") / "team-governance")
        whole, erased, masked, bare = taken(pack, *(request("look", who=f"u{n}") for n in range(4)))
        (elsewhere,) = taken(other, request("read", **TRUSTED))
        unknown = replace(whole, id="of-an-earlier-pack", outcome="require_attestation")
        record(
            journal,
            whole,
            erased,
            unknown,
            elsewhere,
            sent(records.DecisionReport(agent="a", outcome="buy"), record_id="r"),
        )
        record(journal, masked, masked=("/subject/id",))
        no_part = events.decision_event(bare)
        record(journal, replace(no_part, private=None), erasing(journal, 2))
        long = replace(whole, id="long", evaluation=request("look", who="x" * 3000).evaluation)
        record(journal, long)
        results = again(journal, pack)
        assert reasons(results) == {
            erased.id: "erased",
            unknown.id: "unknown_outcome",
            elsewhere.id: "another_pack",
            "r": "decision_report",
            masked.id: "masked",
            bare.id: "missing",
            "long": "too_large",
        }
        summary = summarise(results)
        assert (summary.compared, sum(summary.skipped.values())) == (1, 7)

    def test_a_decision_without_a_model_answer_is_skipped(self, journal: Path, tmp_path: Path) -> None:
        class Failing(StubEngine):
            def score(self, key: str, question: str, deadline_ns: int) -> Scored:
                if "u1" in question:
                    raise EngineError("no")
                return super().score(key, question, deadline_ns)

        pack, requests = (
            pack_files.load(write_pack(tmp_path / "small")),
            [request("look", who=f"u{n}") for n in range(3)],
        )
        (then,), (now, both) = (
            taken(pack, requests[1], engine=Failing()),
            taken(pack, requests[1], requests[2]),
        )
        assert then.tier == "fallback"
        record(journal, then, now, both)
        results = again(journal, pack, engine=Failing(bias="allow"))
        assert reasons(results) == {then.id: "no_answer_then", now.id: "no_answer_now"}
        assert changed(results, "same") == {both.id}

    def test_instead_of_compares_with_the_decisions_of_a_pack_of_another_name(
        self, shipped_pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "renamed"
        shutil.copytree(data_path("prompts") / "team-governance", folder)
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        (folder / "pack.yaml").write_text(
            text.replace("name: team-governance", "name: renamed"), encoding="utf-8"
        )
        (decision,) = taken(shipped_pack, request("read", **TRUSTED))
        record(journal, decision)
        renamed = pack_files.load(folder)
        assert reasons(again(journal, renamed)) == {decision.id: "another_pack"}
        assert changed(again(journal, renamed, instead_of="team-governance"), "same") == {decision.id}


def test_past_decisions_are_filtered_by_time_actor_and_action_and_a_limit_takes_the_newest(
    journal: Path, tmp_path: Path
) -> None:
    pack = pack_files.load(write_pack(tmp_path / "small"))
    requests = [request("look" if n % 2 else "edit", who="ab"[n % 3 == 0], at=NOON + n) for n in range(6)]
    ids = [decision.id for decision in taken(pack, *requests)]
    record(
        journal, *(replace(decision, id=id) for decision, id in zip(taken(pack, *requests), ids, strict=True))
    )
    with Reader(journal) as reader:
        assert reader.past() == ids
        assert reader.past(limit=2) == ids[-2:]
        assert reader.past(since="2026-07-01T12:00:02Z", until="2026-07-01T12:00:04Z") == ids[2:4]
        assert reader.past(actor="b") == reader.past(actor="user:b") == [ids[0], ids[3]]
        assert reader.past(actor="a", action="look") == [ids[1], ids[5]]


# ---------------------------------------------------------------- the summary

ANSWERS = st.builds(
    Answer,
    outcome=st.sampled_from(["allow", "deny"]),
    tier=st.just("model"),
    floor=st.just("allow"),
    clauses=st.lists(st.sampled_from(["R1", "R2", "R3"]), unique=True, max_size=3).map(tuple),
)
COMPARED = st.builds(
    Counterfactual,
    decision_id=st.uuids().map(str),
    at=st.just("2026-07-01T12:00:00.000000Z"),
    actor=st.sampled_from([None, "user:a", "user:b"]),
    judge=st.sampled_from(["a pack on a model", "another"]),
    then=ANSWERS,
    now=ANSWERS,
    direction=st.sampled_from(["same", "loosened", "tightened"]),
    score_ms=st.floats(0, 1e3),
    took_ms=st.floats(0, 1e3),
)
SKIPPED = st.builds(
    Skipped,
    decision_id=st.uuids().map(str),
    reason=st.sampled_from(["erased", "masked", "too_large"]),
    message=st.just(""),
)


@given(st.lists(COMPARED | SKIPPED, max_size=40))
def test_every_decision_counts_once_and_every_interval_holds_its_share(
    results: list[Counterfactual | Skipped],
) -> None:
    summary = summarise(iter(results))
    compared = [result for result in results if isinstance(result, Counterfactual)]
    assert summary.compared == len(compared) == summary.same + summary.loosened + summary.tightened
    assert summary.compared + sum(summary.skipped.values()) == len(results)
    assert sum(change.count for change in summary.changes) == summary.loosened + summary.tightened
    assert Counter({group.value: group.compared for group in summary.by_actor}) == Counter(
        result.actor for result in compared
    )
    for group in summary.by_clause:
        with_it = [
            result for result in compared if group.value in (*result.then.clauses, *result.now.clauses)
        ]
        if group.value is not None:
            assert group.compared == len(with_it)
            assert group.loosened == sum(result.direction == "loosened" for result in with_it)
    for share in (summary.flipped, summary.loosened_share):
        assert share.low - 1e-9 <= (share.share or 0.0) <= share.high + 1e-9
    balance = summary.balance
    assert balance.low - 1e-9 <= balance.difference <= balance.high + 1e-9
    assert (balance.p_value < 0.05) == (balance.low > 0 or balance.high < 0)
    assert summary == summarise(reversed(results)) or _costs_apart(summary, summarise(reversed(results)))


def _costs_apart(first: Summary, other: Summary) -> bool:
    """Equal, except for the rounding of sums in another order."""
    same = replace(first, score_ms=0.0, took_ms=0.0) == replace(other, score_ms=0.0, took_ms=0.0)
    return (
        same
        and first.score_ms == pytest.approx(other.score_ms)
        and first.took_ms == pytest.approx(other.took_ms)
    )


def test_the_summary_of_ten_loosened_among_twenty() -> None:
    allow, deny = (Answer(outcome=label, tier="model", floor="allow") for label in ("allow", "deny"))
    loosened = Counterfactual(
        decision_id="d",
        at="",
        actor=None,
        judge="",
        then=deny,
        now=allow,
        direction="loosened",
        score_ms=1.0,
        took_ms=2.0,
    )
    summary = summarise([loosened] * 10 + [replace(loosened, then=allow, direction="same")] * 10)
    assert summary.balance.difference == 0.5
    assert summary.balance.p_value == pytest.approx(2 / 2**10)
    assert summary.balance.low > 0
    assert summary.loosened_share.low == pytest.approx(0.2993, abs=1e-4)  # Wilson of 10 of 20
    assert (summary.score_ms, summary.took_ms) == (20.0, 40.0)


# ---------------------------------------------------------------- a run


class CountingEngine(StubEngine):
    """Counts the questions that it scores. The tests ask different questions, so none comes from a cache."""

    def __init__(self, *, interrupted_at: int | None = None) -> None:
        super().__init__()
        self.scored = 0
        self._interrupted_at = interrupted_at

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        if self.scored == self._interrupted_at:
            raise KeyboardInterrupt
        self.scored += 1
        return super().score(key, question, deadline_ns)


#: More than two batches.
MANY = 2 * records.MAX_REDECIDED + 5


class TestRun:
    @pytest.fixture
    def pack(self, tmp_path: Path) -> Pack:
        return pack_files.load(write_pack(tmp_path / "small"))

    @pytest.fixture
    def decision_ids(self, pack: Pack, journal: Path) -> list[str]:
        """Recorded decisions of an engine that answers allow; runs use an engine that answers otherwise."""
        decisions = taken(pack, *(request("look", who=f"u{number}") for number in range(MANY)))
        record(journal, *decisions)
        return [decision.id for decision in decisions]

    def keeping(self, journal: Path) -> Callable[[records.Counterfactuals], None]:
        def keep(counterfactuals: records.Counterfactuals) -> None:
            with Journal(journal, synchronous="OFF") as opened:
                dispatch.run_maintenance(
                    opened, records.Maintenance(task="counterfactual", counterfactuals=counterfactuals)
                )

        return keep

    def deciding(
        self, journal: Path, pack: Pack, engine: StubEngine, *, many: int | None = None, **options: Any
    ) -> list[Counterfactual | Skipped]:
        """The results of a run; `many` stops it after so many results."""
        adapter = options.pop("adapter", None)
        if adapter is not None:
            engine.adopt(adapter, Path())
        with Reader(journal) as reader:
            redecider = Redecider(reader, engine, pack, adapter=adapter)
            keep = options.pop("keep", self.keeping(journal))
            with closing(run(redecider, reader.past(), keep=keep, **options)) as results:
                return list(itertools.islice(results, many))

    def test_a_run_records_each_result(self, journal: Path, pack: Pack, decision_ids: list[str]) -> None:
        results = self.deciding(journal, pack, StubEngine())
        assert [result.decision_id for result in results] == decision_ids
        kept = rows(
            journal, "SELECT decision_id, served, decision, direction FROM counterfactuals ORDER BY seq"
        )
        assert kept == [
            (result.decision_id, result.then.outcome, result.now.outcome, result.direction)
            for result in results
            if isinstance(result, Counterfactual)
        ]
        assert len(rows(journal, "SELECT DISTINCT run FROM counterfactuals")) == 1
        assert verify(journal).ok

    @pytest.mark.parametrize("many", [0, 1, records.MAX_REDECIDED, MANY - 1, MANY])
    def test_a_resumed_run_decides_nothing_twice_and_ends_with_the_same_summary(
        self, journal: Path, pack: Pack, decision_ids: list[str], many: int
    ) -> None:
        whole = summarise(self.deciding(journal, pack, StubEngine(), keep=None))
        engine = CountingEngine()
        self.deciding(journal, pack, engine, many=many)
        assert engine.scored == many
        assert rows(journal, "SELECT count(*) FROM counterfactuals") == [(many,)]
        results = self.deciding(journal, pack, engine, resume=True)
        assert engine.scored == MANY
        assert replace(summarise(results), took_ms=0.0) == replace(whole, took_ms=0.0)
        kept = "SELECT count(*), count(DISTINCT decision_id), count(DISTINCT run) FROM counterfactuals"
        assert rows(journal, kept) == [(MANY, MANY, 1)]
        assert self.deciding(journal, pack, engine, resume=True) == results
        assert engine.scored == MANY

    def test_an_interrupted_run_records_the_results_that_it_has(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            self.deciding(journal, pack, CountingEngine(interrupted_at=7))
        assert rows(journal, "SELECT decision_id FROM counterfactuals ORDER BY seq") == [
            (id,) for id in decision_ids[:7]
        ]

    def test_without_resume_a_second_run_is_a_new_one(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        engine = CountingEngine()
        for _ in range(2):
            self.deciding(journal, pack, engine)
        assert engine.scored == 2 * MANY
        assert rows(journal, "SELECT count(DISTINCT run) FROM counterfactuals") == [(2,)]

    def test_resume_takes_only_a_run_of_the_same_pack_weights_and_temperature(
        self, journal: Path, pack: Pack, decision_ids: list[str], tmp_path: Path
    ) -> None:
        engine = CountingEngine()
        self.deciding(journal, pack, engine)
        other = pack_files.load(write_pack(tmp_path / "other", version="2"))
        self.deciding(journal, other, engine, resume=True)
        assert engine.scored == 2 * MANY
        self.deciding(journal, pack, engine, resume=True, adapter=TUNED)
        assert engine.scored == 3 * MANY
        identity = {"pack_sha256": pack.info.sha256, "model_sha256": engine.model.sha256}
        record(journal, events.calibration_event(Calibration(temperature=2.0, judged=60, **identity), NOON))
        self.deciding(journal, pack, engine, resume=True)
        assert engine.scored == 4 * MANY

    def test_a_resumed_run_skips_what_was_erased_meanwhile(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        self.deciding(journal, pack, StubEngine(), many=3)
        record(journal, erasing(journal, 1))
        results = self.deciding(journal, pack, StubEngine(), resume=True)
        assert reasons(results) == {decision_ids[0]: "erased"}

    def test_a_batch_that_could_not_be_recorded_is_recorded_with_the_next(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        keep, calls = self.keeping(journal), itertools.count()

        def failing_twice(counterfactuals: records.Counterfactuals) -> None:
            if next(calls) in (1, 2):
                raise AlreadyRunning("a daemon starts")
            keep(counterfactuals)

        self.deciding(journal, pack, StubEngine(), keep=failing_twice)
        assert rows(journal, "SELECT decision_id FROM counterfactuals ORDER BY seq") == [
            (id,) for id in decision_ids
        ]

    def test_a_run_ends_with_an_error_if_the_last_results_cannot_be_recorded(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        calls = itertools.count()

        def failing(_: records.Counterfactuals) -> None:
            if next(calls):
                raise JournalError("the disk is full")

        with pytest.raises(JournalError, match="the disk is full"):
            self.deciding(journal, pack, StubEngine(), keep=failing)

    def test_a_run_decides_nothing_if_recording_is_refused(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        def refusing(_: records.Counterfactuals) -> None:
            raise RequestError("unauthorized", "op: maintenance needs the role control")

        engine = CountingEngine()
        with pytest.raises(RequestError, match="role control"):
            self.deciding(journal, pack, engine, keep=refusing)
        assert engine.scored == 0

    def test_a_run_waits_while_the_daemon_is_busy(
        self, journal: Path, pack: Pack, decision_ids: list[str]
    ) -> None:
        engine, rested = CountingEngine(), []
        busy = itertools.chain([False, True, True], itertools.repeat(False))
        self.deciding(
            journal,
            pack,
            engine,
            busy=lambda: next(busy),
            waiting=lambda: rested.append(engine.scored),
            sleep=lambda seconds: rested.append(seconds),
        )
        assert rested == [1, REST_S] * 2
        assert engine.scored == MANY


def test_on_idle_time_lowers_the_priority_of_its_thread_only() -> None:
    def inside() -> int:
        with on_idle_time():
            return os.getpriority(os.PRIO_PROCESS, 0)

    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert aside(inside) == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def aside(call: Callable[[], Any]) -> Any:
    """The result of a call on a new thread: each thread has its own priority."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", "2026-06-24T12:00:00.000000Z"),
        ("1w", "2026-06-24T12:00:00.000000Z"),
        ("12h", "2026-07-01T00:00:00.000000Z"),
        ("30m", "2026-07-01T11:30:00.000000Z"),
        ("0s", "2026-07-01T12:00:00.000000Z"),
        ("2026-07-01", "2026-07-01"),
        ("7 days", "7 days"),  # the journal refuses it later
        (None, None),
    ],
)
def test_an_age_becomes_a_time_and_any_other_text_stays(text: str | None, expected: str | None) -> None:
    assert moment(text, "since", NOON) == expected


def test_an_age_that_reaches_back_before_1970_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^since: 999999999w ago was before 1970; give a shorter age"):
        moment("999999999w", "since", NOON)


# ---------------------------------------------------------------- the command, beside a daemon


class Gate(StubEngine):
    """An engine that answers allow, as soon as `open` is set."""

    def __init__(self) -> None:
        super().__init__(bias="allow")
        self.open = threading.Event()

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        assert self.open.wait(60)
        return super().score(key, question, deadline_ns)


def test_a_daemon_is_busy_while_it_has_a_request_in_flight(config: Config) -> None:
    gate = Gate()
    with journal_access.daemon_busy(config) as busy:
        assert not busy()
        gate.open.set()
        with serving(config, load_engine=lambda _: gate), ThreadPoolExecutor(1) as pool:
            assert not busy()
            gate.open.clear()
            reply = pool.submit(ask, config, "u1", deadline_ms=20_000)
            while not busy():
                assert not reply.done()
            gate.open.set()
            assert reply.result()
            assert not busy()
        assert not busy()


def ask(config: Config, who: str, deadline_ms: int = 20_000, **properties: Json) -> str:
    question = {
        "subject": {"type": "user", "id": who, "properties": TRUSTED | properties},
        "action": {"name": "approve"},
        "resource": {"type": "doc", "id": "guide"},
    }
    with Client(config.endpoint, timeout_ms=60_000) as client:
        decision_id: str = client.evaluate(question, deadline_ms=deadline_ms)["context"]["decision_id"]
        return decision_id


@pytest.fixture
def invoke(config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `whatif` on the stub engine, in the state directory of `config`."""
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    monkeypatch.setattr(loading, "load_engine", lambda _: StubEngine(bias="allow"))
    return lambda *arguments: aside(lambda: CliRunner().invoke(cli, ["whatif", *map(str, arguments)]))


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=lambda _: StubEngine(bias="allow")):
        yield config


class TestWhatIfCommand:
    def test_beside_a_daemon_it_lists_what_got_looser_and_the_daemon_records_it(
        self, daemon: Config, invoke: Callable[..., Result], tmp_path: Path
    ) -> None:
        plain, eve, bob = (
            ask(daemon, "ivo"),
            ask(daemon, "eve", suspended=True),
            ask(daemon, "bob", suspended=True),
        )
        without(tmp_path / "looser", "suspended-account")
        shown = invoke("--pack", tmp_path / "looser")
        assert shown.exit_code == 1, shown.output
        assert "3 compared: 1 the same, 2 loosened, 0 tightened" in shown.stdout
        assert max(map(len, shown.stdout.splitlines())) <= 80
        for text in ("user:eve", "user:bob", "R1", eve[-8:], bob[-8:]):
            assert text in shown.stdout
        assert plain[-8:] not in shown.stdout
        kept = rows(daemon.journal_path, "SELECT decision_id, direction FROM counterfactuals ORDER BY seq")
        assert kept == [(plain, "same"), (eve, "loosened"), (bob, "loosened")]
        trace_of = CliRunner().invoke(cli, ["log", "show", eve])
        assert "counterfactual" in trace_of.stdout
        assert "loosened" in trace_of.stdout
        assert verify(daemon.journal_path).ok

    def test_the_same_pack_changes_nothing_and_json_holds_the_summary(
        self, daemon: Config, invoke: Callable[..., Result]
    ) -> None:
        ids = [ask(daemon, f"u{number}") for number in range(3)]
        shown = invoke("--json", "--dry-run")
        assert shown.exit_code == 0, shown.output
        result = json.loads(shown.stdout)
        assert (result["summary"]["compared"], result["summary"]["same"], result["flips"]) == (3, 3, [])
        assert rows(daemon.journal_path, "SELECT * FROM counterfactuals") == []
        chosen = invoke("--json", "--dry-run", "--actor", "u1", "--action", "approve", "--since", "1h")
        assert json.loads(chosen.stdout)["summary"]["compared"] == 1
        assert json.loads(invoke("--json", "--dry-run", "-n", 2).stdout)["summary"]["compared"] == 2
        assert len(ids) == 3

    def test_without_a_daemon_it_writes_the_journal_itself_and_can_be_resumed(
        self, config: Config, invoke: Callable[..., Result]
    ) -> None:
        with serving(config, load_engine=lambda _: StubEngine(bias="allow")):
            for number in range(3):
                ask(config, f"u{number}")
        assert invoke("-n", 2).exit_code == 0
        assert invoke("--resume").exit_code == 0
        kept = "SELECT count(*), count(DISTINCT decision_id), count(DISTINCT run) FROM counterfactuals"
        assert rows(config.journal_path, kept) == [(3, 3, 1)]
        assert verify(config.journal_path).ok

    def test_a_journal_of_an_earlier_version_is_migrated(
        self, config: Config, invoke: Callable[..., Result], shipped_pack: Pack
    ) -> None:
        record(config.journal_path, *taken(shipped_pack, request("read", **TRUSTED)))
        with writing(config.journal_path) as db:
            db.execute("DROP TABLE counterfactuals")
            db.execute("DELETE FROM _sqlite_migrations WHERE name = '0008_counterfactuals'")
        assert invoke("--since", "2026-01-01").exit_code == 0
        assert rows(config.journal_path, "SELECT direction FROM counterfactuals") == [("same",)]
        assert verify(config.journal_path).ok

    def test_with_nothing_to_compare_the_exit_status_is_2(
        self, daemon: Config, invoke: Callable[..., Result]
    ) -> None:
        ask(daemon, "ivo")
        for selection in (("--until", "2020-01-01", "--since", "2019-01-01"), ("--pack", "trade-risk")):
            shown = invoke(*selection)
            assert shown.exit_code == 2, shown.output
            assert "0 compared" in shown.stdout
        assert "another pack decided" in shown.stdout
        assert invoke("--since", "yesterday").exit_code == 2

    def test_another_state_directory_than_the_daemons_is_an_error(
        self, daemon: Config, invoke: Callable[..., Result], shipped_pack: Pack, tmp_path: Path
    ) -> None:
        record(tmp_path / "policy_decisions.db", *taken(shipped_pack, request("read", **TRUSTED)))
        shown = invoke("--state-dir", tmp_path, "--since", "2026-01-01")
        assert shown.exit_code == 2
        assert "keeps another journal; name its state_dir" in shown.stderr


@pytest.mark.model
def test_the_real_model_repeats_its_decisions_and_decides_what_a_removed_rule_decided(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    pack = write_pack(tmp_path / "small")
    actions = ("look", "burn", "banned")
    with (
        serving(replace_config(config, pack=str(pack))),
        Client(config.endpoint, timeout_ms=120_000) as client,
    ):
        for action in actions:
            question = {"actor_id": "user:ivo", "action_type": action, "resource": "doc:d"}
            client.evaluate(question, deadline_ms=100_000)

    def whatif(folder: Path) -> tuple[int, dict[str, Any]]:
        shown = aside(lambda: CliRunner().invoke(cli, ["whatif", "--json", "--pack", str(folder)]))
        return shown.exit_code, json.loads(shown.stdout)

    status, same = whatif(pack)
    assert (status, same["summary"]["same"], same["summary"]["skipped"]) == (0, 3, {})
    assert same["summary"]["score_ms"] > 0
    status, other = whatif(write_pack(tmp_path / "looser", rules="[]\n"))
    assert other["summary"]["compared"] == 3
    assert status == (1 if other["summary"]["loosened"] else 0)
    kept = rows(config.journal_path, "SELECT tier FROM counterfactuals WHERE served = 'deny' ORDER BY seq")
    assert kept[-1] == ("model",)
