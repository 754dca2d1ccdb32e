"""The public conformance tests of CEL, as a table that our tests run: tests/data/cel_conformance.json.

Owns the reading of the CEL project's "simple tests" (protobuf text format). Invariant: the same files give
the same bytes. It keeps a name, an expression, bindings and the expected value or error of each case, and
drops comments, descriptions and error texts. A case that no pack can contain is left out; the table counts
them by reason.

The table: file -> `left_out` (reason -> cases) and `sections` (section -> cases). A case is a list: name,
expression, expected, and, if it has them, an object of `bindings` (name -> JSON), `types` (name -> CEL type)
and `unchecked` (the case is meant for a runtime without type checker). `expected` is JSON for null, a bool,
int, double, string or list; anything else is an object with a single member that names its kind: `map`
(pairs), `uint`, `double` (NaN, infinities), `bytes` (hex), `duration` and `timestamp` (seconds, nanoseconds),
`type`, `error`, or `deduced` (type and value).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

#: A message of protobuf's text format: its fields in order. A value is a word, a string's bytes, a message.
Message: TypeAlias = "list[tuple[str, Any]]"

_TOKEN = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<extension>\[[A-Za-z_][\w.]*/[\w.]+\])
    |(?P<word>[-+.\w]+)
    |(?P<sign>[{}\[\]<>:,;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_TYPES = {
    "INT64": "int",
    "UINT64": "uint",
    "DOUBLE": "double",
    "BOOL": "bool",
    "STRING": "string",
    "BYTES": "bytes",
    "TIMESTAMP": "timestamp",
    "DURATION": "duration",
}
_MESSAGES = re.compile(r"\b[A-Z]\w*\s*\{|\bTestAllTypes\b|\bcel\.expr\b|\bproto\.|\bgoogle\.protobuf\b")


class _LeftOutError(Exception):
    """A pack cannot contain the case; the text says why."""


# ---------------------------------------------------------------- protobuf's text format


def parse(text: str) -> Message:
    """The fields of a message in text format. Raises ValueError for what is no text format."""
    tokens = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"not protobuf text format: {text[at : at + 40]!r}")
        at = match.end()
        if match.lastgroup != "skip":
            tokens.append((match.lastgroup or "", match[0]))
    message, end = _message(tokens, 0)
    if end != len(tokens):
        raise ValueError(f"not protobuf text format: {tokens[end][1]!r} closes nothing")
    return message


def _message(tokens: list[tuple[str, str]], at: int) -> tuple[Message, int]:
    fields: Message = []
    while at < len(tokens) and tokens[at][1] not in ("}", ">"):
        name, at = tokens[at][1], at + 1
        if tokens[at][1] == ":":
            at += 1
        if tokens[at] == ("sign", "["):
            at += 1
            while tokens[at][1] != "]":
                value, at = _value(tokens, at)
                fields.append((name, value))
                at += tokens[at][1] == ","
            at += 1
        else:
            value, at = _value(tokens, at)
            fields.append((name, value))
        if at < len(tokens) and tokens[at][1] in (",", ";"):
            at += 1
    return fields, at


def _value(tokens: list[tuple[str, str]], at: int) -> tuple[Any, int]:
    kind, text = tokens[at]
    if kind == "sign" and text not in ("{", "<"):
        raise ValueError(f"not protobuf text format: {text!r} is no value")
    if text in ("{", "<"):
        message, at = _message(tokens, at + 1)
        return message, at + 1
    if kind == "string":
        parts = []
        while at < len(tokens) and tokens[at][0] == "string":
            parts.append(_ESCAPE.sub(_unescape, tokens[at][1][1:-1].encode()))
            at += 1
        return b"".join(parts), at
    return text, at + 1


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1] in (b"u", b"U"):
        return chr(int(code[1:], 16)).encode()
    if code[:1] == b"x":
        return bytes([int(code[1:], 16)])
    return bytes([int(code, 8)]) if code[:1].isdigit() else _ESCAPED.get(code, code)


def _of(message: Message, name: str) -> list[Any]:
    return [value for field, value in message if field == name]


def _text(message: Message, name: str) -> str:
    return next((value.decode() for value in _of(message, name)), "")


# ---------------------------------------------------------------- cases


def case_of(test: Message) -> list[Any]:
    """Name, expression, expected and options of one test. Raises _LeftOutError."""
    expression = _text(test, "expr")
    if _of(test, "container"):
        raise _LeftOutError("container")
    if _MESSAGES.search(expression):
        raise _LeftOutError("protobuf message")
    options: dict[str, Any] = {}
    for declared in _of(test, "type_env"):
        if not _of(declared, "ident"):
            raise _LeftOutError("function that the test declares")
        options.setdefault("types", {})[_text(declared, "name")] = _type(
            _of(_of(declared, "ident")[0], "type")[0]
        )
    for binding in _of(test, "bindings"):
        value = _of(_of(binding, "value")[0], "value")
        if not value:
            raise _LeftOutError("variable without a value")
        options.setdefault("bindings", {})[_text(binding, "key")] = _json(_expected(value[0]))
    for name in {**options.get("types", {}), **options.get("bindings", {})}:
        if "." in name:
            raise _LeftOutError("variable with a dotted name")
    if _of(test, "disable_check") == ["true"]:
        options["unchecked"] = True
    return [_text(test, "name"), expression, _outcome(test), *([options] if options else [])]


def _outcome(test: Message) -> Any:
    """What the test demands; without anything, that the expression is true."""
    for field, value in test:
        if field == "value":
            return _expected(value)
        if field == "eval_error":
            return {"error": True}
        if field == "typed_result":
            result = _of(value, "result")
            deduced = _type(_of(value, "deduced_type")[0])
            return {"deduced": [deduced, *(_expected(item) for item in result)]}
        if field in ("any_eval_errors", "unknown", "any_unknowns"):
            raise _LeftOutError("unknown value")
    return True


def _expected(value: Message) -> Any:
    """A value of the format, as the table writes it. Raises _LeftOutError for a protobuf message or enum."""
    if not value:
        raise _LeftOutError("no expected value")
    kind, content = value[0]
    if kind == "null_value":
        return None
    if kind == "bool_value":
        return content == "true"
    if kind == "int64_value":
        return int(content, 0)
    if kind == "uint64_value":
        return {"uint": int(content, 0)}
    if kind == "double_value":
        number = float(content)
        return number if math.isfinite(number) else {"double": str(number)}
    if kind == "string_value":
        return content.decode()
    if kind == "bytes_value":
        return {"bytes": content.hex()}
    if kind == "type_value":
        return {"type": content.decode()}
    if kind == "list_value":
        return [_expected(item) for item in _of(content, "values")]
    if kind == "map_value":
        entries = [(_of(entry, "key")[0], _of(entry, "value")[0]) for entry in _of(content, "entries")]
        return {"map": sorted(([_expected(key), _expected(item)] for key, item in entries), key=json.dumps)}
    if kind == "object_value":
        url, body = content[0]
        name = url.rpartition("/")[2].rstrip("]").rpartition(".")[2]
        if name in ("Timestamp", "Duration"):
            parts = [int((_of(body, part) or ["0"])[0]) for part in ("seconds", "nanos")]
            return {name.lower(): parts}
    raise _LeftOutError("protobuf message" if kind == "object_value" else "protobuf enum")


def _json(expected: Any) -> Any:
    """A value of the table as JSON that a request could hold. Raises _LeftOutError for any other."""
    if isinstance(expected, list):
        return [_json(item) for item in expected]
    if isinstance(expected, Mapping):
        pairs = expected.get("map")
        if pairs is None or not all(isinstance(key, str) for key, _ in pairs):
            raise _LeftOutError("variable that is no JSON")
        return {key: _json(item) for key, item in pairs}
    return expected


def _type(declared: Message) -> str:
    """CEL's name of a type. Raises _LeftOutError for a protobuf type."""
    kind, content = declared[0]
    if kind in ("null", "dyn"):
        return kind
    if kind in ("primitive", "well_known") and content in _TYPES:
        return _TYPES[content]
    if kind == "list_type":
        return f"list({_type(_of(content, 'elem_type')[0])})"
    if kind == "map_type":
        return f"map({_type(_of(content, 'key_type')[0])}, {_type(_of(content, 'value_type')[0])})"
    if kind == "abstract_type":
        parameters = ", ".join(map(_type, _of(content, "parameter_types")))
        return f"{_text(content, 'name')}({parameters})"
    raise _LeftOutError("protobuf type")


