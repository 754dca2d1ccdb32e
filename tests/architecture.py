"""The import rules as data: which package stands on which floor, its layers, and who may import which
library.

Owns the reading of tests/data/architecture.toml, and the table that docs/explanation/architecture.md shows
of it.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from msgspec import Struct, convert

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "thor_policy"
DOCUMENT = ROOT / "docs" / "explanation" / "architecture.md"
#: Where the table stands in the document.
BEGIN, END = "<!-- packages: ./scripts/architecture-doc -->", "<!-- end of packages -->"


class Rules(Struct, frozen=True, forbid_unknown_fields=True):
    """What one package may do. `layers` begin at its top; a module's name is relative to the package."""

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
    """What `module` (relative to thor_policy) imports against the rules; `modules` are all there are."""
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
    """Every name that a module binds: variables, parameters, functions, classes and attributes of self."""
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
    return names


def table() -> str:
    """The packages as a Markdown table, top floor first."""
    lines = ["| floor | package | what it owns | libraries |", "|---|---|---|---|"]
    for name, rules in sorted(
        PACKAGES.items(), key=lambda item: (-item[1].floor, list(PACKAGES).index(item[0]))
    ):
        libraries = ", ".join(sorted(rules.libraries))
        lines.append(f"| {rules.floor} | `{name}` | {rules.owns} | {libraries} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The architecture page with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
