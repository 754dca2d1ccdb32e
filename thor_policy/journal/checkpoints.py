"""Signed checkpoints, which reveal a truncated or rewritten journal.

Owns the checkpoint files beside the journal, the key that signs them, and the form of what is signed.
Invariant: a checkpoint or key file is complete on disk or not visible, and a checkpoint is never overwritten.
A crash can leave a file `.*.new`, which nothing reads. Calls wait for the disk: the journal's thread and
commands make them, never the main or the engine thread.

The signature is Ed25519 (RFC 8032) over these six lines of ASCII. Each line ends with one newline. The form
of `Checkpoint` allows no newline inside a value:

    thor-policy checkpoint 1
    <chain> <seq> <head> <at> <key>, in this order, each on its own line

Any tool can check it: `openssl pkeyutl -verify -pubin -inkey ID.pub -rawin -in LINES -sigfile SIGNATURE`,
the signature as 64 raw bytes.

Trust: a signature proves as much as the public key that checks it. The `.pub` files in the checkpoint
directory reveal tampering only by somebody who cannot write to that directory, and only while the checkpoints
still exist. An auditor keeps checkpoints and public key elsewhere, and gives both to `verify`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from thor_policy.core import strict_json
from thor_policy.core.errors import JournalError
from thor_policy.security import files, signatures
from thor_policy.security.signatures import Digest, Key, KeyId, PublicKeys, Signature

#: First line of what is signed. Another form of checkpoint gets another number.
HEADING = "thor-policy checkpoint 1"
#: Name of the signing key among the credentials that systemd gives to a service.
CREDENTIAL = "checkpoint.key"
#: Most files that are read from a directory.
MAX_FILES = 100_000


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The signed statement that `chain` had the event `seq` with the hash `head` at the time `at`.

    `chain` is the hash of event 1, which names the chain. `at` is RFC 3339 in UTC. `key` is the id of the
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


class StoredCheckpoints(Struct, frozen=True, kw_only=True):
    """The content of a checkpoint directory: checkpoints sorted by chain and seq, not checked yet.

    `unreadable` names each `.json` or `.pub` file that could not be read, with the reason.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    public_keys: PublicKeys = {}
    unreadable: tuple[str, ...] = ()


class Signer(Key):
    """A private key that signs checkpoints. `key` is the id of its public key."""

    @classmethod
    def load(cls, path: Path) -> Signer:
        """The key in a file (PEM, PKCS8, not encrypted). If it is missing, it is made, with `<path>.pub`.

        Raises JournalError if others may read or write the file, or if it holds no Ed25519 key.
        """
        try:
            signer = cls(signatures.private_key(path))
        except (OSError, ValueError) as error:
            raise JournalError(f"the checkpoint key {path} {files.reason(error)}") from error
        with suppress(OSError):  # the directory of credentials is read-only; `publish` does not need the file
            signer.put_public(path.with_name(f"{path.name}.pub"))
        return signer

    def publish(self, directory: Path) -> Path:
        """Write the public key to the checkpoint directory as `<id>.pub`, where `read_directory` finds it."""
        path = directory / f"{self.key}.pub"
        try:
            _make_directory(directory)
            self.put_public(path)
        except OSError as error:
            raise JournalError(f"the public key {path} {files.reason(error)}") from error
        return path

    def sign(self, chain: str, seq: int, head: str, at: str) -> Checkpoint:
        """The checkpoint with these values. Raises JournalError if a value is malformed."""
        blank = Checkpoint(chain=chain, seq=seq, head=head, at=at, key=self.key, signature="0" * 128)
        if problem := _malformed(blank):
            raise JournalError(f"a checkpoint cannot have these values: {problem}")
        return msgspec.structs.replace(blank, signature=self.signature(_signed_bytes(blank)))


def key_path(configured: Path, environ: Mapping[str, str]) -> Path:
    """The path of the signing key: the credential `checkpoint.key` if systemd gives it, or `configured`."""
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(folder) / CREDENTIAL
        if os.path.lexists(credential):
            return credential
    return configured


