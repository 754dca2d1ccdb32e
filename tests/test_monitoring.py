"""Prometheus rules and the Grafana dashboard: they read what a daemon exports, and promtool accepts them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.records import Maintenance, Shipped
from thor_policy.daemon.service import serving
from thor_policy.telemetry import exposition
from thor_policy.testing import load_stub_engine

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples" / "monitoring"
RULES = FOLDER / "thor-policy.rules.yml"
DASHBOARD = FOLDER / "thor-policy.dashboard.json"
#: A panel shows memory of a GPU where there is one.
OF_A_GPU = {"thorpolicy_device_memory_free_bytes"}
QUESTION = {
    "subject": {"type": "user", "id": "ivo", "properties": {"role": "developer"}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
}
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Debian's package prometheus is missing"
)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return listed


def expressions() -> list[str]:
    """Every expression of PromQL in the rules, the panels and the variables."""
    variables = json.loads(DASHBOARD.read_text("utf-8"))["templating"]["list"]
    return [
        *(rule["expr"] for rule in rules()),
        *(target["expr"] for panel in panels() for target in panel.get("targets", [])),
        *(variable["definition"] for variable in variables if "definition" in variable),
    ]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The labels of each sample that a daemon exports which decided a question, by name."""
    folder = tmp_path_factory.mktemp("monitoring")
    config = replace(Config(), state_dir=folder, endpoint=f"ipc://{folder}/p.sock", pack="team-governance")
    samples: dict[str, list[dict[str, str]]] = {}
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint, timeout_ms=20_000) as client:
        client.evaluate(QUESTION)
        client.maintenance(Maintenance(task="shipped", shipped=Shipped(sink="store", seq=0)))
        while not client.status().shipping:  # the status is made at most once a second
            continue
        for family in text_string_to_metric_families(exposition.exposition(client.metrics())):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append(dict(sample.labels))
    return samples


def selectors(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Each metric of an expression with its matchers: label to operator and value."""
    for name, body in re.findall(r"\b((?:thorpolicy|process)_\w+)(?:\{([^}]*)\})?", expression):
        matchers = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', body)
        yield name, {label: (operator, value) for label, operator, value in matchers if label != "instance"}


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_and_label_of_rules_and_panels_is_exported(
    exported: dict[str, list[dict[str, str]]], expression: str
) -> None:
    for name, matchers in selectors(expression):
        assert name in exported or name in OF_A_GPU, name
        for label, (operator, value) in matchers.items():
            values = {labels.get(label, "") for labels in exported[name]}
            wanted = value.split("|") if operator == "=~" else [value]
            for choice in wanted:
                assert any(re.fullmatch(choice, given) for given in values), (name, label, choice)


def test_the_dashboard_shows_how_far_each_sink_is_behind_in_events_and_seconds() -> None:
    shown = {name for text in panel_expressions() for name, _ in selectors(text)}
    assert {
        "thorpolicy_shipping_behind_events",
        "thorpolicy_shipping_behind_seconds",
        "thorpolicy_shipping_alarm",
    } <= shown


def test_every_recorded_metric_is_used_and_every_used_one_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for expression in expressions() for name in re.findall(r"thorpolicy:\w+:\w+", expression)}
    assert used == recorded


def test_every_alert_has_a_severity_a_summary_and_a_next_step_and_is_tested() -> None:
    tested = (FOLDER / "thor-policy.rules.test.yml").read_text("utf-8")
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
            assert f'alertname="{rule["alert"]}"' in tested, rule["alert"]


@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", RULES.name),
        ("test", "rules", "thor-policy.rules.test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_accepts_rules_their_tests_and_the_settings(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_accepts_the_expressions_of_the_panels(tmp_path: Path) -> None:
    listed = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(panel_expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": listed}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def panel_expressions() -> list[str]:
    """The expressions of the panels, with a device in place of the variable."""
    texts = (target["expr"] for panel in panels() for target in panel.get("targets", []))
    return [text.replace("$instance", "a") for text in texts]


def test_the_dashboard_has_the_structure_that_grafana_reads() -> None:
    """Members and types of Grafana's classic dashboard model; no two panels overlap or share an id."""
    board = json.loads(DASHBOARD.read_text("utf-8"))
    assert {"title", "uid", "schemaVersion", "time", "templating", "panels"} <= set(board)
    assert len(board["uid"]) <= 40
    cells: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text("utf-8"))) == variables
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("stat", "table", "timeseries")
        assert panel["fieldConfig"]["overrides"] == []
        references = [target["refId"] for target in panel["targets"]]
        assert references == sorted(set(references))
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
