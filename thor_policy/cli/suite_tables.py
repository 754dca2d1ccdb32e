"""Tables of a run and a comparison, within 80 columns.

Owns their layout. Invariant: functions print plain values and decide nothing. Main thread.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from thor_policy.cli import render
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.policy.calibration import Sureness
from thor_policy.suites import leaks
from thor_policy.suites.comparison import Change, Comparison
from thor_policy.suites.conclusions import Conclusion, by_gravity, details
from thor_policy.suites.coverage import Coverage
from thor_policy.suites.figures import Figures, Group
from thor_policy.suites.intervals import Rate
from thor_policy.suites.model_effect import Effect, Outcomes
from thor_policy.suites.run_files import Item, Run, worst

#: What the figures are that are hard to guess from their names.
_LEGEND = (
    "rules alone: the rules' floor would have been right",
    "model alone: the model's own label, before the floor, where it was asked",
    "output structure: the share of the five parts of an answer that is there",
    "changed: outcomes stricter than the floor; rightly: only the outcome is right; wrongly: only the floor",
    "reasons replaced: reasons of the model that did not hold, of all that it gave",
    "ECE of attacked: of scenarios whose text attacks; by chance: what a perfectly calibrated model shows",
    "labels: answers of the model to questions with one right outcome",
    "tokens: mean of the questions that the model was asked",
    "more: docs/explanation/suites.md",
)
#: Columns of the report.
_WIDTH = 80


def show_conclusion(conclusion: Conclusion, *, with_coverage: bool) -> None:
    """Print the headline, every scenario, the figures, then each failure, the gravest kind first.

    What the status depends on beside the scenarios is printed last.
    """
    run, figures = conclusion.run, conclusion.figures
    items = by_gravity(worst(run.results).values())
    render.lines(_wrapped(conclusion.headline, "    "))
    for judge in run.judges:
        render.line("")
        if len(run.judges) > 1:
            render.line(judge.pack.name)
        _show_items([item for item in items if item.pack == judge.pack.name], conclusion)
    render.line("")
    if len(figures.by_pack) > 1:
        _show_groups("pack", figures.by_pack)
    _show_groups("difficulty", figures.by_difficulty)
    if figures.effects:
        show_effects((f"what the model adds to {effect.name}", effect) for effect in figures.effects)
    if figures.latency:
        rows = [(tier.tier, tier.count, tier.median_ms, tier.p95_ms, tier.max_ms) for tier in figures.latency]
        render.table(("answered by", "answers", "median ms", "p95 ms", "longest ms"), rows)
        render.line("")
    if figures.flips:
        flips = [
            (flip.id, f"{sum(flip.passed)} of {len(flip.passed)}", _listed(flip.outcomes), flip.shift)
            for flip in figures.flips
        ]
        render.table(("flipped", "passed", "outcomes", "probability moved"), flips)
        render.line("")
    render.pairs(_summary(run, figures))
    render.line("")
    for text in _LEGEND:
        render.line(f"  {text}")
    if with_coverage:
        show_coverage(run.coverage)
    for path in conclusion.blessed:
        render.line(f"baseline written: {path}")
    _show_failures(conclusion)
    if conclusion.failures or not conclusion.ok or conclusion.gate is not None:
        render.line("")
    for point in conclusion.points:
        for reason in point.reasons if point.status == 1 else ():
            render.line(f"{point.name}: {reason}")
    if conclusion.gate is not None:
        render.line("gate passed" if conclusion.gate.ok else "gate not passed")
    if conclusion.failures:
        render.lines(_wrapped(conclusion.headline, "    "))


def _show_failures(conclusion: Conclusion) -> None:
    """Print each scenario that did not pass: what is wrong, question, answer, rules, and how to see more."""
    kinds = Counter(item.result for item in conclusion.failures)
    kind = None
    for item in conclusion.failures:
        if item.result != kind:
            kind = item.result
            render.line("")
            render.line(f"{kind} ({kinds[kind]})")
        render.lines(_wrapped(f"{item.id} {item.title}", "  "))
        rows = details(item)
        if command := conclusion.command(item):
            rows.append(("see", command))
        for name, value in rows:
            text = f"    {name:<9} {value}"  # a command is to be copied, so it is never broken
            if name == "see":
                render.line(text)
            else:
                render.lines(_wrapped(text, " " * 14))
    if conclusion.failures and conclusion.recorded.state_dir is None:
        render.line("")
        render.line("not recorded; without --no-record the command is printed that shows each decision")


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def show_comparison(comparison: Comparison) -> None:
    """Print what differs, how surely, and which side to take."""
    names = (comparison.before, comparison.after)
    low, high = 100 * comparison.low, 100 * comparison.high
    if comparison.changes:
        changes = [
            (change.id, change.suite, change.before, change.after, _verdict(change))
            for change in comparison.changes
        ]
        render.table(("id", "suite", *names, "what"), changes, clipped=(1, 2, 3))
        render.line("")
    pairs = {
        "asked in both": f"{comparison.paired} scenarios",
        names[0]: f"{_rate(comparison.decided_before)} decided right",
        names[1]: f"{_rate(comparison.decided_after)} decided right",
        "difference": f"{100 * comparison.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, "
        f"exact McNemar p = {comparison.p_value:.2g}",
        "gained, lost": f"{comparison.fixed}, {comparison.broken}",
        "too loose only in": f"{names[1]}: {comparison.loosened}, {names[0]}: {comparison.tightened}",
        "time": _times(comparison),
        "question tokens": _pair(comparison.question_tokens),
        "explanation tokens": _pair(comparison.explanation_tokens),
    }
    for name, keys in (
        (f"only in {names[0]}", comparison.only_before),
        (f"only in {names[1]}", comparison.only_after),
        ("changed scenarios", comparison.redefined),
    ):
        if keys:
            pairs[name] = ", ".join(id for _, id in keys)
    render.pairs(pairs)
    render.line("")
    chosen = {"before": names[0], "after": names[1], "neither": "neither"}[comparison.choice]
    render.line(f"recommended: {chosen}: {comparison.reason}")


def _verdict(change: Change) -> str:
    if change.loosened or change.tightened:
        return "newly too loose" if change.loosened else "no longer too loose"
    if change.right_before != change.right_after:
        return "gained" if change.right_after else "lost"
    return "differs"


def _show_items(items: Sequence[Item], conclusion: Conclusion) -> None:
    rows = [
        (
            item.id,
            item.result,
            item.outcome,
            "|".join(item.accepted),
            item.tier,
            f"{item.total_ms:,.0f}",
            item.decision_id[-ENDING_CHARS:] if conclusion.command(item) and item.decision_id else None,
        )
        for item in items
    ]
    columns = ("id", "result", "outcome", "expected", "by", "ms", "decision")
    render.table(columns, rows, gap=1, clipped=(2, 3))
    for item in items:
        if item.status == "skipped":
            render.line(f"{item.id} {item.title}: {item.verdict}")


def _show_groups(what: str, groups: Sequence[Group]) -> None:
    rows = [
        (
            group.name,
            group.passed.of,
            group.passed.hits,
            group.decided.hits,
            group.rules.hits,
            f"{group.model.hits} of {group.model.of}",
            group.too_loose,
            group.too_strict,
        )
        for group in groups
    ]
    columns = (what, "asked", "passed", "right", "by rules", "by model", "loose", "strict")
    render.table(columns, rows)
    render.line("")


def show_effects(effects: Iterable[tuple[str, Effect]]) -> None:
    """Print what the model adds and costs: outcomes of the rules alone, served ones, and the changes."""
    for title, effect in effects:
        changes = f"{_share(effect.rightly)} rightly, {_share(effect.wrongly)} wrongly"
        low, high = 100 * effect.difference.low, 100 * effect.difference.high
        pairs = {
            "rules alone": _outcomes(effect.rules),
            "served": _outcomes(effect.served),
            "changed": f"{effect.changed} of {effect.scored} scored: {changes}",
            "doubts": f"{effect.doubts} did not count",
            "difference": f"{100 * effect.difference.difference:+.1f} points right, 95 %: {low:+.1f} to "
            f"{high:+.1f}",
        }
        if effect.costs:
            pairs["advice"] = "it costs more than it adds: raise limits.tighten_at, or set model: never"
        render.pairs(pairs, title=title)
    render.line("")


def _outcomes(outcomes: Outcomes) -> str:
    right = outcomes.right
    return f"{right.hits} of {right.of} right, {outcomes.strict} too strict, {outcomes.loose} too loose"


def _share(share: Rate) -> str:
    return f"{share.hits} ({100 * share.low:.0f} to {100 * share.high:.0f} %)" if share.of else "0"


def _summary(run: Run, figures: Figures) -> dict[str, object]:
    pairs: dict[str, object] = {
        "asked": f"{figures.not_skipped} scenarios, {run.where}"
        + (f", {run.repeats} times each, counted by the worst answer" if run.repeats > 1 else ""),
        "passed": _rate(figures.passing),
        "decision accuracy": _rate(figures.decided),
        "rules alone": _rate(figures.rules),
        "model alone": f"{_rate(figures.model)}; the rules on the same: {figures.rules_where_asked.hits}",
        "most frequent outcome": _rate(figures.majority),
    }
    if figures.balanced_accuracy is not None:
        pairs["balanced accuracy"] = (
            f"{100 * figures.balanced_accuracy:.0f} % over {figures.classes} outcomes"
        )
    pairs |= {
        "too loose, too strict": f"{figures.too_loose.hits}, {figures.too_strict.hits}",
        "reasons replaced": f"{figures.reasons_replaced.hits} of {figures.reasons_replaced.of}",
        "output structure": f"{figures.mean_structure:.2f}",
        "reasoning coverage": _reasons(run, figures),
        "leaks": _leaks(run),
    }
    if quality := figures.calibration:
        pairs["calibration"] = f"ECE {quality.ece:.3f}, Brier {quality.brier:.3f}, {quality.count} labels"
    pairs |= {f"ECE of {sureness.name}": ece(sureness) for sureness in figures.sureness}
    if figures.mean_question_tokens is not None:
        question, explanation = figures.mean_question_tokens, figures.mean_explanation_tokens or 0
        pairs["tokens"] = f"{question:.0f} of question, {explanation:.0f} of explanation"
    if run.repeats > 1:
        shares = figures.pass_k[:3] + figures.pass_k[3:][-1:]
        ks = (1, 2, 3)[: len(shares)] if len(figures.pass_k) <= 3 else (1, 2, 3, len(figures.pass_k))
        pairs["pass^k"] = ", ".join(
            f"k = {k}: {100 * share:.1f} %" for k, share in zip(ks, shares, strict=True)
        )
        pairs["flips"] = f"{len(figures.flips)} scenarios"
    return pairs | {"errors": figures.errors, "skipped": figures.skipped}


def _reasons(run: Run, figures: Figures) -> str:
    if figures.mean_coverage is None:
        return f"not measured ({run.embedder or 'no embedder'})"
    return f"{figures.mean_coverage:.2f} over {figures.reasons_measured} reasons ({run.embedder})"


def _leaks(run: Run) -> str:
    if run.leaks:
        return f"allowed: {leaks.in_words(run.leaks)}"
    return "none found, by wording " + ("alone" if run.embedder.startswith("no ") else "and meaning")


def show_coverage(covered: Sequence[Coverage]) -> None:
    """Print which clauses and rules of each pack a run reached, and which it never did."""
    for coverage in covered:
        rows = (
            ("clauses cited", coverage.clauses, coverage.never_cited),
            ("rules fired", coverage.rules, coverage.never_fired),
        )
        pairs = {
            name: f"{len(counts) - len(never)} of {len(counts)}"
            + (f"; never {', '.join(never)}" if never else "")
            for name, counts, never in rows
        }
        render.pairs(pairs, title=f"coverage of {coverage.pack}")


def ece(sureness: Sureness) -> str:
    """The calibration error of a group with its interval, and what chance alone would show."""
    return (
        f"{sureness.ece:.3f} (95 %: {sureness.low:.3f} to {sureness.high:.3f}) on {sureness.count} labels; "
        f"by chance {sureness.by_chance:.3f}"
    )


def _rate(rate: Rate) -> str:
    if rate.share is None:
        return "0 of 0"
    return (
        f"{rate.hits} of {rate.of} ({100 * rate.share:.0f} %, 95 %: {100 * rate.low:.0f} to "
        f"{100 * rate.high:.0f})"
    )


def _times(comparison: Comparison) -> str:
    if comparison.latency is None:
        return "the model was not asked in both"
    latency = comparison.latency
    text = f"{latency.ratio:.2f} of that of {comparison.before}"
    if latency.high is not None:
        text += f" (95 %: {latency.low:.2f} to {latency.high:.2f})"
    return text + f", {latency.count} pairs" + ("" if comparison.same_machine else ", on another machine")


def _pair(values: tuple[float, float] | None) -> str:
    return f"{values[0]:.0f}, {values[1]:.0f}" if values else "the model was not asked in both"


def _listed(outcomes: Sequence[str | None]) -> str:
    return ", ".join(outcome or "none" for outcome in outcomes)
