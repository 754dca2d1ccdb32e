"""`trace`: decision traces."""

from __future__ import annotations

import click

from thor_policy.cli.quarantine import quarantine


@click.group()
def trace() -> None:
    """Complete the traces of decisions."""


trace.add_command(quarantine)
