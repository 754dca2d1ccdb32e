"""Approvals through a real daemon: from a denial that can be lifted to an allow, and each refusal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.callers import OtherCaller, as_root, other_caller
from tests.daemon.test_batches import recorded
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.requests import Json
from thor_policy.daemon.loading import journal_options
from thor_policy.daemon.service import open_service
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal, OnCommitted
from thor_policy.review import queue
from thor_policy.telemetry import clocks
from thor_policy.telemetry.clocks import Instant
from thor_policy.testing import load_stub_engine

pytestmark = as_root

#: No test waits longer than this for a reply or an event, in milliseconds.
PATIENCE_MS = 60_000
APP, KIM, LEE, ANN, BOB, PAT, OTHER_APP = 61001, 61002, 61003, 61004, 61005, 61006, 61007
#: Callers that may approve. PAT is nobody in `people`, and both Ann and her second account are one person.
APPROVERS = (KIM, LEE, ANN, BOB, PAT, ANN2 := 61008)
PEOPLE = (
    f"uid:{KIM}=kim;manager",
    f"uid:{LEE}=lee;security",
    f"uid:{ANN}=ann;manager+recorder",
    f"uid:{ANN2}=Ann;security",
    f"uid:{BOB}=bob;security;rescue",
)
PACK = """\
name: deploys
version: "1"
description: Deploys to production need two people.
model: never
default: deny
outcomes:
  - label: allow
  - label: require_mfa
    obligations: [{id: mfa, type: step-up, properties: {acr_values: [mfa]}}]
  - label: require_attestation
    obligations: [{id: attest, type: custom}]
    lifted_by:
      steps: [{role: manager}, {role: security}]
      consents: [email]
      break_glass: {group: rescue}
  - label: deny
reads: {context.change: string, context.freeze: bool}
"""
RULES = """\
- {id: frozen, when: 'has(context.freeze) && context.freeze', outcome: deny, because: Nothing in a freeze.}
- {id: deploy, when: 'action.name == "deploy"', outcome: require_attestation, because: Two people look.}
- {id: change, when: '!has(context.change) && action.name == "deploy"', outcome: deny, because: No change.}
- {id: read, when: 'action.name == "read"', outcome: allow, final: true, because: Reading is free.}
"""
DEPLOY: Json = {
    "subject": {"type": "user", "id": "zoe"},
    "action": {"name": "deploy"},
    "resource": {"type": "service", "id": "billing"},
    "context": {"change": "CHG-1", "note": "first"},
}


def write_pack(folder: Path, *, rules: str = RULES, pack: str = PACK) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pack.yaml").write_text(pack)
    (folder / "rules.yaml").write_text(rules)
    return folder


@pytest.fixture
def open_to_all(config: Config, tmp_path: Path) -> Config:
    config.state_dir.chmod(0o711)
    grants = ("local=ask", *(f"uid:{uid}=ask+approve" for uid in APPROVERS))
    pack = write_pack(tmp_path / "deploys")
    return replace(config, socket_mode=0o666, roles=grants, people=PEOPLE, pack=str(pack))


class Passing:
    """The clocks of a machine, which a test can let go on by some seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> Instant:
        boot_id, ns = clocks.now()
        return Instant(boot_id, ns + round(self.seconds * 1e9))

    def open_journal(self, config: Config, on_committed: OnCommitted) -> Journal:
        return Journal(
            config.journal_path, on_committed=on_committed, now=self.now, **journal_options(config)
        )


class Room:
    """A daemon, the app that asks it, and the people who approve."""

    def __init__(self, config: Config, stack: ExitStack, time: Passing, reload: Callable[[], None]) -> None:
        self.config = config
        self.time = time
        self.reload = reload
        self._stack = stack
        self._callers: dict[int, OtherCaller] = {}

    def at(self, uid: int) -> OtherCaller:
        if uid not in self._callers:
            self._callers[uid] = self._stack.enter_context(other_caller(self.config.endpoint, uid))
        return self._callers[uid]

    def own(self) -> Client:
        """A client of the user that runs the daemon."""
        return self._stack.enter_context(Client(self.config.endpoint, timeout_ms=PATIENCE_MS))

    def denied(self, question: Json = DEPLOY) -> str:
        return str(self.at(APP).ask(question)["context"]["decision_id"])

    def task(self, question: Json = DEPLOY, **members: Json) -> str:
        return str(self.at(APP).request(self.denied(question), **members)["id"])

    def approved(self, question: Json = DEPLOY) -> str:
        task = self.task(question)
        self.at(KIM).change("approve", task)
        assert self.at(LEE).change("approve", task)["status"] == "approved"
        return task

    def again(self, task: str, question: Json = DEPLOY, *, uid: int = APP) -> dict[str, Json]:
        return self.at(uid).ask(with_approval(question, task))

    def state(self, task: str) -> str:
        return str(self.at(APP).send("approvals", record={"id": task})["task"]["status"])

    def activate(self, pack: Path) -> None:
        self.own().control(records.Control(task="load", pack=str(pack)))
        manifest = (pack / "pack.yaml").read_text()
        name, version = (line.split(": ")[1].strip('"') for line in manifest.splitlines()[:2])
        self.own().control(records.Control(task="activate", pack=f"{name}@{version}"))


