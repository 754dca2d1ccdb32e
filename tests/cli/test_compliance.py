"""The command `compliance`: its forms, its file, and the check of a stored report."""

from __future__ import annotations

import csv
import io
import json
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from tests.build import NOON, by_rule, record, sent, signing, undo_migrations
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Traits
from thor_policy.core.requests import Entity

Run = Callable[..., Result]
SINCE = ("--since", "2026-01-01T00:00:00Z")


@pytest.fixture
def run(config: Config) -> Run:
    def invoke(*arguments: str) -> Result:
        where = ["--state-dir", str(config.state_dir)]
        return CliRunner().invoke(cli, ["compliance", *arguments, *where], env={"COLUMNS": "200"})

    return invoke


@pytest.fixture
def ids(config: Config) -> list[str]:
    """A signed journal with two exceptions, the first overturned by the second; returns their ids."""
    usual = by_rule()
    made = [
        replace(
            usual,
            id=f"018f-exception-{number}",
            floor=replace(usual.floor, traits=Traits(type="exception", is_exception=True)),
            evaluation=replace(usual.evaluation, resource=Entity(type="=cmd", id="<script>x</script>")),
        )
        for number in range(2)
    ]
    ids = [decision.id for decision in made]
    approval = records.Approval(
        decision_id=ids[0], approver="ines", role="manager", channel="email", evidence="@T-1"
    )
    overturned = records.TraceState(decision_id=ids[0], status="overturned", by=ids[1], because="wrong")
    record(
        config.journal_path,
        *made,
        sent(approval, at=NOON),
        sent(overturned, at=NOON),
        checkpoints=signing(config.journal_path),
    )
    return ids


def test_the_table_shows_approvers_fate_digest_and_checkpoint(run: Run, ids: list[str]) -> None:
    shown = run(*SINCE)
    assert shown.exit_code == 0, shown.output
    assert "ines as manager by email" in shown.output
    assert f"{ids[1][-8:]} 2026-07-01" in shown.output
    assert "event 5 of" in shown.output  # the event of the checkpoint itself
    assert "by the key" in shown.output


def test_the_default_is_the_exceptions_of_24_months(run: Run, ids: list[str]) -> None:
    document = json.loads(run("--format", "json").output)
    statement = document["statement"]
    assert statement["type"] == "exception"
    assert int(statement["until"][:4]) - int(statement["since"][:4]) == 2
    assert statement["until"][4:10] == statement["since"][4:10] or statement["until"][4:10] == "-02-29"


def test_csv_has_a_row_for_each_decision_and_no_formula(run: Run, ids: list[str]) -> None:
    shown = run(*SINCE, "--format", "csv")
    newer, older = csv.DictReader(io.StringIO(shown.stdout, newline=""))
    assert (older["id"], newer["id"]) == (ids[0], ids[1])
    assert (older["approvers"], older["evidence"]) == ('["ines"]', '["@T-1"]')
    assert older["entity"].startswith("'=cmd:")
    assert (older["status"], older["status_by"], older["status_recorded_by"]) == (
        "overturned",
        ids[1],
        "uid:1000",
    )
    assert older["policy_sha256"].startswith("c0ffee")
    assert "digest: " in shown.stderr


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed(run: Run, ids: list[str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run(*SINCE, "--format", "html", "--output", str(page)).exit_code == 0
    text = page.read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & set(tags.names)
    assert "default-src 'none'" in text
    assert "http://" not in text
    assert "https://" not in text
    assert "&lt;script&gt;x" in text
    assert tags.names.count("tr") == 3
    assert ids[0] in text


def test_a_report_in_a_file_is_private_and_replaces_nothing(run: Run, ids: list[str], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert run(*SINCE, "--format", "json", "--output", str(path)).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    again = run(*SINCE, "--format", "json", "--output", str(path))
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_report_that_fails_leaves_no_file(run: Run, ids: list[str], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    failed = run("--since", "soon", "--format", "json", "--output", str(path))
    assert (failed.exit_code, path.exists(), list(tmp_path.glob(".*.new"))) == (2, False, [])


def test_a_stored_report_is_verified(run: Run, config: Config, ids: list[str], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    run(*SINCE, "--format", "json", "--output", str(path))
    valid = run("--verify", str(path))
    assert (valid.exit_code, "report      ok" in valid.output) == (0, True), valid.output
    (key,) = (config.state_dir / "checkpoints").glob("*.pub")
    assert run("--verify", str(path), "--public-key", str(key)).exit_code == 0
    path.write_text(path.read_text(encoding="utf-8").replace("ines", "otto"), encoding="utf-8")
    changed = run("--verify", str(path))
    assert changed.exit_code == 1
    assert "another digest" in changed.output


def test_a_report_without_a_key_says_that_it_is_not_signed(
    run: Run, config: Config, ids: list[str], tmp_path: Path
) -> None:
    (config.state_dir / "checkpoint.key").unlink()
    path = tmp_path / "report.json"
    run(*SINCE, "--format", "json", "--output", str(path))
    checked = run("--verify", str(path))
    assert checked.exit_code == 1
    assert "not signed" in checked.output
    assert "none: the checkpoint key cannot be used" in run(*SINCE).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--since", "2026-01-01", "--months", "3"), "not both"),
        (("--output", "x"), "needs --format"),
        (("--public-key", "KEY"), "needs --verify"),
        (("--months", "0"), "0 is not in the range"),
        (("--before", "nothing-here"), "there is no decision"),
        (("--verify", "KEY"), "no report"),
    ],
)
def test_wrong_use_ends_with_status_2(
    run: Run, config: Config, ids: list[str], arguments: tuple[str, ...], message: str
) -> None:
    (key,) = (config.state_dir / "checkpoints").glob("*.pub")
    failed = run(*(str(key) if argument == "KEY" else argument for argument in arguments))
    assert failed.exit_code == 2
    assert message in failed.stderr


def test_a_journal_of_an_earlier_version_is_migrated_first(run: Run, config: Config, ids: list[str]) -> None:
    undo_migrations(config.journal_path, "0015_approvals")
    assert run(*SINCE).exit_code == 0


def test_more_rows_than_the_limit_are_said(run: Run, ids: list[str]) -> None:
    assert "1; there are more: give --before the last id" in run(*SINCE, "--limit", "1").output
    assert "there are more" not in run(*SINCE, "--limit", "1", "--before", ids[1]).output
