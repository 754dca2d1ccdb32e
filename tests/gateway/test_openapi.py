"""The OpenAPI document; generated requests get no server error, and no reply that it does not describe."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from tests.gateways import Running
from thor_policy.gateway.openapi import OPERATIONS

#: Requests of each operation: a few in the default suite, many in the long one.
FEW, MANY = 6, 300


def test_the_document_has_every_path_of_the_api(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": "https://pdp.example.com"}]
    described = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert described == set(OPERATIONS)


def test_a_health_check_says_ok_while_the_daemon_listens(http: httpx.Client) -> None:
    assert http.get("/healthz").text == "ok"


CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


def fuzz(running: Running, mode: GenerationMode, examples: int) -> None:
    """Send generated requests to each operation; raises where a reply is none that the document has."""
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue  # nothing of it can be wrong

        @settings(
            max_examples=examples,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            deadline=None,
            derandomize=examples == FEW,
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=running.url, checks=CHECKS)

        check()


def test_the_metrics_count_what_was_refused(http: httpx.Client) -> None:
    http.post("/access/v1/evaluation", headers={"Host": "evil"})
    assert 'thorpolicy_gateway_total{name="refused_host"} 1\n' in http.get("/metrics").text


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_requests_get_only_replies_of_the_document(running: Running, mode: GenerationMode) -> None:
    fuzz(running, mode, FEW)


@pytest.mark.soak
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_many_generated_requests_get_only_replies_of_the_document(
    running: Running, mode: GenerationMode
) -> None:
    fuzz(running, mode, MANY)
