"""The functions that packs may call, next to those of CEL: of words, of a request, of lists and of tables.

Owns their declaration and what they do. Invariant: they read the request that `evaluating` named last on this
thread, and nothing else. Declared once for all packs. Any thread.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from cel_expr_python import cel

from thor_policy.core.requests import Json
from thor_policy.policy.cel_calls import callable_from_cel
from thor_policy.policy.structure import email as mails
from thor_policy.policy.structure import money, names, network
from thor_policy.policy.structure import path as paths
from thor_policy.policy.structure import sql as statements
from thor_policy.policy.structure import url as urls
from thor_policy.policy.text_cache import TextCache, kept
from thor_policy.policy.words import WordLists

#: From here on not every whole number is a double.
EXACT = 2**53
#: The members of a request that state its time: AuthZEN's name, and that of older services.
TIMES = ("context.time", "context.timestamp")
#: RFC 3339 in ASCII digits; AuthZEN's own examples leave the seconds out.
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)

#: Characters of a path whose steps are kept.
_SHORT_PATH = 64

_T = cel.Type
ANY_MAP = _T.Map(_T.STRING, _T.DYN)
ANY_LIST = _T.List(_T.DYN)


class _Current(threading.local):
    """What is evaluated on this thread: the request's members by root, the pack's tables and word lists."""

    roots: Mapping[str, Json]
    tables: Mapping[str, Json]
    words: WordLists
    kinds: Mapping[str, str]
    shares: Mapping[str, float]


_current = _Current()


def evaluating(
    request: Mapping[str, Json],
    tables: Mapping[str, Json],
    words: WordLists,
    shares: Mapping[str, float] | None = None,
) -> None:
    """Name what functions read on this thread, until the next call.

    `shares` are the shares of the precedents that had each outcome.
    """
    _current.roots, _current.tables, _current.words, _current.kinds = request, tables, words, {}
    _current.shares = shares or {}


def name_kinds(kinds: Mapping[str, str]) -> None:
    """Say the kind of the name at each member of the request that has a vocabulary: path -> kind."""
    _current.kinds = kinds


def roots() -> Mapping[str, Json]:
    """The members of the request that is evaluated on this thread."""
    return _current.roots


def forget() -> None:
    """Forget what was read of texts, so that a benchmark times the reading."""
    for cache in TextCache.every:
        cache.clear()
    names.script_alias.cache_clear()
    _steps.cache_clear()


# ---------------------------------------------------------------- what they do


def mentions(text: str, name: str) -> bool:
    """True if an entry of the word list occurs in the text, in any way of joining words."""
    return _current.words.mentions(text, name)


def starts(text: str, name: str) -> bool:
    """True if the text begins with an entry of the word list."""
    return _current.words.starts(text, name)


def kind(path: str) -> str:
    """The kind of the name at a path in the pack's vocabulary; "" if it is absent or unknown."""
    if path not in _current.kinds:
        raise ValueError(f"there is no vocabulary {path!r}")
    return _current.kinds[path]


def given(path: str, default: Json) -> Json:
    """Value at a dotted path; `default` if it is absent or null. A default of null accepts any type."""
    value: Json = _current.roots
    for key in _steps(path) if len(path) <= _SHORT_PATH else path.split("."):
        if not isinstance(value, dict):
            raise TypeError(f"{path}: {key!r} is looked up in a {json_type(value)}")
        value = value.get(key)
        if value is None:
            return default
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value) if abs(value) < EXACT else value
    raise TypeError(f"{path}: a {json_type(value)}, not a {json_type(default)}")


def row(table: str, key: str) -> Json:
    """The row of a table of data.yaml; null if there is none."""
    rows = _current.tables[table]
    return rows.get(key) if isinstance(rows, dict) else None


def share(outcome: str) -> float:
    """The share of the precedents that had this outcome, 0.0 to 1.0; 0.0 without precedents."""
    return float(_current.shares.get(outcome, 0.0))


def stated_times() -> list[str]:
    """The times that the request states, in UTC. Raises TypeError, ValueError for what is no time."""
    texts = []
    for path in TIMES:
        value = _current.roots["context"].get(path.removeprefix("context."))
        if value is None:
            continue
        if type(value) is not str:
            raise TypeError(f"{path}: a {json_type(value)}, not a time")
        if (at := _moment(value)) is None:
            raise ValueError(f"{path}: not a time with a zone, as 2026-03-03T22:30:00Z")
        texts.append(at)
    return texts


def times_by_member() -> Iterator[tuple[str, str]]:
    """Path and time, in UTC, of each of `TIMES` that the request states and that is a time."""
    for path in TIMES:
        value = _current.roots["context"].get(path.removeprefix("context."))
        if type(value) is str and (at := _moment(value)) is not None:
            yield path, at


def as_text(at: datetime) -> str:
    """An RFC 3339 time in UTC."""
    return at.isoformat().replace("+00:00", "Z")


