"""Bearer tokens: what the file holds, who may read it, and which tokens count."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.cli.main import cli
from thor_policy.core.errors import ConfigError
from thor_policy.security.tokens import TOKEN, TokenRing, Tokens

NOON = 1_778_668_800.0
DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens" / "tokens.json"


def test_a_new_token_counts_and_is_not_in_its_file_which_only_the_owner_can_read(path: Path) -> None:
    token = Tokens(path).new("alice", ("ask", "review"), NOON)
    assert TOKEN.fullmatch(token)
    holder = TokenRing(path).token(token, NOON)
    assert holder is not None
    assert (holder.who, holder.roles, holder.made_at) == (
        "token:alice",
        ("ask", "review"),
        "2026-05-13T10:40:00Z",
    )
    assert token.rpartition("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_expired_token_does_not_count_and_its_name_is_free_again(path: Path) -> None:
    store = Tokens(path)
    short = store.new("alice", ("ask",), NOON, expires_at=NOON + DAY)
    ring = TokenRing(path)
    assert ring.token(short, NOON + DAY - 1) is not None
    assert ring.token(short, NOON + DAY) is None
    second = store.new("alice", ("ask",), NOON + 2 * DAY)
    assert ring.token(second, NOON + 2 * DAY) is not None


def test_a_revoked_token_stops_to_count_at_once(path: Path) -> None:
    store, other = Tokens(path), Tokens(path)
    token, kept = store.new("alice", ("ask",), NOON), store.new("bob", ("ask",), NOON)
    ring = TokenRing(path)
    assert ring.token(token, NOON) is not None
    other.revoke("alice", NOON)
    assert ring.token(token, NOON) is None
    assert ring.token(kept, NOON) is not None
    with pytest.raises(ConfigError, match=r"there is nothing to revoke called 'alice' .*; known: token:bob"):
        store.revoke("alice", NOON)


def test_a_certificate_has_roles_by_its_common_name_and_is_no_token(path: Path) -> None:
    store = Tokens(path)
    store.new_certificate("edge", ("ask",), NOON)
    ring = TokenRing(path)
    holder = ring.certificate("edge", NOON)
    assert holder is not None
    assert holder.who == "cert:edge"
    assert ring.certificate("other", NOON) is None
    assert ring.token("tp_" + "0" * 8 + "_" + "A" * 43, NOON) is None


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "ü", "x" * 65, "a\n", "a:b"])
def test_a_name_that_the_daemon_would_refuse_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a token cannot be called"):
        Tokens(path).new(name, ("ask",), NOON)
    assert not path.exists()


def test_a_token_has_never_the_role_relay(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot have the role relay"):
        Tokens(path).new("eve", ("ask", "relay"), NOON)


def test_two_valid_tokens_have_two_names(path: Path) -> None:
    Tokens(path).new("alice", ("ask",), NOON)
    with pytest.raises(ConfigError, match="revoke it first"):
        Tokens(path).new("alice", ("ask",), NOON)


@given(st.text(max_size=80) | st.from_regex(TOKEN, fullmatch=True))
def test_no_other_text_is_a_token(text: str) -> None:
    path = Path(f"/tmp/thor-policy-{os.getpid()}-tokens.json")
    path.unlink(missing_ok=True)
    try:
        token = Tokens(path).new("alice", ("ask",), NOON)
        ring = TokenRing(path)
        assert ring.token(text, NOON) is None or text == token
        assert ring.token(token[:11] + "_" + "A" * 43, NOON) is None
    finally:
        path.unlink()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"holders": [{"name": "x"}]}', b"\xff"])
def test_a_file_that_breaks_makes_no_token_valid_until_it_is_whole_again(path: Path, damage: bytes) -> None:
    token = Tokens(path).new("alice", ("ask",), NOON)
    ring, whole = TokenRing(path), path.read_bytes()
    path.write_bytes(damage)
    assert ring.token(token, NOON) is None
    with pytest.raises(ConfigError, match=r"is no tokens file of `thorpolicy tokens`$"):
        TokenRing(path)
    path.write_bytes(whole)
    assert ring.token(token, NOON) is not None


def test_a_file_that_others_can_read_is_refused_with_the_cure(path: Path) -> None:
    Tokens(path).new("alice", ("ask",), NOON)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"has mode 0640, .* run `chmod 600` on it"):
        TokenRing(path)
    with pytest.raises(ConfigError, match="make one with `thorpolicy tokens new`"):
        TokenRing(path.with_name("none.json"))


def test_the_commands_make_list_and_revoke(path: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["tokens", *arguments, "--tokens", str(path)])
        assert done.exit_code == 0, done.output
        return done.output

    token = run("new", "alice", "--role", "ask", "--days", "1").strip()
    assert TokenRing(path).token(token, NOON) is not None
    run("new", "edge", "--certificate")
    listed = run("list")
    assert "token:alice" in listed
    assert "cert:edge" in listed
    assert "sha256" not in run("list", "--json")
    assert run("revoke", "alice").strip() == "revoked token:alice"
    assert TokenRing(path).token(token, NOON) is None
