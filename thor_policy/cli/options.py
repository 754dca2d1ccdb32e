"""Command-line options, made from the settings in `config.Config`.

Owns the decorators `configured`, `serves_http`, `decision_filters`, `with_tests` and `as_json`, and what a
number and a question must be. Invariant: the name and help text of a setting are written only in Config. Main
thread.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import click

from thor_policy import config
from thor_policy.cli import completion
from thor_policy.core import strict_json
from thor_policy.core.decisions import ConfidenceLevel
from thor_policy.core.requests import RISKS, Json, Urgency

F = TypeVar("F", bound=Callable[..., Any])

#: Key in the context's `meta` of the function that reads the command's settings again.
READ_SETTINGS = "thor_policy.read_settings"


def configured(*names: str) -> Callable[[F], F]:
    """Add --config and an option for each named setting; the command gets one `config`.

    Without names, every setting that is marked as a flag becomes an option.
    """

    def decorate(command: F) -> F:
        chosen = [
            setting
            for setting in config.settings()
            if (setting.name in names if names else setting.metadata["flag"])
        ]

        @functools.wraps(command)
        def wrapper(*args: Any, config_file: Path | None, **kwargs: Any) -> Any:
            flags = {setting.name: kwargs.pop(setting.name) for setting in chosen}
            read_settings = functools.partial(config.load, config_file, flags=flags)
            click.get_current_context().meta[READ_SETTINGS] = read_settings
            return command(*args, config=read_settings(), **kwargs)

        wrapped: Any = wrapper
        for setting in reversed(chosen):
            wrapped = click.option(
                f"--{setting.name.replace('_', '-')}",
                setting.name,
                metavar=setting.metadata["metavar"],
                help=setting.metadata["help"],
                shell_complete=completion.FOR_SETTINGS.get(setting.name),
            )(wrapped)
        result: F = click.option(
            "--config",
            "config_file",
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            help="TOML file of settings. Environment: THOR_POLICY_CONFIG.",
        )(wrapped)
        return result

    return decorate


def is_given(ctx: click.Context, option: str) -> bool:
    """True if the option is on the command line, not only in a file or the environment."""
    return ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


def absolute_if_path(name_or_path: str, *, marker: str = "") -> str:
    """A path made absolute, because the daemon has another working directory; a name unchanged.

    An argument is a path if it contains a slash, or if the file `marker` exists in it.
    """
    path = Path(os.path.expanduser(name_or_path)).absolute()  # noqa: PTH111  an unknown ~user stays as it is
    is_path = "/" in name_or_path or os.path.isfile(path / marker)  # noqa: PTH113  False for any name
    return str(path) if is_path else name_or_path


#: Filters of `Reader.decisions`, as options.
_FILTERS = (
    click.option("--outcome", help="Show only this outcome."),
    click.option(
        "--tier",
        help="Show only this tier: rule, cache, model, fallback; reported: agent, human, ...",
    ),
    click.option("--risk", type=click.Choice(RISKS), help="Show only this risk."),
    click.option("--actor", help="Show only this actor: user:alice, agent:trader, or the id of a user."),
    click.option("--entity", help="Show only this resource or symbol: env:production."),
    click.option(
        "--type",
        "type_",
        help="Show only this type of decision: signal, risk, exception, ...",
    ),
    click.option("--session", help="Show only this session."),
    click.option("--since", help="Show only decisions recorded from this RFC 3339 wall time on."),
    click.option("--until", help="Show only decisions recorded before this RFC 3339 wall time."),
    click.option(
        "--status",
        type=click.Choice(["SUCCESS", "FAILURE", "PENDING"]),
        help="Show only decisions with this recorded outcome.",
    ),
    click.option("--exceptions", "exception", is_flag=True, help="Show only exceptions from the policy."),
    click.option("--judgment-calls", "judgment_call", is_flag=True, help="Show only judgment calls."),
    click.option("--urgency", type=click.Choice(get_args(Urgency)), help="Show only this urgency."),
    click.option(
        "--confidence-level",
        type=click.Choice(get_args(ConfidenceLevel)),
        help="Show only this level. Decisions without a calibration have none.",
    ),
)


def decision_filters(command: F) -> F:
    """Add the options that filter decisions; `--type` arrives as `type_`."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def finite(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    """The callback of an option that is a number: NaN and infinities are refused with exit status 2.

    A range does not refuse NaN, which is neither below nor above its bounds.
    """
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not finite; give a finite number.")
    return value


#: For commands that leave out decisions of tests otherwise.
with_tests = click.option(
    "--tests", is_flag=True, help="Include decisions of tests: questions of `test` and `invariance`."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class HttpOptions(NamedTuple):
    """Where a command serves HTTP, and what it knows its clients by."""

    listen: tuple[str, int]
    tls_cert: Path | None
    tls_key: Path | None
    tokens: Path | None
    public_url: str | None

    def settings(self) -> dict[str, Any]:
        """The options as keyword arguments of `gateway.serving.Settings`."""
        members = self._asdict()
        members["address"], members["port"] = members.pop("listen")
        return members


def serves_http(default: str, *, served: str, tokens: str, public_url: str) -> Callable[[F], F]:
    """Add the options of a command that serves HTTP; the command gets one `http`.

    `default` is where it listens; `served` says in the help what needs --tokens elsewhere than on loopback,
    and `tokens` and `public_url` are the help of these options.
    """
    file = click.Path(dir_okay=False, path_type=Path)
    options = (
        click.option(
            "--listen",
            default=default,
            show_default=True,
            metavar="ADDRESS:PORT",
            callback=_address,
            help=f"Where to listen; with port 0 on a free port. Plain HTTP, and {served} without --tokens, "
            "listen on loopback only.",
        ),
        click.option("--tls-cert", type=file, help="PEM file of the certificate and its chain."),
        click.option("--tls-key", type=file, help="PEM file of the certificate's key."),
        click.option("--tokens", type=file, help=tokens),
        click.option("--public-url", metavar="URL", help=public_url),
    )

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            http = HttpOptions(**{name: kwargs.pop(name) for name in HttpOptions._fields})
            return command(*args, http=http, **kwargs)

        wrapped: Any = wrapper
        for option in reversed(options):
            wrapped = option(wrapped)
        result: F = wrapped
        return result

    return decorate


def _address(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, int]:
    address, colon, port = value.rpartition(":")
    if not colon or not address or not port.isdecimal() or int(port) > 65_535:
        raise click.BadParameter(f"{value!r} must be ADDRESS:PORT, such as 127.0.0.1:8181.")
    return address.removeprefix("[").removesuffix("]"), int(port)


#: The argument of commands that read a pack's files.
shipped_pack = click.argument(
    "pack",
    metavar="NAME|DIR",
    help="Name of a shipped pack (`packs list`), or a pack's directory.",
    shell_complete=completion.packs,
)


def read_question(source: str) -> Json:
    """The question that an argument gives: JSON, a file, or `-` for standard input. Raises UsageError."""
    text: str | bytes = source
    if source == "-":
        text = sys.stdin.buffer.read()
    elif not source.lstrip().startswith("{"):
        try:
            text = Path(source).read_bytes()
        except (OSError, ValueError) as error:
            raise click.UsageError(f"{source!r} is neither JSON nor a readable file: {error}") from error
    try:
        return strict_json.decode(text)
    except strict_json.JsonError as error:
        raise click.UsageError(f"the question{':' if error.place else ''} {error}") from error
