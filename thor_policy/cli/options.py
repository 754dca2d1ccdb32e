"""Command-line options, made from the settings in `config.Config`.

Owns the `configured` and `as_json` decorators. Invariant: help texts and names of settings are written in
Config alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from thor_policy import config
from thor_policy.cli.completion import OF_SETTINGS
from thor_policy.core.requests import RISKS

F = TypeVar("F", bound=Callable[..., Any])

#: Where a command finds what reads its settings anew, in the context's `meta`.
READ = "thor_policy.read_settings"


def configured(*names: str) -> Callable[[F], F]:
    """Options --config and those settings (all that are flags, if none are named), as one `config`."""

    def decorate(command: F) -> F:
        chosen = [f for f in config.settings() if (f.name in names if names else f.metadata["flag"])]

        @functools.wraps(command)
        def wrapper(*args: Any, config_file: Path | None, **kwargs: Any) -> Any:
            flags = {f.name: kwargs.pop(f.name) for f in chosen}
            read = functools.partial(config.load, config_file, flags=flags)
            click.get_current_context().meta[READ] = read
            return command(*args, config=read(), **kwargs)

        wrapped: Any = wrapper
        for f in reversed(chosen):
            wrapped = click.option(
                f"--{f.name.replace('_', '-')}",
                f.name,
                metavar=f.metadata["metavar"],
                help=f.metadata["help"],
                shell_complete=OF_SETTINGS.get(f.name),
            )(wrapped)
        result: F = click.option(
            "--config",
            "config_file",
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help="TOML file of settings; also THOR_POLICY_CONFIG.",
        )(wrapped)
        return result

    return decorate


def there(told: str, *, holding: str = "") -> str:
    """A path as a daemon finds it, which has another working directory; a name as it is.

    `holding` is the file that makes a directory one that is meant.
    """
    path = Path(os.path.expanduser(told)).absolute()  # noqa: PTH111  an unknown ~user stays as it is
    return str(path) if "/" in told or (path / holding).is_file() else told


#: Which decisions a command is about: the filters of `Reader.decisions`.
_FILTERS = (
    click.option("--outcome", help="Only this outcome."),
    click.option("--tier", help="Only this tier: rule, model, fallback; agent, human for reported ones."),
    click.option("--risk", type=click.Choice(RISKS), help="Only this risk."),
    click.option("--actor", help="Only this actor: user:alice, agent:trader, or a user's bare id."),
    click.option("--entity", help="Only about this resource or symbol: env:production."),
    click.option("--type", "type_", help="Only this type of decision: signal, risk, exception, ..."),
    click.option("--session", help="Only this session."),
    click.option("--since", help="Only from this RFC 3339 time on."),
    click.option("--until", help="Only before this RFC 3339 time."),
    click.option(
        "--status",
        type=click.Choice(["SUCCESS", "FAILURE", "PENDING"]),
        help="Only those that turned out so.",
    ),
)


def decision_filters(command: F) -> F:
    """Options that choose decisions; `type_` is the filter `type`."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
