"""The reference page of CEL: each feature that packs may use, its cases, and how many pass.

Owns docs/reference/cel.md, and the running of the cases of tests/data/cel_conformance.json, whose format
scripts/cel_conformance.py describes, and of tests/data/cel_own_cases.json: our own functions. Invariant: each
case is checked, compiled and run as the expression of a pack is. A case that demands an error passes if it is
refused at load. Any other case that is refused at load counts as refused, and `REFUSALS` must name its fault.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy.expressions import Language, Type
from thor_policy.policy.words import WordLists

DATA = Path(__file__).parent.parent / "tests" / "data"
FILES = ("cel_conformance.json", "cel_own_cases.json")

#: What a pack may use, and the files, or sections of files, whose cases it has.
FEATURES = {
    "literals, names, white space, nesting": ("basic", "parse", "plumbing"),
    "`&&`, `\\|\\|`, `!`, `? :`": ("logic",),
    "`==` `!=`": ("comparisons/bound", "comparisons/eq_literal", "comparisons/ne_literal"),
    "`<` `<=` `>` `>=`": (
        "comparisons/gt_literal",
        "comparisons/gte_literal",
        "comparisons/lt_literal",
        "comparisons/lte_literal",
    ),
    "`in`": ("comparisons/in_list_literal", "comparisons/in_map_literal", "fields/in", "lists/in"),
    "`+` `-` `*` `/` `%` of whole numbers": ("integer_math",),
    "`+` `-` `*` `/` of doubles": ("fp_math",),
    "maps: `m.key`, `m[key]`": (
        "fields/map_fields",
        "fields/quoted_map_fields",
        "fields/qualified_identifier_resolution",
    ),
    "lists: `l[0]`, `+`": ("lists/concatenation", "lists/index"),
    "`size`": ("lists/size", "string/size"),
    "`has`": ("fields/map_has",),
    "`all`": ("macros/all",),
    "`exists`": ("macros/exists",),
    "`exists_one`": ("macros/exists_one",),
    "`map`": ("macros/map",),
    "`filter`": ("macros/filter",),
    "macros inside each other": ("macros/nested",),
    "`cel.bind`": ("bindings_ext",),
    "optional values: `.?`, `[?`, `optional.of`, `orValue`, `hasValue`": ("optionals",),
    "`contains`, `startsWith`, `endsWith`, `+` of texts": (
        "string/bytes_concat",
        "string/concatenation",
        "string/contains",
        "string/ends_with",
        "string/starts_with",
    ),
    "`matches`": ("string/matches",),
    "`format`": ("string_ext/format", "string_ext/format_errors"),
    "`charAt`, `indexOf`, `join`, `lowerAscii`, `replace`, `split`, `substring`, `trim`, `strings.quote`": (
        "string_ext/ascii_casing",
        "string_ext/char_at",
        "string_ext/index_of",
        "string_ext/join",
        "string_ext/last_index_of",
        "string_ext/quote",
        "string_ext/replace",
        "string_ext/reverse",
        "string_ext/split",
        "string_ext/substring",
        "string_ext/trim",
        "string_ext/type_errors",
        "string_ext/value_errors",
    ),
    "`math.greatest`, `math.least`, `math.abs`, `math.ceil`, `math.round`, bits": ("math_ext",),
    "`timestamp`, `duration`, their parts and arithmetic": (
        "timestamps/comparisons",
        "timestamps/duration_conversions",
        "timestamps/duration_converters",
        "timestamps/duration_equality",
        "timestamps/duration_range",
        "timestamps/timestamp_arithmetic",
        "timestamps/timestamp_conversions",
        "timestamps/timestamp_equality",
        "timestamps/timestamp_range",
        "timestamps/timestamp_selectors",
    ),
    'time zones: `t.getHours("Europe/Rome")`': ("timestamps/timestamp_selectors_tz",),
    "`bool`, `bytes`, `double`, `dyn`, `int`, `string`, `type`, `uint`": ("conversions",),
    "types that the checker infers": ("type_deduction",),
    **{
        f"`{name}`": (f"own/{name}",)
        for name in (
            "given",
            "mentions",
            "starts",
            "row",
            "precedents.share",
            "flatten",
            "distinct",
            "sum",
            "min",
            "max",
            "sets.contains",
            "sets.equivalent",
            "sets.intersects",
        )
    },
}


class Refusal(NamedTuple):
    """Something of CEL that a pack cannot contain: the fault that refuses it, and what to write instead.

    `files` have cases of nothing else; without them any feature may have some.
    """

    what: str
    fault: str
    instead: str
    files: tuple[str, ...] = ()


#: The file of cases whose function `cidr` has the name of ours and another result: none of them is tried.
_NETWORKS = "network_ext"
REFUSALS = (
    Refusal("`cel.block`", "no name|simple identifier", "facts, or `cel.bind`", ("block_ext",)),
    Refusal("`base64`", "no name", "compare the encoded text", ("encoders_ext",)),
    Refusal(
        "macros with two variables", "no name", "a macro with a variable, over a list of keys", ("macros2",)
    ),
    Refusal(
        "IP addresses and networks as types",
        "no name",
        "[`cidr`](expressions.md#address-ranges), which has the name of CEL's and gives a map",
        (_NETWORKS,),
    ),
    Refusal(
        "an optional value that is kept, compared, or held by a list, a map or `dyn`",
        "optional value must be ended",
        "end it where it is: `.orValue(..)`, `.hasValue()`, `.value()`. In a list or map: `[?x]`, "
        '`{?"key": x}`',
    ),
    Refusal(
        "doubles from 2^53 to 2^63 as literals",
        "compared inexactly",
        "the whole number, without point and exponent",
    ),
    Refusal("NUL in a literal", "cannot contain NUL", "nothing: no text of a request has NUL"),
    Refusal("a map with the same key twice, also as `0` and `0u`", "twice", "one of the two"),
    Refusal("more than 31 levels of brackets", "nests deeper|recursion limit", "facts"),
    Refusal(
        "operands of two types, and names of members where a call needs another kind of value",
        "no matching overload|no name|expression of type|undeclared",
        "`dyn(..)` around an operand, or a conversion",
    ),
)
_UNCHECKED = REFUSALS[-1]

#: An expression of each type that a variable of a case has.
_EXAMPLES = {
    "bool": "true",
    "double": "1.0",
    "dyn": "dyn(1)",
    "int": "1",
    "list(int)": "[1]",
    "map(string, int)": '{"a": 1}',
    "map(string, string)": '{"a": "b"}',
    "null": "null",
    "string": '""',
}
#: The request, word list and tables of our own cases.
_REQUEST = Evaluation(
    subject=Entity(type="user", id="alice", properties={"role": "dba"}),
    action=Action(name="read"),
    resource=Entity(type="doc", id="handbook"),
    context={"flag": True, "count": 3, "items": [1, "a"], "map": {"k": {}}, "nothing": None, "text": "a"},
)
_WORDS = WordLists({"danger": ["delete*", "drop table"]})
_DATA = {"roles": {"dba": {"level": 3}}, "list": ["x"]}
_PRECEDENTS = [
    Precedent(id=str(number), outcome=outcome, how="similarity", line="")
    for number, outcome in enumerate(("deny", "mfa", "deny"))
]
_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ERROR = {"error": True}


class Result(NamedTuple):
    """What came of a case: it passed, it was refused at load, or it failed with `problem`."""

    place: str
    expression: str
    refusal: Refusal | None = None
    problem: str | None = None


@functools.lru_cache(maxsize=1)
def results() -> tuple[Result, ...]:
    """The results of all cases, in the order of the tables."""
    language = Language(words=_WORDS, data=_DATA, outcomes_of_precedents=("allow", "mfa", "deny"))
    return tuple(_run(language, file, section, case) for file, section, case in cases())


def cases() -> Iterator[tuple[str, str, list[Any]]]:
    """File, section and content of each case."""
    for name in FILES:
        for file, content in json.loads((DATA / name).read_text(encoding="utf-8")).items():
            for section, listed in content["sections"].items():
                for case in listed:
                    yield file, section, case


def _run(language: Language, file: str, section: str, case: list[Any]) -> Result:
    name, text, expected, *more = case
    options: Mapping[str, Any] = more[0] if more else {}
    place = f"{file}/{section}/{name}"
    if file == _NETWORKS:
        return _refused(place, file, text, expected == _ERROR, False, ["there is no name with CEL's meaning"])
    bindings, types = options.get("bindings", {}), options.get("types", {})
    facts = {variable: _type(language, types.get(variable, "dyn")) for variable in {**bindings, **types}}
    checked = language.check(text, facts)
    try:
        program = language.compile([text], facts) if isinstance(checked, Type) else None
        faults = [fault.message for fault in checked] if isinstance(checked, list) else []
    except RuntimeError as error:
        program, faults = None, [str(error)]
    if program is None or not isinstance(checked, Type):
        return _refused(place, file, text, expected == _ERROR, "unchecked" in options, faults)
    if isinstance(expected, dict) and "deduced" in expected:
        deduced, *expected_values = expected["deduced"]
        named = checked.name.lower().replace("<", "(").replace(">", ")")
        if named != deduced:
            return Result(place, text, problem=f"has the type {named}, not {deduced}")
        if not expected_values:
            return Result(place, text)
        expected = expected_values[0]
    values = program.run({**language.inputs(_REQUEST, _NOON, precedents=_PRECEDENTS), **bindings})
    if isinstance(values, str):
        return Result(place, text, problem=None if expected == _ERROR else f"fails: {values}")
    problem = None if is_same(values[0], expected) else f"gives {values[0]!r}, not {expected!r}"
    if (
        problem is None
        and (kind := _whole(expected))
        and not _has_kind(language, text, checked, kind, facts, bindings)
    ):
        problem = f"gives {values[0]!r}, which is no {kind}"
    return Result(place, text, problem=problem)


def _refused(
    place: str, file: str, text: str, demands_error: bool, unchecked: bool, faults: list[str]
) -> Result:
    offered = [refusal for refusal in REFUSALS if not refusal.files or file in refusal.files]
    named = [refusal for refusal in offered if re.search(refusal.fault, faults[0])]
    if named and named[0].files:
        return Result(place, text, refusal=named[0])
    if demands_error:
        return Result(place, text)
    if not named or (named[0] is _UNCHECKED and not unchecked):
        return Result(place, text, problem=f"is refused: {faults[0]}")
    return Result(place, text, refusal=named[0])


def _type(language: Language, name: str) -> Type:
    checked = language.check(_EXAMPLES[name], {})
    assert isinstance(checked, Type)
    return checked


def _whole(expected: Any) -> str | None:
    """`int` or `uint` where that is expected: in Python both are whole numbers."""
    if isinstance(expected, dict):
        return "uint" if "uint" in expected else None
    return "int" if type(expected) is int else None


def _has_kind(
    language: Language,
    text: str,
    checked: Type,
    kind: str,
    facts: Mapping[str, Type],
    bindings: Mapping[str, Any],
) -> bool:
    if checked.name != "DYN":
        return checked.name.lower() == kind
    program = language.compile([f"type({text}) == {kind}"], facts)
    return program.run({**language.inputs(_REQUEST, _NOON, precedents=_PRECEDENTS), **bindings}) == [True]


def is_same(value: Any, expected: Any) -> bool:
    """Whether a value of a program is the expected one of the table, with its type."""
    if not isinstance(expected, dict):
        if type(value) is not type(expected):
            return False
        if isinstance(expected, list):
            return len(value) == len(expected) and all(map(is_same, value, expected))
        same_sign = not isinstance(expected, float) or math.copysign(1, value) == math.copysign(1, expected)
        return bool(value == expected and same_sign)
    ((kind, content),) = expected.items()
    if kind == "map":
        pairs = [(_key(key), item) for key, item in content]
        fits = isinstance(value, dict) and len(value) == len(pairs)
        return fits and all(key in value and is_same(value[key], item) for key, item in pairs)
    if kind == "uint":
        return type(value) is int and bool(value == content)
    if kind == "double":
        return type(value) is float and bool(str(value) == content)
    if kind == "bytes":
        return isinstance(value, bytes | bytearray) and bool(value.hex() == content)
    if kind in ("timestamp", "duration"):
        length = timedelta(seconds=content[0], microseconds=content[1] / 1000)
        return bool(value == (_EPOCH + length if kind == "timestamp" else length))
    if kind == "type":
        short = content.rpartition(".")[2].removesuffix("_type").lower()
        return bool(str(value).partition("<")[0].lower() == short)
    return False


def _key(expected: Any) -> Any:
    return expected["uint"] if isinstance(expected, dict) else expected


# ---------------------------------------------------------------- the page

HEAD = """\
# CEL

