"""Sessions of browsers: their time, their number, their cookies."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.gateways import NOON, tokens_for
from thor_policy.gateway.auth import Authenticator, Unauthenticated
from thor_policy.web import sessions
from thor_policy.web.sessions import IDLE_S, LIFE_S, MAX_SESSIONS, Session, Sessions


def test_a_session_ends_with_time() -> None:
    session = Session(None, "csrf", now=0.0)
    assert not session.is_over(IDLE_S)
    assert session.is_over(IDLE_S + 1)
    session.used = LIFE_S
    assert session.is_over(LIFE_S + 1)


def test_a_cookie_is_good_for_its_session_until_that_is_over() -> None:
    known = Sessions(Authenticator(None, Counter()), Counter())
    cookie, session = asyncio.run(known.begin(None, NOON))
    assert known.of_cookie(cookie, NOON) is session
    assert known.of_cookie(cookie, NOON + IDLE_S + 1) is None
    assert known.of_cookie(f"{cookie}x", NOON) is None
    assert known.of_cookie("x" * 10_000, NOON) is None
    asyncio.run(known.end(cookie))
    assert known.of_cookie(cookie, NOON) is None


def test_of_too_many_sessions_the_one_that_was_idle_longest_ends() -> None:
    counters: Counter[str] = Counter()
    known = Sessions(Authenticator(None, Counter()), counters)
    ended: list[str] = []

    async def fill() -> tuple[str, str]:
        first, session = await known.begin(None, NOON)

        async def close() -> None:
            ended.append("first")

        session.closing.append(close)
        cookies = [(await known.begin(None, NOON + 1))[0] for _ in range(MAX_SESSIONS)]
        return first, cookies[0]

    first, second = asyncio.run(fill())
    assert (known.of_cookie(first, NOON), ended, counters["sessions_evicted"]) == (None, ["first"], 1)
    assert known.of_cookie(second, NOON + 1) is not None


def test_a_session_with_a_token_needs_a_valid_one(tmp_path: Path) -> None:
    tokens = tokens_for(tmp_path / "t" / "tokens.json", robin=("review",))
    known = Sessions(Authenticator(tmp_path / "t" / "tokens.json", Counter()), Counter())
    _, session = asyncio.run(known.begin(tokens["robin"], NOON))
    assert known.principal(session).name == "token:robin"
    with pytest.raises(Unauthenticated):
        asyncio.run(known.begin(None, NOON))


def test_a_form_is_of_its_own_session_alone() -> None:
    session = Session(None, "ours", now=NOON)
    assert sessions.is_its_form(session, "ours")
    assert not any(sessions.is_its_form(session, other) for other in ("theirs", "", "our", "\udcff"))
