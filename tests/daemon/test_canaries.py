"""Canaries in a running daemon: who decides for whom, the floor, the roll-back, and restarts.

The tests send their requests over the socket, as a relay does for many callers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from tests.build import rows, write_adapter_header, write_pack, write_rules_only_pack
from thor_policy.catalog import ModelFile
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.canary import Canary, Terms
from thor_policy.core.decisions import ModelInfo, Scored
from thor_policy.core.engine import Engine
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.records import CanaryChange, Candidate, Control
from thor_policy.core.requests import Caller, Json
from thor_policy.core.status import CanaryStatus
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.learning.replay import Replayer
from thor_policy.policy import pack_files
from thor_policy.testing import StubEngine

PATIENCE_S = 30
SHARE = 0.4
CALLERS = 120
STRICT = (
    "- {id: banned, when: 'action.name == \"banned\"', outcome: deny, clause: R1, because: It is banned.}\n"
)
LOOSE = STRICT.replace("outcome: deny", "outcome: require_mfa").replace("id: banned", "id: watched")
STRICTER = STRICT + (
    "- {id: careful, when: 'action.name == \"peek\"', outcome: require_mfa, clause: R1, because: Careful.}\n"
)
OTHER_OBLIGATION = (
    "outcomes: [{label: allow, obligations: [{id: m, type: m}]}, {label: require_mfa}, {label: deny}]"
)
SERVE = """
import sys
from pathlib import Path
from thor_policy.config import Config
from thor_policy.daemon.service import open_service
from thor_policy.testing import load_stub_engine
state, pack = sys.argv[1:]
config = Config(state_dir=Path(state), endpoint=f"ipc://{state}/policy.sock", pack=pack, cache_size=0)
with open_service(config, load_engine=load_stub_engine) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""


def question(action: str = "look", number: int = 0) -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": f"s{number}"},
        "action": {"name": action},
        "resource": {"type": "doc", "id": "d"},
    }


def name_of(number: int) -> str:
    return f"token:caller-{number}"


def ask(client: Client, number: int, action: str = "look", **fields: Any) -> dict[str, Json]:
    """The context of the reply to a question of this caller."""
    behalf = {"name": name_of(number), "roles": ["ask"]}
    reply = client.call("evaluate", {"request": question(action), "as": behalf, **fields})
    context: dict[str, Json] = reply["context"]
    return context | {"allowed": reply["decision"]}


def start(
    client: Client, *candidates: Candidate, share: float = SHARE, choose: bool = False, **terms: Any
) -> str:
    change = CanaryChange(
        change="start", candidates=candidates, share=share, choose=choose, terms=Terms(**terms)
    )
    canary_id: str = client.control(Control(task="canary", canary=change))["canary"]["id"]
    return canary_id


def change(client: Client, what: str, **fields: Any) -> dict[str, Json]:
    plain = {"change": what, **fields}
    return client.control(Control(task="canary", canary=msgspec.convert(plain, CanaryChange)))


def refused(client: Client, *candidates: Candidate, **fields: Any) -> RequestError:
    """The error that a start gets; nothing may have changed."""
    before = client.status().packs
    with pytest.raises(RequestError) as caught:
        start(client, *candidates, **fields)
    assert client.status().packs == before
    return caught.value


def newest(client: Client) -> CanaryStatus:
    status = client.status().canary
    assert status is not None
    return status


def wait_for(client: Client, holds: Callable[[CanaryStatus], bool]) -> CanaryStatus:
    """Poll the status until the canary has this state."""
    patient_until = time.monotonic() + PATIENCE_S
    while not holds(status := newest(client)):
        assert time.monotonic() < patient_until, status
    return status


def arms(path: Path) -> dict[str, set[str]]:
    """The arms of each caller's decisions, as they were recorded."""
    recorded: dict[str, set[str]] = {}
    for (body,) in rows(path, "SELECT body FROM events WHERE kind = 'decision' ORDER BY seq"):
        decision = json.loads(body)
        if trial := decision.get("trial"):
            recorded.setdefault(decision["caller"]["on_behalf_of"], set()).add(trial["arm"])
    return recorded


def spec_of(path: Path) -> Canary:
    ((spec, share),) = rows(
        path,
        "SELECT spec, (SELECT share FROM canaries WHERE share IS NOT NULL ORDER BY seq DESC LIMIT 1) "
        "FROM canaries WHERE state = 'started' ORDER BY seq DESC LIMIT 1",
    )
    return msgspec.structs.replace(msgspec.json.decode(spec, type=Canary), share=share)


def expected_arms(canary: Canary, callers: Sequence[int]) -> dict[str, set[str]]:
    return {
        name_of(number): {
            canary.member(Caller(transport="ipc", uid=0, gid=0, on_behalf_of=name_of(number))).arm
        }
        for number in callers
    }


@pytest.fixture
def active(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "active", rules=STRICT)


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "candidate", version="2", system="Judge.", rules=STRICTER)


@pytest.fixture
def looser(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "looser", version="3", system="Judge freely.", rules=LOOSE)


class Frail(StubEngine):
    """A stub that gives no answer under a prefix with `Fail`."""

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        if "Fail" in self._prefixes[key].turns[0].text:
            raise EngineError("the decode failed")
        return super().score(key, question, deadline_ns)


