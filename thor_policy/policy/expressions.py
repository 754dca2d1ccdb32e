"""The language of a pack's facts and rules: CEL, checked before it is run.

Owns the CEL library (the C++ runtime of the CEL project), the functions that packs may call, and the places
of faults. Invariant: an expression that does not check is never run, and a checked one gives a value or an
error, never an exception. A `Language` belongs to one pack; any thread may check and run with it.

Variables: `subject`, `action`, `resource` and `context` (as in AuthZEN), `now` (the daemon's receipt time, a
timestamp), `data` (the tables of data.yaml), `sources` (what the sources of the pack said), and each fact
above an expression, by its name. Docs: docs/reference/packs.md.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_math, ext_optional, ext_strings

from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Evaluation, Json, is_time
from thor_policy.policy import functions
from thor_policy.policy.cel_calls import error_of
from thor_policy.policy.faults import Fault, call_of, faults_of_members, faults_of_tokens
from thor_policy.policy.functions import ANY_LIST, ANY_MAP, EXACT, json_type, with_article
from thor_policy.policy.precedent_specs import shares_of
from thor_policy.policy.structure.programs import Faulty
from thor_policy.policy.tokens import (
    ROOTS,
    Token,
    arguments_of,
    bound_in,
    kind_of_literal,
    literal_of,
    names_in,
    position,
    tokenise,
    variables_in,
)
from thor_policy.policy.words import WordLists

#: Characters kept of the error message of an expression.
_MAX_ERROR_CHARS = 200
#: What is wrong with an expression that the runtime's parser refuses for its depth.
TOO_DEEP = "nests deeper than 32 levels; split it into facts"
#: Rows of a table of data.yaml from which on lint advises `row(..)`: `data.TABLE[..]` copies the table.
LARGE_TABLE = 200

#: Members of the roots that are no maps. A request always has them.
_MEMBERS = {
    "subject.type": "string",
    "subject.id": "string",
    "subject.properties": "map",
    "action.name": "string",
    "action.properties": "map",
    "resource.type": "string",
    "resource.id": "string",
    "resource.properties": "map",
}
#: A type that a pack can declare for a member of a request, or for an attribute of a source.
MemberType: TypeAlias = Literal[
    "bool", "int", "number", "string", "timestamp", "list", "list(string)", "list(number)", "map"
]
_T = cel.Type
#: The types that `requires` and `reads` name, as the checker sees them.
TYPES: dict[str, Any] = {
    "bool": _T.BOOL,
    "int": _T.INT,
    "number": _T.DYN,  # a JSON number: whole or not
    "string": _T.STRING,
    "timestamp": _T.STRING,  # RFC 3339 text; `timestamp(..)` reads it
    "list": ANY_LIST,
    "list(string)": _T.List(_T.STRING),
    "list(number)": ANY_LIST,
    "map": ANY_MAP,
}
#: What an argument that comes from the request begins with, and the problem with such a pattern.
_REQUEST = ("subject", "action", "resource", "context", "given", "texts")
_PATTERN_OF_REQUEST = (
    "the request gives the pattern, which takes its length times that of the text; use contains"
)
_EXTENSIONS = [
    ext_strings.ExtStrings(),
    ext_optional.ExtOptional(),
    ext_bindings.ExtBindings(),
    ext_math.ExtMath(),
]
_FAULT = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*?)(?: \(in container ''\))?(?=\n|$| \[)")
_NOT_THERE = re.compile(r'No value with name "([^"]*)" found in Activation')
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
#: Functions whose literal argument can be wrong, by name: how to try it.
_LITERAL_CALLS = {
    "matches": "''.matches({})",
    **{name: f"{name}({{}})" for name in ("timestamp", "duration", "int", "uint", "double", "bool")},
    **{
        f"get{part}": f"timestamp(0).get{part}({{}})"
        for part in (
            "Date",
            "DayOfMonth",
            "DayOfWeek",
            "DayOfYear",
            "FullYear",
            "Hours",
            "Milliseconds",
            "Minutes",
            "Month",
            "Seconds",
        )
    },
}


class Type(NamedTuple):
    """The type of an expression, as the checker infers it; `name` is CEL's name for it.

    `call` is the function of `functions.MEMBERS` that gives the whole expression, if it is such a call.
    """

    name: str
    native: Any
    call: str = ""


class Program:
    """Checked expressions that are run together; each run gives all their values, or one error.

    `reads` are the variables that they use: each one that a run is given costs time.
    """

    def __init__(self, expression: Any, reads: Sequence[str]) -> None:
        self._expression = expression
        self._reads = tuple(reads)

    def run(self, inputs: Mapping[str, Any]) -> list[Any] | str:
        """The values, or the message of the first error. Inputs are those of `Language.inputs`, and facts."""
        try:
            try:
                used = {name: inputs[name] for name in self._reads}
            except KeyError:  # a fact that failed is not there
                used = {name: inputs[name] for name in self._reads if name in inputs}
            values = self._expression.eval(data=used).plain_value()
        except Exception as error:  # a value that the binding cannot pass on; it raises SystemError too
            return _short(error_of(str(error)))
        return values if type(values) is list else _short(error_of(str(values)))


class Language:
    """CEL for one pack: its word lists, its tables, and the members that it declares with their types.

    `vocabularies` are the paths of the members that have one. `sources` has the types of the attributes of
    each source. `outcomes_of_precedents` are the pack's outcomes, if its rules see precedents.
    """

    def __init__(
        self,
        *,
        words: WordLists,
        data: Mapping[str, Json] | None = None,
        members: Mapping[str, str] | None = None,
        vocabularies: Collection[str] = (),
        sources: Mapping[str, Mapping[str, str]] | None = None,
        outcomes_of_precedents: Collection[str] = (),
    ) -> None:
        self._words = words
        self._vocabularies = tuple(vocabularies)
        self._data = _plain(data or {})
        self._members = dict(members or {})
        self._variables: dict[str, Any] = {name: TYPES[kind] for name, kind in _MEMBERS.items()}
        self._variables |= {"context": ANY_MAP, "now": _T.TIMESTAMP}
        self._variables |= {f"data.{name}": _table_type(table) for name, table in self._data.items()}
        self._outcomes_of_precedents = tuple(outcomes_of_precedents)
        if self._outcomes_of_precedents:
            self._variables["precedents.count"] = _T.INT
        self._sources = {name: dict(attributes) for name, attributes in (sources or {}).items()}
        self._variables |= {f"sources.{name}": ANY_MAP for name in self._sources}
        #: The types of declared members and of attributes, by path.
        self._declared = self._members | {
            f"sources.{name}.{attribute}": kind
            for name, attributes in self._sources.items()
            for attribute, kind in attributes.items()
        }
        self._tables = {f"data.{name}": table for name, table in self._data.items()}
        #: Environments by the names and types that they declare: making one costs more than compiling in it.
        self._environments: dict[frozenset[tuple[str, str]], Any] = {}

    # ------------------------------------------------------------ checking

    def check(self, text: str, facts: Mapping[str, Type]) -> Type | list[Fault]:
        """The type of an expression that may use `facts`, or its faults."""
        tokens = list(tokenise(text))
        checked = self._without_presence_tests(text, tokens)
        named = {name: facts[name].native for name in names_in(text) if name in facts}
        declared = {name: TYPES[kind] for name, kind in self._declared.items()}
        environment = self._environment(named | declared)
        try:
            native = environment.compile(checked).return_type()
        except RuntimeError as error:
            return self._faults(str(error), text, facts)
        faults = [
            *self._faults_of_calls(text, tokens),
            *self._faults_of_sources(text, tokens),
            *faults_of_members(text, tokens, {name: fact.call for name, fact in facts.items() if fact.call}),
            *faults_of_tokens(text, tokens),
        ]
        return faults or Type(native.name(), native, call_of(tokens))

    def compile(
        self, texts: Sequence[str], facts: Collection[str], within: Mapping[str, str] | None = None
    ) -> Program:
        """Checked expressions as one program. Raises RuntimeError if they nest too deeply together.

        It computes the facts `within`, name -> text, for those that come later, and gives their values first.
        """
        within = within or {}
        names = set().union(*map(names_in, (*within.values(), *texts)))
        functions.load(names)
        environment = self._environment(dict.fromkeys(facts, _T.DYN))
        paths = names.union(*map(variables_in, (*within.values(), *texts)))
        reads = [
            name
            for name in (*self._variables, *facts)
            if name not in within and any(path == name or path.startswith(f"{name}.") for path in paths)
        ]
        program = "[" + ",".join(f"{text}\n" for text in (*within, *texts)) + "]"
        for name, text in reversed(list(within.items())):
            program = f"cel.bind({name}, {text}\n, {program})"
        return Program(environment.compile(program), reads)

    def forget_environments(self) -> None:
        """Free what a pack's checking needed, 0.2 MB an expression; later ones make it anew."""
        self._environments.clear()

    def _environment(self, variables: Mapping[str, Any]) -> Any:
        key = frozenset((name, native.name()) for name, native in variables.items())
        if key not in self._environments:
            self._environments[key] = cel.NewEnv(
                variables={**self._variables, **variables},
                extensions=_EXTENSIONS,
                functions=functions.DECLARED,
            )
        return self._environments[key]

    def _without_presence_tests(self, text: str, tokens: Sequence[Token]) -> str:
        """The text with `true` for each `has(..)` of a declared member, which the checker cannot resolve.

        A declared member is a variable with a type of its own for the checker. The length does not change.
        """
        for at, token in enumerate(tokens):
            if token.text == "has" and at + 1 < len(tokens) and tokens[at + 1].text == "(":
                close = next((n for n in range(at + 2, len(tokens)) if tokens[n].text == ")"), at)
                if "".join(part.text for part in tokens[at + 2 : close]) in self._declared:
                    begin, end = tokens[at + 2].offset, tokens[close].offset + 1
                    before, after = text[token.offset : begin], text[begin + len("true") : end]
                    blanks = [re.sub(r"[^\n]", " ", part) for part in (before, after)]
                    text = text[: token.offset] + blanks[0] + "true" + blanks[1] + text[end:]
        return text

    def _faults(self, report: str, text: str, facts: Collection[str]) -> list[Fault]:
        faults = {}
        for line, column, message in _FAULT.findall(report):
            place = max(1, int(line)), max(1, int(column))
            if name := _UNDECLARED.fullmatch(message):
                message = self._undeclared(name[1], facts)
                place = place[0], _start_of_name(text, *place, name[1])
            elif "recursion depth" in message:
                message = TOO_DEEP
            elif "parsetree" in message:
                continue  # the parser's word for what it could not read; the error itself follows
            message = message.partition(" expecting {")[0].strip()
            faults[place] = Fault(line=place[0], column=place[1], message=message)
        if not faults:
            message = TOO_DEEP if "recursion" in report else report
            return [Fault(line=1, column=1, message=_short(message))]
        return list(faults.values())

    def _undeclared(self, name: str, facts: Collection[str]) -> str:
        root, _, rest = name.partition(".")
        if root == "data":
            table = rest.partition(".")[0]
            return f"there is no table {table!r} in data.yaml" if table else "write data.TABLE"
        if root == "sources":
            name = rest.partition(".")[0]
            return f"there is no source {name!r} in pack.yaml" if name else "write sources.NAME.ATTRIBUTE"
        if root == "precedents":
            if not self._outcomes_of_precedents:
                return "pack.yaml lets no rule see precedents; add `precedents: {rules: true}`"
            return "write precedents.count or precedents.share(OUTCOME)"
        if root in ("subject", "action", "resource"):
            members = [member.split(".")[1] for member in _MEMBERS if member.startswith(f"{root}.")]
            return f"{name}: {root} has the members {', '.join(members)}" + (
                f"; write {root}.properties.{rest}" if rest and "properties" in members else ""
            )
        if name in functions.METHOD_NAMES:
            return f"{name} is called on a list: LIST.{name}()"
        if name in functions.NAMES:
            return f"{name} is called with another number of arguments"
        known = [*ROOTS, *facts, *functions.NAMES]
        near = difflib.get_close_matches(name, known, n=1)
        return f"there is no name {name!r} here" + (f"; did you mean {near[0]!r}?" if near else "")

    def _faults_of_calls(self, text: str, tokens: Sequence[Token]) -> Iterator[Fault]:
        """Faults of literal arguments, which the checker does not look at."""
        bound = bound_in(tokens)
        for at, token in enumerate(tokens):
            if token.kind != "name" or at + 2 >= len(tokens) or tokens[at + 1].text != "(":
                continue
            arguments = arguments_of(tokens, at + 1)
            first = arguments[0] if arguments else []
            last = arguments[-1] if arguments else []
            literal = last[0].text if len(last) == 1 and last[0].kind == "string" else None
            problem = None
            if token.text in ("mentions", "starts") and len(arguments) == 2:
                named = literal_of(arguments[1])
                if named is not None and named not in self._words:
                    problem, first = f"there is no word list {named!r} in pack.yaml", arguments[1]
            elif token.text == "kind" and len(arguments) == 1:
                named = literal_of(first)
                if named is not None and named not in self._vocabularies:
                    problem = f"there is no vocabulary {named!r} in pack.yaml"
            elif token.text == "row" and len(arguments) == 2:
                named = literal_of(first)
                if named is not None and named not in self._data:
                    problem = f"there is no table {named!r} in data.yaml"
            elif token.text == "share" and at > 1 and tokens[at - 2].text == "precedents":
                problem = self._fault_of_share(literal_of(first))
            elif token.text == "shell" and len(arguments) == 2:
                problem, first = self._fault_of_programs(literal_of(arguments[1])), arguments[1]
            elif token.text == "given" and len(arguments) == 2:
                problem = self._fault_of_given(first, arguments[1])
            elif token.text == "has" and len(arguments) == 1:
                path = "".join(part.text for part in first)
                if path in _MEMBERS and first[0].text not in bound:
                    problem = f"{path} is always there; remove has({path})"
            elif token.text == "matches" and any(part.text in _REQUEST for part in last):
                problem, first = _PATTERN_OF_REQUEST, last
            elif token.text in _LITERAL_CALLS and literal is not None:
                problem, first = _try_literal(_LITERAL_CALLS[token.text].format(literal)), last
            if problem:
                line, column = position(text, (first or [token])[0].offset)
                yield Fault(line=line, column=column, message=problem)

    def _fault_of_share(self, outcome: str | None) -> str | None:
        """What is wrong with a call of `precedents.share`."""
        known = self._outcomes_of_precedents
        if not known:
            return "pack.yaml lets no rule see precedents; add `precedents: {rules: true}`"
        if outcome is not None and outcome not in known:
            return f"there is no outcome {outcome!r} in pack.yaml; there are {', '.join(known)}"
        return None

    def _faults_of_sources(self, text: str, tokens: Sequence[Token]) -> Iterator[Fault]:
        """Attributes that no source declares."""
        for at, token in enumerate(tokens):
            path = [part.text for part in tokens[at : at + 6] if part.text != "?"]
            if token.text != "sources" or len(path) < 5 or path[1::2][:2] != [".", "."]:
                continue
            known = self._sources.get(path[2])
            if known is not None and path[4] not in known and not (at and tokens[at - 1].text == "."):
                line, column = position(text, tokens[at + 4].offset)
                message = f"the source {path[2]} has no attribute {path[4]!r}; it has {', '.join(known)}"
                yield Fault(line=line, column=column, message=message)

    def _fault_of_programs(self, name: str | None) -> str | None:
        """What is wrong with a table of programs."""
        if name is None:
            return None
        if name not in self._data:
            return f"there is no table {name!r} in data.yaml"
        from thor_policy.policy.structure.shell import programs_of  # few packs call shell(..)

        try:
            programs_of(self._data[name])
        except Faulty as error:
            return f"data.yaml {name}: {error}"
        return None

    def _fault_of_given(self, path: Sequence[Token], default: Sequence[Token]) -> str | None:
        name = literal_of(path[:1])
        whole = len(path) == 1
        if name is None or not (whole or "." in name):
            return None
        root, _, rest = name.partition(".")
        if root not in ("subject", "action", "resource", "context") or (whole and not rest):
            return f"given reads subject, action, resource and context by a path; {name!r} is none of them"
        member = ".".join(name.split(".")[:2])
        if root != "context" and member not in _MEMBERS and (whole or "." in rest):
            return self._undeclared(name, ())
        if [token.text for token in default] == ["now"]:
            return "the default is a time, and a member of a request is a text; write string(now)"
        kind = self._members.get(name) if whole else None
        kind_of_default = kind_of_literal(default)
        if kind and kind_of_default and TYPES[kind] != TYPES[kind_of_default]:
            cure = f"; write {default[-1].text}.0" if (kind, kind_of_default) == ("number", "int") else ""
            return f"{name} is declared as {kind}, and the default is {with_article(kind_of_default)}{cure}"
        return None

    # ------------------------------------------------------------ running

    def inputs(
        self,
        evaluation: Evaluation,
        received_at: float,
        sources: Mapping[str, Mapping[str, Json]] | None = None,
        precedents: Sequence[Precedent] = (),
    ) -> dict[str, Any]:
        """The variables of one request. Programs of this thread read this request until the next call.

        `sources` has attributes of their declared types by source; one that is not in it is absent.
        `precedents` are read only where the pack lets rules see them.
        """
        who, what, on = evaluation.subject, evaluation.action, evaluation.resource
        subject = {"type": _plain(who.type), "id": _plain(who.id), "properties": _plain(who.properties)}
        action = {"name": _plain(what.name), "properties": _plain(what.properties)}
        resource = {"type": _plain(on.type), "id": _plain(on.id), "properties": _plain(on.properties)}
        context = _plain(evaluation.context)
        seen = precedents if self._outcomes_of_precedents else ()
        functions.evaluating(
            {"subject": subject, "action": action, "resource": resource, "context": context},
            self._data,
            self._words,
            shares_of(seen) if seen else None,
        )
        inputs = {
            "subject.type": subject["type"],
            "subject.id": subject["id"],
            "subject.properties": subject["properties"],
            "action.name": action["name"],
            "action.properties": action["properties"],
            "resource.type": resource["type"],
            "resource.id": resource["id"],
            "resource.properties": resource["properties"],
            "context": context,
            "precedents.count": len(seen),
            "now": datetime.fromtimestamp(received_at, UTC),
            **self._tables,
        }
        for name in self._sources:
            inputs[f"sources.{name}"] = _plain((sources or {}).get(name, {}))
        return inputs

    def set_names(self, inputs: dict[str, Any], values: Mapping[str, Json]) -> None:
        """Let expressions read these values at members of the request of `inputs`, which must have them."""
        for path, value in values.items():
            if path in inputs:
                inputs[path] = value
            parent: Json = functions.roots()
            *steps, last = path.split(".")
            for step in steps:
                parent = parent[step]
            parent[last] = value

    def members_at_fault(self, required: Collection[str]) -> dict[str, str]:
        """What is wrong with the declared members of the request of `inputs`: path -> problem.

        A member that is not `required` may be absent; null is absent. A number gets its declared type.
        """
        problems: dict[str, str] = {}
        for path, kind in self._members.items():
            parent: Json = functions.roots()
            *steps, last = path.split(".")
            for step in steps:
                parent = parent.get(step) if isinstance(parent, dict) else None
            value = parent.get(last) if isinstance(parent, dict) else None
            if value is None:
                if isinstance(parent, dict):
                    parent.pop(last, None)
                if path in required:
                    problems[path] = "is missing"
            elif (typed := as_type(value, kind)) is None:
                problems[path] = f"is a {json_type(value)}, not {with_article(kind)}"
            elif typed is not value:
                parent[last] = typed
        return problems


