"""The scenarios of the AuthZEN interoperability events, over HTTP, by the packs that ship for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateways import gateway
from thor_policy.config import Config, data_path
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"


def identity(letter: str) -> str:
    return f"CiRmZD{letter}2MTRkMy1jMzlhLTQ3ODEtYjdiZC04Yjk2ZjVhNTEwMGQSBWxvY2Fs"


#: Each user with the letter of the id, and the address that owns entries.
USERS = {
    "rick": ("A", "rick@the-citadel.com"),
    "morty": ("E", "morty@the-citadel.com"),
    "summer": ("I", "summer@the-smiths.com"),
    "beth": ("M", "beth@the-smiths.com"),
    "jerry": ("Q", "jerry@the-smiths.com"),
}
EDITORS = ("rick", "morty", "summer")


def client_of(pack: str) -> Iterator[httpx.Client]:
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        config = Config(
            state_dir=Path(folder),
            endpoint=f"ipc://{folder}/policy.sock",
            pack=str(data_path("prompts") / pack),
            threads=1,
        )
        with (
            serving(config, load_engine=load_stub_engine),
            gateway(config.endpoint) as running,
            running.client() as client,
        ):
            yield client


@pytest.fixture(scope="module")
def todo() -> Iterator[httpx.Client]:
    yield from client_of("todo-app")


@pytest.fixture(scope="module")
def routes() -> Iterator[httpx.Client]:
    yield from client_of("api-gateway")


def subject(name: str, type: str = "user") -> Json:
    return {"type": type, "id": identity(USERS[name][0])}


def entry(owner: str) -> Json:
    return {"type": "todo", "id": f"of-{owner}", "properties": {"ownerID": USERS[owner][1]}}


@pytest.mark.parametrize("name", USERS)
def test_the_to_do_scenario_is_decided_as_it_says(todo: httpx.Client, name: str) -> None:
    def allowed(action: str, resource: Json) -> bool:
        body = {"subject": subject(name), "action": {"name": action}, "resource": resource, "context": {}}
        reply = todo.post(EVALUATION, json=body)
        assert reply.status_code == 200
        return bool(reply.json()["decision"])

    assert allowed("can_read_user", {"type": "user", "id": "beth@the-smiths.com"})
    assert allowed("can_read_todos", {"type": "todo", "id": "todo-1"})
    assert allowed("can_create_todo", {"type": "todo", "id": "todo-1"}) is (name in EDITORS)
    for owner in USERS:
        own = name in EDITORS and owner == name
        assert allowed("can_update_todo", entry(owner)) is (own or name == "rick")
        assert allowed("can_delete_todo", entry(owner)) is (own or name == "rick")


@pytest.mark.parametrize(
    ("name", "decisions"), [("rick", [True, True]), ("morty", [False, True]), ("jerry", [False, False])]
)
def test_the_batch_of_the_to_do_scenario_replaces_an_empty_default(
    todo: httpx.Client, name: str, decisions: list[bool]
) -> None:
    body = {
        "subject": subject(name),
        "action": {"name": "can_update_todo"},
        "resource": {},
        "context": {},
        "evaluations": [{"resource": entry("rick")}, {"resource": entry("morty")}],
    }
    replies = todo.post(EVALUATIONS, json=body).json()["evaluations"]
    assert [item["decision"] for item in replies] == decisions


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize(
    ("method", "route", "for_all"),
    [
        ("GET", "/users/{userId}", True),
        ("GET", "/todos", True),
        ("POST", "/todos", False),
        ("PUT", "/todos/{todoId}", False),
        ("DELETE", "/todos/{todoId}", False),
    ],
)
def test_the_api_gateway_scenario_is_decided_as_it_says(
    routes: httpx.Client, name: str, method: str, route: str, for_all: bool
) -> None:
    body = {
        "subject": subject(name, "identity"),
        "action": {"name": method},
        "resource": {"type": "route", "id": route},
    }
    assert routes.post(EVALUATION, json=body).json()["decision"] is (for_all or name in EDITORS)


def test_searches_list_what_the_roles_grant(todo: httpx.Client, routes: httpx.Client) -> None:
    def listed(client: httpx.Client, target: str, body: Json) -> set[str]:
        results = client.post(f"/access/v1/search/{target}", json=body).json()["results"]
        return {entity.get("id") or entity["name"] for entity in results}

    creators = {"subject": {"type": "user"}, "action": {"name": "can_create_todo"}, "resource": entry("beth")}
    assert listed(todo, "subject", creators) == {subject(name)["id"] for name in EDITORS}
    actions = {"subject": subject("morty"), "resource": entry("morty")}
    assert listed(todo, "action", actions) == {
        "can_read_todos",
        "can_create_todo",
        "can_update_todo",
        "can_delete_todo",
    }
    readable = {
        "subject": subject("beth", "identity"),
        "action": {"name": "GET"},
        "resource": {"type": "route"},
    }
    assert listed(routes, "resource", readable) == {"/users/{userId}", "/todos"}
