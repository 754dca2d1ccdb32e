"""Policy packs: a versioned directory of clauses, rules, examples and the output contract.

Owns the files under `prompts/` and every byte of prompt text. Invariant: the prefix depends on the pack
alone, the question on the evaluation and its facts alone, and nothing inside a request can end the line
that holds it. Loaded on the main thread; immutable, so any thread may render.

A pack's sha256 covers its five files and is the policy version. A sixth may say who vouches for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import NODEFAULT, Meta, Struct

from thor_policy.core import (
    Evaluation,
    Fixed,
    Floor,
    FreeText,
    Json,
    Obligation,
    OneOf,
    PackInfo,
    PromptPrefix,
    Risk,
    SomeOf,
    Step,
    Turn,
)
from thor_policy.errors import PackError, RequestError
from thor_policy.rules import Rule, RuleBook, asserted_properties

#: The files of a pack, all required; the digest covers them in this order.
FILES = ("pack.yaml", "clauses.yaml", "rules.yaml", "system.md", "examples.yaml")
#: The file that the digest does not cover: who vouches for the pack (`signing`).
SIGNATURE = "pack.sig"

#: Strings of this form need no quotes: no space, no quote, no line end, no bracket of a special token.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,63}")
#: Parts that every request has: a first field that shows one begins every question alike.
_ALWAYS_THERE = ("subject.type", "subject.id", "action.name", "resource.type", "resource.id")
#: Where msgspec found something wrong, and the steps that lead there: a name, or a number in a list.
_PLACE = re.compile(r" - at `(?:key in )?(\$[^`]*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")
#: How an answer begins; a label follows.
_ANSWER_HEAD = "outcome:"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Outcome(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One label of the closed list, and what an answer with it obliges the caller to do."""

    label: str
    obligations: tuple[Obligation, ...] = ()