def store(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint to disk, durably; returns its path. The directory is made if it is missing.

    An existing file with the same statement is left as it is, because the earlier time proves more. Raises
    JournalError if the write fails, or if an existing file has another statement, which is evidence.
    """
    if problem := _malformed(checkpoint):
        raise JournalError(f"this checkpoint cannot be stored: {problem}")
    path = directory / f"{checkpoint.chain[:16]}-{checkpoint.seq:012d}.json"
    content = msgspec.json.format(msgspec.json.encode(checkpoint), indent=1) + b"\n"
    try:
        _make_directory(directory)
        try:
            files.place(path, content, 0o644)
        except FileExistsError:
            existing = _decode(files.read(path, os.O_NOFOLLOW))
            if (existing.chain, existing.seq, existing.head) != (
                checkpoint.chain,
                checkpoint.seq,
                checkpoint.head,
            ):
                raise ValueError(
                    f"gives event {existing.seq} the hash {existing.head}, the journal {checkpoint.head}: "
                    "this is not the journal that was signed; keep that file, and run `thorpolicy log verify`"
                ) from None
    except (OSError, ValueError) as error:
        raise JournalError(f"the checkpoint {path} {files.reason(error)}") from error
    return path


def read_directory(directory: Path) -> StoredCheckpoints:
    """The checkpoints and public keys in a directory, whoever wrote them; none if it is missing."""
    checkpoints, public_keys, unreadable = [], {}, []
    try:
        with os.scandir(directory) as entries:
            listed = (e for e in entries if e.name.endswith((".json", ".pub")) and not e.name.startswith("."))
            for number, entry in enumerate(listed):
                if number == MAX_FILES:
                    unreadable.append(f"the directory has more than {MAX_FILES} files; the rest was not read")
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
        return StoredCheckpoints()
    except OSError as error:
        raise JournalError(f"the checkpoint directory {directory} {files.reason(error)}") from error
    checkpoints.sort(key=lambda checkpoint: (checkpoint.chain, checkpoint.seq))
    return StoredCheckpoints(
        checkpoints=tuple(checkpoints), public_keys=public_keys, unreadable=tuple(sorted(unreadable))
    )


def covering(directory: Path, chain: str, seq: int) -> Checkpoint | None:
    """The oldest valid checkpoint of a chain that covers the event `seq`; None if there is none.

    Only files whose names say so are read, and the public key beside each. Raises JournalError if the
    directory cannot be read.
    """
    names = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                begin, _, number = entry.name.removesuffix(".json").rpartition("-")
                if begin == chain[:16] and number.isdecimal() and int(number) >= seq:
                    names.append((int(number), entry.name))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(f"the checkpoint directory {directory} {files.reason(error)}") from error
    for _, name in sorted(names):
        with suppress(OSError, ValueError):
            checkpoint = _decode(files.read(directory / name, os.O_NOFOLLOW))
            keys = signatures.public_keys([directory / f"{checkpoint.key}.pub"])
            is_of_chain = checkpoint.chain == chain and checkpoint.seq >= seq
            if is_of_chain and check(checkpoint, keys) is None:
                return checkpoint
    return None


def read_file(path: Path) -> Checkpoint:
    """The checkpoint in a file, whoever wrote it; not checked yet. Raises JournalError."""
    try:
        return _decode(files.read(path))
    except (OSError, ValueError) as error:
        raise JournalError(f"the checkpoint {path} {files.reason(error)}") from error


def trusted_keys(paths: Iterable[Path]) -> PublicKeys:
    """The public keys in these PEM files. Raises JournalError naming the first file without one."""
    try:
        return signatures.public_keys(paths)
    except ValueError as error:
        raise JournalError(str(error)) from error


def check(checkpoint: Checkpoint, public_keys: PublicKeys) -> str | None:
    """None if one of these keys signed exactly this checkpoint, else the reason why it is not valid."""
    if problem := _malformed(checkpoint):
        return f"it is malformed: {problem}"
    return signatures.problem(checkpoint.key, checkpoint.signature, _signed_bytes(checkpoint), public_keys)


# ---------------------------------------------------------------- forms


def _signed_bytes(checkpoint: Checkpoint) -> bytes:
    return signatures.lines(
        HEADING, checkpoint.chain, checkpoint.seq, checkpoint.head, checkpoint.at, checkpoint.key
    )


def _malformed(checkpoint: Checkpoint) -> str | None:
    """The error of a malformed field; None if there is none. msgspec checks only what it decodes."""
    try:
        msgspec.convert(msgspec.structs.asdict(checkpoint), Checkpoint)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _decode(content: bytes) -> Checkpoint:
    try:
        return strict_json.decode_as(content, Checkpoint)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"is not a checkpoint: {error}") from error


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(0o755)  # we have just made it; whatever the umask is, auditors must be able to read it
    files.sync(directory.parent)
