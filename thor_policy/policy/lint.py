"""Lint: every problem of a pack, with its place.

Owns the advice on a pack that loads; `pack_files` finds what keeps it from loading. Invariant: each finding
names its file, line and column, and a pack with an error is never activated. Pure, except that it reads the
pack's directory; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from thor_policy.core.lifting import UNREAD
from thor_policy.core.requests import Json
from thor_policy.policy.expressions import LARGE_TABLE
from thor_policy.policy.pack import Example, Manifest, Pack, expressions_of
from thor_policy.policy.pack_files import FILES, SIGNATURE, SUITES, Finding, PackFiles, examine
from thor_policy.policy.rule_specs import (
    MEMBER,
    STEP,
    Rule,
    paths_read,
    reads_only_subject_properties,
    texts_read,
)
from thor_policy.policy.structure import names
from thor_policy.policy.tokens import (
    absences_in,
    comparisons,
    kinds_compared,
    literal_values,
    member_comparisons,
    names_in,
    never_holds,
    paths_in,
    tokenise,
)


class _Parts(NamedTuple):
    """What can be said of a pack without running it. A part is None if its file cannot be read."""

    manifest: Manifest
    clauses: Mapping[str, str] | None
    rules: Sequence[Rule] | None
    examples: Sequence[Example] | None
    data: Mapping[str, Json]

    @property
    def labels(self) -> list[str]:
        return [outcome.label for outcome in self.manifest.outcomes]


def lint(path: Path) -> list[Finding]:
    """All problems of the pack in a directory, with their places, in the order of files and lines."""
    files = PackFiles(path)
    pack, findings = examine(files)
    if pack is not None:
        findings = lint_pack(pack)
    elif parts := _parts(files, findings):
        findings = [*findings, *_advice(parts), *_strays(path, parts.manifest)]
    return sorted(map(files.placed, findings), key=_order)


def lint_pack(pack: Pack) -> list[Finding]:
    """All problems of a pack that loads, without their places."""
    parts = _Parts(pack.manifest, pack.clauses, pack.book.rules, pack.examples, pack.data)
    return [*_advice(parts), *_answers_of_examples(pack), *_strays(pack.path, pack.manifest)]


def _parts(files: PackFiles, findings: Sequence[Finding]) -> _Parts | None:
    """The parts of a pack that does not load; None without a manifest."""
    values = files.values
    at_fault = {finding.file for finding in findings}
    manifest: Manifest | None = values.get("pack.yaml")
    if manifest is None or len(manifest.outcomes) < 2:
        return None

    def part(name: str, empty: Any) -> Any:
        return values.get(name, None if name in at_fault else empty)

    return _Parts(
        manifest=manifest,
        clauses=part("clauses.yaml", {}),
        rules=part("rules.yaml", ()),
        examples=part("examples.yaml", ()),
        data=values.get("data.yaml", {}),
    )


def _order(finding: Finding) -> tuple[int, int, int]:
    file = FILES.index(finding.file) if finding.file in FILES else len(FILES)
    return file, finding.line or 0, finding.column or 0


def _error(where: str, message: str, path: str = "$") -> Finding:
    return Finding(level="error", where=where, message=message, path=path)


def _warning(where: str, message: str, path: str = "$") -> Finding:
    return Finding(level="warning", where=where, message=message, path=path)


# ---------------------------------------------------------------- what names what


def _advice(parts: _Parts) -> Iterator[Finding]:
    """Everything but what examples come to."""
    yield from _problems_of_rules(parts)
    if parts.rules is not None:
        yield from _rules_without_effect(parts, parts.rules)
    yield from _impossible_comparisons(parts)
    yield from _problems_of_vocabulary(parts)
    yield from _problems_of_fields(parts.manifest)
    yield from _problems_of_texts(parts.manifest)
    yield from _members_that_nothing_sees(parts)
    yield from _large_tables(parts)
    if parts.examples is not None:
        yield from _problems_of_examples(parts, parts.examples)
    if parts.rules is not None and parts.examples is not None:
        cited = {rule.clause for rule in parts.rules} | {c for e in parts.examples for c in e.clauses}
        cited |= {vocabulary.clause for vocabulary in parts.manifest.vocabulary.values()}
        for clause in parts.clauses or ():
            if clause not in cited:
                message = "no rule and no example cites this clause"
                yield _warning(f"clauses.yaml {clause}", message, f"$.{clause}")


def _problems_of_rules(parts: _Parts) -> Iterator[Finding]:
    facts, clauses = parts.manifest.facts, parts.clauses
    for at, rule in enumerate(parts.rules or ()):
        where, path = f"rules.yaml rule {rule.id}", f"$[{at}]"
        if rule.clause is not None and clauses is not None and rule.clause not in clauses:
            yield _error(where, f"clause {rule.clause!r} does not exist", f"{path}.clause")
        if rule.clause is None and clauses:
            message = "cites no clause, so its answers cannot be traced to the policy text"
            yield _warning(where, message, path)
        if rule.classification is not None and rule.classification not in parts.manifest.classifications:
            message = f"classification {rule.classification!r} is not in pack.yaml"
            yield _error(where, message, f"{path}.classification")
        settles = rule.final and rule.outcome == parts.labels[0]
        if settles and reads_only_subject_properties(rule, facts):
            message = "is a final allow that depends only on properties which the caller asserts"
            yield _warning(where, message, f"{path}.when")
        if settles and not parts.manifest.vocabulary and "action.name" in paths_read(rule, facts):
            message = "is a final allow that reads action.name, and the pack has no vocabulary; add one"
            yield _warning(where, message, f"{path}.when")
        if settles:
            yield from _asserted_though_offered(parts.manifest, rule, where, f"{path}.when")
        if settles and "same" in names_in(rule.when):
            message = (
                "is a final allow that calls same(..), which is true for names that only look alike; use =="
            )
            yield _warning(where, message, f"{path}.when")


def _asserted_though_offered(manifest: Manifest, rule: Rule, where: str, path: str) -> Iterator[Finding]:
    """A final allow that believes the caller what a source says, or holds because a source says nothing."""
    read = paths_read(rule, manifest.facts)
    for name, source in manifest.sources.items():
        for attribute in source.attributes:
            asserted = {f"{source.of}.properties.{attribute}", f"context.{attribute}"} & read
            offered = f"sources.{name}.{attribute}"
            if asserted and offered not in read:
                message = (
                    f"is a final allow that rests on {min(asserted)}, which the caller asserts; "
                    f"{offered} offers it"
                )
                yield _warning(where, message, path)
    for text in texts_read(rule, manifest.facts):
        for name in sorted(absences_in(text) & manifest.sources.keys()):
            source = manifest.sources[name]
            if not source.required or source.types:
                message = (
                    f"is a final allow that may hold because sources.{name} says nothing; make the source "
                    "required and of every type, or let the rule demand a stricter outcome"
                )
                yield _warning(where, message, path)


def _problems_of_fields(manifest: Manifest) -> Iterator[Finding]:
    for at, field in enumerate(manifest.fields):
        where, path = f"pack.yaml fields {field.name}", f"$.fields[{at}].value"
        root, _, rest = field.value.partition(".")
        name = rest.partition(".")[0]
        members = {"subject": ("type", "id", "properties"), "action": ("name", "properties")}
        members["resource"] = members["subject"]
        if root not in ("subject", "action", "resource", "context", "facts"):
            roots = "subject, action, resource, context or facts"
            yield _error(where, f"{field.value!r} must begin with {roots}", path)
        elif root == "facts" and name not in manifest.facts:
            yield _error(where, f"there is no fact {name!r}", path)
        elif root == "facts" and name.startswith(STEP):
            message = f"{name!r} is a step, which no model is shown; rename it to {name.lstrip(STEP)!r}"
            yield _error(where, message, path)
        elif root in members and name not in members[root]:
            yield _error(where, f"{field.value}: {root} has the members {', '.join(members[root])}", path)
        elif field.rest and root in members and name != "properties":
            yield _error(where, f"{field.value} is no map, so there is no rest of it", path)


def _problems_of_texts(manifest: Manifest) -> Iterator[Finding]:
    for path in manifest.limits.texts:
        if not MEMBER.fullmatch(path):
            message = (
                f"{path!r} must be a path below context, or below properties of subject, action or resource"
            )
            yield _error("pack.yaml limits.texts", message, f"$.limits.texts.{path}")


def _members_that_nothing_sees(parts: _Parts) -> Iterator[Finding]:
    """Readings of the two members of the context that only approvals and obligations read."""
    texts = expressions_of(parts.manifest, parts.rules or ())
    read = {path for text in texts for path in paths_in(text)}
    read |= {field.value for field in parts.manifest.fields} | parts.manifest.reads.keys()
    for member in UNREAD:
        for path in sorted(read):
            if f"{path}.".startswith(f"context.{member}."):
                message = f"{path} is only for approvals and obligations: rules and prompt never see it"
                yield _error("pack.yaml", message)


def _large_tables(parts: _Parts) -> Iterator[Finding]:
    texts = [*parts.manifest.facts.values(), *(rule.when for rule in parts.rules or ())]
    read = {".".join(path.split(".")[:2]) for text in texts for path in paths_in(text)}
    for name, table in parts.data.items():
        if isinstance(table, dict) and len(table) >= LARGE_TABLE and f"data.{name}" in read:
            message = f"has {len(table)} rows, which data.{name} copies for each request"
            yield _warning(f"data.yaml {name}", f'{message}; row("{name}", ..) reads one row', f"$.{name}")


def _problems_of_examples(parts: _Parts, examples: Sequence[Example]) -> Iterator[Finding]:
    for at, example in enumerate(examples):
        where, path = f"examples.yaml {example.id}", f"$[{at}]"
        if example.outcome not in parts.labels:
            message = f"outcome {example.outcome!r} is not one of {', '.join(parts.labels)}"
            yield _error(where, message, f"{path}.outcome")
        if example.classification not in parts.manifest.classifications:
            message = f"classification {example.classification!r} is not in pack.yaml"
            yield _error(where, message, f"{path}.classification")
        for number, clause in enumerate(example.clauses):
            if parts.clauses is not None and clause not in parts.clauses:
                yield _error(where, f"clause {clause!r} does not exist", f"{path}.clauses[{number}]")
    if parts.manifest.model != "never":
        for label in parts.labels:
            if not any(example.outcome == label for example in examples):
                yield _warning("examples.yaml", f"no example shows the outcome {label!r}")


def _strays(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """Files that are no part of the pack; the tables that its sources name belong beside it."""
    places = (source.table or source.sqlite for source in manifest.sources.values())
    named = {Path(place.path).parts[0] for place in places if place is not None}
    known = (*FILES, SIGNATURE, *SUITES, *named)
    for stray in sorted(path.name for path in folder.iterdir() if path.name not in known):
        yield _warning(stray, "is not part of a pack; the digest does not cover it")


# ---------------------------------------------------------------- what examples come to


def _answers_of_examples(pack: Pack) -> Iterator[Finding]:
    """Examples that the rules contradict, or on which they fail."""
    for at, example in enumerate(pack.examples):
        where, path = f"examples.yaml {example.id}", f"$[{at}]"
        if example.outcome not in pack.labels:
            continue
        floor = pack.book.apply(example.evaluation, example.at, sources=pack.stated(example.sources))
        if floor.unavailable:
            names = ", ".join(floor.unavailable)
            message = f"does not state what {names} says; add `sources: {{{floor.unavailable[0]}: {{..}}}}`"
            yield _error(where, message, path)
            continue
        for name in example.sources.keys() - pack.manifest.sources.keys():
            yield _error(where, f"there is no source {name!r} in pack.yaml", f"{path}.sources.{name}")
        for name, message in floor.errors.items():
            yield _error(where, f"{name} fails on this example: {message}", path)
        if floor.missing:
            yield _error(where, f"lacks what the pack requires: {', '.join(floor.missing)}", path)
        if pack.book.stricter(floor.outcome, example.outcome) != example.outcome:
            demand = f"{', '.join(floor.rules)} demand {floor.outcome}"
            yield _error(where, f"says {example.outcome}, but {demand}", f"{path}.outcome")
        if floor.final and floor.outcome != example.outcome:
            message = f"says {example.outcome}, but a final rule answers {floor.outcome}"
            yield _error(where, message, f"{path}.outcome")
        if floor.risk != example.risk:
            message = f"says risk {example.risk}, but the risk expression gives {floor.risk}"
            yield _error(where, message, f"{path}.risk")


# ---------------------------------------------------------------- rules that decide nothing


def _rules_without_effect(parts: _Parts, all_rules: Sequence[Rule]) -> Iterator[Finding]:
    """Rules that can never fire, or never decide, whatever the request."""
    rank = parts.labels.index
    # An index of the file for each rule of a known outcome.
    places = [at for at, rule in enumerate(all_rules) if rule.outcome in parts.labels]
    rules = [all_rules[at] for at in places]
    forms = [" ".join(token.text for token in tokenise(rule.when)) for rule in rules]
    always = [rule for rule, form in zip(rules, forms, strict=True) if form == "true"]
    for at, (rule, form) in enumerate(zip(rules, forms, strict=True)):
        same = [other for other, text in zip(rules, forms, strict=True) if text == form and other is not rule]
        stricter = [other for other in same if rank(other.outcome) > rank(rule.outcome)]
        over = [other for other in always if rank(other.outcome) > rank(rule.outcome)]
        twins = [other for other in rules[:at] if other in same and other.outcome == rule.outcome]
        contradiction = never_holds(rule.when)
        level: Literal["error", "warning"] = "error" if contradiction or stricter else "warning"
        if contradiction:
            message = f"can never fire: {contradiction}"
        elif stricter:
            message = (
                f"can never decide: {stricter[0].id} has its condition and demands {stricter[0].outcome}"
            )
        elif form == "true" and rule.outcome == parts.labels[-1]:
            message = f"always fires, so every answer of this pack is {rule.outcome}"
        elif over:
            message = f"can never decide: {over[0].id} always fires and demands {over[0].outcome}"
        elif twins:
            message = f"has the condition and the outcome of {twins[0].id}"
        elif _changes_nothing(rule, parts):
            message = "has no effect on the outcome; make it final or remove it"
        else:
            continue
        yield Finding(
            level=level, where=f"rules.yaml rule {rule.id}", message=message, path=f"$[{places[at]}].when"
        )


def _changes_nothing(rule: Rule, parts: _Parts) -> bool:
    """True for an allow that neither settles anything nor keeps a stricter default away."""
    loosest, manifest = parts.labels[0], parts.manifest
    has_model, default = manifest.model != "never", manifest.default in (None, loosest)
    return rule.outcome == loosest and not rule.final and has_model and default


def _expressions(parts: _Parts) -> Iterator[tuple[str, str, str]]:
    """Each expression of a pack: where it is, its path there, and its text."""
    for name, text in parts.manifest.facts.items():
        yield f"pack.yaml fact {name}", f"$.facts.{name}", text
    for at, rule in enumerate(parts.rules or ()):
        yield f"rules.yaml rule {rule.id}", f"$[{at}].when", rule.when
    yield "pack.yaml risk", "$.risk", parts.manifest.risk or ""
    for name, (text, _) in parts.manifest.trace.expressions.items():
        place = name.replace(":", ".")
        yield f"pack.yaml {place}", f"$.{place}", text


def _impossible_comparisons(parts: _Parts) -> Iterator[Finding]:
    """Comparisons of a fact with a text that the fact never is."""
    values = {name: literal_values(text) for name, text in parts.manifest.facts.items()}
    for where, path, text in _expressions(parts):
        for fact, literal in comparisons(text):
            possible = values.get(fact)
            if possible is not None and literal not in possible:
                listed = ", ".join(sorted(map(repr, possible)))
                message = f"compares {fact} with {literal!r}, but {fact} is one of {listed}"
                yield Finding(level="warning", where=where, message=message, path=path)


def _problems_of_vocabulary(parts: _Parts) -> Iterator[Finding]:
    """Clauses and classes that are not there, and comparisons with names that no member has."""
    vocabularies = parts.manifest.vocabulary
    for path, vocabulary in vocabularies.items():
        where, place = f"pack.yaml vocabulary {path}", f"$.vocabulary.{path}"
        if (
            vocabulary.clause is not None
            and parts.clauses is not None
            and vocabulary.clause not in parts.clauses
        ):
            yield _error(where, f"clause {vocabulary.clause!r} does not exist", f"{place}.clause")
        classification = vocabulary.classification
        if classification is not None and classification not in parts.manifest.classifications:
            message = f"classification {classification!r} is not in pack.yaml"
            yield _error(where, message, f"{place}.classification")
    for where, place, text in _expressions(parts):
        for path, literal, respelt, _ in member_comparisons(text, parts.manifest.facts):
            known = vocabularies[path].kinds if path in vocabularies else {literal}
            spellings = {names.identifier(name) for name in known} if respelt else known
            if literal and (names.identifier(literal) if respelt else literal) not in spellings:
                message = f"compares {path} with {literal!r}, which its vocabulary does not have"
                yield _error(where, message, place)
        for path, literal in kinds_compared(text):
            kinds = vocabularies[path].kinds.values() if path in vocabularies else (literal,)
            if literal and literal not in kinds:
                message = f"compares kind({path!r}) with {literal!r}, which no name of its vocabulary has"
                yield _error(where, message, place)