@kept()
def _moment(text: str) -> str | None:
    """The time in UTC of an RFC 3339 text, whose seconds may be left out; None for any other text."""
    if not _TIME.fullmatch(text):
        return None
    try:
        return as_text(datetime.fromisoformat(text.upper()).astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def shell(text: str, table: str = "") -> Json:
    """The structure of a command line, with the kinds of a table of programs. Raises ValueError, KeyError."""
    from thor_policy.policy.structure import shell as shell_lines  # imported by `load`: few packs call it

    return shell_lines.shell(text, _current.tables[table] if table else None)


def flatten(items: list[Json]) -> list[Json]:
    """The items, with those that are lists replaced by theirs."""
    return [leaf for item in items for leaf in (item if isinstance(item, list) else [item])]


def texts(value: Json) -> list[Json]:
    """Every text in a value, at any depth, keys included; members of a map in the order of their keys."""
    collected: list[Json] = []
    pending: list[Json] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            collected.append(item)
        elif isinstance(item, list):
            pending.extend(reversed(item))
        elif isinstance(item, dict):
            for key in sorted(item, reverse=True):
                pending += [item[key], key]
    return collected


def distinct(items: list[Json]) -> list[Json]:
    """The items without repetitions, each where it comes first."""
    first: dict[Any, Json] = {}
    for item in items:
        first.setdefault(_key(item), item)
    return list(first.values())


def total(items: list[Json]) -> Json:
    """The exact sum, rounded at the end. Raises TypeError for other items, ValueError beyond 64 bits."""
    kinds = set(map(type, items))
    if not kinds <= {int, float}:
        raise TypeError("the list has items that are no numbers")
    if float in kinds and not all(map(math.isfinite, items)):
        return sum(items)
    if float in kinds and abs(rounded := math.fsum(items)) < EXACT:
        return rounded
    exact = sum(map(Fraction, items), Fraction(0))
    is_integer = float not in kinds or (exact.denominator == 1 and EXACT <= abs(exact) < 2**63)
    if is_integer and not -(2**63) <= exact < 2**63:
        raise ValueError("the sum does not fit 64 bits")
    return int(exact) if is_integer else float(exact)


def smallest(items: list[Json]) -> Json:
    """The smallest item. Raises TypeError and ValueError as `_comparable`."""
    return min(_comparable(items))


def largest(items: list[Json]) -> Json:
    """The largest item. Raises TypeError and ValueError as `_comparable`."""
    return max(_comparable(items))


def _comparable(items: list[Json]) -> list[Json]:
    """The items. Raises ValueError if there is none, TypeError unless they are numbers or of one type."""
    kinds = set(map(type, items))
    if not items:
        raise ValueError("the list is empty")
    if len(kinds) > 1 and not kinds <= {int, float}:
        raise TypeError("the list has items of several types")
    return items


def _contains(items: list[Json], wanted: list[Json]) -> bool:
    return set(map(_key, wanted)) <= set(map(_key, items))


def _intersects(items: list[Json], others: list[Json]) -> bool:
    return not set(map(_key, items)).isdisjoint(map(_key, others))


def _equivalent(items: list[Json], others: list[Json]) -> bool:
    return set(map(_key, items)) == set(map(_key, others))


def _key(value: Any) -> Any:
    """Something hashable that is equal where CEL says that the values are: 1 is 1.0, and true is not 1."""
    if isinstance(value, bool | bytearray):
        return type(value), bytes([value]) if isinstance(value, bool) else bytes(value)
    if isinstance(value, list):
        return list, tuple(map(_key, value))
    if isinstance(value, dict):
        return dict, frozenset((_key(key), _key(item)) for key, item in value.items())
    return object() if value != value else value  # NaN equals nothing


@functools.lru_cache(maxsize=256)
def _steps(path: str) -> tuple[str, ...]:
    """The keys of a short path, of which packs have few: at most 1 MB are kept."""
    return tuple(path.split("."))


def json_type(value: Json) -> str:
    """The name of a JSON value's type, for messages."""
    names = {str: "string", bool: "bool", int: "whole number", float: "number", list: "list", dict: "map"}
    return names.get(type(value), "null")


def with_article(noun: str) -> str:
    """`a bool`, `an int`, for messages."""
    return f"{'an' if noun[:1] in tuple('aeio') else 'a'} {noun}"


# ---------------------------------------------------------------- their declaration

#: Parameters and result of one way to call a function.
_Overload = tuple[tuple[Any, ...], Any]
#: The types of amounts, and those of JSON: the runtime passes no value to a parameter of type dyn.
_AMOUNTS = (_T.STRING, _T.INT, _T.DOUBLE)
_JSON = (*_AMOUNTS, _T.BOOL, _T.NULL, ANY_LIST, ANY_MAP)
_OF_WORDS: list[_Overload] = [((_T.STRING, _T.STRING), _T.BOOL)]
_OF_SETS: list[_Overload] = [((ANY_LIST, ANY_LIST), _T.BOOL)]
_GIVEN: list[_Overload] = [
    ((_T.STRING, _T.BOOL), _T.BOOL),
    ((_T.STRING, _T.INT), _T.INT),
    ((_T.STRING, _T.DOUBLE), _T.DYN),  # a double, or a whole number that no double holds
    ((_T.STRING, _T.STRING), _T.STRING),
    ((_T.STRING, _T.NULL), _T.DYN),
    ((_T.STRING, ANY_LIST), ANY_LIST),
    ((_T.STRING, ANY_MAP), ANY_MAP),
]
_OF_TEXT: list[_Overload] = [((_T.STRING,), ANY_MAP)]
#: Functions that are called on a list: `items.sum()`.
_METHODS: dict[str, tuple[Callable[..., Any], Any]] = {
    "flatten": (flatten, ANY_LIST),
    "distinct": (distinct, ANY_LIST),
    "sum": (total, _T.DYN),
    "min": (smallest, _T.DYN),
    "max": (largest, _T.DYN),
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], list[_Overload]]] = {
    "mentions": (mentions, _OF_WORDS),
    "starts": (starts, _OF_WORDS),
    "kind": (kind, [((_T.STRING,), _T.STRING)]),
    "same": (names.same, _OF_WORDS),
    "plain": (names.plain, [((_T.STRING,), _T.BOOL)]),
    "given": (given, _GIVEN),
    "texts": (texts, [((kind,), ANY_LIST) for kind in _JSON]),
    "row": (row, [((_T.STRING, _T.STRING), _T.DYN)]),
    "precedents.share": (share, [((_T.STRING,), _T.DOUBLE)]),
    "stated_times": (stated_times, [((), _T.List(_T.STRING))]),
    "sets.contains": (_contains, _OF_SETS),
    "sets.intersects": (_intersects, _OF_SETS),
    "sets.equivalent": (_equivalent, _OF_SETS),
    "shell": (shell, [((_T.STRING,), ANY_MAP), ((_T.STRING, _T.STRING), ANY_MAP)]),
    "sql": (statements.sql, _OF_TEXT),
    "url": (urls.url, _OF_TEXT),
    "path": (paths.path, [((_T.STRING, _T.STRING), ANY_MAP)]),
    "email": (mails.email, _OF_TEXT),
    "emails": (mails.emails, [((kind,), _T.List(ANY_MAP)) for kind in _JSON]),
    "decimal": (money.decimal, [((kind,), ANY_MAP) for kind in _JSON]),
    "decimal.compare": (money.compare, [(pair, _T.INT) for pair in itertools.product(_AMOUNTS, repeat=2)]),
    "cidr": (network.cidr, _OF_TEXT),
    "cidr.inside": (network.inside, _OF_WORDS),
}

