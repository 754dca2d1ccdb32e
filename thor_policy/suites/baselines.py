"""Baselines: what a suite got on a model when somebody last said that this is good enough.

Owns where they lie and the gate that holds a run against them. Invariant: the gate fails closed: without
a baseline, with an error, or with a scenario of the baseline that was not asked, nothing passes. Main
thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy.core.errors import SuiteError
from thor_policy.suites.comparison import SIGNIFICANT, Comparison, compare
from thor_policy.suites.figures import figures
from thor_policy.suites.run_files import Key, Run, load, plain, worst

#: A scenario with this tag may not fail where it did not fail before, whatever the other figures say.
CRITICAL = "critical"
#: Reasons that are told in full; more are counted.
_TOLD = 10

_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


class Gate(Struct, frozen=True, kw_only=True):
    """The verdict on a run: it passes when there is no reason against it. Comparisons are by suite."""

    reasons: tuple[str, ...]
    comparisons: Mapping[str, Comparison]

    @property
    def ok(self) -> bool:
        return not self.reasons


def path_of(folder: Path, suite: str, model: str) -> Path:
    """The baseline's file of a suite on a model; a model that is a path counts by its name."""
    return folder / f"{_UNFIT.sub('_', suite)}@{_UNFIT.sub('_', Path(model).name)}.json"


def bless(folder: Path, run: Run) -> list[Path]:
    """Make a run the baseline of each of its suites; returns the files.

    Raises SuiteError if it has errors: a scenario without an answer says nothing about the next run.
    """
    if errors := [item.id for item in worst(run.results).values() if item.status == "error"]:
        raise SuiteError(f"a run with errors is no baseline; there was no answer to {', '.join(errors)}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suite in _suites(run):
        part = run.only(suite)
        path = path_of(folder, suite, part.judges[0].model)
        text = msgspec.json.format(msgspec.json.encode(plain(part, summary=figures(part))), indent=1)
        path.write_bytes(text + b"\n")
        written.append(path)
    return written


def gate(folder: Path, run: Run, *, whole: bool) -> Gate:
    """Hold each suite of a run against its baseline.

    `whole` says that every scenario of these suites was to be asked, so that one that was not is a reason.
    """
    reasons: list[str] = []
    comparisons = {}
    for suite in _suites(run):
        part = run.only(suite)
        path = path_of(folder, suite, part.judges[0].model)
        if not path.is_file():
            reasons.append(
                f"{suite}: there is no baseline {path.name} in {folder}; look at the run, then "
                "`thorpolicy test --full --bless`"
            )
            continue
        found = compare(load(path), part, names=("baseline", "run"))
        comparisons[suite] = found
        reasons += [f"{suite}: {reason}" for reason in _against(found, whole=whole)]
    items = worst(run.results).values()
    reasons += [f"{item.suite}: {item.id} got no answer" for item in items if item.status == "error"]
    if not any(item.status != "skipped" for item in items):
        reasons.append("nothing was asked")
    return Gate(reasons=tuple(reasons), comparisons=comparisons)


def _against(found: Comparison, *, whole: bool) -> list[str]:
    reasons = []
    if found.p_value < SIGNIFICANT and found.difference < 0:
        reasons.append(
            f"decides {found.decided_after.hits} of {found.paired} right, the baseline "
            f"{found.decided_before.hits} (exact McNemar p = {found.p_value:.2g})"
        )
    reasons += [
        f"{c.id} is newly loosened: {c.before or 'no answer'} before, {c.after} now"
        for c in found.changes
        if c.loosened
    ]
    reasons += [
        f"{c.id} is tagged {CRITICAL} and newly fails: {c.before or 'no answer'} before, "
        f"{c.after or 'no answer'} now"
        for c in found.changes
        if CRITICAL in c.tags and c.passed_before and not c.passed_after
    ]
    if whole and found.only_before:
        reasons.append(f"of the baseline were not asked: {_named(found.only_before)}")
    if new := found.only_after + found.redefined:
        reasons.append(f"the baseline does not know {_named(new)} as asked here; bless it again")
    return reasons


def _named(keys: Sequence[Key]) -> str:
    told = ", ".join(id for _, id in keys[:_TOLD])
    return told + (f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else "")


def _suites(run: Run) -> list[str]:
    return list(dict.fromkeys(item.suite for item in run.results))
