"""The key of the digests on the chain: without it nobody can guess what a digest stands for."""

from __future__ import annotations

import gzip
import json
import os
import re
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from msgspec import structs

from tests.build import CALLER, by_model, record, rows
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Decision
from thor_policy.core.errors import JournalError
from thor_policy.core.idempotency import Mark
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal import digest_key
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.rebuild import rebuild
from thor_policy.journal.maintenance.tasks import result_of
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.protocol.messages import EvaluateRequest
from thor_policy.protocol.requests import decode_request
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

PATIENCE_MS = 20_000
NOON = 1_778_668_800.0
SECRET = "correcthorse"
GUESSES = ("hunterhunter", SECRET, "swordfish")
MASKED = ("/context/details", "/context/password", "/subject/properties/pin", "/resource/properties/pin")
#: What a journal may hold that depends on the content of a request to the last digit.
TRACE = re.compile(r'[0-9a-f]{64}|"logits":\[[^]]*\]|\d\.\d{6,}')
DIGEST = re.compile(r"[0-9a-f]{64}")


def question(subject: str = "alice", **members: Json) -> dict[str, Json]:
    """A question that the rules leave to the model."""
    trust = {"competence": 0.9, "reliability": 0.9, "integrity": 0.9}
    return {
        "subject": {"type": "user", "id": subject, "properties": {"role": "engineer", "trust": trust}},
        "action": {"name": "deploy"},
        "resource": {"type": "env", "id": "staging"},
        "context": {"timestamp": "2026-05-13T10:00:00Z", "details": "Release 8."},
    } | members


def in_properties(secret: str, place: str) -> dict[str, Json]:
    request = question()
    request[place] = request[place] | {"properties": request[place].get("properties", {}) | {"pin": secret}}
    return request


def flat(secret: str) -> dict[str, Json]:
    return {"actor_id": "user:alice", "action_type": "deploy", "resource": "env:staging", "details": secret}


def report(**members: Json) -> dict[str, Json]:
    return {"record": {"agent": "desk", "outcome": "granted"} | members}


#: What is sent with an idempotency key, by the secret in it: first what is masked, then what is erased.
MASKED_CASES: dict[str, tuple[str, Callable[[str], dict[str, Json]]]] = {
    "question": ("evaluate", lambda secret: {"request": question(context={"password": secret})}),
    "text shown to the model": (
        "evaluate",
        lambda secret: {"request": question(context={"details": secret})},
    ),
    "flat situation": ("evaluate", lambda secret: {"situation": flat(secret)}),
    "item of a batch": ("evaluate", lambda secret: {"evaluations": [question(context={"details": secret})]}),
    "property of the subject": ("evaluate", lambda secret: {"request": in_properties(secret, "subject")}),
    "property of the resource": ("evaluate", lambda secret: {"request": in_properties(secret, "resource")}),
    "question with annotations": (
        "evaluate",
        lambda secret: {
            "request": question(context={"password": secret}),
            "annotations": {"scenario_id": "S1", "expected": ["deny"]},
        },
    ),
    "report": ("decision_report", lambda secret: report(context={"password": secret})),
}
ERASED_CASES: dict[str, tuple[str, Callable[[str], dict[str, Json]]]] = {
    "name of an agent": ("decision_report", lambda secret: report(agent=secret)),
    "subject": ("evaluate", lambda secret: {"request": question(secret)}),
    "query": (
        "consultation",
        lambda secret: {"record": {"system": "crm", "session": "s", "query": f"who is {secret}?"}},
    ),
    "title": ("node", lambda secret: {"record": {"type": "goal", "title": f"call {secret}"}}),
    "rationale": (
        "edge",
        lambda secret: {"record": {"type": "leads_to", "rationale": f"as {secret}"}},
    ),
}
CASES = MASKED_CASES | ERASED_CASES


def filled(config: Config, secret: str) -> Config:
    """A daemon that was asked every case, and then erased the secret; it has stopped."""
    with (
        serving(replace(config, masked=MASKED), load_engine=load_stub_engine),
        Client(config.endpoint, timeout_ms=PATIENCE_MS) as client,
    ):
        ends = {end: client.node(records.Node(type="goal", title=end)) for end in ("source", "target")}
        for name, (op, members) in CASES.items():
            fields = members(secret)
            if op == "edge":
                fields["record"] |= ends
            client.call(op, fields | {"idempotency_key": name})
        client.call(
            "evaluate", {"request": question(), "idempotency_key": f"order of {secret}", "explain": "none"}
        )
        for actor in (f"user:{secret}", f"agent:{secret}"):
            client.maintenance(records.Maintenance(task="erase", actor=actor))
    return config


def config_in(folder: Path) -> Config:
    return Config(state_dir=folder, endpoint=f"ipc://{folder}/policy.sock", cache_size=0, threads=1)