def with_approval(question: Json, task: str) -> Json:
    return question | {"context": question["context"] | {"approval": {"id": task, "status": "approved"}}}


@contextmanager
def room(config: Config, *settings: Config | ConfigError, pushed: Passing | None = None) -> Iterator[Room]:
    """A daemon; each reload reads the next of `settings`."""
    time, remaining = pushed or Passing(), iter(settings)
    read = threading.Semaphore(0)

    def reread() -> Config:
        read.release()  # on the main thread, which answers a request only after it has taken the settings
        if isinstance(settings := next(remaining), ConfigError):
            raise settings
        return settings

    with (
        open_service(
            config, load_engine=load_stub_engine, open_journal=time.open_journal, reread=reread
        ) as server,
        ExitStack() as stack,
    ):
        thread = threading.Thread(target=server.run)
        thread.start()

        def reload() -> None:
            server.reload()
            assert read.acquire(timeout=PATIENCE_MS / 1000)

        try:
            yield Room(config, stack, time, reload)
        finally:
            server.stop()
            thread.join()


def refusal(call: Callable[[], object]) -> tuple[str, str | None]:
    """Code and reason code of the refusal that a call must meet."""
    with pytest.raises(RequestError) as refused:
        call()
    return refused.value.code, refused.value.reason_code


INSUFFICIENT = ("unauthorized", "approval_insufficient")


def why_not(reply: dict[str, Json]) -> str:
    """Why an approval did not help: its reply must be no allow."""
    assert reply["decision"] is False
    assert reply["context"]["approval"]["lifted"] is None
    assert reply["context"]["reason_code"] == reply["context"]["approval"]["reason_code"]
    return str(reply["context"]["reason_code"])


def lifts(reply: dict[str, Json]) -> bool:
    """True if an approval lifted the outcome."""
    return (reply["decision"], reply["context"]["outcome"]) == (True, "allow")


