"""Search over HTTP: what is listed, pages, and what is recorded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.build import rows, write_rules_only_pack
from tests.gateways import gateway, tokens_for
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import load_stub_engine

SUBJECT, RESOURCE, ACTION = (f"/access/v1/search/{target}" for target in ("subject", "resource", "action"))
ALICE, BOB = {"type": "user", "id": "alice"}, {"type": "user", "id": "bob"}
ADMIN: Json = BOB | {"properties": {"role": "admin"}}
USER, RECORDS = {"type": "user"}, {"type": "record"}
RECORD, ARCHIVED = (
    RECORDS | {"id": "record-1"},
    RECORDS | {"id": "record-2", "properties": {"status": "archived"}},
)
ADMINS: Json = USER | {"properties": {"role": "admin"}}
READ, WRITE = {"name": "read"}, {"name": "write"}
WHO_READS: Json = {"subject": USER, "action": READ, "resource": RECORD}


def ids(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [entity.get("id") or entity["name"] for entity in reply.json()["results"]]


class TestResults:
    @pytest.mark.parametrize(
        ("path", "body", "results"),
        [
            (SUBJECT, WHO_READS, ["alice", "bob"]),
            (SUBJECT, WHO_READS | {"subject": ALICE}, ["alice", "bob"]),
            (SUBJECT, WHO_READS | {"subject": USER | {"id": 7}}, ["alice", "bob"]),
            (SUBJECT, WHO_READS | {"action": WRITE}, ["alice"]),
            (
                SUBJECT,
                {"subject": USER | {"properties": {"role": "admin"}}, "action": WRITE, "resource": ARCHIVED},
                ["alice", "bob"],
            ),
            (RESOURCE, {"subject": ALICE, "action": READ, "resource": RECORDS}, ["record-1", "record-2"]),
            (RESOURCE, {"subject": ALICE, "action": READ, "resource": RECORD}, ["record-1", "record-2"]),
            (RESOURCE, {"subject": ALICE, "action": WRITE, "resource": RECORDS}, ["record-1"]),
            (RESOURCE, {"subject": ADMIN, "action": WRITE, "resource": RECORDS}, ["record-1", "record-2"]),
            (ACTION, {"subject": ALICE, "resource": RECORD}, ["read", "write"]),
            (ACTION, {"subject": ALICE, "resource": RECORD, "action": 7}, ["read", "write"]),
            (ACTION, {"subject": ADMIN, "resource": ARCHIVED}, ["read", "write"]),
            (ACTION, {"subject": USER | {"id": "nobody"}, "resource": RECORD}, []),
            (ACTION, {"subject": ALICE, "resource": RECORDS | {"id": "none"}}, []),
            (ACTION, {"subject": {"type": "spaceship", "id": "alice"}, "resource": RECORD}, []),
            (SUBJECT, WHO_READS | {"subject": {"type": "spaceship"}}, []),
            (SUBJECT, WHO_READS | {"resource": RECORDS | {"id": "none"}}, []),
            (SUBJECT, WHO_READS | {"action": {"name": "fly"}}, []),
            (RESOURCE, {"subject": ALICE, "action": READ, "resource": {"type": "spaceship"}}, []),
            (RESOURCE, {"subject": USER | {"id": "nobody"}, "action": READ, "resource": RECORDS}, []),
        ],
    )
    @pytest.mark.parametrize("more", [{}, {"context": {"time": "2025-06-27T18:03-07:00"}}, {"foo": 1}])
    def test_a_search_lists_what_would_be_allowed(
        self, http: httpx.Client, path: str, body: Json, results: list[str], more: Json
    ) -> None:
        reply = http.post(path, json=body | more)
        assert ids(reply) == results
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["page"]["next_token"] == ""
        for entity in reply.json()["results"]:
            assert set(entity) == ({"name"} if path == ACTION else {"type", "id"})

    def test_what_is_listed_is_allowed_and_what_is_not_is_denied(self, http: httpx.Client) -> None:
        listed = ids(http.post(SUBJECT, json=WHO_READS | {"action": WRITE}))
        for name in ("alice", "bob"):
            body = {"subject": USER | {"id": name}, "action": WRITE, "resource": RECORD}
            assert http.post("/access/v1/evaluation", json=body).json()["decision"] is (name in listed)

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            (SUBJECT, {"subject": USER, "resource": RECORD}),
            (SUBJECT, {"action": READ, "resource": RECORD}),
            (SUBJECT, {"subject": USER, "action": READ}),
            (SUBJECT, {"subject": USER, "action": READ, "resource": RECORDS}),
            (SUBJECT, {"subject": {}, "action": READ, "resource": RECORD}),
            (SUBJECT, {"subject": "user", "action": READ, "resource": RECORD}),
            (SUBJECT, {"subject": USER, "action": {}, "resource": RECORD}),
            (RESOURCE, {"action": READ, "resource": RECORDS}),
            (RESOURCE, {"subject": USER, "action": READ, "resource": RECORDS}),
            (RESOURCE, {"subject": ALICE, "resource": RECORDS}),
            (RESOURCE, {"subject": ALICE, "action": READ, "resource": {"id": "record-1"}}),
            (ACTION, {"subject": ALICE}),
            (ACTION, {"resource": RECORD}),
            (ACTION, {"subject": USER, "resource": RECORD}),
            (ACTION, {"subject": ALICE, "resource": RECORDS}),
            *((SUBJECT, WHO_READS | {"page": page}) for page in ([], "x", 1, True)),
            *((SUBJECT, WHO_READS | {"page": {"limit": limit}}) for limit in (-1, "1", 1.5, True, [])),
            *((SUBJECT, WHO_READS | {"page": {"token": token}}) for token in (1, "x", "x.y", "a" * 5_000)),
        ],
    )
    def test_a_search_without_what_it_needs_is_400(self, http: httpx.Client, path: str, body: Json) -> None:
        assert http.post(path, json=body).status_code in ((400, 413) if "aaaa" in str(body) else (400,))


class TestPages:
    @pytest.mark.parametrize("alone", [True, False])
    def test_one_result_a_page_reaches_everything_once(self, http: httpx.Client, alone: bool) -> None:
        listed, page = [], {"limit": 1}
        while True:
            reply = http.post(SUBJECT, json=WHO_READS | {"page": page})
            listed += ids(reply)
            assert len(reply.json()["results"]) <= 1
            if not (token := reply.json()["page"]["next_token"]):
                break
            page = {"token": token} if alone else {"limit": 1, "token": token}
        assert listed == ["alice", "bob"]

    @pytest.mark.parametrize(
        "change",
        [
            {"action": WRITE},
            {"resource": ARCHIVED},
            {"subject": USER | {"properties": {"role": "admin"}}},
            {"context": {"a": 1}},
            {"page": {"limit": 2}},
        ],
    )
    def test_a_token_with_other_parameters_is_400(self, http: httpx.Client, change: Json) -> None:
        token = http.post(SUBJECT, json=WHO_READS | {"page": {"limit": 1}}).json()["page"]["next_token"]
        page = {"page": {"token": token} | change.get("page", {})}
        assert http.post(SUBJECT, json=WHO_READS | page | (change | page)).status_code == 400

    def test_a_token_is_for_one_search_endpoint_and_one_caller(
        self, certified: Config, tmp_path: Path
    ) -> None:
        tokens = tokens_for(tmp_path / "tokens.json", ann=("ask",), ben=("ask",))
        with (
            gateway(certified.endpoint, tokens=tmp_path / "tokens.json") as running,
            running.client(tokens["ann"]) as ann,
            running.client(tokens["ben"]) as ben,
        ):
            token = ann.post(SUBJECT, json=WHO_READS | {"page": {"limit": 1}}).json()["page"]["next_token"]
            page = {"page": {"token": token}}
            assert ben.post(SUBJECT, json=WHO_READS | page).status_code == 400
            assert ann.post(RESOURCE, json=WHO_READS | {"subject": ALICE} | page).status_code == 400
            assert ann.post(SUBJECT, json=WHO_READS | page).status_code == 200
            payload, mac = token.split(".")
            forged = f"{payload}.{mac[:-1]}{'0' if mac[-1] != '0' else '1'}"
            assert ann.post(SUBJECT, json=WHO_READS | {"page": {"token": forged}}).status_code == 400


class TestRecord:
    def test_a_search_is_one_event_without_ids_and_no_decision(self, config: Config, tmp_path: Path) -> None:
        rules = '- {id: all, when: "true", outcome: allow, final: true, because: All may.}\n'
        pack = write_rules_only_pack(tmp_path / "pack", rules=rules)
        (pack / "data.yaml").write_text("users: [zora, bob]\n")
        with serving(replace(config, pack=str(pack)), load_engine=load_stub_engine) as served:
            with gateway(served.endpoint) as running, running.client() as client:
                assert ids(client.post(SUBJECT, json=WHO_READS)) == ["bob", "zora"]
            events = rows(served.journal_path, "SELECT CAST(body AS TEXT) FROM events WHERE kind = 'search'")
            assert rows(served.journal_path, "SELECT count(*) FROM decisions") == [(0,)]
        ((body,),) = events
        recorded = json.loads(body)
        assert (recorded["target"], recorded["tried"], recorded["listed"]) == ("subject", 2, 2)
        assert "zora" not in body
        assert "record-1" not in body
        assert verify(served.journal_path).problem is None


SOURCES = """sources:
  people:
    of: subject
    types: [user]
    table: {path: people.csv}
    attributes: {level: {type: int}}