@pytest.fixture(scope="module")
def folders() -> Iterator[dict[str, Path]]:
    """The state directory of the daemon under attack, and one of a daemon of the attacker for each guess."""
    with tempfile.TemporaryDirectory(prefix="tp-") as root:  # short enough for a socket
        made = {name: Path(root) / str(number) for number, name in enumerate(("victim", *GUESSES))}
        for name, folder in made.items():
            folder.mkdir()
            filled(config_in(folder), SECRET if name == "victim" else name)
        yield made


def bodies(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return [
            body
            for (body,) in connection.execute(
                "SELECT body FROM events WHERE kind NOT IN "
                "('checkpoint', 'erased', 'pack_activated', 'model_loaded') ORDER BY seq"
            )
        ]


def guesses_that_fit(
    victim: list[str], guessed: dict[str, list[str]], pattern: re.Pattern[str] = TRACE
) -> list[str]:
    """The guesses that left something in the journal under attack that no other guess leaves."""
    present = set(pattern.findall("\n".join(victim)))
    traces = {guess: set(pattern.findall("\n".join(texts))) for guess, texts in guessed.items()}
    return [
        guess
        for guess in guessed
        if present & (traces[guess] - set().union(*(traces[other] for other in guessed if other != guess)))
    ]


class TestGuess:
    def test_v9_a_masked_value_cannot_be_guessed_from_the_digest_of_a_request(
        self, folders: dict[str, Path]
    ) -> None:
        database = (folders["victim"] / "policy_decisions.db").read_bytes()
        for guess in GUESSES:
            members = {"request": question(context={"password": guess}), "idempotency_key": "question"}
            frame = json.dumps({"v": 1} | members).encode()
            message = decode_request(frame, max_bytes=2**20, max_deadline_ms=60_000)
            assert isinstance(message, EvaluateRequest)
            assert message.idempotency is not None
            assert message.idempotency.content.encode() not in database

    @pytest.mark.parametrize("case", CASES)
    def test_no_journal_tells_which_of_three_values_a_masked_or_erased_one_was(
        self, folders: dict[str, Path], case: str
    ) -> None:
        """The attacker has the database, and asks a daemon of their own everything that could have been."""
        place = list(CASES).index(case)
        of_case = {name: [bodies(folder / "policy_decisions.db")[place]] for name, folder in folders.items()}
        victim = of_case.pop("victim")
        pattern = TRACE if case in MASKED_CASES else DIGEST
        assert guesses_that_fit(victim, of_case, pattern) == []

    def test_no_journal_tells_which_idempotency_key_a_digest_stands_for(
        self, folders: dict[str, Path]
    ) -> None:
        place = len(CASES)
        of_case = {name: [bodies(folder / "policy_decisions.db")[place]] for name, folder in folders.items()}
        victim = of_case.pop("victim")
        assert guesses_that_fit(victim, of_case, DIGEST) == []

    def test_another_caller_who_asks_the_same_gets_another_digest(
        self, config: Config, tcp_endpoint: str
    ) -> None:
        """The attacker may ask this daemon, under keys of their own, and read its database."""
        over_tcp = replace(config, tcp_endpoint=tcp_endpoint, masked=MASKED)
        path = Keys(over_tcp.keys_dir).new("mallory", ("ask", "record"), NOON)
        with (
            serving(over_tcp, load_engine=load_stub_engine),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as client,
            Client(tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as mallory,
        ):
            for name, (op, members) in MASKED_CASES.items():
                client.call(op, members(SECRET) | {"idempotency_key": name})
            for guess in GUESSES:
                for name, (op, members) in MASKED_CASES.items():
                    mallory.call(op, members(guess) | {"idempotency_key": f"{name} {guess}"})
        texts = bodies(over_tcp.journal_path)
        count = len(MASKED_CASES)
        of_guess = {
            guess: texts[count * number : count * (number + 1)] for number, guess in enumerate(GUESSES, 1)
        }
        assert guesses_that_fit(texts[:count], of_guess, DIGEST) == []

    def test_without_an_idempotency_key_the_exact_numbers_of_the_model_are_not_recorded_either(
        self, tmp_path: Path
    ) -> None:
        """The same question gives the same bits, so exact numbers would be a digest of the question."""
        path = tmp_path / "policy_decisions.db"
        shown = by_model(probabilities={"allow": 0.123456, "deny": 0.876544}, confidence=0.876544)
        plain, masked = replace_id(shown), replace_id(shown)
        record(path, plain)
        record(path, masked, masked=("/subject/id",))
        exact, coarse = (json.loads(body) for body in bodies(path))
        assert exact["prompt"]["logits"]
        assert (exact["confidence"], exact["probabilities"]["deny"]) == (0.876544, 0.876544)
        assert "prompt" not in coarse
        assert (coarse["confidence"], coarse["probabilities"]["deny"]) == (0.88, 0.88)
        assert verify(path).ok


def replace_id(decision: Decision) -> Decision:
    return structs.replace(decision, id=new_id())


# ---------------------------------------------------------------- the file


class TestFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "policy_decisions.db"

    def mark(self, path: Path) -> Mark:
        with Journal(path) as journal:
            return journal.mark(CALLER, "k", "c")

    def test_is_made_at_the_first_start_for_its_owner_only_and_then_stays(self, path: Path) -> None:
        first = self.mark(path)
        file = digest_key.path_of(path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_uid == os.geteuid()
        assert self.mark(path) == first

    def test_differs_between_journals(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        assert self.mark(path) != self.mark(tmp_path / "other" / path.name)

    def test_is_in_no_file_of_the_journal_but_its_own(self, path: Path) -> None:
        with Journal(path) as journal:
            mark = journal.mark(CALLER, "k", "c")
            node = records.Node(type="goal", title="t")
            journal.write(node, record_id="n", at=NOON, caller=CALLER, idempotency=str(mark))
            journal.write(node, record_id="m", at=NOON, caller=CALLER)
            assert result_of(journal.checkpoint()) == 0
            archive_before(journal, "9999-01-01T00:00:00Z")
        assert verify(path).ok
        secret = digest_key.path_of(path).read_bytes().strip()
        others = [file for file in path.parent.rglob("*") if file.is_file() and file.suffix != ".key"]
        assert path in others
        contents = [gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in others]
        assert not [c for c in contents if secret in c or bytes.fromhex(secret.decode()) in c]

    def test_of_a_rebuilt_copy_is_another_one(self, path: Path, tmp_path: Path) -> None:
        first = self.mark(path)
        record(path, by_model())
        rebuild(path, tmp_path / "copy" / path.name)
        assert self.mark(tmp_path / "copy" / path.name) != first

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
    def test_that_others_can_access_is_refused_with_the_cure(self, path: Path, mode: int) -> None:
        self.mark(path)
        digest_key.path_of(path).chmod(mode)
        with pytest.raises(
            JournalError, match=rf"policy_decisions\.key has mode 0{mode:o}, .*run `chmod 600` on it"
        ):
            Journal(path)

    @pytest.mark.parametrize("content", [b"", b"x", b"0" * 64, b"0" * 63 + b"g\n", b"0" * 65 + b"\n"])
    def test_with_other_content_is_refused_with_the_cure(self, path: Path, content: bytes) -> None:
        self.mark(path)
        digest_key.path_of(path).write_bytes(content)
        with pytest.raises(JournalError, match=r"is no key of digests .*; move it away to have one made"):
            Journal(path)

    def test_that_is_a_link_is_refused(self, path: Path, tmp_path: Path) -> None:
        self.mark(path)
        file = digest_key.path_of(path)
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(JournalError, match=r"policy_decisions\.key is a symbolic link"):
            Journal(path)


class TestReplacement:
    def test_makes_a_repeated_request_a_new_one_and_leaves_the_chain_whole(self, config: Config) -> None:
        with (
            serving(config, load_engine=load_stub_engine),
            Client(config.endpoint, timeout_ms=PATIENCE_MS) as client,
        ):
            first, again = (client.evaluate(question(), idempotency_key="k") for _ in range(2))
            assert first["context"]["decision_id"] == again["context"]["decision_id"]
            done = client.maintenance(records.Maintenance(task="rekey"))
            assert done == {"rekeyed": "policy_decisions.key"}
            later, repeated = (client.evaluate(question(), idempotency_key="k") for _ in range(2))
        assert later["context"]["decision_id"] == repeated["context"]["decision_id"]
        assert later["context"]["decision_id"] != first["context"]["decision_id"]
        assert verify(config.journal_path).ok
        kinds = rows(config.journal_path, "SELECT kind, body FROM events WHERE kind = 'rekeyed'")
        assert kinds == [("rekeyed", f'{{"by_uid":{os.geteuid()}}}')]

    def test_holds_after_a_restart_too(self, config: Config) -> None:
        ids = []
        for restart in range(3):
            with (
                serving(config, load_engine=load_stub_engine),
                Client(config.endpoint, timeout_ms=PATIENCE_MS) as client,
            ):
                if restart == 1:
                    client.maintenance(records.Maintenance(task="rekey"))
                ids.append(client.evaluate(question(), idempotency_key="k")["context"]["decision_id"])
        assert ids[0] != ids[1] == ids[2]

    def test_needs_no_daemon(self, config: Config) -> None:
        with Journal(config.journal_path) as journal:
            before = journal.mark(CALLER, "k", "c")
        options = ["--state-dir", str(config.state_dir), "--endpoint", config.endpoint]
        ran = CliRunner().invoke(cli, ["log", "rekey", "--yes", *options])
        assert (ran.exit_code, ran.output) == (
            0,
            "replaced policy_decisions.key; earlier idempotency keys are forgotten\n",
        )
        with Journal(config.journal_path) as journal:
            assert journal.mark(CALLER, "k", "c") != before
