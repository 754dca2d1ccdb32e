"""Which entities and actions a pack names: what a search tries.

Owns where a pack names them: its vocabularies, its tables, what its expressions compare with. Invariant:
whatever is missing here is not listed, and whatever is too much is decided by the rules, so nothing here can
list what the rules do not allow. Pure; any thread.

A table of data.yaml has entities of a type if it has the name of the type, or of many of them: `users` has
those of the type user. Its keys are their ids; of a list, its texts, or the `id` of each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from thor_policy.core.requests import Json
from thor_policy.policy.pack import Pack, expressions_of

#: A comparison of a member with texts: `subject.id == "alice"`, `action.name in ["read", "write"]`.
_TEXT = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_COMPARED = re.compile(
    rf"\b(subject\.type|subject\.id|resource\.type|resource\.id|action\.name)\s*(?:==|in)\s*"
    rf"(\[[^\]]*\]|{_TEXT})"
)
_COMPARED_BACKWARDS = re.compile(
    rf"({_TEXT})\s*==\s*(subject\.type|subject\.id|resource\.type|resource\.id|action\.name)\b"
)
_ONE = re.compile(_TEXT)


@dataclass(frozen=True)
class Named:
    """What a pack names: the types and ids of subjects and resources, and the actions.

    `types` has no entry where a pack names no type; `tables` has the ids by type, or by "" for any type.
    """

    actions: tuple[str, ...]
    types: Mapping[str, frozenset[str]]
    ids: Mapping[str, frozenset[str]]
    tables: Mapping[str, tuple[str, ...]]

    def knows_type(self, of: str, type: str) -> bool:
        """Whether a subject or resource may be of this type; True where the pack names no type of them."""
        known = self.types.get(of, frozenset())
        return not known or type in known or type in self.tables

    def listed(self, of: str, type: str) -> frozenset[str]:
        """The ids of a type that the pack's tables and expressions have."""
        return self.ids.get(of, frozenset()) | frozenset(self.tables.get(type, ()))


def named_by(pack: Pack) -> Named:
    """What a pack names."""
    compared: dict[str, set[str]] = {}
    for path, text in _compared(expressions_of(pack.manifest, pack.book.rules)):
        compared.setdefault(path, set()).add(text)
    vocabulary = {path: set(entry.kinds) for path, entry in pack.manifest.vocabulary.items()}

    def names(path: str) -> set[str]:
        return vocabulary[path] if path in vocabulary else compared.get(path, set())

    types = {of: names(f"{of}.type") for of in ("subject", "resource")}
    for source in pack.manifest.sources.values():
        if types[source.of]:  # a source may be the only place that names a type
            types[source.of] |= set(source.types)
    return Named(
        actions=tuple(sorted(names("action.name"))),
        types={of: frozenset(known) for of, known in types.items() if known},
        ids={of: frozenset(compared.get(f"{of}.id", ())) for of in ("subject", "resource")},
        tables={type: tuple(_ids_in(table)) for name, table in pack.data.items() for type in _types_of(name)},
    )


def _compared(expressions: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in expressions:
        pairs = [(path, values) for path, values in _COMPARED.findall(text)]
        pairs += [(path, value) for value, path in _COMPARED_BACKWARDS.findall(text)]
        for path, values in pairs:
            for quoted in _ONE.findall(values):
                yield path, re.sub(r"\\(.)", r"\1", quoted[1:-1])


def _types_of(table: str) -> list[str]:
    """The types whose entities a table of this name may have."""
    types = [table]
    if table.endswith("ies"):
        types.append(f"{table[:-3]}y")
    elif table.endswith("s"):
        types.append(table[:-1])
    return types


def _ids_in(table: Json) -> Iterator[str]:
    if isinstance(table, dict):
        yield from (key for key in table if isinstance(key, str))
    elif isinstance(table, list):
        for row in table:
            id = row.get("id") if isinstance(row, dict) else row
            if isinstance(id, str):
                yield id
