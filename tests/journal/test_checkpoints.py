"""Signed checkpoints: nobody without the key can make one, and a hostile file is only listed."""

from __future__ import annotations

import base64
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.errors import JournalError
from thor_policy.journal import checkpoints
from thor_policy.journal.checkpoints import (
    Checkpoint,
    Signer,
    StoredCheckpoints,
    check,
    key_path,
    read_directory,
    store,
    trusted_keys,
)
from thor_policy.security import signatures
from thor_policy.security.files import MAX_BYTES

#: How long a test waits for an expected event, in seconds; far more than it takes.
WAIT_S = 60.0
CHAIN, HEAD = "c0ffee" + "0" * 58, "ab" * 32
AT = "2026-07-01T12:00:00.000000Z"

#: The private key that is the bytes 0 to 31, as PEM in PKCS8.
PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = Signer(PRIVATE)
KEYS = {SIGNER.key: PRIVATE.public_key()}
GOOD = SIGNER.sign(CHAIN, 4_096, HEAD, AT)


def as_pem(
    key: ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey | ec.EllipticCurvePrivateKey,
    password: bytes | None = None,
) -> bytes:
    lock = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
    return key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, lock)


def public_pem(key: ed25519.Ed25519PublicKey | x25519.X25519PublicKey) -> bytes:
    return key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def put_key(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The path of the signing key, which is not made yet."""
    return tmp_path / "checkpoint.key"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The path of the checkpoint directory, which is not made yet."""
    return tmp_path / "checkpoints"


# ---------------------------------------------------------------- what is signed


def test_the_signed_bytes_of_a_checkpoint_are_those_of_version_1() -> None:
    """Stored checkpoints must stay valid: a change of these bytes needs another version and heading.

    OpenSSL makes the same signature of these bytes with this key.
    """
    assert checkpoints._signed_bytes(GOOD) == (
        b"thor-policy checkpoint 1\n"
        b"c0ffee0000000000000000000000000000000000000000000000000000000000\n"
        b"4096\n"
        b"abababababababababababababababababababababababababababababababab\n"
        b"2026-07-01T12:00:00.000000Z\n"
        b"56475aa75463474c\n"
    )
    assert GOOD.key == "56475aa75463474c"
    assert GOOD.signature == (
        "ad87d519270a4dc9601e10530d65cad9872e18689e00d9971b36cedba7c59b30"
        "cb5a5e2957ae36a24d671925d022031c111d3c3e28dd091a2e4269bd4098b80d"
    )


@given(
    chain=st.binary(min_size=32, max_size=32),
    seq=st.integers(1, 2**63 - 1),
    head=st.binary(min_size=32, max_size=32),
    at=st.datetimes().map(lambda at: at.isoformat() + "Z"),
)
def test_a_signed_checkpoint_passes_the_check(chain: bytes, seq: int, head: bytes, at: str) -> None:
    signed = SIGNER.sign(chain.hex(), seq, head.hex(), at)
    assert (signed.chain, signed.seq, signed.head, signed.at) == (chain.hex(), seq, head.hex(), at)
    assert check(signed, KEYS) is None
    assert SIGNER.sign(chain.hex(), seq, head.hex(), at) == signed


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
OTHERS: dict[str, st.SearchStrategy[object]] = {
    "chain": HEX | st.text(),
    "seq": st.integers() | st.booleans() | st.floats() | st.none(),
    "head": HEX | st.text(),
    "at": st.datetimes().map(lambda at: at.isoformat() + "Z") | st.text(),
    "key": st.text("0123456789abcdef", min_size=16, max_size=16) | st.text(),
    "signature": st.text("0123456789abcdef", min_size=128, max_size=128) | st.text(),
}


@pytest.mark.parametrize("field", Checkpoint.__struct_fields__)
@given(data=st.data())
def test_a_checkpoint_with_a_changed_field_fails_the_check(field: str, data: st.DataObject) -> None:
    value = data.draw(OTHERS[field].filter(lambda other: other != getattr(GOOD, field)))
    assert check(msgspec.structs.replace(GOOD, **{field: value}), KEYS) is not None


@given(bit=st.integers(0, 64 * 8 - 1))
def test_a_signature_with_a_changed_bit_fails_the_check(bit: int) -> None:
    raw = bytearray.fromhex(GOOD.signature)
    raw[bit // 8] ^= 1 << bit % 8
    changed = msgspec.structs.replace(GOOD, signature=raw.hex())
    assert check(changed, KEYS) == "its signature is wrong"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seq": 4_097}, "its signature is wrong"),
        ({"head": CHAIN}, "its signature is wrong"),
        ({"key": "0" * 16}, "its key 0000000000000000 is not among the trusted ones"),
        ({"chain": CHAIN.upper()}, r"it is malformed: .* - at `\$\.chain`"),
        ({"head": HEAD + "\n"}, r"it is malformed: .* - at `\$\.head`"),
        ({"seq": 0}, r"it is malformed: .* - at `\$\.seq`"),
        ({"seq": 2**63}, r"it is malformed: .* - at `\$\.seq`"),
        ({"seq": 10**400}, r"it is malformed: .* - at `\$\.seq`"),
        ({"seq": True}, r"it is malformed: .* - at `\$\.seq`"),
        ({"at": "2026-07-01T12:00:00+02:00"}, r"it is malformed: .* - at `\$\.at`"),
        ({"at": AT + "\n"}, r"it is malformed: .* - at `\$\.at`"),
        ({"at": "٢٠٢٦-07-01T12:00:00Z"}, r"it is malformed: .* - at `\$\.at`"),
        ({"signature": ""}, r"it is malformed: .* - at `\$\.signature`"),
        ({"signature": GOOD.signature.upper()}, r"it is malformed: .* - at `\$\.signature`"),
        ({"signature": "\ud800" * 128}, r"it is malformed: .* - at `\$\.signature`"),
    ],
)
def test_the_check_of_a_checkpoint_says_why_it_fails(changes: dict[str, object], reason: str) -> None:
    problem = check(msgspec.structs.replace(GOOD, **changes), KEYS)
    assert problem is not None
    assert re.fullmatch(reason, problem)


