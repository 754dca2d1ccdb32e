"""`doctor`: check this machine and its settings, and print a cure for each problem.

Owns the command; `daemon.doctor` owns the checks. Main thread.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.daemon.doctor import count_checks, examine


@click.command()
@configured()
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("/"),
    metavar="DIR",
    help="Examine the Jetson whose files were copied to this directory, see docs/how-to/jetson.md.",
)
@as_json
@click.pass_context
def doctor(ctx: click.Context, config: Config, root: Path, as_json: bool) -> None:
    """Check device, engine, model, pack, disk, SQLite and daemon; exit status 1 if a check says missing.

    On a Jetson also: JetPack, CUDA build, memory, power mode, clocks, heat, devices, decode rate.
    """
    with render.progress(count_checks(root), "checks") as advance:
        findings = examine(config, root=root, advance=advance)
    if as_json:
        render.as_json(msgspec.to_builtins(findings))
    else:
        render.table(("check", "state", "detail"), [(f.name, f.state, f.detail) for f in findings])
        for finding in findings:
            if finding.cure:
                render.line(f"  {finding.name}: {finding.cure}")
    ctx.exit(1 if any(finding.state == "missing" for finding in findings) else 0)
