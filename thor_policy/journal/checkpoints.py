"""Signed checkpoints: what shows a cut tail and a chain that was stamped anew.

Owns the checkpoint files beside the journal, the key that signs them, and the form of what is signed.
Invariant: a checkpoint or key file is on disk whole or not visible, and a checkpoint is never overwritten;
a crash can leave a `.*.new` behind, which nothing reads. It waits for the disk, so the journal's thread and
commands call it, never the main or the engine thread.

The signature is Ed25519 (RFC 8032) over these six lines of ASCII, each ended by one newline, where every
value has the form that `Checkpoint` allows and so holds no newline:

    thor-policy checkpoint 1
    <chain> <seq> <head> <at> <key>, in this order, one a line

Any tool can check it: `openssl pkeyutl -verify -pubin -inkey ID.pub -rawin -in LINES -sigfile SIGNATURE`,
the signature as 64 raw bytes.

Trust: a signature says as much as the public key it is checked with. The `.pub` files that lie in the
checkpoint directory show tampering only by somebody who cannot write there, and only while the checkpoints
are still there. An auditor keeps checkpoints and public key elsewhere, and gives both to the verification.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta, Struct

from thor_policy.errors import JournalError

#: First line of what is signed; another form of checkpoint gets another number.
HEADING = "thor-policy checkpoint 1"
#: Name of the signing key among the credentials that systemd hands to a service.
CREDENTIAL = "checkpoint.key"
#: Most bytes of a key or checkpoint file, and most such files that are read in a directory.
MAX_BYTES, MAX_FILES = 65_536, 100_000

Digest: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
#: Public keys by their ids.
PublicKeys: TypeAlias = Mapping[str, Ed25519PublicKey]


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The signed statement that `chain` had the event `seq` with the hash `head` at the time `at`.

    `chain` is the hash of event 1, which names the chain; `at` is RFC 3339 in UTC. `key` is the id of the
    public key: the first 16 hex digits of the sha256 of its 32 raw bytes.
    """

    chain: Digest
    seq: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    head: Digest
    at: Annotated[
        str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z\Z")
    ]
    key: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Found(Struct, frozen=True, kw_only=True):
    """What lies in a checkpoint directory: checkpoints by chain and seq, none of them checked yet.

    `unreadable` names each `.json` or `.pub` file that is not what its name says, with the reason.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    public_keys: PublicKeys = {}
    unreadable: tuple[str, ...] = ()


class Signer:
    """A private key, to sign checkpoints with; `key` is the id of its public key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.key = _key_id(private.public_key())

    @classmethod
    def load(cls, path: Path) -> Signer:
        """The key in a file (PEM, PKCS8, not encrypted); made if it is missing, as is `<path>.pub`.

        Raises JournalError if others may read or write it, or if it is no Ed25519 key.
        """
        try:
            try:
                private = _private_key(path)
            except FileNotFoundError:
                _make_key(path)
                private = _private_key(path)
        except (OSError, ValueError) as error:
            raise JournalError(f"the checkpoint key {path} {_reason(error)}") from error
        signer = cls(private)
        with suppress(OSError):  # beside a credential nothing can be written; `publish` does without
            signer._put(path.with_name(f"{path.name}.pub"))
        return signer

    def publish(self, directory: Path) -> Path:
        """Leave the public key in the checkpoint directory, where `found` looks for it: `<id>.pub`."""
        path = directory / f"{self.key}.pub"
        try:
            _make_directory(directory)
            self._put(path)
        except OSError as error:
            raise JournalError(f"the public key {path} {_reason(error)}") from error
        return path

    def sign(self, chain: str, seq: int, head: str, at: str) -> Checkpoint:
        """The checkpoint with these values. Raises JournalError if one of them has not its form."""
        blank = Checkpoint(chain=chain, seq=seq, head=head, at=at, key=self.key, signature="0" * 128)
        if problem := _malformed(blank):
            raise JournalError(f"a checkpoint cannot say this: {problem}")
        return msgspec.structs.replace(blank, signature=self._private.sign(_signed_bytes(blank)).hex())

    def _put(self, path: Path) -> None:
        form = pem.PublicFormat.SubjectPublicKeyInfo
        content = self._private.public_key().public_bytes(pem.Encoding.PEM, form)
        with suppress(OSError, ValueError):
            if _read(path, os.O_NOFOLLOW) == content:
                return
        path.unlink(missing_ok=True)
        with suppress(FileExistsError):  # another process puts the same one there
            _place(path, content, 0o644)


def key_path(configured: Path, environ: Mapping[str, str]) -> Path:
    """Where the signing key is: the credential `checkpoint.key` if systemd hands one over."""
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(folder) / CREDENTIAL
        if os.path.lexists(credential):
            return credential
    return configured


