"""Lint: every problem of a pack, with its place.

Owns the advice on a pack that loads; `pack_files` finds what keeps it from loading. Invariant: each finding
names its file, line and column, and a pack with an error is never activated. Pure, except that it reads the
pack's directory; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from thor_policy.core.requests import RISKS
from thor_policy.policy.expressions import LARGE_TABLE
from thor_policy.policy.pack import Pack
from thor_policy.policy.pack_files import FILES, SIGNATURE, SUITES, Finding, PackFiles, examine
from thor_policy.policy.rules import Rule, reads_only_subject_properties
from thor_policy.policy.tokens import comparisons, literal_values, never_holds, paths_in, tokenise


def lint(path: Path) -> list[Finding]:
    """All problems of the pack in a directory, with their places."""
    pack, findings = examine(path)
    if pack is None:
        return findings
    files = PackFiles(path)
    return [files.placed(finding) for finding in lint_pack(pack)]


def lint_pack(pack: Pack) -> list[Finding]:
    """All problems of a pack that loads, without their places."""
    findings: list[Finding] = []

    def error(where: str, message: str, path: str = "$") -> None:
        findings.append(Finding(level="error", where=where, message=message, path=path))

    def warn(where: str, message: str, path: str = "$") -> None:
        findings.append(Finding(level="warning", where=where, message=message, path=path))

    known = set(pack.manifest.classifications)
    for at, rule in enumerate(pack.book.rules):
        where, path = f"rules.yaml rule {rule.id}", f"$[{at}]"
        if rule.clause is not None and rule.clause not in pack.clauses:
            error(where, f"clause {rule.clause!r} does not exist", f"{path}.clause")
        if rule.clause is None and pack.clauses:
            warn(where, "cites no clause, so its answers cannot be traced to the policy text", path)
        if rule.classification is not None and rule.classification not in known:
            message = f"classification {rule.classification!r} is not in pack.yaml"
            error(where, message, f"{path}.classification")
        if (
            rule.final
            and rule.outcome == pack.loosest
            and reads_only_subject_properties(rule, pack.manifest.facts)
        ):
            message = "is a final allow that depends only on properties which the caller asserts"
            warn(where, message, f"{path}.when")
    findings += _rules_without_effect(pack)
    findings += _impossible_comparisons(pack)
    for risk in sorted((literal_values(pack.manifest.risk or "") or set()) - set(RISKS)):
        error("pack.yaml risk", f"gives {risk!r}, which is not one of {', '.join(RISKS)}", "$.risk")
    for at, field in enumerate(pack.manifest.fields):
        where, path = f"pack.yaml fields {field.name}", f"$.fields[{at}].value"
        root, _, name = field.value.partition(".")
        members = {"subject": ("type", "id", "properties"), "action": ("name", "properties")}
        members["resource"] = members["subject"]
        if root not in ("subject", "action", "resource", "context", "facts"):
            roots = "subject, action, resource, context or facts"
            error(where, f"{field.value!r} must begin with {roots}", path)
        elif root == "facts" and name.partition(".")[0] not in pack.manifest.facts:
            error(where, f"there is no fact {name.partition('.')[0]!r}", path)
        elif root in members and name.partition(".")[0] not in members[root]:
            error(where, f"{field.value}: {root} has the members {', '.join(members[root])}", path)
    for name, table in pack.data.items():
        if isinstance(table, dict) and len(table) >= LARGE_TABLE:
            uses = [*pack.manifest.facts.values(), *(rule.when for rule in pack.book.rules)]
            read = {".".join(member.split(".")[:2]) for text in uses for member in paths_in(text)}
            if f"data.{name}" in read:
                message = f"has {len(table)} rows, which data.{name} copies for each request"
                warn(f"data.yaml {name}", f'{message}; row("{name}", ..) reads one row', f"$.{name}")
    for at, example in enumerate(pack.examples):
        where, path = f"examples.yaml {example.id}", f"$[{at}]"
        if example.outcome not in pack.labels:
            error(
                where,
                f"outcome {example.outcome!r} is not one of {', '.join(pack.labels)}",
                f"{path}.outcome",
            )
            continue
        if example.classification not in known:
            message = f"classification {example.classification!r} is not in pack.yaml"
            error(where, message, f"{path}.classification")
        for clause in example.clauses:
            if clause not in pack.clauses:
                error(where, f"clause {clause!r} does not exist", f"{path}.clauses")
        floor = pack.book.apply(example.evaluation, example.at)
        for name, message in floor.errors.items():
            error(where, f"{name} fails on this example: {message}", path)
        if floor.missing:
            error(where, f"lacks what the pack requires: {', '.join(floor.missing)}", path)
        if pack.book.stricter(floor.outcome, example.outcome) != example.outcome:
            demand = f"{', '.join(floor.rules)} demand {floor.outcome}"
            error(where, f"says {example.outcome}, but {demand}", f"{path}.outcome")
        if floor.final and floor.outcome != example.outcome:
            message = f"says {example.outcome}, but a final rule answers {floor.outcome}"
            error(where, message, f"{path}.outcome")
        if floor.risk != example.risk:
            message = f"says risk {example.risk}, but the risk expression gives {floor.risk}"
            error(where, message, f"{path}.risk")
    if not pack.rules_only:
        for label in pack.labels:
            if not any(example.outcome == label for example in pack.examples):
                warn("examples.yaml", f"no example shows the outcome {label!r}")
    cited = {rule.clause for rule in pack.book.rules} | {c for e in pack.examples for c in e.clauses}
    for clause in pack.clauses:
        if clause not in cited:
            warn(f"clauses.yaml {clause}", "no rule and no example cites this clause", f"$.{clause}")
    for stray in sorted(
        path.name for path in pack.path.iterdir() if path.name not in (*FILES, SIGNATURE, *SUITES)
    ):
        warn(stray, "is not part of a pack; the digest does not cover it")
    return findings


# ---------------------------------------------------------------- rules that decide nothing


def _rules_without_effect(pack: Pack) -> Iterator[Finding]:
    """Rules that can never fire, or never decide, whatever the request."""
    rank = pack.labels.index
    rules = pack.book.rules
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
        elif form == "true" and rule.outcome == pack.strictest:
            message = f"always fires, so every answer of this pack is {rule.outcome}"
        elif over:
            message = f"can never decide: {over[0].id} always fires and demands {over[0].outcome}"
        elif twins:
            message = f"has the condition and the outcome of {twins[0].id}"
        elif _changes_nothing(rule, pack):
            message = "has no effect on the outcome; make it final or remove it"
        else:
            continue
        yield Finding(level=level, where=f"rules.yaml rule {rule.id}", message=message, path=f"$[{at}].when")


def _changes_nothing(rule: Rule, pack: Pack) -> bool:
    """True for an allow that neither settles anything nor keeps a stricter default away."""
    default = pack.manifest.default in (None, pack.loosest)
    return rule.outcome == pack.loosest and not rule.final and not pack.rules_only and default


def _impossible_comparisons(pack: Pack) -> Iterator[Finding]:
    """Comparisons of a fact with a text that the fact never is."""
    values = {name: literal_values(text) for name, text in pack.manifest.facts.items()}
    texts = [
        (f"pack.yaml fact {name}", f"$.facts.{name}", text) for name, text in pack.manifest.facts.items()
    ]
    texts += [
        (f"rules.yaml rule {rule.id}", f"$[{at}].when", rule.when) for at, rule in enumerate(pack.book.rules)
    ]
    texts.append(("pack.yaml risk", "$.risk", pack.manifest.risk or ""))
    for where, path, text in texts:
        for fact, literal in comparisons(text):
            possible = values.get(fact)
            if possible is not None and literal not in possible:
                listed = ", ".join(sorted(map(repr, possible)))
                message = f"compares {fact} with {literal!r}, but {fact} is one of {listed}"
                yield Finding(level="warning", where=where, message=message, path=path)
