"""`models`: the model catalog and its files.

Owns the four commands that list, fetch, check and locate a model file. Invariant: only `pull` downloads.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from thor_policy import catalog
from thor_policy.cli import completion, render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config


@click.group()
def models() -> None:
    """List, fetch and check model files."""


@models.command(name="list")
@configured("models_dir")
@as_json
def list_models(config: Config, as_json: bool) -> None:
    """List the models of the catalog, and which of them are present."""
    rows = catalog.listing(config.models_dir)
    if as_json:
        render.as_json(msgspec.to_builtins(rows, enc_hook=str))
        return
    render.table(
        ("model", "size", "for", "licence", "file"),
        [
            (
                row.model.name,
                f"{row.model.size_bytes / 1e9:.1f} GB",
                row.model.recommended_on,
                row.model.licence,
                "ok" if row.present else "missing",
            )
            for row in rows
        ],
    )


@models.command()
@configured("models_dir")
@click.argument("name", help="A name that `models list` prints.", shell_complete=completion.models)
@click.option(
    "--force", is_flag=True, help="Fetch again, replace the file, and record its digest and commit anew."
)
def pull(config: Config, name: str, force: bool) -> None:
    """Fetch a model of the catalog."""
    from thor_policy.catalog import fetching  # imports httpx, which no other command needs

    model = catalog.Catalog.load().get(name)
    with render.reading_bytes(f"fetching {name}") as progress:
        file = fetching.pull(model, config.models_dir, progress=progress, force=force)
    render.line(f"{file.path} sha256 {file.sha256}")


@models.command()
@configured("models_dir")
@click.argument(
    "name",
    required=False,
    help="A name that `models list` prints; without it, every model that is present.",
    shell_complete=completion.models,
)
@as_json
@click.pass_context
def verify(ctx: click.Context, config: Config, name: str | None, as_json: bool) -> None:
    """Hash whole files and compare with the known digests; exit status 1 unless every file is ok."""
    if name:
        chosen = [catalog.Catalog.load().get(name)]
    else:
        chosen = [row.model for row in catalog.listing(config.models_dir) if row.present]
    verdicts = []
    for model in chosen:
        with render.reading_bytes(f"reading {model.name}") as progress:
            verdicts.append(catalog.verify(model, config.models_dir, progress=progress))
    if as_json:
        render.as_json([msgspec.to_builtins(v, enc_hook=str) | {"status": v.status} for v in verdicts])
    else:
        for verdict in verdicts:
            rows = {"status": verdict.status, "expected": verdict.expected, "found": verdict.actual}
            commits = {"commit": verdict.commit, "expected commit": verdict.expected_commit}
            rows |= {name: commit for name, commit in commits.items() if commit}
            render.pairs(rows, title=str(verdict.path))
    ctx.exit(0 if all(v.status == "ok" for v in verdicts) else 1)


@models.command()
@configured("models_dir")
@click.argument(
    "name",
    help="A name that `models list` prints, or the path of a GGUF file.",
    shell_complete=completion.models,
)
def path(config: Config, name: str) -> None:
    """Print the path of a model's file."""
    render.line(str(Path(catalog.resolve(name, config.models_dir).path)))
