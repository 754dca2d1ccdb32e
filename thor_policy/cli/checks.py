"""What `test` holds a run against beside its scenarios, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from thor_policy import embedding, packs, suite
from thor_policy.cli import render
from thor_policy.config import Config
from thor_policy.errors import SuiteError
from thor_policy.suite import Embedder, leaks
from thor_policy.suite.coverage import Coverage
from thor_policy.suite.leaks import Leak


class LeakCheck(Struct, frozen=True, kw_only=True):
    """The stamp of a run: what was looked with, what was found, and whether it ran all the same."""

    embedder: str | None
    allowed: bool
    found: tuple[Leak, ...]


def embedder(config: Config) -> tuple[Embedder | None, str]:
    """The embedder of the models directory, or none; and what to say of it."""
    if why := embedding.missing(config.models_dir):
        return None, f"no embedder: {why}"
    found = embedding.MiniLM(config.models_dir)
    return found, found.name


def refuse_leaks(
    suites: Iterable[suite.Suite], pack: packs.Pack, embedder: Embedder | None, *, allow: bool
) -> LeakCheck:
    """Look for scenarios that the pack shows as examples. Raises SuiteError naming them unless allowed."""
    found: list[Leak] = []
    for one in suites:
        here = leaks.find(one.scenarios, pack, embedder)
        if here and not allow:
            raise SuiteError(
                f"{one.name}: the examples of {pack.info.name} show what is asked: {_told(here)}; "
                "write other scenarios or examples, or run with --allow-leak, which the report then says"
            )
        found += here
    return LeakCheck(embedder=embedder.name if embedder else None, allowed=allow, found=tuple(found))


def show_leaks(checks: Sequence[LeakCheck]) -> str:
    """One line on all checks of a run."""
    if found := [leak for check in checks for leak in check.found]:
        return f"allowed: {_told(found)}"
    return "none found, by wording " + ("and meaning" if checks and checks[0].embedder else "alone")


def _told(found: Sequence[Leak]) -> str:
    return "; ".join(
        f"{leak.scenario} is {leak.example} ({leak.look} {leak.similarity:.2f})" for leak in found
    )


def show_reasons(summary: suite.Summary, embedder_told: str) -> str:
    """How much of what reasons should hold they do, or why that was not measured."""
    if summary.mean_coverage is None:
        return f"not measured ({embedder_told})"
    return f"{summary.mean_coverage:.2f} over {summary.reasons_measured} reasons ({embedder_told})"


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
        if threshold_percent is not None and too_low(one, threshold_percent):
            render.line(f"coverage {100 * one.share:.0f} % is below the threshold of {threshold_percent:g} %")


def too_low(covered: Coverage, threshold_percent: float | None) -> bool:
    """True when a run reached less of a pack than was asked for."""
    return threshold_percent is not None and 100 * covered.share < threshold_percent