Written by `scripts/cel-doc`. It runs the public conformance tests of the
[CEL project](https://github.com/google/cel-spec) through the checker and the runtime that packs
have. [Expressions](expressions.md) says what an expression sees, with an example for each function.

A case passes if it gives the value that the test demands, with its type. If the test demands an
error, the case passes if the expression fails, or is refused when the pack is loaded. The cases are
in `tests/data/cel_conformance.json`. Those of the last {own} features are our own, in
`tests/data/cel_own_cases.json`.

## Features

| feature | cases | passed | refused at load |
|---|---|---|---|
{features}
| **all** | {total} | {passed} | {refused} |

No case fails.

## What is refused at load

`thorpolicy packs lint` names the place of each. A pack with one of these cannot be loaded.

| what | cases | write instead |
|---|---|---|
{refusals}
| protobuf types and messages | | the value itself, `timestamp(..)`, `duration(..)` |

## What the checker cannot see

- A map that is built with the keys `0` and `uint("0")` has both. CEL demands an error. JSON has no
  unsigned numbers, so no map of a request has such keys.
- A whole number of a request is compared inexactly with a double that an expression computes, from
  2^53 on. Doubles of a request that are whole, and at least 2^53, are read as whole numbers; 2^63,
  which is none of 64 bits, is read as the next double.
- NUL in a text of a request is read as U+FFFD.
- Names of time zones are looked up in the time zone data of the machine. If a zone is missing there,
  a literal name is refused at load, and a computed one fails.

## Cases that were left out

{left_out} of the {tests} public tests are left out: no pack can contain them. (A container is a protobuf
package in which names are looked up.)

| file | taken | left out |
|---|---|---|
{files}
"""


def document() -> str:
    """The whole page."""
    by_feature: dict[str, Counter[str]] = {feature: Counter() for feature in FEATURES}
    by_refusal = Counter(result.refusal.what for result in results() if result.refusal)
    for result in results():
        if (feature := feature_of(result.place)) is not None:
            came_of_it = "refused" if result.refusal else "failed" if result.problem else "passed"
            by_feature[feature][came_of_it] += 1
    rows = [
        f"| {feature} | {counts.total()} | {counts['passed']} | {counts['refused'] or ''} |"
        for feature, counts in by_feature.items()
    ]
    total = sum(by_feature.values(), Counter[str]())
    table = json.loads((DATA / FILES[0]).read_text(encoding="utf-8"))
    return HEAD.format(
        own=sum(sections[0].startswith("own/") for sections in FEATURES.values()),
        features="\n".join(rows),
        total=total.total(),
        passed=total["passed"],
        refused=total["refused"],
        refusals="\n".join(
            f"| {refusal.what} | {by_refusal[refusal.what]} | {refusal.instead} |" for refusal in REFUSALS
        ),
        left_out=sum(map(_left_out, table.values())),
        tests=sum(_left_out(content) + _taken(content) for content in table.values()),
        files="\n".join(
            f"| `{name}` | {_taken(content)} | {_reasons(content['left_out'])} |"
            for name, content in table.items()
        ),
    )


def _taken(content: Mapping[str, Any]) -> int:
    return sum(map(len, content["sections"].values()))


def _left_out(content: Mapping[str, Any]) -> int:
    return sum(content["left_out"].values())


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def feature_of(place: str) -> str | None:
    """The feature that a case belongs to; None for a case of something that packs do not have."""
    file, section, _ = place.split("/", 2)
    named = [feature for feature, parts in FEATURES.items() if file in parts or f"{file}/{section}" in parts]
    assert len(named) <= 1
    return named[0] if named else None


if __name__ == "__main__":
    print(document(), end="")
