"""`patterns`: what corrections and exceptions have in common, and rules that would settle them."""

from __future__ import annotations

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.daemon import loading
from thor_policy.journal.reader import Reader
from thor_policy.learning.patterns import Pattern
from thor_policy.learning.patterns import find as find_patterns


@click.command()
@configured("state_dir", "pack")
@click.option("--since", help="Only decisions from this RFC 3339 time on.")
@as_json
def patterns(config: Config, since: str | None, as_json: bool) -> None:
    """Group what reviewers corrected, and propose rules from 15 similar cases on.

    Nothing is put in force: a proposal is text for the pack's rules.yaml, with its effect on past decisions.
    """
    with Reader(config.journal_path) as reader, render.counting("decisions weighed") as progress:
        found = find_patterns(reader, loading.load_pack(config), since=since, progress=progress)
    if as_json:
        render.as_json(msgspec.to_builtins(found))
        return
    older = "" if found.complete else ", the newest"
    render.line(
        f"{found.looked_at:,} decisions{older}; {found.reviewed:,} reviewed, {found.corrected:,} corrected"
    )
    for number, one in enumerate(found.patterns, 1):
        _show(number, one)
    for name, rates in found.rates.items():
        if rates:
            render.line("")
            render.table(
                (name, "reviewed", "corrected", "most often", ""),
                [
                    (r.value, r.reviewed, r.corrected, r.most_often, "systematic" if r.systematic else "")
                    for r in rates
                ],
            )
    if found.trend:
        render.line("")
        render.table(("week", "reviewed", "corrected"), found.trend)
    render.line("\nNot seen here: " + "; ".join(found.cannot_see) + ".")


def _show(number: int, one: Pattern) -> None:
    render.line("")
    told: dict[str, object] = {
        "cases": f"{len(one.cases)}, from {one.first[:10]} to {one.last[:10]}",
        "such as": ", ".join(case[-8:] for case in one.cases[:3]),
        "in common": "\n".join(one.common[:8]) or "nothing that a rule could say",
    }
    if one.proposal is None:
        told["no rule"] = one.why_not
    else:
        effect = ", ".join(f"{change}: {count}" for change, count in one.proposal.changes.items())
        told["proposed rule"] = one.proposal.rule.rstrip()
        told["would have changed"] = effect or "nothing"
        told["of these"] = (
            f"{one.proposal.agree} as reviewers wanted, {one.proposal.against} against them, "
            f"{one.proposal.unreviewed} that nobody reviewed"
        )
        if one.proposal.warnings:
            told["lint"] = "\n".join(one.proposal.warnings)
    render.pairs(told, title=f"{number}. {one.kind}s: {one.change}")
