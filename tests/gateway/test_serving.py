"""The gateway as a server: what it may listen on, TLS and certificates, slow and broken clients."""

from __future__ import annotations

import ipaddress
import signal
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.gateways import NOON, READ, Running, gateway
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.gateway import limits, serving
from thor_policy.security.tokens import Tokens

EVALUATION = "/access/v1/evaluation"


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"address": "192.0.2.1"}, "plain HTTP is for loopback only"),
            ({"address": "::", "tokens": "t"}, "plain HTTP is for loopback only"),
            ({"address": "192.0.2.1", "tls_cert": "c", "tls_key": "k"}, "without --tokens"),
            ({"address": "::", "tls_cert": "c", "tls_key": "k", "tokens": "t"}, "give --public-url"),
            ({"tls_cert": "c"}, "belong together"),
            ({"client_ca": "a"}, "--client-ca needs"),
            ({"public_url": "http://pdp.example.com"}, "must be an https URL"),
            ({"public_url": "https://pdp.example.com?x=1"}, "must be an https URL"),
            ({"public_url": "https://u@pdp.example.com"}, "must be an https URL"),
            ({"public_url": "https://"}, "must be an https URL"),
        ],
    )
    def test_what_would_expose_requests_is_refused_with_the_cure(
        self, settings: dict[str, Any], message: str
    ) -> None:
        wanted = {"address": "127.0.0.1", "port": 1, "endpoint": "ipc:///tmp/x"} | settings
        paths = {"tls_cert", "tls_key", "client_ca", "tokens"}
        given = {name: Path(value) if name in paths else value for name, value in wanted.items()}
        with pytest.raises(ConfigError, match=message):
            serving.Settings(**given)

    def test_an_address_that_is_taken_is_refused(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            wanted = serving.Settings(
                address="127.0.0.1", port=taken.getsockname()[1], endpoint="ipc:///tmp/x"
            )
            with pytest.raises(ConfigError, match="cannot be used"):
                serving.listen(wanted)


class Authority:
    """A certificate authority, and certificates of it in files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        made = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a certificate for 127.0.0.1 with this common name, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

        host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate, secret = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        made = self._signed(subject, key, host)
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, secret

    def _signed(self, subject: x509.Name, key: Any, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def trusting(authority: Authority, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return context


class TestTls:
    def test_a_client_certificate_has_the_roles_of_its_common_name_and_a_token_counts_too(
        self, certified: Config, tmp_path: Path
    ) -> None:
        ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
        server_certificate, server_key = ours.issue("pdp")
        path = tmp_path / "tokens" / "tokens.json"
        Tokens(path).new_certificate("edge", ("ask",), NOON)
        token = Tokens(path).new("alice", ("ask",), NOON)
        with gateway(
            certified.endpoint,
            tls_cert=server_certificate,
            tls_key=server_key,
            client_ca=ours.file,
            tokens=path,
        ) as running:

            def status(certificate: tuple[Path, Path] | None, **headers: str) -> int:
                with httpx.Client(verify=trusting(ours, certificate), trust_env=False) as client:
                    return client.post(running.url + EVALUATION, json=READ, headers=headers).status_code

            assert status(ours.issue("edge")) == 200
            assert status(None) == 401
            assert status(ours.issue("stranger")) == 401
            assert status(None, Authorization=f"Bearer {token}") == 200
            assert status(ours.issue("edge2"), Authorization="Bearer tp_none") == 401
            with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                status(others.issue("edge"))


class TestBrokenClients:
    @pytest.fixture
    def impatient(self, certified: Config, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(serving, "HEAD_S", 0.2)
        monkeypatch.setattr(limits, "BODY_S", 0.2)
        with gateway(certified.endpoint) as running:
            yield running

    def exchange(self, running: Running, data: bytes) -> bytes:
        """What comes back for bytes until the gateway closes the connection."""
        with socket.create_connection(("127.0.0.1", running.settings.port), timeout=20) as client:
            client.sendall(data)
            parts = []
            while part := client.recv(65_536):
                parts.append(part)
            return b"".join(parts)

    @pytest.mark.parametrize("data", [b"", b"POST /access", b"POST / HTTP/1.1\r\nHost: x\r\nX-A:"])
    def test_a_head_that_does_not_end_is_cut_off(self, impatient: Running, data: bytes) -> None:
        assert self.exchange(impatient, data) == b""
        assert impatient.counters["connections_too_slow"] == 1

    def test_a_body_that_does_not_end_is_408(self, impatient: Running) -> None:
        host = f"127.0.0.1:{impatient.settings.port}".encode()
        head = b"POST /access/v1/evaluation HTTP/1.1\r\nHost: " + host + b"\r\nX-Request-ID: slow\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        reply = self.exchange(impatient, head)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"x-request-id: slow\r\n" in reply

    @pytest.mark.parametrize(
        "data",
        [
            b"nonsense\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n",
            (
                b"POST /access/v1/evaluation HTTP/1.1\r\nHost: HERE\r\nContent-Type: application/json\r\n"
                b"X-Request-ID: r\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
            ),
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
    )
    def test_what_is_no_http_is_400_with_its_request_id_and_the_connection_ends(
        self, impatient: Running, data: bytes
    ) -> None:
        host = f"127.0.0.1:{impatient.settings.port}".encode()
        reply = self.exchange(impatient, data.replace(b"HERE", host))
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in reply
        assert (b"x-request-id: r\r\n" in reply) == (b"X-Request-ID" in data)

    def test_a_request_without_host_is_refused(self, impatient: Running) -> None:
        reply = self.exchange(impatient, b"GET /.well-known/authzen-configuration HTTP/1.0\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert impatient.counters["refused_host"] == 1


def test_the_command_serves_and_ends_with_0_after_sigterm(short_dir: Path) -> None:
    command = [sys.executable, "-c", "from thor_policy.cli.main import main; main()", "gateway"]
    command += ["--listen", "127.0.0.1:0", "--endpoint", f"ipc://{short_dir}/nobody.sock"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in iter(process.stderr.readline, "") if "ready at" in line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