@pytest.fixture
def served(config: Config, active: Path, tmp_path: Path) -> Iterator[Config]:
    small = replace(config, pack=str(active), models_dir=tmp_path / "models", resident_packs=3)
    with serving(small, load_engine=load):
        yield small


@pytest.fixture
def client(served: Config) -> Iterator[Client]:
    with Client(served.endpoint, timeout_ms=PATIENCE_S * 1000) as opened:
        yield opened


class StubOf(StubEngine):
    """A stub of another model, that answers this label."""

    def __init__(self, model: ModelInfo, bias: str) -> None:
        super().__init__(bias=bias)
        self.identity = model


def load(config: Config) -> Engine:
    """A stub; of a model's file that a test wrote, one with that file's digest."""
    engine = StubEngine() if not config.model.endswith(".gguf") else StubEngine(bias="deny")
    if config.model.endswith(".gguf"):
        file = Path(config.model)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        engine.identity = msgspec.structs.replace(engine.identity, name=file.name, sha256=digest)
    return engine


class TestWhoDecides:
    def test_the_candidate_decides_for_its_share_and_the_active_pack_for_the_others(
        self, client: Client, served: Config, candidate: Path
    ) -> None:
        canary_id = start(client, Candidate(pack=str(candidate)))
        versions: dict[int, set[str]] = {}
        for number in [*range(CALLERS), *range(CALLERS)]:
            context = ask(client, number)
            versions.setdefault(number, set()).add(context["pack"]["version"])
            assert context.get("canary") == (canary_id if context["pack"]["version"] == "2" else None)
        assert all(len(of_caller) == 1 for of_caller in versions.values()), "each caller has one arm"
        members = sum(of_caller == {"2"} for of_caller in versions.values())
        assert abs(members - SHARE * CALLERS) < 6 * (CALLERS * SHARE * (1 - SHARE)) ** 0.5
        assert arms(served.journal_path) == expected_arms(spec_of(served.journal_path), range(CALLERS))
        assert {pack.version: pack.role for pack in client.status().packs} == {"1": "active", "2": "canary"}
        assert verify(served.journal_path).ok

    def test_a_larger_share_keeps_its_members(self, client: Client, served: Config, candidate: Path) -> None:
        start(client, Candidate(pack=str(candidate)), share=0.2)
        before = [ask(client, number)["pack"]["version"] for number in range(60)]
        change(client, "share", share=0.6)
        after = [ask(client, number)["pack"]["version"] for number in range(60)]
        assert before.count("2") < after.count("2")
        assert all(later == "2" for earlier, later in zip(before, after, strict=True) if earlier == "2")
        assert newest(client).share == 0.6
        assert spec_of(served.journal_path).share == 0.6

    def test_a_request_that_names_a_pack_and_a_test_belong_to_no_arm(
        self, client: Client, served: Config, candidate: Path
    ) -> None:
        start(client, Candidate(pack=str(candidate)), share=1.0)
        assert client.call("evaluate", {"request": question()})["context"]["pack"]["version"] == "2"
        named = client.call("evaluate", {"request": question(), "pack": "small@1"})
        of_test = client.call("evaluate", {"request": question(), "annotations": {"scenario_id": "s"}})
        for reply in (named, of_test):
            assert reply["context"]["pack"]["version"] == "1"
        assert rows(served.journal_path, "SELECT canary_arm FROM decisions ORDER BY seq") == [
            ("canary",),
            (None,),
            (None,),
        ]

    def test_a_batch_of_a_caller_has_the_arm_of_the_caller(self, client: Client, candidate: Path) -> None:
        start(client, Candidate(pack=str(candidate)), share=1.0)
        items = [question("look", number) for number in range(3)]
        reply = client.call("evaluate", {"evaluations": items})
        assert {item["context"]["pack"]["version"] for item in reply["evaluations"]} == {"2"}

    def test_a_score_of_one_arm_never_answers_the_other(self, served: Config, candidate: Path) -> None:
        """The cache's key has the digests of pack and weights."""
        cached = replace(
            served, cache_size=100, endpoint=f"{served.endpoint}2", state_dir=served.state_dir / "2"
        )
        served.state_dir.joinpath("2").mkdir()
        with serving(cached, load_engine=load), Client(cached.endpoint) as client:
            start(client, Candidate(pack=str(candidate)))
            answers = Counter(
                (
                    context["pack"]["version"],
                    context["tier"],
                    context["outcome"],
                    str(context["probabilities"]),
                )
                for context in (ask(client, number, "other") for number in range(80))
            )
        by_pack = {version: {answer[2:] for answer in answers if answer[0] == version} for version in "12"}
        assert [len(values) for values in by_pack.values()] == [1, 1]
        assert {answer[:2] for answer in answers} == {(v, tier) for v in "12" for tier in ("model", "cache")}


