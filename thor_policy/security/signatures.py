"""Ed25519 (RFC 8032): the keys on disk, and what they say of packs and of promotions.

Owns key files (PEM: PKCS8 and not encrypted, or SubjectPublicKeyInfo), the file `pack.sig` of a signed
pack, and the form of what is signed. Invariant: a file is on disk whole or not visible, a private key
that others may come at is not used, and of each signature there is one form in which it is read: the one
in which it was written. It waits for the disk: any thread but the main and the engine thread.

A signature is over lines of ASCII, each ended by one newline (for checkpoints see
journal/checkpoints.py):

    thor-policy pack 1              thor-policy promotion 1
    <sha256 of the pack>            <sha256 of the report, as it is recorded>
    <name>                          <sha256 of the pack>
    <version>                       <key>
    <key>

`key` is the id of the public key: the first 16 hex digits of the sha256 of its 32 raw bytes. Any tool can
check one: `openssl pkeyutl -verify -pubin -inkey PUB -rawin -in LINES -sigfile SIGNATURE`, the signature
as 64 raw bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import PackError
from thor_policy.security import files

#: First lines of what is signed; another form gets another number.
PACK_HEADING, PROMOTION_HEADING = "thor-policy pack 1", "thor-policy promotion 1"
#: What a version has to look like to be a line of its own.
_VERSION = re.compile(r"[!-~]{1,64}")

Digest: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
KeyId: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Signature: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
#: Public keys by their ids.
PublicKeys: TypeAlias = Mapping[str, Ed25519PublicKey]


class Key:
    """A private key; `key` is the id of its public key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.key = key_id(private.public_key())

    @classmethod
    def open(cls, path: Path, announce: Callable[[str], None] = lambda _: None) -> Key:
        """The key in a file; made if it is missing, as is `<path>.pub`, and announced. Raises PackError."""
        missing = not path.exists()
        try:
            key = cls(private_key(path))
        except (OSError, ValueError) as error:
            raise PackError(f"the key {path} {files.reason(error)}") from error
        with suppress(OSError):  # it can be derived again
            key.put_public(path.with_name(f"{path.name}.pub"))
        if missing:
            announce(f"{path} was missing: made a new key; who checks it needs {path}.pub")
        return key

    def signature(self, content: bytes) -> str:
        """The signature over some bytes, as 128 hex digits."""
        return self._private.sign(content).hex()

    def put_public(self, path: Path) -> None:
        """Leave the public key in a file, in place of whatever is there. Raises OSError."""
        form = pem.PublicFormat.SubjectPublicKeyInfo
        content = self._private.public_key().public_bytes(pem.Encoding.PEM, form)
        with suppress(OSError, ValueError):
            if files.read(path, os.O_NOFOLLOW) == content:
                return
        files.place(path, content, 0o644, over=True)


def key_id(public_key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the sha256 of the key's 32 raw bytes."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """The public keys in these PEM files, by their ids. Raises ValueError naming one that holds none."""
    found = {}
    for path in paths:
        try:
            public = public_key(files.read(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"the public key {path} {files.reason(error)}") from error
        found[key_id(public)] = public
    return found


def problem(key: str, signature: str, content: bytes, trusted: PublicKeys) -> str | None:
    """None if the one of these keys that is called `key` signed exactly `content`, else why it counts not."""
    public = trusted.get(key)
    if public is None:
        return f"its key {key} is not among the trusted ones"
    try:
        public.verify(bytes.fromhex(signature), content)
    except InvalidSignature:
        return "its signature is wrong"
    return None


def lines(*values: str | int) -> bytes:
    """What is signed: values that hold no newline, one a line."""
    return "".join(f"{value}\n" for value in values).encode("ascii")


# ---------------------------------------------------------------- packs


class PackSignature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `pack.sig`: who vouches for which pack."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z")]
    version: Annotated[str, Meta(pattern=r"^[!-~]{1,64}\Z")]
    sha256: Digest
    key: KeyId
    signature: Signature

    @property
    def signed(self) -> bytes:
        """The lines that the signature is over."""
        return lines(PACK_HEADING, self.sha256, self.name, self.version, self.key)