def test_another_public_key_under_the_same_id_fails_the_check() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    assert check(GOOD, {GOOD.key: other}) == "its signature is wrong"
    assert check(GOOD, {}) == f"its key {GOOD.key} is not among the trusted ones"


@pytest.mark.parametrize(
    ("chain", "seq", "head", "at", "field"),
    [
        ("../../etc/passwd", 1, HEAD, AT, "chain"),
        (CHAIN, 0, HEAD, AT, "seq"),
        (CHAIN, 1, HEAD[:-1], AT, "head"),
        (CHAIN, 1, HEAD, "yesterday", "at"),
    ],
)
def test_malformed_values_are_not_signed(chain: str, seq: int, head: str, at: str, field: str) -> None:
    with pytest.raises(JournalError, match=rf"a checkpoint cannot have these values: .*\$\.{field}`"):
        SIGNER.sign(chain, seq, head, at)


# ---------------------------------------------------------------- the key


def test_a_missing_signing_key_is_made_with_mode_0600(key: Path) -> None:
    made = Signer.load(key)
    assert names(key.parent) == ["checkpoint.key", "checkpoint.key.pub"]
    assert (mode_of(key), mode_of(key.with_name("checkpoint.key.pub"))) == (0o600, 0o644)
    assert Signer.load(key).key == made.key
    (public_id,) = trusted_keys([key.with_name("checkpoint.key.pub")])
    assert public_id == made.key


def test_two_new_signing_keys_differ(tmp_path: Path) -> None:
    assert Signer.load(tmp_path / "one").key != Signer.load(tmp_path / "another" / "place").key


def test_a_signing_key_is_made_with_mode_0600_under_any_umask(key: Path, directory: Path) -> None:
    for mask in (0o000, 0o077):
        before = os.umask(mask)
        try:
            Signer.load(key).publish(directory)
            file = store(directory, GOOD)
        finally:
            os.umask(before)
        assert mode_of(key) == 0o600
        assert (mode_of(directory), mode_of(file)) == (0o755, 0o644)
        assert {mode_of(path) for path in key.parent.rglob("*.pub")} == {0o644}
        for path in (*directory.iterdir(), key, key.with_name("checkpoint.key.pub")):
            path.unlink()
        directory.rmdir()


