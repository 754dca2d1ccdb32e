"""The pack manager: packs and adapters are loaded, change their role and are unloaded in a running daemon.

The tests send their requests over the socket; the engine is a stub.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.build import write_adapter_header, write_pack, write_rules_only_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, identity_of
from thor_policy.core.engine import Engine, PromptPrefix, Steps
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.records import Calibration, Control, Maintenance
from thor_policy.core.requests import Json, Role
from thor_policy.core.status import Status
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import StubEngine

#: No test waits longer than this for anything, in seconds.
PATIENCE_S = 30
NOON = 1_778_668_800.0
QUESTION: dict[str, Json] = {
    "subject": {"type": "user", "id": "a"},
    "action": {"name": "look"},
    "resource": {"type": "doc", "id": "d"},
}
BAD_RULE = "- {id: odd, when: 'true', outcome: deny, clause: R9, because: No such clause.}\n"
SERVE = """
import sys
from pathlib import Path
from thor_policy.core.status import Status
from thor_policy.daemon.service import open_service
from thor_policy.config import Config
from thor_policy.testing import load_stub_engine
state, pack = sys.argv[1:]
config = Config(state_dir=Path(state), endpoint=f"ipc://{state}/policy.sock", pack=pack)
with open_service(config, load_engine=load_stub_engine) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "two", version="2", system="Judge.")


@pytest.fixture
def third(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "three", version="3", system="Weigh.")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.gguf"
    write_adapter_header(path)
    return path


class Picky(StubEngine):
    """A stub that refuses to load a prefix with `Weigh` under an adapter, and with `Weigh light` always."""

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[Any]:
        if "Weigh" in prefix.turns[0].text and (adapter is not None or "light" in prefix.turns[0].text):
            yield
            raise EngineError("the golden question scored differently twice")
        return (yield from super().loading(prefix, adapter))


@pytest.fixture
def served(config: Config, folder: Path, tmp_path: Path) -> Iterator[Config]:
    small = replace(config, pack=str(folder), models_dir=tmp_path / "models", resident_packs=3)
    with serving(small, load_engine=lambda _: Picky()):
        yield small


@pytest.fixture
def client(served: Config) -> Iterator[Client]:
    with Client(served.endpoint, timeout_ms=PATIENCE_S * 1000) as opened:
        yield opened


def roles(client: Client) -> dict[str, str]:
    """The role of each resident pack, by its version."""
    return {pack.version: pack.role for pack in client.status().packs}


def wait_for(client: Client, value_of: Callable[[Status], Any]) -> Any:
    """Poll the status until `value_of` returns a true value, and return that."""
    patient_until = time.monotonic() + PATIENCE_S
    while not (value := value_of(client.status())):
        assert time.monotonic() < patient_until
    return value


def refused(client: Client, **control: Any) -> RequestError:
    """The error that this control request gets; fails if the request changed a pack."""
    before = client.status().packs
    with pytest.raises(RequestError) as caught:
        client.control(Control(**control))
    assert client.status().packs == before, "a refused request must change nothing"
    return caught.value


def answer_context(client: Client, **fields: Any) -> dict[str, Json]:
    """The context of the answer to the question, asked with these fields."""
    context: dict[str, Json] = client.call("evaluate", {"request": QUESTION, **fields})["context"]
    return context


def kinds(config: Config, *only: str) -> list[str]:
    """The kinds of the journal's events, in order: all, or those in `only`."""
    with closing(sqlite3.connect(config.journal_path)) as db:
        recorded = [kind for (kind,) in db.execute("SELECT kind FROM events ORDER BY seq")]
    return [kind for kind in recorded if not only or kind in only]