def sign_pack(pack: PackInfo, path: Path, key: Key) -> PackSignature:
    """Leave the signature of a pack in the file `path`, in place of one that is there. Raises PackError."""
    if not _VERSION.fullmatch(pack.version):
        raise PackError(
            f"{pack.name}: version {pack.version!a} cannot be signed; make it 1 to 64 printable ASCII "
            "characters without a space in pack.yaml"
        )
    blank = PackSignature(
        name=pack.name, version=pack.version, sha256=pack.sha256, key=key.key, signature="0" * 128
    )
    signed = msgspec.structs.replace(blank, signature=key.signature(blank.signed))
    try:
        files.place(path, _text(signed), 0o644, over=True)
    except OSError as error:
        raise PackError(f"{path} cannot be written: {error.strerror}") from error
    return signed


def check_pack(pack: PackInfo, path: Path, trusted: Iterable[Path]) -> PackSignature:
    """The signature in the file `path` of a pack as it was loaded, by one of the public keys in `trusted`.

    Raises PackError naming pack, key and cure.
    """
    what = f"{pack.name} {pack.version} in {path.parent}"
    cure = f"sign it with a key of pack_keys: thorpolicy packs sign {path.parent} --key FILE"
    try:
        keys = public_keys(trusted)
    except ValueError as error:
        raise PackError(f"{what}: pack_keys: {error}; name readable public keys in PEM there") from error
    known = f"trusted keys: {', '.join(sorted(keys)) or 'none'}"
    try:
        content = files.read(path)
        found = msgspec.json.decode(content, type=PackSignature)
        if _text(found) != content:
            raise ValueError("is not in the form in which it was written")
    except FileNotFoundError:
        raise PackError(f"{what}: is not signed ({known}); {cure}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PackError(f"{what}: {path.name} {files.reason(error)} ({known}); {cure}") from error
    if (found.name, found.version, found.sha256) != (pack.name, pack.version, pack.sha256):
        raise PackError(
            f"{what}: is not what the key {found.key} signed: it has the sha256 {pack.sha256}, signed was "
            f"{found.name} {found.version} with {found.sha256}; put the signed files back, or {cure}"
        )
    if why := problem(found.key, found.signature, found.signed, keys):
        raise PackError(f"{what}: {path.name} counts for nothing: {why} ({known}); {cure}")
    return found


def _text(signature: PackSignature) -> bytes:
    return msgspec.json.format(msgspec.json.encode(signature), indent=1) + b"\n"


# ---------------------------------------------------------------- promotions


def sign_promotion(report: str, pack_sha256: str, key: Key) -> str:
    """The signature of whoever promotes a pack by this report."""
    return key.signature(_promotion(report, pack_sha256, key.key))


def promotion_problem(
    report: str, pack_sha256: str, key: str, signature: str, trusted: PublicKeys
) -> str | None:
    """None if one of these keys signed a promotion of this pack by this report, else why it counts not."""
    return problem(key, signature, _promotion(report, pack_sha256, key), trusted)


def _promotion(report: str, pack_sha256: str, key: str) -> bytes:
    return lines(PROMOTION_HEADING, hashlib.sha256(report.encode()).hexdigest(), pack_sha256, key)


# ---------------------------------------------------------------- key files


def public_key(content: bytes) -> Ed25519PublicKey:
    """The key in PEM. Raises ValueError."""
    with suppress(ValueError, UnsupportedAlgorithm):
        found = pem.load_pem_public_key(content)
        if isinstance(found, Ed25519PublicKey):
            return found
    raise ValueError("is no Ed25519 public key in PEM")


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key in a file, which is made if it is missing. Raises OSError, ValueError."""
    try:
        return _private_key(path)
    except FileNotFoundError:
        _make_key(path)
        return _private_key(path)


def _private_key(path: Path) -> Ed25519PrivateKey:
    content = files.read(path, trouble=lambda status: exposed(status.st_uid, status.st_mode, os.geteuid()))
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        private = pem.load_pem_private_key(content, password=None)
        if isinstance(private, Ed25519PrivateKey):
            return private
    raise ValueError("is no Ed25519 key in unencrypted PEM; move it away to have one made")


def _make_key(path: Path) -> None:
    content = Ed25519PrivateKey.generate().private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    with suppress(FileExistsError):  # another process was first: its key is the key
        files.place(path, content, 0o600)


def exposed(owner: int, mode: int, me: int) -> str | None:
    """Who else may come at a private key, with the cure; None if nobody but its owner, us, and root.

    systemd leaves a credential with root and lets the service in by an ACL, whose mask shows as the
    group's bits: how root lets us in is up to root.
    """
    if owner not in (me, 0):
        return f"belongs to user {owner}; run `chown {me}` on it"
    others, cure = (0o077, 600) if owner == me else (0o027, 440)
    if mode & others:
        return f"has mode {mode & 0o777:04o}, so others may come at it; run `chmod {cure}` on it"
    return None
