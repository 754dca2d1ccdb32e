"""`completion`: a shell script that completes commands, options, and the names of models, adapters and packs.

Owns what is completed for each argument that takes a name.
"""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem, get_completion_class

from thor_policy.config import data_path
from thor_policy.core.errors import ThorPolicyError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="Shell to print the script for.")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script. Use it with: eval "$(thorpolicy completion bash)"."""
    completion_class = get_completion_class(shell)
    assert completion_class is not None  # noqa: S101  click supports all three shells
    script = completion_class(ctx.find_root().command, {}, "thorpolicy", "_THORPOLICY_COMPLETE")
    sys.stdout.write(script.source())


def models(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Model names of the catalog; files if the typed text contains a slash."""
    return _catalog_names(typed)


def adapters(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Adapter names of the catalog; files if the typed text contains a slash."""
    return _catalog_names(typed, only_adapters=True)


def _catalog_names(typed: str, *, only_adapters: bool = False) -> list[CompletionItem]:
    if "/" in typed:
        return [CompletionItem(typed, type="file")]
    from thor_policy import catalog

    try:
        models = catalog.Catalog.load().models
    except ThorPolicyError:  # the command itself reports the error when it runs
        return []
    return [
        CompletionItem(model.name, help=model.recommended_on)
        for model in models
        if model.name.startswith(typed) and not (only_adapters and model.base is None)
    ]


def packs(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of the shipped packs; directories if the typed text contains a slash."""
    if "/" in typed:
        return [CompletionItem(typed, type="dir")]
    from thor_policy.policy import pack_files

    return [
        CompletionItem(name) for name in pack_files.available(data_path("prompts")) if name.startswith(typed)
    ]


#: Completion functions by setting, for settings whose value is a name.
FOR_SETTINGS = {"model": models, "pack": packs, "adapter": adapters}