#: Members of what `shell` gives; those of its `commands` are the fields of `shell_commands.Command`.
_SHELL = (
    "opaque", "commands", "paths", "reads", "writes", "urls", "kinds", "unknown", "runs_input", "wipes",
    "variables",
)  # fmt: skip
#: Members of the maps that functions give, by function: another one is a misspelling.
MEMBERS: dict[str, frozenset[str]] = {
    "cidr": frozenset(network.Range.__annotations__),
    "decimal": frozenset(money.Amount.__annotations__),
    "email": frozenset(mails.Mail.__annotations__),
    "path": paths.MEMBERS,
    "shell": frozenset(_SHELL),
    "sql": frozenset(statements.Sql.__annotations__),
    "url": urls.MEMBERS,
}
#: Every name of ours that a call may have.
NAMES = (*_FUNCTIONS, *_METHODS)
#: Those that are called on a list.
METHOD_NAMES = tuple(_METHODS)


def load(used: Collection[str]) -> None:
    """Load what functions of these names need and is loaded late, so that no request waits for it."""
    if "sql" in used:
        statements.load()
    if "shell" in used:
        importlib.import_module("thor_policy.policy.structure.shell")


def _declared(name: str, function: Any, overloads: list[_Overload], *, is_member: bool) -> Any:
    implementation = callable_from_cel(function)
    return cel.FunctionDecl(
        name,
        [
            cel.Overload(
                f"{name}_{number}",
                return_type=result,
                parameters=list(parameters),
                is_member=is_member,
                impl=implementation,
            )
            for number, (parameters, result) in enumerate(overloads)
        ],
    )


#: The declarations for the runtime.
DECLARED = [
    *(_declared(name, *functions, is_member=False) for name, functions in _FUNCTIONS.items()),
    *(
        _declared(name, function, [((ANY_LIST,), result)], is_member=True)
        for name, (function, result) in _METHODS.items()
    ),
]
