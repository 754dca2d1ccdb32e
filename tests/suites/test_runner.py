"""`test` and `compare` on the command line: which scenarios are asked, exit statuses, and files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.build import many, run_of, write_adapter_header
from tests.suites.test_reports import checked, failing_cases
from thor_policy.cli.main import cli
from thor_policy.config import Config, with_changes
from thor_policy.core.decisions import Adapter, identity_of
from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.suites import runner
from thor_policy.suites.check import Selection, check, side_names
from thor_policy.suites.report_files import JUnitFile
from thor_policy.suites.run_files import Item, load, plain
from thor_policy.suites.scenarios import Suite
from thor_policy.testing import StubEngine, load_stub_engine

Run = Callable[..., Result]
Write = Callable[..., Path]
ANY = ["allow", "require_mfa", "require_attestation", "deny"]


def entry(id: str, **changes: Any) -> Json:
    """A scenario that passes whatever is answered."""
    return {
        "id": id,
        "title": f"About {id}",
        "difficulty": "easy",
        "quick": True,
        "situation": {
            "actor_id": f"user:{id}",
            "action_type": "deploy",
            "resource": "env:x",
            "timestamp": "2026-05-13T10:00:00Z",
        },
        "expect": {"one_of": ANY},
    } | changes


#: Fails whatever is answered.
HOPELESS = {"expect": {"one_of": ANY, "clauses": ["R99"]}}
#: Refused: a field that the model would read has more than 2,000 characters.
TOO_LONG = {
    "situation": {"actor_id": "user:x", "action_type": "deploy", "resource": "env:x", "details": "x" * 2001}
}


SMALL = yaml.safe_dump({"name": "t", "pack": "team-governance", "scenarios": [entry("E1")]})


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*scenarios: Json, name: str = "tiny", pack: str = "team-governance") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "pack": pack, "scenarios": list(scenarios)}))
        return path

    return write


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    return lambda *arguments: CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


# ---------------------------------------------------------------- which scenarios


def ids(suites: list[Suite]) -> list[str]:
    return [scenario.id for suite in suites for scenario in suite.scenarios]


@pytest.fixture
def mixed(write: Write) -> list[Suite]:
    path = write(
        entry("E1"),
        entry("E2", quick=False, tags=["night", "critical"]),
        entry("H1", quick=False, difficulty="hard"),
    )
    return runner.find([str(path)])


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ["E1"]),
        ({"full": True}, ["E1", "E2", "H1"]),
        ({"filters": ["E*"]}, ["E1", "E2"]),
        ({"filters": ["night"]}, ["E2"]),
        ({"filters": ["hard", "E1"]}, ["E1", "H1"]),
        ({"filters": ["e1"]}, []),
        ({"full": True, "filters": ["?2"]}, ["E2"]),
        ({"keys": {("tiny", "H1"), ("other", "E1")}}, ["H1"]),
    ],
)
def test_choose_returns_the_selected_scenarios(
    mixed: list[Suite], options: dict[str, Any], chosen: list[str]
) -> None:
    assert ids(runner.choose(mixed, **options)) == chosen


def test_suites_are_found_by_name_or_by_file(write: Write) -> None:
    path = write(entry("E1"))
    shipped, own = runner.find(["trade-risk", str(path)])
    assert (shipped.name, own.name) == ("trade-risk", "tiny")
    assert {"team-governance", "trade-risk"} <= {suite.name for suite in runner.find([])}
    with pytest.raises(
        SuiteError, match=r"there is no suite 'nowhere'; known: agent-tools, .*; or name a file"
    ):
        runner.find(["nowhere"])


# ---------------------------------------------------------------- exit status and JUnit file


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("scenarios", "status", "counts"),
    [
        ([entry("P1"), entry("P2")], 0, (2, 0, 0, 0)),
        ([entry("P1"), entry("F1", **HOPELESS)], 1, (2, 1, 0, 0)),
        ([entry("P1"), entry("S1", skip="needs a calendar")], 0, (2, 0, 0, 1)),
        ([entry("P1"), entry("X1", **TOO_LONG)], 1, (2, 0, 1, 0)),
    ],
    ids=["pass", "fail", "skip", "error"],
)
def test_exit_status_and_junit_file_agree(
    run: Run, write: Write, tmp_path: Path, scenarios: list[Json], status: int, counts: tuple[int, ...]
) -> None:
    file = tmp_path / "reports" / "run.xml"
    ended = run("test", write(*scenarios), "--junit", file)
    assert ended.exit_code == status, ended.output
    root = checked(file.read_bytes())
    (suite,) = root
    assert tuple(int(suite.attrib[n]) for n in ("tests", "failures", "errors", "skipped")) == counts
    assert (status == 0) == (failing_cases(root) == 0)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (SMALL, ["--filter", "Z"], "no scenario to run for the pack team-governance (filter Z)"),
        ("name: [", [], "did not find expected"),
        ("not: a suite", [], "unknown field `not`"),
        (None, [], "cannot be read: No such file"),
    ],
    ids=["empty selection", "bad YAML", "no suite", "no file"],
)  # fmt: skip
def test_a_run_that_cannot_begin_is_status_2_and_a_junit_file_in_error(
    run: Run, tmp_path: Path, text: str | None, options: list[str], message: str
) -> None:
    path, file = tmp_path / "suite.yaml", tmp_path / "run.xml"
    if text is not None:
        path.write_text(text)
    ended = run("test", path, "--junit", file, *options)
    assert (ended.exit_code, message in ended.stderr) == (2, True), ended.output
    root = checked(file.read_bytes())
    assert (root.attrib["tests"], root.attrib["errors"]) == ("1", "1")
    error = root.find("testsuite/testcase/error")
    assert error is not None
    assert message in error.attrib["message"]


@pytest.mark.usefixtures("daemon")
def test_a_run_of_only_skipped_scenarios_is_no_success(run: Run, write: Write) -> None:
    assert run("test", write(entry("S1", skip="needs a calendar"))).exit_code == 1


def test_without_a_daemon_at_the_address_status_is_3_and_no_other_is_asked(
    run: Run, write: Write, short_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.xml"
    ended = run("test", write(entry("E1")), "--against", f"ipc://{short_dir}/nobody.sock", "--junit", file)
    assert (ended.exit_code, "no daemon listens" in ended.stderr) == (3, True)
    assert failing_cases(checked(file.read_bytes())) == 1


@pytest.mark.parametrize("options", [["--bless"], ["--bless", "--full", "--gate"], ["--repeat", "0"]])
def test_contradictory_options_of_test_are_status_2(run: Run, write: Write, options: list[str]) -> None:
    assert run("test", write(entry("E1")), *options).exit_code == 2


@pytest.mark.usefixtures("daemon")
def test_bless_refuses_a_filtered_run(run: Run, write: Write) -> None:
    assert run("test", write(entry("E1")), "--bless", "--full", "--filter", "E1").exit_code == 2


def test_a_check_runs_without_a_terminal(daemon: Config, write: Write, tmp_path: Path) -> None:
    """The function behind `test` takes plain values and calls back; the same files can be made of it."""
    names, counts, shown = (str(write(entry("E1"), entry("F1", **HOPELESS))),), [], []

    @contextmanager
    def progress(count: int) -> Iterator[Callable[[Item], None]]:
        counts.append(count)
        yield lambda item: shown.append(item.id)

    result = check(daemon, Selection(suites=names, repeat=2), progress=progress)
    assert (result.ok, result.figures.failed, result.gate, result.blessed) == (False, 1, None, ())
    assert (counts, shown) == ([4], ["E1", "F1", "E1", "F1"])
    file = JUnitFile(tmp_path / "run.xml")
    assert file.conclude(result) is None
    assert failing_cases(checked((tmp_path / "run.xml").read_bytes())) == 1
    with pytest.raises(SuiteError, match="only a run of every scenario can become a baseline"):
        check(daemon, Selection(suites=names), bless=True)


# ---------------------------------------------------------------- output and files


@pytest.mark.usefixtures("daemon")
def test_the_json_output_is_a_run_that_load_reads(run: Run, write: Write, tmp_path: Path) -> None:
    ended = run("test", write(entry("E1"), entry("F1", **HOPELESS)), "--json")
    shown = json.loads(ended.stdout)
    assert (shown["summary"]["passed"], shown["summary"]["scenarios"], shown["where"]) == (1, 2, "the daemon")
    file = tmp_path / "run.json"
    file.write_text(ended.stdout)
    kept = load(file)
    assert [item.id for item in kept.results] == ["E1", "F1"]
    assert kept.judges[0].labels == tuple(ANY)
    assert kept.results[0].tokens is not None


@pytest.mark.usefixtures("daemon")
def test_the_output_of_test_fits_80_columns(run: Run, write: Write) -> None:
    path = write(entry("E1"), entry("F1", **HOPELESS), entry("X1", **TOO_LONG), entry("S1", skip="later"))
    ended = run("test", path, "--repeat", "3", "--gate")
    for line in ended.stdout.splitlines():
        assert len(line) <= 80 or line.startswith(("  ", "F1", "X1", "S1", "gate:")), line
    for label in ("passed", "decision accuracy", "rules alone", "model alone", "by rules", "pass^k", "95 %"):
        assert label in ended.stdout


@pytest.mark.usefixtures("daemon")
def test_the_html_page_is_written(run: Run, write: Write, tmp_path: Path) -> None:
    file = tmp_path / "reports" / "run.html"
    assert run("test", write(entry("E1")), "--html", file).exit_code == 0
    assert "<h1>All passed</h1>" in file.read_text(encoding="utf-8")


# ---------------------------------------------------------------- repeats


@pytest.mark.usefixtures("daemon")
def test_repeats_ask_every_scenario_in_each_round(run: Run, write: Write) -> None:
    shown = json.loads(run("test", write(entry("E1"), entry("E2")), "--repeat", "3", "--json").stdout)
    assert [(item["id"], item["round"]) for item in shown["results"]] == [
        ("E1", 1), ("E2", 1), ("E1", 2), ("E2", 2), ("E1", 3), ("E2", 3),
    ]  # fmt: skip
    assert shown["summary"]["scenarios"] == 2
    assert shown["summary"]["pass_k"] == [1, 1, 1]
    assert len(json.loads(run("log", "--json", "--tests").stdout)) == 6


def test_a_daemon_that_answers_from_its_cache_is_not_asked_again(
    run: Run, write: Write, config: Config
) -> None:
    with serving(replace(config, cache_size=100), load_engine=load_stub_engine):
        ended = run("test", write(entry("E1")), "--repeat", "2")
    assert (ended.exit_code, "answers from its cache" in ended.stderr) == (2, True)


# ---------------------------------------------------------------- the gate


@pytest.mark.usefixtures("daemon")
def test_the_gate_fails_until_blessed_and_then_lets_known_failures_pass(
    run: Run, write: Write, config: Config, tmp_path: Path
) -> None:
    path, file = write(entry("E1"), entry("F1", **HOPELESS)), tmp_path / "run.xml"
    first = run("test", path, "--full", "--gate", "--junit", file)
    assert (first.exit_code, "there is no baseline tiny@stub.json" in first.stdout) == (1, True)
    assert failing_cases(checked(file.read_bytes())) == 1
    blessed = run("test", path, "--full", "--bless", "--junit", file)
    assert (blessed.exit_code, failing_cases(checked(file.read_bytes()))) == (0, 0)
    assert str(config.state_dir / "baselines" / "tiny@stub.json") in blessed.stdout
    then = run("test", path, "--full", "--gate", "--junit", file)
    assert (then.exit_code, "gate passed" in then.stdout) == (0, True), then.output
    assert failing_cases(checked(file.read_bytes())) == 0
    assert json.loads(run("test", path, "--full", "--gate", "--json").stdout)["gate"]["reasons"] == []


@pytest.mark.usefixtures("daemon")
def test_a_run_with_errors_is_shown_and_not_blessed(run: Run, write: Write, tmp_path: Path) -> None:
    file = tmp_path / "run.xml"
    ended = run("test", write(entry("X1", **TOO_LONG)), "--full", "--bless", "--junit", file)
    assert (ended.exit_code, "no answer to X1" in ended.stderr) == (2, True)
    assert "too_large" in ended.stdout
    assert failing_cases(checked(file.read_bytes())) == 2


def test_a_looser_model_does_not_pass_the_gate(run: Run, write: Write, config: Config) -> None:
    path = write(entry("D1", expect={"outcome": "deny"}))
    for bias, status in (("deny", 0), ("allow", 1)):
        with serving(config, load_engine=lambda _, bias=bias: StubEngine(bias=bias)):
            if bias == "deny":
                assert run("test", path, "--full", "--bless").exit_code == 0
            ended = run("test", path, "--full", "--gate")
            assert ended.exit_code == status, ended.output
    assert "tiny: D1 is newly loosened: deny before, allow now" in ended.stdout


# ---------------------------------------------------------------- compare


def saved(folder: Path, name: str, right: int, wrong: int) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(plain(run_of(*many(right, wrong)))))
    return path


def test_two_saved_runs_are_compared_without_a_model(run: Run, tmp_path: Path) -> None:
    old, new = saved(tmp_path, "old", 20, 10), saved(tmp_path, "new", 30, 0)
    ended = run("compare", old, new)
    assert ended.exit_code == 0, ended.output
    assert "recommended: new: new decides 10 more of 30 right (exact McNemar p = 0.002)" in ended.stdout
    assert ended.stdout.count("gained") == 11
    comparison = json.loads(run("compare", old, new, "--json").stdout)
    assert (comparison["fixed"], comparison["broken"], comparison["choice"]) == (10, 0, "after")
    same = run("compare", old, old).stdout
    assert "recommended: neither: no difference shown" in same


@pytest.mark.parametrize(
    ("side", "name"),
    [
        ("runs/old.json", "old"),
        ("-", "as configured"),
        ("model=a,adapter=/srv/tuned.gguf,adapter_scale=0.5", "model=a,adapter=tuned.gguf,adapter_scale=0.5"),
    ],
)
def test_a_side_is_named_by_its_file_or_its_settings(side: str, name: str) -> None:
    assert side_names(side, "b.json") == (name, "b")


def test_the_output_of_compare_fits_80_columns(run: Run, tmp_path: Path) -> None:
    old, new = saved(tmp_path, "a-run-with-a-rather-long-name-of-its-own", 4, 6), saved(tmp_path, "b", 8, 2)
    for line in run("compare", old, new).stdout.splitlines():
        assert len(line) <= 80 or line.startswith(("  ", "recommended")), line


def test_a_run_under_an_adapter_names_it_and_the_weights_that_judged(
    run: Run, write: Write, config: Config, tmp_path: Path
) -> None:
    adapter = tmp_path / "tuned.gguf"
    write_adapter_header(adapter)
    judges = []
    for setting in (config, with_changes(config, f"adapter={adapter},adapter_scale=0.5")):
        with serving(setting, load_engine=load_stub_engine):
            judges += json.loads(run("test", write(entry("E1")), "--json").stdout)["judges"]
    plain, tuned = judges
    expected = Adapter(name="tuned.gguf", sha256=hashlib.sha256(adapter.read_bytes()).hexdigest(), scale=0.5)
    assert (plain["model"], tuned["model"]) == ("stub", "stub+tuned.gguf")
    assert tuned["model_sha256"] == identity_of(plain["model_sha256"], expected)


def test_compare_refuses_settings_while_a_daemon_holds_the_journal(
    run: Run, write: Write, tmp_path: Path, daemon: Config
) -> None:
    file = tmp_path / "run.json"
    path = write(entry("E1"))
    file.write_text(run("test", path, "--json").stdout)
    ended = run("compare", file, "-", "--suite", path)
    assert (ended.exit_code, str(daemon.state_dir) in ended.stderr) == (2, True), ended.output


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("nosuch=1", "unknown setting 'nosuch'; known: "),
        ("cache_size=many", "'cache_size=many': cache_size"),
        ("nowhere.json", "nowhere.json: cannot be read"),
    ],
)
def test_an_invalid_side_is_status_2(run: Run, tmp_path: Path, side: str, message: str) -> None:
    ended = run("compare", saved(tmp_path, "old", 1, 1), side)
    assert (ended.exit_code, message in ended.stderr) == (2, True), ended.output


def answers(run: Json, turn: int) -> list[Json]:
    return [
        (item["id"], item["outcome"], item["label"], item["probabilities"])
        for item in run["results"]
        if item["round"] == turn
    ]


@pytest.mark.model
class TestWithTheModel:
    """The whole way with the embedded model, in this process and behind a daemon."""

    def test_a_daemon_and_this_process_give_the_same_labels_and_compare_asks_what_was_asked(
        self, run: Run, write: Write, config: Config, tmp_path: Path
    ) -> None:
        path = write(entry("E1"), entry("H1", quick=False))
        inside = run("test", path, "--json", "--repeat", "2")
        assert inside.exit_code == 0, inside.output
        file = tmp_path / "inside.json"
        file.write_text(inside.stdout)
        with serving(config):
            beside = run("test", path, "--json", "--against", config.endpoint)
        runs = [json.loads(inside.stdout), json.loads(beside.stdout)]
        assert [answered["where"] for answered in runs] == ["in process", "the daemon"]
        first, again = (answers(runs[0], turn) for turn in (1, 2))
        other = answers(runs[1], 1)
        assert first == again == other
        assert runs[0]["summary"]["flips"] == []
        compared = json.loads(run("compare", file, "-", "--suite", path, "--json").stdout)
        assert (compared["paired"], compared["only_after"], compared["choice"]) == (1, [], "neither")
        assert compared["latency"]["count"] == 1
