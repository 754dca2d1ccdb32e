"""The YAML that people write: packs, suites and every other file in YAML are read and written here.

Owns the YAML 1.2 core schema over libyaml, and the place of each value in its file. Invariant: what comes out
is JSON as it is spelled in the file, or the file is refused with every problem, its line and its column.
Any thread; a Document never changes.

`off`, `yes`, `22:30`, `2026-07-01` and `1_000` are text. Refused: tags, merge keys, keys that are no text,
repeated keys, NaN and infinities, integers of more than 64 bits. Where any value may stand, a number must be
spelled as it is shown: `1.10` may be meant as text. Depth, and the values that aliases multiply, are limited.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml
from msgspec import Struct

from thor_policy.core.errors import PackError
from thor_policy.core.requests import Json
from thor_policy.core.strict_json import MAX_INT, MIN_INT
from thor_policy.policy import yaml_types
from thor_policy.policy.yaml_places import offsets

#: Deepest nesting of mappings and lists.
MAX_DEPTH = 64
_TOO_DEEP = f"nesting is deeper than {MAX_DEPTH} levels: write it flatter, and no alias inside its own anchor"
#: Most values of a file, counted with every alias replaced by what it stands for.
MAX_VALUES = 1_000_000
_TOO_MANY = (
    f"there are more than {MAX_VALUES} values, aliases replaced by what they stand for: divide the file"
)
#: Most problems that are listed in one refusal.
MAX_FINDINGS = 50
#: Most mismatches of types that are gathered.
_MAX_WALKED = 1000

#: The tags of our own: a plain scalar, and everything else without a tag in the file.
_PLAIN, _NO_TAG = "?", ""
_WORDS: dict[str, Json] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER = re.compile(
    r"(?P<int>[-+]?[0-9]+)|(?P<based>0o[0-7]+|0x[0-9a-fA-F]+)"
    r"|(?P<float>[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<endless>[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
)
#: How a plain scalar begins that may be no text.
_MAY_BE_NO_TEXT = frozenset("~nNtTfF+-.0123456789")
#: Digits of an integer that are read at all.
_MAX_DIGITS = 40
#: What may not stand in a file unescaped: control characters, and what is a line break in YAML 1.1 only.
_NOT_ALLOWED = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_OTHER_VERSION = re.compile(r"(?:[ \t]*(?:#.*)?\n)*%YAML[ \t]+(?!1\.2\b)")
#: The place in a message of msgspec.
_PLACE = re.compile(r" - at `(?:key` in `)?(\$[^`]*)`")
_INDEX = re.compile(r"\[([0-9]+)\]")
#: What to do about a message of libyaml.
_CURES = {
    "mapping values are not allowed in this context": "; put a text with ': ' in it in quotes, or after '>-' "
    "on a line of its own",
    "but found another document": "; a file has one document: remove the line '---'",
    "did not find expected key": "; check the indentation; put the whole text in quotes if a part of it is",
    "found character that cannot start any token": "; indent with spaces; quote a text that begins so",
    "found undefined alias": "; quote a text that begins with '*'",
}


class Place(NamedTuple):
    """A place in a file: line and column, both from 1. Columns count code points."""

    line: int
    column: int


class Finding(Struct, frozen=True, kw_only=True):
    """A problem of a file. As text: `FILE:LINE:COLUMN: message`."""

    where: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}:{self.column}: {self.message}"


def parse(text: str, kind: Any, where: Path | str) -> Any:
    """YAML text as a value of type `kind`. Raises PackError with every problem, each on a line of its own."""
    return Document(text, where).convert(kind)


def dump(value: Json) -> str:
    """JSON as YAML that `parse`, and a reader of YAML 1.1, read as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class Document:
    """A YAML file, read once: its value, and where each part of it stands.

    A path is `$.limits.abstain` or `$[2].when`; what it does not find has the place of its nearest parent.
    """

    def __init__(self, text: str, where: Path | str) -> None:
        """Read `text`. Never raises: `convert` and `problems` report what is wrong with it."""
        self._where = str(where)
        self._text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        self._root: yaml.Node | None = None
        self._value: Json = None
        self._findings: list[Finding] = []
        #: Nodes (by `id`) without a usable value, for which there is a finding already.
        self._refused: set[int] = set()
        self._has_odd_numbers = False
        self._is_whole = False
        self._values_left = MAX_VALUES
        try:
            self._root = self._compose()
            if self._root is not None:
                self._value = self._build(self._root, 0)
            self._is_whole = True
        except _Stop as stop:
            self._findings.append(self._finding(stop.place, stop.message))

    def convert(self, kind: Any) -> Any:
        """The value as `kind`. Raises PackError with every problem, each on a line of its own."""
        value, findings = self._converted(kind)
        if findings:
            lines = [str(finding) for finding in findings[:MAX_FINDINGS]]
            if len(findings) > MAX_FINDINGS:
                lines.append(f"{self._where}: there are {len(findings) - MAX_FINDINGS} more problems")
            raise PackError("\n".join(lines))
        return value

    def problems(self, kind: Any) -> tuple[Finding, ...]:
        """What keeps the file from being a `kind`, in the order of the file; empty if it is one."""
        return self._converted(kind)[1]

    def position(self, path: str = "$") -> Place:
        """Where the value at a path begins; of a mapping or list below a key, where the key begins."""
        key, node = self._find(path)
        if node is None:
            return Place(1, 1)
        return self._start(yaml_types.anchor(key, node))

    def place(self, path: str, line: int, column: int) -> Place:
        """The place in the file of a place inside the text at a path; lines and columns count from 1.

        The text may be folded, quoted or escaped in the file. A place behind the end of a line or of the
        text is that end.
        """
        node = self._find(path)[1]
        if not isinstance(node, yaml.ScalarNode):
            return self.position(path)
        lines = node.value.split("\n")
        if line > len(lines):
            line, column = len(lines), len(lines[-1]) + 1
        before = lines[: max(line, 1) - 1]
        inside = min(max(column, 1) - 1, len(lines[len(before)]))
        return self._place(offsets(self._text, node)[sum(len(text) + 1 for text in before) + inside])

    # ------------------------------------------------------------ reading

    def _compose(self) -> yaml.Node | None:
        """The tree of nodes. Raises _Stop."""
        if wrong := _NOT_ALLOWED.search(self._text):
            code = f"U+{ord(wrong[0]):04X}"
            raise _Stop(
                self._place(wrong.start()),
                f"the character {code} may not stand in YAML: write it as an escape in double quotes",
            )
        if wrong := _OTHER_VERSION.match(self._text):
            raise _Stop(self._place(wrong.end()), "the file is read as YAML 1.2: remove the line %YAML")
        composer = _Composer(self._text)
        try:
            return composer.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = str(error.problem or error.context)
            cures = [cure for problem, cure in _CURES.items() if message.startswith(problem)]
            place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
            raise _Stop(place, message + "".join(cures)) from error
        finally:
            composer.dispose()

    def _build(self, node: yaml.Node, depth: int) -> Json:
        """The value of a node. Collects findings; raises _Stop at a limit."""
        self._values_left -= 1
        if self._values_left < 0:
            raise _Stop(self._start(node), _TOO_MANY)
        if node.tag != _NO_TAG and node.tag != _PLAIN:
            shown = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(node, f"the tag {shown} is refused: remove it; quote a text that begins with '!'")
            return None
        if isinstance(node, yaml.ScalarNode):
            text: str = node.value
            if node.tag == _NO_TAG or (text and text[0] not in _MAY_BE_NO_TEXT):
                return text
            return self._plain(node)
        if depth >= MAX_DEPTH:
            raise _Stop(self._start(node), _TOO_DEEP)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, depth + 1) for item in node.value]
        members: dict[str, Json] = {}
        places: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, places)
            value = self._build(value_node, depth + 1)
            if key is not None:
                members[key] = value
        return members

    def _key(self, node: yaml.Node, places: dict[str, yaml.Node]) -> str | None:
        """The key of a member, or None if it is refused. `places` has the keys before it in the mapping."""
        key = self._build(node, 0) if isinstance(node, yaml.ScalarNode) else None
        if id(node) in self._refused:
            return None
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, "a key must be text, not a mapping or a list")
        elif not isinstance(key, str):
            self._refuse(node, f"the key {node.value or '(empty)'} is no text: quote it")
        elif key == "<<" and node.tag == _PLAIN:
            self._refuse(node, "the merge key << is refused: write the members out, or quote it")
        elif key in places:
            first = self._start(places[key])
            self._refuse(
                node, f"the key {key!r} appears twice; first in line {first.line}, column {first.column}"
            )
        else:
            places[key] = node
            return key
        return None

    def _plain(self, node: yaml.ScalarNode) -> Json:
        """The value of a plain scalar in the core schema of YAML 1.2."""
        text: str = node.value
        start = node.start_mark.index
        if self._text[start : start + 1] in ("&", "!") and "!" in self._text[start : node.end_mark.index]:
            return self._refuse(node, "the tag ! is refused: quote it if it is text")
        if text in _WORDS:
            return _WORDS[text]
        match = _NUMBER.fullmatch(text)
        if match is None:
            return text
        number: int | float
        if match.lastgroup in ("int", "based"):
            number = int(text, 10 if match["int"] else 0) if len(text) <= _MAX_DIGITS else MAX_INT + 1
            if not MIN_INT <= number <= MAX_INT:
                return self._refuse(node, "the integer does not fit 64 bits: quote it if it is text")
        else:
            number = float(text) if match["float"] else math.inf
            if not math.isfinite(number):
                return self._refuse(node, f"{text} is no finite number: quote it if it is text")
        self._has_odd_numbers = self._has_odd_numbers or repr(number) != text
        return number

    # ------------------------------------------------------------ types

    def _converted(self, kind: Any) -> tuple[Any, tuple[Finding, ...]]:
        """The value as `kind`, and every finding; the value counts only if there is none."""
        findings = list(self._findings)
        if findings or self._has_odd_numbers:
            findings += self._mismatches(kind)
        if findings:
            return None, _in_order(findings)
        try:
            return msgspec.convert(self._value, kind), ()
        except msgspec.ValidationError as error:
            findings = self._mismatches(kind)
            if not findings:
                place = _PLACE.search(str(error))
                findings = [self._finding(self.position(place[1] if place else "$"), str(error))]
            return None, _in_order(findings)

    def _mismatches(self, kind: Any) -> list[Finding]:
        if self._root is None or not self._is_whole:
            return []
        walk = yaml_types.mismatches(self._root, self._value, kind, self._refused)
        return [
            self._finding(self._start(node), message) for node, message in itertools.islice(walk, _MAX_WALKED)
        ]

    # ------------------------------------------------------------ places

    def _find(self, path: str) -> tuple[yaml.Node | None, yaml.Node | None]:
        """The node of the key and of the value at a path, or of its nearest parent that exists."""
        key: yaml.Node | None = None
        node, rest = self._root, path.removeprefix("$")
        while rest:
            if isinstance(node, yaml.SequenceNode):
                index = _INDEX.match(rest)
                if index is None or int(index[1]) >= len(node.value):
                    break
                key, node, rest = None, node.value[int(index[1])], rest[index.end() :]
            elif isinstance(node, yaml.MappingNode):
                # A name may have dots in it, so the longest name that fits is the one that is meant.
                steps = [
                    pair
                    for pair in node.value
                    if isinstance(pair[0], yaml.ScalarNode)
                    and f"{rest}.".startswith((f".{pair[0].value}.", f".{pair[0].value}["))
                ]
                if not steps:
                    break
                key, node = max(steps, key=lambda pair: len(pair[0].value))
                rest = rest[1 + len(key.value) :]
            else:
                break
        return key, node

    def _start(self, node: yaml.Node) -> Place:
        return Place(node.start_mark.line + 1, node.start_mark.column + 1)

    def _place(self, index: int) -> Place:
        """The place of a character of the text."""
        return Place(self._text.count("\n", 0, index) + 1, index - self._text.rfind("\n", 0, index))

    def _refuse(self, node: yaml.Node, message: str) -> Json:
        """Add a finding, at most one for a node. What is returned stands for its value."""
        if id(node) not in self._refused:
            self._refused.add(id(node))
            self._findings.append(self._finding(self._start(node), message))
        return None

    def _finding(self, place: Place, message: str) -> Finding:
        return Finding(where=self._where, line=place.line, column=place.column, message=message)


class _Stop(Exception):
    """Nothing behind this place can be read."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place
        self.message = message


class _Composer(yaml.CSafeLoader):
    """libyaml's tree of nodes; no scalar gets a meaning, and the depth is limited before the stack is."""

    _depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        return _PLAIN if kind is yaml.ScalarNode and implicit[0] else _NO_TAG

    def descend_resolver(self, current_node: yaml.Node | None, current_index: Any) -> None:
        self._depth += 1
        if current_node is not None and self._depth > MAX_DEPTH + 1:
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, current_node.start_mark)

    def ascend_resolver(self) -> None:
        self._depth -= 1


class _Dumper(yaml.CSafeDumper):
    """Writes what YAML 1.1 and YAML 1.2 read alike, and numbers in their own spelling."""


def _float(dumper: yaml.CSafeDumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", repr(value))


def _text(dumper: yaml.CSafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if _NOT_ALLOWED.search(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"(?:{_NUMBER.pattern})$"), list("+-.0123456789")
)


def _in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: (finding.line, finding.column)))
