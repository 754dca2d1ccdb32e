"""Metrics: what is measured of a decision, that status and metrics agree, and how Prometheus reads them."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.build import write_adapter_header, write_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import ConfigError, RequestError
from thor_policy.core.records import Control
from thor_policy.core.requests import Json
from thor_policy.core.status import Status
from thor_policy.daemon.service import serving
from thor_policy.telemetry import exposition, metrics
from thor_policy.telemetry.metrics import CONFIDENCES, SECONDS, STAGES, Histogram, Line
from thor_policy.testing import StubEngine, load_stub_engine, stub_parts

#: A status of a daemon that has done nothing.
BARE = Status(
    version="1",
    pid=1,
    state="serving",
    trouble=None,
    uptime_s=0.0,
    endpoint="",
    tcp_endpoint=None,
    events_endpoint="",
    control_endpoint="",
    connections=0,
    in_flight=2,
    max_in_flight=9,
    settings=None,
    counters={},
    **structs.asdict(stub_parts(PackInfo(name="", version="", sha256=""))),
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

#: The model scores it.
DEPLOY: Json = {
    "subject": {"type": "user", "id": "mallory-4711", "properties": {"role": "developer"}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
}
#: The rules deny it.
TAMPER: Json = DEPLOY | {"action": {"name": "delete"}, "resource": {"type": "audit", "id": "log"}}


@pytest.fixture
def served(config: Config) -> Iterator[Config]:
    with serving(replace(config, cache_size=10), load_engine=load_stub_engine):
        yield config


@pytest.fixture
def client(served: Config) -> Iterator[Client]:
    with Client(served.endpoint, timeout_ms=20_000) as opened:
        yield opened


def parsed(text: str) -> Samples:
    """The samples of an exposition by Prometheus' own parser; each may appear only once."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{sample} appears twice"
            samples[key] = sample.value
    return samples


def samples_of(client: Client) -> Samples:
    return parsed(exposition.exposition(client.metrics()))


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"thorpolicy_{name}", frozenset(labels.items())]


def infos(client: Client) -> dict[str, dict[str, str]]:
    """Labels of the info metrics, by name without `thorpolicy_` and `_info`."""
    labels = {name: dict(labels) for name, labels in samples_of(client)}
    return {name: labels[f"thorpolicy_{name}_info"] for name in ("model", "pack", "build")}


def counters(status: Json, path: str = "") -> Iterator[tuple[str, str, int]]:
    """Every counter anywhere in a status: part, name, value."""
    if isinstance(status, dict):
        for name, inner in status.items():
            if name == "counters":
                yield from ((path or "server", event, count) for event, count in inner.items())
            else:
                yield from counters(inner, name)


class TestOfADecision:
    def test_each_stage_is_timed_once(self, client: Client) -> None:
        client.evaluate(DEPLOY, explain="inline")
        client.evaluate(TAMPER)
        samples = samples_of(client)
        counts = {stage: value(samples, "stage_seconds_count", stage=stage) for stage in STAGES}
        assert counts == {"queue": 2, "rules": 2, "score": 1, "commit": 2, "explain": 1, "reply": 1}
        assert value(samples, "stage_seconds_sum", stage="commit") > 0

    def test_latency_is_measured_by_tier(self, client: Client) -> None:
        for question in (DEPLOY, DEPLOY, TAMPER):
            client.evaluate(question)
        samples = samples_of(client)
        counts = {
            tier: value(samples, "decision_seconds_count", tier=tier)
            for tier in ("model", "cache", "rule", "fallback")
        }
        assert counts == {"model": 1, "cache": 1, "rule": 1, "fallback": 0}

    def test_outcomes_and_confidence_are_those_recorded(self, client: Client) -> None:
        context = client.evaluate(DEPLOY)["context"]
        client.evaluate(TAMPER)
        samples = samples_of(client)
        assert value(samples, "decisions_total", outcome=context["outcome"], tier="model") == 1
        assert value(samples, "decisions_total", outcome="deny", tier="rule") == 1
        assert value(samples, "confidence_count") == 1
        assert value(samples, "confidence_sum") == pytest.approx(context["confidence"])

    def test_the_stages_add_up_to_the_latency(self, client: Client) -> None:
        client.evaluate(DEPLOY)
        samples = samples_of(client)
        stages = sum(value(samples, "stage_seconds_sum", stage=stage) for stage in STAGES)
        assert stages == pytest.approx(value(samples, "decision_seconds_sum", tier="model"))