reads: {}
"""


@pytest.fixture
def crowded(config: Config, tmp_path: Path) -> Iterator[Config]:
    """A daemon whose source lists 10,000 users, of whom 5,000 may read."""
    rules = (
        "- {id: high, when: sources.people.level > 4, outcome: allow, final: true, because: High enough.}\n"
    )
    pack = write_rules_only_pack(tmp_path / "pack", rules=rules, more=SOURCES)
    rows = "".join(f"user-{number:05},{number % 10}\n" for number in range(10_000))
    (pack / "people.csv").write_text("id,level\n" + rows)
    with serving(replace(config, pack=str(pack)), load_engine=load_stub_engine) as served:
        yield served


RECALLS = "precedents: {rules: true}\n"
FEW = """
- {id: few, when: precedents.count < 2, outcome: allow, final: true, because: There are few like it.}
"""


@pytest.mark.parametrize(
    ("more", "status"),
    [(RECALLS, 400), ("precedents: {k: 2}\n", 200), ("", 200)],
    ids=["read", "shown", "none"],
)
def test_a_search_is_refused_where_rules_read_precedents(
    config: Config, tmp_path: Path, more: str, status: int
) -> None:
    """It looks none up, so a rule that allows where there are few would list what a decision denies."""
    rules = FEW if more == RECALLS else FEW.replace("precedents.count < 2", "'true'")
    pack = write_rules_only_pack(tmp_path / "pack", rules=rules, more=SOURCES + more)
    (pack / "people.csv").write_text("id,level\nuser-1,5\n")
    with (
        serving(replace(config, pack=str(pack)), load_engine=load_stub_engine) as served,
        gateway(served.endpoint) as running,
        running.client() as client,
    ):
        reply = client.post(SUBJECT, json=WHO_READS)
    assert reply.status_code == status, reply.text
    assert ("precedents" in reply.text) == (status == 400)


class TestManySubjects:
    def test_a_source_with_ten_thousand_subjects_is_listed_whole(self, crowded: Config) -> None:
        with gateway(crowded.endpoint) as running, running.client() as client:
            started = time.perf_counter()
            listed = ids(client.post(SUBJECT, json=WHO_READS))
            print(f"10,000 subjects in {time.perf_counter() - started:.3f} s")
            assert listed == [f"user-{number:05}" for number in range(10_000) if number % 10 > 4]
