"""The CURVE keys: the server's own, and those of the clients that it knows.

Owns the directory of keys. Invariant: a file there is whole or not visible, a secret is readable by its
owner alone, and a key counts only while `clients.json` names it and says nothing of a revocation; a file
that cannot be read makes no key count. `Keys` is for commands and may wait for the disk; `KeyRing` is
asked by the main thread for every handshake and request, and looks at the file's stamp each time, so that
a revocation needs no restart.

    server.key       the server's pair; mode 0600
    server.pub       its public half, for other implementations
    clients.json     name, public key and roles of each client, and when it was revoked; no secret
    NAME.key         what a client needs: its pair and the server's public key; mode 0600, to be taken away
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

from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Role
from thor_policy.security import files

log = logging.getLogger(__name__)

#: Most bytes of a file of keys.
MAX_BYTES = 4 * 2**20
#: A file as young as this may change again without another stamp, in nanoseconds: stamps have a coarse clock.
_YOUNG_NS = 2 * 10**9

#: A key in the text form of ZeroMQ (Z85).
Z85 = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]

T = TypeVar("T")


class KeyPair(Struct, frozen=True, kw_only=True):
    """Both halves of a key."""

    public: Z85
    secret: Z85


class ClientKey(KeyPair, frozen=True, kw_only=True):
    """What a client needs: its pair, and the public key of the server that it trusts."""

    name: Name
    server: Z85


class KeyHolder(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A client that the server knows, or knew: `made_at` and `revoked_at` are RFC 3339 in UTC."""

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
    """The keys in `directory`, which is made when the first is. Raises ConfigError, as all its calls do."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._register = directory / "clients.json"

    def clients(self) -> tuple[KeyHolder, ...]:
        """Every client key, revoked ones too, in the order in which they were made."""
        if not self._register.exists():
            return ()
        return _read(self._register, _Register).keys

    def server(self) -> KeyPair:
        """The server's own pair."""
        path = self._directory / "server.key"
        _need_curve()
        if not path.exists():
            raise ConfigError(
                f"there is no server key in {self._directory}; run `thorpolicy keys new --server`"
            )
        return _read(path, KeyPair, secret=True)

    def new_server(self) -> Path:
        """Make the server's pair, unless it is there; returns the file of its public half."""
        with self._changing():
            return self._new_server()

    def new(self, name: str, roles: Iterable[Role], at: float) -> Path:
        """Make a client's key, at Unix time `at`; returns the file to hand to that client."""
        with self._changing():
            self._new_server()
            try:
                msgspec.convert(name, Name)
            except msgspec.ValidationError:
                raise ConfigError(
                    f"a key cannot be called {name!r}: letters, digits, dot, dash and underscore, at most 64"
                ) from None
            path = self._directory / f"{name}.key"
            if name == "server" or any(o.name == name and o.revoked_at is None for o in self.clients()):
                raise ConfigError(f"there is a key {name!r}; revoke it first, or choose another name")
            pair = _new_pair()
            held = ClientKey(name=name, server=self.server().public, public=pair.public, secret=pair.secret)
            holder = KeyHolder(name=name, public=pair.public, roles=tuple(roles), made_at=_time(at))
            # before it counts: a key that nobody holds is no use
            files.place(path, _json(held), 0o600, over=True)
            files.place(self._register, _json(_Register(keys=(*self.clients(), holder))), 0o644, over=True)
            return path

    def revoke(self, name: str, at: float) -> KeyHolder:
        """Make a key count no more, from Unix time `at` on; a daemon notices at once."""
        with self._changing():
            keys = self.clients()
            active = [one for one in keys if one.name == name and one.revoked_at is None]
            if not active:
                known = ", ".join(one.name for one in keys if one.revoked_at is None) or "none"
                raise ConfigError(f"there is no key {name!r} to revoke; known: {known}")
            revoked = msgspec.structs.replace(active[0], revoked_at=_time(at))
            left = tuple(revoked if one is active[0] else one for one in keys)
            files.place(self._register, _json(_Register(keys=left)), 0o644, over=True)
            (self._directory / f"{name}.key").unlink(missing_ok=True)
            return revoked

    def _new_server(self) -> Path:
        public, path = self._directory / "server.pub", self._directory / "server.key"
        if not path.exists():
            pair = _new_pair()
            files.place(path, _json(pair), 0o600, over=True)
        files.place(public, f"{self.server().public}\n".encode(), 0o644, over=True)
        return public

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One process at a time changes the directory."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            lock = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConfigError(f"cannot keep keys in {self._directory}: {error.strerror}") from error


def load_client_key(path: Path) -> ClientKey:
    """The client's key in a file that `Keys.new` made. Raises ConfigError."""
    return _read(path, ClientKey, secret=True)


# ---------------------------------------------------------------- for the daemon, at every request


class KeyRing:
    """The client keys of `directory` as their file says at this moment.

    `now_ns` is the wall clock in nanoseconds.
    """

    def __init__(self, directory: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = directory / "clients.json"
        self._now_ns = now_ns
        self._stamp: tuple[int, int, int] | None = None
        self._settled = False
        self._trouble = ""
        self._holders: dict[str, KeyHolder] = {}

    def find(self, public: str) -> KeyHolder | None:
        """Who holds the secret of this public key (Z85); None if nobody known does, or it was revoked."""
        try:
            found = self._path.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp != self._stamp or not self._settled:
                self._settled = abs(self._now_ns() - found.st_mtime_ns) > _YOUNG_NS
                keys = _read(self._path, _Register).keys
                self._holders = {one.public: one for one in keys if one.revoked_at is None}
                self._stamp, self._trouble = stamp, ""
        except (OSError, ConfigError) as error:
            self._holders, self._stamp = {}, None
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("no key counts: %s", error)
        return self._holders.get(public)


# ---------------------------------------------------------------- files


def _need_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError("this ZeroMQ was built without CURVE; install pyzmq from its wheel")


def _new_pair() -> KeyPair:
    _need_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _json(value: Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _read(path: Path, kind: type[T], *, secret: bool = False) -> T:
    """What a file of keys holds. Raises ConfigError, which never repeats it."""
    try:
        content = files.read(path, max_bytes=MAX_BYTES, trouble=_exposed if secret else lambda _: None)
    except ValueError as error:
        raise ConfigError(f"the key file {path} {error}") from None
    except OSError as error:
        cure = "; `thorpolicy keys new` makes one" if isinstance(error, FileNotFoundError) else ""
        if isinstance(error, PermissionError):
            cure = "; give it with `chown` to the user who has to read it"
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}{cure}") from error
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{path} is no key file of `thorpolicy keys`") from None


def _exposed(status: os.stat_result) -> str | None:
    if status.st_mode & 0o077:
        return f"has mode {status.st_mode & 0o777:04o}, so others may come at it; run `chmod 600` on it"
    return None
