"""Bearer tokens, and certificates of clients: who asks over HTTP, and with which roles.

Owns the tokens file. Invariant: the file holds no token, only the sha256 of each secret, and only its owner
can read it; a token that is unknown, revoked or expired is nobody's; comparing takes the same time wherever
two secrets differ. `Tokens` is for commands and waits for the disk; `TokenRing` is for a server's event loop,
and reads the file again only when it changed. Time is an argument.

A token looks like `tp_<id>_<secret>`: 8 and 43 characters. The id says which entry it is, so that a lookup
compares one digest. A secret has 256 random bits, so one sha256 of it is as good as a slow hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from thor_policy.core import strict_json
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Role
from thor_policy.security import files

log = logging.getLogger(__name__)

Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
#: The id and the secret of a token.
TOKEN = re.compile(r"tp_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
#: Largest tokens file, in bytes; entries that it may have.
MAX_BYTES, MAX_ENTRIES = 2**21, 4_096
#: Within so many nanoseconds after a change, a file may change again without a new time.
_YOUNG_NS = 2_000_000_000
_NO_SECRET = hashlib.sha256(b"").hexdigest()


class Holder(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the tokens file; times are RFC 3339 in UTC.

    A `token` has an id and the sha256 of its secret. A `cert` is whoever holds a client certificate, of an
    authority that the server trusts, whose subject has the common name `name`.
    """

    kind: Literal["token", "cert"]
    name: Name
    roles: tuple[Role, ...]
    made_at: str
    id: str = ""
    sha256: str = ""
    expires_at: str | None = None
    revoked_at: str | None = None

    @property
    def who(self) -> str:
        """`token:alice`, `cert:edge`: whose requests the daemon takes these for."""
        return f"{self.kind}:{self.name}"

    def is_valid(self, at: float) -> bool:
        """Whether it counts at Unix time `at`."""
        return self.revoked_at is None and (self.expires_at is None or _time(at) < self.expires_at)


class _Register(Struct, frozen=True, kw_only=True):
    """The content of a tokens file."""

    holders: tuple[Holder, ...] = ()


# ---------------------------------------------------------------- for commands


class Tokens:
    """The tokens of a file, which is made with the first one. All calls raise ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def holders(self) -> tuple[Holder, ...]:
        """All entries, revoked and expired ones included, oldest first."""
        return _read(self._path).holders if os.path.lexists(self._path) else ()

    def new(self, name: str, roles: Iterable[Role], at: float, *, expires_at: float | None = None) -> str:
        """Make a token at Unix time `at`; return it. It is kept nowhere."""
        token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        self._add("token", name, roles, at, expires_at, id=token_id, sha256=digest)
        return f"tp_{token_id}_{secret}"

    def new_certificate(
        self, name: str, roles: Iterable[Role], at: float, *, expires_at: float | None = None
    ) -> None:
        """Give roles to client certificates whose subject has the common name `name`."""
        self._add("cert", name, roles, at, expires_at)

    def revoke(self, name: str, at: float) -> Holder:
        """Revoke what has this name (`alice`, or `cert:edge`) at Unix time `at`."""
        with self._locked():
            holders = self.holders()
            valid = [holder for holder in holders if holder.revoked_at is None]
            matching = [holder for holder in valid if name in (holder.name, holder.who)]
            if len(matching) != 1:
                known = ", ".join(holder.who for holder in valid) or "none"
                problem = "there are two called" if matching else "there is nothing to revoke called"
                raise ConfigError(f"{problem} {name!r} in {self._path}; known: {known}")
            revoked = replace(matching[0], revoked_at=_time(at))
            self._write(tuple(revoked if holder is matching[0] else holder for holder in holders))
            return revoked

    def _add(
        self,
        kind: Literal["token", "cert"],
        name: str,
        roles: Iterable[Role],
        at: float,
        expires_at: float | None,
        **members: str,
    ) -> None:
        holder = Holder(
            kind=kind,
            name=name,
            roles=tuple(dict.fromkeys(roles)),
            made_at=_time(at),
            expires_at=None if expires_at is None else _time(expires_at),
            **members,
        )
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            raise ConfigError(
                f"a {kind} cannot be called {name!r}: use at most 64 letters, digits, dots, dashes and "
                "underscores, and begin with a letter or digit"
            ) from None
        if "relay" in holder.roles:
            raise ConfigError("a token cannot have the role relay: whoever asks over HTTP speaks for itself")
        with self._locked():
            holders = self.holders()
            if any(other.who == holder.who and other.is_valid(at) for other in holders):
                raise ConfigError(f"there is a {kind} {name!r}; revoke it first, or choose another name")
            if len(holders) >= MAX_ENTRIES:
                raise ConfigError(
                    f"{self._path} has {MAX_ENTRIES} entries, the most it may have; delete revoked ones"
                )
            self._write((*holders, holder))

    def _write(self, holders: tuple[Holder, ...]) -> None:
        content = msgspec.json.format(msgspec.json.encode(_Register(holders=holders)), indent=1) + b"\n"
        files.place(self._path, content, 0o600, over=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the directory, so that one process at a time changes the file."""
        directory = self._path.parent
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                files.check_directory(directory)
                lock = files.open_own(directory / f".{self._path.name}.lock", os.O_RDWR | os.O_CREAT)
            except ValueError as error:
                raise ConfigError(f"cannot keep tokens in {directory}: it {error}") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        except OSError as error:
            raise ConfigError(f"cannot keep tokens in {directory}: {error.strerror}") from error


