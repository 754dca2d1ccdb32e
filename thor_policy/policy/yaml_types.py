"""What keeps a YAML file from being a value of a type: every problem at once, each at its node.

Owns the walk over nodes and types. Invariant: in a file that msgspec converts it reports nothing but numbers
in another spelling where any value may stand. The words are those of msgspec, which itself stops at the first
problem. Pure.
"""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct
from msgspec.structs import FieldInfo

from thor_policy.core.requests import Json

#: A node, and what is wrong at it.
Mismatch = tuple[yaml.Node, str]

_TRUTH_OF_YAML_1_1 = frozenset(("y", "n", "yes", "no", "on", "off"))


def anchor(key: yaml.Node | None, node: yaml.Node) -> yaml.Node:
    """The node to point at: a block mapping or list is pointed at by its key."""
    is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    return key if key is not None and is_block else node


def mismatches(node: yaml.Node, value: Json, kind: Any, refused: Set[int]) -> Iterator[Mismatch]:
    """Every problem of a file's root as a `kind`. Nodes in `refused`, by their id, are passed over."""
    return _Walk(refused).check(node, node, value, kind, "$")


class _Walk:
    def __init__(self, refused: Set[int]) -> None:
        self._refused = refused

    def check(self, at: yaml.Node, node: yaml.Node, value: Json, kind: Any, path: str) -> Iterator[Mismatch]:
        """The problems of a value, which is pointed at by `at`."""
        if id(node) in self._refused:
            return
        choices = tuple(_choices(kind))
        if Any in choices:
            yield from self._odd_numbers(node, value)
        elif isinstance(node, yaml.MappingNode) and (struct := _first(choices, _is_struct)):
            yield from self._struct(at, node, value, struct, path)
        elif isinstance(node, yaml.MappingNode) and (mapping := _first(choices, _is_mapping)):
            yield from self._mapping(node, value, get_args(mapping), path)
            yield from self._limits(at, value, kind, path)
        elif isinstance(node, yaml.SequenceNode) and (sequence := _first(choices, _is_sequence)):
            yield from self._items(node, value, get_args(sequence), path)
            yield from self._limits(at, value, kind, path)
        elif message := _mismatch(value, kind):
            yield at, f"{message}{_at(path)}{_cure(node, value, choices)}"

    def _struct(
        self, at: yaml.Node, node: yaml.MappingNode, value: dict[str, Json], kind: type[Struct], path: str
    ) -> Iterator[Mismatch]:
        fields = _fields(kind)
        present = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
        for name, field in fields.items():
            if field.required and name not in present:
                yield at, f"Object missing required field `{name}`{_at(path)}"
        for key, member in self._members(node):
            if key.value in fields:
                inner, kind_inside = f"{path}.{key.value}", fields[key.value].type
                yield from self.check(anchor(key, member), member, value[key.value], kind_inside, inner)
            elif kind.__struct_config__.forbid_unknown_fields:
                near = difflib.get_close_matches(key.value, sorted(fields.keys() - present), 1, 0.7)
                hint = f"; is it `{near[0]}`?" if near else f"; there are {', '.join(fields)}"
                yield key, f"Object contains unknown field `{key.value}`{_at(path)}{hint}"

    def _mapping(
        self, node: yaml.MappingNode, value: dict[str, Json], kinds: tuple[Any, ...], path: str
    ) -> Iterator[Mismatch]:
        key_kind, kind = kinds
        for key, member in self._members(node):
            if message := _mismatch(key.value, key_kind):
                yield key, f"{message} - at `key` in `{path}`"
            inner = f"{path}.{key.value}"
            yield from self.check(anchor(key, member), member, value[key.value], kind, inner)

    def _items(
        self, node: yaml.SequenceNode, value: list[Json], kinds: tuple[Any, ...], path: str
    ) -> Iterator[Mismatch]:
        for number, (item, inner) in enumerate(zip(node.value, value, strict=True)):
            kind = kinds[number] if number < len(kinds) and kinds[number] is not ... else kinds[0]
            yield from self.check(item, item, inner, kind, f"{path}[{number}]")

    def _limits(self, at: yaml.Node, value: Json, kind: Any, path: str) -> Iterator[Mismatch]:
        """What a type says about the whole of a mapping or list: its length."""
        limits = [part for part in get_args(kind)[1:] if isinstance(part, msgspec.Meta)]
        for limit in limits if not self._refused else ():
            if message := _mismatch(value, Annotated[type(value), limit]):
                yield at, f"{message}{_at(path)}"

    def _odd_numbers(self, node: yaml.Node, value: Json) -> Iterator[Mismatch]:
        """Numbers in another spelling than their own, at any depth of a value of any type."""
        if id(node) in self._refused:
            return
        if isinstance(node, yaml.MappingNode):
            for key, member in self._members(node):
                yield from self._odd_numbers(member, value[key.value])
        elif isinstance(node, yaml.SequenceNode):
            for item, inner in zip(node.value, value, strict=True):
                yield from self._odd_numbers(item, inner)
        elif isinstance(value, int | float) and not isinstance(value, bool) and repr(value) != node.value:
            yield (
                node,
                f"{node.value} reads as the number {value!r}: quote it if it is text, or write {value!r}",
            )

    def _members(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        return ((key, member) for key, member in node.value if id(key) not in self._refused)


@functools.cache
def _fields(kind: type[Struct]) -> dict[str, FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _choices(kind: Any) -> Iterator[Any]:
    """The types of a union; a type by itself. Limits are left out."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _choices(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for choice in get_args(kind):
            yield from _choices(choice)
    else:
        yield kind


def _first(choices: Iterable[Any], fits: Callable[[Any], bool]) -> Any:
    return next(filter(fits, choices), None)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping)


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list, Sequence)


def _mismatch(value: Json, kind: Any) -> str | None:
    """The message of msgspec, without its place, if a value is not of a type."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error).partition(" - at `")[0]
    return None


def _at(path: str) -> str:
    return "" if path == "$" else f" - at `{path}`"


def _cure(node: yaml.Node, value: Json, choices: Sequence[Any]) -> str:
    """What to write instead, where the spelling is the likely mistake."""
    if not isinstance(node, yaml.ScalarNode):
        return ""
    if str in choices and node.value and not isinstance(value, str):
        return f': if it is text, write "{node.value}"'
    if bool in choices and node.value.lower() in _TRUTH_OF_YAML_1_1:
        return ": write true or false"
    return ""