def test_a_signing_key_from_openssl_is_accepted(key: Path) -> None:
    """As `openssl genpkey -algorithm ed25519` writes it."""
    der = bytes.fromhex("302e020100300506032b657004220420") + bytes(range(32))
    text = b"-----BEGIN PRIVATE KEY-----\n" + base64.b64encode(der) + b"\n-----END PRIVATE KEY-----\n"
    signer = Signer.load(put_key(key, text))
    assert signer.sign(GOOD.chain, GOOD.seq, GOOD.head, GOOD.at) == GOOD


def test_a_signing_key_that_another_process_makes_meanwhile_is_used(
    key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def slower(source: Path, target: Path) -> None:
        put_key(key, as_pem(PRIVATE))
        link(source, target)

    monkeypatch.setattr(os, "link", slower)
    assert Signer.load(key).key == SIGNER.key


def test_threads_that_make_a_signing_key_at_once_get_the_same_one(key: Path) -> None:
    barrier, ids = threading.Barrier(8), []

    def start() -> None:
        barrier.wait(WAIT_S)
        ids.append(Signer.load(key).key)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert ids == [Signer.load(key).key] * 8
    assert names(key.parent) == ["checkpoint.key", "checkpoint.key.pub"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_a_signing_key_that_others_may_read_or_write_is_refused(key: Path, mode: int) -> None:
    put_key(key, as_pem(PRIVATE), mode)
    with pytest.raises(JournalError, match=rf"checkpoint\.key has mode {mode:04o}, .*run `chmod 600` on it"):
        Signer.load(key)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_signing_key_that_only_its_owner_may_read_is_accepted(key: Path, mode: int) -> None:
    assert Signer.load(put_key(key, as_pem(PRIVATE), mode)).key == SIGNER.key


@pytest.mark.parametrize(
    ("owner", "mode", "me", "problem"),
    [
        (1000, 0o600, 1000, None),
        (0, 0o400, 0, None),
        (0, 0o440, 0, "has mode 0440, so other users can access it; run `chmod 600` on it"),
        (1001, 0o600, 1000, "belongs to user 1001; run `chown 1000` on it"),
        (1000, 0o600, 0, "belongs to user 1000; run `chown 0` on it"),
        # a credential of systemd: it belongs to root, and the mask of its ACL is in the bits of the group
        (0, 0o440, 1000, None),
        (0, 0o460, 1000, "has mode 0460, so other users can access it; run `chmod 440` on it"),
        (0, 0o444, 1000, "has mode 0444, so other users can access it; run `chmod 440` on it"),
    ],
)
def test_a_signing_key_must_belong_to_us_or_root_and_be_closed_to_others(
    owner: int, mode: int, me: int, problem: str | None
) -> None:
    assert signatures.exposed(owner, stat.S_IFREG | mode, me) == problem


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing of a key",
        b"\xff" * 100,
        as_pem(PRIVATE)[:60],
        as_pem(PRIVATE, b"locked"),
        public_pem(PRIVATE.public_key()),
        as_pem(x25519.X25519PrivateKey.generate()),
        as_pem(ec.generate_private_key(ec.SECP256R1())),
    ],
    ids=["empty", "text", "bytes", "half", "encrypted", "public", "X25519", "P-256"],
)
def test_a_file_without_an_ed25519_key_is_refused_and_left_alone(key: Path, content: bytes) -> None:
    put_key(key, content)
    with pytest.raises(JournalError, match=r"checkpoint\.key is no Ed25519 key in unencrypted PEM; move it"):
        Signer.load(key)
    assert key.read_bytes() == content
    assert names(key.parent) == ["checkpoint.key"]


