"""Packs and adapters that come, change their role and go in a running daemon: over the wire, on the stub."""

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

from tests.build import write_adapter_header, write_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, identity_of
from thor_policy.core.engine import PromptPrefix, Steps
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.records import Calibration, Control, Maintenance
from thor_policy.core.requests import Json
from thor_policy.core.status import Status
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import StubEngine

#: No test waits longer than this for anything, in seconds.
PATIENCE_S = 30
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
    """A stub that cannot hold a prefix that says `Weigh`, and knows what adapters there are."""

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
    """Role of each resident pack, by its version."""
    return {pack.version: pack.role for pack in client.status().packs}


def until(client: Client, told: Callable[[Status], Any]) -> Any:
    """What the status tells, once it is something."""
    patient_until = time.monotonic() + PATIENCE_S
    while not (found := told(client.status())):
        assert time.monotonic() < patient_until
    return found


def refused(client: Client, **control: Any) -> RequestError:
    before = client.status().packs
    with pytest.raises(RequestError) as caught:
        client.control(Control(**control))
    assert client.status().packs == before, "what fails changes nothing"
    return caught.value


def asked(client: Client, **fields: Any) -> dict[str, Json]:
    context: dict[str, Json] = client.call("evaluate", {"request": QUESTION, **fields})["context"]
    return context


def kinds(config: Config, *only: str) -> list[str]:
    """Kinds of the events on the chain, in order."""
    with closing(sqlite3.connect(config.journal_path)) as db:
        found = [kind for (kind,) in db.execute("SELECT kind FROM events ORDER BY seq")]
    return [kind for kind in found if not only or kind in only]


