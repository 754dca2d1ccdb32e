"""Canaries: who belongs to the share."""

from __future__ import annotations

import math

from hypothesis import assume, given
from hypothesis import strategies as st

from thor_policy.core.canary import Canary, asker_of, position
from thor_policy.core.decisions import PackInfo
from thor_policy.core.requests import Caller

PACK = PackInfo(name="small", version="2", sha256="a" * 64)
SALTS = st.binary(min_size=16, max_size=16).map(bytes.hex)
ASKERS = st.builds("uid:{}".format, st.integers(0, 2**32 - 2))
SHARES = st.floats(0.001, 1.0)


def canary(salt: str, share: float) -> Canary:
    return Canary(
        id="c-1",
        salt=salt,
        share=share,
        pack=PACK,
        path="/packs/two",
        weights="b" * 64,
        against=PACK,
        against_weights="b" * 64,
    )


def arms(salt: str, share: float, uids: range) -> list[str]:
    at = canary(salt, share)
    return [at.member(Caller(transport="ipc", uid=uid, gid=1)).arm for uid in uids]


@given(salt=SALTS, share=st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9]))
def test_a_share_of_the_callers_is_on_trial_within_binomial_bounds(salt: str, share: float) -> None:
    callers = 4_000
    members = arms(salt, share, range(callers)).count("canary")
    spread = math.sqrt(callers * share * (1 - share))
    assert abs(members - callers * share) < 6 * spread


@given(salt=SALTS, asker=ASKERS, shares=st.tuples(SHARES, SHARES))
def test_a_larger_share_keeps_everybody_that_a_smaller_one_had(
    salt: str, asker: str, shares: tuple[float, float]
) -> None:
    smaller, larger = sorted(shares)
    assume(position(salt, asker) < smaller)
    assert position(salt, asker) < larger


@given(salt=SALTS, asker=ASKERS)
def test_a_caller_stands_at_one_place_for_the_whole_canary(salt: str, asker: str) -> None:
    assert 0 <= position(salt, asker) < 1
    assert position(salt, asker) == position(salt, asker)


def test_two_canaries_have_different_members() -> None:
    first, second = (arms(f"{number:032x}", 0.2, range(500)) for number in (1, 2))
    assert first != second
    both = sum(a == b == "canary" for a, b in zip(first, second, strict=True))
    assert both < 50, "a caller that was on trial once is not on trial more often"


def test_a_share_of_1_has_every_caller_that_somebody_vouches_for() -> None:
    assert set(arms("0f" * 16, 1.0, range(1_000))) == {"canary"}
    assert canary("0f" * 16, 1.0).member(Caller(transport="inproc")).arm == "control"


def test_whom_a_relay_asks_for_counts_and_not_the_relay() -> None:
    direct = Caller(transport="ipc", uid=1000, gid=1, pid=1)
    again = Caller(transport="ipc", uid=1000, gid=7, pid=99)
    alice = [Caller(transport="ipc", uid=uid, gid=1, on_behalf_of="token:alice") for uid in (990, 991)]
    bob = Caller(transport="ipc", uid=990, gid=1, on_behalf_of="token:bob")
    assert asker_of(direct) == asker_of(again) == "uid:1000"
    assert [asker_of(each) for each in (*alice, bob)] == ["token:alice", "token:alice", "token:bob"]
    assert asker_of(Caller(transport="tcp", key="edge")) == "key:edge"