def test_a_signing_key_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe", 0o600)
    (dangling := tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for path, problem in (
        (pipe, "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path, "cannot be used: Is a directory"),
        (dangling, "is a symbolic link, where a regular file is needed"),
        (put_key(tmp_path / "large", b"\n" * (MAX_BYTES + 1)), f"has more than {MAX_BYTES} bytes"),
    ):
        with pytest.raises(JournalError, match=problem):
            Signer.load(path)


def test_a_link_to_a_signing_key_is_refused(tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(put_key(tmp_path / "real", as_pem(PRIVATE)))
    with pytest.raises(JournalError, match=r"link is a symbolic link, .* move it away"):
        Signer.load(link)
    assert Signer.load(tmp_path / "real").key == SIGNER.key


@pytest.mark.parametrize(
    "content", [None, b"", public_pem(ed25519.Ed25519PrivateKey.generate().public_key())]
)
def test_a_wrong_public_key_beside_the_signing_key_is_corrected(key: Path, content: bytes | None) -> None:
    put_key(key, as_pem(PRIVATE))
    beside = key.with_name("checkpoint.key.pub")
    if content is not None:
        beside.write_bytes(content)
    Signer.load(key)
    assert beside.read_bytes() == public_pem(PRIVATE.public_key())
    os.utime(beside, (0, 0))
    Signer.load(key)
    assert beside.stat().st_mtime == 0, "it was right already"


def test_a_public_key_is_not_written_through_a_link(key: Path, tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    (beside := key.with_name("checkpoint.key.pub")).symlink_to(victim)
    Signer.load(put_key(key, as_pem(PRIVATE)))
    assert victim.read_text() == "precious"
    assert beside.read_bytes() == public_pem(PRIVATE.public_key())
    assert not beside.is_symlink()


def test_a_public_key_that_another_process_writes_meanwhile_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def slower(source: Path, target: Path) -> None:
        Path(target).write_bytes(public_pem(PRIVATE.public_key()))
        link(source, target)

    monkeypatch.setattr(os, "link", slower)
    SIGNER.publish(directory)
    assert read_directory(directory).public_keys == KEYS


def test_a_systemd_credential_takes_precedence_over_the_configured_key(
    key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    handed_over = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert key_path(key, {}) == key
    assert key_path(key, handed_over) == key
    credentials.mkdir()
    assert key_path(key, handed_over) == key
    put_key(credentials / "checkpoint.key", as_pem(PRIVATE), 0o400)
    monkeypatch.chdir(credentials)
    assert key_path(key, {"CREDENTIALS_DIRECTORY": ""}) == key
    assert key_path(key, handed_over) == credentials / "checkpoint.key"
    (credentials / "checkpoint.key").unlink()
    (credentials / "checkpoint.key").symlink_to(tmp_path / "nothing")
    assert key_path(key, handed_over) == credentials / "checkpoint.key"


def test_a_signing_key_in_a_read_only_directory_is_accepted(key: Path, directory: Path) -> None:
    """As a credential. Root may write in any directory, so a directory blocks the public key's file."""
    put_key(key, as_pem(PRIVATE), 0o400)
    key.with_name("checkpoint.key.pub").mkdir()
    signer = Signer.load(key)
    assert signer.publish(directory) == directory / f"{SIGNER.key}.pub"
    assert check(GOOD, read_directory(directory).public_keys) is None


def test_a_public_key_that_cannot_be_published_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"the public key .*\.pub cannot be used: Not a directory"):
        SIGNER.publish(tmp_path / "file" / "checkpoints")


# ---------------------------------------------------------------- storing


def test_a_stored_checkpoint_is_read_and_passes_the_check(key: Path, directory: Path) -> None:
    signer = Signer.load(key)
    signer.publish(directory)
    first, second, tenth = (signer.sign(CHAIN, seq, HEAD, AT) for seq in (1, 2, 10))
    other = signer.sign(HEAD, 7, CHAIN, AT)
    for checkpoint in (tenth, first, second, other):
        store(directory, checkpoint)
    seen = read_directory(directory)
    assert seen.checkpoints == (other, first, second, tenth)
    assert seen.unreadable == ()
    assert [check(checkpoint, seen.public_keys) for checkpoint in seen.checkpoints] == [None] * 4


def test_a_stored_checkpoint_is_a_small_file_that_everybody_may_read(directory: Path) -> None:
    path = store(directory, GOOD)
    assert path == directory / "c0ffee0000000000-000000004096.json"
    assert (mode_of(path), mode_of(directory)) == (0o644, 0o755)
    assert msgspec.json.decode(path.read_bytes()) == msgspec.structs.asdict(GOOD)
    assert names(directory) == [path.name]


def test_an_existing_checkpoint_directory_keeps_its_mode(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    store(directory, GOOD)
    assert mode_of(directory) == 0o700


def test_of_two_checkpoints_of_one_event_the_earlier_file_stays(directory: Path) -> None:
    later = Signer(ed25519.Ed25519PrivateKey.generate()).sign(
        GOOD.chain, GOOD.seq, GOOD.head, "2027-01-01T00:00:00Z"
    )
    assert store(directory, GOOD) == store(directory, later)
    assert read_directory(directory).checkpoints == (GOOD,)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            msgspec.json.encode(SIGNER.sign(CHAIN, 4_096, CHAIN, AT)),
            "this is not the journal that was signed",
        ),
        (b"not a checkpoint", "is not a checkpoint: JSON is malformed"),
    ],
    ids=["another end", "garbage"],
)
def test_a_checkpoint_file_with_another_statement_is_never_overwritten(
    directory: Path, content: bytes, problem: str
) -> None:
    path = store(directory, GOOD)
    path.write_bytes(content)
    with pytest.raises(JournalError, match=problem):
        store(directory, GOOD)
    assert path.read_bytes() == content


def test_a_checkpoint_is_not_written_through_a_link(directory: Path, tmp_path: Path) -> None:
    path = store(directory, GOOD)
    path.unlink()
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(JournalError, match="is a symbolic link, where a regular file is needed"):
        store(directory, GOOD)
    assert not (tmp_path / "victim").exists()


def test_a_checkpoint_whose_chain_is_a_path_is_not_stored(directory: Path) -> None:
    with pytest.raises(JournalError, match=r"this checkpoint cannot be stored: .*chain"):
        store(directory, msgspec.structs.replace(GOOD, chain="../../../../evil"))
    assert not directory.exists()


def test_a_checkpoint_that_cannot_be_stored_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "checkpoints"):
        with pytest.raises(JournalError, match=r"the checkpoint .*\.json cannot be used: Not a directory"):
            store(directory, GOOD)


#: A process that stores a checkpoint or makes a key, and dies at its nth fsync, as in a power cut.
DIES = """
import os, sys
from pathlib import Path
import msgspec
from thor_policy.journal.checkpoints import Checkpoint, Signer, store
left, fsync = int(sys.argv[2]), os.fsync
def dies(descriptor):
    global left
    left -= 1
    if not left:
        os._exit(9)
    fsync(descriptor)
os.fsync = dies
folder = Path(sys.argv[1])
if sys.argv[3] == "key":
    Signer.load(folder / "checkpoint.key")
else:
    store(folder, msgspec.json.decode(sys.argv[3], type=Checkpoint))
"""


@pytest.mark.parametrize(("fsyncs", "visible"), [(1, False), (2, True)])
@pytest.mark.parametrize("what", ["checkpoint", "key"])
def test_a_process_killed_while_it_stores_leaves_a_complete_file_or_none(
    directory: Path, what: str, fsyncs: int, visible: bool
) -> None:
    directory.mkdir()
    argument = "key" if what == "key" else msgspec.json.encode(GOOD).decode()
    child = subprocess.run([sys.executable, "-c", DIES, directory, str(fsyncs), argument], timeout=WAIT_S)
    assert child.returncode == 9
    assert [name for name in names(directory) if not name.startswith(".")] == (
        [] if not visible else ["checkpoint.key"] if what == "key" else [f"{CHAIN[:16]}-000000004096.json"]
    )
    assert read_directory(directory) == StoredCheckpoints(
        checkpoints=(GOOD,) if visible and what == "checkpoint" else ()
    )
    # and the next process can continue
    assert Signer.load(directory / "checkpoint.key").key
    store(directory, GOOD)
    assert read_directory(directory).checkpoints == (GOOD,)


#: A process whose files may have at most 100 bytes.
FULL = """
import resource, sys
from pathlib import Path
import msgspec
from thor_policy.core.errors import JournalError
from thor_policy.journal.checkpoints import Checkpoint, Signer, store
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
folder = Path(sys.argv[1])
for attempt in (
    lambda: Signer.load(folder / "checkpoint.key"),
    lambda: store(folder, msgspec.json.decode(sys.argv[2], type=Checkpoint)),
):
    try:
        attempt()
    except JournalError as error:
        print(error)
"""


def test_a_full_disk_leaves_no_checkpoint_or_key_file(directory: Path) -> None:
    directory.mkdir()
    child = subprocess.run(
        [sys.executable, "-B", "-c", FULL, directory, msgspec.json.encode(GOOD)],
        timeout=WAIT_S,
        capture_output=True,
        text=True,
        check=True,
    )
    key, checkpoint = child.stdout.splitlines()
    assert key == f"the checkpoint key {directory}/checkpoint.key cannot be used: File too large"
    assert checkpoint.endswith(".json cannot be used: File too large")
    assert names(directory) == []


@pytest.mark.parametrize(
    "put", [lambda at: store(at, GOOD), SIGNER.publish], ids=["checkpoint", "public key"]
)
def test_the_directory_is_synced_after_a_checkpoint_or_key_is_stored(
    directory: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], Path]
) -> None:
    """The file is synced before it gets its name, the name before the return; so is the new directory."""
    calls: list[str] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def synced(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        written = os.fstat(descriptor).st_size
        calls.append(f"file of {written}" if path.suffix == ".new" else str(path))
        fsync(descriptor)

    def linked(source: Path, target: Path) -> None:
        calls.append("name")
        link(source, target)

    def replaced(source: Path, target: Path) -> None:
        calls.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(os, "replace", replaced)
    size = put(directory).stat().st_size
    assert calls == [str(directory.parent), f"file of {size}", "name", str(directory)]


# ---------------------------------------------------------------- reading a directory with other files in it


def test_a_missing_or_empty_checkpoint_directory_has_no_checkpoints(directory: Path) -> None:
    assert read_directory(directory) == StoredCheckpoints()
    directory.mkdir()
    assert read_directory(directory) == StoredCheckpoints()


def test_a_file_in_place_of_the_checkpoint_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        JournalError, match=r"the checkpoint directory .*file cannot be used: Not a directory"
    ):
        read_directory(tmp_path / "file")


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not a checkpoint: Input data was truncated"),
    "text": (b"hello", "is not a checkpoint: JSON is malformed"),
    "half": (msgspec.json.encode(GOOD)[:50], "is not a checkpoint: Input data was truncated"),
    "list": (b"[]", "is not a checkpoint: Expected `object`, got `array`"),
    "missing": (b"{}", "is not a checkpoint: Object missing required field `chain`"),
    "bytes": (b'{"chain": "\xff"}', "is not a checkpoint: "),
    "deep": (b'{"x": ' + b"[" * 60_000, "is not a checkpoint: "),
    "digits": (b'{"seq": ' + b"9" * 60_000 + b"}", "is not a checkpoint: "),
    "type": (msgspec.json.encode(msgspec.structs.asdict(GOOD) | {"seq": "1"}), "is not a checkpoint: .*seq"),
    "twice": (msgspec.json.encode(GOOD)[:-1] + b',"seq":1}', "is not a checkpoint: seq: is there twice"),
    "sign": (msgspec.json.encode(msgspec.structs.asdict(GOOD) | {"seq": -1}), "is not a checkpoint: .*seq"),
    "path": (
        msgspec.json.encode(msgspec.structs.asdict(GOOD) | {"chain": "../x"}),
        "is not a checkpoint: .*chain",
    ),
    "large": (msgspec.json.encode(GOOD) + b" " * MAX_BYTES, f"has more than {MAX_BYTES} bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_file_is_listed_with_its_reason(directory: Path, case: str) -> None:
    store(directory, GOOD)
    content, reason = HOSTILE[case]
    (directory / "hostile.json").write_bytes(content)
    seen = read_directory(directory)
    assert seen.checkpoints == (GOOD,)
    (line,) = seen.unreadable
    assert line.startswith("'hostile.json' ")
    assert re.match(reason, line.removeprefix("'hostile.json' "))
    assert line.isascii()
    assert len(line) < 300


@given(content=st.binary(max_size=200) | st.text().map(str.encode))
def test_no_content_of_a_checkpoint_file_breaks_the_reading(content: bytes) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint: "):
        checkpoints._decode(content)
    with pytest.raises(ValueError, match="is no Ed25519 public key in PEM"):
        signatures.public_key(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        as_pem(PRIVATE),
        public_pem(x25519.X25519PrivateKey.generate().public_key()),
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        public_pem(PRIVATE.public_key()) + b"\n" * MAX_BYTES,
    ],
    ids=["empty", "private", "X25519", "nonsense", "large"],
)
def test_a_pub_file_without_a_public_key_is_listed(directory: Path, content: bytes) -> None:
    SIGNER.publish(directory)
    (directory / "hostile.pub").write_bytes(content)
    seen = read_directory(directory)
    assert seen.public_keys == KEYS
    assert [line.split()[0] for line in seen.unreadable] == ["'hostile.pub'"]
    with pytest.raises(JournalError, match=r"the public key .*hostile\.pub (is no Ed25519|has more than)"):
        trusted_keys([directory / f"{SIGNER.key}.pub", directory / "hostile.pub"])