class TestPacks:
    def test_one_that_is_loaded_decides_where_it_is_named(
        self, client: Client, served: Config, other: Path
    ) -> None:
        done = client.control(Control(task="load", pack=str(other)))
        assert [(pack["version"], pack["role"]) for pack in done["packs"]] == [
            ("1", "active"),
            ("2", "candidate"),
        ]
        digest = done["packs"][1]["sha256"]
        assert asked(client)["pack"]["version"] == "1"
        assert asked(client, pack="small")["pack"]["version"] == "1"  # of its name, the active one
        assert asked(client, pack="small@2")["pack"]["version"] == "2"
        assert asked(client, pack=digest[:12])["pack"]["sha256"] == digest
        with pytest.raises(RequestError, match="not loaded") as caught:
            asked(client, pack="large")
        assert caught.value.code == "not_found"
        assert kinds(served)[-5:] == ["pack_loaded"] + ["decision"] * 4

    def test_one_that_is_activated_decides_from_then_on(
        self, client: Client, served: Config, other: Path
    ) -> None:
        asked(client)
        client.control(Control(task="activate", pack=str(other)))
        assert asked(client)["pack"]["version"] == "2"
        assert client.status().pack.version == "2"
        assert roles(client) == {"2": "active", "1": "candidate"}
        client.control(Control(task="activate", pack="small@1"))
        assert asked(client)["pack"]["version"] == "1"
        assert kinds(served, "decision", "pack_activated", "pack_loaded") == [
            *("pack_activated", "decision", "pack_loaded", "pack_activated", "decision"),
            *("pack_activated", "decision"),
        ]
        assert verify(served.journal_path).ok

    def test_one_that_is_active_is_activated_without_a_word(self, client: Client, served: Config) -> None:
        client.control(Control(task="activate", pack="small"))
        asked(client)
        assert kinds(served, "pack_activated") == ["pack_activated"]

    def test_one_in_the_shadow_is_recorded_and_never_counted(
        self, client: Client, served: Config, other: Path
    ) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        answer = asked(client)
        until(client, lambda status: status.engine.counters["shadows"])
        client.control(Control(task="shadow", pack="none"))  # after that nothing is shadowed any more
        asked(client)
        with Reader(served.journal_path) as reader:
            (shadow,) = reader.trace(answer["decision_id"])["shadows"]
            assert len(reader.decisions()) == 2
        assert shadow["prompt_version"].startswith("small@2+")
        assert shadow["served"] == answer["outcome"]
        assert shadow["agrees"] == (shadow["decision"] == answer["outcome"])
        assert roles(client) == {"1": "active", "2": "candidate"}
        told = kinds(served, "pack_shadowed", "shadowed", "decision")
        assert told == ["pack_shadowed", "decision", "shadowed", "pack_shadowed", "decision"]
        assert client.status().engine.counters["shadows_dropped"] == 0

    def test_the_active_one_cannot_be_its_own_shadow_nor_be_unloaded(self, client: Client) -> None:
        assert refused(client, task="shadow", pack="small").code == "conflict"
        assert refused(client, task="unload", pack="small").code == "conflict"

    def test_a_shadow_that_is_activated_leaves_the_shadow(self, client: Client, other: Path) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        client.control(Control(task="activate", pack="small@2"))
        assert roles(client) == {"2": "active", "1": "candidate"}

    def test_one_that_is_unloaded_is_gone(self, client: Client, served: Config, other: Path) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        client.control(Control(task="unload", pack="small@2"))
        assert roles(client) == {"1": "active"}
        with pytest.raises(RequestError, match="not loaded"):
            asked(client, pack="small@2")
        assert refused(client, task="unload", pack="small@2").code == "not_found"
        assert kinds(served)[-2:] == ["pack_shadowed", "pack_unloaded"]

    def test_a_name_that_may_be_two_is_refused(self, client: Client, other: Path, third: Path) -> None:
        client.control(Control(task="load", pack=str(other)))
        error = refused(client, task="activate", pack="small")
        assert error.code == "conflict"
        assert "give its digest" in error.message

    def test_no_more_are_resident_than_the_setting_says(
        self, client: Client, other: Path, third: Path, tmp_path: Path
    ) -> None:
        client.control(Control(task="load", pack=str(other)))
        client.control(Control(task="load", pack=str(third)))
        client.control(Control(task="load", pack=str(third)))  # it is there
        fourth = write_pack(tmp_path / "four", version="4", system="Ponder.")
        error = refused(client, task="activate", pack=str(fourth))
        assert error.code == "conflict"
        assert "unload one" in error.message

    @pytest.mark.parametrize(
        ("what", "code", "told"),
        [
            ("nowhere", "bad_request", "known packs"),
            ("/nowhere", "bad_request", "no pack.yaml"),
            ("a\0b", "bad_request", "no pack"),
            ("unlint", "bad_request", "clause 'R9' does not exist"),
            ("unfit", "unavailable", "scored differently"),
        ],
    )
    def test_what_cannot_be_used_is_refused_and_why(
        self, client: Client, tmp_path: Path, what: str, code: str, told: str
    ) -> None:
        places = {
            "unlint": write_pack(tmp_path / "unlint", rules=BAD_RULE),
            "unfit": write_pack(tmp_path / "unfit", system="Weigh light."),
        }
        error = refused(client, task="activate", pack=str(places.get(what, what)))
        assert error.code == code
        assert told in error.message
        assert asked(client)["tier"] == "model"

    def test_a_calibration_holds_for_its_pack_alone(self, client: Client, other: Path) -> None:
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
    def test_takes_what_changed_in_the_place_of_the_old_one(
        self, client: Client, served: Config, folder: Path, other: Path
    ) -> None:
        client.control(Control(task="shadow", pack=str(other)))
        write_pack(folder, version="1.1", system="Decide anew.")
        done = client.control(Control(task="reload"))
        assert [told.split()[0] for told in done["reloaded"]] == ["small@1.1"]
        assert done["refused"] == {}
        assert roles(client) == {"1.1": "active", "2": "shadow"}
        assert asked(client)["pack"]["version"] == "1.1"
        assert kinds(served, "pack_activated", "pack_unloaded") == [
            *("pack_activated", "pack_activated", "pack_unloaded"),
        ]

    def test_of_what_did_not_change_does_nothing(self, client: Client, served: Config) -> None:
        asked(client)
        before = kinds(served)
        assert client.control(Control(task="reload"))["reloaded"] == []
        assert kinds(served) == before

    @pytest.mark.parametrize("damage", ["lint", "yaml", "gone", "unfit"])
    def test_refuses_what_cannot_be_used_and_says_so_in_the_status(
        self, client: Client, folder: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        if damage == "gone":
            (folder / "rules.yaml").unlink()
        elif damage == "unfit":
            write_pack(folder, system="Weigh light.")
        else:
            write_pack(folder, rules=BAD_RULE if damage == "lint" else "- {")
        done = client.control(Control(task="reload"))
        ((which, _why),) = done["refused"].items()
        assert which.startswith("small@1 ")
        assert client.status().pack_manager.refused == done["refused"]
        assert "stays as it is" in caplog.text
        assert asked(client)["pack"]["version"] == "1"
        write_pack(folder, version="1.2")
        client.control(Control(task="reload"))
        assert client.status().pack_manager.refused == {}
        assert asked(client)["pack"]["version"] == "1.2"

    def test_is_what_a_hangup_signal_asks_for(self, short_dir: Path, folder: Path) -> None:
        command = [sys.executable, "-c", SERVE, str(short_dir), str(folder)]
        with (
            _running(command) as daemon,
            Client(f"ipc://{short_dir}/policy.sock", timeout_ms=PATIENCE_S * 1000) as client,
        ):
            write_pack(folder, version="1.1")
            daemon.send_signal(signal.SIGHUP)
            until(client, lambda status: status.pack.version == "1.1")
            write_pack(folder, rules=BAD_RULE)
            daemon.send_signal(signal.SIGHUP)
            (why,) = until(client, lambda status: status.pack_manager.refused).values()
            assert "R9" in why
            assert asked(client)["pack"]["version"] == "1.1"


class TestAdapter:
    def test_judges_from_then_on_with_every_pack(
        self, client: Client, served: Config, other: Path, adapter: Path
    ) -> None:
        client.control(Control(task="load", pack=str(other)))
        before = asked(client)
        assert before["model"]["adapter"] is None
        done = client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        assert done["adapter"]["scale"] == 0.5
        assert [pack["adapter"] for pack in done["packs"]] == ["tuned.gguf", "tuned.gguf"]
        after = asked(client)
        assert after["model"]["adapter"] == done["adapter"]
        assert client.status().model.adapter == Adapter(**done["adapter"])
        assert after["probabilities"] != before["probabilities"]
        assert asked(client, pack="small@2")["model"]["adapter"] == done["adapter"]
        client.control(Control(task="adapter", adapter="none"))
        assert asked(client)["probabilities"] == before["probabilities"]
        assert client.status().model.adapter is None
        assert kinds(served, "adapter_activated") == ["adapter_activated"] * 2
        assert verify(served.journal_path).ok

    def test_of_another_scale_is_another_one(self, client: Client, adapter: Path) -> None:
        client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        half = asked(client)
        client.control(Control(task="adapter", adapter=str(adapter), scale=1.0))
        assert asked(client)["probabilities"] != half["probabilities"]

    def test_is_that_of_packs_that_are_loaded_later(self, client: Client, other: Path, adapter: Path) -> None:
        client.control(Control(task="adapter", adapter=str(adapter)))
        done = client.control(Control(task="load", pack=str(other)))
        assert [pack["adapter"] for pack in done["packs"]] == ["tuned.gguf", "tuned.gguf"]

    def test_under_which_one_pack_cannot_be_loaded_is_given_up_for_all(
        self, client: Client, third: Path, adapter: Path
    ) -> None:
        client.control(Control(task="load", pack=str(third)))
        error = refused(client, task="adapter", adapter=str(adapter))
        assert error.code == "unavailable"
        assert asked(client)["model"]["adapter"] is None

    @pytest.mark.parametrize(
        ("told", "why"),
        [("/nowhere.gguf", "no model file"), ("unheard-of", "no model is called")],
    )
    def test_that_is_not_there_is_refused(self, client: Client, told: str, why: str) -> None:
        error = refused(client, task="adapter", adapter=told)
        assert error.code == "bad_request"
        assert why in error.message

    def test_has_confidence_calibrated_for_itself(self, client: Client, adapter: Path) -> None:
        client.control(Control(task="adapter", adapter=str(adapter), scale=0.5))
        told = client.status().model.adapter
        calibration = Calibration(
            temperature=3.0,
            pack_sha256=client.status().pack.sha256,
            model_sha256=identity_of(StubEngine().model.sha256, told),
            judged=60,
        )
        client.maintenance(Maintenance(task="calibrate", calibration=calibration))
        temperatures = [client.status().packs[0].temperature]
        for adapter_told, scale in (("none", 1.0), (str(adapter), 0.25), (str(adapter), 0.5)):
            client.control(Control(task="adapter", adapter=adapter_told, scale=scale))
            temperatures.append(client.status().packs[0].temperature)
        assert temperatures == [3.0, 1.0, 1.0, 3.0]

    def test_scores_of_another_one_are_not_used_again(
        self, config: Config, folder: Path, adapter: Path, tmp_path: Path
    ) -> None:
        small = replace(config, pack=str(folder), models_dir=tmp_path / "models", cache_size=100)
        with (
            serving(small, load_engine=lambda _: StubEngine()),
            Client(small.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
        ):
            tiers = [asked(client)["tier"] for _ in range(2)]
            client.control(Control(task="adapter", adapter=str(adapter)))
            tiers += [asked(client)["tier"] for _ in range(2)]
            client.control(Control(task="adapter", adapter="none"))
            tiers.append(asked(client)["tier"])
        assert tiers == ["model", "cache", "model", "cache", "cache"]

    def test_of_the_settings_judges_from_the_start(
        self, config: Config, folder: Path, adapter: Path, tmp_path: Path
    ) -> None:
        small = replace(
            config, pack=str(folder), models_dir=tmp_path / "models", adapter=str(adapter), adapter_scale=0.5
        )
        with (
            serving(small, load_engine=lambda _: StubEngine()),
            Client(small.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
        ):
            assert asked(client)["model"]["adapter"]["scale"] == 0.5
        assert kinds(small)[:3] == ["model_loaded", "adapter_activated", "pack_activated"]


class TestWhoMay:
    def test_only_the_daemons_user_and_root_change_what_judges(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, other: Path
    ) -> None:
        ours = os.geteuid()
        monkeypatch.setattr("thor_policy.daemon.server.os.geteuid", lambda: ours + 1)
        monkeypatch.setattr(
            "thor_policy.daemon.server.caller_of", lambda _: replace_uid(ours + 2), raising=True
        )
        assert refused(client, task="load", pack=str(other)).code == "unauthorized"


def replace_uid(uid: int) -> Any:
    from thor_policy.core.requests import Caller

    return Caller(transport="ipc", uid=uid, gid=uid, pid=1)


class TestCommands:
    @pytest.fixture
    def run(self, served: Config, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(served.state_dir))
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", served.endpoint)
        return lambda *arguments: CliRunner().invoke(cli, arguments)

    def test_show_what_is_resident_then(self, run: Any, other: Path, adapter: Path) -> None:
        assert "candidate" in run("packs", "load", str(other)).stdout
        answer = json.loads(run("ask", json.dumps(QUESTION), "--pack", "small@2", "--json").stdout)
        assert answer["context"]["pack"]["version"] == "2"
        assert "shadow" in run("packs", "shadow", "small@2").stdout
        done = json.loads(run("packs", "activate", "small@2", "--json").stdout)
        assert [pack["role"] for pack in done["packs"]] == ["active", "candidate"]
        assert "small" in run("packs", "unload", "small@1").stdout
        assert "tuned.gguf" in run("adapters", "activate", str(adapter), "--scale", "0.5").stdout
        shown = run("status").stdout
        assert "tuned.gguf x 0.5" in shown
        assert run("adapters", "activate", "none").exit_code == 0

    def test_a_refusal_is_status_4_and_a_refused_reload_1(self, run: Any, folder: Path) -> None:
        assert run("packs", "unload", "small").exit_code == 4
        assert run("packs", "reload").exit_code == 0
        write_pack(folder, rules=BAD_RULE)
        result = run("packs", "reload")
        assert result.exit_code == 1
        assert "R9" in result.stderr

    def test_without_a_daemon_status_is_3(self, config: Config) -> None:
        endpoint = ("--endpoint", config.endpoint)
        assert CliRunner().invoke(cli, ("packs", "reload", *endpoint)).exit_code == 3
        assert CliRunner().invoke(cli, ("adapters", "activate", "none", *endpoint)).exit_code == 3

    def test_adapters_of_the_catalog_are_listed(self) -> None:
        assert CliRunner().invoke(cli, ("adapters", "list")).exit_code == 0


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The process once it is ready; ended with SIGTERM, and with status 0."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
            child.terminate()
            assert child.wait(PATIENCE_S) == 0
        finally:
            child.kill()
