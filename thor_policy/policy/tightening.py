"""What a score of the model makes of the floor: the outcome that is served, and the doubt that is recorded.

Owns the order in which floor, label and abstention act. Invariant: no outcome is looser than the floor. Pure;
any thread, so a served decision, a trial of other limits and a figure share one function.

    1. Floor. No outcome is looser than that of the rules.
    2. Label. A label stricter than the floor counts if the doubt is at least `limits.tighten_at` for the
       risk. Below it the floor stands, and the reason code is `doubt`.
    3. Abstention. If the outcome is still the loosest one, and its confidence is below `limits.abstain.below`
       for the risk, the outcome is `limits.abstain.outcome`, with the reason code `low_confidence`.

Under a contextual calibration the confidence is not the label's probability: it has values of its own.

The doubt is the sum of the probabilities of all outcomes stricter than the floor: the model's belief that the
floor is too loose. The probability of the label alone is a part of it. It is small where the model is sure
that the floor is too loose but not by how much, and then a floor that is too loose would stand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from thor_policy.core.decisions import Floor
from thor_policy.core.requests import Risk
from thor_policy.policy.pack import Limits, Pack

#: Reason code of a decision in which the model's label was stricter than the floor, and did not count.
DOUBT = "doubt"
#: Reason code of an allow that became the outcome of an abstention.
LOW_CONFIDENCE = "low_confidence"


def doubt_of(labels: Sequence[str], floor: str, probabilities: Mapping[str, float]) -> float:
    """The belief that the floor is too loose, 0 to 1. `labels` has the loosest first."""
    return math.fsum(probabilities[label] for label in labels[labels.index(floor) + 1 :])


def outcome_of(
    pack: Pack,
    floor: Floor,
    label: str,
    probabilities: Mapping[str, float],
    confidences: Mapping[str, float] | None = None,
) -> tuple[str, str | None]:
    """The outcome of a scored question, and the reason code if a doubt or an abstention is behind it."""
    limits = pack.manifest.limits
    return served(pack.labels, limits, floor.outcome, floor.risk, label, probabilities, confidences)


def served(
    labels: Sequence[str],
    limits: Limits,
    floor: str,
    risk: Risk,
    label: str,
    probabilities: Mapping[str, float],
    confidences: Mapping[str, float] | None = None,
) -> tuple[str, str | None]:
    """`outcome_of` without a pack, so that other limits can be tried on recorded scores.

    `labels` has the loosest first. `label` is the model's; `probabilities` are calibrated where a calibration
    is in force. An abstention reads `confidences`; without them, the probabilities.
    """
    outcome, reason_code = floor, None
    if labels.index(label) > labels.index(floor):
        if doubt_of(labels, floor, probabilities) >= limits.tightens_at(risk):
            outcome = label
        else:
            reason_code = DOUBT
    abstain = limits.abstain
    if (
        abstain
        and outcome == labels[0]
        and (confidences or probabilities)[outcome] < abstain.below.get(risk, 0.0)
    ):
        return abstain.outcome, LOW_CONFIDENCE
    return outcome, reason_code