class TestPacks:
    def test_a_loaded_pack_decides_the_requests_that_name_it(
        self, client: Client, served: Config, other: Path
    ) -> None:
        done = client.control(Control(task="load", pack=str(other)))
        assert [(pack["version"], pack["role"]) for pack in done["packs"]] == [
            ("1", "active"),
            ("2", "candidate"),
        ]
        digest = done["packs"][1]["sha256"]
        assert answer_context(client)["pack"]["version"] == "1"
        # two packs have this name; the active pack decides
        assert answer_context(client, pack="small")["pack"]["version"] == "1"
        assert answer_context(client, pack="small@2")["pack"]["version"] == "2"
        assert answer_context(client, pack=digest[:12])["pack"]["sha256"] == digest
        with pytest.raises(RequestError, match="not loaded") as caught:
            answer_context(client, pack="large")
        assert caught.value.code == "not_found"
        assert kinds(served)[-5:] == ["pack_loaded"] + ["decision"] * 4

    def test_an_activated_pack_decides_from_then_on(
        self, client: Client, served: Config, other: Path
    ) -> None:
        answer_context(client)
        client.control(Control(task="activate", pack=str(other)))
        assert answer_context(client)["pack"]["version"] == "2"
        assert client.status().pack.version == "2"
        assert roles(client) == {"2": "active", "1": "candidate"}
        client.control(Control(task="activate", pack="small@1"))
        assert answer_context(client)["pack"]["version"] == "1"
        assert kinds(served, "decision", "pack_activated", "pack_loaded") == [
            *("pack_activated", "decision", "pack_loaded", "pack_activated", "decision"),
            *("pack_activated", "decision"),
        ]
        assert verify(served.journal_path).ok

    def test_activating_the_active_pack_records_no_event(self, client: Client, served: Config) -> None:
        client.control(Control(task="activate", pack="small"))
        answer_context(client)
        assert kinds(served, "pack_activated") == ["pack_activated"]

    def test_a_shadow_pack_is_recorded_but_not_among_the_decisions(
        self, client: Client, served: Config, other: Path
    ) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        answer = answer_context(client)
        wait_for(client, lambda status: status.engine.counters["shadows"])
        client.control(Control(task="shadow", pack="none"))  # from now on no request is shadowed
        answer_context(client)
        with Reader(served.journal_path) as reader:
            (shadow,) = reader.trace(answer["decision_id"])["shadows"]
            assert len(reader.decisions()) == 2
        assert shadow["prompt_version"].startswith("small@2+")
        assert shadow["served"] == answer["outcome"]
        assert shadow["agrees"] == (shadow["decision"] == answer["outcome"])
        assert roles(client) == {"1": "active", "2": "candidate"}
        recorded = kinds(served, "pack_shadowed", "shadowed", "decision")
        assert recorded == ["pack_shadowed", "decision", "shadowed", "pack_shadowed", "decision"]
        assert client.status().engine.counters["shadows_dropped"] == 0

    def test_the_active_pack_cannot_be_shadowed_or_unloaded(self, client: Client) -> None:
        assert refused(client, task="shadow", pack="small").code == "conflict"
        assert refused(client, task="unload", pack="small").code == "conflict"

    def test_an_activated_shadow_pack_is_no_longer_the_shadow(self, client: Client, other: Path) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        client.control(Control(task="activate", pack="small@2"))
        assert roles(client) == {"2": "active", "1": "candidate"}

    def test_an_unloaded_pack_is_gone(self, client: Client, served: Config, other: Path) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        client.control(Control(task="unload", pack="small@2"))
        assert roles(client) == {"1": "active"}
        with pytest.raises(RequestError, match="not loaded"):
            answer_context(client, pack="small@2")
        assert refused(client, task="unload", pack="small@2").code == "not_found"
        assert kinds(served)[-2:] == ["pack_shadowed", "pack_unloaded"]

    def test_an_ambiguous_pack_name_is_refused(self, client: Client, other: Path, third: Path) -> None:
        client.control(Control(task="load", pack=str(other)))
        error = refused(client, task="activate", pack="small")
        assert error.code == "conflict"
        assert "give its digest" in error.message

    def test_a_pack_beyond_the_limit_resident_packs_is_refused(
        self, client: Client, other: Path, third: Path, tmp_path: Path
    ) -> None:
        client.control(Control(task="load", pack=str(other)))
        client.control(Control(task="load", pack=str(third)))
        client.control(Control(task="load", pack=str(third)))  # it is already loaded
        fourth = write_pack(tmp_path / "four", version="4", system="Ponder.")
        error = refused(client, task="activate", pack=str(fourth))
        assert error.code == "conflict"
        assert "unload one" in error.message

    @pytest.mark.parametrize(
        ("which", "code", "reason"),
        [
            ("nowhere", "bad_request", "known packs"),
            ("/nowhere", "bad_request", "no pack.yaml"),
            ("a\0b", "bad_request", "record.pack: has the control character U+0000"),
            ("unlint", "bad_request", "clause 'R9' does not exist"),
            ("unfit", "unavailable", "scored differently"),
        ],
    )
    def test_an_unusable_pack_is_refused_with_the_reason(
        self, client: Client, tmp_path: Path, which: str, code: str, reason: str
    ) -> None:
        folders = {
            "unlint": write_pack(tmp_path / "unlint", rules=BAD_RULE),
            "unfit": write_pack(tmp_path / "unfit", system="Weigh light."),
        }
        error = refused(client, task="activate", pack=str(folders.get(which, which)))
        assert error.code == code
        assert reason in error.message
        assert answer_context(client)["tier"] == "model"

    def test_a_calibration_applies_to_its_pack_only_and_survives_an_unload(
        self, client: Client, other: Path
    ) -> None:
        client.control(Control(task="load", pack=str(other)))
        first, second = client.status().packs
        calibration = Calibration(
            temperature=2.0, pack_sha256=second.sha256, model_sha256=StubEngine().model.sha256, judged=60
        )
        client.maintenance(Maintenance(task="calibrate", calibration=calibration))
        assert [pack.temperature for pack in client.status().packs] == [1.0, 2.0]
        client.control(Control(task="unload", pack="small@2"))
        client.control(Control(task="load", pack=str(other)))
        assert [pack.temperature for pack in client.status().packs] == [1.0, 2.0]
        assert first.temperature == 1.0


