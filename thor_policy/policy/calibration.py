"""Calibration: what makes confidence agree with how often answers are right.

Owns the fit of a temperature, its application, contextual calibration, and their figures. Invariant: a
temperature keeps the order of the labels, so it changes the confidence and never the label. Pure; any thread.

With probabilities p and temperature T, the calibrated probabilities are p^(1/T), scaled to sum to 1.
T > 1 lowers the confidence, T < 1 raises it (Guo et al. 2017, "On Calibration of Modern Neural Networks").
Where nothing was reviewed yet, there is no temperature. Then the confidence may come from p divided by the
probabilities of questions without content, scaled to sum to 1 (Zhao et al. 2021, "Calibrate Before Use"):
that removes the bias that instruction and examples give a model that was not trained for the pack. It may
change the order of the labels, so nothing but a confidence is taken from it.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from thor_policy.core.errors import CalibrationError
from thor_policy.core.records import HIGHEST, LEAST, LOWEST, Calibration

#: Bins of equal width for the expected calibration error.
BINS = 15
#: Resamples behind an interval of the expected calibration error: how many, and how few where there are so
#: many decisions that these would be more draws than take some seconds. The share of it outside on each side.
RESAMPLES, _LEAST_RESAMPLES, _MOST_DRAWS, _TAIL = 1_000, 200, 2_000_000, 0.025
#: Decisions below which a bootstrap says nothing: the interval is then 0 to 1.
_TOO_FEW = 10
#: Used in place of a probability of zero in a likelihood.
_TINY = 1e-12
#: A judged decision: the probability of every label, and the label that was right.
Judged = tuple[Mapping[str, float], str]
#: The probability of the likeliest label, and whether it is right.
Top = tuple[float, bool]


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


class Sureness(Struct, frozen=True, kw_only=True):
    """The expected calibration error of a group of judged decisions, with a 95 % interval.

    `name` says which group, `confidence` is the mean confidence. `by_chance` is the error that `count`
    decisions of a perfectly calibrated model show on average: it is never 0, and large for few decisions.
    """

    name: str
    count: int
    accuracy: float
    confidence: float
    ece: float
    low: float
    high: float
    by_chance: float


def scaled(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The probabilities at a temperature; a temperature of 1 changes nothing."""
    if temperature == 1.0:
        return dict(probabilities)
    logs = {label: math.log(max(p, sys.float_info.min)) / temperature for label, p in probabilities.items()}
    return _normalised(logs)


def contextual(probabilities: Mapping[str, float], prior: Mapping[str, float]) -> dict[str, float]:
    """The probabilities divided by those of questions without content, scaled to sum to 1.

    Zhao et al. 2021, "Calibrate Before Use": what a prompt says where it is asked nothing is its bias.
    """
    logs = {
        label: math.log(max(p, sys.float_info.min)) - math.log(max(prior[label], sys.float_info.min))
        for label, p in probabilities.items()
    }
    return _normalised(logs)


def mean(distributions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of distributions over the same labels."""
    return {
        label: math.fsum(each[label] for each in distributions) / len(distributions)
        for label in distributions[0]
    }


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
    likeliest: list[Top] = []
    brier = 0.0
    for probabilities, right in judged:
        calibrated = scaled(probabilities, temperature)
        likeliest.append(_top(calibrated, right))
        brier += sum((p - (name == right)) ** 2 for name, p in calibrated.items())
    bins = [_bin(number, likeliest) for number in range(BINS)]
    filled = tuple(bin_ for bin_ in bins if bin_.count)
    return Quality(
        count=len(judged),
        accuracy=sum(hit for _, hit in likeliest) / len(likeliest),
        ece=_ece(likeliest),
        brier=brier / len(judged),
        nll=_nll(judged, temperature),
        bins=filled,
    )


def _normalised(logs: Mapping[str, float]) -> dict[str, float]:
    """Probabilities from their logarithms, which need not be normalised."""
    highest = max(logs.values())
    weights = {label: math.exp(log - highest) for label, log in logs.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def tops(judged: Iterable[Judged]) -> list[Top]:
    """For each judged decision the probability of the likeliest label, and whether it is right."""
    return [_top(probabilities, right) for probabilities, right in judged]


def sureness(name: str, tops: Sequence[Top]) -> Sureness | None:
    """How far confidence and accuracy of a group are apart, with an interval; None if it is empty.

    The interval is a bootstrap with a fixed seed. The error of few decisions is too large: each bin counts
    what chance moved it by. So the lower end is reflected at the error (basic bootstrap), and is 0 where a
    perfectly calibrated model shows as much in one of twenty samples; the upper end is the percentile.
    """
    if not tops:
        return None
    chance = random.Random(0)  # noqa: S311  (a repeatable interval, no secret)
    error, count = _ece(tops), len(tops)
    times = max(_LEAST_RESAMPLES, min(RESAMPLES, _MOST_DRAWS // count))
    calibrated = sorted(_ece([(p, chance.random() < p) for p, _ in tops]) for _ in range(times))
    low, high = 0.0, 1.0
    if count >= _TOO_FEW:
        resampled = sorted(_ece(chance.choices(tops, k=count)) for _ in range(times))
        high = resampled[round((times - 1) * (1 - _TAIL))]
        is_chance = error <= calibrated[round((times - 1) * (1 - 2 * _TAIL))]
        low = 0.0 if is_chance else max(0.0, 2 * error - high)
    return Sureness(
        name=name,
        count=count,
        accuracy=sum(hit for _, hit in tops) / count,
        confidence=math.fsum(p for p, _ in tops) / count,
        ece=error,
        low=min(error, low),
        high=max(error, high),
        by_chance=math.fsum(calibrated) / times,
    )


def _top(probabilities: Mapping[str, float], right: str) -> Top:
    """The probability of the likeliest label, and whether it is the right one."""
    label = max(probabilities, key=probabilities.__getitem__)
    return probabilities[label], label == right


def _ece(tops: Sequence[Top]) -> float:
    """The expected calibration error: by bins, how far the sums of confidences and of hits are apart."""
    apart = [0.0] * BINS
    for p, hit in tops:
        apart[_bin_of(p)] += p - hit
    return math.fsum(map(abs, apart)) / len(tops)


def _bin_of(p: float) -> int:
    return min(int(p * BINS), BINS - 1)


def _bin(number: int, tops: Sequence[Top]) -> Bin:
    inside = [(p, hit) for p, hit in tops if _bin_of(p) == number]
    count = len(inside)
    return Bin(
        low=number / BINS,
        high=(number + 1) / BINS,
        count=count,
        confidence=sum(p for p, _ in inside) / count if count else 0.0,
        accuracy=sum(hit for _, hit in inside) / count if count else 0.0,
    )


def _nll(judged: Sequence[Judged], temperature: float) -> float:
    total = 0.0
    for probabilities, right in judged:
        total -= math.log(max(scaled(probabilities, temperature).get(right, 0.0), _TINY))
    return total / len(judged)
