"""`gateway`: serve OpenID AuthZEN over HTTP, as a client of the daemon.

Owns the options; `gateway.serving` owns what they mean.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import click

from thor_policy.cli.extras import needs_extra
from thor_policy.cli.log_lines import LogHandler
from thor_policy.cli.options import HttpOptions, configured, serves_http
from thor_policy.config import Config
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)


@click.command()
@configured("endpoint", "key", "keys_dir", "max_request_bytes", "log_format", "log_level")
@serves_http(
    "127.0.0.1:8181",
    served="a gateway",
    tokens="File of the bearer tokens, which `tokens new` makes. Without it nobody needs credentials, and "
    "the gateway's own roles count.",
    public_url="The https URL by which clients call the gateway: the identifier in its metadata.",
)
@click.option(
    "--client-ca",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PEM file of the authority of client certificates; `tokens new --certificate` gives them roles.",
)
def gateway(config: Config, http: HttpOptions, client_ca: Path | None) -> None:
    """Serve OpenID AuthZEN over HTTP until SIGTERM or Ctrl-C, as a client of a running daemon.

    With --tokens the gateway's own user or key needs the role relay and the roles of its clients.
    """
    with needs_extra("http", "gateway"):
        from thor_policy.gateway import serving

    logs.set_up(config.log_format, config.log_level, stream=sys.stderr, pretty=LogHandler())
    settings = serving.Settings(
        endpoint=config.endpoint,
        key=config.key_file,
        client_ca=client_ca,
        max_bytes=config.max_request_bytes,
        **http.settings(),
    )
    counters: Counter[str] = Counter()
    opened, settings = serving.listen(settings)
    application = serving.make_gateway(settings, counters).application()

    def ready() -> None:
        log.info("ready at %s, asks %s", settings.base_url, config.endpoint)

    serving.serve(serving.make_server(application, settings, counters, ready=ready), opened)