# ---------------------------------------------------------------- for a server, at every request


class TokenRing:
    """The valid entries of a tokens file, as it is at this moment. Raises ConfigError if it cannot be used.

    Later, a file that cannot be used makes no token valid, until it can be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._settled = False
        self._logged_error = ""
        self._tokens: dict[str, Holder] = {}
        self._certificates: dict[str, Holder] = {}
        self._load(time.time())

    def token(self, token: str, at: float) -> Holder | None:
        """Whose token this is at Unix time `at`; None if it is nobody's."""
        self._refresh(at)
        parts = TOKEN.fullmatch(token)
        token_id, secret = (parts[1], parts[2]) if parts else ("", "")
        holder = self._tokens.get(token_id)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        same = hmac.compare_digest(digest, holder.sha256 if holder else _NO_SECRET)
        return holder if holder is not None and same and holder.is_valid(at) else None

    def certificate(self, common_name: str, at: float) -> Holder | None:
        """Whose a verified client certificate with this common name is; None if it is nobody's."""
        self._refresh(at)
        holder = self._certificates.get(common_name)
        return holder if holder is not None and holder.is_valid(at) else None

    def _refresh(self, at: float) -> None:
        try:
            status = self._path.lstat()
            if self._settled and self._stamp == (status.st_ino, status.st_mtime_ns, status.st_size):
                return
            self._load(at)
        except (OSError, ConfigError) as error:
            self._tokens, self._certificates, self._stamp = {}, {}, None
            if str(error) != self._logged_error:
                self._logged_error = str(error)
                log.error("no token is valid: %s", error)

    def _load(self, at: float) -> None:
        register = _read(self._path)
        status = self._path.lstat()
        self._settled = abs(int(at * 1e9) - status.st_mtime_ns) > _YOUNG_NS
        valid = [holder for holder in register.holders if holder.revoked_at is None]
        self._tokens = {holder.id: holder for holder in valid if holder.kind == "token"}
        self._certificates = {holder.name: holder for holder in valid if holder.kind == "cert"}
        self._stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        self._logged_error = ""


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _read(path: Path) -> _Register:
    """The content of a tokens file. Raises ConfigError, never with the content."""
    try:
        content = files.read_own(path, max_bytes=MAX_BYTES, check=_exposed)
    except ValueError as error:
        raise ConfigError(f"the tokens file {path} {error}") from None
    except OSError as error:
        cure = "; make one with `thorpolicy tokens new`" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"the tokens file {path} cannot be read: {error.strerror}{cure}") from error
    try:
        return strict_json.decode_as(content, _Register)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ConfigError(f"{path} is no tokens file of `thorpolicy tokens`") from None


def _exposed(status: os.stat_result) -> str | None:
    if status.st_mode & 0o077:
        return f"has mode {status.st_mode & 0o777:04o}, so other users can read it; run `chmod 600` on it"
    return None