class Field(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the question: `name: value`, where `value` is a dotted path into the request or facts.

    Absent values leave no line.
    """

    name: str
    value: str


class Abstention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An allow that the model is less sure of than `below` (by risk) becomes `outcome`."""

    outcome: str
    below: dict[Risk, Annotated[float, Meta(ge=0, le=1)]]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value longer than `max_field_chars` (its quotes aside) is shown cut short, with an ellipsis; one
    longer than `max_text_chars` is refused, for too much of it would go unread. `max_clauses` bounds
    citations.
    """

    max_reasoning_tokens: Annotated[int, Meta(ge=1)] = 48
    max_field_chars: Annotated[int, Meta(ge=1)] = 160
    max_text_chars: Annotated[int, Meta(ge=1)] = 2000
    max_clauses: Annotated[int, Meta(ge=1)] = 3
    abstain: Abstention | None = None


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """pack.yaml. Without `cache`, every question is put to the model, however often it was asked before."""

    name: str
    version: str
    description: str
    outcomes: tuple[Outcome, ...]
    classifications: tuple[str, ...]
    fields: tuple[Field, ...]
    risk: str
    words: dict[str, tuple[str, ...]] = {}
    facts: dict[str, str] = {}
    default_floor: str = ""
    supersedes: str | None = None
    limits: Limits = Limits()
    cache: bool = True


class Example(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One few-shot example; `at` (Unix seconds) stands in for the receipt time."""

    id: str
    evaluation: Evaluation
    outcome: str
    classification: str
    risk: Risk
    clauses: tuple[str, ...]
    reasoning: str
    at: float = 1_767_279_600.0  # 2026-01-01 15:00 UTC, a Thursday


class Finding(Struct, frozen=True, kw_only=True):
    """What lint has to say: an `error` makes the pack unusable, a `warning` is for its author."""

    level: str
    where: str
    message: str


class Pack:
    """A loaded pack. Attributes are read-only; `path` is the directory it came from."""

    def __init__(
        self,
        *,
        path: Path,
        manifest: Manifest,
        clauses: Mapping[str, str],
        rules: tuple[Rule, ...],
        system: str,
        examples: tuple[Example, ...],
        sha256: str,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.clauses = dict(clauses)
        self.examples = examples
        self.system = system
        self.info = PackInfo(name=manifest.name, version=manifest.version, sha256=sha256)
        self.labels = tuple(outcome.label for outcome in manifest.outcomes)
        self.obligations = {outcome.label: outcome.obligations for outcome in manifest.outcomes}
        self.default_floor = manifest.default_floor or self.labels[0]
        self.book = RuleBook(
            outcomes=self.labels,
            facts=manifest.facts,
            rules=rules,
            risk=manifest.risk,
            words=manifest.words,
            where=str(path),
        )
        self.prefix = self._full_prefix()
        self.brief_prefix = self._prefix([Turn(role="system", text=f"{manifest.description}\n{self._order}")])

    @property
    def loosest(self) -> str:
        """The only outcome that is an AuthZEN `decision: true`."""
        return self.labels[0]

    @property
    def strictest(self) -> str:
        """The outcome of every failure."""
        return self.labels[-1]

    def question(self, evaluation: Evaluation, facts: Mapping[str, Json]) -> str:
        """The text of one evaluation: a line per field that is present, in the pack's order.

        Raises RequestError `too_large` naming the field that is too long to be judged.
        """
        limits = self.manifest.limits
        roots = msgspec.to_builtins(evaluation) | {"facts": facts}
        lines = []
        for field in self.manifest.fields:
            value = _look_up(roots, field.value)
            if value is not None:
                if (size := _text_size(value)) > limits.max_text_chars:
                    raise RequestError(
                        "too_large",
                        f"{field.value}: has {size} characters; the limit is {limits.max_text_chars}",
                    )
                lines.append(f"{field.name}: {_show(value, limits.max_field_chars)}")
        return "\n".join(lines)

    def brief_question(self, evaluation: Evaluation, floor: Floor) -> str:
        """The text of one evaluation behind `brief_prefix`: no clause is shown there, so it ends with what
        the rules demand and why. Raises RequestError `too_large`.
        """
        because = f", for {floor.because}" if floor.because else ""
        return f"{self.question(evaluation, floor.facts)}\nrules ask: {floor.outcome}{because}"

    def explanation_steps(self, outcome: str, floor: Floor) -> tuple[Step, ...]:
        """How an answer goes on after `outcome:`.

        Where the rules alone settled the outcome, their clause and reason are stated, not asked for.
        """
        by_rules = floor.settles(outcome)
        limits = self.manifest.limits
        classes = tuple(f" {name}" for name in self.manifest.classifications)
        cited = tuple(f" {clause}" for clause in (floor.clauses if by_rules else self.clauses))
        steps: list[Step] = [Fixed(text=f" {outcome}\nclass:")]
        if by_rules and floor.classification:
            steps.append(OneOf(name="classification", options=(f" {floor.classification}",)))
        else:
            steps.append(OneOf(name="classification", options=classes))
        steps.append(Fixed(text="\nclauses:"))
        if by_rules:
            steps.append(Fixed(text=",".join(cited) or " none"))
        else:
            steps.append(SomeOf(name="clauses", options=cited, most=limits.max_clauses))
        steps.append(Fixed(text="\nbecause:"))
        if by_rules:
            steps.append(Fixed(text=f" {floor.because}"))
        else:
            steps.append(FreeText(name="reasoning", max_tokens=limits.max_reasoning_tokens))
        return tuple(steps)

    def revised(
        self, *, rules: Sequence[Rule] | None = None, examples: Sequence[Example] | None = None
    ) -> Pack:
        """This pack with other rules or examples, for lint and for trying out; no file has its digest.

        Raises PackError where a rule cannot be used.
        """
        return Pack(
            path=self.path,
            manifest=self.manifest,
            clauses=self.clauses,
            rules=self.book.rules if rules is None else tuple(rules),
            system=self.system,
            examples=self.examples if examples is None else tuple(examples),
            sha256="",
        )

    def _full_prefix(self) -> PromptPrefix:
        clauses = "\n".join(f"{name}: {text}" for name, text in self.clauses.items())
        turns = [Turn(role="system", text=f"{self.system.strip()}\n\nClauses:\n{clauses}\n\n{self._order}")]
        for example in self.examples:
            facts = self.book.apply(example.evaluation, example.at).facts
            turns.append(Turn(role="user", text=self.question(example.evaluation, facts)))
            told = answer(example.outcome, example.classification, example.clauses, example.reasoning)
            turns.append(Turn(role="assistant", text=told))
        return self._prefix(turns)

    @property
    def _order(self) -> str:
        return f"Outcomes, loosest first: {' < '.join(self.labels)}"

    def _prefix(self, turns: Sequence[Turn]) -> PromptPrefix:
        first = self.manifest.fields[0]
        return PromptPrefix(
            pack_sha256=self.info.sha256,
            turns=tuple(turns),
            answer_head=_ANSWER_HEAD,
            question_head=f"{first.name}:" if first.value in _ALWAYS_THERE else "",
            labels=tuple(f" {label}" for label in self.labels),
        )


def answer(outcome: str, classification: str, clauses: Sequence[str], reasoning: str) -> str:
    """A whole answer as examples show it; `reasoning` is one line."""
    cited = ", ".join(clauses) or "none"
    return f"{_ANSWER_HEAD} {outcome}\nclass: {classification}\nclauses: {cited}\nbecause: {reasoning}"


# ---------------------------------------------------------------- loading


def find(name_or_dir: str, prompts_dir: Path) -> Path:
    """Directory of a pack given by name (under `prompts_dir`) or by path."""
    if _NAME.fullmatch(name_or_dir) and (prompts_dir / name_or_dir / "pack.yaml").is_file():
        return prompts_dir / name_or_dir
    try:
        path = Path(name_or_dir).expanduser()
    except RuntimeError as error:
        raise PackError(f"no pack {name_or_dir!r}: {error}") from error
    if "/" in name_or_dir or path.is_dir():
        if (path / "pack.yaml").is_file():
            return path.absolute()
        raise PackError(f"{path} is not a policy pack: it has no pack.yaml")
    known = ", ".join(available(prompts_dir)) or "none"
    raise PackError(f"no pack {name_or_dir!r}; known packs: {known} (or give a directory)")


def available(prompts_dir: Path) -> list[str]:
    """Names of the packs under `prompts_dir`."""
    return sorted(path.parent.name for path in prompts_dir.glob("*/pack.yaml"))


def load(path: Path, trusted: Sequence[str] = ()) -> Pack:
    """Load the pack in directory `path`. Raises PackError naming file and field.

    `trusted` names files with public keys; where there are any, one of them has to have signed what was read.
    """
    digest = hashlib.sha256()
    texts: dict[str, str] = {}
    for name in FILES:
        try:
            content = (path / name).read_bytes()
            texts[name] = content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PackError(f"{path / name}: cannot be read: {error}") from error
        digest.update(len(name).to_bytes(4, "big") + name.encode())
        digest.update(len(content).to_bytes(8, "big") + content)

    manifest = parse_yaml(texts["pack.yaml"], Manifest, path / "pack.yaml")
    clauses = parse_yaml(texts["clauses.yaml"], dict[str, str], path / "clauses.yaml")
    rules = parse_yaml(texts["rules.yaml"], tuple[Rule, ...], path / "rules.yaml")
    examples = parse_yaml(texts["examples.yaml"], tuple[Example, ...], path / "examples.yaml")
    _check(path, manifest, clauses, rules, examples)
    pack = Pack(
        path=path,
        manifest=manifest,
        clauses=clauses,
        rules=rules,
        system=texts["system.md"],
        examples=examples,
        sha256=digest.hexdigest(),
    )
    if trusted:
        from thor_policy import signing  # cryptography, which nobody else here needs

        signing.check_pack(pack.info, path / SIGNATURE, map(Path, trusted))
    return pack


def parse_yaml(text: str, kind: Any, where: Path | str) -> Any:
    """YAML text as a value of type `kind`. Raises PackError with file, and line or field."""
    try:
        raw = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a safe loader)
        return msgspec.convert(raw, kind)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise PackError(f"{where}:{line} {getattr(error, 'problem', error)}") from error
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        raise PackError(f"{where}: line {line_of(text, place[1] if place else '$')}: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise PackError(f"{where}: {error}") from error


def line_of(text: str, place: str) -> int:
    """Line, from 1, of a place such as `$.rules[2].when` in YAML that parses; else of what is around it."""
    node, line = yaml.compose(text, Loader=yaml.CSafeLoader), 1
    for key, index in _STEP.findall(place):
        if isinstance(node, yaml.SequenceNode) and index.isdecimal() and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode) and key:
            found = [pair for pair in node.value if pair[0].value == key]
            if not found:
                break
            line, node = found[-1][0].start_mark.line + 1, found[-1][1]
        else:
            break
    return line


def as_yaml(items: Sequence[Rule | Example]) -> str:
    """Rules or examples as their files have them; fields that are empty or at their default are left out."""
    told = [_lean(item) for item in items]
    return yaml.dump(told, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=110)


def _lean(item: Struct) -> dict[str, Any]:
    """The fields of a struct that are not at their default, as plain values."""
    lean: dict[str, Any] = {}
    for field in msgspec.structs.fields(item):
        value = getattr(item, field.name)
        if value != (field.default_factory() if field.default_factory is not NODEFAULT else field.default):
            lean[field.name] = _lean(value) if isinstance(value, Struct) else msgspec.to_builtins(value)
    return lean


class _StrictLoader(yaml.CSafeLoader):
    """Safe YAML in which a repeated key is an error, not a silent replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check(
    path: Path,
    manifest: Manifest,
    clauses: Mapping[str, str],
    rules: tuple[Rule, ...],
    examples: tuple[Example, ...],
) -> None:
    """Refuse what cannot be served at all; lint says the rest."""

    def refuse(file: str, message: str) -> None:
        raise PackError(f"{path / file}: {message}")

    labels = [outcome.label for outcome in manifest.outcomes]
    if not _NAME.fullmatch(manifest.name):
        refuse("pack.yaml", f"name {manifest.name!r} must be lower case letters, digits and hyphens")
    if len(labels) < 2:
        refuse("pack.yaml", "outcomes: at least two labels are needed, loosest first")
    for label in labels:
        if not _LABEL.fullmatch(label):
            refuse("pack.yaml", f"outcomes: {label!r} must be lower case letters, digits and '_'")
    for one, other in permutations(labels, 2):
        if other.startswith(one):
            refuse("pack.yaml", f"outcomes: {one!r} and {other!r} cannot be told apart")
    if manifest.default_floor and manifest.default_floor not in labels:
        refuse("pack.yaml", f"default_floor {manifest.default_floor!r} is not one of the outcomes")
    if not manifest.classifications:
        refuse("pack.yaml", "classifications: at least one is needed")
    for name in manifest.classifications:
        if manifest.classifications.count(name) > 1:
            refuse("pack.yaml", f"classifications: {name!r} appears twice")
    if not manifest.fields:
        refuse("pack.yaml", "fields: at least one is needed, or the model is asked nothing")
    abstain = manifest.limits.abstain
    if abstain and abstain.outcome not in labels[1:]:
        refuse("pack.yaml", f"limits.abstain.outcome {abstain.outcome!r} must be stricter than {labels[0]}")
    if not clauses:
        refuse("clauses.yaml", "at least one clause is needed")
    for kind, ids in (("rule", [r.id for r in rules]), ("example", [e.id for e in examples])):
        for twice in {name for name in ids if ids.count(name) > 1}:
            refuse(f"{kind}s.yaml", f"the id {twice!r} appears twice")


# ---------------------------------------------------------------- lint


def lint(pack: Pack) -> list[Finding]:
    """What is wrong with a pack that loads: each finding names its place."""
    findings: list[Finding] = []

    def error(where: str, message: str) -> None:
        findings.append(Finding(level="error", where=where, message=message))

    def warn(where: str, message: str) -> None:
        findings.append(Finding(level="warning", where=where, message=message))

    known = set(pack.manifest.classifications)
    for rule in pack.book.rules:
        where = f"rules.yaml {rule.id}"
        if rule.clause is not None and rule.clause not in pack.clauses:
            error(where, f"clause {rule.clause!r} does not exist")
        if rule.clause is None:
            warn(where, "cites no clause, so its answers cannot be traced to the policy text")
        if rule.classification is not None and rule.classification not in known:
            error(where, f"classification {rule.classification!r} is not in pack.yaml")
        if rule.final and asserted_properties(rule):
            warn(where, "a final allow that rests only on properties which the caller asserts")
    for field in pack.manifest.fields:
        root, _, name = field.value.partition(".")
        if root not in ("subject", "action", "resource", "context", "facts"):
            error(f"pack.yaml fields {field.name}", f"{field.value!r} starts at no part of a request")
        if root == "facts" and name not in pack.manifest.facts:
            error(f"pack.yaml fields {field.name}", f"there is no fact {name!r}")
    for example in pack.examples:
        where = f"examples.yaml {example.id}"
        if example.outcome not in pack.labels:
            error(where, f"outcome {example.outcome!r} is not one of {', '.join(pack.labels)}")
            continue
        if example.classification not in known:
            error(where, f"classification {example.classification!r} is not in pack.yaml")
        for clause in example.clauses:
            if clause not in pack.clauses:
                error(where, f"clause {clause!r} does not exist")
        floor = pack.book.apply(example.evaluation, example.at)
        for name, message in floor.errors.items():
            error(where, f"{name} fails on it: {message}")
        if pack.book.stricter(floor.outcome, example.outcome) != example.outcome:
            error(where, f"says {example.outcome}, but {', '.join(floor.rules)} demand {floor.outcome}")
        if floor.final and floor.outcome != example.outcome:
            error(where, f"says {example.outcome}, but a final rule answers {floor.outcome}")
        if floor.risk != example.risk:
            error(where, f"says risk {example.risk}, but the risk expression gives {floor.risk}")
    for label in pack.labels:
        if not any(example.outcome == label for example in pack.examples):
            warn("examples.yaml", f"no example shows the outcome {label!r}")
    cited = {rule.clause for rule in pack.book.rules} | {c for e in pack.examples for c in e.clauses}
    for clause in pack.clauses:
        if clause not in cited:
            warn(f"clauses.yaml {clause}", "no rule and no example cites it")
    for stray in sorted(path.name for path in pack.path.iterdir() if path.name not in (*FILES, SIGNATURE)):
        warn(stray, "is not part of a pack; the digest does not cover it")
    return findings


# ---------------------------------------------------------------- rendering


def _look_up(roots: Mapping[str, Json], path: str) -> Json:
    value: Json = roots
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _text_size(value: Json) -> int:
    """Characters in all strings of a JSON value."""
    if isinstance(value, Mapping):
        return sum(len(key) + _text_size(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_text_size, value))
    return len(value) if isinstance(value, str) else 0


def _show(value: Json, max_chars: int) -> str:
    """One line of text for any JSON value; equal values look equal whatever their key order."""
    if isinstance(value, Mapping):
        pairs = (f"{_show(key, 64)} {_show(value[key], max_chars)}" for key in sorted(value, key=str))
        return _cut(", ".join(pairs), max_chars)
    if isinstance(value, list | tuple):
        return _cut(", ".join(_show(item, max_chars) for item in value), max_chars)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else f"{value:.3e}"
    if value is None:
        return "none"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return _quote(text, max_chars)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _quote(text: str, max_chars: int) -> str:
    """JSON string in which every character that does not print is escaped: no line ends, no bidi tricks.

    It is cut between two characters, so that escapes stay whole and the closing quote stays.
    """
    if len(text) <= max_chars and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    shown = [_escaped(char) for char in text[: max_chars + 1]]
    if sum(map(len, shown)) > max_chars:
        while sum(map(len, shown)) > max_chars - 1:
            shown.pop()
        shown.append("…")
    return f'"{"".join(shown)}"'


def _escaped(char: str) -> str:
    shown = json.dumps(char, ensure_ascii=False)[1:-1]
    if shown.isprintable():
        return shown
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
