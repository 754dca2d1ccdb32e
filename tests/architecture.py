"""The rules of the architecture as data: the floor and the layers of each package, the modules that may
import each library, and the names that no module may bind.

Owns the reading of tests/data/architecture.toml, and the table that docs/explanation/architecture.md shows
of it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from msgspec import Struct, convert

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "thor_policy"
DOCUMENT = ROOT / "docs" / "explanation" / "architecture.md"
#: Where the table stands in the document.
BEGIN, END = "<!-- packages: ./scripts/architecture-doc -->", "<!-- end of packages -->"
#: No name may be one of these: a bare participle or pronoun does not say what a variable holds, and the parts
#: have other names (maintenance thread, pack manager, task).
BANNED_NAMES = frozenset(
    {"told", "said", "found", "asked", "once", "one", "clerk", "steward", "errand", "desk"},
)
#: Old names of parts and words of a private language, as whole words (as `git grep -nwE` matches them).
BANNED_WORDS = re.compile(r"\b(clerk|steward|errand|desk|told|stands_still)\b", re.ASCII)


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one package. `layers` begin at the top; a module's name is relative to the package."""

    floor: int
    owns: str
    libraries: dict[str, list[str]]
    layers: list[list[str]] = []

    def layer_of(self, module: str) -> int | None:
        """The layer of a module, counted from the top; None where the package has no such module."""
        return next((number for number, names in enumerate(self.layers) if module in names), None)


PACKAGES = convert(
    tomllib.loads((ROOT / "tests" / "data" / "architecture.toml").read_text(encoding="utf-8")),
    dict[str, Rules],
)


def name_of(path: Path, root: Path = PACKAGE) -> str:
    """`daemon.server` for thor_policy/daemon/server.py, `daemon` for its `__init__`; empty for the root's."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(source: str) -> set[str]:
    """Every name that a module imports, anywhere in it, dotted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def violations(module: str, source: str, modules: set[str]) -> list[str]:
    """The imports of `module` that break the rules; names of modules are relative to thor_policy.

    `modules` are all modules of the package.
    """
    package, _, inside = module.partition(".")
    rules, broken = PACKAGES[package], []
    for name in sorted(imports_of(source)):
        library, _, imported = name.partition(".")
        if library != "thor_policy":
            allowed = rules.libraries.get(library, [])
            known = any(library in other.libraries for other in PACKAGES.values())
            if known and "*" not in allowed and inside not in allowed:
                broken.append(f"{module} must not import the library {library}")
            continue
        while imported and imported not in modules:
            imported = imported.rpartition(".")[0]
        target, _, target_inside = imported.partition(".")
        if target and target != package and PACKAGES[target].floor >= rules.floor:
            broken.append(f"{module} imports {imported}, which is not on a lower floor")
        elif target == package and target_inside and inside and target_inside != inside:
            ours, theirs = rules.layer_of(inside), rules.layer_of(target_inside)
            if ours is not None and theirs is not None and theirs <= ours:
                broken.append(f"{module} imports {imported}, which is not in a lower layer")
    return broken


def bindings_of(source: str) -> set[str]:
    """Every name that a module binds: variables, parameters, functions, classes, attributes and aliases."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.alias) and node.asname:
            names.add(node.asname)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
    return names


def banned_bindings(source: str) -> list[str]:
    """The names that a module binds though they are in BANNED_NAMES; underscores in front do not count."""
    return sorted(name for name in bindings_of(source) if name.lstrip("_") in BANNED_NAMES)


def lines_with_banned_words(text: str) -> list[str]:
    """The lines of a text that match BANNED_WORDS, each after its number."""
    return [
        f"{number}: {line}" for number, line in enumerate(text.split("\n"), 1) if BANNED_WORDS.search(line)
    ]


def table() -> str:
    """The packages as a Markdown table, the top floor first."""
    lines = ["| floor | package | what it owns | libraries |", "|---|---|---|---|"]
    for name, rules in sorted(
        PACKAGES.items(), key=lambda item: (-item[1].floor, list(PACKAGES).index(item[0]))
    ):
        libraries = ", ".join(sorted(rules.libraries))
        lines.append(f"| {rules.floor} | `{name}` | {rules.owns} | {libraries} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The text of the architecture page with its table written again."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
