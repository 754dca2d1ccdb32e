"""Lint: problems of a pack that loads.

Owns the findings. Invariant: each finding names its file and place, and a pack with an error is never
activated. Pure, except that it lists the pack's directory; any thread.
"""

from __future__ import annotations

from msgspec import Struct

from thor_policy.policy.pack import Pack
from thor_policy.policy.pack_files import FILES, SIGNATURE
from thor_policy.policy.rules import reads_only_subject_properties


class Finding(Struct, frozen=True, kw_only=True):
    """One problem: an `error` makes the pack unusable, a `warning` is advice for its author."""

    level: str
    where: str
    message: str


# ---------------------------------------------------------------- lint


def lint_pack(pack: Pack) -> list[Finding]:
    """All problems of a pack that loads."""
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
        if rule.final and reads_only_subject_properties(rule):
            warn(where, "is a final allow that depends only on properties which the caller asserts")
    for field in pack.manifest.fields:
        root, _, name = field.value.partition(".")
        if root not in ("subject", "action", "resource", "context", "facts"):
            error(
                f"pack.yaml fields {field.name}",
                f"{field.value!r} must begin with subject, action, resource, context or facts",
            )
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
            error(where, f"{name} fails on this example: {message}")
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
            warn(f"clauses.yaml {clause}", "no rule and no example cites this clause")
    for stray in sorted(path.name for path in pack.path.iterdir() if path.name not in (*FILES, SIGNATURE)):
        warn(stray, "is not part of a pack; the digest does not cover it")
    return findings
