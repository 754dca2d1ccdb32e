"""Tables of a run, a gate and a comparison, within 80 columns.

Owns their layout. Invariant: functions print plain values and decide nothing. Main thread.
"""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from thor_policy.cli import render
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.suites import leaks
from thor_policy.suites.baselines import Gate
from thor_policy.suites.check import Check
from thor_policy.suites.comparison import Change, Comparison
from thor_policy.suites.coverage import Coverage
from thor_policy.suites.figures import Figures, Group
from thor_policy.suites.intervals import Rate
from thor_policy.suites.run_files import Item, Run, worst

#: Results of a scenario, the gravest first, with the words of the headline; those that passed have none.
_RESULTS = {
    "too loose": "too loose",
    "too strict": "too strict",
    "refused": "refused",
    "failed": "right but not as expected otherwise",
    "uncited": "right but without the expected citation",
    "passed": "",
    "skipped": "",
}


def show_run(run: Run, figures: Figures, state_dir: Path | None) -> None:
    """Print the headline, every scenario, the gravest failure first, the misses, and the figures.

    `state_dir` is where the decisions are recorded, None if that is on another machine.
    """
    items = sorted(worst(run.results).values(), key=lambda item: list(_RESULTS).index(_result(item)))
    render.line(textwrap.fill(headline(items), 80, subsequent_indent="    "))
    for judge in run.judges:
        render.line(f"\n{judge.pack.name}" if len(run.judges) > 1 else "")
        _show_items([item for item in items if item.pack == judge.pack.name], state_dir)
    render.line("")
    if len(figures.by_pack) > 1:
        _show_groups("pack", figures.by_pack)
    _show_groups("difficulty", figures.by_difficulty)
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


def show_check(check: Check, *, with_coverage: bool) -> None:
    """Print what follows the tables of a run: coverage, new baselines, and the gate."""
    if with_coverage:
        show_coverage(check.run.coverage, check.coverage_threshold)
    for path in check.blessed:
        render.line(f"baseline written: {path}")
    if check.gate is not None:
        show_gate(check.gate)


def show_gate(gate: Gate) -> None:
    """Print whether the gate passed, and every reason against it."""
    render.line("")
    for reason in gate.reasons:
        render.line(f"gate: {reason}")
    render.line("gate passed" if gate.ok else "gate not passed")


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


def headline(items: Sequence[Item]) -> str:
    """How many scenarios did not pass, and how gravely, in one line."""
    counts = Counter(map(_result, items))
    count = len(items) - counts["skipped"]
    failures = [f"{counts[name]} {words}" for name, words in _RESULTS.items() if words and counts[name]]
    skipped = f"; {counts['skipped']} skipped" if counts["skipped"] else ""
    if not failures:
        passed = f"all {count} scenarios passed" if count > 1 else f"{count or 'no'} scenario passed"
        return passed + skipped
    return f"{count - counts['passed']} of {count} scenarios did not pass: {', '.join(failures)}{skipped}"


def _result(item: Item) -> str:
    """One of `_RESULTS`."""
    if item.status == "error":
        return "refused"
    if item.status != "failed":
        return item.status
    if item.wrong is not None:
        return f"too {item.wrong}"
    return "uncited" if item.lacks_only_citation else "failed"


def _show_items(items: Sequence[Item], state_dir: Path | None) -> None:
    rows = [
        (
            item.id,
            _result(item),
            item.outcome,
            "|".join(item.accepted),
            item.tier,
            f"{item.total_ms:,.0f}",
            (item.decision_id or "-")[-ENDING_CHARS:],
        )
        for item in items
    ]
    columns = ("id", "result", "outcome", "expected", "by", "ms", "decision")
    render.table(columns, rows, gap=1, clipped=(2, 3))
    for item in items:
        if item.misses:
            reason = item.verdict if item.status in ("error", "skipped") else "; ".join(item.misses)
            render.line(f"{item.id} {item.title}: {reason}")
            if item.label:
                render.line(f"    the model said {item.label}, the rules {item.floor}")
            if item.decision_id:
                render.line(f"    {_how_to_see(item.decision_id, state_dir)}")


def _how_to_see(decision_id: str, state_dir: Path | None) -> str:
    command = f"thorpolicy log show {decision_id[-ENDING_CHARS:]}"
    if state_dir is None:
        return f"on the daemon's machine: {command}"
    return f"{command} --state-dir {shlex.quote(str(state_dir))}"


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
        "output structure": f"{figures.mean_structure:.2f}",
        "reasoning coverage": _reasons(run, figures),
        "leaks": _leaks(run),
    }
    if quality := figures.calibration:
        pairs["calibration"] = f"ECE {quality.ece:.3f}, Brier {quality.brier:.3f}, {quality.count} labels"
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


def show_coverage(covered: Sequence[Coverage], threshold_percent: float | None) -> None:
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
        if not coverage.reaches(threshold_percent):
            render.line(
                f"coverage {100 * coverage.share:.0f} % is below the threshold of {threshold_percent:g} %"
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
