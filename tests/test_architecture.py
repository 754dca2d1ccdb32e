"""The architecture: who may import what, which names may be bound, and that the docs say the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture import DOCUMENT, PACKAGE, PACKAGES, ROOT, imports_of, name_of, violations, with_table
from thor_policy import config
from thor_policy.cli.main import COMMANDS, cli

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {name_of(path) for path in MODULES} - {""}
by_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


@by_module
def test_imports_go_downwards_only(path: Path) -> None:
    """To a lower floor, or to a lower layer of the same package; a library only where it is allowed."""
    if name := name_of(path):
        assert violations(name, path.read_text(encoding="utf-8"), NAMES) == []


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("core.requests", "from thor_policy.config import Config", "which is not on a lower floor"),
        ("policy.rules", "import thor_policy.journal.reader", "which is not on a lower floor"),
        ("policy.rules", "from thor_policy.policy import decider", "which is not in a lower layer"),
        (
            "daemon.inflight",
            "    from thor_policy.daemon.server import Server",
            "which is not in a lower layer",
        ),
        ("daemon.server", "import sqlite3", "must not import the library sqlite3"),
    ],
)
def test_a_planted_import_against_the_rules_is_found(module: str, planted: str, broken: str) -> None:
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8") + "\n\ndef _planted() -> None:\n    " + planted.strip() + "\n"
    (found,) = violations(module, source, NAMES)
    assert broken in found


def test_the_rules_name_every_module_and_no_other() -> None:
    for package, rules in PACKAGES.items():
        modules = {name.partition(".")[2] for name in NAMES if name.startswith(f"{package}.")}
        modules -= {name.rpartition(".")[0] for name in modules}  # a folder inside a folder
        named = [module for layer in rules.layers for module in layer]
        assert sorted(named) == sorted(modules), package
    assert {name.partition(".")[0] for name in NAMES} == set(PACKAGES)


def test_llama_cpp_is_imported_by_one_module() -> None:
    users = [
        path.name
        for path in MODULES
        if any(name.split(".")[0] == "llama_cpp" for name in imports_of(path.read_text(encoding="utf-8")))
    ]
    assert users == ["native.py"]


@by_module
def test_every_module_says_what_it_owns(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert doc, f"{path} has no docstring"
    if not name_of(path).startswith("cli.") and path.name != "__init__.py":
        assert "Owns" in doc or "Every error" in doc or "Every setting" in doc or "The nouns" in doc


def test_the_table_in_the_architecture_page_is_that_of_the_rules() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_table(text), "run ./scripts/architecture-doc"


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"thorpolicy {command}" in text, f"README.md does not show thorpolicy {command}"


def test_the_settings_are_documented_as_they_are() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == config.settings_page()


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
