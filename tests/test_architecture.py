"""The architecture: what each module may import, which names it may bind, and that the docs agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import cli_doc
import pytest

from tests.architecture import (
    BANNED_NAMES,
    DOCUMENT,
    PACKAGE,
    PACKAGES,
    ROOT,
    banned_bindings,
    bindings_of,
    imports_of,
    lines_with_banned_words,
    name_of,
    violations,
    with_table,
)
from thor_policy import config
from thor_policy.cli.main import COMMANDS, cli

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {name_of(path) for path in MODULES} - {""}
SOURCES = [
    path for folder in ("thor_policy", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]
by_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


@by_module
def test_imports_go_downwards_only(path: Path) -> None:
    """A module imports from a lower floor, a lower layer of its package, and the libraries it is allowed."""
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
def test_a_forbidden_import_is_a_violation(module: str, planted: str, broken: str) -> None:
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    source = path.read_text(encoding="utf-8") + "\n\ndef _planted() -> None:\n    " + planted.strip() + "\n"
    (violation,) = violations(module, source, NAMES)
    assert broken in violation


def test_the_import_rules_name_every_module_and_no_other() -> None:
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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_binding_has_a_banned_name(path: Path) -> None:
    names = banned_bindings(path.read_text(encoding="utf-8"))
    assert names == [], "give each a name that says what it holds"


@pytest.mark.parametrize(
    "source",
    [
        "{} = 1",
        "{}: int",
        "self._{} = 1",
        "lambda {}: 0",
        "def {}(): ...",
        "class {}: ...",
        "def function(*{}): ...",
        "[0 for {} in ()]",
        "({} := 1)",
        "import os as {}",
        "from os import path as {}",
        "with open('') as {}: ...",
        "try: ...\nexcept OSError as {}: ...",
        "match 0:\n    case {}: ...",
        "match 0:\n    case [*{}]: ...",
        "match 0:\n    case {{**{}}}: ...",
    ],
)
def test_every_kind_of_binding_is_checked_for_banned_names(source: str) -> None:
    for name in BANNED_NAMES:
        (bound,) = banned_bindings(source.format(name))
        assert bound.lstrip("_") == name
    assert "planted" in {name.lstrip("_") for name in bindings_of(source.format("planted"))}
    assert banned_bindings(source.format("planted")) == []


def test_no_file_of_the_package_contains_a_banned_word() -> None:
    files = [path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8", errors="replace") for path in files}
    assert [f"{path}:{line}" for path, text in texts.items() for line in lines_with_banned_words(text)] == []


def test_banned_words_match_as_whole_words_only() -> None:
    text = "The clerk\n# what it is told.\nstands_still()\nclerks, retold, desk_top, misTold, steward's"
    assert [line.partition(":")[0] for line in lines_with_banned_words(text)] == ["1", "2", "3", "4"]
    assert lines_with_banned_words("clerks, retold, _told, desk_top, desktop, stewardship") == []


@by_module
def test_every_module_docstring_states_what_the_module_owns(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert doc, f"{path} has no docstring"
    if not name_of(path).startswith("cli.") and path.name != "__init__.py":
        assert "Owns" in doc or "Every error" in doc or "Every setting" in doc or "The nouns" in doc


def test_the_table_in_the_architecture_page_equals_that_of_the_rules() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == with_table(text), "run ./scripts/architecture-doc"


def test_every_command_is_in_the_command_reference() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"thorpolicy {command}" in text, f"cli.md does not show thorpolicy {command}"


def test_the_command_reference_equals_the_help_texts() -> None:
    path = ROOT / "docs" / "reference" / "cli.md"
    assert path.read_text(encoding="utf-8") == cli_doc.document(), f"run ./scripts/cli-doc > {path}"


def test_the_settings_reference_equals_the_settings() -> None:
    assert (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8") == config.settings_page()


def test_every_command_and_option_has_help() -> None:
    context = cli.make_context("thorpolicy", ["--help"], resilient_parsing=True)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help
        assert COMMANDS[name][1] == " ".join(command.help.partition("\n\n")[0].split("\n"))
        for parameter in command.params:
            assert getattr(parameter, "help", "argument"), f"{name}: {parameter.name} has no help"


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "systemd" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def anchors_of(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document_lead_to_an_existing_file_and_heading(document: Path) -> None:
    for target in re.findall(r"\]\(([^):]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in anchors_of(path), f"{document.name} links to {target}"
