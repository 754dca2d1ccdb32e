"""What past requests would be answered by another pack: which are compared, how, and what it comes to."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from journals import NOON, erasing, record, sent
from msgspec.structs import replace
from small_packs import write

from thor_policy import packs, trace
from thor_policy.calibration import Calibration
from thor_policy.config import data_path
from thor_policy.core import (
    Action,
    Adapter,
    Caller,
    Decision,
    Entity,
    Evaluation,
    Json,
    Request,
    Scored,
    identity_of,
)
from thor_policy.errors import EngineError
from thor_policy.journal import events
from thor_policy.journal.reader import Reader
from thor_policy.policy import Policy
from thor_policy.testing import StubEngine
from thor_policy.whatif import Answer, Counterfactual, Direction, Skipped, Summary, redecide, summarise

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


def taken(
    pack: packs.Pack, *requests: Request, engine: StubEngine | None = None, **options: Any
) -> list[Decision]:
    """The decisions of a pack, as a daemon would have recorded them."""
    policy = Policy(engine or StubEngine(bias="allow"), pack, **options)
    return [policy.decide(one) for one in requests]


def without(folder: Path, rule: str) -> packs.Pack:
    """A copy of the shipped pack without one of its rules."""
    shutil.copytree(data_path("prompts") / "team-governance", folder)
    rules = yaml.safe_load((folder / "rules.yaml").read_text(encoding="utf-8"))
    left = [one for one in rules if one["id"] != rule]
    assert len(left) == len(rules) - 1
    (folder / "rules.yaml").write_text(yaml.safe_dump(left), encoding="utf-8")
    return packs.load(folder)


def again(
    journal: Path,
    pack: packs.Pack,
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


def changed(found: Sequence[Counterfactual | Skipped], direction: Direction) -> set[str]:
    return {
        one.decision_id for one in found if isinstance(one, Counterfactual) and one.direction == direction
    }


def reasons(found: Sequence[Counterfactual | Skipped]) -> dict[str, str]:
    return {one.decision_id: one.reason for one in found if isinstance(one, Skipped)}


class TestWhatAnotherPackWouldHaveAnswered:
    def test_a_pack_without_a_rule_loosens_those_that_the_rule_alone_denied(
        self, shipped_pack: packs.Pack, journal: Path, tmp_path: Path
    ) -> None:
        decisions = taken(
            shipped_pack,
            request("read", **TRUSTED),
            request("read", who="eve", **SUSPENDED),
            request("delete_audit_log", **SUSPENDED),  # another rule denies that too
            request("edit", who="eve", **SUSPENDED),
            request("delete_audit_log", **TRUSTED),
        )
        assert [one.outcome for one in decisions] == ["allow", "deny", "deny", "deny", "deny"]
        record(journal, *decisions)
        found = again(journal, without(tmp_path / "looser", "suspended-account"))
        assert changed(found, "loosened") == {decisions[1].id, decisions[3].id}
        assert changed(found, "tightened") == set()
        told = summarise(found)
        assert (told.compared, told.same, told.loosened, told.skipped) == (5, 3, 2, {})
        assert [(one.value, one.compared, one.loosened) for one in told.by_actor] == [
            ("user:eve", 2, 2),
            ("user:ivo", 3, 0),
        ]
        assert next((one.value, one.loosened) for one in told.by_clause) == ("R1", 2)
        assert [(one.then, one.now, one.count) for one in told.changes] == [("deny", "allow", 2)]

    def test_the_other_way_round_they_are_tightened(
        self, shipped_pack: packs.Pack, journal: Path, tmp_path: Path
    ) -> None:
        (decision,) = taken(without(tmp_path / "looser", "suspended-account"), request("read", **SUSPENDED))
        record(journal, decision)
        (found,) = again(journal, shipped_pack)
        assert isinstance(found, Counterfactual)
        assert (found.then.outcome, found.now.outcome, found.direction) == ("allow", "deny", "tightened")
        assert "R1" in found.now.clauses
        assert "R1" not in found.then.clauses

    def test_the_same_pack_changes_nothing(self, shipped_pack: packs.Pack, journal: Path) -> None:
        asked = [request("read", who=f"u{number}", **TRUSTED) for number in range(5)]
        engine = StubEngine()  # which answers each question otherwise
        decisions = taken(shipped_pack, *asked, request("read", **SUSPENDED), engine=engine)
        record(journal, *decisions)
        told = summarise(again(journal, shipped_pack, engine=StubEngine()))
        assert (told.compared, told.same, told.flipped.hits) == (6, 6, 0)
        assert told.balance.p_value == 1.0

    def test_another_model_or_adapter_may(self, journal: Path, tmp_path: Path) -> None:
        pack = packs.load(write(tmp_path / "small"))
        asked = [request("look", who=f"u{number}") for number in range(20)]
        record(journal, *taken(pack, *asked, engine=StubEngine()))
        assert summarise(again(journal, pack, engine=StubEngine(bias="allow"))).tightened == 0
        assert summarise(again(journal, pack, engine=StubEngine(bias="deny"))).loosened == 0
        tuned = summarise(again(journal, pack, engine=StubEngine(), adapter=TUNED))
        assert tuned.loosened > 0
        assert tuned.tightened > 0

    def test_the_time_is_that_of_the_record(self, journal: Path, tmp_path: Path) -> None:
        folder = write(
            tmp_path / "small",
            rules="- {id: late, when: now.getHours() >= 18, outcome: deny, clause: R1, because: Late.}\n",
        )
        pack = packs.load(folder)
        decisions = taken(pack, request("look"), request("look", at=NOON + 8 * 3600))
        assert [one.outcome for one in decisions] == ["allow", "deny"]
        record(journal, *decisions)
        assert summarise(again(journal, pack)).same == 2

    def test_what_is_calibrated_today_counts_today(self, journal: Path, tmp_path: Path) -> None:
        folder = write(tmp_path / "small")
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        unsure = "limits: {abstain: {outcome: deny, below: {low: 0.8}}, "
        (folder / "pack.yaml").write_text(text.replace("limits: {", unsure), encoding="utf-8")
        pack = packs.load(folder)
        (decision,) = taken(pack, request("look"))
        assert decision.outcome == "allow"
        told = {"pack_sha256": pack.info.sha256, "judged": 60, "temperature": 5.0}
        other = Calibration(model_sha256=identity_of(StubEngine().model.sha256, TUNED), **told)
        record(journal, decision, events.calibrated(other, NOON))
        assert summarise(again(journal, pack)).same == 1
        ours = Calibration(model_sha256=StubEngine().model.sha256, **told)
        record(journal, events.calibrated(ours, NOON))
        (found,) = again(journal, pack)
        assert isinstance(found, Counterfactual)
        assert (found.direction, found.now.reason_code) == ("tightened", "low_confidence")

    def test_whatever_becomes_the_loosest_is_loosened_however_a_pack_orders_its_outcomes(
        self, journal: Path, tmp_path: Path
    ) -> None:
        decisions = taken(packs.load(write(tmp_path / "small")), request("look"), request("banned"))
        record(journal, *decisions)
        folder = write(tmp_path / "turned", version="2", rules="[]\n")
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        turned = text.replace("label: allow", "label: x").replace("label: deny", "label: allow")
        (folder / "pack.yaml").write_text(turned.replace("label: x", "label: deny"), encoding="utf-8")
        found = again(journal, packs.load(folder), engine=StubEngine(bias="deny"))
        assert changed(found, "same") == {decisions[0].id}
        assert changed(found, "loosened") == {decisions[1].id}


class TestWhatIsNotCompared:
    def test_is_counted_by_its_reason(self, journal: Path, tmp_path: Path) -> None:
        pack = packs.load(write(tmp_path / "small"))
        other = packs.load(data_path("prompts") / "team-governance")
        whole, erased, masked, bare = taken(pack, *(request("look", who=f"u{n}") for n in range(4)))
        (elsewhere,) = taken(other, request("read", **TRUSTED))
        unknown = replace(whole, id="of-an-earlier-pack", outcome="require_attestation")
        record(
            journal,
            whole,
            erased,
            unknown,
            elsewhere,
            sent(trace.Reported(agent="a", outcome="buy"), record_id="r"),
        )
        record(journal, masked, masked=("/subject/id",))
        no_part = events.decided(bare)
        record(journal, replace(no_part, private=None), erasing(journal, 2))
        long = replace(whole, id="long", evaluation=request("x" * 3000).evaluation)
        record(journal, long)
        found = again(journal, pack)
        assert reasons(found) == {
            erased.id: "erased",
            unknown.id: "unknown_outcome",
            elsewhere.id: "another_pack",
            "r": "reported",
            masked.id: "masked",
            bare.id: "missing",
            "long": "too_large",
        }
        told = summarise(found)
        assert (told.compared, sum(told.skipped.values())) == (1, 7)

    def test_a_model_that_gave_no_answer_is_no_change_of_the_policy(
        self, journal: Path, tmp_path: Path
    ) -> None:
        class Failing(StubEngine):
            def score(self, key: str, question: str, deadline_ns: int) -> Scored:
                if "u1" in question:
                    raise EngineError("no")
                return super().score(key, question, deadline_ns)

        pack, asked = packs.load(write(tmp_path / "small")), [request("look", who=f"u{n}") for n in range(3)]
        (then,), (now, both) = taken(pack, asked[1], engine=Failing()), taken(pack, asked[1], asked[2])
        assert then.tier == "fallback"
        record(journal, then, now, both)
        found = again(journal, pack, engine=Failing(bias="allow"))
        assert reasons(found) == {then.id: "no_answer_then", now.id: "no_answer_now"}
        assert changed(found, "same") == {both.id}

    def test_a_pack_under_another_name_is_compared_with_the_one_that_it_replaces(
        self, shipped_pack: packs.Pack, journal: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "renamed"
        shutil.copytree(data_path("prompts") / "team-governance", folder)
        text = (folder / "pack.yaml").read_text(encoding="utf-8")
        (folder / "pack.yaml").write_text(
            text.replace("name: team-governance", "name: renamed"), encoding="utf-8"
        )
        (decision,) = taken(shipped_pack, request("read", **TRUSTED))
        record(journal, decision)
        renamed = packs.load(folder)
        assert reasons(again(journal, renamed)) == {decision.id: "another_pack"}
        assert changed(again(journal, renamed, instead_of="team-governance"), "same") == {decision.id}


def test_past_decisions_are_chosen_by_time_actor_and_action_the_newest_first_to_stay(
    journal: Path, tmp_path: Path
) -> None:
    pack = packs.load(write(tmp_path / "small"))
    asked = [request("look" if n % 2 else "edit", who="ab"[n % 3 == 0], at=NOON + n) for n in range(6)]
    ids = [one.id for one in taken(pack, *asked)]
    record(journal, *(replace(one, id=id) for one, id in zip(taken(pack, *asked), ids, strict=True)))
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
    told=st.just(""),
)


@given(st.lists(COMPARED | SKIPPED, max_size=40))
def test_every_decision_counts_once_and_every_interval_holds_its_share(
    results: list[Counterfactual | Skipped],
) -> None:
    told = summarise(iter(results))
    compared = [one for one in results if isinstance(one, Counterfactual)]
    assert told.compared == len(compared) == told.same + told.loosened + told.tightened
    assert told.compared + sum(told.skipped.values()) == len(results)
    assert sum(one.count for one in told.changes) == told.loosened + told.tightened
    assert Counter({one.value: one.compared for one in told.by_actor}) == Counter(
        one.actor for one in compared
    )
    for group in told.by_clause:
        with_it = [one for one in compared if group.value in (*one.then.clauses, *one.now.clauses)]
        if group.value is not None:
            assert group.compared == len(with_it)
            assert group.loosened == sum(one.direction == "loosened" for one in with_it)
    for share in (told.flipped, told.loosened_share):
        assert share.low - 1e-9 <= (share.share or 0.0) <= share.high + 1e-9
    balance = told.balance
    assert balance.low - 1e-9 <= balance.difference <= balance.high + 1e-9
    assert (balance.p_value < 0.05) == (balance.low > 0 or balance.high < 0)
    assert told == summarise(reversed(results)) or _costs_apart(told, summarise(reversed(results)))


def _costs_apart(one: Summary, other: Summary) -> bool:
    """Equal but for the order in which floats were added."""
    same = replace(one, score_ms=0.0, took_ms=0.0) == replace(other, score_ms=0.0, took_ms=0.0)
    return (
        same and one.score_ms == pytest.approx(other.score_ms) and one.took_ms == pytest.approx(other.took_ms)
    )


def test_what_is_much_looser_is_told_so() -> None:
    allow, deny = (Answer(outcome=label, tier="model", floor="allow") for label in ("allow", "deny"))
    one = Counterfactual(
        decision_id="d",
        at="",
        actor=None,
        then=deny,
        now=allow,
        direction="loosened",
        score_ms=1.0,
        took_ms=2.0,
    )
    told = summarise([one] * 10 + [replace(one, then=allow, direction="same")] * 10)
    assert told.balance.difference == 0.5
    assert told.balance.p_value == pytest.approx(2 / 2**10)
    assert told.balance.low > 0
    assert told.loosened_share.low == pytest.approx(0.2993, abs=1e-4)  # Wilson of 10 of 20
    assert (told.score_ms, told.took_ms) == (20.0, 40.0)