def test_pipes_links_and_directories_are_listed_and_not_opened(directory: Path, tmp_path: Path) -> None:
    path = store(directory, GOOD)
    path.rename(tmp_path / "elsewhere")
    (directory / "link.json").symlink_to(tmp_path / "elsewhere")
    (directory / "endless.json").symlink_to("/dev/zero")
    (directory / "folder.json").mkdir()
    os.mkfifo(directory / "pipe.json")
    assert read_directory(directory) == StoredCheckpoints(
        unreadable=(
            "'endless.json' is a symbolic link, where a regular file is needed; move it away",
            "'folder.json' cannot be used: Is a directory",
            "'link.json' is a symbolic link, where a regular file is needed; move it away",
            "'pipe.json' is no regular file",
        )
    )


def test_an_unreadable_file_is_listed_without_control_characters(directory: Path) -> None:
    directory.mkdir()
    Path(os.fsdecode(bytes(directory) + b"/\x1b[2J\xff.json")).write_bytes(b"{}")
    (line,) = read_directory(directory).unreadable
    assert line.startswith(r"'\x1b[2J\udcff.json' is not a checkpoint")


def test_other_files_in_the_checkpoint_directory_are_ignored(directory: Path) -> None:
    directory.mkdir()
    for name in ("README", ".hidden.json", ".tmp123.new", "x.json.bak"):
        (directory / name).write_text("anything")
    assert read_directory(directory) == StoredCheckpoints()


