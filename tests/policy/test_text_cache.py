"""Caches of what was read of texts hold bounded memory, whatever the texts are."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.slow_frames import LIGATURE, MARKS, repeated
from thor_policy.core.decisions import Scored
from thor_policy.policy import functions
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.policy.structure import shell, sql
from thor_policy.policy.text_cache import TextCache, kept, weight

#: Texts whose results are large, each with a number to tell it from others.
SHAPES: list[Callable[[int], str]] = [
    lambda at: f"{at} " + repeated("a ", 4_000),
    lambda at: f"{at} " + repeated("aB-", 4_000),
    lambda at: f"{at}" + LIGATURE * 220,
    lambda at: f"{at}" + repeated("e" + MARKS, 4_000),
    lambda at: f"echo {at};" + "a;" * 100,
    lambda at: f"ls /{at} " + "/a/b " * 60,
    lambda at: f"http://{at}.com/" + "a/" * 60,
    lambda at: f"/home/{at}/" + "a/" * 100,
    lambda at: f"select a from b{at}",
    lambda at: f"ls {at}",
    lambda at: f"select a{at}, " + ", ".join(f"b{n}" for n in range(20)) + " from t",
    lambda at: f"kim{at}@example.com",
    lambda at: f"10.{at // 65_536 % 256}.{at // 256 % 256}.{at % 256}",
    lambda at: f"2026-03-03T22:30:00.{at:06}Z",
    lambda at: f"x{at}",
]


def functions_with_caches() -> list[TextCache[Any, Any]]:
    return [cache for cache in TextCache.every if cache.function.__module__.startswith("thor_policy.")]


def arguments(cache: TextCache[Any, Any], text: str) -> tuple[Any, ...]:
    """What the function of a cache is called with, besides a text."""
    more = {"_cached": ("/srv/data/work",), "_problem": (False,), "_read": (shell._BUILT_IN,)}
    name = cache.function.__name__
    is_path = cache.function.__module__.endswith(".path")
    return (text, *(more.get(name, ()) if name != "_cached" or is_path else ()))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    functions.forget()
    gc.freeze()  # a collection looks at what the test makes, not at the whole process
    yield
    gc.unfreeze()
    functions.forget()


def test_every_function_that_remembers_texts_is_known_to_these_tests() -> None:
    names = {f"{cache.function.__module__}.{cache.function.__name__}" for cache in functions_with_caches()}
    assert {name.removeprefix("thor_policy.policy.") for name in names} == {
        "functions._moment",
        "structure.email._email",
        "structure.names._cached_forms",
        "structure.names._problem",
        "structure.names.letters",
        "structure.network._cidr",
        "structure.path._base",
        "structure.path._cached",
        "structure.shell._read",
        "structure.sql._sql",
        "structure.url._cached",
        "words.plain_words",
    }


@pytest.mark.parametrize(
    "cache",
    [pytest.param(cache, id=cache.function.__module__.split(".")[-1] + cache.function.__name__)
     for cache in functions_with_caches()],
)  # fmt: skip
@pytest.mark.parametrize("most_texts", [25, pytest.param(100, marks=pytest.mark.soak)])
def test_a_cache_full_of_any_texts_holds_no_more_memory_than_its_bound(
    cache: TextCache[Any, Any], most_texts: int
) -> None:
    sql.load()
    small = TextCache(cache.function, 2**17)  # is full sooner; the bound is one of its arguments
    TextCache.every.remove(small)
    dropped = 0
    for shape in SHAPES:
        cost = weight(small(*arguments(cache, shape(0)))) + 500
        count = min(2 * small.most_bytes // cost + 2, most_texts) if len(small) else 1
        small.clear()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for at in range(count):
            small(*arguments(cache, shape(at)))
            assert small.bytes <= small.most_bytes
        functions.forget()  # what the function itself remembers elsewhere
        gc.collect()  # the trees of a parser of SQL refer to each other
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before <= small.most_bytes + 2**14
        dropped += count - len(small)
    assert dropped > 0


def test_all_caches_of_texts_together_are_bounded() -> None:
    assert sum(cache.most_bytes for cache in functions_with_caches()) <= 64 * 2**20


def test_a_result_is_kept_while_it_is_used_and_computed_again_when_it_was_not() -> None:
    computed: list[str] = []

    @kept(40_000)
    def twice(text: str) -> str:
        computed.append(text)
        return text * 2

    TextCache.every.remove(twice)
    for number in range(200):
        assert twice("used") == "usedused"
        twice(f"{number}" + "a" * 500)
    assert computed.count("used") == 1
    assert len(twice) < 40
    before = len(computed)
    twice("0" + "a" * 500)
    assert len(computed) == before + 1
    twice.clear()
    assert (len(twice), twice.bytes) == (0, 0)


def test_a_result_that_weighs_more_than_an_eighth_of_the_cache_is_not_kept() -> None:
    echo = TextCache(lambda text: text * 10, 80_000)
    TextCache.every.remove(echo)
    assert echo("a" * 2_000) == "a" * 20_000
    assert len(echo) == 0
    echo("a")
    assert len(echo) == 1


def test_an_exception_is_not_kept() -> None:
    def fails(text: str) -> str:
        raise ValueError(text)

    cache = TextCache(fails)
    TextCache.every.remove(cache)
    for _ in range(2):
        with pytest.raises(ValueError, match="a"):
            cache("a")
    assert len(cache) == 0


@pytest.mark.parametrize("tokens", [0, 512, 4_096])
def test_scores_are_bounded_in_bytes_and_the_oldest_go_first(tokens: int) -> None:
    scored = Scored(
        label="allow",
        probabilities={"allow": 1.0},
        logits=(1.0,),
        suffix_tokens=tuple(range(1_000, 1_000 + tokens)),
        prefix_tokens=1,
        prefix_digest="d",
        score_ms=1.0,
    )
    cache = ScoreCache(10_000, 60, most_bytes=2**20)
    for number in range(2_000):
        cache.put(("pack", "weights", f"{number}" + "é" * 1_000), f"d{number}", scored, now_ns=0)
        assert cache.bytes <= 2**20
    assert 0 < len(cache) < 2_000
    assert cache.get(("pack", "weights", "1999" + "é" * 1_000), 1) is not None
    assert cache.get(("pack", "weights", "0" + "é" * 1_000), 1) is None
    assert cache.counters["evicted"] == 2_000 - len(cache)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
