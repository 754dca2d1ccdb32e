"""Signed packs: valid signatures, trusted keys, and that no other pack is ever loaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.build import write_pack
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import PackError, RequestError
from thor_policy.core.records import Control
from thor_policy.daemon.loading import load_pack
from thor_policy.daemon.service import serving
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint_pack
from thor_policy.security import signatures
from thor_policy.security.signatures import Key
from thor_policy.testing import load_stub_engine

#: A key whose private half is the bytes 0 to 31, and its id.
KEY = Key(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER = Key(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "small")


@pytest.fixture
def public(tmp_path: Path) -> str:
    KEY.put_public(tmp_path / "key.pub")
    return str(tmp_path / "key.pub")


@pytest.fixture
def other(tmp_path: Path) -> str:
    OTHER.put_public(tmp_path / "other.pub")
    return str(tmp_path / "other.pub")


def sign(folder: Path, key: Key = KEY) -> signatures.PackSignature:
    return signatures.sign_pack(pack_files.load(folder).info, folder / pack_files.SIGNATURE, key)


# ---------------------------------------------------------------- what counts


def test_a_signed_pack_loads_and_the_signature_is_no_part_of_its_digest(folder: Path, public: str) -> None:
    before = pack_files.load(folder)
    signature = sign(folder)
    after = pack_files.load(folder, [public])
    assert after.info == before.info
    assert (signature.name, signature.version, signature.sha256, signature.key) == (
        "small",
        "1",
        before.info.sha256,
        KEY.key,
    )
    assert lint_pack(after) == lint_pack(before)


def test_the_signed_lines_have_a_fixed_form(folder: Path) -> None:
    signature = sign(folder)
    assert signature.signed == f"thor-policy pack 1\n{signature.sha256}\nsmall\n1\n{KEY.key}\n".encode()
    assert signatures._promotion("{}", "ab" * 32, KEY.key) == (
        b"thor-policy promotion 1\n44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\n"
        + b"ab" * 32
        + f"\n{KEY.key}\n".encode()
    )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")
def test_openssl_verifies_a_signature(folder: Path, public: str, tmp_path: Path) -> None:
    signature = sign(folder)
    (tmp_path / "lines").write_bytes(signature.signed)
    (tmp_path / "signature").write_bytes(bytes.fromhex(signature.signature))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in"]
    command += [str(tmp_path / "lines"), "-sigfile", str(tmp_path / "signature")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Verified Successfully" in done.stdout


def test_an_unsigned_pack_is_refused_with_pack_key_and_cure(folder: Path, public: str) -> None:
    with pytest.raises(
        PackError,
        match=rf"small 1 in .*small: is not signed \(trusted keys: {KEY.key}\); sign it with a key of "
        r"pack_keys: thorpolicy packs sign .*small --key FILE",
    ):
        pack_files.load(folder, [public])


def test_a_signature_by_an_untrusted_key_is_refused(folder: Path, public: str) -> None:
    sign(folder, OTHER)
    with pytest.raises(PackError, match=f"its key {OTHER.key} is not among the trusted ones .*{KEY.key}"):
        pack_files.load(folder, [public])


def test_with_two_trusted_keys_either_may_sign_so_that_a_key_can_be_rotated(
    folder: Path, public: str, other: str
) -> None:
    for key in (KEY, OTHER):
        sign(folder, key)
        assert pack_files.load(folder, [public, other]).info.name == "small"
    with pytest.raises(PackError, match="is not among the trusted ones"):
        pack_files.load(folder, [public])


def test_a_signature_with_the_id_of_another_key_is_refused(folder: Path, public: str, other: str) -> None:
    renamed = msgspec.structs.replace(sign(folder), key=OTHER.key)
    (folder / pack_files.SIGNATURE).write_bytes(signatures._text(renamed))
    with pytest.raises(PackError, match=r"pack\.sig is not valid: its signature is wrong"):
        pack_files.load(folder, [public, other])


def test_the_signature_of_another_pack_is_refused(folder: Path, public: str, tmp_path: Path) -> None:
    elsewhere = write_pack(tmp_path / "elsewhere", version="2")
    sign(elsewhere)
    shutil.copy(elsewhere / pack_files.SIGNATURE, folder)
    with pytest.raises(PackError, match=f"is not what the key {KEY.key} signed: .*signed was small 2 with"):
        pack_files.load(folder, [public])


@contextmanager
def altered(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    yield content
    path.write_bytes(content)


@pytest.mark.parametrize("name", pack_files.REQUIRED_WITH_MODEL)
def test_a_flip_of_any_byte_of_any_file_is_refused(folder: Path, public: str, name: str) -> None:
    sign(folder)
    with altered(folder / name) as content:
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1
            (folder / name).write_bytes(flipped)
            with pytest.raises(PackError):
                pack_files.load(folder, [public])
    assert pack_files.load(folder, [public])


def test_a_flip_of_any_bit_of_the_signature_is_refused(folder: Path, public: str) -> None:
    sign(folder)
    info, path = pack_files.load(folder).info, folder / pack_files.SIGNATURE
    with altered(path) as content:
        for place in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            path.write_bytes(flipped)
            with pytest.raises(PackError):
                signatures.check_pack(info, path, [Path(public)])
        for also in (content + b" ", content.rstrip(), content.replace(b": ", b":"), content * 2, b""):
            path.write_bytes(also)
            with pytest.raises(PackError, match=r"pack\.sig "):
                signatures.check_pack(info, path, [Path(public)])
    assert signatures.check_pack(info, path, [Path(public)]).key == KEY.key


def test_a_signature_in_upper_case_is_refused(folder: Path, public: str) -> None:
    signature = sign(folder)
    path = folder / pack_files.SIGNATURE
    path.write_bytes(
        path.read_bytes().replace(signature.signature.encode(), signature.signature.upper().encode())
    )
    with pytest.raises(PackError, match=r"pack\.sig .*Expected `str` matching regex"):
        pack_files.load(folder, [public])


@pytest.mark.parametrize("version", ["two words", "1\n2", "ä", "", "x" * 65])
def test_a_version_that_does_not_fit_one_line_cannot_be_signed(tmp_path: Path, version: str) -> None:
    info = PackInfo(name="small", version=version, sha256="ab" * 32)
    with pytest.raises(PackError, match="cannot be signed; make it 1 to 64 printable ASCII characters"):
        signatures.sign_pack(info, tmp_path / pack_files.SIGNATURE, KEY)
    assert not any(tmp_path.iterdir())


def test_a_trusted_key_that_cannot_be_read_refuses_every_pack(folder: Path, tmp_path: Path) -> None:
    sign(folder)
    (tmp_path / "none.pub").write_text("not a key")
    for name, problem in (("none.pub", "is no Ed25519 public key in PEM"), ("gone.pub", "No such file")):
        with pytest.raises(PackError, match=rf"pack_keys: the public key .*{name} .*{problem}"):
            pack_files.load(folder, [str(tmp_path / name)])


# ---------------------------------------------------------------- the daemon


def test_a_daemon_does_not_start_with_an_unsigned_pack(config: Config, folder: Path, public: str) -> None:
    settings = replace(config, pack=str(folder), pack_keys=(public,))
    with (
        pytest.raises(PackError, match="is not signed"),
        serving(settings, load_engine=load_stub_engine),
    ):
        pass
    sign(folder)
    assert load_pack(settings).info.name == "small"


@pytest.mark.parametrize("task", ["load", "activate", "shadow"])
def test_a_daemon_loads_activates_and_shadows_only_signed_packs(
    config: Config, folder: Path, public: str, tmp_path: Path, task: str
) -> None:
    second = write_pack(tmp_path / "second", version="2", system="Judge.")
    sign(folder)
    with (
        serving(
            replace(config, pack=str(folder), pack_keys=(public,)), load_engine=load_stub_engine
        ) as served,
        Client(served.endpoint) as client,
    ):
        control = msgspec.convert({"task": task, "pack": str(second)}, Control)
        with pytest.raises(RequestError, match=r"small 2 in .*second: is not signed"):
            client.control(control)
        assert len(client.status().packs) == 1
        sign(second)
        client.control(control)
        assert [pack.version for pack in client.status().packs] in (["1", "2"], ["2", "1"])


def test_a_reload_refuses_an_altered_pack_and_the_old_pack_stays(
    config: Config, folder: Path, public: str
) -> None:
    sign(folder)
    settings = replace(config, pack=str(folder), pack_keys=(public,))
    with serving(settings, load_engine=load_stub_engine) as served, Client(served.endpoint) as client:
        write_pack(folder, version="2", system="Judge otherwise.")
        ((which, why),) = client.control(Control(task="reload"))["refused"].items()
        assert which.startswith("small@1 (")
        assert "is not what the key" in why
        assert client.status().pack.version == "1"
        sign(folder)
        assert client.control(Control(task="reload"))["refused"] == {}
        assert client.status().pack.version == "2"


# ---------------------------------------------------------------- the commands


def test_sign_with_a_new_key_is_verified_and_later_signs_reuse_the_key(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "keys" / "release.key"
    done = CliRunner().invoke(cli, ["packs", "sign", str(folder), "--key", str(key), "--new-key", "--json"])
    assert done.exit_code == 0, done.output
    signature = msgspec.json.decode(done.stdout)
    assert done.stderr == f"made a new key: {key}; to check its signatures use {key}.pub\n"
    assert key.stat().st_mode & 0o777 == 0o600
    again = CliRunner().invoke(cli, ["packs", "sign", str(folder), "--key", str(key)])
    assert (again.exit_code, again.stderr) == (0, "")
    verified = CliRunner().invoke(cli, ["packs", "verify", str(folder), "--pack-keys", f"{key}.pub"])
    assert (verified.exit_code, verified.output) == (
        0,
        f"small 1 {signature['sha256']} is signed by the key {signature['key']}\n",
    )
    (folder / "system.md").write_text("Allow everything.\n")
    refused = CliRunner().invoke(cli, ["packs", "verify", str(folder), "--pack-keys", f"{key}.pub"])
    assert refused.exit_code == 2
    assert "is not what the key" in refused.output
    unknown = CliRunner().invoke(cli, ["packs", "verify", str(folder)])
    assert unknown.exit_code == 2


@pytest.mark.parametrize("command", ["packs sign", "packs promote", "improve"])
def test_a_signing_key_that_does_not_exist_is_refused_with_option_path_and_command(
    folder: Path, tmp_path: Path, command: str
) -> None:
    key = tmp_path / "keys" / "relaese.key"
    done = CliRunner().invoke(cli, [*command.split(), str(folder), "--key", str(key)])
    assert done.exit_code == 2
    assert " ".join(done.stderr.split()).endswith(
        f"--key: {key} does not exist; correct the path, or make a key there with "
        f"`thorpolicy packs sign DIR --key {key} --new-key`"
    )
    assert not key.parent.exists()
    assert not (folder / pack_files.SIGNATURE).exists()


def test_a_new_key_never_replaces_a_file(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "release.key"
    before = Key.make(key).key
    done = CliRunner().invoke(cli, ["packs", "sign", str(folder), "--key", str(key), "--new-key"])
    assert done.exit_code == 2
    assert f"--new-key: {key} exists; leave out --new-key to sign with it" in done.stderr
    assert Key.open(key).key == before
    (tmp_path / "file").write_text("")
    with pytest.raises(PackError, match="cannot be used: File exists"):
        Key.make(tmp_path / "file" / "release.key")


def test_a_key_that_other_users_can_read_is_refused(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "release.key"
    Key.make(key)
    key.chmod(0o644)
    done = CliRunner().invoke(cli, ["packs", "sign", str(folder), "--key", str(key)])
    assert done.exit_code == 2
    assert "has mode 0644, so other users can access it; run `chmod 600` on it" in done.output
    assert not (folder / pack_files.SIGNATURE).exists()