class TestOfTheDaemon:
    def test_every_counter_of_status_is_a_metric_with_the_same_value(self, client: Client) -> None:
        client.evaluate(DEPLOY)
        with pytest.raises(RequestError):
            client.evaluate({"subject": {}, "action": {}})
        status, samples = client.status(), samples_of(client)
        counts = list(counters(msgspec.to_builtins(status)))
        assert {part for part, _, _ in counts} == {
            "server",
            "rules",
            "engine",
            "cache",
            "journal",
            "maintenance",
            "pack_manager",
            "drift",
            "pushed",
            "approvals",
            "enrichment",
            "alerts",
            "recall",
        }
        for part, event, count in counts:
            moved = (part, event) == ("server", "received")  # by asking for the metrics
            assert value(samples, "events_total", part=part, event=event) == count + moved
        assert value(samples, "events_total", part="server", event="refused_bad_request") == 1
        assert value(samples, "events_total", part="engine", event="decisions") == 1

    def test_refusals_and_losses_are_zero_before_the_first(self, client: Client) -> None:
        samples = samples_of(client)
        for event in ("refused_busy", "refused_disk_full", "decisions_lost", "replies_dropped"):
            assert value(samples, "events_total", part="server", event=event) == 0
        assert value(samples, "events_total", part="journal", event="lost") == 0
        assert value(samples, "events_total", part="engine", event="internal_errors") == 0

    def test_the_state_of_each_part_is_a_metric(self, client: Client) -> None:
        client.evaluate(TAMPER)  # whose reply comes when everything before it is committed
        samples, status = samples_of(client), client.status()
        for part in ("engine", "journal", "maintenance", "pack_manager"):
            assert value(samples, "alive", part=part) == 1
            assert value(samples, "waiting", part=part) == 0
        for part in ("engine", "journal", "maintenance"):
            assert value(samples, "stalled_seconds", part=part) >= 0
        assert value(samples, "serving") == 1
        assert value(samples, "in_flight") == 0
        assert value(samples, "journal_seq") == status.journal.seq
        assert value(samples, "journal_free_bytes") > 0

    def test_model_and_pack_are_named(self, client: Client) -> None:
        samples, status = samples_of(client), client.status()
        labels = {name: dict(labels) for name, labels in samples}
        assert labels["thorpolicy_model_info"]["sha256"] == status.model.sha256
        assert labels["thorpolicy_pack_info"] == msgspec.to_builtins(status.pack)
        assert labels["thorpolicy_build_info"] == {"version": status.version}

    def test_an_activated_pack_and_adapter_are_named(self, client: Client, tmp_path: Path) -> None:
        adapter = tmp_path / "tuned.gguf"
        write_adapter_header(adapter)
        assert infos(client)["model"]["adapter"] == ""
        client.control(Control(task="activate", pack=str(write_pack(tmp_path / "small"))))
        client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        status, identities = client.status(), infos(client)
        assert identities["pack"] == msgspec.to_builtins(status.pack)
        assert identities["pack"]["name"] == "small"
        assert identities["model"]["sha256"] == status.model.sha256
        assert identities["model"]["adapter"] == "tuned.gguf"
        assert identities["model"]["adapter_sha256"] == status.model.adapter.sha256
        assert identities["model"]["adapter_scale"] == "0.5"

    def test_memory_and_open_files_of_the_process_are_metrics(self, client: Client) -> None:
        samples = samples_of(client)
        assert samples["process_resident_memory_bytes", frozenset()] > 10**7
        assert samples["process_open_fds", frozenset()] > 3

    def test_memory_of_a_gpu_is_a_metric_if_the_engine_reports_it(self, config: Config) -> None:
        class Engine(StubEngine):
            def memory(self) -> Any:
                from thor_policy.core.engine import DeviceMemory

                return (DeviceMemory(device="CUDA0", free_bytes=1, total_bytes=3),)

        with serving(config, load_engine=lambda _: Engine()), Client(config.endpoint) as own:
            samples = samples_of(own)
        assert value(samples, "device_memory_free_bytes", device="CUDA0") == 1
        assert value(samples, "device_memory_total_bytes", device="CUDA0") == 3

    def test_no_text_of_a_request_is_in_a_metric(self, client: Client) -> None:
        client.evaluate(
            DEPLOY, explain="inline", annotations={"scenario_id": "secret-1", "tags": ["secret-2"]}
        )
        client.track_signal(agent="secret-3", symbol="secret-4", signal="secret-5")
        text = exposition.exposition(client.metrics())
        assert not [word for word in ("mallory", "deploy", "production", "secret") if word in text]

    def test_a_part_that_has_counted_nothing_yet_counts_from_zero(self) -> None:
        samples = parsed(exposition.exposition(metrics.as_json(metrics.Metrics().families(BARE))))
        assert value(samples, "events_total", part="journal", event="lost") == 0

    def test_a_status_of_parts_that_did_nothing_is_enough(self) -> None:
        dead = structs.replace(BARE.maintenance, alive=False)
        bare = structs.replace(BARE, maintenance=dead)
        samples = parsed(exposition.exposition(metrics.as_json(metrics.Metrics().families(bare))))
        assert value(samples, "in_flight") == 2
        assert value(samples, "alive", part="maintenance") == 0
        assert ("thorpolicy_journal_free_bytes", frozenset()) not in samples


