"""Approvals over HTTP: a denial that can be lifted, the request, the task, and each of its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from tests.build import rows
from tests.daemon.test_approvals import DEPLOY, write_pack
from tests.gateways import gateway, tokens_for
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import load_stub_engine

EVALUATION, REQUESTS = "/access/v1/evaluation", "/access/v1/requests"
URN = "urn:openid:authzen:access-request:error:"
PEOPLE = ("token:kim=kim;manager", "token:lee=lee;security")


@dataclass
class Workplace:
    """A gateway with two services, and a socket on which people approve."""

    config: Config
    app: httpx.Client
    other: httpx.Client

    def approve(self, task: str, *names: str) -> None:
        for name in names:
            behalf = {"name": f"token:{name}", "roles": ["approve"]}
            with Client(self.config.endpoint) as client:
                client.call("approve", {"record": {"task": task}, "as": behalf})


@pytest.fixture
def workplace(config: Config, tmp_path: Path) -> Iterator[Workplace]:
    pack = write_pack(tmp_path / "pack")
    tokens = tokens_for(tmp_path / "tokens.json", app=("ask",), other=("ask",))
    with (
        serving(replace(config, pack=str(pack), people=PEOPLE), load_engine=load_stub_engine) as served,
        gateway(
            served.endpoint, tokens=tmp_path / "tokens.json", public_url="https://pdp.example.com"
        ) as running,
        running.client(tokens["app"]) as app,
        running.client(tokens["other"]) as other,
    ):
        yield Workplace(served, app, other)


def denial(client: httpx.Client, question: Json = DEPLOY) -> dict[str, Json]:
    reply = client.post(EVALUATION, json=question)
    assert (reply.status_code, reply.json()["decision"]) == (200, False)
    context: dict[str, Json] = reply.json()["context"]
    return context


def request_for(context: dict[str, Json], **changes: Json) -> dict[str, Json]:
    return {
        **{name: DEPLOY[name] for name in ("subject", "action", "resource")},
        "context": {"business_justification": "release 7.3"},
        "denial": {"evaluation_id": context["evaluation_id"]},
    } | changes


def problem(reply: httpx.Response) -> tuple[int, str]:
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["status"] == reply.status_code
    return reply.status_code, reply.json()["type"].removeprefix(URN)


class TestWholeWay:
    def test_a_denial_is_requested_approved_and_asked_again(self, workplace: Workplace) -> None:
        app = workplace.app
        context = denial(app)
        offer = context["access_request"]
        assert offer["endpoint"] == "https://pdp.example.com/access/v1/requests"
        assert offer["requestable"] is True
        assert offer["expires_at"].endswith("Z")
        assert (context["evaluation_id"], context["reason"]) == (context["decision_id"], "approval_required")
        made = app.post(REQUESTS, json=request_for(context), headers={"Idempotency-Key": "7.3"})
        assert made.status_code == 202
        task = made.json()["task"]
        assert task["status"] == "pending"
        assert made.headers["Location"] == task["status_endpoint"]
        assert task["status_endpoint"] == f"https://pdp.example.com/access/v1/requests/{task['id']}"
        assert task["links"]["cancel"] == f"{task['status_endpoint']}/cancel"
        workplace.approve(task["id"], "kim")
        assert app.get(f"{REQUESTS}/{task['id']}").json()["task"]["status"] == "partial"
        workplace.approve(task["id"], "lee")
        status = app.get(f"{REQUESTS}/{task['id']}").json()
        assert (status["task"]["status"], status["result"]["mode"]) == ("approved", "reevaluate")
        again = DEPLOY | {"context": DEPLOY["context"] | {"approval": status["result"]["approval"]}}
        allowed = app.post(EVALUATION, json=again).json()
        assert (allowed["decision"], allowed["context"]["approval"]["lifted"]) == (
            True,
            "require_attestation",
        )
        assert app.post(EVALUATION, json=again).json()["decision"] is False
        assert verify(workplace.config.journal_path).problem is None

    def test_an_approval_is_no_grant_for_another_caller_subject_or_resource(
        self, workplace: Workplace
    ) -> None:
        task = workplace.app.post(REQUESTS, json=request_for(denial(workplace.app))).json()["task"]
        workplace.approve(task["id"], "kim", "lee")
        again = DEPLOY | {"context": DEPLOY["context"] | {"approval": {"id": task["id"]}}}
        assert workplace.other.post(EVALUATION, json=again).json()["decision"] is False
        for change in (
            {"subject": {"type": "user", "id": "yan"}},
            {"resource": {"type": "service", "id": "payroll"}},
        ):
            assert workplace.app.post(EVALUATION, json=again | change).json()["decision"] is False
        assert workplace.app.post(EVALUATION, json=again).json()["decision"] is True

    def test_the_same_idempotency_key_gives_the_same_task(self, workplace: Workplace) -> None:
        body, headers = request_for(denial(workplace.app)), {"Idempotency-Key": "once"}
        first, second = (workplace.app.post(REQUESTS, json=body, headers=headers).json() for _ in range(2))
        assert first["task"]["id"] == second["task"]["id"]
        other = body | {"context": {"business_justification": "another"}}
        reply = workplace.app.post(REQUESTS, json=other, headers=headers)
        assert problem(reply) == (409, "duplicate_request")

    def test_what_a_request_is_about_is_not_recorded_twice(self, workplace: Workplace) -> None:
        workplace.app.post(REQUESTS, json=request_for(denial(workplace.app)))
        sql = "SELECT CAST(body AS TEXT) FROM events WHERE kind = 'approval_request'"
        ((body,),) = rows(workplace.config.journal_path, sql)
        assert "question" not in json.loads(body)
        assert "zoe" not in body


class TestRefusals:
    def test_a_denial_that_nothing_lifts_has_no_access_request(self, workplace: Workplace) -> None:
        context = denial(workplace.app, DEPLOY | {"action": {"name": "drop"}})
        assert "access_request" not in context
        body = request_for({"evaluation_id": context["decision_id"]}, action={"name": "drop"})
        assert problem(workplace.app.post(REQUESTS, json=body)) == (400, "not_requestable")

    @pytest.mark.parametrize(
        "change",
        [
            {"subject": {"type": "user", "id": "yan"}},
            {"action": {"name": "read"}},
            {"resource": {"type": "service", "id": "payroll"}},
            {"denial": {"evaluation_id": "01a2-nothing"}},
            {"denial": {}},
            {"denial": {"evaluation_id": 7}},
        ],
    )
    def test_a_request_that_is_not_bound_to_its_denial_is_refused(
        self, workplace: Workplace, change: Json
    ) -> None:
        reply = workplace.app.post(REQUESTS, json=request_for(denial(workplace.app)) | change)
        assert problem(reply) == (400, "invalid_denial_binding")

    def test_another_caller_cannot_request_for_a_denial(self, workplace: Workplace) -> None:
        reply = workplace.other.post(REQUESTS, json=request_for(denial(workplace.app)))
        assert problem(reply) == (400, "invalid_denial_binding")

    def test_a_second_request_for_one_denial_is_a_duplicate(self, workplace: Workplace) -> None:
        body = request_for(denial(workplace.app))
        assert workplace.app.post(REQUESTS, json=body).status_code == 202
        assert problem(workplace.app.post(REQUESTS, json=body)) == (409, "duplicate_request")

    @pytest.mark.parametrize("name", ["subject", "action", "resource", "denial"])
    def test_a_missing_member_is_400(self, workplace: Workplace, name: str) -> None:
        body = request_for(denial(workplace.app))
        del body[name]
        assert workplace.app.post(REQUESTS, json=body).status_code == 400

    def test_a_task_is_cancelled_one_time_and_only_by_its_requester(self, workplace: Workplace) -> None:
        task = workplace.app.post(REQUESTS, json=request_for(denial(workplace.app))).json()["task"]
        cancel = f"{REQUESTS}/{task['id']}/cancel"
        assert workplace.other.post(cancel).status_code in (403, 404)
        done = workplace.app.post(cancel, json={"reason": "postponed"})
        assert (done.status_code, done.json()["task"]["status"]) == (200, "cancelled")
        assert problem(workplace.app.post(cancel)) == (409, "invalid_task_state")
        assert workplace.app.get(f"{REQUESTS}/{task['id']}").json()["task"]["status"] == "cancelled"

    def test_an_unknown_task_and_one_of_another_caller_are_404(self, workplace: Workplace) -> None:
        task = workplace.app.post(REQUESTS, json=request_for(denial(workplace.app))).json()["task"]
        assert problem(workplace.other.get(f"{REQUESTS}/{task['id']}")) == (404, "unknown_task")
        assert problem(workplace.app.get(f"{REQUESTS}/none")) == (404, "unknown_task")
        assert problem(workplace.app.post(f"{REQUESTS}/none/cancel")) == (404, "unknown_task")


class TestObligations:
    MFA: Json = {"id": "mfa", "type": "step-up", "properties": {"acr_values": ["mfa"]}}

    @pytest.mark.parametrize("supported", [None, [], ["email"], ["step-up"], ["mfa"]])
    def test_an_obligation_never_makes_a_denial_an_allow_without_a_step_up_of_the_pack(
        self, config: Config, tmp_path: Path, supported: Json
    ) -> None:
        pack = write_pack(
            tmp_path / "pack",
            rules='- {id: mfa, when: "true", outcome: require_mfa, because: Step up.}\n',
            pack="name: steps\nversion: '1'\ndescription: Step-up.\nmodel: never\ndefault: deny\noutcomes:\n"
            "  - label: allow\n"
            "  - {label: require_mfa, step_up: true, obligations: [{id: mfa, type: step-up, properties: "
            "{acr_values: [mfa]}}]}\n"
            "  - label: deny\n",
        )
        context = {} if supported is None else {"supported_obligations": supported}
        with (
            serving(replace(config, pack=str(pack)), load_engine=load_stub_engine) as served,
            gateway(served.endpoint) as running,
            running.client() as client,
        ):
            reply = client.post(EVALUATION, json=DEPLOY | {"context": context}).json()
        assert reply["decision"] is (supported in (["step-up"], ["mfa"]))
        assert reply["context"]["obligations"] == [self.MFA]