class TestFloor:
    def test_no_answer_of_a_looser_candidate_is_below_the_active_floor_and_it_is_rolled_back(
        self, client: Client, served: Config, looser: Path
    ) -> None:
        start(client, Candidate(pack=str(looser)), share=0.5)
        outcomes = Counter[tuple[str, str]]()
        for number in range(2 * CALLERS):
            context = ask(client, number, "banned")
            outcomes[context["outcome"], context["pack"]["version"]] += 1
            assert context["outcome"] == context["floor"] == "deny"
            assert not context["allowed"]
        status = wait_for(client, lambda canary: canary.state == "rolled_back")
        assert outcomes["deny", "3"] >= 50
        assert status.breach is not None
        assert (status.breach.condition, status.breach.value) == ("looser", 1.0)
        assert status.breach.low > 0
        assert ask(client, 0, "banned")["pack"]["version"] == "1"
        assert {pack.role for pack in client.status().packs} == {"active"}, "the candidate is unloaded"
        ((cause, condition, low, sample),) = rows(
            served.journal_path, "SELECT cause, condition, low, sample FROM canaries WHERE state = 'ended'"
        )
        assert (cause, condition, low, sample) == (
            "rolled_back",
            "looser",
            status.breach.low,
            status.breach.sample,
        )
        assert not rows(served.journal_path, "SELECT 1 FROM decisions WHERE decision != 'deny'")
        assert verify(served.journal_path).ok

    def test_what_the_active_pack_asks_for_is_the_reason(self, client: Client, looser: Path) -> None:
        start(client, Candidate(pack=str(looser)), share=1.0)
        context = ask(client, 1, "banned", explain="inline")
        assert (context["reason_code"], context["reasoning"]) == ("active_floor", "It is banned.")
        assert context["rules"] == ["banned", "watched"]

    def test_a_candidate_may_be_stricter(self, client: Client, served: Config, candidate: Path) -> None:
        start(client, Candidate(pack=str(candidate)), share=1.0)
        context = ask(client, 1, "peek")
        assert context["floor"] == "require_mfa"
        assert "reason_code" not in context or context["reason_code"] != "active_floor"
        assert rows(served.journal_path, "SELECT canary_note FROM decisions") == [(None,)]

    def test_a_pack_of_rules_alone_on_trial_against_one_with_a_model_is_looser(
        self, client: Client, tmp_path: Path
    ) -> None:
        rules = "- {id: all, when: 'true', outcome: allow, because: Fine.}\n"
        folder = write_rules_only_pack(tmp_path / "alone", rules=rules)
        start(client, Candidate(pack=str(folder)), share=1.0)
        for number in range(60):
            ask(client, number, "look")
        status = wait_for(client, lambda canary: canary.state != "running")
        assert status.breach is not None
        assert status.breach.condition == "looser"

    def test_a_model_makes_an_answer_of_the_candidate_only_stricter(
        self, config: Config, active: Path, looser: Path
    ) -> None:
        """The stub answers `allow` wherever it may; the floor of the active pack stands."""
        small = replace(config, pack=str(active))
        with serving(small, load_engine=lambda _: StubEngine(bias="allow")), Client(small.endpoint) as client:
            start(client, Candidate(pack=str(looser)), share=1.0)
            outcomes = {ask(client, number, "banned")["outcome"] for number in range(20)}
        assert outcomes == {"deny"}


class TestSources:
    PEOPLE = (
        "sources: {people: {of: subject, required: true, attributes: {role: {type: string}}, "
        "table: {path: people.yaml}}}\n"
    )
    RULES = STRICT + (
        '- {id: lead, when: \'sources.people.?role.orValue("") != "lead"\', outcome: require_mfa, '
        "clause: R1, because: Leads alone.}\n"
    )

    @pytest.fixture
    def informed(self, tmp_path: Path) -> Path:
        folder = write_pack(
            tmp_path / "informed", version="2", system="Judge.", rules=STRICT, more=self.PEOPLE
        )
        (folder / "people.yaml").write_text("- {id: s0, role: dev}\n")
        text = (folder / "examples.yaml").read_text()
        stated = text.replace("   outcome:", "   sources: {people: {role: lead}}, outcome:")
        (folder / "examples.yaml").write_text(stated)
        (folder / "rules.yaml").write_text(self.RULES)
        return folder

    def test_the_sources_of_both_packs_are_consulted_for_the_candidate(
        self, client: Client, served: Config, informed: Path
    ) -> None:
        start(client, Candidate(pack=str(informed)))
        consulted = Counter[tuple[str, int]]()
        for number in range(40):
            context = ask(client, number)
            with Reader(served.journal_path) as reader:
                body = reader.trace(context["decision_id"])["event"]["body"]
            consulted[context["pack"]["version"], len(body.get("consulted", ()))] += 1
            if context["pack"]["version"] == "2":
                assert context["rules"] == ["lead"]
        assert consulted.keys() == {("1", 0), ("2", 1)}

    def test_a_required_source_of_the_active_pack_bounds_the_candidate(
        self, served: Config, informed: Path, candidate: Path
    ) -> None:
        """What the active pack would deny for want of an answer, the candidate does not allow."""
        (informed / "people.yaml").write_text("- {id: nobody, role: lead}\n")
        turned = replace(
            served, pack=str(informed), state_dir=served.state_dir / "2", endpoint=f"{served.endpoint}2"
        )
        turned.state_dir.mkdir()
        with serving(turned, load_engine=load), Client(turned.endpoint) as client:
            (informed / "people.yaml").unlink()
            alone = ask(client, 0)
            start(client, Candidate(pack=str(candidate)), share=1.0)
            on_trial = ask(client, 0)
        assert (alone["pack"]["version"], alone["outcome"]) == ("2", "deny")
        assert (on_trial["outcome"], on_trial["reason_code"]) == ("deny", "active_floor")
        assert on_trial["floor"] == "deny"


