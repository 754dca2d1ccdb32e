"""Who asks over HTTP: tokens, the role `relay`, and what is refused before anything is decided."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from tests.build import rows, write_rules_only_pack
from tests.callers import as_root, other_caller
from tests.gateways import NOON, READ, gateway, tokens_for
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json, Role
from thor_policy.daemon.service import serving
from thor_policy.journal.events import who_sent
from thor_policy.journal.reader import Reader
from thor_policy.security.tokens import Tokens
from thor_policy.testing import load_stub_engine

RULES = """
- {id: read, when: action.name == "read", outcome: allow, final: true, because: Reading is allowed.}
"""
EVALUATION = "/access/v1/evaluation"


@pytest.fixture
def daemon(config: Config, tmp_path: Path) -> Iterator[Config]:
    """A daemon with a pack of rules alone."""
    config.state_dir.chmod(0o711)
    pack = write_rules_only_pack(tmp_path / "pack", rules=RULES)
    with serving(replace(config, pack=str(pack), socket_mode=0o666), load_engine=load_stub_engine) as served:
        yield served


def decisions(config: Config) -> int:
    (count,) = rows(config.journal_path, "SELECT count(*) FROM decisions")[0]
    return int(count)


def callers(config: Config) -> list[str | None]:
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        bodies = connection.execute("SELECT body FROM events WHERE kind = 'decision' ORDER BY seq")
        return [who_sent(body) for (body,) in bodies]


class TestTokens:
    def test_a_decision_is_recorded_for_the_holder_of_the_token_and_its_relay(
        self, daemon: Config, tmp_path: Path
    ) -> None:
        tokens = tokens_for(tmp_path / "t" / "tokens.json", alice=("ask",))
        with (
            gateway(daemon.endpoint, tokens=tmp_path / "t" / "tokens.json") as running,
            running.client(tokens["alice"]) as client,
        ):
            reply = client.post(EVALUATION, json=READ)
        assert reply.status_code == 200
        assert reply.json()["decision"] is True
        assert callers(daemon) == [f"token:alice via uid:{os.geteuid()}"]

    def test_without_a_tokens_file_a_request_is_the_gateways_own(self, daemon: Config) -> None:
        with gateway(daemon.endpoint) as running, running.client() as client:
            assert client.post(EVALUATION, json=READ).json()["decision"] is True
        assert callers(daemon) == [f"uid:{os.geteuid()}"]

    @pytest.mark.parametrize(
        ("headers", "reason"),
        [
            ({}, "missing"),
            ({"Authorization": "Basic YWxpY2U6eA=="}, "malformed"),
            ({"Authorization": "Bearer"}, "malformed"),
            ({"Authorization": "Bearer " + "x" * 600}, "malformed"),
            ({"Authorization": "Bearer tp_00000000_" + "A" * 43}, "invalid"),
            ({"Authorization": "Bearer nonsense"}, "invalid"),
        ],
    )
    def test_a_request_without_a_valid_token_is_refused_counted_and_not_decided(
        self, daemon: Config, tmp_path: Path, headers: dict[str, str], reason: str
    ) -> None:
        tokens_for(tmp_path / "tokens.json", alice=("ask",))
        with gateway(daemon.endpoint, tokens=tmp_path / "tokens.json") as running:
            with running.client() as client:
                reply = client.post(EVALUATION, json=READ, headers=headers | {"X-Request-ID": "r-1"})
            assert reply.status_code == 401
            assert reply.headers["WWW-Authenticate"].startswith('Bearer realm="thor-policy"')
            assert reply.headers["X-Request-ID"] == "r-1"
            assert running.counters[f"unauthenticated_{reason}"] == 1
        assert decisions(daemon) == 0

    def test_a_revoked_token_is_refused_at_once_and_a_new_one_accepted(
        self, daemon: Config, tmp_path: Path
    ) -> None:
        path = tmp_path / "tokens.json"
        old = tokens_for(path, alice=("ask",))["alice"]
        with gateway(daemon.endpoint, tokens=path) as running, running.client() as client:

            def status(token: str) -> int:
                headers = {"Authorization": f"Bearer {token}"}
                return client.post(EVALUATION, json=READ, headers=headers).status_code

            assert status(old) == 200
            Tokens(path).revoke("alice", NOON)
            assert status(old) == 401
            new = Tokens(path).new("alice", ("ask",), time.time())
            assert (status(new), status(old)) == (200, 401)
        assert decisions(daemon) == 2

    def test_a_token_without_the_role_is_refused_by_the_daemon(self, daemon: Config, tmp_path: Path) -> None:
        tokens = tokens_for(tmp_path / "tokens.json", scribe=("record",))
        with (
            gateway(daemon.endpoint, tokens=tmp_path / "tokens.json") as running,
            running.client(tokens["scribe"]) as client,
        ):
            reply = client.post(EVALUATION, json=READ)
        assert reply.status_code == 403
        assert "token:scribe" in reply.json()["detail"]
        assert decisions(daemon) == 0

    @pytest.mark.parametrize(
        "header", [{"Host": "evil"}, {"Origin": "https://evil.example"}, {"Origin": "null"}]
    )
    def test_another_host_or_origin_is_refused_counted_and_not_decided(
        self, daemon: Config, header: dict[str, str]
    ) -> None:
        with gateway(daemon.endpoint) as running, running.client() as client:
            reply = client.post(EVALUATION, json=READ, headers=header)
            assert reply.status_code == (400 if "Host" in header else 403)
            assert running.counters["refused_host"] + running.counters["refused_origin"] == 1
        assert decisions(daemon) == 0


@as_root
class TestRelayOfAnotherUser:
    def test_a_caller_without_the_role_that_speaks_for_another_is_refused(self, daemon: Config) -> None:
        with other_caller(daemon.endpoint, 65534) as stranger, pytest.raises(RequestError) as refusal:
            stranger.send("evaluate", request=READ, **{"as": {"name": "token:alice", "roles": ["ask"]}})
        assert refusal.value.code == "unauthorized"
        assert "as: needs the role relay" in refusal.value.message
        assert decisions(daemon) == 0

    def test_nobody_gets_a_role_from_a_relay_that_the_relay_lacks(
        self, config: Config, tmp_path: Path
    ) -> None:
        pack = write_rules_only_pack(tmp_path / "pack", rules=RULES)
        config.state_dir.chmod(0o711)
        roles = ("local=ask", "uid:65534=ask+relay")
        with (
            serving(
                replace(config, pack=str(pack), roles=roles, socket_mode=0o666), load_engine=load_stub_engine
            ) as served,
            other_caller(served.endpoint, 65534) as relay,
        ):
            behalf = {"name": "token:eve", "roles": ["ask", "control", "relay"]}
            assert relay.send("evaluate", request=READ, **{"as": behalf})["decision"] is True
            with pytest.raises(RequestError, match="needs the role control"):
                relay.send("control", record={"task": "reload"}, **{"as": behalf})
            behalf = {"name": "token:eve", "roles": ["control"]}
            with pytest.raises(RequestError, match="token:eve and uid 65534, which relays its request"):
                relay.send("evaluate", request=READ, **{"as": behalf})
            assert callers(served) == ["token:eve via uid:65534"]


class TestRelay:
    @pytest.mark.parametrize(
        "behalf",
        [
            "token:alice",
            {},
            {"name": "token:alice"},
            {"name": "alice", "roles": ["ask"]},
            {"name": "uid:0", "roles": ["ask"]},
            {"name": "token:a b", "roles": ["ask"]},
            {"name": "token:alice", "roles": "ask"},
            {"name": "token:alice", "roles": ["king"]},
            {"name": "token:alice", "roles": ["ask"] * (len(get_args(Role)) + 1)},
            {"name": "token:" + "x" * 65, "roles": ["ask"]},
        ],
    )
    def test_a_relay_must_name_somebody_properly(self, daemon: Config, behalf: Json) -> None:
        with Client(daemon.endpoint) as client, pytest.raises(RequestError, match=r"^as"):
            client.call("evaluate", {"request": READ, "as": behalf})
        assert decisions(daemon) == 0

    def test_each_token_has_a_share_of_its_own(self, config: Config, tmp_path: Path) -> None:
        pack = write_rules_only_pack(tmp_path / "pack", rules=RULES)
        limited = replace(config, pack=str(pack), caller_requests_per_s=2)
        tokens = tokens_for(tmp_path / "tokens.json", greedy=("ask",), modest=("ask",))
        with (
            serving(limited, load_engine=load_stub_engine) as served,
            gateway(served.endpoint, tokens=tmp_path / "tokens.json") as running,
            running.client(tokens["greedy"]) as greedy,
            running.client(tokens["modest"]) as modest,
        ):
            replies = [greedy.post(EVALUATION, json=READ) for _ in range(12)]
            refused = [reply for reply in replies if reply.status_code == 429]
            assert refused
            assert all(int(reply.headers["Retry-After"]) >= 1 for reply in refused)
            assert modest.post(EVALUATION, json=READ).status_code == 200
