"""The commands `receipt` and `verify-receipt`: exit statuses, forms, and the vector of the documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.build import by_model, erasing, note, record, signing, writing
from tests.documents import ROOT
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader

Run = Callable[..., Result]
ID = "018f-receipt"
QUESTION = {
    "subject": {"type": "user", "id": "ana"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "guide"},
}


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(cli, arguments)


@pytest.fixture
def receipt(config: Config, run: Run) -> Path:
    """The file of a receipt beside its journal."""
    record(config.journal_path, note(), by_model(id=ID), checkpoints=signing(config.journal_path))
    path = config.state_dir / "receipt.json"
    made = run("receipt", ID, "--output", str(path))
    assert (made.exit_code, made.output) == (0, "")
    return path


def key_of(config: Config) -> tuple[str, str]:
    return "--public-key", str(config.state_dir / "checkpoint.key.pub")


def test_a_receipt_is_verified_by_its_file_and_the_public_key(
    config: Config, run: Run, receipt: Path
) -> None:
    shown = run("verify-receipt", str(receipt), *key_of(config))
    assert shown.exit_code == 0, shown.output
    assert re.search(r"^ *receipt +ok$", shown.stdout, re.MULTILINE)
    assert max(map(len, shown.stdout.splitlines())) <= 80
    facts = json.loads(run("verify-receipt", str(receipt), *key_of(config), "--json").stdout)
    assert (facts["receipt"], facts["in_chain"], facts["outcome"]) == ("ok", "yes", "deny")
    assert facts["probability"] == {"allow": 0.25, "deny": 0.75}


def test_a_changed_receipt_is_wrong(config: Config, run: Run, receipt: Path) -> None:
    receipt.write_text(receipt.read_text().replace('"outcome": "deny"', '"outcome": "allow"', 1))
    shown = run("verify-receipt", str(receipt), *key_of(config))
    assert shown.exit_code == 1
    assert "its signature is wrong" in shown.stdout


def test_a_receipt_without_links_needs_the_journal(config: Config, run: Run, receipt: Path) -> None:
    path = receipt.with_name("short.json")
    made = run("receipt", ID, "--links", "0", "--output", str(path))
    assert "1 events lie between" in made.stderr
    alone = run("verify-receipt", str(path), *key_of(config))
    assert (alone.exit_code, "not shown" in alone.stdout) == (1, True)
    beside = run("verify-receipt", str(path), *key_of(config), "--journal", str(config.journal_path))
    assert beside.exit_code == 0, beside.output


def test_a_deleted_decision_is_found_with_the_journal(config: Config, run: Run, receipt: Path) -> None:
    arguments = ["verify-receipt", str(receipt), *key_of(config), "--journal", str(config.journal_path)]
    assert run(*arguments).exit_code == 0
    with writing(config.journal_path) as connection:
        connection.execute("DELETE FROM events WHERE seq = 2")
    shown = run(*arguments)
    assert shown.exit_code == 1
    assert "deleted" in shown.stdout


def test_a_change_elsewhere_in_the_journal_is_found(config: Config, run: Run, receipt: Path) -> None:
    with writing(config.journal_path) as connection:
        connection.execute("UPDATE events SET body = '{}' WHERE seq = 1")
    shown = run("verify-receipt", str(receipt), *key_of(config), "--journal", str(config.journal_path))
    assert (shown.exit_code, "the journal is wrong: event 1" in shown.stdout) == (1, True)


def test_an_erased_question_is_reported_as_erased(config: Config, run: Run, receipt: Path) -> None:
    record(config.journal_path, erasing(config.journal_path, 2))
    shown = run("verify-receipt", str(receipt), *key_of(config), "--journal", str(config.journal_path))
    assert shown.exit_code == 0, shown.output
    assert "by event 4" in shown.stdout
    after = receipt.with_name("after.json")
    run("receipt", ID, "--output", str(after))
    shown = run("verify-receipt", str(after), *key_of(config))
    assert (shown.exit_code, "erased by event 4" in shown.stdout) == (0, True)


def test_a_checkpoint_that_was_kept_is_compared(config: Config, run: Run, receipt: Path) -> None:
    (kept,) = (config.state_dir / "checkpoints").glob("*.json")
    arguments = ["verify-receipt", str(receipt), *key_of(config), "--checkpoint", str(kept)]
    assert run(*arguments).exit_code == 0
    kept.write_text(kept.read_text().replace('"seq": 3', '"seq": 2'))
    assert run(*arguments).exit_code == 1


def test_wrong_use_ends_with_2(config: Config, run: Run, receipt: Path) -> None:
    assert run("verify-receipt", str(receipt)).exit_code == 2
    assert run("verify-receipt", str(receipt), *key_of(config), "--replay").exit_code == 2
    assert run("receipt", "018f-unknown").exit_code == 2
    receipt.write_text("{}")
    shown = run("verify-receipt", str(receipt), *key_of(config))
    assert (shown.exit_code, "no receipt" in shown.stderr) == (2, True)
    (config.state_dir / "checkpoint.key").unlink()
    assert "the checkpoint key" in run("receipt", ID).stderr


@pytest.mark.model
def test_a_receipt_is_replayed_beside_its_journal(config: Config, run: Run, tmp_path: Path) -> None:
    with serving(config), Client(config.endpoint, timeout_ms=120_000) as client:
        client.evaluate(QUESTION, deadline_ms=110_000)
    with Reader(config.journal_path) as reader:
        decision_id = reader.decisions(limit=1)[0]["decision_id"]
    path = tmp_path / "receipt.json"
    assert run("receipt", decision_id, "--with-question", "--output", str(path)).exit_code == 0
    arguments = ["verify-receipt", str(path), *key_of(config), "--journal", str(config.journal_path)]
    shown = run(*arguments, "--replay", "--json")
    assert shown.exit_code == 0, shown.output
    facts = json.loads(shown.stdout)
    assert (facts["replay"], facts["shown"][:3]) == ("identical", "yes")


def test_the_vector_of_the_documentation_is_valid(run: Run, tmp_path: Path) -> None:
    text = (ROOT / "docs/reference/receipts.md").read_text()
    (pem,) = re.findall(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\n", text, re.DOTALL)
    vectors = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (tmp_path / "key.pem").write_text(pem)
    path = tmp_path / "vector.json"
    for vector in vectors:
        path.write_text(vector)
        shown = run("verify-receipt", str(path), "--public-key", str(tmp_path / "key.pem"))
        assert shown.exit_code == 0, shown.output
        for member in re.findall(r'"(?:outcome|sha256|seq|head|body)": "?[^",]+', vector):
            path.write_text(vector.replace(member, f"{member[:-1]}{'1' if member[-1] != '1' else '2'}"))
            assert run("verify-receipt", str(path), "--public-key", str(tmp_path / "key.pem")).exit_code != 0
    assert vectors
