"""Expressions of a mapping from a message to a question: CEL over `params` and `token`, bounded.

Owns the checking and the evaluation of expressions that somebody else wrote: an MCP server declares them
for its tools (`thor_policy.mcp.mapping`). Invariant: an expression gives a JSON value, `ABSENT` or a
MappingError, in bounded time and memory, and reads nothing but its two variables. Pure; any thread.

What bounds it: the length of the text, the 10,000 iterations of the runtime, and the macros. Those that
build lists (`map`, `filter`) could double a text at each step, so only those that give a truth value are
there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from cel_expr_python import cel
from cel_expr_python.ext import ext_optional

from thor_policy.core.requests import Json
from thor_policy.core.strict_json import MAX_INT, MIN_INT
from thor_policy.policy.cel_calls import keep_none
from thor_policy.policy.tokens import tokenise

#: Most characters of an expression.
MAX_CHARS = 512
#: Macros that an expression may use; each gives a truth value.
MACROS = ("has", "all", "exists", "exists_one")
#: Names that build lists, or call a macro that does.
_REFUSED = ("map", "filter", "optMap", "optFlatMap", "bind", "transformList", "transformMap")
#: Characters kept of an error of the runtime.
_MAX_ERROR_CHARS = 200


class MappingError(ValueError):
    """A mapping is malformed, or gives no question for this message; the text says where and why."""


class Absent:
    """The value of an optional expression that has none."""


ABSENT: Final = Absent()
Value: TypeAlias = Json | Absent

keep_none()  # the binding releases None for each null that it returns
_environment = cel.NewEnv(
    variables={"params": cel.Type.DYN, "token": cel.Type.DYN}, extensions=[ext_optional.ExtOptional()]
)


class Expression:
    """A checked expression. Raises MappingError if it does not check, or is beyond the bounds."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_CHARS:
            raise MappingError(f"the expression has {len(text)} characters; the limit is {MAX_CHARS}")
        tokens = list(tokenise(text))
        for before, token in zip([None, *tokens], tokens, strict=False):
            if token.kind == "name" and token.text in _REFUSED and before is not None and before.text == ".":
                macros = ", ".join(MACROS)
                raise MappingError(f"{self}: {token.text} is not available here; the macros are {macros}")
        try:
            expression = _environment.compile(text)
            self._optional = expression.return_type().name().startswith("optional_type")
            self._expression = _environment.compile(f"[?({text}\n)]") if self._optional else expression
        except RuntimeError as error:
            raise MappingError(f"{self} does not check: {_short(str(error))}") from error

    def __str__(self) -> str:
        return f"expression '${self.text}'"

    def value(self, params: Mapping[str, Json], token: Mapping[str, Json]) -> Value:
        """The value for a message. Raises MappingError if it fails, or is no JSON."""
        try:
            value = self._expression.eval(data={"params": params, "token": token})
            failed = value.type().name() == "ERROR"
            plain = value.plain_value()
        except Exception as error:  # the binding raises what its C++ raised: SystemError, TypeError, ..
            raise MappingError(f"{self} failed: {_short(str(error))}") from error
        if failed:
            raise MappingError(f"{self} failed: {_short(str(plain))}")
        if self._optional:
            if not plain:
                return ABSENT
            plain = plain[0]
        if not _is_json(plain):
            raise MappingError(f"{self} gives no JSON value")
        return plain


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(part) for name, part in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) is int:
        return MIN_INT <= value <= MAX_INT
    return value is None or type(value) in (bool, str)


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= _MAX_ERROR_CHARS else text[: _MAX_ERROR_CHARS - 2] + ".."
