"""`calibrate`: make confidence agree with how often answers are right."""

from __future__ import annotations

import random
from pathlib import Path

import click
import msgspec

from thor_policy import catalog
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import identity_of
from thor_policy.daemon import journal_access, loading
from thor_policy.daemon.loading import find_adapter
from thor_policy.journal.reader import Reader
from thor_policy.policy import calibration
from thor_policy.policy.calibration import Judged, Quality


@click.command()
@configured("state_dir", "endpoint", "key", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.option(
    "--by",
    type=click.Choice(["reviews", "suites"]),
    default="reviews",
    show_default=True,
    help="What says what was right: reviewers, or scenarios that were run.",
)
@click.option("--dry-run", is_flag=True, help="Only tell; put nothing in force.")
@click.option(
    "--report-dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write figures and a reliability plot there.",
)
@as_json
def calibrate(config: Config, by: str, dry_run: bool, report_dir: Path | None, as_json: bool) -> None:
    """Fit a temperature to judged decisions of the pack and model, and put it in force.

    The figures are of the half that the fit did not see; what is put in force is fitted to all.
    The label never changes, only how sure it sounds.
    """
    pack = loading.load_pack(config).info
    model = catalog.resolve(config.model, config.models_dir)
    adapter = find_adapter(config.adapter, config.adapter_scale, config, model.name)
    judge = identity_of(model.sha256, adapter.adapter if adapter else None)
    identity = {"pack_sha256": pack.sha256, "model_sha256": judge}
    with Reader(config.journal_path) as reader:
        judged = [_raw(row) for row in reader.judged(pack.sha256, judge, by=by)]
    fitted = calibration.fit(judged, **identity)
    random.Random(0).shuffle(judged)  # noqa: S311  (halves that no pattern in time divides)
    half = calibration.fit(judged[::2], **identity) if len(judged) >= 2 * records.LEAST else fitted
    unseen = judged[1::2]
    before, after = calibration.quality(unseen), calibration.quality(unseen, half.temperature)
    if report_dir is not None:
        report_dir.mkdir(parents=True, exist_ok=True)
        points = {"before": _points(before), "after": _points(after)}
        plot = render.reliability_svg(f"{pack.name} on {model.name}", points)
        (report_dir / "calibration.svg").write_text(plot, encoding="utf-8")
        told = {"fitted": fitted, "before": before, "after": after}
        (report_dir / "calibration.json").write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    if not dry_run:
        journal_access.maintain(config, records.Maintenance(task="calibrate", calibration=fitted))
    if as_json:
        render.as_json(
            {
                "temperature": fitted.temperature,
                "judged": len(judged),
                "digest": fitted.digest,
                "in_force": not dry_run,
                "before": msgspec.to_builtins(before),
                "after": msgspec.to_builtins(after),
            }
        )
        return
    render.pairs({"judged decisions": len(judged), "temperature": fitted.temperature})
    rows = [
        (name, getattr(before, name), getattr(after, name)) for name in ("accuracy", "ece", "brier", "nll")
    ]
    render.table((f"unseen half, {before.count}", "before", "after"), rows)
    render.line("not put in force" if dry_run else f"in force, {fitted.digest[:12]}")


def _raw(row: dict[str, object]) -> Judged:
    """Probabilities as the model gave them, whatever calibration was in force then."""
    probabilities: dict[str, float] = row["probabilities"]  # type: ignore[assignment]
    return calibration.scaled(probabilities, 1 / float(row["temperature"])), str(row["right"])  # type: ignore[arg-type]


def _points(quality: Quality) -> list[tuple[float, float, int]]:
    return [(one.confidence, one.accuracy, one.count) for one in quality.bins]
