"""Whom `test` asks: the active pack of a daemon, a candidate, or this process; and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.build import PACK_RULES, write_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import SuiteError, Unreachable
from thor_policy.core.records import Control
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.suites import targets
from thor_policy.testing import load_stub_engine

STRICT_RULES = PACK_RULES.replace('"banned"', '"peek"')
Run = Callable[..., Result]


def question(action: str) -> dict[str, Any]:
    subject, resource = {"type": "user", "id": "lee"}, {"type": "shelf", "id": "s1"}
    return {"subject": subject, "action": {"name": action}, "resource": resource}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """The directory of a pack that denies `banned`, with a suite of its own."""
    folder = write_pack(tmp_path / "small")
    scenarios = [
        {"id": action, "title": action, "quick": True, "request": question(action), "expect": expected}
        for action, expected in (("banned", {"outcome": "deny"}), ("peek", {"never": "deny"}))
    ]
    suite = {"name": "own", "pack": ".", "scenarios": scenarios[:1]}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    peeks = {"name": "peeks", "pack": "small", "scenarios": scenarios[1:]}
    (tmp_path / "peeks.yaml").write_text(yaml.safe_dump(peeks))
    return folder


@pytest.fixture
def served(config: Config, pack: Path) -> Iterator[Config]:
    """The settings, which name another pack, of a daemon whose active pack is `pack`."""
    with serving(replace(config, pack=str(pack)), load_engine=load_stub_engine):
        yield config


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


def load(config: Config, folder: Path) -> None:
    with Client(config.endpoint) as client:
        client.control(Control(task="load", pack=str(folder)))


@pytest.fixture
def strict(served: Config, tmp_path: Path) -> Path:
    """A resident candidate of the same name that denies `peek`."""
    folder = write_pack(tmp_path / "next", version="2", rules=STRICT_RULES)
    load(served, folder)
    return folder


class TestTheDaemonsPack:
    @pytest.mark.parametrize("option", ["--against", "--endpoint"])
    def test_without_a_pack_the_active_one_is_tested_with_the_suite_in_its_directory(
        self, run: Run, served: Config, option: str
    ) -> None:
        ended = run("test", option, served.endpoint, "--json")
        assert ended.exit_code == 0, ended.output
        (item,) = json.loads(ended.stdout)["results"]
        assert (item["pack"], item["suite"], item["outcome"]) == ("small", "own", "deny")
        assert f"asking the daemon at {served.endpoint}: small@1" in ended.stderr

    def test_without_an_address_the_pack_of_the_settings_is_wanted_and_the_cure_is_named(
        self, run: Run, served: Config
    ) -> None:
        ended = run("test")
        assert ended.exit_code == 2
        for part in (
            "does not serve team-governance",
            "small@1",
            "packs load DIR",
            "--no-record",
            "--endpoint",
        ):
            assert part in ended.stderr

    def test_suites_for_other_packs_only_are_refused_with_the_cure(self, run: Run, served: Config) -> None:
        ended = run("test", "--against", served.endpoint, "--suite", "trade-risk", "--full")
        assert ended.exit_code == 2
        assert "no scenario to run for the pack small (full): the suites are for trade-risk" in ended.stderr

    def test_a_pack_that_changed_on_disk_is_refused_until_it_is_loaded_again(
        self, run: Run, served: Config, pack: Path
    ) -> None:
        write_pack(pack, system="Decide otherwise.")
        ended = run("test", "--against", served.endpoint)
        assert (ended.exit_code, "changed since the daemon" in ended.stderr) == (2, True)
        assert "thorpolicy packs reload" in ended.stderr

    def test_a_pack_whose_files_are_gone_is_asked_for(self, run: Run, served: Config, pack: Path) -> None:
        shutil.rmtree(pack)
        ended = run("test", "--against", served.endpoint)
        assert (ended.exit_code, "give --pack DIR" in ended.stderr) == (2, True)

    def test_the_command_under_a_failure_names_the_daemons_state_directory(
        self, run: Run, strict: Path, served: Config, tmp_path: Path
    ) -> None:
        options = ("--against", served.endpoint, "--candidate", "small@2", "--state-dir", tmp_path)
        ended = run("test", tmp_path / "peeks.yaml", *options)
        assert ended.exit_code == 1
        assert f"--state-dir {served.state_dir}\n" in ended.stdout
        assert "question  user:lee peek shelf:s1" in ended.stdout
        assert "rules     deny; banned: It is banned." in ended.stdout


class TestCandidates:
    @pytest.mark.parametrize("name", ["small", "small@2", "digest"])
    def test_a_candidate_is_tested_though_the_active_pack_has_its_name(
        self, run: Run, strict: Path, served: Config, tmp_path: Path, name: str
    ) -> None:
        with Client(served.endpoint) as client:
            _, candidate = client.status().packs
        if name == "digest":
            name = candidate.sha256[:12]
        ended = run("test", tmp_path / "peeks.yaml", "--candidate", name, "--json")
        assert ended.exit_code == 1, ended.output
        shown = json.loads(ended.stdout)
        assert shown["judges"][0]["pack"]["sha256"] == candidate.sha256
        assert [item["outcome"] for item in shown["results"]] == ["deny"]

    def test_a_resident_pack_is_tested_if_its_directory_is_given(
        self, run: Run, strict: Path, served: Config, tmp_path: Path
    ) -> None:
        shown = json.loads(run("test", tmp_path / "peeks.yaml", "--pack", strict, "--json").stdout)
        assert [item["outcome"] for item in shown["results"]] == ["deny"]
        assert shown["judges"][0]["pack"]["version"] == "2"

    def test_an_unknown_candidate_is_refused_with_those_that_are_resident(
        self, run: Run, served: Config
    ) -> None:
        ended = run("test", "--candidate", "big")
        assert ended.exit_code == 2
        assert "--candidate 'big' is not resident" in ended.stderr
        assert "active" in ended.stderr

    def test_a_name_of_two_candidates_is_refused(self, strict: Path, served: Config, tmp_path: Path) -> None:
        load(served, write_pack(tmp_path / "third", version="3"))
        with pytest.raises(SuiteError, match=r"may be .*give one of these digests"):
            targets.find(served, "daemon", candidate="small")

    def test_a_candidate_needs_a_daemon(self, config: Config) -> None:
        with pytest.raises(Unreachable, match="no daemon listens at"):
            targets.find(config, "process", candidate="small")


def kept_files(config: Config) -> list[Path]:
    """All files of the state directory but saved prefixes and those that any reader makes."""
    files = (path for path in config.state_dir.rglob("*") if "prefix-states" not in path.parts)
    return sorted(path for path in files if not path.name.startswith("policy_decisions.db-"))


class TestNoRecord:
    def test_the_daemon_is_asked_only_for_its_pack(self, served: Config, pack: Path) -> None:
        target = targets.find(served, "daemon", any_pack=True, record=False)
        assert (target.resident, target.state_dir, target.pack.path) == (None, None, pack)
        with Reader(served.journal_path) as reader:
            assert reader.decisions() == []

    @pytest.mark.model
    @pytest.mark.parametrize("command", ["test", "invariance"])
    def test_nothing_is_recorded_and_the_directory_stays_as_it_is(
        self, run: Run, config: Config, pack: Path, command: str
    ) -> None:
        with serving(replace(config, pack=str(pack)), load_engine=load_stub_engine):
            pass
        before = config.journal_path.read_bytes()
        places = kept_files(config)
        arguments = [pack / "suite.yaml", "--pack", pack, "--no-record", "--json"]
        arguments += ["--sample", "2"] if command == "invariance" else []
        ended = run(command, *arguments)
        assert ended.exit_code == 0, ended.output
        assert config.journal_path.read_bytes() == before
        assert kept_files(config) == places


class TestSources:
    """Scenarios state what sources say, where this process answers."""

    SUITE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "discount-exception-suite.yaml"

    def test_of_a_scenario_are_what_it_states(self, run: Run) -> None:
        result = run("test", "--full", "--no-record", "--json", "--pack", str(self.pack), str(self.SUITE))
        assert result.exit_code == 0, result.output
        statuses = {item["id"]: item["status"] for item in json.loads(result.stdout)["results"]}
        assert statuses == {"X01": "passed", "X02": "passed", "X03": "passed"}

    def test_of_a_daemon_are_asked_so_the_scenario_is_skipped(self, config: Config, run: Run) -> None:
        with serving(replace(config, pack=str(self.pack))):
            result = run("test", "--full", "--json", "--pack", str(self.pack), str(self.SUITE))
        items = json.loads(result.stdout)["results"]
        assert {item["status"] for item in items} == {"skipped"}
        assert "`test --no-record` does not" in items[0]["misses"][0]

    @property
    def pack(self) -> Path:
        return self.SUITE.parent / "discount-exception"
