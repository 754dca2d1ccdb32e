"""Pushed values: each counts for its time, and a caller holds a bounded number and size."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from thor_policy.core.errors import RequestError
from thor_policy.core.sources import Push
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.pushed import PushedSource, PushedValues
from thor_policy.sources.source import SourceError

SECOND = 10**9


def push(id: str = "ann", ttl_s: float = 10, **values: Any) -> Push:
    return Push(source="presence", type="user", id=id, values=values or {"here": True}, ttl_s=ttl_s)


def source_on(store: PushedValues, clock: list[int], max_ttl_s: float = 3_600) -> PushedSource:
    place = {"of": "subject", "attributes": {"here": {"type": "bool"}}, "pushed": {"max_ttl_s": max_ttl_s}}
    spec = msgspec.convert(place, SourceSpec)
    assert spec.pushed is not None
    return PushedSource("presence", spec, spec.pushed, store, lambda: clock[0])


@pytest.mark.parametrize(("max_ttl_s", "last_s"), [(3_600, 10), (4, 4)])
def test_a_value_counts_until_its_time_is_over_and_not_a_moment_longer(max_ttl_s: float, last_s: int) -> None:
    store, clock = PushedValues(10, 10_000), [0]
    source = source_on(store, clock, max_ttl_s)
    store.push(push(), "uid:1", at=1.8e9, now_ns=0)
    clock[0] = last_s * SECOND - 1
    answer = source.look_up("user", "ann", 0)
    assert answer is not None
    assert (answer.values, answer.fresh_at) == ({"here": True}, "2027-01-15T08:00:00.000Z")
    clock[0] += 1
    with pytest.raises(SourceError, match="nothing was pushed, or its time is over"):
        source.look_up("user", "ann", 0)
    assert (len(store), store.counters["expired"]) == (0, 1)


def test_a_later_push_takes_the_place_of_the_earlier_whoever_sent_it() -> None:
    store, clock = PushedValues(1, 10_000), [0]
    store.push(push(), "uid:1", at=0, now_ns=0)
    store.push(push(here=False), "uid:2", at=0, now_ns=0)
    store.push(push("bob"), "uid:1", at=0, now_ns=0)  # uid:1 holds nothing else any more
    answer = source_on(store, clock).look_up("user", "ann", 0)
    assert answer is not None
    assert answer.values == {"here": False}


def test_a_caller_holds_a_bounded_number_and_others_still_may_push() -> None:
    store = PushedValues(2, 10_000)
    for id in ("a", "b"):
        store.push(push(id), "uid:1", at=0, now_ns=0)
    with pytest.raises(RequestError) as refused:
        store.push(push("c"), "uid:1", at=0, now_ns=0)
    assert refused.value.code == "busy"
    assert "the limits are 2 (max_pushed)" in refused.value.message
    store.push(push("c"), "uid:2", at=0, now_ns=0)
    store.push(push("a"), "uid:1", at=0, now_ns=0)  # in place of its own
    assert (len(store), store.counters["refused"]) == (3, 1)


def test_a_caller_holds_a_bounded_size() -> None:
    store = PushedValues(100, 1_000)
    store.push(push("a", text="x" * 600), "uid:1", at=0, now_ns=0)
    with pytest.raises(RequestError, match="max_pushed_mb"):
        store.push(push("b", text="x" * 600), "uid:1", at=0, now_ns=0)
    store.push(push("a", text="x" * 700), "uid:1", at=0, now_ns=0)


def test_what_is_over_makes_place() -> None:
    store = PushedValues(1, 10_000)
    store.push(push("a", ttl_s=1), "uid:1", at=0, now_ns=0)
    store.push(push("b"), "uid:1", at=0, now_ns=SECOND)
    assert len(store) == 1


def test_the_listing_has_only_what_counts() -> None:
    store, clock = PushedValues(10, 10_000), [0]
    store.push(push("b"), "uid:1", at=0, now_ns=0)
    store.push(push("a", ttl_s=1), "uid:1", at=0, now_ns=0)
    source = source_on(store, clock)
    assert source.listing("user", 0) == ["a", "b"]
    clock[0] = SECOND
    assert source.listing("user", 0) == ["b"]