class TestReplay:
    def test_decisions_of_both_arms_are_taken_again_alike(
        self, client: Client, served: Config, looser: Path, active: Path
    ) -> None:
        start(client, Candidate(pack=str(looser)))
        ids: dict[str, list[str]] = {"1": [], "3": []}
        for number in range(40):
            context = ask(client, number, ("banned", "look", "other")[number % 3])
            ids[context["pack"]["version"]].append(context["decision_id"])
        with Reader(served.journal_path) as reader:
            for version, folder in (("1", active), ("3", looser)):
                replayer = Replayer(reader, StubEngine(), pack_files.load(folder))
                replays = [replayer.replay(decision_id) for decision_id in ids[version]]
                assert {replayed.verdict for replayed in replays} == {"identical"}, replays

    def test_a_replay_takes_the_floor_of_the_active_pack_from_the_record(
        self, client: Client, served: Config, looser: Path
    ) -> None:
        start(client, Candidate(pack=str(looser)), share=1.0)
        decision_id = ask(client, 1, "banned")["decision_id"]
        with Reader(served.journal_path) as reader:
            replayer = Replayer(reader, StubEngine(), pack_files.load(looser))
            assert replayer.replay(decision_id).verdict == "identical"
            body = reader.trace(decision_id)["event"]["body"]
        assert body["floor"]["outcome"] == body["trial"]["bound"]["outcome"] == "deny"
        assert body["trial"]["own"] == "require_mfa"


class TestFailure:
    def test_the_active_pack_decides_where_the_candidate_gives_no_answer(
        self, config: Config, active: Path, tmp_path: Path
    ) -> None:
        frail = write_pack(tmp_path / "frail", version="4", system="Judge.", rules=STRICT)
        small = replace(config, pack=str(active))

        class FailsLater(StubEngine):
            fails = False

            def score(self, key: str, question: str, deadline_ns: int) -> Scored:
                if self.fails and "Judge" in self._prefixes[key].turns[0].text:
                    raise EngineError("the decode failed")
                return super().score(key, question, deadline_ns)

        engine = FailsLater()
        with serving(small, load_engine=lambda _: engine), Client(small.endpoint) as client:
            alone = ask(client, 0, "look")
            start(client, Candidate(pack=str(frail)), share=0.5)
            engine.fails = True
            contexts = [ask(client, number, "look") for number in range(2 * CALLERS)]
            status = wait_for(client, lambda canary: canary.state == "rolled_back")
            counters = client.status().engine.counters
        failed = [context for context in contexts if context.get("reason_code") == "canary_failed"]
        assert len(failed) >= 50
        assert {context["outcome"] for context in contexts} == {alone["outcome"]}
        assert {context["pack"]["version"] for context in contexts} == {"1"}
        assert status.breach is not None
        assert status.breach.condition == "fallback"
        assert counters["canary_failed"] == len(failed)
        assert status.canary.failed == status.canary.unanswered >= 50
        notes = rows(
            small.journal_path, "SELECT canary_arm, canary_note, count(*) FROM decisions GROUP BY 1, 2"
        )
        assert ("canary", "failed", len(failed)) in notes
        with Reader(small.journal_path) as reader:
            replayer = Replayer(reader, StubEngine(), pack_files.load(active))
            assert replayer.replay(failed[0]["decision_id"]).verdict == "identical"

    def test_a_candidate_that_cannot_be_loaded_is_refused_and_leaves_everything_as_it_was(
        self, client: Client, tmp_path: Path, served: Config
    ) -> None:
        assert "known packs" in refused(client, Candidate(pack="nowhere")).message
        assert "there is no model file" in refused(client, Candidate(model="/nowhere.gguf")).message
        assert refused(client, Candidate(adapter="/nowhere.gguf")).code == "bad_request"
        bad = "- {id: odd, when: 'true', outcome: deny, clause: R9, because: No such clause.}\n"
        unlint = write_pack(tmp_path / "unlint", version="5", rules=bad)
        assert "R9" in refused(client, Candidate(pack=str(unlint))).message
        assert client.status().canary is None
        assert not rows(served.journal_path, "SELECT 1 FROM canaries")


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "cure"),
        [
            ("outcomes: [{label: allow}, {label: deny}]", "the same outcomes in the same order"),
            (OTHER_OBLIGATION, "make them equal"),
        ],
    )  # fmt: skip
    def test_a_pack_with_other_outcomes_is_refused_with_the_cure(
        self, client: Client, tmp_path: Path, more: str, cure: str
    ) -> None:
        folder = write_pack(tmp_path / "other", version="2", rules=STRICT)
        text = (folder / "pack.yaml").read_text()
        stated = next(line for line in text.splitlines() if line.startswith("outcomes:"))
        (folder / "pack.yaml").write_text(text.replace(stated, more))
        error = refused(client, Candidate(pack=str(folder)))
        assert error.code == "conflict"
        assert cure in error.message

    def test_the_active_pack_and_the_shadow_are_refused(self, client: Client, candidate: Path) -> None:
        assert "is active" in refused(client, Candidate(pack="small")).message
        client.control(Control(task="shadow", pack=str(candidate)))
        assert "is the shadow" in refused(client, Candidate(pack=str(candidate))).message

    def test_while_a_canary_runs_nothing_may_change_what_it_is_compared_with(
        self, client: Client, candidate: Path, looser: Path, active: Path
    ) -> None:
        start(client, Candidate(pack=str(candidate)))
        for control in (
            Control(task="activate", pack=str(looser)),
            Control(task="adapter", adapter="none"),
            Control(task="unload", pack="small@2"),
            Control(task="shadow", pack="small@2"),
        ):
            with pytest.raises(RequestError, match="canary stop") as caught:
                client.control(control)
            assert caught.value.code == "conflict"
        assert "a canary runs" in refused(client, Candidate(pack=str(looser))).message
        write_pack(active, version="1.1", rules=STRICT)
        write_pack(candidate, version="2.1", system="Judge anew.", rules=STRICTER)
        done = client.control(Control(task="reload"))
        assert len(done["refused"]) == 2
        assert {pack.version for pack in client.status().packs} == {"1", "2"}
        change(client, "stop")
        assert client.control(Control(task="reload"))["refused"] == {}

    def test_a_pack_beyond_the_limit_is_refused(
        self, client: Client, candidate: Path, looser: Path, tmp_path: Path
    ) -> None:
        client.control(Control(task="load", pack=str(looser)))
        fourth = write_pack(tmp_path / "four", version="4", system="Ponder.")
        client.control(Control(task="load", pack=str(fourth)))
        assert "unload one" in refused(client, Candidate(pack=str(candidate))).message

    def test_a_caller_without_the_role_control_changes_no_canary(
        self, client: Client, candidate: Path
    ) -> None:
        behalf = {"name": "token:asker", "roles": ["ask", "record", "review"]}
        record = {"task": "canary", "canary": {"change": "start", "share": 1, "candidates": [{"pack": "x"}]}}
        with pytest.raises(RequestError, match="needs the role control"):
            client.call("control", {"record": record, "as": behalf})

    @pytest.mark.parametrize(
        ("canary", "reason"),
        [
            (None, "record.canary: is missing"),
            ({"change": "start", "candidates": [{"pack": "a"}]}, "record.canary.share: is missing"),
            ({"change": "start", "share": 0.1}, "record.canary.candidates: is empty"),
            (
                {"change": "start", "share": 0.1, "candidates": [{"pack": "a"}, {"pack": "b"}]},
                "has 2, and only one can be on trial",
            ),
            ({"change": "start", "share": 0, "candidates": [{"pack": "a"}]}, "record.canary.share"),
            ({"change": "start", "share": 1.5, "candidates": [{"pack": "a"}]}, "record.canary.share"),
            ({"change": "start", "share": 0.1, "candidates": [{"pack": "a\0"}]}, "control character"),
            (
                {"change": "start", "share": 0.1, "candidates": [{"pack": "a"}], "terms": {"least": 1}},
                "record.canary.terms.least",
            ),
            (
                {"change": "start", "share": 0.1, "candidates": [{"pack": "a"}], "terms": {"odd": 1}},
                "odd",
            ),
            ({"change": "resume"}, "record.canary.change"),
            ({"change": "share"}, "record.canary.share: is missing"),
        ],
    )
    def test_a_malformed_change_is_refused(self, client: Client, canary: Json, reason: str) -> None:
        record = {"task": "canary"} | ({"canary": canary} if canary else {})
        with pytest.raises(RequestError, match=reason) as caught:
            client.call("control", {"record": record})
        assert caught.value.code == "bad_request"

    def test_without_a_canary_there_is_nothing_to_change(self, client: Client) -> None:
        for what in ("stop", "promote"):
            with pytest.raises(RequestError, match="no canary runs"):
                change(client, what)


