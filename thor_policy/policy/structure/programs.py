"""The table of programs: what each program does, and what its words are. Its notation, checked.

Owns the notation and its compiled form. Invariant: a table that is not in the notation is refused, with the
place of the fault. Pure; any thread.

An entry is a kind, or a map of
- `kind`: what the program does; `alone`: without any word; `bare`: with options alone;
- `options`: `-[abc]` are letters that may be joined; `-n,--lines=TYPE` takes a value, `--color[=TYPE]` only
  one that is attached; `-c^TYPE` gives the first word that type, also behind a value (`-e=text^path`);
  `:KIND` at the end raises the kind; `-#` is a number (`head -5`);
- `args`: types of the other words in turn; the last repeats, and `*` takes all but those behind it;
- `operands`: options without a dash (`of=out`); `subcommands`: entries by word, which may be an option;
- `modules`, `saves`, `lists`, `filters`, `shows`, `wipes`, `rewrites`, `runs_input`, `unpacks`, `bundles`:
  see `Spec`.
Names of one key or option are separated by commas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import Struct

#: Kinds of what a command does, the harmless first. "" is not known.
KINDS = (
    "reads", "local", "edits", "builds", "installs", "fetches", "", "runs", "sends", "publishes", "secrets",
    "root", "fatal",
)  # fmt: skip
#: Types that a word can have.
TYPES = (
    "text", "any", "none", "path", "out", "names", "dir", "maybe", "url", "method", "package", "remote",
    "module", "word", "assign", "command", "exec", "shell", "script", "stdin", "code", "rest", "task", "sed",
    "awk", "jq", "make", "mode", "flag", "format", "plugin", "mount",
)  # fmt: skip
_OPTION = re.compile(
    r"(?P<names>[^=:^\[\s]+|[-+]\[[^\]]+\])"
    r"(?P<value>\[?=(?P<type>[a-z]+)\]?)?(?:\^(?P<first>[a-z]+))?(?::(?P<kind>[a-z]+))?"
)
_VERSION = re.compile(r"(?<=[a-z+])-?[0-9][0-9.]*$")


class Option(NamedTuple):
    """One option: the type of its value ("" for none), whether that is attached, the kind that it raises to.

    `first` is the type that the first word behind it gets.
    """

    value: str = ""
    attached: bool = False
    kind: str | None = None
    first: str = ""


class Spec(Struct, kw_only=True):
    """An entry of the table.

    `always`, or with one of these options: `saves` a download to a file of its URL's name, `lists` names of
    files, `wipes` what its paths hold, `rewrites` the files that it is given. `filters`: prints lines of its
    input; `shows`: prints what its files hold. `runs_input`: runs what it reads if it gets no script;
    `unpacks`: what it reads names the files that it writes. `bundles`: its first word is options, as in
    `tar xzf`. `modules`: those of the type module that are programs of the table.
    """

    kind: str = ""
    alone: str | None = None
    bare: str | None = None
    options: dict[str, Option] = {}
    operands: dict[str, Option] = {}
    args: tuple[tuple[str, bool], ...] | None = None
    subcommands: dict[str, Spec] = {}
    modules: frozenset[str] = frozenset()
    saves: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    filters: bool = False
    shows: bool = False
    unpacks: bool = False
    wipes: frozenset[str] = frozenset()
    rewrites: frozenset[str] = frozenset()
    runs_input: bool = False
    bundles: bool = False


class Faulty(ValueError):
    """The table is not in the notation; the text says where and why."""


# ---------------------------------------------------------------- the table


class Programs:
    """The entries by program. Raises Faulty. An entry that lacks options and args has those of `below`."""

    def __init__(self, table: Mapping[str, Any], below: Programs | None = None) -> None:
        self._specs: dict[str, Spec] = dict(below._specs) if below else {}
        for names, entry in table.items():
            spec = _spec(names, entry)
            for name in names.split(","):
                self._specs[name.strip()] = _over(self._specs.get(name.strip()), spec)
        #: Whether entries say what programs do; the built-in ones alone do not.
        self.has_kinds = below is not None

    def spec_of(self, name: str) -> Spec | None:
        """The entry of a program, or of its name without a version: `python3.11`."""
        spec = self._specs.get(name)
        return spec if spec is not None else self._specs.get(_VERSION.sub("", name))


def _over(below: Spec | None, spec: Spec) -> Spec:
    if below is None:
        return spec
    return Spec(
        kind=spec.kind,
        alone=spec.alone if spec.alone is not None else below.alone,
        bare=spec.bare if spec.bare is not None else below.bare,
        rewrites=below.rewrites | spec.rewrites,
        options=below.options | spec.options,
        operands=below.operands | spec.operands,
        args=spec.args if spec.args is not None else below.args,
        subcommands=below.subcommands | spec.subcommands,
        modules=below.modules | spec.modules,
        saves=below.saves | spec.saves,
        lists=below.lists | spec.lists,
        filters=below.filters or spec.filters,
        shows=below.shows or spec.shows,
        unpacks=below.unpacks or spec.unpacks,
        wipes=below.wipes | spec.wipes,
        runs_input=below.runs_input or spec.runs_input,
        bundles=below.bundles or spec.bundles,
    )


def _spec(where: str, entry: Any) -> Spec:
    entry = {"kind": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict):
        raise Faulty(f"{where}: write a kind or a map")
    if unknown := [key for key in entry if key not in Spec.__struct_fields__]:
        raise Faulty(f"{where}: there is no key {unknown[0]!r}; keys are {', '.join(Spec.__struct_fields__)}")
    for key in ("kind", "alone", "bare"):
        if entry.get(key) is not None and entry[key] not in KINDS:
            raise Faulty(
                f"{where}: there is no kind {entry[key]!r}; kinds are {', '.join(filter(None, KINDS))}"
            )
    words = {
        key: str(entry.get(key) or "").replace(",", " ").split()
        for key in ("saves", "lists", "wipes", "rewrites", "modules")
    }
    subcommands = {
        name.strip(): _spec(f"{where} {name.strip()}", inner)
        for names, inner in (entry.get("subcommands") or {}).items()
        for name in names.split(",")
    }
    return Spec(
        kind=entry.get("kind", ""),
        alone=entry.get("alone"),
        bare=entry.get("bare"),
        rewrites=frozenset(words["rewrites"]),
        options=_options(where, entry.get("options", "")),
        operands=_options(where, entry.get("operands", "")),
        args=_args(where, entry["args"]) if "args" in entry else None,
        subcommands=subcommands,
        modules=frozenset(words["modules"]),
        saves=frozenset(words["saves"]),
        lists=frozenset(words["lists"]),
        wipes=frozenset(words["wipes"]),
        filters=bool(entry.get("filters")),
        shows=bool(entry.get("shows")),
        unpacks=bool(entry.get("unpacks")),
        runs_input=bool(entry.get("runs_input")),
        bundles=bool(entry.get("bundles")),
    )


def _options(where: str, text: str) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for token in text.split():
        match = _OPTION.fullmatch(token)
        kind, value = (match["kind"], match["type"] or "") if match else (None, "")
        if match is None or (value and value not in TYPES) or (kind is not None and kind not in KINDS):
            raise Faulty(
                f"{where}: {token!r} is no option; write -a, -[abc], --name=TYPE, --name[=TYPE], then :KIND"
            )
        option = Option(value, (match["value"] or "").startswith("["), kind, match["first"] or "")
        names = match["names"]
        if names[1:2] == "[":
            options |= {f"{names[0]}{letter}": option for letter in names[2:-1]}
        else:
            options |= dict.fromkeys(names.split(","), option)
    return options


def _args(where: str, text: str) -> tuple[tuple[str, bool], ...]:
    args = tuple((part.rstrip("*"), part.endswith("*")) for part in text.split())
    for name, _ in args:
        if name not in TYPES:
            raise Faulty(f"{where}: there is no type {name!r}; types are {', '.join(TYPES)}")
    return args
