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
from thor_policy.cli.options import configured, listen_option
from thor_policy.config import Config
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@configured("endpoint", "key", "keys_dir", "max_request_bytes", "log_format", "log_level")
@listen_option(
    "127.0.0.1:8181",
    "Where to listen; with port 0 on a free port. Plain HTTP, and a gateway without --tokens, listen on "
    "loopback only.",
)
@click.option("--tls-cert", type=_FILE, help="PEM file of the certificate and its chain.")
@click.option("--tls-key", type=_FILE, help="PEM file of the certificate's key.")
@click.option(
    "--client-ca",
    type=_FILE,
    help="PEM file of the authority of client certificates; `tokens new --certificate` gives them roles.",
)
@click.option(
    "--tokens",
    type=_FILE,
    help="File of the bearer tokens, which `tokens new` makes. Without it nobody needs credentials, and the "
    "gateway's own roles count.",
)
@click.option(
    "--public-url",
    metavar="URL",
    help="The https URL by which clients call the gateway: the identifier in its metadata.",
)
def gateway(
    config: Config,
    listen: tuple[str, int],
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    tokens: Path | None,
    public_url: str | None,
) -> None:
    """Serve OpenID AuthZEN over HTTP until SIGTERM or Ctrl-C, as a client of a running daemon.

    With --tokens the gateway's own user or key needs the role relay and the roles of its clients.
    """
    with needs_extra("http", "gateway"):
        from thor_policy.gateway import serving

    logs.set_up(config.log_format, config.log_level, stream=sys.stderr, pretty=LogHandler())
    settings = serving.Settings(
        address=listen[0],
        port=listen[1],
        endpoint=config.endpoint,
        key=config.key_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        tokens=tokens,
        public_url=public_url,
        max_bytes=config.max_request_bytes,
    )
    counters: Counter[str] = Counter()
    opened, settings = serving.listen(settings)
    application = serving.make_gateway(settings, counters).application()

    def ready() -> None:
        log.info("ready at %s, asks %s", settings.base_url, config.endpoint)

    serving.serve(serving.make_server(application, settings, counters, ready=ready), opened)
