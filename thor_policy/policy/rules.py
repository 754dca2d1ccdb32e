"""The operator's rules: CEL over the request, and the floor they set.

Owns CEL. Invariant: a rule can only make the floor stricter, and so does an error: a rule that fails raises
the floor to its outcome, and any failure disables every `final` allow of that request. Pure: the same
evaluation and receipt time give the same floor; no clock is read. Compiled once, applied on the engine
thread.

Variables of an expression: `subject`, `action`, `resource` and `context` (as in AuthZEN), `now` (the
daemon's receipt time, a timestamp), and each fact computed so far, by its name. A fact that failed is not a
variable, so every expression that uses it fails too. Functions:

- `mentions(text, "list")`: whether an entry of the pack's word list occurs in the text, in any way of joining
  words (deleteAuditLog, delete-audit-log, DELETE_AUDIT).
- `starts(text, "list")`: whether the text begins with an entry of the word list.
- `given("context.timestamp", "")`: the value at a path, or the default if the value is absent or null. A
  value of another type than the default is an error.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import sys
import types
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import Floor
from thor_policy.core.errors import PackError
from thor_policy.core.requests import RISKS, Evaluation, Json, Risk

# cel imports its own command line and a terminal toolkit: 90 ms and 15 MB that no rule needs.
sys.modules.setdefault("cel.cli", types.ModuleType("cel.cli"))

import cel  # noqa: E402
from cel.stdlib import STDLIB_FUNCTIONS  # noqa: E402

# The warnings of cel quote hostile requests; Floor.errors has the same information.
logging.getLogger("cel").disabled = True

#: Characters kept of the error message of an expression.
_MAX_ERROR_CHARS = 200
_ROOTS = ("subject", "action", "resource", "context", "now")
#: Places where a capital starts a new word: `deleteLog`, `HTTPServer`.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|[0-9]+")
_FACT = re.compile(r"[a-z][a-z0-9_]*")
#: A word list that an expression names: the last argument of `mentions` or `starts`.
_WORD_LIST_NAME = re.compile(r"""\b(?:mentions|starts)\((?:[^()]|\([^()]*\))*,\s*["'](\w+)["']\s*\)""")


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """If the expression `when` is true, no outcome is looser than `outcome`.

    `final` (only with the loosest outcome) lets the rule decide without the model if no stricter rule
    matched. `clause` is the policy clause that it enforces; `because` is the reason in words.
    """

    id: str
    when: str
    outcome: str
    because: str
    clause: str | None = None
    classification: str | None = None
    final: bool = False


class RuleBook:
    """Compiled facts, rules and risk of one pack.

    `outcomes` lists the labels, loosest first. Raises PackError that names an expression that does not
    compile, an outcome that is not in the list, or a `final` rule whose outcome is not the loosest.
    """

    def __init__(
        self,
        *,
        outcomes: Sequence[str],
        facts: Mapping[str, str],
        rules: Sequence[Rule],
        risk: str,
        words: Mapping[str, Sequence[str]] | None = None,
        where: str = "pack",
    ) -> None:
        self._words = {
            name: _word_pattern(entries, f"{where}: words {name}") for name, entries in (words or {}).items()
        }
        self._rank = {outcome: rank for rank, outcome in enumerate(outcomes)}
        self._loosest, self._strictest = outcomes[0], outcomes[-1]
        self.rules = tuple(rules)
        for rule in rules:
            if rule.outcome not in self._rank:
                known = ", ".join(outcomes)
                raise PackError(f"{where}: rule {rule.id}: outcome {rule.outcome!r} is not one of {known}")
            if rule.final and rule.outcome != self._loosest:
                raise PackError(
                    f"{where}: rule {rule.id}: `final` is only for {self._loosest!r}, the loosest outcome"
                )
        for name in facts:
            if name in _ROOTS or not _FACT.fullmatch(name):
                raise PackError(
                    f"{where}: fact {name!r}: must be lower case letters, digits and '_', and none of "
                    f"{', '.join(_ROOTS)}"
                )
        self._facts = [(name, _compile(text, f"{where}: fact {name}")) for name, text in facts.items()]
        self._programs = [(rule, _compile(rule.when, f"{where}: rule {rule.id}: when")) for rule in rules]
        self._risk = _compile(risk, f"{where}: risk")
        for text in (*facts.values(), *(rule.when for rule in rules), risk):
            for name in _WORD_LIST_NAME.findall(text):
                if name not in self._words:
                    raise PackError(f"{where}: there is no word list {name!r} (in {text[:60]!r})")
        programs = [self._risk, *(program for _, program in (*self._facts, *self._programs))]
        used = {name for program in programs for name in program.functions()}
        # Only the functions that are called: each costs time in each request. cel calls `math.round` `round`.
        self._functions = {
            name: function for name, function in STDLIB_FUNCTIONS.items() if name.rpartition(".")[2] in used
        } | {"mentions": self._mentions, "starts": self._starts}

    def apply(self, evaluation: Evaluation, received_at: float) -> Floor:
        """Compute facts, rules and risk of one evaluation; `received_at` is Unix time in seconds.

        Never raises: `Floor.errors` names each failure, and a failure makes the floor stricter.
        """
        request = msgspec.to_builtins(evaluation)
        context = cel.Context(request, self._functions)
        context.add_function("given", functools.partial(_given, request))
        context.add_variable("now", datetime.fromtimestamp(received_at, UTC))
        errors: dict[str, str] = {}
        facts: dict[str, Json] = {}
        context.set_variable_resolver(facts.get)  # add_variable would rebuild the context for every fact
        for name, program in self._facts:
            value = _run(program, context, errors, f"fact:{name}", bool | int | float | str)
            if value is not None:
                facts[name] = value

        fired: list[Rule] = []
        finals: list[Rule] = []
        for rule, program in self._programs:
            holds = _run(program, context, errors, rule.id, bool)
            if holds is None:
                if rule.outcome != self._loosest:
                    fired.append(rule)
            elif holds:
                (finals if rule.final else fired).append(rule)
        fired.sort(key=lambda rule: -self._rank[rule.outcome])

        risk = _run(self._risk, context, errors, "risk", str)
        outcome = fired[0].outcome if fired else self._loosest
        deciding = [rule for rule in fired if rule.outcome == outcome]
        final = outcome == self._strictest
        if outcome == self._loosest and finals and not errors:
            deciding, final = finals, True
        return Floor(
            outcome=outcome,
            final=final,
            rules=tuple(rule.id for rule in dict.fromkeys((*fired, *deciding))),
            clauses=tuple(dict.fromkeys(rule.clause for rule in deciding if rule.clause)),
            because=_because(deciding, errors),
            classification=next((rule.classification for rule in deciding if rule.classification), None),
            facts=facts,
            errors=errors,
            risk=_as_risk(risk),
        )

    def _mentions(self, text: str, name: str) -> bool:
        return self._words[name].search(_plain_words(text)) is not None

    def _starts(self, text: str, name: str) -> bool:
        return self._words[name].match(_plain_words(text)) is not None

    def stricter(self, *outcomes: str) -> str:
        """The strictest of `outcomes`."""
        return max(outcomes, key=self._rank.__getitem__)


def reads_only_subject_properties(rule: Rule) -> bool:
    """True when a rule reads nothing but `subject.properties`, which the caller asserts."""
    paths = re.findall(r"\b(subject|action|resource|context|now)\b(?:\.(\w+))?", rule.when)
    return bool(paths) and all(root == "subject" and part == "properties" for root, part in paths)


@functools.lru_cache(maxsize=4096)
def _plain_words(text: str) -> str:
    """The words of a text, lower case, a space around each: `deleteAuditLog` is " delete audit log ".

    A capital inside a word splits it. The unsplit words follow, so that `dElete` hides nothing. Invisible
    characters are removed.
    """
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    split, unsplit = (" ".join(_WORD.findall(form.lower())) for form in (_CAMEL.sub(" ", text), text))
    return f" {split} " if split == unsplit else f" {split} | {unsplit} "


def _word_pattern(entries: Sequence[str], where: str) -> re.Pattern[str]:
    """Pattern that matches any entry: whole words; a `*` at either end of an entry matches any letters."""
    alternatives = []
    for entry in entries:
        words = re.escape(_plain_words(entry.strip("*")).strip())
        if not words:
            raise PackError(f"{where}: the entry {entry!r} holds no word; give letters or digits")
        alternatives.append(r"\w*" * entry.startswith("*") + words + r"\w*" * entry.endswith("*"))
    if not alternatives:
        raise PackError(f"{where}: the list is empty; add a word or remove the list")
    return re.compile(f" (?:{'|'.join(alternatives)}) ")


def _given(request: Mapping[str, Json], path: str, default: Json) -> Json:
    """Value at a dotted path; `default` if there is none. A default of null accepts any type."""
    value: Json = request
    for key in path.split("."):
        if not isinstance(value, dict):
            raise TypeError(f"{path}: {key!r} is looked up in a {type(value).__name__}")
        value = value.get(key)
        if value is None:
            return default
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise TypeError(f"{path}: a {type(value).__name__}, not a {type(default).__name__}")
    return value


def _because(deciding: Sequence[Rule], errors: Mapping[str, str]) -> str | None:
    reasons = [
        f"Rule {rule.id} could not be evaluated and counts as matched." if rule.id in errors else rule.because
        for rule in deciding
    ]
    return " ".join(dict.fromkeys(reasons)) or None


def _as_risk(value: Any) -> Risk:
    """The value if it is a risk; otherwise the highest risk, since an unknown risk may be high."""
    return next((risk for risk in RISKS if risk == value), RISKS[-1])


def _compile(text: str, where: str) -> cel.Program:
    try:
        return cel.compile(text)
    except ValueError as error:
        reason = str(error).splitlines()[0].removeprefix("Failed to parse expression ")
        raise PackError(f"{where}: not valid CEL: {reason}") from error


def _run(program: cel.Program, context: cel.Context, errors: dict[str, str], name: str, kind: Any) -> Any:
    """Value of `program`; None if it failed, with the message in `errors`."""
    try:
        value = program.execute(context)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the Rust library is not a subclass of Exception
        errors[name] = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
        return None
    if not isinstance(value, kind) or (isinstance(value, float) and math.isnan(value)):
        errors[name] = f"gave a {type(value).__name__}, not a {getattr(kind, '__name__', 'plain value')}"
        return None
    return value