@given(st.lists(st.floats(min_value=0, max_value=1e6)), st.sampled_from([SECONDS, CONFIDENCES]))
def test_a_histogram_counts_each_value_in_each_bound_that_holds_it(
    values: list[float], bounds: tuple[float, ...]
) -> None:
    histogram = Histogram(bounds)
    for number in values:
        histogram.observe(number)
    buckets = histogram.buckets()
    assert buckets == [(str(b), sum(number <= b for number in values)) for b in bounds] + [
        ("+Inf", len(values))
    ]
    assert histogram.sum == pytest.approx(sum(values))


class TestExposition:
    def test_metrics_sent_over_the_socket_equal_those_of_the_endpoint(self, client: Client) -> None:
        for question in (DEPLOY, TAMPER):
            client.evaluate(question)
        measured = metrics.Metrics()
        families = list(measured.families(client.status()))
        sent = msgspec.json.decode(msgspec.json.encode(metrics.as_json(iter(families))))
        with exposition.endpoint(0, lambda: iter(families)) as port:
            direct = read(port)
        assert parsed(exposition.exposition(sent)) == parsed(direct)

    def test_a_line_for_people_has_mean_and_quantiles_of_a_histogram(self) -> None:
        family = Metric("t_seconds", "Times.", "histogram")
        for le, count in (("0.1", 50), ("1.0", 98), ("+Inf", 100)):
            family.add_sample("t_seconds_bucket", {"stage": "score", "le": le}, count)
        family.add_sample("t_seconds_count", {"stage": "score"}, 100)
        family.add_sample("t_seconds_sum", {"stage": "score"}, 25.0)
        assert metrics.lines(metrics.as_json(iter([family]))) == [
            Line("t_seconds", "stage=score", 100, mean=0.25, half=0.1, most=None)
        ]

    def test_lines_of_counters_carry_their_labels(self, client: Client) -> None:
        client.evaluate(TAMPER)
        assert Line("thorpolicy_decisions_total", "outcome=deny tier=rule", 1) in metrics.lines(
            client.metrics()
        )


def read(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=20) as reply:
        body: bytes = reply.read()
    return body.decode()


class TestEndpoint:
    def test_the_endpoint_of_a_daemon_has_the_same_metrics_as_the_client_call(
        self, config: Config, free_port: int
    ) -> None:
        ours = replace(config, metrics_port=free_port)
        with serving(ours, load_engine=load_stub_engine), Client(ours.endpoint) as own:
            own.evaluate(DEPLOY)
            from_client, scraped = samples_of(own), parsed(read(ours.metrics_port))
        assert from_client.keys() == scraped.keys()
        for name in ("decision_seconds_count", "decision_seconds_sum"):
            assert value(from_client, name, tier="model") == value(scraped, name, tier="model") > 0
        with pytest.raises(urllib.error.URLError):
            read(ours.metrics_port)

    def test_there_is_no_endpoint_by_default(self, served: Config) -> None:
        assert served.metrics_port == 0

    def test_the_endpoint_is_only_on_127_0_0_1(self) -> None:
        with exposition.endpoint(0, lambda: iter(())) as port:
            assert read(port) == ""
            with socket.socket() as other, pytest.raises(OSError):
                other.connect(("127.0.0.2", port))  # any other address, and be it of this machine

    def test_a_port_in_use_is_refused_with_the_setting(self) -> None:
        with (
            exposition.endpoint(0, lambda: iter(())) as port,
            pytest.raises(ConfigError, match=f"metrics_port {port}"),
            exposition.endpoint(port, lambda: iter(())),
        ):
            pass

    def test_a_reader_that_disconnects_half_way_does_no_harm(self, capfd: pytest.CaptureFixture[str]) -> None:
        with exposition.endpoint(0, lambda: iter(())) as port:
            for request in (b"", b"GET /metr", b"\x00" * 100 + b"\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", port)) as rude:
                    rude.sendall(request)
            assert read(port) == ""
        assert capfd.readouterr().err == ""


def test_llama_cpp_reports_the_memory_of_its_devices() -> None:
    from thor_policy.engine.native import device_memory

    cpu = device_memory(kinds=(0,))
    assert [device.device for device in cpu] == ["CPU"]
    assert cpu[0].total_bytes >= cpu[0].free_bytes > 10**8


class TestCommand:
    def run(self, config: Config, *options: str) -> str:
        result = CliRunner().invoke(cli, ["metrics", "--endpoint", config.endpoint, *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    def test_metrics_shows_values_that_are_not_zero(self, served: Config, client: Client) -> None:
        client.evaluate(TAMPER)
        shown = self.run(served)
        (latency,) = (line for line in shown.splitlines() if line.startswith("decision_seconds"))
        assert latency.split()[:3] == ["decision_seconds", "tier=rule", "1"]
        assert "  decisions_total outcome=deny tier=rule" in shown
        assert "refused_busy" not in shown

    def test_metrics_prints_json_and_the_format_of_prometheus(self, served: Config, client: Client) -> None:
        client.evaluate(TAMPER)
        as_json = json.loads(self.run(served, "--json"))
        samples = parsed(self.run(served, "--prometheus"))
        assert as_json.keys() == client.metrics().keys()
        assert value(samples, "decisions_total", outcome="deny", tier="rule") == 1
