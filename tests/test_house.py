"""The house rules: which room may import which, and that every module says what it owns."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from thor_policy import config
from thor_policy.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "thor_policy"

#: Rooms from the top of the house to the bottom: a module imports only what stands on a lower line, or its
#: own room. docs/architecture.md draws the same.
FLOORS = (
    ("cli", "testing"),
    ("promotion",),
    ("trial",),
    ("bench",),
    ("app", "doctor", "report"),
    ("server", "client", "assessment"),
    ("steward", "training"),
    ("worker", "clerk", "suite", "drift", "replay", "whatif", "export", "patterns", "review"),
    ("policy", "changes"),
    ("residents",),
    ("packs", "embedding"),
    ("wire", "rules", "catalog", "engine", "journal", "identity"),
    ("config", "notify", "metrics", "logs", "signing"),
    ("trace",),
    ("calibration", "likeness", "intervals"),
    ("core", "files"),
    ("errors",),
)
#: Third-party libraries and the one room that may import each.
LIBRARIES = {
    "cel": {"rules"},
    "click": {"cli"},
    "cryptography": {"signing"},
    "gguf": {"catalog", "training"},
    "httpx": {"catalog", "bench", "engine"},
    "jinja2": {"engine", "report", "changes"},
    "llama_cpp": {"engine"},
    "numpy": {"engine", "bench", "embedding", "training"},
    "onnxruntime": {"embedding"},
    "peft": {"training"},
    "platformdirs": {"config"},
    "prometheus_client": {"metrics"},
    "prompt_toolkit": {"cli"},
    "rich": {"cli"},
    "scipy": {"calibration", "assessment", "intervals"},
    "sqlite3": {"journal", "doctor", "bench"},
    "sqlite_utils": {"journal"},
    "tokenizers": {"embedding"},
    "torch": {"training"},
    "transformers": {"training"},
    "uuid_utils": {"policy"},
    "yaml": {"packs"},
    "zmq": {"server", "client", "identity", "bench"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards_only(path: Path) -> None:
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "thor_policy" and len(parts) > 1 and parts[1] in floor_of and parts[1] != room:
            assert floor_of[parts[1]] > floor_of[room], f"{room} imports {parts[1]}, which is not below it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_has_one_room(path: Path) -> None:
    for name in imports_of(path):
        allowed = LIBRARIES.get(name.split(".")[0])
        assert allowed is None or room_of(path) in allowed, f"{path.name} imports {name}"


def test_llama_cpp_is_imported_by_one_module() -> None:
    users = [path.name for path in MODULES if any(n.split(".")[0] == "llama_cpp" for n in imports_of(path))]
    assert users == ["native.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_owns(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert doc, f"{path} has no docstring"
    if room_of(path) != "cli" and path.name != "__init__.py":
        assert "Owns" in doc or "Every error" in doc or "Every setting" in doc or "The nouns" in doc


def test_every_room_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in {room_of(path) for path in MODULES} - {"__init__"}:
        assert f"`{room}`" in text, f"docs/architecture.md does not speak of {room}"


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"thorpolicy {command}" in text, f"README.md does not show thorpolicy {command}"


def test_the_settings_are_documented_as_they_are() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == config.document()


def test_every_command_has_help() -> None:
    context = cli.make_context("thorpolicy", ["--help"], resilient_parsing=True)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", "argument"), f"{name}: {parameter.name} has no help"


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_versions_are_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    for requirement in (*project["dependencies"], *extras):
        assert "==" in requirement, requirement
