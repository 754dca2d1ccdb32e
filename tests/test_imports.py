"""What a process imports: a daemon that serves, a client, the help of the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from thor_policy.catalog.files import ModelFile
from thor_policy.core.requests import Json

#: Libraries that no decision needs.
UNNEEDED = {
    *("torch", "transformers", "peft", "onnxruntime", "tokenizers", "scipy", "pandas"),
    *("sqlglot", "tree_sitter", "tree_sitter_bash", "sqlite_utils", "pluggy", "prometheus_client", "gguf"),
    *("httpx", "rich", "prompt_toolkit", "asyncio", "jsonschema", "wsgiref"),
}
PRINT = "print(json.dumps(sorted(sys.modules)))\n"
#: Serves, asks itself a question, prints what is imported by then, and stops.
SERVE = f"""
import json, os, signal, sys, threading, time
from thor_policy.cli.main import cli

def ask():
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    from thor_policy.client import Client
    with Client("ipc://" + sys.argv[2], timeout_ms=60_000) as client:
        assert client.evaluate(json.loads(sys.argv[3]))["context"]["tier"] == "model"
        client.status()
    {PRINT}
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=ask, daemon=True).start()
cli.main(["serve", "--config", sys.argv[1]], standalone_mode=False)
"""
BORDERLINE: Json = {
    "subject": {
        "type": "user",
        "id": "ivo",
        "properties": {
            "role": "developer",
            "trust": {"competence": 0.9, "reliability": 0.9, "integrity": 0.9},
        },
    },
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
    "context": {"timestamp": "2026-03-03T22:00:00Z"},
}


def modules_after(program: str, *arguments: str) -> set[str]:
    """The modules that a program has imported when it prints them."""
    printed = subprocess.check_output([sys.executable, "-c", program, *arguments], text=True)
    return set(json.loads(printed.splitlines()[-1]))


@pytest.mark.model
def test_a_served_daemon_imports_no_library_that_its_pack_and_its_settings_do_not_need(
    model_file: ModelFile, tmp_path: Path
) -> None:
    settings = {
        "state_dir": str(tmp_path / "state"),
        "endpoint": f"ipc://{tmp_path}/socket",
        "models_dir": str(model_file.path.parent),
        "threads": 1,
    }
    path = tmp_path / "settings.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    arguments = (str(path), str(tmp_path / "socket"), json.dumps(BORDERLINE))
    assert "sqlite_utils" in modules_after(SERVE, *arguments), "it makes the journal's tables"
    assert modules_after(SERVE, *arguments) & UNNEEDED == set()


def test_a_client_imports_neither_policy_nor_engine_nor_asyncio() -> None:
    modules = modules_after(f"import json, sys\nimport thor_policy.client\n{PRINT}")
    ours = {name.split(".")[1] for name in modules if name.startswith("thor_policy.")}
    assert ours == {"client", "core", "protocol"}
    assert modules & (UNNEEDED | {"llama_cpp", "numpy", "cryptography", "yaml", "sqlite3", "click"}) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_help_of_all_commands_imports_the_module_of_none(arguments: list[str]) -> None:
    program = (
        "import json, sys\nfrom thor_policy.cli.main import cli\n"
        f"cli.main({arguments}, prog_name='thorpolicy', standalone_mode=False)\n{PRINT}"
    )
    modules = modules_after(program)
    assert {name for name in modules if name.startswith("thor_policy.cli.")} == {"thor_policy.cli.main"}
    assert modules & (UNNEEDED | {"numpy", "zmq", "msgspec"}) == set()


def test_the_command_ask_imports_no_policy_and_no_engine() -> None:
    program = (
        "import json, sys\nfrom thor_policy.cli.main import cli\n"
        "cli.main(['ask', '--help'], prog_name='thorpolicy', standalone_mode=False)\n"
        f"import thor_policy.cli.render, thor_policy.client.blocking\n{PRINT}"
    )
    modules = modules_after(program)
    ours = {name.split(".")[1] for name in modules if name.startswith("thor_policy.")}
    assert ours & {"policy", "engine", "journal", "daemon", "suites", "bench"} == set()
    assert modules & {"llama_cpp", "numpy", "cryptography", "asyncio", "sqlite3", "torch"} == set()


def test_a_process_that_imported_every_module_ends_without_a_warning_of_an_open_file() -> None:
    """A library opened /dev/null twice when it was imported; each such run of the tests ended with that."""
    script = (
        "import importlib, pkgutil, sys, thor_policy\n"
        "for module in pkgutil.walk_packages(thor_policy.__path__, 'thor_policy.'):\n"
        "    if module.name.rpartition('.')[2] != '__main__':\n"
        "        try:\n"
        "            importlib.import_module(module.name)\n"
        "        except ModuleNotFoundError as error:\n"
        "            if str(error.name).startswith('thor_policy'):\n"
        "                raise  # others are of an extra that is not installed\n"
        "print('llama_cpp' in sys.modules)\n"
    )
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
