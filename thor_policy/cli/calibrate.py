"""`calibrate`: fit confidence to how often answers are right."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.learning import fitting
from thor_policy.learning.fitting import By, Fitted
from thor_policy.policy.calibration import Quality


@click.command()
@configured("state_dir", "endpoint", "key", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.option(
    "--by",
    type=click.Choice(get_args(By)),
    default="reviews",
    show_default=True,
    help="Source of the right outcomes: reviews, or scenarios that were run.",
)
@click.option("--dry-run", is_flag=True, help="Put nothing in force.")
@click.option(
    "--report-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write the figures and a reliability plot to DIR.",
)
@as_json
def calibrate(config: Config, by: By, dry_run: bool, report_dir: Path | None, as_json: bool) -> None:
    """Fit a temperature to judged decisions of the pack and model, and put it in force.

    The temperature in force is fitted to all decisions. From 100 on, the figures are of a half that their fit
    did not see. Calibration never changes a label, only its confidence.
    """
    fitted = fitting.fit(config, by=by, display=render)
    if report_dir is not None:
        _write_report(report_dir, fitted)
    if not dry_run:
        fitting.put_in_force(config, fitted)
    before, after = fitted.before, fitted.after
    if as_json:
        render.as_json(
            {
                "temperature": fitted.calibration.temperature,
                "judged": fitted.judged,
                "digest": fitted.calibration.digest,
                "in_force": not dry_run,
                "before": msgspec.to_builtins(before),
                "after": msgspec.to_builtins(after),
            }
        )
        return
    render.pairs({"judged decisions": fitted.judged, "temperature": fitted.calibration.temperature})
    rows = [
        (name, getattr(before, name), getattr(after, name)) for name in ("accuracy", "ece", "brier", "nll")
    ]
    render.table((f"unseen half, {before.count}", "before", "after"), rows)
    digest = fitted.calibration.digest
    render.line("not put in force" if dry_run else f"in force, {digest[:12]}")


def _write_report(directory: Path, fitted: Fitted) -> None:
    """Write `calibration.svg` and `calibration.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    points = {"before": _points(fitted.before), "after": _points(fitted.after)}
    plot = render.reliability_svg(f"{fitted.pack} on {fitted.model}", points)
    (directory / "calibration.svg").write_text(plot, encoding="utf-8")
    figures = {"fitted": fitted.calibration, "before": fitted.before, "after": fitted.after}
    (directory / "calibration.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


def _points(quality: Quality) -> list[tuple[float, float, int]]:
    return [(bin.confidence, bin.accuracy, bin.count) for bin in quality.bins]
