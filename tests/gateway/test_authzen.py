"""AuthZEN 1.0 over a real socket: what the specification and its certification scenario require."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.build import rows
from tests.gateway.conftest import CERTIFICATION
from tests.gateways import Running, gateway
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
ALICE: Json = {"type": "user", "id": "alice"}
BOB: Json = {"type": "user", "id": "bob"}
ADMIN: Json = BOB | {"properties": {"role": "admin"}}
RECORD: Json = {"type": "record", "id": "record-1"}
ARCHIVED: Json = {"type": "record", "id": "record-2", "properties": {"status": "archived"}}
READ, WRITE = {"name": "read"}, {"name": "write"}
CONTEXT: Json = {"time": "2025-06-27T18:03-07:00", "ip": "192.168.1.1"}
CHANGES: Json = {"action": WRITE, "resource": ARCHIVED}
ASKS: Json = {"subject": ALICE, "action": READ, "resource": RECORD}


def delete(*, soft: bool) -> Json:
    return {"name": "delete", "properties": {"soft": soft}}


class TestEvaluation:
    @pytest.mark.parametrize(
        ("subject", "action", "resource", "decision"),
        [
            (ALICE, READ, RECORD, True),
            (ALICE, WRITE, RECORD, True),
            (BOB, READ, RECORD, True),
            (BOB, WRITE, RECORD, False),
            (ALICE, WRITE, ARCHIVED, False),
            (ADMIN, WRITE, ARCHIVED, True),
            (ALICE, delete(soft=True), RECORD, True),
            (ALICE, delete(soft=False), RECORD, False),
        ],
    )
    @pytest.mark.parametrize("context", [None, {}, CONTEXT])
    def test_the_fixture_is_decided_as_the_scenario_says_with_and_without_context(
        self, http: httpx.Client, subject: Json, action: Json, resource: Json, decision: bool, context: Json
    ) -> None:
        body = {"subject": subject, "action": action, "resource": resource}
        reply = http.post(EVALUATION, json=body if context is None else body | {"context": context})
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["decision"] is decision
        assert isinstance(reply.json()["context"], dict)

    @pytest.mark.parametrize(
        "change",
        [
            {"foo": "bar", "futureField": {"nested": True}},
            {"subject": ALICE | {"properties": {"department": "Sales", "role": "manager"}, "more": 1}},
            {"action": READ | {"properties": {"method": "GET"}}},
            {"resource": RECORD | {"properties": {"status": "active", "owner": "bob"}}},
            {"context": {"schema": [1, {"deep": None}]}},
            {"as": {"name": "token:root", "roles": ["control"]}, "pack": "nothing", "explain": "odd", "v": 9},
            {"Subject": BOB, "SUBJECT": 1},
        ],
    )
    def test_unknown_members_and_further_properties_change_nothing(
        self, http: httpx.Client, change: Json
    ) -> None:
        reply = http.post(EVALUATION, json=ASKS | change)
        assert (reply.status_code, reply.json().get("decision")) == (200, True)

    def test_the_same_question_gets_the_same_decision(self, http: httpx.Client) -> None:
        assert {http.post(EVALUATION, json=ASKS).json()["decision"] for _ in range(5)} == {True}

    @pytest.mark.parametrize(
        "content_type",
        ["application/json", "application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'],
    )
    def test_json_in_utf_8_is_accepted(self, http: httpx.Client, content_type: str) -> None:
        reply = http.post(EVALUATION, content=json.dumps(ASKS), headers={"Content-Type": content_type})
        assert reply.status_code == 200

    def test_a_decision_is_recorded_before_it_is_served(self, http: httpx.Client, certified: Config) -> None:
        decision_id = http.post(EVALUATION, json=ASKS).json()["context"]["decision_id"]
        assert rows(certified.journal_path, "SELECT 1 FROM decisions WHERE decision_id = ?", decision_id)


def without(*path: str) -> Json:
    body = json.loads(json.dumps(ASKS))
    parent = body
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    return body


def mistyped(value: Json, *path: str) -> Json:
    body = json.loads(json.dumps(ASKS))
    parent = body
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    return body


MISSING = [
    without(*path)
    for path in (
        ("subject",), ("action",), ("resource",), ("subject", "type"), ("subject", "id"), ("action", "name"),
        ("resource", "type"), ("resource", "id"),
    )
]  # fmt: skip
MISTYPED = [
    mistyped(value, *path)
    for path, values in {
        ("subject",): ("alice", None, [], 1, True),
        ("action",): ("read", None, [READ]),
        ("resource",): ("record-1", None, [RECORD]),
        ("context",): ("now", [], 3),
        ("subject", "type"): (None, 1, ["user"], {}, ""),
        ("subject", "id"): (None, 1, True, {}, ""),
        ("action", "name"): (None, 123, ["read"], ""),
        ("resource", "type"): (None, 1, ""),
        ("resource", "id"): (None, 1, ""),
        ("subject", "properties"): ("x", [], 1),
        ("action", "properties"): ("x", [], 1),
        ("resource", "properties"): ("x", [], 1),
    }.items()
    for value in values
]


class TestRefusals:
    @pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS])
    @pytest.mark.parametrize("body", [*MISSING, *MISTYPED], ids=lambda body: json.dumps(body)[:70])
    def test_a_missing_or_mistyped_member_is_400(self, http: httpx.Client, path: str, body: Json) -> None:
        reply = http.post(path, json=body)
        assert reply.status_code == 400
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == 400

    @pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS, "/access/v1/search/subject"])
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b" ",
            b"{",
            b"null",
            b"[]",
            b"[{}]",
            b'"text"',
            b"7",
            b"{}",
            b"{'subject': 1}",
            json.dumps([ASKS]).encode(),
            json.dumps(ASKS).encode() + b"x",
            json.dumps(ASKS).encode() + b"{}",
            json.dumps(ASKS).encode() + b"\x00",
            b"\xef\xbb\xbf" + json.dumps(ASKS).encode(),
            json.dumps(ASKS).encode("utf-16"),
            json.dumps(ASKS)[:-1].encode() + b', "subject": {"type": "user", "id": "bob"}}',
            json.dumps(ASKS)[:-1].encode() + b', "context": {"a": 1, "a": 2}}',
            json.dumps(ASKS)[:-1].encode() + b', "context": {"a": 1e999}}',
            json.dumps(ASKS)[:-1].encode() + b', "context": {"a": NaN}}',
            json.dumps(ASKS)[:-1].encode() + b', "context": {"a": 99999999999999999999}}',
            json.dumps(ASKS)[:-1].encode() + b', "context": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
            json.dumps(ASKS).replace("alice", "al\\ud800ice").encode(),
            json.dumps(ASKS).encode().replace(b"alice", b"al\xffice"),
        ],
    )
    def test_a_body_that_is_no_strict_json_object_is_400(
        self, http: httpx.Client, path: str, content: bytes
    ) -> None:
        reply = http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400

    @pytest.mark.parametrize(
        "content_type",
        [
            None,
            "",
            "text/plain",
            "text/json",
            "application/jsonx",
            "application/json-patch+json",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin-1",
            "application/json, text/plain",
            "multipart/form-data; boundary=x",
        ],
    )
    @pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS, "/access/v1/search/action"])
    def test_another_content_type_is_400(
        self, http: httpx.Client, path: str, content_type: str | None
    ) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        assert http.post(path, content=json.dumps(ASKS).encode(), headers=headers).status_code == 400

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
    @pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS, "/access/v1/search/resource"])
    def test_another_method_is_405_and_says_which_is_allowed(
        self, http: httpx.Client, path: str, method: str
    ) -> None:
        reply = http.request(method, path, headers={"X-Request-ID": "m"})
        assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")
        assert reply.headers["X-Request-ID"] == "m"

    @pytest.mark.parametrize(
        "path", ["/", "/access/v1", "/access/v1/evaluation/", "/ACCESS/v1/evaluation", "/x"]
    )
    def test_an_unknown_path_is_404(self, http: httpx.Client, path: str) -> None:
        assert http.post(path, json=ASKS).status_code == 404

    def test_a_compressed_body_is_415(self, http: httpx.Client) -> None:
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert http.post(EVALUATION, content=b"x", headers=headers).status_code == 415

    def test_a_body_that_is_too_large_is_413_by_its_length_and_without_one(
        self, http: httpx.Client, running: Running
    ) -> None:
        large = json.dumps(ASKS | {"context": {"x": "y" * running.settings.max_bytes}}).encode()
        headers = {"Content-Type": "application/json", "X-Request-ID": "large"}
        pieces = (large[at : at + 65_536] for at in range(0, len(large), 65_536))
        for content in (large, pieces):
            reply = http.post(EVALUATION, content=content, headers=headers)
            assert (reply.status_code, reply.headers["X-Request-ID"]) == (413, "large")

    def test_too_many_evaluations_are_413(self, http: httpx.Client) -> None:
        assert http.post(EVALUATIONS, json=ASKS | {"evaluations": [{}] * 65}).status_code == 413


class TestHeaders:
    @pytest.mark.parametrize(
        "value",
        [
            "1",
            "bfe9eb29-ab87-4ca3-be83-a1d5d8305716",
            "a b\tc",
            '";,=<>{}[]',
            "é",
            "x" * 4_000,
            "%0d%0aSet-Cookie: a=b",
        ],
    )
    @pytest.mark.parametrize(
        ("method", "path", "content", "status"),
        [
            ("POST", EVALUATION, json.dumps(ASKS).encode(), 200),
            ("POST", EVALUATION, b"{", 400),
            ("POST", "/nowhere", b"", 404),
            ("GET", EVALUATION, b"", 405),
            ("GET", "/.well-known/authzen-configuration", b"", 200),
        ],
    )
    def test_x_request_id_comes_back_exactly_whatever_the_status(
        self, http: httpx.Client, value: str, method: str, path: str, content: bytes, status: int
    ) -> None:
        sent = value.encode("latin-1")
        headers = [(b"X-Request-ID", sent), (b"Content-Type", b"application/json")]
        reply = http.request(method, path, content=content, headers=headers)
        assert reply.status_code == status
        assert [value for name, value in reply.headers.raw if name.lower() == b"x-request-id"] == [sent]

    def test_without_x_request_id_there_is_none(self, http: httpx.Client) -> None:
        assert "X-Request-ID" not in http.post(EVALUATION, json=ASKS).headers

    def test_a_trace_is_continued_in_the_tags_of_the_decision(
        self, http: httpx.Client, certified: Config
    ) -> None:
        trace = "0af7651916cd43dd8448eb211c80319c"
        reply = http.post(EVALUATION, json=ASKS, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        decision_id = reply.json()["context"]["decision_id"]
        ((tags,),) = rows(
            certified.journal_path, "SELECT tags FROM decisions WHERE decision_id = ?", decision_id
        )
        assert json.loads(tags) == [f"traceparent:00-{trace}-b7ad6b7169203331-01"]

    @pytest.mark.parametrize(
        "value", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff-a-b-c", "00-" + "A" * 55]
    )
    def test_a_traceparent_that_is_none_is_ignored(self, http: httpx.Client, value: str) -> None:
        assert http.post(EVALUATION, json=ASKS, headers={"traceparent": value}).status_code == 200


class TestEvaluations:
    @pytest.mark.parametrize(
        ("defaults", "items", "decisions"),
        [
            ({"subject": BOB, "resource": RECORD}, [{"action": READ}, {"action": WRITE}], [True, False]),
            (
                {"subject": ALICE, "action": WRITE},
                [{"resource": RECORD | {"properties": {"status": "active"}}}, {"resource": ARCHIVED}],
                [True, False],
            ),
            (
                {"action": WRITE, "resource": ARCHIVED},
                [{"subject": ALICE}, {"subject": ADMIN}],
                [False, True],
            ),
            ({}, [ASKS, ASKS | {"subject": BOB, "action": WRITE}], [True, False]),
            (ASKS | {"action": WRITE}, [{}, {"resource": ARCHIVED}], [True, False]),
            (ASKS, [{"subject": {}}, {"resource": {}, "action": {}}], [True, True]),
            # a missing id is the default's; its properties are not merged in
            (
                {"subject": ADMIN, "action": WRITE, "resource": ARCHIVED},
                [{"subject": {"id": "alice"}}],
                [False],
            ),
            (
                {"subject": ADMIN, "action": WRITE, "resource": ARCHIVED},
                [{}, {"subject": {"type": "user"}}],
                [True, False],
            ),
            (ASKS | {"context": CONTEXT}, [{}, {"context": {"source": "override"}}], [True, True]),
            # what is wrong with an item is false in its place
            ({"subject": ALICE, "action": READ}, [{"resource": RECORD}, {}], [True, False]),
            (
                ASKS,
                [{"subject": {"type": 1}}, {}, 7, "x", None, {"action": "read"}],
                [False, True] + [False] * 4,
            ),
            ({"subject": ALICE, "action": READ}, [{}], [False]),
        ],
    )
    def test_defaults_are_replaced_whole_and_a_bad_item_is_false_in_its_place(
        self, http: httpx.Client, defaults: Json, items: Json, decisions: list[bool]
    ) -> None:
        reply = http.post(EVALUATIONS, json=defaults | {"evaluations": items})
        assert reply.status_code == 200
        assert set(reply.json()) == {"evaluations"}
        replies = reply.json()["evaluations"]
        assert [item["decision"] for item in replies] == decisions

    def test_a_bad_item_says_why_with_its_status(self, http: httpx.Client) -> None:
        reply = http.post(EVALUATIONS, json={"subject": ALICE, "action": READ, "evaluations": [{}]})
        (item,) = reply.json()["evaluations"]
        assert item["context"]["error"]["status"] == 400
        assert "resource" in item["context"]["error"]["message"]

    @pytest.mark.parametrize(
        ("semantic", "subjects", "decisions"),
        [
            ("execute_all", [ALICE, BOB, ALICE], [True, False, True]),
            ("deny_on_first_deny", [ALICE, BOB, ALICE], [True, False]),
            ("deny_on_first_deny", [ALICE, {"type": 1}, ALICE], [True, False]),
            ("deny_on_first_deny", [ALICE, ALICE], [True, True]),
            ("permit_on_first_permit", [BOB, ALICE, BOB], [False, True]),
            ("permit_on_first_permit", [{"type": 1}, BOB, ALICE, BOB], [False, False, True]),
            ("permit_on_first_permit", [BOB, BOB], [False, False]),
        ],
    )
    def test_a_batch_ends_at_its_trigger(
        self, http: httpx.Client, semantic: str, subjects: list[Json], decisions: list[bool]
    ) -> None:
        body = {
            "action": WRITE,
            "resource": RECORD,
            "options": {"evaluations_semantic": semantic, "another": 1},
            "evaluations": [{"subject": subject} for subject in subjects],
        }
        replies = http.post(EVALUATIONS, json=body).json()["evaluations"]
        assert [item["decision"] for item in replies] == decisions

    @pytest.mark.parametrize(
        "change",
        [
            {"options": {"evaluations_semantic": "first_come"}},
            {"options": {"evaluations_semantic": None}},
            {"options": {"evaluations_semantic": 1}},
            {"options": []},
            {"options": "execute_all"},
            {"evaluations": {}},
            {"evaluations": "all"},
            {"subject": "alice", "evaluations": [{}]},
        ],
    )
    @pytest.mark.parametrize("items", [{}, {"evaluations": [{}]}])
    def test_wrong_options_are_400(self, http: httpx.Client, change: Json, items: Json) -> None:
        assert http.post(EVALUATIONS, json=ASKS | items | change).status_code == 400

    @pytest.mark.parametrize("more", [{}, {"evaluations": []}, {"evaluations": None}, {"options": {}}])
    def test_without_evaluations_it_is_a_single_question(self, http: httpx.Client, more: Json) -> None:
        reply = http.post(EVALUATIONS, json=ASKS | more)
        assert (reply.status_code, reply.json()["decision"]) == (200, True)
        assert "evaluations" not in reply.json()


class TestMetadata:
    def test_it_names_the_gateway_and_its_endpoints(self, http: httpx.Client) -> None:
        reply = http.get("/.well-known/authzen-configuration")
        assert reply.headers["content-type"] == "application/json"
        stated: dict[str, Any] = reply.json()
        assert stated["policy_decision_point"] == "https://pdp.example.com"
        assert stated["access_evaluation_endpoint"] == "https://pdp.example.com/access/v1/evaluation"
        assert {name for name in stated if name.endswith("_endpoint")} >= {
            "access_evaluation_endpoint",
            "access_evaluations_endpoint",
            "search_subject_endpoint",
            "search_resource_endpoint",
            "search_action_endpoint",
        }
        assert all(
            value.startswith("https://") for name, value in stated.items() if name.endswith("_endpoint")
        )
        assert all(isinstance(capability, str) for capability in stated.get("capabilities", ["none"]))
        assert all(value not in (None, "", [], {}) for value in stated.values())

    def test_an_identifier_with_a_path_is_that_of_its_metadata(self, certified: Config) -> None:
        url = "https://example.com/pdp/eu"
        with gateway(certified.endpoint, public_url=url) as own, own.client() as client:
            stated = client.get("/.well-known/authzen-configuration/pdp/eu").json()
        assert stated["policy_decision_point"] == url
        assert stated["access_evaluation_endpoint"] == f"{url}/access/v1/evaluation"

    def test_a_tenant_is_part_of_the_identifier(self, http: httpx.Client) -> None:
        stated = http.get("/.well-known/authzen-configuration/tenant1").json()
        assert stated["policy_decision_point"] == "https://pdp.example.com/tenant1"


def test_a_batch_of_fifty_is_one_commit(config: Config) -> None:
    """Decided by rules, with nothing else to do; the daemon's own count of commits."""
    with (
        serving(replace(config, pack=str(CERTIFICATION)), load_engine=load_stub_engine) as served,
        gateway(served.endpoint) as own,
        own.client() as client,
        Client(served.endpoint) as daemon,
    ):
        assert client.post(EVALUATION, json=ASKS).status_code == 200
        before = daemon.status().journal
        reply = client.post(EVALUATIONS, json=ASKS | {"evaluations": [{}] * 50})
        assert [item["decision"] for item in reply.json()["evaluations"]] == [True] * 50
        after = daemon.status().journal
    assert (after.batches - before.batches, after.seq - before.seq) == (1, 50)