def _start_of_name(text: str, line: int, column: int, name: str) -> int:
    """Where a name begins that the checker reports at its last dot, or a function that it reports at `(`."""
    content = text.split("\n")[line - 1] if line <= text.count("\n") + 1 else ""
    begin = content.rfind(name, 0, column - 1 + len(name))
    if begin < 0 and content.startswith(name, column):  # it stands behind `has(`
        begin = column
    return begin + 1 if begin >= 0 else column


@functools.lru_cache(maxsize=1024)
def _try_literal(expression: str) -> str | None:
    """The error of a call with a literal argument; None if it works."""
    value = cel.NewEnv(extensions=_EXTENSIONS).compile(expression).eval()
    return _short(str(value.plain_value())) if value.type() == _T.ERROR else None


# ---------------------------------------------------------------- values


def _plain(value: Json) -> Json:
    """A copy of JSON that the runtime reads as it is.

    Whole doubles from 2^53 on become integers: the runtime compares an integer with a double inexactly. 2^63
    becomes the next double, because the runtime says that it equals the integer 2^63-1. NUL becomes U+FFFD:
    the runtime's binding ends a string at NUL, which would hide the rest from every rule.
    """
    if type(value) is str:
        return value if "\0" not in value else value.replace("\0", "\ufffd")
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) is list:
        return [_plain(item) for item in value]
    if type(value) is float and abs(value) >= EXACT:
        if -(2**63) <= value < 2**63:
            return int(value)
        return math.nextafter(value, math.inf) if value == 2**63 else value
    return value


