"""The CURVE keys: the server's own key pair, and the keys of the known clients.

Owns the directory of keys. Invariant: a file there is complete or not visible; only its owner can read a
secret; a key is valid only while `clients.json` lists it as not revoked. If `clients.json` cannot be read,
no key is valid. `Keys` is for commands and may wait for the disk. The main thread asks `KeyRing` at every
handshake and request; it checks the timestamp of `clients.json` each time, so a revocation needs no restart.

    server.key       the server's key pair; mode 0600
    server.pub       its public key, for other implementations
    clients.json     name, public key, roles and revocation time of each client; no secret
    NAME.key         the file for a client: its key pair and the server's public key; mode 0600, to be moved
                     to that client
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import zmq
from msgspec import Meta, Struct

from thor_policy.core import strict_json
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Role
from thor_policy.security import files

log = logging.getLogger(__name__)

#: Largest file of keys, in bytes.
MAX_BYTES = 4 * 2**20
#: A younger file may change again with the same timestamp, since timestamps are coarse; in nanoseconds.
_YOUNG_NS = 2 * 10**9

#: A key in the text form of ZeroMQ (Z85).
Z85 = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]

T = TypeVar("T")


class KeyPair(Struct, frozen=True, kw_only=True):
    """A public and a secret key."""

    public: Z85
    secret: Z85


class ClientKey(KeyPair, frozen=True, kw_only=True):
    """Content of a client's key file: its key pair, and the public key of the server that it trusts."""

    name: Name
    server: Z85


