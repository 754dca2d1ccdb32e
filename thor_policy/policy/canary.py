"""What a canary may decide: whether a candidate fits the active pack, and the floor of its decisions.

Owns the comparison of two packs for a canary. Invariant: a floor that `bounded` gives is never looser than
that of the active pack; a candidate of which this could not be said is refused before it decides anything.
Pure but for the files of sources, which `misfits` compares. Any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import structs

from thor_policy.core.decisions import Floor
from thor_policy.policy.pack import Pack
from thor_policy.policy.source_specs import SourceSpec


def misfits(active: Pack, candidate: Pack) -> list[str]:
    """Why a pack cannot be on trial against the active one, each with what to do; empty if it can."""
    return list(_misfits(active, candidate))


def _misfits(active: Pack, candidate: Pack) -> Iterator[str]:
    if candidate.labels != active.labels:
        yield (
            f"its outcomes are {', '.join(candidate.labels)}, and those of the active pack are "
            f"{', '.join(active.labels)}: give it the same outcomes in the same order"
        )
        return
    pairs = zip(active.manifest.outcomes, candidate.manifest.outcomes, strict=True)
    if changed := [ours.label for ours, theirs in pairs if ours != theirs]:
        yield (
            f"the obligations, step_up or lifted_by of {', '.join(changed)} are not those of the active "
            "pack, so an approval could lift more than there: make them equal"
        )
    if changed := [
        label
        for label, paths in active.lifting.bound_paths.items()
        if candidate.lifting.bound_paths.get(label, paths) != paths
    ]:
        yield (
            f"approvals of {', '.join(changed)} would bind other members of a question than those of the "
            "active pack: list the same ones in lifted_by.binds of both"
        )
    if candidate.manifest.precedents != active.manifest.precedents:
        yield (
            "its section precedents is not that of the active pack, and one look-up serves both: make them "
            "equal"
        )
    for name, spec in candidate.manifest.sources.items():
        other = active.manifest.sources.get(name)
        if other is None:
            continue
        if spec != other:
            yield f"the source {name} is not that of the active pack: make them equal, or rename one"
        elif _file_of(spec, candidate.path) != _file_of(spec, active.path):
            yield (
                f"the file of the source {name} is not that of the active pack, whose values count for both: "
                "make them equal, or rename the source"
            )


def _file_of(spec: SourceSpec, folder: Path) -> bytes | Path | None:
    """What is in the file of a source, if its path begins at the pack's directory; else the path."""
    file = spec.table or spec.sqlite
    if file is None:
        return None
    path = Path(file.path)
    if path.is_absolute():
        return path
    try:
        return (folder / path).read_bytes()
    except OSError:
        return None


def is_looser(own: Floor, bound: Floor, labels: Sequence[str]) -> bool:
    """True if the candidate's rules ask for less than the active pack's: a looser outcome, or no model.

    Without a model nothing can make the outcome stricter. `labels` has the loosest first.
    """
    if labels.index(own.outcome) < labels.index(bound.outcome):
        return True
    return own.final and not bound.final and own.outcome != labels[-1]


def bounded(own: Floor, bound: Floor, labels: Sequence[str]) -> Floor:
    """The floor of a candidate's decision: its own, or the outcome and the reasons of the stricter bound.

    Facts, risk and kind of the decision stay the candidate's.
    """
    if labels.index(own.outcome) >= labels.index(bound.outcome):
        return own
    return structs.replace(
        own,
        outcome=bound.outcome,
        final=own.final or bound.outcome == labels[-1],
        rules=tuple(dict.fromkeys((*bound.rules, *own.rules))),
        clauses=bound.clauses,
        because=bound.because,
        also_because=bound.also_because,
        classification=bound.classification,
    )
