"""`web`: pages to look at decisions, to approve and to review, as a client of the daemon.

Owns the options; `web.serving` owns what they mean.
"""

from __future__ import annotations

import getpass
import logging
import sys
from collections import Counter
from pathlib import Path

import click

from thor_policy.cli.extras import needs_extra
from thor_policy.cli.log_lines import LogHandler
from thor_policy.cli.options import HttpOptions, configured, serves_http
from thor_policy.config import Config, data_path
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)


@click.command()
@configured("state_dir", "endpoint", "key", "keys_dir", "log_format", "log_level")
@serves_http(
    "127.0.0.1:8182",
    served="pages",
    tokens="File of the bearer tokens, which `tokens new` makes; people log in with one. Without it nobody "
    "logs in, and this process's own roles count.",
    public_url="The https URL by which browsers reach the pages.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of saved runs (`test --json`), with the folders baselines, reports and runs in it. Default: "
    "the state directory.",
)
@click.option(
    "--reviewer",
    metavar="NAME",
    help="Name of a reviewer without a token; default: the user of this process. With a token: its name.",
)
def web(config: Config, http: HttpOptions, results: Path | None, reviewer: str | None) -> None:
    """Serve pages for people until SIGTERM or Ctrl-C: decisions, approvals, reviews, figures.

    The pages read the journal of --state-dir without writing; everything else goes through the daemon. With
    --tokens the own user or key of this process needs the role relay and the roles of its visitors.
    """
    with needs_extra("http", "web"):
        from thor_policy.gateway import serving
        from thor_policy.web.serving import make_web_server
        from thor_policy.web.visits import Places

    logs.set_up(config.log_format, config.log_level, stream=sys.stderr, pretty=LogHandler())
    settings = serving.Settings(endpoint=config.endpoint, key=config.key_file, **http.settings())
    places = Places(
        journal=config.journal_path,
        events_endpoint=config.events_endpoint,
        results=(results or config.state_dir).absolute(),
        scenarios=data_path("scenarios"),
        reviewer=reviewer or _user(),
    )
    counters: Counter[str] = Counter()
    opened, settings = serving.listen(settings)

    def ready() -> None:
        log.info("ready at %s, asks %s", settings.base_url, config.endpoint)

    serving.serve(make_web_server(settings, places, counters, ready=ready), opened)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # users without a name occur in containers
        raise click.UsageError(
            "--reviewer: this process's user has no name on this machine; give one with --reviewer NAME"
        ) from error