def as_type(value: Json, kind: str) -> Json:
    """The value with its declared type; None if it does not have it."""
    if kind == "number":
        exact = type(value) is int and abs(value) < EXACT
        return float(value) if exact else value if type(value) in (int, float) else None
    if kind == "int":
        whole = type(value) is float and value.is_integer() and abs(value) < EXACT
        return int(value) if whole else value if type(value) is int else None
    if kind == "timestamp":
        # the runtime reads no blank between date and time
        return value if isinstance(value, str) and is_time(value) and value[10] in "Tt" else None
    if kind.startswith("list"):
        inner = {"list(string)": (str,), "list(number)": (int, float)}.get(kind)
        fits = type(value) is list and (inner is None or all(type(item) in inner for item in value))
        return value if fits else None
    python = {"bool": bool, "string": str, "map": dict}[kind]
    return value if type(value) is python else None


def _table_type(table: Json) -> Any:
    return ANY_MAP if isinstance(table, dict) else ANY_LIST if isinstance(table, list) else _T.DYN


def is_json(value: Any) -> bool:
    """True for what a fact may be: numbers of 64 bits, text, booleans, null, and lists and maps of them."""
    if type(value) is dict:
        return all(type(key) is str and is_json(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_json, value))
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or type(value) in (str, bool)


def _short(message: str) -> str:
    """An error message of the runtime without its code, bounded. Only failed facts have no value."""
    message = _NOT_THERE.sub(r"reads the fact \1, which failed", message)
    return re.sub(r"^[A-Z_]+: ", "", message)[:_MAX_ERROR_CHARS]
