"""Approvals through a real daemon: from a denial that can be lifted to an allow, and each refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.callers import OtherCaller, other_caller
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

APP, KIM, LEE, ANN, BOB = 61001, 61002, 61003, 61004, 61005
PEOPLE = (
    f"uid:{KIM}=kim;manager",
    f"uid:{LEE}=lee;security",
    f"uid:{ANN}=ann;manager+recorder",
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
    grants = ("local=ask", *(f"uid:{uid}=ask+approve" for uid in (KIM, LEE, ANN, BOB)))
    pack = write_pack(tmp_path / "deploys")
    return replace(config, socket_mode=0o666, roles=grants, people=PEOPLE, pack=str(pack))


class Room:
    """A daemon, the app that asks it, and the people who approve."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self.config = config
        self._stack = stack
        self._callers: dict[int, OtherCaller] = {}

    def at(self, uid: int) -> OtherCaller:
        if uid not in self._callers:
            self._callers[uid] = self._stack.enter_context(other_caller(self.config.endpoint, uid))
        return self._callers[uid]

    def denied(self, question: Json = DEPLOY) -> str:
        return str(self.at(APP).ask(question)["context"]["decision_id"])

    def task(self, **members: Json) -> str:
        return str(self.at(APP).request(self.denied(), **members)["id"])

    def approved(self) -> str:
        task = self.task()
        self.at(KIM).change("approve", task)
        assert self.at(LEE).change("approve", task)["status"] == "approved"
        return task

    def again(self, task: str, question: Json = DEPLOY) -> dict[str, Json]:
        context = question["context"] | {"approval": {"id": task, "status": "approved"}}
        return self.at(APP).ask(question | {"context": context})


@contextmanager
def room(config: Config) -> Iterator[Room]:
    with serving(config, load_engine=load_stub_engine), ExitStack() as stack:
        yield Room(config, stack)


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
