"""What people see of a run, a gate and a comparison: tables within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from thor_policy.cli import render
from thor_policy.suites import leaks
from thor_policy.suites.baselines import Gate
from thor_policy.suites.check import Check
from thor_policy.suites.comparison import Change, Comparison
from thor_policy.suites.coverage import Coverage
from thor_policy.suites.figures import Figures, Group
from thor_policy.suites.intervals import Rate
from thor_policy.suites.run_files import Item, Run, worst


def show_run(run: Run, found: Figures) -> None:
    """Every scenario, what was missed, and the figures."""
    items = list(worst(run.results).values())
    for judge in run.judges:
        if len(run.judges) > 1:
            render.line(f"\n{judge.pack.name}")
        _show_items([item for item in items if item.pack == judge.pack.name])
    render.line("")
    if len(found.by_pack) > 1:
        _show_groups("pack", found.by_pack)
    _show_groups("difficulty", found.by_difficulty)
    if found.latency:
        rows = [(one.tier, one.count, one.median_ms, one.p95_ms, one.max_ms) for one in found.latency]
        render.table(("answered by", "answers", "median ms", "p95 ms", "longest ms"), rows)
        render.line("")
    if found.flips:
        flips = [
            (flip.id, f"{sum(flip.passed)} of {len(flip.passed)}", _listed(flip.outcomes), flip.shift)
            for flip in found.flips
        ]
        render.table(("flipped", "passed", "outcomes", "probability moved"), flips)
        render.line("")
    render.pairs(_summary(run, found))


def show_check(check: Check, *, with_coverage: bool) -> None:
    """What follows the tables of a run: coverage, baselines that were written, and the gate."""
    if with_coverage:
        show_coverage(check.run.coverage, check.coverage_threshold)
    for path in check.blessed:
        render.line(f"blessed: {path}")
    if check.gate is not None:
        show_gate(check.gate)


def show_gate(gate: Gate) -> None:
    """Whether the gate is passed, and every reason against it."""
    render.line("")
    for reason in gate.reasons:
        render.line(f"gate: {reason}")
    render.line("gate passed" if gate.ok else "gate not passed")


def show_comparison(found: Comparison) -> None:
    """What differs, how surely, and which side to take."""
    names = (found.before, found.after)
    if found.changes:
        changes = [
            (change.id, change.suite, change.before, change.after, _verdict(change))
            for change in found.changes
        ]
        render.table(("id", "suite", *names, "what"), changes, clipped=(1, 2, 3))
        render.line("")
    pairs = {
        "asked in both": f"{found.paired} scenarios",
        names[0]: f"{_rate(found.decided_before)} decided right",
        names[1]: f"{_rate(found.decided_after)} decided right",
        "difference": f"{100 * found.difference:+.1f} points, 95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}, exact McNemar p = {found.p_value:.2g}",
        "gained, lost": f"{found.fixed}, {found.broken}",
        "too loose only in": f"{names[1]}: {found.loosened}, {names[0]}: {found.tightened}",
        "time": _times(found),
        "question tokens": _pair(found.question_tokens),
        "explanation tokens": _pair(found.explanation_tokens),
    }
    for told, keys in (
        (f"only in {names[0]}", found.only_before),
        (f"only in {names[1]}", found.only_after),
        ("asked differently", found.redefined),
    ):
        if keys:
            pairs[told] = ", ".join(id for _, id in keys)
    render.pairs(pairs)
    render.line("")
    chosen = {"before": names[0], "after": names[1], "neither": "neither"}[found.choice]
    render.line(f"recommended: {chosen}: {found.reason}")


def _verdict(change: Change) -> str:
    if change.loosened or change.tightened:
        return "newly too loose" if change.loosened else "too loose no more"
    if change.right_before != change.right_after:
        return "gained" if change.right_after else "lost"
    return "differs"


def _show_items(items: Sequence[Item]) -> None:
    rows = [(item.id, item.status, item.outcome, item.tier, item.decision_id) for item in items]
    render.table(("id", "result", "outcome", "by", "decision id"), rows, gap=1)
    for item in items:
        if item.misses:
            render.line(f"{item.id} {item.title}: {'; '.join(item.misses)}")
            if item.label:
                render.line(f"    the model said {item.label}, the rules {item.floor}")


def _show_groups(what: str, groups: Sequence[Group]) -> None:
    rows = [
        (
            one.name,
            one.passed.of,
            one.passed.hits,
            one.decided.hits,
            one.rules.hits,
            f"{one.model.hits} of {one.model.of}",
            one.too_loose,
            one.too_strict,
        )
        for one in groups
    ]
    columns = (what, "asked", "passed", "right", "by rules", "by model", "loose", "strict")
    render.table(columns, rows)
    render.line("")


def _summary(run: Run, found: Figures) -> dict[str, object]:
    told: dict[str, object] = {
        "asked": f"{found.not_skipped} scenarios, {run.where}"
        + (f", {run.repeats} times each, counted by the worst" if run.repeats > 1 else ""),
        "passed": _rate(found.passing),
        "decision accuracy": _rate(found.decided),
        "rules alone": _rate(found.rules),
        "model alone": f"{_rate(found.model)}; the rules on the same: {found.rules_where_asked.hits}",
        "commonest outcome": _rate(found.majority),
    }
    if found.balanced_accuracy is not None:
        told["balanced accuracy"] = f"{100 * found.balanced_accuracy:.0f} % over {found.classes} outcomes"
    told |= {
        "too loose, too strict": f"{found.too_loose.hits}, {found.too_strict.hits}",
        "output structure": f"{found.mean_structure:.2f}",
        "reasoning coverage": _reasons(run, found),
        "leaks": _leaks(run),
    }
    if quality := found.calibration:
        told["calibration"] = f"ECE {quality.ece:.3f}, Brier {quality.brier:.3f}, {quality.count} labels"
    if found.mean_question_tokens is not None:
        question, explanation = found.mean_question_tokens, found.mean_explanation_tokens or 0
        told["tokens"] = f"{question:.0f} of question, {explanation:.0f} of explanation"
    if run.repeats > 1:
        shares = found.pass_k[:3] + found.pass_k[3:][-1:]
        ks = (1, 2, 3)[: len(shares)] if len(found.pass_k) <= 3 else (1, 2, 3, len(found.pass_k))
        told["pass^k"] = ", ".join(
            f"k = {k}: {100 * share:.1f} %" for k, share in zip(ks, shares, strict=True)
        )
        told["flips"] = f"{len(found.flips)} scenarios"
    return told | {"errors": found.errors, "skipped": found.skipped}


def _reasons(run: Run, found: Figures) -> str:
    if found.mean_coverage is None:
        return f"not measured ({run.embedder or 'no embedder'})"
    return f"{found.mean_coverage:.2f} over {found.reasons_measured} reasons ({run.embedder})"


def _leaks(run: Run) -> str:
    if run.leaks:
        return f"allowed: {leaks.in_words(run.leaks)}"
    return "none found, by wording " + ("alone" if run.embedder.startswith("no ") else "and meaning")


def show_coverage(covered: Sequence[Coverage], threshold_percent: float | None) -> None:
    """What a run reached of each pack, and what it never did."""
    for one in covered:
        rows = (("clauses cited", one.clauses, one.never_cited), ("rules fired", one.rules, one.never_fired))
        pairs = {
            name: f"{len(counts) - len(never)} of {len(counts)}"
            + (f"; never {', '.join(never)}" if never else "")
            for name, counts, never in rows
        }
        render.pairs(pairs, title=f"coverage of {one.pack}")
        if not one.reaches(threshold_percent):
            render.line(f"coverage {100 * one.share:.0f} % is below the threshold of {threshold_percent:g} %")


def _rate(rate: Rate) -> str:
    if rate.share is None:
        return "0 of 0"
    return (
        f"{rate.hits} of {rate.of} ({100 * rate.share:.0f} %, 95 %: {100 * rate.low:.0f} to "
        f"{100 * rate.high:.0f})"
    )


def _times(found: Comparison) -> str:
    if found.latency is None:
        return "the model was not asked in both"
    told = f"{found.latency.ratio:.2f} of that of {found.before}"
    if found.latency.high is not None:
        told += f" (95 %: {found.latency.low:.2f} to {found.latency.high:.2f})"
    return told + f", {found.latency.count} pairs" + ("" if found.same_machine else ", on another machine")


def _pair(values: tuple[float, float] | None) -> str:
    return f"{values[0]:.0f}, {values[1]:.0f}" if values else "the model was not asked in both"


def _listed(outcomes: Sequence[str | None]) -> str:
    return ", ".join(outcome or "none" for outcome in outcomes)
