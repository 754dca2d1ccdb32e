"""Signed checkpoints: what shows a cut tail and a chain that was stamped anew.

Owns the checkpoint files beside the journal, the key that signs them, and the form of what is signed.
Invariant: a checkpoint or key file is on disk whole or not visible, and a checkpoint is never
overwritten; a crash can leave a `.*.new` behind, which nothing reads. It waits for the disk, so the
journal's thread and commands call it, never the main or the engine thread.

The signature is Ed25519 (RFC 8032) over these six lines of ASCII, each ended by one newline, where every
value has the form that `Checkpoint` allows and so holds no newline:

    thor-policy checkpoint 1
    <chain> <seq> <head> <at> <key>, in this order, one a line

Any tool can check it: `openssl pkeyutl -verify -pubin -inkey ID.pub -rawin -in LINES -sigfile SIGNATURE`,
the signature as 64 raw bytes.

Trust: a signature says as much as the public key it is checked with. The `.pub` files that lie in the
checkpoint directory show tampering only by somebody who cannot write there, and only while the
checkpoints are still there. An auditor keeps checkpoints and public key elsewhere, and gives both to the
verification.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from thor_policy.core.errors import JournalError
from thor_policy.security import files, signatures
from thor_policy.security.signatures import Digest, Key, KeyId, PublicKeys, Signature

#: First line of what is signed; another form of checkpoint gets another number.
HEADING = "thor-policy checkpoint 1"
#: Name of the signing key among the credentials that systemd hands to a service.
CREDENTIAL = "checkpoint.key"
#: Most files that are read in a directory.
MAX_FILES = 100_000


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
    key: KeyId
    signature: Signature


class Found(Struct, frozen=True, kw_only=True):
    """What lies in a checkpoint directory: checkpoints by chain and seq, none of them checked yet.

    `unreadable` names each `.json` or `.pub` file that is not what its name says, with the reason.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    public_keys: PublicKeys = {}
    unreadable: tuple[str, ...] = ()


class Signer(Key):
    """A private key, to sign checkpoints with; `key` is the id of its public key."""

    @classmethod
    def load(cls, path: Path) -> Signer:
        """The key in a file (PEM, PKCS8, not encrypted); made if it is missing, as is `<path>.pub`.

        Raises JournalError if others may read or write it, or if it is no Ed25519 key.
        """
        try:
            signer = cls(signatures.private_key(path))
        except (OSError, ValueError) as error:
            raise JournalError(f"the checkpoint key {path} {files.reason(error)}") from error
        with suppress(OSError):  # beside a credential nothing can be written; `publish` does without
            signer.put_public(path.with_name(f"{path.name}.pub"))
        return signer

    def publish(self, directory: Path) -> Path:
        """Leave the public key in the checkpoint directory, where `found` looks for it: `<id>.pub`."""
        path = directory / f"{self.key}.pub"
        try:
            _make_directory(directory)
            self.put_public(path)
        except OSError as error:
            raise JournalError(f"the public key {path} {files.reason(error)}") from error
        return path

    def sign(self, chain: str, seq: int, head: str, at: str) -> Checkpoint:
        """The checkpoint with these values. Raises JournalError if one of them has not its form."""
        blank = Checkpoint(chain=chain, seq=seq, head=head, at=at, key=self.key, signature="0" * 128)
        if problem := _malformed(blank):
            raise JournalError(f"a checkpoint cannot say this: {problem}")
        return msgspec.structs.replace(blank, signature=self.signature(_signed_bytes(blank)))


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
            files.place(path, content, 0o644)
        except FileExistsError:
            there = _decode(files.read(path, os.O_NOFOLLOW))
            if (there.chain, there.seq, there.head) != (checkpoint.chain, checkpoint.seq, checkpoint.head):
                raise ValueError(
                    f"says {there.head} of event {there.seq}, the journal {checkpoint.head}: the journal is "
                    "not the one that was signed; keep that file, and run `thorpolicy log verify`"
                ) from None
    except (OSError, ValueError) as error:
        raise JournalError(f"the checkpoint {path} {files.reason(error)}") from error
    return path


def found(directory: Path) -> Found:
    """Read the checkpoints and public keys of a directory, whoever wrote them; nothing if it is missing."""
    checkpoints, public_keys, unreadable = [], {}, []
    try:
        with os.scandir(directory) as entries:
            listed = (e for e in entries if e.name.endswith((".json", ".pub")) and not e.name.startswith("."))
            for number, entry in enumerate(listed):
                if number == MAX_FILES:
                    unreadable.append(f"there are more than {MAX_FILES} files; the rest was not read")
                    break
                try:
                    content = files.read(Path(entry.path), os.O_NOFOLLOW)
                    if entry.name.endswith(".json"):
                        checkpoints.append(_decode(content))
                    else:
                        public_key = signatures.public_key(content)
                        public_keys[signatures.key_id(public_key)] = public_key
                except (OSError, ValueError) as error:
                    unreadable.append(f"{entry.name!a} {files.reason(error)}")
    except FileNotFoundError:
        return Found()
    except OSError as error:
        raise JournalError(f"the checkpoint directory {directory} {files.reason(error)}") from error
    checkpoints.sort(key=lambda checkpoint: (checkpoint.chain, checkpoint.seq))
    return Found(
        checkpoints=tuple(checkpoints), public_keys=public_keys, unreadable=tuple(sorted(unreadable))
    )


def trusted_keys(paths: Iterable[Path]) -> PublicKeys:
    """The public keys in these PEM files. Raises JournalError naming the first that holds none."""
    try:
        return signatures.public_keys(paths)
    except ValueError as error:
        raise JournalError(str(error)) from error


def check(checkpoint: Checkpoint, public_keys: PublicKeys) -> str | None:
    """None if one of these keys signed exactly this checkpoint, else why it counts for nothing."""
    if problem := _malformed(checkpoint):
        return f"it is malformed: {problem}"
    return signatures.problem(checkpoint.key, checkpoint.signature, _signed_bytes(checkpoint), public_keys)


# ---------------------------------------------------------------- forms


def _signed_bytes(checkpoint: Checkpoint) -> bytes:
    return signatures.lines(
        HEADING, checkpoint.chain, checkpoint.seq, checkpoint.head, checkpoint.at, checkpoint.key
    )


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


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(0o755)  # whatever the umask: auditors read here
    files.sync(directory.parent)