class KeyHolder(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A client's entry in clients.json, revoked or not; `made_at` and `revoked_at` are RFC 3339 in UTC."""

    name: Name
    public: Z85
    roles: tuple[Role, ...]
    made_at: str
    revoked_at: str | None = None


class _Register(Struct, frozen=True, kw_only=True):
    """The content of clients.json."""

    keys: tuple[KeyHolder, ...] = ()


# ---------------------------------------------------------------- for commands, and for the start


class Keys:
    """The keys in `directory`, which is made with the first key. All calls raise ConfigError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._register = directory / "clients.json"

    def clients(self) -> tuple[KeyHolder, ...]:
        """All client keys, with the revoked ones, oldest first."""
        if not os.path.lexists(self._register):
            return ()
        return _read(self._register, _Register, own=True).keys

    def server(self) -> KeyPair:
        """The server's own key pair."""
        path = self._directory / "server.key"
        _require_curve()
        if not os.path.lexists(path):
            raise ConfigError(
                f"there is no server key in {self._directory}; run `thorpolicy keys new --server`"
            )
        return _read(path, KeyPair, secret=True, own=True)

    def new_server(self) -> Path:
        """Make the server's key pair if there is none; return the file of its public key."""
        with self._locked():
            return self._new_server()

    def new(self, name: str, roles: Iterable[Role], at: float) -> Path:
        """Make a client's key, at Unix time `at`; return the file for that client."""
        with self._locked():
            self._new_server()
            try:
                msgspec.convert(name, Name)
            except msgspec.ValidationError:
                raise ConfigError(
                    f"a key cannot be called {name!r}: use at most 64 letters, digits, dots, dashes and "
                    "underscores, and begin with a letter or digit"
                ) from None
            path = self._directory / f"{name}.key"
            if name == "server" or any(o.name == name and o.revoked_at is None for o in self.clients()):
                raise ConfigError(f"there is a key {name!r}; revoke it first, or choose another name")
            pair = _new_pair()
            client_key = ClientKey(
                name=name, server=self.server().public, public=pair.public, secret=pair.secret
            )
            holder = KeyHolder(name=name, public=pair.public, roles=tuple(roles), made_at=_time(at))
            # before clients.json lists it: a listed key without a file would be useless
            files.place(path, _json(client_key), 0o600, over=True)
            files.place(self._register, _json(_Register(keys=(*self.clients(), holder))), 0o644, over=True)
            return path

    def revoke(self, name: str, at: float) -> KeyHolder:
        """Revoke a key at Unix time `at`; a running daemon refuses it at once."""
        with self._locked():
            keys = self.clients()
            active = [holder for holder in keys if holder.name == name and holder.revoked_at is None]
            if not active:
                known = ", ".join(holder.name for holder in keys if holder.revoked_at is None) or "none"
                raise ConfigError(f"there is no key {name!r} to revoke; known: {known}")
            revoked = msgspec.structs.replace(active[0], revoked_at=_time(at))
            holders = tuple(revoked if holder is active[0] else holder for holder in keys)
            files.place(self._register, _json(_Register(keys=holders)), 0o644, over=True)
            (self._directory / f"{name}.key").unlink(missing_ok=True)
            return revoked

    def _new_server(self) -> Path:
        public, path = self._directory / "server.pub", self._directory / "server.key"
        if not os.path.lexists(path):
            pair = _new_pair()
            files.place(path, _json(pair), 0o600, over=True)
        files.place(public, f"{self.server().public}\n".encode(), 0o644, over=True)
        return public

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the directory, so that one process at a time changes it."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            file = self._directory
            try:
                files.check_directory(file)
                file = file / ".lock"
                lock = files.open_own(file, os.O_RDWR | os.O_CREAT)
            except ValueError as error:
                raise ConfigError(f"cannot keep keys in {self._directory}: {file} {error}") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConfigError(f"cannot keep keys in {self._directory}: {error.strerror}") from error


def load_client_key(path: Path) -> ClientKey:
    """The key in a client's key file, which `Keys.new` made. Raises ConfigError."""
    return _read(path, ClientKey, secret=True)


# ---------------------------------------------------------------- for the daemon, at every request


class KeyRing:
    """The valid client keys of `directory`, as clients.json lists them at this moment.

    `now_ns` is the wall clock in nanoseconds.
    """

    def __init__(self, directory: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = directory / "clients.json"
        self._now_ns = now_ns
        self._stamp: tuple[int, int, int] | None = None
        self._settled = False
        self._logged_error = ""
        self._holders: dict[str, KeyHolder] = {}

    def find(self, public: str) -> KeyHolder | None:
        """The client with this public key (Z85); None if it is unknown or revoked."""
        try:
            status = self._path.lstat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp != self._stamp or not self._settled:
                self._settled = abs(self._now_ns() - status.st_mtime_ns) > _YOUNG_NS
                keys = _read(self._path, _Register, own=True).keys
                self._holders = {holder.public: holder for holder in keys if holder.revoked_at is None}
                self._stamp, self._logged_error = stamp, ""
        except (OSError, ConfigError) as error:
            self._holders, self._stamp = {}, None
            if str(error) != self._logged_error:
                self._logged_error = str(error)
                log.error("no client key is valid: %s", error)
        return self._holders.get(public)


# ---------------------------------------------------------------- files


def _require_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError("this ZeroMQ was built without CURVE; install pyzmq from its wheel")


def _new_pair() -> KeyPair:
    _require_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _json(value: Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _read(path: Path, kind: type[T], *, secret: bool = False, own: bool = False) -> T:
    """Content of a file of keys, with `own` of the daemon's. Raises ConfigError, never with the content."""
    check = _exposed if secret else lambda _: None
    try:
        if own:
            owners = files.owners_beside(path)
            content = files.read_own(path, max_bytes=MAX_BYTES, owners=owners, check=check)
        else:
            content = files.read(path, max_bytes=MAX_BYTES, check=check)
    except ValueError as error:
        raise ConfigError(f"the key file {path} {error}") from None
    except OSError as error:
        cure = ""
        if isinstance(error, FileNotFoundError):
            cure = "; correct --key, or make a key with `thorpolicy keys new NAME` on the daemon's machine"
        if isinstance(error, PermissionError):
            cure = "; run `chown` on it, for the user who has to read it"
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}{cure}") from error
    try:
        return strict_json.decode_as(content, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ConfigError(f"{path} is no key file of `thorpolicy keys`") from None


def _exposed(status: os.stat_result) -> str | None:
    if status.st_mode & 0o077:
        return f"has mode {status.st_mode & 0o777:04o}, so other users can access it; run `chmod 600` on it"
    return None
