"""Choose the abstention band of a pack from the journal, and write it into the next version of the pack.

Owns which decisions the choice rests on, and the text of the band in pack.yaml. Invariant: no file of the
active pack is changed; the next version differs in version, supersedes and `limits.abstain` alone, and
decides nothing until it has passed the gate. Main thread of a command.

Only the random sample of reviews counts (`review.ranking`): what reviewers look at first is worse than the
rest. Confidence is that which the next version will have: no calibration holds for it until one is fitted,
but a contextual calibration does (`Config.contextual_calibration`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec import Struct, structs

from thor_policy import catalog
from thor_policy.config import Config
from thor_policy.core.decisions import identity_of
from thor_policy.core.errors import CalibrationError
from thor_policy.daemon.loading import find_adapter
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning.display import SILENT, Display
from thor_policy.learning.promotion.improve import next_manifest, write_texts
from thor_policy.policy import bands
from thor_policy.policy.bands import Choice, Promise, Reviewed, Served
from thor_policy.policy.calibration import (
    Judged,
    Quality,
    Sureness,
    Top,
    contextual,
    quality,
    scaled,
    sureness,
)
from thor_policy.policy.pack import Abstention, Limits, Pack
from thor_policy.policy.tightening import served as outcome_of_limits
from thor_policy.review.ranking import RANDOM_SHARE, drawn
from thor_policy.suites.scenarios import ATTACK

#: Fewest days that a rate of asks is estimated from.
LEAST_DAYS = 1.0
_ABSTAIN = re.compile(r"^(?P<indent> *)abstain: *\{.*\} *(#.*)?$", re.MULTILINE)
_LIMITS = re.compile(r"^limits: *$", re.MULTILINE)


class Calibrations(Struct, frozen=True, kw_only=True):
    """How well the model's probabilities agree with how often it is right, without any calibration.

    `attacked` are the scenarios of the difficulty `attack`, apart from the `suites` without them. None: there
    is none.
    """

    reviews: Quality | None
    suites: Quality | None
    attacked: Quality | None


class Evidence(Struct, frozen=True, kw_only=True):
    """What a choice rests on. `drawn` counts the questions of the random sample, reviewed or not.

    `sureness` has the errors of the confidence that the next version will have, with their intervals.
    """

    reviewed: tuple[Reviewed, ...]
    served: tuple[Served, ...]
    drawn: int
    days: float
    calibrations: Calibrations
    sureness: tuple[Sureness, ...]


def gather(
    config: Config, pack: Pack, *, since_days: float, now: float, display: Display = SILENT
) -> Evidence:
    """The decisions of a pack and of the model of `config` in the last days. `now` is Unix time.

    Raises CalibrationError if the pack asks no model; CatalogError, JournalError.
    """
    if pack.manifest.model == "never":
        raise CalibrationError(f"{pack.info.name} asks no model, so no band has an effect")
    model = catalog.resolve(config.model, config.models_dir)
    adapter = find_adapter(config.adapter, config.adapter_scale, config, model.name)
    judge = identity_of(model.sha256, adapter.adapter if adapter else None)[:12]
    contextual_calibration = config.is_contextual and adapter is None
    limits = structs.replace(pack.manifest.limits, abstain=None)
    asks = asks_outcome(pack)
    since = datetime.fromtimestamp(now, UTC) - timedelta(days=since_days)
    reviewed, answered, sampled, first = [], [], 0, now
    with Reader(config.journal_path) as reader, display.counting("decisions read") as count:
        prior = reader.prior(pack.info.sha256, judge) if contextual_calibration else {}
        for row in reader.answered(pack.info.sha256, since=since.strftime("%Y-%m-%dT%H:%M:%S.%fZ")):
            first = min(first, datetime.fromisoformat(row["timestamp"]).timestamp())
            by_model = bool(row["label"]) and row["model"] == judge
            if by_model and contextual_calibration and not prior:
                raise CalibrationError(
                    f"no decision of {pack.info.name} has a contextual calibration, which the next version "
                    "will have: let the daemon decide with it, or set contextual_calibration to off"
                )
            confidence, outcome = (
                _without_band(pack, limits, row, prior) if by_model else (None, row["decision"])
            )
            answered.append(Served(confidence=confidence, asks=outcome == asks))
            if by_model and drawn(row["decision_id"], "sample", RANDOM_SHARE):
                sampled += 1
                if row["right"] is not None:
                    reviewed.append(Reviewed(confidence=confidence, may_allow=row["right"] == pack.loosest))
            count(len(answered))
        groups = _judged(reader, pack.info.sha256, judge)
    measured = (
        sureness(name, [_top(p, right, prior) for p, right in group]) for name, group in groups.items()
    )
    return Evidence(
        reviewed=tuple(reviewed),
        served=tuple(answered),
        drawn=sampled,
        days=max(LEAST_DAYS, (now - first) / 86_400),
        calibrations=Calibrations(
            **{name: quality(group) if group else None for name, group in groups.items()}
        ),
        sureness=tuple(each for each in measured if each is not None),
    )


def _judged(reader: Reader, pack_sha256: str, judge: str) -> dict[str, list[Judged]]:
    """The judged decisions of each group of `Calibrations`."""
    groups: dict[str, list[Judged]] = {"reviews": [], "suites": [], "attacked": []}
    for row in reader.judged(pack_sha256, judge, by="reviews"):
        groups["reviews"].append(_uncalibrated(row))
    for row in reader.judged(pack_sha256, judge, by="suites"):
        groups["attacked" if ATTACK in (row["tags"] or ()) else "suites"].append(_uncalibrated(row))
    return groups


def _uncalibrated(row: Record) -> Judged:
    return scaled(row["probabilities"], 1 / row["temperature"]), row["right"]


def promise_over(evidence: Evidence, promise: Promise) -> Promise:
    """The promise for the days that the evidence is of. Raises CalibrationError if nothing is reviewed."""
    if not evidence.reviewed:
        least = bands.needed(promise.false_allows, promise.reviewers_miss)
        raise CalibrationError(
            f"none of the {evidence.drawn} questions of the random sample is reviewed, and {least} reviews "
            "are needed at least: run `thorpolicy review`"
        )
    return structs.replace(promise, days=evidence.days)


def choose(evidence: Evidence, promise: Promise) -> Choice:
    """The band. Raises CalibrationError where the evidence cannot support the promise."""
    return bands.choose(evidence.reviewed, evidence.served, promise_over(evidence, promise))


def asks_outcome(pack: Pack) -> str:
    """The outcome of an abstention: that of the pack, or the loosest one but allow."""
    abstain = pack.manifest.limits.abstain
    return abstain.outcome if abstain else pack.labels[1]


def write(active: Pack, below: float, folder: Path) -> Pack:
    """The next version of the pack with the band, for every risk, in a directory of its own in `folder`.

    Raises PackError if it cannot be written.
    """
    manifest, directory = next_manifest(active, folder)
    band = Abstention(
        outcome=asks_outcome(active), below=dict.fromkeys(("low", "medium", "high", "critical"), below)
    )
    manifest = structs.replace(manifest, limits=structs.replace(manifest.limits, abstain=band))
    text = (active.path / "pack.yaml").read_text(encoding="utf-8")
    return write_texts(active, manifest, {"pack.yaml": _with_band(text, band)}, directory)


def _top(probabilities: Mapping[str, float], right: str, prior: Mapping[str, float]) -> Top:
    """The confidence in the model's label, and whether the label is right."""
    label = max(probabilities, key=probabilities.__getitem__)
    return (contextual(probabilities, prior) if prior else probabilities)[label], label == right


def _without_band(
    pack: Pack, limits: Limits, row: Record, prior: Mapping[str, float]
) -> tuple[float | None, str]:
    """The confidence of an allow without any band, None if it is no allow; and the outcome without a band."""
    probabilities: Mapping[str, float] = scaled(row["probabilities"], 1 / row["temperature"])
    outcome, _ = outcome_of_limits(
        pack.labels, limits, row["floor"], row["risk_level"], row["label"], probabilities
    )
    confidences = contextual(probabilities, prior) if prior else probabilities
    return (confidences[outcome] if outcome == pack.loosest else None), outcome


def _with_band(text: str, band: Abstention) -> str:
    """The text of pack.yaml with the band; `write_texts` refuses it if it then says anything else."""
    below = ", ".join(f"{risk}: {value}" for risk, value in band.below.items())
    line = f"abstain: {{outcome: {band.outcome}, below: {{{below}}}}}"
    if _ABSTAIN.search(text):
        return _ABSTAIN.sub(lambda found_at: f"{found_at['indent']}{line}", text, count=1)
    if _LIMITS.search(text):
        return _LIMITS.sub(f"limits:\n  {line}", text, count=1)
    return f"{text.rstrip()}\n\nlimits:\n  {line}\n"