class TestEnd:
    def test_a_stopped_canary_decides_nothing_more(
        self, client: Client, served: Config, candidate: Path
    ) -> None:
        start(client, Candidate(pack=str(candidate)), share=1.0)
        ask(client, 1)
        change(client, "stop")
        assert ask(client, 1)["pack"]["version"] == "1"
        wait_for(client, lambda canary: canary.state == "stopped")
        recorded = rows(served.journal_path, "SELECT kind FROM events WHERE kind != 'shadowed' ORDER BY seq")
        assert [kind for (kind,) in recorded][-6:] == [
            "pack_loaded",
            "canary",
            "decision",
            "canary",
            "pack_unloaded",
            "decision",
        ]

    def test_a_promoted_pack_is_active_and_the_former_one_a_candidate(
        self, client: Client, served: Config, candidate: Path
    ) -> None:
        start(client, Candidate(pack=str(candidate)), share=1.0, least=10)
        with pytest.raises(RequestError, match="the fewest that are judged"):
            change(client, "promote")
        for number in range(12):
            ask(client, number)
        wait_for(client, lambda canary: canary.canary.decisions == 12)
        packs = change(client, "promote")["packs"]
        assert {pack["version"]: pack["role"] for pack in packs} == {"2": "active", "1": "candidate"}
        assert ask(client, 1)["pack"]["version"] == "2"
        wait_for(client, lambda canary: canary.state == "promoted")
        ended = rows(served.journal_path, "SELECT kind FROM events ORDER BY seq DESC LIMIT 3")
        assert [kind for (kind,) in reversed(ended)] == ["canary", "pack_activated", "decision"]

    def test_bad_results_of_the_candidate_roll_it_back_and_good_ones_do_not(
        self, client: Client, candidate: Path
    ) -> None:
        start(client, Candidate(pack=str(candidate)), share=0.5, least=20)
        for number in range(CALLERS):
            context = ask(client, number)
            good = context["pack"]["version"] == "1" or number % 3 == 0
            client.record(
                records.Outcome(decision_id=context["decision_id"], status="SUCCESS" if good else "FAILURE")
            )
        status = wait_for(client, lambda canary: canary.state == "rolled_back")
        assert status.breach is not None
        assert status.breach.condition == "success"
        assert status.breach.high < 0
        assert min(status.breach.sample, status.breach.control_sample) >= 20

    def test_reviews_count_and_a_later_result_takes_the_place_of_an_earlier_one(
        self, client: Client, candidate: Path
    ) -> None:
        start(client, Candidate(pack=str(candidate)), share=1.0)
        ids = [ask(client, number)["decision_id"] for number in range(4)]
        for decision_id in ids:
            client.record(records.Outcome(decision_id=decision_id, status="FAILURE"))
        client.record(records.Outcome(decision_id=ids[0], status="SUCCESS"))
        client.record(records.Outcome(decision_id=ids[1], status="PENDING"))
        client.record(records.Review(decision_id=ids[2], reviewer="robin", verdict="accept"))
        status = wait_for(client, lambda canary: (canary.canary.results, canary.canary.hits) == (3, 2))
        assert status.state == "running"


