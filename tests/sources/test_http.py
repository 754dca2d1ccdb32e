"""HTTP sources against a real server that is slow, wrong, redirecting, down or endless."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.json_server import JsonServer, json_server
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.http import MAX_CACHED, HttpSource
from thor_policy.sources.source import SourceError


@pytest.fixture
def server() -> Iterator[JsonServer]:
    with json_server() as running:
        yield running


def source_at(
    url: str, *, hosts: tuple[str, ...] = (), clock: list[int] | None = None, **http: Any
) -> HttpSource:
    attributes = {"tier": {"type": "string"}, "limit": {"type": "number", "at": "limits.discount"}}
    place = {"url": f"{url}/{{id}}"} | http
    spec = msgspec.convert({"of": "subject", "attributes": attributes, "http": place}, SourceSpec)
    assert spec.http is not None
    clock_ns = time.monotonic_ns if clock is None else lambda: clock[0]
    return HttpSource(spec, spec.http, hosts=hosts, clock_ns=clock_ns)


def fault(source: HttpSource, id: str = "ann", ms: int = 20_000) -> str:
    with pytest.raises(SourceError) as failed:
        source.look_up("user", id, time.monotonic_ns() + ms * 1_000_000)
    source.close()
    return str(failed.value)


def tier(source: HttpSource, id: str = "ann") -> object:
    answer = source.look_up("user", id, time.monotonic_ns() + 20 * 10**9)
    return answer.values.get("tier") if answer else None


@pytest.mark.parametrize(
    ("way", "problem"),
    [
        ("status", "the endpoint answered 503"),
        ("text", "the answer is not application/json"),
        ("broken", "the answer is no JSON"),
        ("list", "the answer is no JSON object"),
        ("wrong", "the attribute tier is not of the type string"),
        ("large", "the answer has more than 65536 bytes (http.max_bytes)"),
        ("endless", "the answer has more than 65536 bytes (http.max_bytes)"),
        ("loop", "the endpoint redirects more than 3 times"),
    ],
)
def test_an_answer_that_does_not_count_says_why(server: JsonServer, way: str, problem: str) -> None:
    assert fault(source_at(f"{server.url}/{way}")) == problem


def test_a_slow_endpoint_gives_no_answer_by_the_deadline(server: JsonServer) -> None:
    assert fault(source_at(f"{server.url}/slow"), ms=50) == "the endpoint did not answer by the deadline"


def test_an_endpoint_that_is_down_gives_no_answer(free_port: int) -> None:
    assert fault(source_at(f"http://127.0.0.1:{free_port}")) == "the endpoint cannot be reached: ConnectError"


def test_a_redirect_on_the_same_host_is_followed(server: JsonServer) -> None:
    source = source_at(f"{server.url}/here")
    assert tier(source) == "gold"
    source.close()


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        ("http://localhost:{port}/people/ann", "the endpoint redirects to another host"),
        ("//localhost:{port}/people/ann", "the endpoint redirects to another host"),
        ("http://127.0.0.1@localhost:{port}/people/ann", "the endpoint redirects to another host"),
        ("file:///etc/passwd", "the endpoint redirects away from https"),
        ("http://[/", "the endpoint redirects to what is no URL"),
    ],
)
def test_a_redirect_elsewhere_is_not_followed(server: JsonServer, location: str, problem: str) -> None:
    server.elsewhere = location.format(port=server.server_address[1])
    assert fault(source_at(f"{server.url}/elsewhere")).startswith(problem)
    assert len(server.requests) == 1


def test_a_redirect_to_a_host_of_the_pack_is_followed_without_the_key(server: JsonServer) -> None:
    server.elsewhere = f"http://localhost:{server.server_address[1]}/people/ann"
    attributes = {"tier": {"type": "string"}}
    place = {"url": f"{server.url}/elsewhere/{{id}}", "hosts": ["localhost"]}
    spec = msgspec.convert({"of": "subject", "attributes": attributes, "http": place}, SourceSpec)
    assert spec.http is not None
    with_key = HttpSource(spec, spec.http, key="s3cret")
    assert tier(with_key) == "gold"
    with_key.close()
    assert server.keys == ["Bearer s3cret", None]


def test_the_operator_may_narrow_the_hosts(server: JsonServer) -> None:
    problem = fault(source_at(f"{server.url}/people", hosts=("accounts.example",)))
    assert problem == "the host 127.0.0.1 is not in the setting source_hosts"
    assert server.requests == []


def test_an_id_cannot_leave_the_path_of_the_template(server: JsonServer) -> None:
    source = source_at(f"{server.url}/people")
    assert tier(source, "a/../b c?d#e%2f") == "odd"
    assert server.requests == ["/people/a%2F..%2Fb%20c%3Fd%23e%252f"]
    for dots in (".", ".."):
        assert "would lead to another path" in fault(source, dots)
    assert len(server.requests) == 1


def test_an_answer_counts_for_its_time_and_says_that_it_was_kept(server: JsonServer) -> None:
    clock = [0]
    source = source_at(f"{server.url}/people", clock=clock, ttl_s=10)
    for at_s, cached in ((0, False), (9, True), (10, False), (19, True)):
        clock[0] = at_s * 10**9
        answer = source.look_up("user", "ann", time.monotonic_ns() + 20 * 10**9)
        assert answer is not None
        assert answer.cached is cached
    assert len(server.requests) == 2
    source.close()


def test_an_unknown_entity_is_kept_too_and_a_failure_is_not(server: JsonServer) -> None:
    source = source_at(f"{server.url}/people", ttl_s=10)
    assert (tier(source, "zoe"), tier(source, "zoe")) == (None, None)
    assert len(server.requests) == 1
    failing = source_at(f"{server.url}/status", ttl_s=10)
    for _ in range(2):
        with pytest.raises(SourceError):
            failing.look_up("user", "ann", time.monotonic_ns() + 20 * 10**9)
    assert len(server.requests) == 3
    source.close()
    failing.close()


def test_the_kept_answers_are_bounded(server: JsonServer) -> None:
    source = source_at(f"{server.url}/people", ttl_s=10)
    for number in range(MAX_CACHED + 10):
        source._keep(("user", str(number)), None)
    assert len(source._kept) == MAX_CACHED
    source.close()


def test_an_endpoint_with_a_certificate_that_nobody_trusts_gives_no_answer(
    server: JsonServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    problem = fault(source_at(server.url.replace("http://", "https://") + "/people"))
    assert problem == "the endpoint cannot be reached: ConnectError"
    assert server.requests == []
