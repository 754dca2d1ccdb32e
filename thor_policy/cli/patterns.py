"""`patterns`: groups of similar corrections and exceptions, and rules that would answer them."""

from __future__ import annotations

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.daemon import journal_access, loading
from thor_policy.learning.exceptions import CounterExample
from thor_policy.learning.patterns import Pattern
from thor_policy.learning.patterns import find as find_patterns


@click.command()
@configured("state_dir", "pack")
@click.option("--since", help="Only decisions from this RFC 3339 time on.")
@as_json
def patterns(config: Config, since: str | None, as_json: bool) -> None:
    """Group similar corrections and exceptions, and propose rules for them.

    A rule is proposed from `pattern_cases` cases on (a setting). Nothing is put in force: a proposal is text
    for the pack's rules.yaml, with its effect on past decisions and the nearest decisions against it.
    """
    with journal_access.open_reader(config) as reader, render.counting("decisions evaluated") as progress:
        result = find_patterns(
            reader,
            loading.load_pack(config),
            since=since,
            proposed_from=config.pattern_cases,
            progress=progress,
        )
    if as_json:
        render.as_json(msgspec.to_builtins(result))
        return
    decisions = (
        f"{result.looked_at:,} decisions" if result.complete else f"newest {result.looked_at:,} decisions"
    )
    render.line(f"{decisions}; {result.reviewed:,} reviewed, {result.corrected:,} corrected")
    if result.claimed:
        render.line(f"{result.claimed:,} claimed exceptions are left out (setting count_from)")
    if result.overturned:
        render.line(f"{result.overturned:,} overturned exceptions are left out")
    for number, pattern in enumerate(result.patterns, 1):
        show_pattern(number, pattern)
    for name, rates in result.rates.items():
        if rates:
            render.line("")
            render.table(
                (name, "reviewed", "corrected", "most often", ""),
                [
                    (
                        rate.value,
                        rate.reviewed,
                        rate.corrected,
                        rate.most_often,
                        "systematic" if rate.systematic else "",
                    )
                    for rate in rates
                ],
            )
    if result.trend:
        render.line("")
        render.table(("week", "reviewed", "corrected"), result.trend)
    render.line("")
    render.line("This cannot show: " + "; ".join(result.cannot_see) + ".")


def _counter_example(example: CounterExample) -> str:
    """One line: the decision, what was right for it, and how it differs from the cases."""
    by = "as reviewed" if example.reviewed else "not reviewed"
    differs = ", ".join(f"not {text}" for text in example.differs[:3]) or "nothing tells it from the cases"
    share = f"{100 * example.similarity:.0f} % alike"
    return f"{example.decision_id[-8:]} {example.right} ({by}), {share}: {differs}"


def show_pattern(number: int, pattern: Pattern) -> None:
    """Print a pattern with its proposed rule, or why there is none."""
    render.line("")
    rows: dict[str, object] = {
        "cases": f"{len(pattern.cases)}, from {pattern.first[:10]} to {pattern.last[:10]}",
        "such as": ", ".join(case[-8:] for case in pattern.cases[: 3 if pattern.proposal is None else 20]),
        "in common": "\n".join(pattern.common[:8]) or "no condition that a rule could use",
    }
    if pattern.reasons:
        rows["reasons share"] = ", ".join(pattern.reasons[:8])
    if (proposal := pattern.proposal) is None:
        rows["no rule"] = pattern.why_not
    else:
        effect = ", ".join(f"{change}: {count}" for change, count in proposal.changes.items())
        rows["proposed rule"] = proposal.rule.rstrip()
        rows["would have changed"] = f"{effect}; {proposal.loosened} loosened, {proposal.tightened} tightened"
        rows["of these"] = (
            f"{proposal.agree} as reviewed, {proposal.against} against their review, "
            f"{proposal.unreviewed} not reviewed"
        )
        if proposal.warnings:
            rows["lint"] = "\n".join(proposal.warnings)
    for example in pattern.counter_examples:
        rows.setdefault("counter-examples", "")
        rows["counter-examples"] = f"{rows['counter-examples']}\n{_counter_example(example)}".lstrip()
    render.pairs(rows, title=f"{number}. {pattern.kind}s: {pattern.change}")