def keep(directory: Path, checkpoint: Checkpoint) -> Path:
    """Put a checkpoint on disk, durably; returns its file. The directory is made if it is missing.

    A file that says the same already is left as it is: the earlier one proves more. Raises JournalError if
    that fails, and if the file says something else, which is evidence.
    """
    if problem := _malformed(checkpoint):
        raise JournalError(f"this checkpoint cannot be kept: {problem}")
    path = directory / f"{checkpoint.chain[:16]}-{checkpoint.seq:012d}.json"
    content = msgspec.json.format(msgspec.json.encode(checkpoint), indent=1) + b"\n"
    try:
        _make_directory(directory)
        try:
            _place(path, content, 0o644)
        except FileExistsError:
            there = _decode(_read(path, os.O_NOFOLLOW))
            if (there.chain, there.seq, there.head) != (checkpoint.chain, checkpoint.seq, checkpoint.head):
                raise ValueError(
                    f"says {there.head} of event {there.seq}, the journal {checkpoint.head}: the journal is "
                    "not the one that was signed; keep that file, and run `thorpolicy log verify`"
                ) from None
    except (OSError, ValueError) as error:
        raise JournalError(f"the checkpoint {path} {_reason(error)}") from error
    return path


def found(directory: Path) -> Found:
    """Read the checkpoints and public keys of a directory, whoever wrote them; nothing if it is missing."""
    checkpoints, public_keys, unreadable = [], {}, []
    try:
        with os.scandir(directory) as entries:
            files = (e for e in entries if e.name.endswith((".json", ".pub")) and not e.name.startswith("."))
            for number, entry in enumerate(files):
                if number == MAX_FILES:
                    unreadable.append(f"there are more than {MAX_FILES} files; the rest was not read")
                    break
                try:
                    content = _read(Path(entry.path), os.O_NOFOLLOW)
                    if entry.name.endswith(".json"):
                        checkpoints.append(_decode(content))
                    else:
                        public_key = _public_key(content)
                        public_keys[_key_id(public_key)] = public_key
                except (OSError, ValueError) as error:
                    unreadable.append(f"{entry.name!a} {_reason(error)}")
    except FileNotFoundError:
        return Found()
    except OSError as error:
        raise JournalError(f"the checkpoint directory {directory} {_reason(error)}") from error
    checkpoints.sort(key=lambda checkpoint: (checkpoint.chain, checkpoint.seq))
    return Found(
        checkpoints=tuple(checkpoints), public_keys=public_keys, unreadable=tuple(sorted(unreadable))
    )


def trusted_keys(paths: Iterable[Path]) -> PublicKeys:
    """The public keys in these PEM files. Raises JournalError naming the first that holds none."""
    public_keys = {}
    for path in paths:
        try:
            public_key = _public_key(_read(path))
        except (OSError, ValueError) as error:
            raise JournalError(f"the public key {path} {_reason(error)}") from error
        public_keys[_key_id(public_key)] = public_key
    return public_keys


def check(checkpoint: Checkpoint, public_keys: PublicKeys) -> str | None:
    """None if one of these keys signed exactly this checkpoint, else why it counts for nothing."""
    if problem := _malformed(checkpoint):
        return f"it is malformed: {problem}"
    public_key = public_keys.get(checkpoint.key)
    if public_key is None:
        return f"its key {checkpoint.key} is not among the trusted ones"
    try:
        public_key.verify(bytes.fromhex(checkpoint.signature), _signed_bytes(checkpoint))
    except InvalidSignature:
        return "its signature is wrong"
    return None


# ---------------------------------------------------------------- forms


def _key_id(public_key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the sha256 of the key's 32 raw bytes."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def _signed_bytes(checkpoint: Checkpoint) -> bytes:
    lines = (HEADING, checkpoint.chain, checkpoint.seq, checkpoint.head, checkpoint.at, checkpoint.key)
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _malformed(checkpoint: Checkpoint) -> str | None:
    """What msgspec says of the fields; it asks nothing when a struct is made in Python."""
    try:
        msgspec.convert(msgspec.structs.asdict(checkpoint), Checkpoint)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _decode(content: bytes) -> Checkpoint:
    try:
        return msgspec.json.decode(content, type=Checkpoint)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"is no checkpoint: {error}") from error


def _public_key(content: bytes) -> Ed25519PublicKey:
    with suppress(ValueError, UnsupportedAlgorithm):
        public_key = pem.load_pem_public_key(content)
        if isinstance(public_key, Ed25519PublicKey):
            return public_key
    raise ValueError("is no Ed25519 public key in PEM")


def _reason(error: OSError | ValueError) -> str:
    return f"cannot be used: {error.strerror}" if isinstance(error, OSError) else str(error)


# ---------------------------------------------------------------- files


def _private_key(path: Path) -> Ed25519PrivateKey:
    content = _read(path, private=True)
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
        _place(path, content, 0o600)


def _exposed(owner: int, mode: int, me: int) -> str | None:
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


def _read(path: Path, flags: int = 0, *, private: bool = False) -> bytes:
    """A regular file, if it is not too large. Nothing else is waited for or read: it may be a trap."""
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        if private and (problem := _exposed(status.st_uid, status.st_mode, os.geteuid())):
            raise ValueError(problem)
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    return content


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(0o755)  # whatever the umask: auditors read here
    _sync(directory.parent)


def _place(path: Path, content: bytes, mode: int) -> None:
    """Make a file that is whole and on disk when its name appears. Raises FileExistsError if it is there."""
    descriptor, new = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        path.hardlink_to(new)  # a rename would overwrite
    finally:
        Path(new).unlink(missing_ok=True)
        _sync(path.parent)  # also if the name was there: it may be as young as this


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
