"""Calibration: a temperature that makes the label probabilities agree with how often they are right.

Owns the fit, its application and its figures. Invariant: a temperature keeps the order of the labels, so
it changes the confidence and never the label. Pure; any thread.

With probabilities p and temperature T, the calibrated probabilities are p^(1/T), scaled to sum to 1.
T > 1 lowers the confidence, T < 1 raises it (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

from msgspec import Struct

from thor_policy.core.errors import CalibrationError
from thor_policy.core.records import HIGHEST, LEAST, LOWEST, Calibration

#: Bins of equal width for the expected calibration error.
BINS = 15
#: Used in place of a probability of zero in a likelihood.
_TINY = 1e-12
#: A judged decision: the probability of every label, and the label that was right.
Judged = tuple[Mapping[str, float], str]


class Bin(Struct, frozen=True, kw_only=True):
    """Decisions with confidence from `low` to `high`: their count, mean confidence and accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Quality(Struct, frozen=True, kw_only=True):
    """How well the confidence agrees with the accuracy.

    `ece` is the expected calibration error over `BINS` bins; `brier` the mean squared distance of the
    probabilities from the truth; `nll` the mean negative log-likelihood in nats.
    """

    count: int
    accuracy: float
    ece: float
    brier: float
    nll: float
    bins: tuple[Bin, ...]


def scaled(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The probabilities at a temperature; a temperature of 1 changes nothing."""
    if temperature == 1.0:
        return dict(probabilities)
    logs = {label: math.log(max(p, sys.float_info.min)) / temperature for label, p in probabilities.items()}
    highest = max(logs.values())
    weights = {label: math.exp(log - highest) for label, log in logs.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def fit(judged: Sequence[Judged], *, pack_sha256: str, model_sha256: str) -> Calibration:
    """The temperature with the least negative log-likelihood.

    Raises CalibrationError for fewer than `LEAST` judged decisions.
    """
    from scipy.optimize import minimize_scalar  # takes a second to import; the daemon does not need it

    if len(judged) < LEAST:
        raise CalibrationError(
            f"there are {len(judged)} judged decisions of this pack and model; calibration needs {LEAST}, so "
            f"{LEAST - len(judged)} are missing: review more, or run a suite with expected outcomes"
        )
    minimum = minimize_scalar(
        lambda log_t: _nll(judged, math.exp(log_t)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return Calibration(
        temperature=round(math.exp(float(minimum.x)), 4),
        pack_sha256=pack_sha256,
        model_sha256=model_sha256,
        judged=len(judged),
    )


def quality(judged: Sequence[Judged], temperature: float = 1.0) -> Quality:
    """How well the label's probability is calibrated. Raises CalibrationError if `judged` is empty."""
    if not judged:
        raise CalibrationError("there is no judged decision to measure; review decisions first")
    tops: list[tuple[float, bool]] = []
    brier = 0.0
    for probabilities, right in judged:
        calibrated = scaled(probabilities, temperature)
        label = max(calibrated, key=calibrated.__getitem__)
        tops.append((calibrated[label], label == right))
        brier += sum((p - (name == right)) ** 2 for name, p in calibrated.items())
    bins = [_bin(number, tops) for number in range(BINS)]
    filled = tuple(bin_ for bin_ in bins if bin_.count)
    return Quality(
        count=len(judged),
        accuracy=sum(hit for _, hit in tops) / len(tops),
        ece=sum(bin_.count * abs(bin_.accuracy - bin_.confidence) for bin_ in filled) / len(tops),
        brier=brier / len(judged),
        nll=_nll(judged, temperature),
        bins=filled,
    )


def _bin(number: int, tops: Sequence[tuple[float, bool]]) -> Bin:
    low, high = number / BINS, (number + 1) / BINS
    inside = [(p, hit) for p, hit in tops if low <= p < high or (p == 1.0 and number == BINS - 1)]
    count = len(inside)
    return Bin(
        low=low,
        high=high,
        count=count,
        confidence=sum(p for p, _ in inside) / count if count else 0.0,
        accuracy=sum(hit for _, hit in inside) / count if count else 0.0,
    )


def _nll(judged: Sequence[Judged], temperature: float) -> float:
    total = 0.0
    for probabilities, right in judged:
        total -= math.log(max(scaled(probabilities, temperature).get(right, 0.0), _TINY))
    return total / len(judged)
