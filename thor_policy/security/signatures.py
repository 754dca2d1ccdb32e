"""Ed25519 signatures (RFC 8032): the keys on disk, and the signatures of packs and promotions.

Owns key files (PEM: PKCS8 and not encrypted, or SubjectPublicKeyInfo), the file `pack.sig` of a signed
pack, and the form of the signed lines. Invariant: a file on disk is complete or not visible; a private key
that other users can access is not used; a signature is accepted only in the exact bytes that were written.
It waits for the disk: any thread but the main and the engine thread.

A signature is over lines of ASCII, each with one newline at its end (for checkpoints see
journal/checkpoints.py):

    thor-policy pack 1              thor-policy promotion 1
    <sha256 of the pack>            <sha256 of the report, as it is recorded>
    <name>                          <sha256 of the pack>
    <version>                       <key>
    <key>

`key` is the id of the public key: the first 16 hex digits of the sha256 of its 32 raw bytes. Any tool can
check a signature: `openssl pkeyutl -verify -pubin -inkey PUB -rawin -in LINES -sigfile SIGNATURE`, with the
signature as 64 raw bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
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

#: First line of the signed lines; a new form gets a new number.
PACK_HEADING, PROMOTION_HEADING = "thor-policy pack 1", "thor-policy promotion 1"
#: A version that can be signed: it must fit one line.
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
    def open(cls, path: Path) -> Key:
        """The key in the file that `--key` names; writes `<path>.pub` too. Raises PackError.

        A missing file is an error, so that a mistyped path never signs with a new key; `make` makes one.
        """
        try:
            key = cls(_private_key(path))
        except FileNotFoundError:
            raise PackError(
                f"--key: {path} does not exist; correct the path, or make a key there with "
                f"`thorpolicy packs sign DIR --key {path} --new-key`"
            ) from None
        except (OSError, ValueError) as error:
            raise PackError(f"the key {path} {files.reason(error)}") from error
        with suppress(OSError):  # it can be derived from the private key
            key.put_public(path.with_name(f"{path.name}.pub"))
        return key

    @classmethod
    def make(cls, path: Path) -> Key:
        """Make a key in a new file, and its public key in `<path>.pub`. Raises PackError."""
        try:
            _make_key(path)
        except OSError as error:
            if os.path.lexists(path):
                raise PackError(f"--new-key: {path} exists; leave out --new-key to sign with it") from None
            raise PackError(f"the key {path} {files.reason(error)}") from error
        return cls.open(path)

    @classmethod
    def load_existing(cls, path: Path) -> Key:
        """The key in a file of the daemon; none is made, no link is followed. Raises OSError, ValueError."""
        return cls(_private_key(path, os.O_NOFOLLOW))

    def signature(self, content: bytes) -> str:
        """The signature over `content`, as 128 hex digits."""
        return self._private.sign(content).hex()

    def put_public(self, path: Path) -> None:
        """Write the public key to a file; an existing file is replaced. Raises OSError."""
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
    """The public keys in these PEM files, by their ids. Raises ValueError that names a bad file."""
    keys = {}
    for path in paths:
        try:
            public = public_key(files.read(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"the public key {path} {files.reason(error)}") from error
        keys[key_id(public)] = public
    return keys


def problem(key: str, signature: str, content: bytes, trusted: PublicKeys) -> str | None:
    """None if the trusted key with the id `key` signed exactly `content`; otherwise the problem."""
    public = trusted.get(key)
    if public is None:
        return f"its key {key} is not among the trusted ones"
    try:
        public.verify(bytes.fromhex(signature), content)
    except InvalidSignature:
        return "its signature is wrong"
    return None


def lines(*values: str | int) -> bytes:
    """Signed lines: one value each; a value must not contain a newline."""
    return "".join(f"{value}\n" for value in values).encode("ascii")


# ---------------------------------------------------------------- packs


class PackSignature(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `pack.sig`: the pack, the key, and its signature."""

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
    """Sign a pack and write the signature to `path`; an existing file is replaced. Raises PackError."""
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
    """Check the signature in the file `path` against a loaded pack and the `trusted` public keys; return it.

    Raises PackError that names pack, key and cure.
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
        signed = msgspec.json.decode(content, type=PackSignature)
        if _text(signed) != content:
            raise ValueError("differs from the bytes that `packs sign` writes")
    except FileNotFoundError:
        raise PackError(f"{what}: is not signed ({known}); {cure}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PackError(f"{what}: {path.name} {files.reason(error)} ({known}); {cure}") from error
    if (signed.name, signed.version, signed.sha256) != (pack.name, pack.version, pack.sha256):
        raise PackError(
            f"{what}: is not what the key {signed.key} signed: it has the sha256 {pack.sha256}, signed was "
            f"{signed.name} {signed.version} with {signed.sha256}; put the signed files back, or {cure}"
        )
    if why := problem(signed.key, signed.signature, signed.signed, keys):
        raise PackError(f"{what}: {path.name} is not valid: {why} ({known}); {cure}")
    return signed


def _text(signature: PackSignature) -> bytes:
    return msgspec.json.format(msgspec.json.encode(signature), indent=1) + b"\n"


# ---------------------------------------------------------------- promotions


def sign_promotion(report: str, pack_sha256: str, key: Key) -> str:
    """The signature over a promotion: the sha256 of its report and of the pack."""
    return key.signature(_promotion(report, pack_sha256, key.key))


def promotion_problem(
    report: str, pack_sha256: str, key: str, signature: str, trusted: PublicKeys
) -> str | None:
    """None if a trusted key signed the promotion of this pack by this report; otherwise the problem."""
    return problem(key, signature, _promotion(report, pack_sha256, key), trusted)


def _promotion(report: str, pack_sha256: str, key: str) -> bytes:
    return lines(PROMOTION_HEADING, hashlib.sha256(report.encode()).hexdigest(), pack_sha256, key)


# ---------------------------------------------------------------- key files


def public_key(content: bytes) -> Ed25519PublicKey:
    """The public key in a PEM text. Raises ValueError."""
    with suppress(ValueError, UnsupportedAlgorithm):
        key = pem.load_pem_public_key(content)
        if isinstance(key, Ed25519PublicKey):
            return key
    raise ValueError("is no Ed25519 public key in PEM")


def private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file of the daemon, which is made if it is missing. Raises OSError, ValueError.

    A link is not followed.
    """
    try:
        return _private_key(path, os.O_NOFOLLOW)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another process made it first: use that one
            _make_key(path)
        return _private_key(path, os.O_NOFOLLOW)


def _private_key(path: Path, flags: int = 0) -> Ed25519PrivateKey:
    me = os.geteuid()
    content = files.read(path, flags, check=lambda status: exposed(status.st_uid, status.st_mode, me))
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        private = pem.load_pem_private_key(content, password=None)
        if isinstance(private, Ed25519PrivateKey):
            return private
    raise ValueError("is no Ed25519 key in unencrypted PEM; move it away to have one made")


def _make_key(path: Path) -> None:
    """Make a private key in a new file. Raises OSError; FileExistsError if the file exists."""
    content = Ed25519PrivateKey.generate().private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    files.place(path, content, 0o600)


def exposed(owner: int, mode: int, me: int) -> str | None:
    """The problem if other users can access a private key, with the cure; None if only `me` and root can.

    systemd keeps a credential owned by root and gives the service access by an ACL. The mask of the ACL shows
    as the group's bits, so a file of root may be readable by its group.
    """
    if owner not in (me, 0):
        return f"belongs to user {owner}; run `chown {me}` on it"
    others, cure = (0o077, 600) if owner == me else (0o027, 440)
    if mode & others:
        return f"has mode {mode & 0o777:04o}, so other users can access it; run `chmod {cure}` on it"
    return None