class TestAdapterAndModel:
    def test_an_adapter_on_trial_decides_with_the_active_pack(
        self, client: Client, served: Config, tmp_path: Path
    ) -> None:
        file = tmp_path / "tuned.gguf"
        write_adapter_header(file)
        start(client, Candidate(adapter=str(file)), share=0.5, least=10)
        adapters = Counter(
            context["model"]["adapter"] is not None
            for context in (ask(client, number, "other") for number in range(60))
        )
        assert adapters[True] >= 10
        assert adapters[False] >= 10
        wait_for(client, lambda canary: canary.canary.decisions == adapters[True])
        packs = change(client, "promote")["packs"]
        assert [pack["adapter"] for pack in packs] == ["tuned.gguf"]
        assert ask(client, 1, "other")["model"]["adapter"]["name"] == "tuned.gguf"
        assert verify(served.journal_path).ok

    def test_a_model_on_trial_decides_beside_the_daemons_own(
        self, client: Client, served: Config, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.gguf"
        other.write_bytes(b"GGUF" + bytes(60))
        digest = hashlib.sha256(other.read_bytes()).hexdigest()
        start(client, Candidate(model=str(other)), share=0.5, least=10)
        outcomes: dict[str, set[str]] = {}
        for number in range(60):
            context = ask(client, number, "other", explain="inline")
            outcomes.setdefault(context["model"]["sha256"], set()).add(context["outcome"])
            assert context["reasoning"] is not None
        assert outcomes[digest] == {"deny"}, "the stub of that file answers deny"
        assert len(outcomes) == 2
        wait_for(client, lambda canary: canary.canary.decisions >= 10)
        with pytest.raises(RequestError, match="in its settings"):
            change(client, "promote")
        models = rows(served.journal_path, "SELECT sha256 FROM models ORDER BY seq")
        assert [sha256 for (sha256,) in models][-1] == digest
        change(client, "stop")
        assert {ask(client, number)["pack"]["version"] for number in range(10)} == {"1"}
        start(client, Candidate(model=str(other)), share=0.5)  # it is closed, and loaded again
        assert verify(served.journal_path).ok

    @pytest.mark.parametrize(("bias", "state"), [("allow", "rolled_back"), ("deny", "running")])
    def test_a_model_that_answers_looser_is_rolled_back_by_itself_and_a_stricter_one_is_not(
        self, config: Config, active: Path, tmp_path: Path, bias: str, state: str
    ) -> None:
        """The active pack is asked the same questions on idle time; its stub answers now this, now that."""
        other = tmp_path / "other.gguf"
        other.write_bytes(b"GGUF" + bias.encode())

        def load_biased(config: Config) -> Engine:
            engine = load(config)
            return StubOf(engine.model, bias) if config.model == str(other) else engine

        small = replace(config, pack=str(active), models_dir=tmp_path)
        with serving(small, load_engine=load_biased), Client(small.endpoint) as client:
            start(client, Candidate(model=str(other)), share=1.0, least=30)
            for number in range(60):
                ask(client, number, f"act-{number}")
            status = wait_for(
                client,
                lambda canary: (
                    canary.canary.compared >= 30 and (canary.state != "running" or state == "running")
                ),
            )
        assert status.state == state
        assert status.canary.tightened == 0 if bias == "allow" else status.canary.loosened == 0
        if state == "rolled_back":
            assert status.breach is not None
            assert (status.breach.condition, status.breach.value) == ("loosened", 1.0)
        compared = rows(small.journal_path, "SELECT DISTINCT prompt_version FROM shadows")
        assert len(compared) == 1
        assert verify(small.journal_path).ok

    def test_the_daemons_own_model_is_refused(self, config: Config, active: Path, tmp_path: Path) -> None:
        own = tmp_path / "own.gguf"
        own.write_bytes(b"GGUF" + bytes(60))
        small = replace(config, pack=str(active), model=str(own), models_dir=tmp_path)
        with serving(small, load_engine=load), Client(small.endpoint) as client:
            error = refused(client, Candidate(model=str(own)))
        assert "is the daemon's own model" in error.message


class TestChoice:
    def results(self, client: Client, pack: str, good: int, of: int) -> None:
        for number in range(of):
            context = client.call("evaluate", {"request": question("look", number), "pack": pack})["context"]
            status = "SUCCESS" if number < good else "FAILURE"
            client.record(records.Outcome(decision_id=context["decision_id"], status=status))

    def test_the_candidate_with_the_best_record_is_chosen_and_the_chain_says_why(
        self, client: Client, served: Config, candidate: Path, looser: Path
    ) -> None:
        for pack in (candidate, looser):
            client.control(Control(task="load", pack=str(pack)))
        named = Candidate(pack=str(candidate)), Candidate(pack=str(looser))
        error = refused(client, *named, choose=True, least=20)
        assert "has 0 results, and 20 are the fewest that count" in error.message
        for pack, good in (("small@1", 8), ("small@2", 20), ("small@3", 10)):
            self.results(client, pack, good, 20)
        start(client, *named, choose=True, least=20)
        assert newest(client).pack.version == "2"
        ((choice,),) = rows(served.journal_path, "SELECT choice FROM canaries")
        assert [(each["name"], each["hits"], each["of"]) for each in json.loads(choice)] == [
            ("small@2", 20, 20),
            ("small@3", 10, 20),
            ("the active pack", 8, 20),
        ]

    def test_a_record_that_shows_no_difference_chooses_nothing(self, client: Client, candidate: Path) -> None:
        client.control(Control(task="load", pack=str(candidate)))
        for pack in ("small@1", "small@2"):
            self.results(client, pack, 15, 20)
        error = refused(client, Candidate(pack=str(candidate)), choose=True, least=20)
        assert error.code == "conflict"
        assert "does not show that small@2 is better than the active pack" in error.message


class TestRestart:
    def test_a_killed_daemon_goes_on_with_the_same_share_and_members(
        self, short_dir: Path, active: Path, candidate: Path
    ) -> None:
        command = [sys.executable, "-c", SERVE, str(short_dir), str(active)]
        endpoint, journal = f"ipc://{short_dir}/policy.sock", short_dir / "journal.db"
        journal = Config(state_dir=short_dir).journal_path
        with running(command) as daemon, Client(endpoint, timeout_ms=PATIENCE_S * 1000) as client:
            start(client, Candidate(pack=str(candidate)), share=0.2)
            change(client, "share", share=0.35)
            before = {number: ask(client, number)["pack"]["version"] for number in range(60)}
            figures = wait_for(
                client, lambda canary: canary.canary.decisions + canary.control.decisions == 60
            )
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        with running(command) as daemon, Client(endpoint, timeout_ms=PATIENCE_S * 1000) as client:
            again = wait_for(client, lambda canary: canary.canary.decisions + canary.control.decisions == 60)
            assert (again.id, again.share, again.state) == (figures.id, 0.35, "running")
            assert again.canary == figures.canary
            after = {number: ask(client, number)["pack"]["version"] for number in range(60)}
            assert after == before
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
        assert arms(journal) == expected_arms(spec_of(journal), range(60))
        assert verify(journal).ok

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [("changed", "has changed"), ("gone", "no pack.yaml"), ("settings", "it ran against")],
    )
    def test_a_canary_whose_candidate_cannot_be_used_any_more_ends_with_the_reason(
        self, served: Config, client: Client, candidate: Path, looser: Path, damage: str, reason: str
    ) -> None:
        again = replace(served, state_dir=served.state_dir / "2", endpoint=f"{served.endpoint}2")
        again.state_dir.mkdir()
        with serving(again, load_engine=load), Client(again.endpoint) as first:
            start(first, Candidate(pack=str(candidate)), share=1.0)
            assert ask(first, 1)["pack"]["version"] == "2"
        if damage == "changed":
            write_pack(candidate, version="2", system="Judge otherwise.", rules=STRICTER)
        elif damage == "gone":
            (candidate / "pack.yaml").unlink()
        else:
            again = replace(again, pack=str(looser))
        with serving(again, load_engine=load), Client(again.endpoint) as second:
            status = newest(second)
            assert status.state == "failed"
            assert reason in (status.reason or "")
            assert ask(second, 1)["pack"]["version"] == ("3" if damage == "settings" else "1")
            assert "canary" not in ask(second, 1)
        assert verify(again.journal_path).ok

    def test_a_model_on_trial_is_loaded_again_also_after_the_start_was_archived(
        self, served: Config, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.gguf"
        other.write_bytes(b"GGUF" + bytes(60))
        again = replace(served, state_dir=served.state_dir / "2", endpoint=f"{served.endpoint}2")
        again.state_dir.mkdir()
        with serving(again, load_engine=load), Client(again.endpoint) as first:
            start(first, Candidate(model=str(other)), share=0.5)
            before = [ask(first, number, "other")["model"]["sha256"] for number in range(20)]
            archive = records.Maintenance(task="archive", before="2999-01-01T00:00:00Z")
            first.maintenance(archive)
            assert not rows(again.journal_path, "SELECT 1 FROM events WHERE kind = 'canary'")
        with serving(again, load_engine=load), Client(again.endpoint) as second:
            assert [ask(second, number, "other")["model"]["sha256"] for number in range(20)] == before
            assert newest(second).canary.decisions > 0
        assert len(set(before)) == 2
        assert verify(again.journal_path).ok

    def test_a_candidate_that_the_settings_made_active_was_promoted(
        self, served: Config, candidate: Path
    ) -> None:
        again = replace(served, state_dir=served.state_dir / "2", endpoint=f"{served.endpoint}2")
        again.state_dir.mkdir()
        with serving(again, load_engine=load), Client(again.endpoint) as first:
            start(first, Candidate(pack=str(candidate)))
        with serving(replace(again, pack=str(candidate)), load_engine=load), Client(again.endpoint) as second:
            assert newest(second).state == "promoted"

    def test_a_canary_that_was_rolled_back_stays_so(self, served: Config, looser: Path) -> None:
        again = replace(served, state_dir=served.state_dir / "2", endpoint=f"{served.endpoint}2")
        again.state_dir.mkdir()
        with serving(again, load_engine=load), Client(again.endpoint) as first:
            start(first, Candidate(pack=str(looser)), share=1.0, least=10)
            for number in range(12):
                ask(first, number, "banned")
            wait_for(first, lambda canary: canary.state == "rolled_back")
        with serving(again, load_engine=load), Client(again.endpoint) as second:
            assert newest(second).state == "rolled_back"
            assert ask(second, 1, "banned")["pack"]["version"] == "1"


@pytest.mark.model
class TestWithTheModel:
    """The embedded model, the commands, and a daemon in a process of its own."""

    def test_a_killed_daemon_keeps_members_and_a_looser_candidate_is_rolled_back_by_itself(
        self, short_dir: Path, active: Path, candidate: Path, looser: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = f"ipc://{short_dir}/policy.sock"
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(short_dir))
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", endpoint)
        monkeypatch.setenv("THOR_POLICY_PACK", str(active))
        monkeypatch.setenv("THOR_POLICY_ADAPTER", "none")
        journal = Config(state_dir=short_dir).journal_path
        with serve(endpoint) as (daemon, client):
            done = command("canary", "start", "--pack", str(candidate), "--share", "0.5")
            assert "canary" in done
            before = {number: ask(client, number, "peek") for number in range(8)}
            assert {context["tier"] for context in before.values()} <= {"model", "cache"}
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        with serve(endpoint) as (_, client):
            after = {number: ask(client, number, "peek") for number in range(8)}
            for number, context in after.items():
                for name in ("pack", "outcome", "probabilities"):
                    assert context[name] == before[number][name], "the same arm, and the same bits"
            versions = {context["pack"]["version"] for context in after.values()}
            assert versions == {"1", "2"}
            assert "running" in command("canary", "status")
            command("canary", "stop")
            command("canary", "start", "--pack", str(looser), "--share", "0.5", "--least", "20")
            for number in range(60):
                assert ask(client, number, "banned")["outcome"] == "deny"
            status = wait_for(client, lambda canary: canary.state == "rolled_back")
            assert status.canary.looser >= 20
            shown = command("canary", "status", exit_code=1)
            assert "rolled_back" in shown
            assert "looser 1 (" in shown
        listed = json.loads(command("canary", "list", "--json"))
        assert [each["state"] for each in listed] == ["rolled_back", "stopped"]
        assert not rows(journal, "SELECT 1 FROM decisions WHERE action = 'banned' AND decision != 'deny'")
        assert verify(journal).ok

    def test_another_model_file_decides_for_its_share(
        self, config: Config, active: Path, tmp_path: Path, model_file: ModelFile
    ) -> None:
        other = tmp_path / "other.gguf"
        shutil.copy(model_file.path, other)
        with other.open("ab") as file:
            file.write(b"\0")  # another digest, the same weights
        small = replace(config, pack=str(active), adapter="none")
        with serving(small) as served, Client(served.endpoint, timeout_ms=PATIENCE_S * 1000) as client:
            start(client, Candidate(model=str(other)), share=0.5)
            contexts: list[dict[str, Any]] = []
            for number in range(40):  # which arm each is in depends on the id of the canary
                contexts.append(ask(client, number, "look", explain="inline"))
                if len({context["model"]["sha256"] for context in contexts}) == 2:
                    break
            change(client, "stop")
            again = ask(client, 0, "look")
        by_model = {context["model"]["sha256"]: str(context["probabilities"]) for context in contexts}
        assert len(by_model) == 2
        assert len(set(by_model.values())) == 1, "equal weights give equal bits, side by side"
        assert again["model"]["sha256"] == model_file.sha256
        assert all(context["reasoning"] for context in contexts)


def command(*arguments: str, exit_code: int = 0) -> str:
    """What a command prints."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == exit_code, result.output
    return result.output


@contextmanager
def serve(endpoint: str) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """`thorpolicy serve` in a process of its own, once it answers."""
    program = str(Path(sys.executable).with_name("thorpolicy"))
    daemon = subprocess.Popen([program, "serve"], text=True)
    try:
        with Client(endpoint, timeout_ms=PATIENCE_S * 1000) as client:
            patient_until = time.monotonic() + PATIENCE_S
            while not client.alive():
                assert time.monotonic() < patient_until
                assert daemon.poll() is None
            yield daemon, client
    finally:
        daemon.kill()
        daemon.wait()


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A daemon that says `ready` on its standard output; it is killed at the end."""
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()
