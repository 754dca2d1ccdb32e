"""Fit a temperature to the judged decisions of a journal, and put it in force.

Owns which judged decisions a fit takes, and the figures that describe it. Invariant: the temperature that is
put in force is fitted to all judged decisions. The figures are of one half of them: from 2 x `records.LEAST`
decisions on, they describe a fit of the other half; with fewer, the fit of all. Main thread of a command.
"""

from __future__ import annotations

import random
from typing import Literal

from msgspec import Struct

from thor_policy import catalog
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import identity_of
from thor_policy.daemon import journal_access, loading
from thor_policy.daemon.loading import find_adapter
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning.display import SILENT, Display
from thor_policy.policy import calibration
from thor_policy.policy.calibration import Judged, Quality

#: What says which outcome was right: reviewers, or the scenarios of suites.
By = Literal["reviews", "suites"]


class Fitted(Struct, frozen=True, kw_only=True):
    """A calibration, and the figures of one half of the decisions before and after a fit.

    `pack` and `model` are names; `judged` counts the decisions that `calibration` is fitted to.
    """

    calibration: records.Calibration
    judged: int
    before: Quality
    after: Quality
    pack: str
    model: str


def fit(config: Config, *, by: By = "reviews", display: Display = SILENT) -> Fitted:
    """Fit a temperature for the pack, model and adapter of `config`; `display` shows how far it is.

    Raises CalibrationError if too few decisions were judged; CatalogError, PackError, JournalError.
    """
    pack = loading.load_pack(config).info
    model = catalog.resolve(config.model, config.models_dir)
    adapter = find_adapter(config.adapter, config.adapter_scale, config, model.name)
    judge = identity_of(model.sha256, adapter.adapter if adapter else None)
    identity = {"pack_sha256": pack.sha256, "model_sha256": judge}
    judged: list[Judged] = []
    with Reader(config.journal_path) as reader, display.counting("judged decisions read") as count:
        for row in reader.judged(pack.sha256, judge, by=by):
            judged.append(_uncalibrated(row))
            count(len(judged))
    with display.working(f"fitting {len(judged):,} decisions"):
        fitted = calibration.fit(judged, **identity)
        random.Random(0).shuffle(judged)  # noqa: S311  (halves that no pattern in time divides)
        half = calibration.fit(judged[::2], **identity) if len(judged) >= 2 * records.LEAST else fitted
        unseen = judged[1::2]
        before, after = calibration.quality(unseen), calibration.quality(unseen, half.temperature)
    return Fitted(
        calibration=fitted,
        judged=len(judged),
        before=before,
        after=after,
        pack=pack.name,
        model=model.name,
    )


def put_in_force(config: Config, fitted: Fitted) -> None:
    """Record the calibration and decide by it from now on. Raises JournalError, RequestError, Unreachable."""
    journal_access.maintain(config, records.Maintenance(task="calibrate", calibration=fitted.calibration))


def _uncalibrated(row: Record) -> Judged:
    """Probabilities as the model gave them, whatever calibration was in force then, and the right label."""
    return calibration.scaled(row["probabilities"], 1 / row["temperature"]), row["right"]