class TestReload:
    def test_replaces_a_changed_pack_and_keeps_its_role(
        self, client: Client, served: Config, folder: Path, other: Path
    ) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        write_pack(folder, version="1.1", system="Decide anew.")
        done = client.control(Control(task="reload"))
        assert [entry.split()[0] for entry in done["reloaded"]] == ["small@1.1"]
        assert done["refused"] == {}
        assert roles(client) == {"1.1": "active", "2": "shadow"}
        assert answer_context(client)["pack"]["version"] == "1.1"
        assert kinds(served, "pack_activated", "pack_unloaded") == [
            *("pack_activated", "pack_activated", "pack_unloaded"),
        ]

    def test_of_unchanged_packs_records_no_event(self, client: Client, served: Config) -> None:
        answer_context(client)
        before = kinds(served)
        assert client.control(Control(task="reload"))["reloaded"] == []
        assert kinds(served) == before

    @pytest.mark.parametrize("damage", ["lint", "yaml", "gone", "unfit"])
    def test_refuses_an_unusable_pack_and_status_shows_the_reason(
        self, client: Client, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        if damage == "gone":
            (folder / "rules.yaml").unlink()
        elif damage == "unfit":
            write_pack(folder, system="Weigh light.")
        else:
            write_pack(folder, rules=BAD_RULE if damage == "lint" else "- {")
        done = client.control(Control(task="reload"))
        ((which, _reason),) = done["refused"].items()
        assert which.startswith("small@1 ")
        assert client.status().pack_manager.refused == done["refused"]
        assert "stays as it is" in caplog.text
        assert answer_context(client)["pack"]["version"] == "1"
        write_pack(folder, version="1.2")
        client.control(Control(task="reload"))
        assert client.status().pack_manager.refused == {}
        assert answer_context(client)["pack"]["version"] == "1.2"

    def test_is_run_by_a_hangup_signal(self, short_dir: Path, folder: Path) -> None:
        command = [sys.executable, "-c", SERVE, str(short_dir), str(folder)]
        with (
            running(command) as daemon,
            Client(f"ipc://{short_dir}/policy.sock", timeout_ms=PATIENCE_S * 1000) as client,
        ):
            write_pack(folder, version="1.1")
            daemon.send_signal(signal.SIGHUP)
            wait_for(client, lambda status: status.pack.version == "1.1")
            write_pack(folder, rules=BAD_RULE)
            daemon.send_signal(signal.SIGHUP)
            (reason,) = wait_for(client, lambda status: status.pack_manager.refused).values()
            assert "R9" in reason
            assert answer_context(client)["pack"]["version"] == "1.1"


class TestAdapter:
    def test_once_activated_applies_to_every_pack(
        self, client: Client, served: Config, other: Path, adapter: Path
    ) -> None:
        client.control(Control(task="load", pack=str(other)))
        before = answer_context(client)
        assert before["model"]["adapter"] is None
        done = client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        assert done["adapter"]["scale"] == 0.5
        assert [pack["adapter"] for pack in done["packs"]] == ["tuned.gguf", "tuned.gguf"]
        after = answer_context(client)
        assert after["model"]["adapter"] == done["adapter"]
        assert client.status().model.adapter == Adapter(**done["adapter"])
        assert after["probabilities"] != before["probabilities"]
        assert answer_context(client, pack="small@2")["model"]["adapter"] == done["adapter"]
        client.control(Control(task="adapter", adapter="none"))
        assert answer_context(client)["probabilities"] == before["probabilities"]
        assert client.status().model.adapter is None
        assert kinds(served, "adapter_activated") == ["adapter_activated"] * 2
        assert verify(served.journal_path).ok

    def test_with_another_scale_gives_other_probabilities(self, client: Client, adapter: Path) -> None:
        client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        half = answer_context(client)
        client.control(Control(task="adapter", adapter=str(adapter), scale=1.0))
        assert answer_context(client)["probabilities"] != half["probabilities"]

    def test_applies_to_packs_that_are_loaded_later(self, client: Client, other: Path, adapter: Path) -> None:
        client.control(Control(task="adapter", adapter=str(adapter)))
        done = client.control(Control(task="load", pack=str(other)))
        assert [pack["adapter"] for pack in done["packs"]] == ["tuned.gguf", "tuned.gguf"]

    def test_is_refused_for_all_packs_if_it_fails_on_a_single_pack(
        self, client: Client, third: Path, adapter: Path
    ) -> None:
        client.control(Control(task="load", pack=str(third)))
        error = refused(client, task="adapter", adapter=str(adapter))
        assert error.code == "unavailable"
        assert answer_context(client)["model"]["adapter"] is None

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("/nowhere.gguf", "no model file"), ("unheard-of", "no model is called")],
    )
    def test_that_does_not_exist_is_refused(self, client: Client, name: str, reason: str) -> None:
        error = refused(client, task="adapter", adapter=name)
        assert error.code == "bad_request"
        assert reason in error.message

    def test_has_a_calibration_of_its_own_for_each_scale(self, client: Client, adapter: Path) -> None:
        client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        active = client.status().model.adapter
        calibration = Calibration(
            temperature=3.0,
            pack_sha256=client.status().pack.sha256,
            model_sha256=identity_of(StubEngine().model.sha256, active),
            judged=60,
        )
        client.maintenance(Maintenance(task="calibrate", calibration=calibration))
        temperatures = [client.status().packs[0].temperature]
        for name, scale in (("none", 1.0), (str(adapter), 0.25), (str(adapter), 0.5)):
            client.control(Control(task="adapter", adapter=name, scale=scale))
            temperatures.append(client.status().packs[0].temperature)
        assert temperatures == [3.0, 1.0, 1.0, 3.0]

    def test_never_uses_cached_scores_of_another_adapter(
        self, config: Config, folder: Path, adapter: Path, tmp_path: Path
    ) -> None:
        small = replace(config, pack=str(folder), models_dir=tmp_path / "models", cache_size=100)
        with (
            serving(small, load_engine=lambda _: StubEngine()),
            Client(small.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
        ):
            tiers = [answer_context(client)["tier"] for _ in range(2)]
            client.control(Control(task="adapter", adapter=str(adapter)))
            tiers += [answer_context(client)["tier"] for _ in range(2)]
            client.control(Control(task="adapter", adapter="none"))
            tiers.append(answer_context(client)["tier"])
        assert tiers == ["model", "cache", "model", "cache", "cache"]

    def test_named_in_the_settings_applies_from_the_start(
        self, config: Config, folder: Path, adapter: Path, tmp_path: Path
    ) -> None:
        small = replace(
            config, pack=str(folder), models_dir=tmp_path / "models", adapter=str(adapter), adapter_scale=0.5
        )
        with (
            serving(small, load_engine=lambda _: StubEngine()),
            Client(small.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
        ):
            assert answer_context(client)["model"]["adapter"]["scale"] == 0.5
        assert kinds(small)[:3] == ["model_loaded", "adapter_activated", "pack_activated"]


class TestAuthorisation:
    def test_only_root_and_the_user_of_the_daemon_may_load_a_pack(
        self, served: Config, monkeypatch: pytest.MonkeyPatch, other: Path
    ) -> None:
        own_uid = os.geteuid()
        monkeypatch.setattr("thor_policy.daemon.server.os.geteuid", lambda: own_uid + 1)
        monkeypatch.setattr("thor_policy.daemon.connections.peer_of", lambda _: local_caller(own_uid + 2))
        with Client(served.endpoint, timeout_ms=60_000) as stranger:
            assert refused(stranger, task="load", pack=str(other)).code == "unauthorized"


def local_caller(uid: int) -> Any:
    from thor_policy.core.requests import Caller

    return Caller(transport="ipc", uid=uid, gid=uid, pid=1)


class TestCommands:
    @pytest.fixture
    def run(self, served: Config, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(served.state_dir))
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", served.endpoint)
        return lambda *arguments: CliRunner().invoke(cli, arguments)

    def test_of_packs_and_adapters_print_the_resident_packs(
        self, run: Any, other: Path, adapter: Path
    ) -> None:
        assert "candidate" in run("packs", "load", str(other)).stdout
        answer = json.loads(run("ask", json.dumps(QUESTION), "--pack", "small@2", "--json").stdout)
        assert answer["context"]["pack"]["version"] == "2"
        assert "shadow" in run("packs", "shadow", "small@2").stdout
        done = json.loads(run("packs", "activate", "small@2", "--json").stdout)
        assert [pack["role"] for pack in done["packs"]] == ["active", "candidate"]
        assert "small" in run("packs", "unload", "small@1").stdout
        assert "tuned.gguf" in run("adapters", "activate", str(adapter), "--scale", "0.5").stdout
        printed = run("status").stdout
        assert "tuned.gguf x 0.5" in printed
        assert run("adapters", "activate", "none").exit_code == 0

    def test_exit_with_4_on_a_refusal_and_with_1_on_a_refused_reload(self, run: Any, folder: Path) -> None:
        assert run("packs", "unload", "small").exit_code == 4
        assert run("packs", "reload").exit_code == 0
        write_pack(folder, rules=BAD_RULE)
        result = run("packs", "reload")
        assert result.exit_code == 1
        assert "R9" in result.stderr

    def test_exit_with_3_without_a_daemon(self, config: Config) -> None:
        endpoint = ("--endpoint", config.endpoint)
        assert CliRunner().invoke(cli, ("packs", "reload", *endpoint)).exit_code == 3
        assert CliRunner().invoke(cli, ("adapters", "activate", "none", *endpoint)).exit_code == 3

    def test_adapters_list_exits_with_0(self) -> None:
        assert CliRunner().invoke(cli, ("adapters", "list")).exit_code == 0


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Yield the process once it is ready; end it with SIGTERM and require exit status 0."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
            child.terminate()
            assert child.wait(PATIENCE_S) == 0
        finally:
            child.kill()


# ---------------------------------------------------------------- packs of rules alone


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    rules = (
        "- {id: looks, when: 'action.name == \"look\"', outcome: allow, because: Looking is free.}\n"
        "- {id: odd, when: 'context.n == 1', outcome: require_mfa, because: Odd.}\n"
    )
    return write_rules_only_pack(tmp_path / "alone", rules=rules)


def no_engine(_: Config) -> Engine:
    raise AssertionError("a pack of rules alone needs no model")


class TestRulesAlone:
    def test_a_daemon_starts_and_decides_without_a_model(self, config: Config, alone: Path) -> None:
        settings = replace(config, pack=str(alone), model="no-such-model", models_dir=alone / "none")
        with serving(settings, load_engine=no_engine), Client(settings.endpoint) as client:
            context = answer_context(client, request={**QUESTION, "context": {"n": 2}})
            assert (context["outcome"], context["tier"], context["model"]) == ("allow", "rule", None)
            status = client.status()
            assert (status.model.name, status.packs[0].prefix_tokens) == ("none", 0)
        assert kinds(settings, "model_loaded") == []

    def test_a_failed_rule_is_named_in_reply_status_and_metrics(self, config: Config, alone: Path) -> None:
        with (
            serving(replace(config, pack=str(alone)), load_engine=no_engine),
            Client(config.endpoint) as client,
        ):
            context = answer_context(client, request=QUESTION)
            assert (context["outcome"], context["reason_code"]) == ("require_mfa", "rule_error")
            assert context["rule_errors"] == {"odd": 'Key not found in map : "n"'}
            assert client.status().packs[0].failed_expressions == {"odd": 1}
            assert client.status().engine.counters["rule_errors"] == 1

    def test_the_reply_and_the_journal_name_the_times_that_rules_read(
        self, config: Config, tmp_path: Path
    ) -> None:
        rules = (
            "- id: late\n  when: stated_times().exists(at, at > string(now))\n"
            "  outcome: deny\n  because: Late.\n"
        )
        pack = write_rules_only_pack(tmp_path / "clock", rules=rules, more="clock: daemon\n")
        context: dict[str, Json] = {"time": "2026-05-13T12:00+02:00"}
        with (
            serving(replace(config, pack=str(pack)), load_engine=no_engine),
            Client(config.endpoint) as client,
        ):
            answer = answer_context(client, request={**QUESTION, "context": context})
            used = answer["time_used"]
            assert list(used) == ["context.time", "daemon"]
            assert used["context.time"] == "2026-05-13T10:00:00Z"
        with Reader(config.journal_path) as reader:
            private = reader.trace(answer["decision_id"])["event"]["private"]
        assert private["time_used"] == used

    def test_a_pack_with_a_model_is_refused_with_the_cure(
        self, config: Config, alone: Path, folder: Path
    ) -> None:
        with (
            serving(replace(config, pack=str(alone)), load_engine=no_engine),
            Client(config.endpoint) as client,
        ):
            error = refused(client, task="activate", pack=str(folder))
            assert "restart the daemon with that pack in the setting pack" in str(error)
            assert answer_context(client, request={**QUESTION, "context": {"n": 2}})["outcome"] == "allow"

    def test_it_can_be_activated_beside_a_model_and_left_again(
        self, client: Client, alone: Path, folder: Path, adapter: Path
    ) -> None:
        client.control(Control(task="adapter", adapter=str(adapter)))
        client.control(Control(task="activate", pack=str(alone)))
        assert answer_context(client, request={**QUESTION, "context": {"n": 2}})["tier"] == "rule"
        client.control(Control(task="activate", pack=str(folder)))
        context = answer_context(client, request=QUESTION)
        assert context["tier"] == "model"
        assert context["model"]["adapter"]["name"] == adapter.name

    def test_a_reload_names_a_pack_that_changed_under_its_version(self, client: Client, folder: Path) -> None:
        (folder / "system.md").write_text("Weigh it twice.")
        done = client.control(Control(task="reload"))
        assert done["same_version"] == done["reloaded"]


class TestWhoNamesPacks:
    """Which callers may name another pack than the active one, in a daemon with a candidate `small@2`."""

    @contextmanager
    def asking(
        self, config: Config, tcp_endpoint: str, folder: Path, other: Path, *roles: Role, **changes: Any
    ) -> Iterator[tuple[Client, Client]]:
        """A client with a key that has these roles, and the operator's."""
        keyed = replace(config, pack=str(folder), tcp_endpoint=tcp_endpoint, resident_packs=3, **changes)
        path = Keys(keyed.keys_dir).new("till", roles, NOON)
        with (
            serving(keyed, load_engine=lambda _: StubEngine()),
            Client(keyed.endpoint, timeout_ms=PATIENCE_S * 1000) as operator,
            Client(tcp_endpoint, key=path, timeout_ms=PATIENCE_S * 1000) as till,
        ):
            operator.control(Control(task="load", pack=str(other)))
            yield till, operator

    def test_v19_a_caller_who_may_only_ask_names_the_active_pack_and_no_other(
        self, config: Config, tcp_endpoint: str, folder: Path, other: Path
    ) -> None:
        with self.asking(config, tcp_endpoint, folder, other, "ask", "record") as (till, operator):
            digests = {pack.version: pack.sha256 for pack in operator.status().packs}
            for name in ("small", "small@1", digests["1"], digests["1"][:12]):
                assert answer_context(till, pack=name)["pack"]["version"] == "1"
            for name in ("small@2", digests["2"], digests["2"][:12]):
                with pytest.raises(RequestError, match="see the setting packs_for") as caught:
                    answer_context(till, pack=name)
                assert caught.value.code == "unauthorized"
                assert answer_context(operator, pack=name)["pack"]["version"] == "2"
            batch = till.call("evaluate", {"evaluations": [QUESTION], "pack": "small@2"})["evaluations"]
            assert batch[0]["context"]["error"]["code"] == "unauthorized"
            with pytest.raises(RequestError, match="packs_for"):
                answer_context(till, pack="small@2", idempotency_key="k")

    @pytest.mark.parametrize(
        ("roles", "packs_for", "allowed"),
        [
            (("ask", "review"), (), True),
            (("ask", "control"), (), True),
            (("ask", "record", "approve", "test"), (), False),
            (("ask",), ("key:till=small@2",), True),
            (("ask",), ("key:till=small",), True),
            (("ask",), ("key:till=other+small@2",), True),
            (("ask",), ("key:till=*",), True),
            (("ask",), ("key:till=small@3",), False),
            (("ask",), ("key:tills=*", "local=*", "uid:0=*"), False),
        ],
    )
    def test_a_role_or_the_setting_lets_a_caller_name_another_pack(
        self,
        config: Config,
        tcp_endpoint: str,
        folder: Path,
        other: Path,
        roles: tuple[Role, ...],
        packs_for: tuple[str, ...],
        allowed: bool,
    ) -> None:
        with self.asking(config, tcp_endpoint, folder, other, *roles, packs_for=packs_for) as (till, _):
            if allowed:
                assert answer_context(till, pack="small@2")["pack"]["version"] == "2"
            else:
                with pytest.raises(RequestError, match="see the setting packs_for"):
                    answer_context(till, pack="small@2")

    def test_what_was_recorded_for_a_key_is_sent_again_after_the_permission_has_ended(
        self, config: Config, tcp_endpoint: str, folder: Path, other: Path
    ) -> None:
        with self.asking(config, tcp_endpoint, folder, other, "ask", packs_for=("key:till=small",)) as (
            till,
            _,
        ):
            first = answer_context(till, pack="small@2", idempotency_key="k")
        keyed = replace(config, pack=str(folder), tcp_endpoint=tcp_endpoint)
        with (
            serving(keyed, load_engine=lambda _: StubEngine()),
            Client(tcp_endpoint, key=keyed.keys_dir / "till.key", timeout_ms=PATIENCE_S * 1000) as till,
        ):
            again = answer_context(till, pack="small@2", idempotency_key="k")
        assert again["decision_id"] == first["decision_id"]


#: Names that no pack or adapter can have, and what the error says.
IMPOSSIBLE = {
    "4,000 characters": ("x" * 4_000, "4000 bytes between two slashes; a file name has at most 255"),
    "300 characters": ("x" * 300, "300 bytes between two slashes"),
    "300 bytes": ("ß" * 150, "300 bytes between two slashes"),
    "a long name in a folder": ("/tmp/" + "x" * 300, "300 bytes between two slashes"),
    "a long path": ("ß/" * 2_000, "6000 bytes; the limit of a path is 4095"),
    "NUL": ("a\0b", "the control character U+0000"),
    "a line end": ("/tmp/a\nb", "the control character U+000A"),
    "an escape": ("\x1b[31m", "the control character U+001B"),
    "a C1 control": ("a\x9b", "the control character U+009B"),
    "a folder that leads to itself": ("{}/loop/x", ""),
    "a file as a folder": ("/etc/passwd/x", ""),
    "a device": ("/dev/zero", ""),
    "the root folder": ("/", ""),
    "many folders": ("../" * 1_000, ""),
    "an unknown user": ("~nobody-of-this-name/x", ""),
    "a pack whose rules are a pipe": ("{}/piped", ""),
}


class TestNames:
    @pytest.mark.parametrize("task", ["load", "activate", "shadow", "unload", "adapter"])
    def test_a_name_that_nothing_can_have_is_refused_with_field_limit_and_cure(
        self, client: Client, tmp_path: Path, task: Any
    ) -> None:
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "piped").mkdir()
        (tmp_path / "piped" / "pack.yaml").write_text("name: piped\n", encoding="utf-8")
        os.mkfifo(tmp_path / "piped" / "rules.yaml")
        field = "adapter" if task == "adapter" else "pack"
        for case, (name, problem) in IMPOSSIBLE.items():
            with pytest.raises(RequestError) as caught:
                client.control(Control(task=task, **{field: name.replace("{}", str(tmp_path))}))
            assert caught.value.code in ("bad_request", "not_found"), case
            if problem:
                assert caught.value.code == "bad_request", case
                assert caught.value.message.startswith(f"record.{field}: has "), case
                assert problem in caught.value.message, case

    def test_a_folder_that_cannot_be_read_is_refused_and_the_thread_goes_on(
        self, client: Client, tmp_path: Path, other: Path
    ) -> None:
        (tmp_path / "odd" / "rules.yaml").mkdir(parents=True)
        (tmp_path / "odd" / "pack.yaml").write_text("name: odd\n", encoding="utf-8")
        with pytest.raises(RequestError, match=r"rules\.yaml: cannot be read"):
            client.control(Control(task="load", pack=str(tmp_path / "odd")))
        client.control(Control(task="load", pack=str(other)))