def test_two_people_lift_a_denial_once(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        denied = here.at(APP).ask(DEPLOY)
        assert (denied["decision"], denied["context"]["outcome"]) == (False, "require_attestation")
        offer = denied["context"]["access_request"]
        assert offer["evaluation_id"] == denied["context"]["decision_id"]
        task = here.at(APP).request(offer["evaluation_id"], reason="release 7")
        assert (task["status"], task["missing"]) == ("pending", [["manager", "security"]])
        assert here.at(KIM).change("approve", task["id"])["status"] == "partial"
        done = here.at(LEE).change("approve", task["id"])
        assert (done["status"], done["approval"]) == ("approved", {"id": task["id"]})
        allowed = here.again(task["id"])
        assert (allowed["decision"], allowed["context"]["outcome"]) == (True, "allow")
        assert allowed["context"]["approval"] == {"id": task["id"], "lifted": "require_attestation"}
        reused = here.again(task["id"])
        assert (reused["decision"], reused["context"]["outcome"]) == (False, "require_attestation")
        assert reused["context"]["approval"]["reason_code"] == "approval_used"


# ---------------------------------------------------------------- what can be requested


def test_only_what_an_approval_can_lift_says_so(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        frozen = DEPLOY | {"context": DEPLOY["context"] | {"freeze": True}}
        allowed = DEPLOY | {"action": {"name": "read"}}
        for question, outcome in ((frozen, "deny"), (allowed, "allow")):
            reply = here.at(APP).ask(question)
            assert reply["context"]["outcome"] == outcome
            assert "access_request" not in reply["context"]
            decision_id = reply["context"]["decision_id"]
            refused = refusal(lambda decision_id=decision_id: here.at(APP).request(decision_id))
            assert refused == ("conflict", "not_requestable")
        template = here.at(APP).ask(DEPLOY)["context"]["access_request"]["template"]
        assert template["approvers"] == [["manager", "security"]]


def test_only_the_caller_that_asked_may_request(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        denied = here.denied()
        assert refusal(lambda: here.at(OTHER_APP).request(denied)) == (
            "unauthorized",
            "invalid_denial_binding",
        )
        assert refusal(lambda: here.at(APP).request("no-such")) == ("not_found", "invalid_denial_binding")


def test_a_decision_has_one_open_task(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        denied = here.denied()
        task = here.at(APP).request(denied)["id"]
        assert refusal(lambda: here.at(APP).request(denied)) == ("conflict", "duplicate_request")
        here.at(APP).change("cancel", task)
        assert here.at(APP).request(denied)["id"] != task


def test_a_decision_that_is_too_old_cannot_be_requested(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        denied = here.denied()
        here.time.seconds = 3_599
        here.at(APP).change("cancel", here.at(APP).request(denied)["id"])
        here.time.seconds = 3_600
        assert refusal(lambda: here.at(APP).request(denied)) == ("expired", "expired_denial")


def test_ids_of_tasks_cannot_be_guessed(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        ids = [here.task() for _ in range(4)]
        assert all(len(id_) >= 32 for id_ in ids)
        assert len({id_[-16:] for id_ in ids}) == 4


# ---------------------------------------------------------------- who may approve


def test_whoever_people_does_not_name_approves_nothing(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        for op in ("approve", "deny"):
            assert refusal(lambda op=op: here.at(PAT).change(op, task)) == INSUFFICIENT


def test_whoever_lacks_the_daemons_role_approves_nothing(open_to_all: Config) -> None:
    people = (*PEOPLE, f"uid:{OTHER_APP}=max;manager+security")
    with room(replace(open_to_all, people=people)) as here:
        task = here.task()
        for op in ("approve", "deny"):
            assert refusal(lambda op=op: here.at(OTHER_APP).change(op, task)) == ("unauthorized", None)


def test_a_person_without_the_role_of_a_step_approves_nothing(open_to_all: Config) -> None:
    people = (*PEOPLE, f"uid:{PAT}=pat;cook;rescue")
    with room(replace(open_to_all, people=people)) as here:
        task = here.task()
        assert refusal(lambda: here.at(PAT).change("approve", task)) == INSUFFICIENT
        assert here.state(task) == "pending"


def test_steps_are_taken_in_order(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        assert refusal(lambda: here.at(LEE).change("approve", task)) == INSUFFICIENT
        here.at(KIM).change("approve", task)
        assert here.at(LEE).change("approve", task)["status"] == "approved"


def test_a_person_approves_one_time_also_by_another_caller(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        assert here.at(ANN).change("approve", task)["status"] == "partial"
        assert refusal(lambda: here.at(ANN).change("approve", task)) == INSUFFICIENT
        assert refusal(lambda: here.at(ANN2).change("approve", task)) == INSUFFICIENT
        assert here.state(task) == "partial"


@pytest.mark.parametrize(
    "subject", ["kim", "KIM", "\uff4b\uff49\uff4d", " k im", "k\u00adim", str(KIM), f"uid:{KIM}", "kim\ufe0f"]
)
def test_the_subject_does_not_approve_itself(open_to_all: Config, subject: str) -> None:
    with room(open_to_all) as here:
        question = DEPLOY | {"subject": {"type": "user", "id": subject}}
        task = here.task(question)
        assert refusal(lambda: here.at(KIM).change("approve", task)) == INSUFFICIENT
        here.at(ANN).change("approve", task)
        here.at(LEE).change("approve", task)
        assert lifts(here.again(task, question))


def test_the_subject_is_known_by_its_user_name(open_to_all: Config) -> None:
    people = (*PEOPLE, "user:daemon=Dee;manager")
    roles = (*open_to_all.roles, "user:daemon=approve")
    with room(replace(open_to_all, people=people, roles=roles)) as here:
        task = here.task(DEPLOY | {"subject": {"type": "user", "id": "DAEMON"}})
        import pwd

        assert refusal(lambda: here.at(pwd.getpwnam("daemon").pw_uid).change("approve", task)) == INSUFFICIENT


def test_the_requester_does_not_approve_also_by_another_caller(open_to_all: Config) -> None:
    people = (*PEOPLE, f"uid:{APP}=app;manager", f"uid:{PAT}=APP;manager")
    roles = (*open_to_all.roles, f"uid:{APP}=approve")
    with room(replace(open_to_all, people=people, roles=roles)) as here:
        task = here.task()
        assert refusal(lambda: here.at(APP).change("approve", task)) == INSUFFICIENT
        assert refusal(lambda: here.at(PAT).change("approve", task)) == INSUFFICIENT


@pytest.mark.parametrize(
    "member", ["approver", "person", "name", "role", "roles", "groups", "recorded_by", "step"]
)
@pytest.mark.parametrize("op", ["approve", "deny"])
def test_a_payload_cannot_say_who_approves(open_to_all: Config, op: str, member: str) -> None:
    with room(open_to_all) as here:
        task = here.task()
        assert refusal(lambda: here.at(KIM).change(op, task, **{member: "lee"})) == ("bad_request", None)
        assert here.state(task) == "pending"


def test_a_record_of_an_approval_changes_no_task(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        denied = here.denied()
        task = here.at(APP).request(denied)["id"]
        for approver in ("kim", "lee"):
            record = {"decision_id": denied, "approver": approver, "role": "manager", "task": task}
            here.at(PAT).send("approval", record=record)
        assert here.state(task) == "pending"
        assert why_not(here.again(task)) == "approval_pending"


# ---------------------------------------------------------------- consents that were given elsewhere


def consent(approver: str, channel: str = "email") -> dict[str, Json]:
    return {"consent": {"approver": approver, "channel": channel, "evidence": "mail 4711"}}


def test_a_recorded_consent_counts_and_says_who_recorded_it(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        partial = here.at(ANN).change("approve", task, **consent("KIM"))
        (given,) = partial["verdicts"]
        assert given["approver"] == "kim"
        assert given["roles"] == ["manager"]
        assert (given["channel"], given["evidence"], given["recorded_by"]) == ("email", "mail 4711", "ann")
        here.at(LEE).change("approve", task)
        assert lifts(here.again(task))


def test_a_consent_over_a_channel_that_the_pack_does_not_list_counts_for_nothing(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        assert (
            refusal(lambda: here.at(ANN).change("approve", task, **consent("kim", "verbal"))) == INSUFFICIENT
        )
        assert here.state(task) == "pending"


def test_only_a_recorder_records_and_only_for_a_known_person(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        assert refusal(lambda: here.at(KIM).change("approve", task, **consent("kim"))) == INSUFFICIENT
        assert refusal(lambda: here.at(PAT).change("approve", task, **consent("kim"))) == INSUFFICIENT
        unknown = refusal(lambda: here.at(ANN).change("approve", task, **consent("nobody")))
        assert unknown == ("not_found", "approval_insufficient")
        assert here.own().status().in_flight == 0


def test_a_recorder_that_is_the_subject_or_the_caller_records_nothing(open_to_all: Config) -> None:
    roles = (*open_to_all.roles, f"uid:{APP}=approve")
    people = (*PEOPLE, f"uid:{APP}=app;recorder")
    with room(replace(open_to_all, people=people, roles=roles)) as here:
        of_ann = here.task(DEPLOY | {"subject": {"type": "user", "id": "Ann"}})
        assert refusal(lambda: here.at(ANN).change("approve", of_ann, **consent("kim"))) == INSUFFICIENT
        task = here.task()
        assert refusal(lambda: here.at(APP).change("approve", task, **consent("kim"))) == INSUFFICIENT


def test_a_consent_and_an_approval_of_one_person_are_one(open_to_all: Config) -> None:
    people = (*PEOPLE, f"uid:{PAT}=kim;security")
    with room(replace(open_to_all, people=people)) as here:
        task = here.task()
        here.at(ANN).change("approve", task, **consent("kim"))
        assert refusal(lambda: here.at(PAT).change("approve", task)) == INSUFFICIENT


@pytest.mark.parametrize("member", ["role", "recorded_by", "name"])
def test_a_consent_names_only_approver_channel_and_evidence(open_to_all: Config, member: str) -> None:
    with room(open_to_all) as here:
        record = {"consent": {"approver": "kim", "channel": "email", member: "x"}}
        assert refusal(lambda: here.at(ANN).change("approve", here.task(), **record)) == ("bad_request", None)


# ---------------------------------------------------------------- what an approval lifts

ALTERED: dict[str, Json] = {
    "subject": DEPLOY | {"subject": {"type": "user", "id": "yve"}},
    "type of the subject": DEPLOY | {"subject": {"type": "agent", "id": "zoe"}},
    "resource": DEPLOY | {"resource": {"type": "service", "id": "ledger"}},
    "type of the resource": DEPLOY | {"resource": {"type": "job", "id": "billing"}},
    "action": DEPLOY | {"action": {"name": "redeploy"}},
    "bound context": DEPLOY | {"context": {"change": "CHG-2"}},
    "absent context": DEPLOY | {"context": {}},
    "bound context that makes it stricter": DEPLOY | {"context": {"change": "CHG-1", "freeze": True}},
    "bound context that a rule only looks for": DEPLOY | {"context": {"change": "CHG-1", "freeze": False}},
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_approval_of_another_question_does_not_help(open_to_all: Config, what: str) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        assert why_not(here.again(task, ALTERED[what])) == "approval_mismatch"
        assert lifts(here.again(task)), "it is not used"


def test_what_nothing_reads_may_be_another(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        changed = DEPLOY | {"context": {"change": "CHG-1", "note": "second", "supported_obligations": ["x"]}}
        assert lifts(here.again(task, changed))


def test_an_approval_is_of_the_caller_that_asked(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        assert why_not(here.again(task, uid=OTHER_APP)) == "approval_mismatch"
        assert why_not(here.again(task, uid=KIM)) == "approval_mismatch"
        assert lifts(here.again(task))


@pytest.mark.parametrize(
    "approval",
    [
        {"id": "0" * 32},
        {"id": ""},
        {"id": 7},
        {},
        "approved",
        True,
        [],
        {"id": "x" * 300},
        {"status": "approved"},
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_an_approval_that_this_daemon_never_gave_does_not_help(open_to_all: Config, approval: Json) -> None:
    with room(open_to_all) as here:
        here.approved()
        question = DEPLOY | {"context": DEPLOY["context"] | {"approval": approval}}
        assert why_not(here.at(APP).ask(question)) == "approval_unknown"


def test_an_approval_holds_for_its_time(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        early, late = here.approved(), here.approved()
        here.time.seconds = 3_590
        assert lifts(here.again(early))
        here.time.seconds = 3_700
        assert why_not(here.again(late)) == "approval_expired"
        assert here.state(late) == "expired"
        assert refusal(lambda: here.at(ANN).change("approve", late)) == ("expired", "task_expired")


def test_a_request_waits_for_its_time(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        here.time.seconds = 86_300
        here.at(KIM).change("approve", task)
        here.time.seconds = 86_500
        assert refusal(lambda: here.at(LEE).change("approve", task)) == ("expired", "task_expired")
        assert why_not(here.again(task)) == "approval_expired"


def test_a_task_that_nobody_or_not_everybody_approved_does_not_help(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        assert why_not(here.again(task)) == "approval_pending"
        here.at(KIM).change("approve", task)
        assert why_not(here.again(task)) == "approval_pending"
        assert here.state(task) == "partial"


@pytest.mark.parametrize("approvals", [0, 1])
def test_a_denied_task_stays_denied(open_to_all: Config, approvals: int) -> None:
    with room(open_to_all) as here:
        task = here.task()
        if approvals:
            here.at(KIM).change("approve", task)
        assert here.at(LEE if approvals else KIM).change("deny", task, comment="no")["status"] == "denied"
        for op, uid in (("approve", LEE), ("deny", LEE), ("approve", ANN)):
            refused = refusal(lambda op=op, uid=uid: here.at(uid).change(op, task))
            assert refused == ("conflict", "invalid_task_state")
        assert why_not(here.again(task)) == "approval_denied"


def test_a_task_is_cancelled_by_its_requester_alone(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task()
        for uid in (KIM, OTHER_APP):
            assert refusal(lambda uid=uid: here.at(uid).change("cancel", task)) == ("unauthorized", None)
        assert here.at(APP).change("cancel", task, reason="not needed")["status"] == "cancelled"
        assert refusal(lambda: here.at(KIM).change("approve", task)) == ("conflict", "invalid_task_state")
        assert refusal(lambda: here.at(APP).change("cancel", task)) == ("conflict", "invalid_task_state")
        assert why_not(here.again(task)) == "approval_denied"


def test_an_approved_task_can_be_cancelled_until_it_is_used(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        cancelled, used = here.approved(), here.approved()
        here.at(APP).change("cancel", cancelled)
        assert why_not(here.again(cancelled)) == "approval_denied"
        assert lifts(here.again(used))
        assert refusal(lambda: here.at(APP).change("cancel", used)) == ("conflict", "invalid_task_state")


def test_a_deny_of_the_rules_is_never_lifted(open_to_all: Config, tmp_path: Path) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        stricter = RULES.replace("outcome: require_attestation", "outcome: deny")
        here.activate(write_pack(tmp_path / "2", rules=stricter, pack=PACK.replace('"1"', '"2"')))
        reply = here.again(task)
        assert why_not(reply) == "approval_insufficient"
        assert reply["context"]["outcome"] == "deny"


def test_another_version_that_accepts_the_approval_honours_it(open_to_all: Config, tmp_path: Path) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        here.activate(write_pack(tmp_path / "2", pack=PACK.replace('"1"', '"2"')))
        assert lifts(here.again(task))
        assert why_not(here.again(task)) == "approval_used"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{role: security}]", "{role: security}, {role: director}]"),
        ("{role: security}]", "{role: security, quorum: 2}]"),
        ("steps: [{role: manager}, {role: security}]", "steps: [{role: security}, {role: manager}]"),
        ("consents: [email]", "binds: [context.note]"),
        (PACK[PACK.index("    lifted_by") : PACK.index("  - label: deny")], ""),
        ("reads: {", "facts: {note: 'has(context.note)'}\nreads: {"),
    ],
    ids=["one more step", "a larger quorum", "another order", "other binds", "no approval", "reads more"],
)  # fmt: skip
def test_another_version_that_asks_for_more_does_not(
    open_to_all: Config, tmp_path: Path, old: str, new: str
) -> None:
    assert old in PACK
    with room(open_to_all) as here:
        task = here.approved()
        here.activate(write_pack(tmp_path / "2", pack=PACK.replace('"1"', '"2"').replace(old, new)))
        assert why_not(here.again(task)) == "approval_insufficient"


def test_an_approval_under_another_pack_does_not_help(open_to_all: Config, tmp_path: Path) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        here.activate(write_pack(tmp_path / "other", pack=PACK.replace("name: deploys", "name: other")))
        assert why_not(here.again(task)) == "approval_mismatch"


def test_an_approval_lifts_an_outcome_that_became_looser(open_to_all: Config, tmp_path: Path) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        looser = RULES.replace("outcome: require_attestation", "outcome: require_mfa")
        here.activate(write_pack(tmp_path / "2", rules=looser, pack=PACK.replace('"1"', '"2"')))
        reply = here.again(task)
        assert lifts(reply)
        assert reply["context"]["approval"]["lifted"] == "require_mfa"


def test_an_approval_that_is_not_needed_stays_unused(open_to_all: Config, tmp_path: Path) -> None:
    with room(open_to_all) as here:
        task = here.approved()
        free = RULES.replace("outcome: require_attestation", "outcome: allow, final: true")
        folder = write_pack(tmp_path / "2", rules=free, pack=PACK.replace('"1"', '"2"'))
        here.activate(folder)
        reply = here.again(task)
        assert reply["decision"] is True
        assert reply["context"]["approval"] == {"id": task, "lifted": None}
        here.activate(write_pack(tmp_path / "3", pack=PACK.replace('"1"', '"3"')))
        assert lifts(here.again(task))


def test_of_two_questions_in_one_batch_an_approval_lifts_one(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        question = with_approval(DEPLOY, here.approved())
        reply = here.at(APP).send("evaluate", evaluations=[question] * 5)
        assert [item["decision"] for item in reply["evaluations"]].count(True) == 1
        refused = [item["context"] for item in reply["evaluations"] if not item["decision"]]
        assert {context["reason_code"] for context in refused} == {"approval_used"}


def test_offers_and_uses_of_an_approval_are_recorded_with_each_decision_of_a_batch(
    open_to_all: Config, tmp_path: Path
) -> None:
    pack = PACK.replace("consents: [email]", "uses: until\n      holds_s: 600")
    folder = write_pack(tmp_path / "until", pack=pack)
    with room(replace(open_to_all, pack=str(folder))) as here:
        lifting = with_approval(DEPLOY, here.approved())
        questions: list[Json] = [DEPLOY, lifting, {**DEPLOY, "context": {}}, lifting]
        alone = [here.at(APP).ask(question)["context"] for question in questions]
        reply = here.at(APP).send("evaluate", evaluations=questions)
        together = [item["context"] for item in reply["evaluations"]]
        for single, item in zip(alone, together, strict=True):
            assert item.keys() == single.keys()
            of_batch = recorded(here.config, item["decision_id"])
            assert of_batch == recorded(here.config, single["decision_id"])
        bodies = [recorded(here.config, item["decision_id"])["events"][0][1] for item in together]
        assert ["offer" in body for body in bodies] == [True, False, False, False]
        assert ["use" in body for body in bodies] == [False, True, False, True]


def test_an_approval_until_a_time_lifts_until_then(open_to_all: Config, tmp_path: Path) -> None:
    pack = PACK.replace("consents: [email]", "uses: until\n      holds_s: 600")
    folder = write_pack(tmp_path / "until", pack=pack)
    with room(replace(open_to_all, pack=str(folder))) as here:
        task = here.approved()
        assert all(lifts(here.again(task)) for _ in range(3))
        here.time.seconds = 590
        assert lifts(here.again(task))
        here.time.seconds = 660
        assert why_not(here.again(task)) == "approval_expired"


def test_a_step_up_allows_with_its_obligation_where_the_pack_says_so(
    open_to_all: Config, tmp_path: Path
) -> None:
    rules = RULES.replace("outcome: require_attestation", "outcome: require_mfa")
    question = DEPLOY | {"context": DEPLOY["context"] | {"supported_obligations": ["mfa"]}}
    on = PACK.replace("- label: require_mfa\n", "- label: require_mfa\n    step_up: true\n")
    for name, pack, allowed in (("off", PACK, False), ("on", on, True)):
        folder = write_pack(tmp_path / name, rules=rules, pack=pack)
        with room(replace(open_to_all, pack=str(folder), state_dir=open_to_all.state_dir / name)) as here:
            reply = here.at(APP).ask(question)
            assert (reply["decision"], reply["context"]["outcome"]) == (allowed, "require_mfa")
            assert [obligation["id"] for obligation in reply["context"]["obligations"]] == ["mfa"]
            assert here.at(APP).ask(DEPLOY)["decision"] is False


# ---------------------------------------------------------------- emergencies


def test_break_glass_answers_an_emergency_and_people_review_it_first(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        assert refusal(lambda: here.at(BOB).change("approve", here.task(urgency="urgent"))) == INSUFFICIENT
        for number in range(3):
            here.at(APP).ask(DEPLOY | {"subject": {"type": "user", "id": f"u{number}"}})
        task = here.task(urgency="emergency")
        done = here.at(BOB).change("approve", task)
        assert (done["status"], done["urgency"]) == ("approved", "emergency")
        reply = here.again(task)
        assert lifts(reply)
        decision_id = reply["context"]["decision_id"]
        with Reader(here.config.journal_path) as reader:
            row = reader.get(decision_id)
            first = queue.picks(reader, "robin")[0]
    assert row is not None
    assert (row["is_exception"], row["urgency"], row["lifted"]) == (True, "emergency", "require_attestation")
    assert first.decision_id == decision_id
    assert "emergency" in first.why


def test_an_emergency_can_take_the_ordinary_steps(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.task(urgency="emergency")
        here.at(KIM).change("approve", task)
        here.at(LEE).change("approve", task)
        assert lifts(here.again(task))


# ---------------------------------------------------------------- bounds, keys, who sees what


@pytest.mark.parametrize(
    ("setting", "question"),
    [
        ("approvals_per_caller", DEPLOY | {"subject": {"type": "user", "id": "yve"}}),
        ("approvals_per_subject", DEPLOY | {"context": {"change": "CHG-2"}}),
        ("max_approvals", DEPLOY | {"subject": {"type": "user", "id": "yve"}}),
    ],
)
def test_open_tasks_are_bounded(open_to_all: Config, setting: str, question: Json) -> None:
    with room(replace(open_to_all, **{setting: 2})) as here:
        first, _ = here.task(), here.task(question if setting != "approvals_per_subject" else DEPLOY)
        denied = here.denied(question)
        with pytest.raises(RequestError, match=rf"the limit is 2 \({setting}\)") as refused:
            here.at(APP).request(denied)
        assert refused.value.code == "busy"
        here.at(KIM).change("deny", first)
        assert here.at(APP).request(denied)["status"] == "pending"


def test_bounds_of_one_caller_and_one_subject_leave_room_for_others(open_to_all: Config) -> None:
    with room(replace(open_to_all, approvals_per_caller=1, approvals_per_subject=2)) as here:
        here.task()
        other = here.at(OTHER_APP).ask(DEPLOY)["context"]["decision_id"]
        assert here.at(OTHER_APP).request(other)["status"] == "pending"
        third = here.at(PAT).ask(DEPLOY)["context"]["decision_id"]
        assert refusal(lambda: here.at(PAT).request(third)) == ("busy", None)


def test_a_task_that_was_used_or_has_expired_makes_room(open_to_all: Config) -> None:
    with room(replace(open_to_all, max_approvals=1)) as here, subscribed(here.config) as events:
        assert lifts(here.again(here.approved()))
        here.task()
        here.time.seconds = 90_000
        assert events("expired")["status"] == "expired"
        assert here.task()


def test_a_repeated_key_gives_the_first_task_again(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        record = {"decision_id": here.denied()}
        first, again = (
            here.at(APP).send("request_approval", record=record, idempotency_key="k1") for _ in range(2)
        )
        assert first["recorded"] == again["recorded"]
        task = first["recorded"]["id"]
        first, twice = (
            here.at(KIM).send("approve", record={"task": task}, idempotency_key="k2") for _ in range(2)
        )
        assert first["recorded"] == twice["recorded"]
        assert len(twice["recorded"]["task"]["verdicts"]) == 1
        assert refusal(lambda: here.at(KIM).send("deny", record={"task": task}, idempotency_key="k2"))[0] == (
            "conflict"
        )


def test_a_repeated_question_gives_the_first_answer_and_uses_no_second_approval(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        denied = [here.at(APP).send("evaluate", request=DEPLOY, idempotency_key="k1") for _ in range(2)]
        assert denied[0]["context"]["access_request"] == denied[1]["context"]["access_request"]
        question = with_approval(DEPLOY, here.approved())
        allowed = [here.at(APP).send("evaluate", request=question, idempotency_key="k2") for _ in range(2)]
        assert [reply["decision"] for reply in allowed] == [True, True]
        assert allowed[0]["context"]["decision_id"] == allowed[1]["context"]["decision_id"]
        assert allowed[0]["context"]["approval"] == allowed[1]["context"]["approval"]


def listed(caller: OtherCaller, **query: Json) -> set[str]:
    return {task["id"] for task in caller.send("approvals", record=query)["tasks"]}


def test_a_caller_sees_its_own_tasks_and_an_approver_all(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        mine = here.task()
        decision = here.at(OTHER_APP).ask(DEPLOY)["context"]["decision_id"]
        theirs = here.at(OTHER_APP).request(decision)["id"]
        assert listed(here.at(APP)) == {mine}
        assert listed(here.at(OTHER_APP)) == {theirs}
        assert listed(here.at(KIM)) == listed(here.at(PAT)) == {mine, theirs}
        refused = refusal(lambda: here.at(APP).send("approvals", record={"id": theirs}))
        assert refused == ("not_found", "unknown_task")
        assert here.at(KIM).send("approvals", record={"id": theirs})["task"]["id"] == theirs


def test_a_list_has_the_states_that_were_asked_for(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        pending, approved, used = here.task(), here.approved(), here.approved()
        here.again(used)
        denied = here.task()
        here.at(KIM).change("deny", denied)
        assert listed(here.at(APP)) == {pending}
        assert listed(here.at(APP), states=["approved"]) == {approved, used}
        assert listed(here.at(APP), states=["denied"]) == {denied}
        every = ["pending", "partial", "approved", "denied", "expired", "cancelled"]
        assert listed(here.at(APP), states=every) == {pending, approved, used, denied}
        assert len(listed(here.at(APP), states=every, limit=1)) == 1


# ---------------------------------------------------------------- events, settings, restarts, figures


@contextmanager
def subscribed(config: Config) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Yields a function that waits for the next event of an approval in a state."""
    with zmq.Context() as context, context.socket(zmq.SUB) as events:
        events.set(zmq.LINGER, 0)
        events.set(zmq.RCVTIMEO, PATIENCE_MS)
        events.subscribe(b"")
        events.connect(config.events_endpoint)
        with Client(config.endpoint, timeout_ms=PATIENCE_MS) as own:
            while not events.poll(50):  # a subscription takes a moment
                own.evaluate(DEPLOY)

        def next_in(state: str) -> dict[str, Any]:
            while True:
                kind, body = events.recv_multipart()
                if kind == b"approval" and (item := json.loads(body))["status"] == state:
                    return dict(item)

        yield next_in


def test_every_change_of_a_task_is_published(open_to_all: Config) -> None:
    with room(open_to_all) as here, subscribed(here.config) as events:
        task = here.task(reason="release 7")
        pending = events("pending")
        assert (pending["id"], pending["reason"]) == (task, "release 7")
        here.at(KIM).change("approve", task)
        assert [verdict["approver"] for verdict in events("partial")["verdicts"]] == ["kim"]
        here.at(LEE).change("approve", task)
        assert events("approved")["approval"] == {"id": task}
        here.at(APP).change("cancel", task)
        assert events("cancelled")["id"] == task
        denied = here.task()
        here.at(KIM).change("deny", denied)
        assert events("denied")["id"] == denied
        late = here.task()
        here.time.seconds = 90_000
        assert events("expired")["id"] == late


def test_a_reload_changes_who_may_approve_and_keeps_what_was_given(open_to_all: Config) -> None:
    others = (f"uid:{KIM}=kim;cook", f"uid:{PAT}=pat;manager", f"uid:{LEE}=lee;security")
    invalid = replace(open_to_all, people=("user:nobody-of-that-name=x;manager",))
    with room(open_to_all, replace(open_to_all, people=others), invalid) as here:
        before, after = here.task(), here.task()
        here.at(KIM).change("approve", before)
        assert refusal(lambda: here.at(PAT).change("approve", after)) == INSUFFICIENT
        for _ in range(2):  # the second is refused as a whole
            here.reload()
            assert refusal(lambda: here.at(KIM).change("approve", after)) == INSUFFICIENT
        here.at(PAT).change("approve", after)
        assert here.at(LEE).change("approve", before)["status"] == "approved"
        assert lifts(here.again(before))


def test_a_daemon_that_starts_again_goes_on_where_it_was(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        partial, approved, used, denied = here.task(), here.approved(), here.approved(), here.task()
        here.at(KIM).change("approve", partial)
        assert lifts(here.again(used))
        here.at(KIM).change("deny", denied)
    with room(open_to_all) as here:
        assert [here.state(task) for task in (partial, approved, used, denied)] == [
            *("partial", "approved", "approved", "denied"),
        ]
        assert here.at(LEE).change("approve", partial)["status"] == "approved"
        assert lifts(here.again(partial))
        assert lifts(here.again(approved))
        assert why_not(here.again(used)) == "approval_used"
        assert why_not(here.again(denied)) == "approval_denied"
    assert verify(open_to_all.journal_path).ok


def test_an_approval_that_expired_while_no_daemon_ran_does_not_help(open_to_all: Config) -> None:
    with room(open_to_all) as here:
        task = here.approved()
    later = Passing()
    later.seconds = 3_700
    with room(open_to_all, pushed=later) as here:
        assert why_not(here.again(task)) == "approval_expired"


def test_status_and_metrics_count_approvals(open_to_all: Config) -> None:
    with room(open_to_all) as here, subscribed(here.config) as events:
        task, waits = here.approved(), here.task()
        here.again(task)
        here.again(task)
        here.again("unknown")
        here.time.seconds = 10
        status = msgspec.to_builtins(here.own().status().approvals)
        counted = status["counters"]
        assert (counted["used"], counted["refused_approval_used"], counted["refused_approval_unknown"]) == (
            1,
            1,
            1,
        )
        assert counted["refused_approval_mismatch"] == 0
        here.time.seconds = 90_000
        assert events("expired")["id"] == waits
        assert here.own().status().approvals.counters["expired"] == 1  # type: ignore[union-attr]
        text = str(here.own().metrics())
    for name in ("approvals_pending", "approvals_oldest_seconds", "refused_approval_used"):
        assert name in text
