"""`thorpolicy sources`: what a pack's sources are, and what they say, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from thor_policy.cli.main import cli
from thor_policy.config import data_path

DISCOUNTS = Path(__file__).parents[2] / "docs" / "examples" / "discounts"


def run(*arguments: str, **settings: str) -> Result:
    environ = {f"THOR_POLICY_{name.upper()}": value for name, value in settings.items()}
    return CliRunner(env=environ).invoke(cli, ["sources", *arguments])


def test_the_sources_of_a_pack_are_listed_as_the_settings_have_them() -> None:
    result = run("list", "--pack", str(DISCOUNTS), "--json", sources="accounts.path=/srv/a.csv")
    assert result.exit_code == 0
    (source,) = json.loads(result.output).items()
    assert (source[0], source[1]["table"]["path"], source[1]["required"]) == ("accounts", "/srv/a.csv", True)
    assert "accounts.csv" in run("list", "--pack", str(DISCOUNTS)).output


def test_a_pack_without_sources_has_an_empty_list() -> None:
    assert run("list", "--pack", str(data_path("prompts") / "team-governance"), "--json").output == "{}\n"


def test_an_entity_is_looked_up() -> None:
    arguments = ("test", "accounts", "--pack", str(DISCOUNTS), "--type", "customer")
    result = run(*arguments, "--id", "acme", "--json")
    assert result.exit_code == 0
    values = {entry["element"]: entry["value"] for entry in json.loads(result.output)}
    assert values == {"tier": "gold", "limit": 20.0, "blocked": False}
    assert "no entry" in run(*arguments, "--id", "nobody").output
    assert "gold" in run(*arguments, "--id", "acme").output


def test_a_source_that_gives_no_answer_ends_with_status_1() -> None:
    arguments = ("test", "accounts", "--pack", str(DISCOUNTS), "--id", "acme")
    result = run(*arguments, sources="accounts.path=/nowhere/a.csv")
    assert result.exit_code == 1
    assert "a.csv cannot be read: No such file or directory" in result.output


def test_the_ids_of_a_type_are_listed() -> None:
    result = run("ids", "accounts", "--pack", str(DISCOUNTS), "--type", "customer")
    assert result.output.split() == ["acme", "shady", "zenith"]
    result = run("ids", "accounts", "--pack", str(DISCOUNTS), "--type", "customer", "--json")
    assert json.loads(result.output) == ["acme", "shady", "zenith"]


@pytest.mark.parametrize("command", [("test", "other", "--id", "a"), ("ids", "other")])
def test_an_unknown_source_is_refused_with_those_that_there_are(command: tuple[str, ...]) -> None:
    result = run(*command, "--pack", str(DISCOUNTS))
    assert result.exit_code == 2
    assert "the pack has no source 'other'; it has accounts" in result.output