def test_a_directory_with_too_many_files_is_read_in_part_and_reported(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MAX_FILES", 3)
    for seq in range(1, 4):
        store(directory, SIGNER.sign(CHAIN, seq, HEAD, AT))
    assert (len(read_directory(directory).checkpoints), read_directory(directory).unreadable) == (3, ())
    store(directory, GOOD)
    seen = read_directory(directory)
    assert len(seen.checkpoints) == 3
    assert seen.unreadable == ("the directory has more than 3 files; the rest was not read",)


# ---------------------------------------------------------------- whom to trust


def test_a_checkpoint_is_checked_with_the_given_keys_only(tmp_path: Path, directory: Path) -> None:
    """Who may write to the directory can add a key and checkpoints there; the auditor's key reveals it."""
    forger = Signer.load(tmp_path / "forged.key")
    forger.publish(directory)
    forged = forger.sign(CHAIN, 1, HEAD, AT)
    store(directory, forged)
    seen = read_directory(directory)
    assert check(forged, seen.public_keys) is None
    (tmp_path / "auditor.pub").write_bytes(public_pem(PRIVATE.public_key()))
    auditors = trusted_keys([tmp_path / "auditor.pub"])
    assert auditors == KEYS
    assert check(forged, auditors) == f"its key {forger.key} is not among the trusted ones"
    claimed = msgspec.structs.replace(forged, key=SIGNER.key)
    assert check(claimed, auditors) == "its signature is wrong"


def test_a_public_key_is_known_by_its_content_not_by_its_file_name(directory: Path) -> None:
    path = Signer(ed25519.Ed25519PrivateKey.generate()).publish(directory)
    path.rename(directory / f"{SIGNER.key}.pub")
    keys = read_directory(directory).public_keys
    assert list(keys) == [path.stem]
    assert check(GOOD, keys) == f"its key {SIGNER.key} is not among the trusted ones"


def test_a_missing_trusted_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"the public key .*no\.pub cannot be used: No such file"):
        trusted_keys([tmp_path / "no.pub"])
