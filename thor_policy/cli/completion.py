"""`completion`: the script that makes a shell complete commands, options and names of what can be named."""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem, get_completion_class

from thor_policy.config import data_path
from thor_policy.core.errors import ThorPolicyError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="Your shell.")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes thorpolicy's commands: eval "$(thorpolicy completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  click has all three
    script = kind(ctx.find_root().command, {}, "thorpolicy", "_THORPOLICY_COMPLETE")
    sys.stdout.write(script.source())


def models(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of the model catalog; files, once a path is begun."""
    return _of_catalog(typed)


def adapters(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of adapters of the catalog; files, once a path is begun."""
    return _of_catalog(typed, only_adapters=True)


def _of_catalog(typed: str, *, only_adapters: bool = False) -> list[CompletionItem]:
    if "/" in typed:
        return [CompletionItem(typed, type="file")]
    from thor_policy import catalog

    try:
        known = catalog.Catalog.load().models
    except ThorPolicyError:  # whoever runs the command will be told
        return []
    return [
        CompletionItem(one.name, help=one.recommended_on)
        for one in known
        if one.name.startswith(typed) and not (only_adapters and one.base is None)
    ]


def packs(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of the packs that ship; directories, once a path is begun."""
    if "/" in typed:
        return [CompletionItem(typed, type="dir")]
    from thor_policy.policy import pack_files

    return [
        CompletionItem(name) for name in pack_files.available(data_path("prompts")) if name.startswith(typed)
    ]


#: What completes the settings that name something.
OF_SETTINGS = {"model": models, "pack": packs, "adapter": adapters}