# ---------------------------------------------------------------- the table


def table(folder: Path) -> dict[str, Any]:
    """The table of all files in a folder, sorted. Raises ValueError if it holds none, OSError."""
    files: dict[str, Any] = {}
    for path in sorted(folder.glob("*.textproto")):
        left_out: Counter[str] = Counter()
        sections: dict[str, list[list[Any]]] = defaultdict(list)
        for section in _of(parse(path.read_text(encoding="utf-8")), "section"):
            for test in _of(section, "test"):
                try:
                    sections[_text(section, "name")].append(case_of(test))
                except _LeftOutError as reason:
                    left_out[str(reason)] += 1
        for cases in sections.values():
            cases.sort(key=json.dumps)
        files[path.stem] = {
            "left_out": dict(sorted(left_out.items())),
            "sections": dict(sorted(sections.items())),
        }
    if not files:
        raise ValueError(f"{folder}: holds no *.textproto; give the folder tests/simple/testdata of cel-spec")
    return files


def as_json(files: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table: one a case."""

    def members(level: int, pairs: Mapping[str, Any]) -> Iterator[str]:
        for number, (name, value) in enumerate(pairs.items()):
            comma = "," if number + 1 < len(pairs) else ""
            yield from item(level, f"{json.dumps(name)}: ", value, comma)

    def item(level: int, head: str, value: Any, comma: str) -> Iterator[str]:
        indent = " " * level
        if isinstance(value, Mapping) and head != '"left_out": ' and value:
            yield f"{indent}{head}{{"
            yield from members(level + 1, value)
            yield f"{indent}}}{comma}"
        elif isinstance(value, list):
            yield f"{indent}{head}["
            for number, case in enumerate(value):
                yield f"{indent} {json.dumps(case)}{',' if number + 1 < len(value) else ''}"
            yield f"{indent}]{comma}"
        else:
            yield f"{indent}{head}{json.dumps(value)}{comma}"

    yield from item(0, "", files, "")


if __name__ == "__main__":
    print("\n".join(as_json(table(Path(sys.argv[1])))))
