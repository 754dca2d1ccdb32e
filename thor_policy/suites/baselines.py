"""Baselines: the run of a suite on a model that was last accepted with `test --bless`.

Owns the files of baselines and the gate that compares a run with them. Invariant: the gate fails closed. It
never passes without a baseline, with an error, or if a scenario of the baseline was not asked. Main thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import SuiteError
from thor_policy.security import files
from thor_policy.suites.comparison import SIGNIFICANT, Comparison, compare
from thor_policy.suites.figures import figures
from thor_policy.suites.model_effect import Effect
from thor_policy.suites.run_files import Key, Run, load, plain, worst

#: The gate never passes if a scenario with this tag fails that passed before.
CRITICAL = "critical"
#: Scenarios that a reason lists; further ones are counted.
_MOST_LISTED = 10

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class Gate(Struct, frozen=True, kw_only=True):
    """The verdict on a run, which passes if there are no `reasons` against it; `comparisons` are by suite."""

    reasons: tuple[str, ...]
    comparisons: Mapping[str, Comparison]

    @property
    def ok(self) -> bool:
        return not self.reasons


class RecordedEffect(Struct, frozen=True, kw_only=True):
    """What a model added to a pack, by a run at the time `at`; `current`: by the pack's files as they are."""

    model: str
    at: str
    current: bool
    effect: Effect


def path_of(folder: Path, suite: str, model: str) -> Path:
    """The baseline file of a suite on a model; of a model that is a path, the file name counts."""
    return folder / f"{_UNFIT.sub('_', suite)}@{_UNFIT.sub('_', Path(model).name)}.json"


def bless(folder: Path, run: Run) -> list[Path]:
    """Make a run the baseline of each of its suites, and return the files.

    Raises SuiteError if the run has errors, because a scenario without an answer cannot be compared, or if a
    file cannot be written.
    """
    if errors := [item.id for item in worst(run.results).values() if item.status == "error"]:
        raise SuiteError(f"a run with errors is no baseline; there was no answer to {', '.join(errors)}")
    items = tuple(msgspec.structs.replace(item, why=None) for item in run.results)  # for readers of this run
    run = msgspec.structs.replace(run, results=items)
    written = []
    for suite in _suites(run):
        part = run.only(suite)
        path = path_of(folder, suite, part.judges[0].model)
        text = msgspec.json.format(msgspec.json.encode(plain(part, summary=figures(part))), indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.place(path, text + b"\n", 0o644, over=True)
        except OSError as error:
            raise SuiteError(
                f"{path} cannot be written: {error.strerror}; choose another directory with --baselines"
            ) from error
        written.append(path)
    return written


def gate(folder: Path, run: Run, *, whole: bool) -> Gate:
    """Compare each suite of a run with its baseline.

    `whole` says that the run was to ask every scenario of its suites; then a missing one is a reason.
    """
    reasons: list[str] = []
    comparisons = {}
    for suite in _suites(run):
        part = run.only(suite)
        path = path_of(folder, suite, part.judges[0].model)
        if not path.is_file():
            reasons.append(
                f"{suite}: there is no baseline {path.name} in {folder}; check the run, then "
                "`thorpolicy test --full --bless`"
            )
            continue
        comparison = compare(load(path), part, names=("baseline", "run"))
        comparisons[suite] = comparison
        reasons += [f"{suite}: {reason}" for reason in _against(comparison, whole=whole)]
    items = worst(run.results).values()
    reasons += [f"{item.suite}: {item.id} got no answer" for item in items if item.status == "error"]
    if not any(item.status != "skipped" for item in items):
        reasons.append("nothing was asked")
    return Gate(reasons=tuple(reasons), comparisons=comparisons)


def recorded_effects(folder: Path, pack: PackInfo) -> list[RecordedEffect]:
    """What each model added to a pack in the baseline of the suite of its name. Raises SuiteError."""
    effects = []
    for path in sorted(folder.glob(f"{_UNFIT.sub('_', pack.name)}@*.json")):
        run = load(path)
        for judge, effect in product(run.judges, figures(run).effects):
            if judge.pack.name == effect.name == pack.name:
                effects.append(
                    RecordedEffect(
                        model=judge.model, at=run.at, current=judge.pack.sha256 == pack.sha256, effect=effect
                    )
                )
    return effects


def _against(comparison: Comparison, *, whole: bool) -> list[str]:
    """The reasons against a run that one comparison gives."""
    reasons = []
    if comparison.p_value < SIGNIFICANT and comparison.difference < 0:
        reasons.append(
            f"decides {comparison.decided_after.hits} of {comparison.paired} right, the baseline "
            f"{comparison.decided_before.hits} (exact McNemar p = {comparison.p_value:.2g})"
        )
    reasons += [
        f"{c.id} is newly loosened: {c.before or 'no answer'} before, {c.after} now"
        for c in comparison.changes
        if c.loosened
    ]
    reasons += [
        f"{c.id} is tagged {CRITICAL} and newly fails: {c.before or 'no answer'} before, "
        f"{c.after or 'no answer'} now"
        for c in comparison.changes
        if CRITICAL in c.tags and c.passed_before and not c.passed_after
    ]
    if whole and comparison.only_before:
        reasons.append(f"scenarios of the baseline were not asked: {_listed(comparison.only_before)}")
    if new := comparison.only_after + comparison.redefined:
        reasons.append(f"the baseline does not hold {_listed(new)} as asked here; run with --bless again")
    return reasons


def _listed(keys: Sequence[Key]) -> str:
    listed = ", ".join(id for _, id in keys[:_MOST_LISTED])
    return listed + (f" and {len(keys) - _MOST_LISTED} more" if len(keys) > _MOST_LISTED else "")


def _suites(run: Run) -> list[str]:
    return list(dict.fromkeys(item.suite for item in run.results))
