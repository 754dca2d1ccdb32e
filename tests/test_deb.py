"""The Debian package: its contents, the same bytes again; installed, asked and purged in a chroot."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import man_pages
import pytest

from tests.conftest import MODEL
from thor_policy import __version__, catalog
from thor_policy.config import Config

ROOT = Path(__file__).resolve().parents[1]
#: Longest wait for a program, in seconds: debootstrap fetches 100 packages.
PATIENCE_S = 1_200
QUESTION = {
    "subject": {"type": "user", "id": "ivo", "properties": {"role": "developer"}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
    "context": {"timestamp": "2026-03-03T10:00:00Z"},
}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


def build(out: Path, *options: str) -> Path:
    command = [ROOT / "scripts/build-deb", "--out", out, *options]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1796000000"}
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S, env=environment)
    (package,) = out.glob("*.deb")
    return package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package without Python packages, unpacked: files and, in DEBIAN, its scripts."""
    folder = tmp_path_factory.mktemp("deb")
    file = build(folder / "first", "--without-packages")
    subprocess.run(["dpkg-deb", "--raw-extract", file, folder / "tree"], check=True)
    return folder


@needs_dpkg
class TestContents:
    def test_two_builds_are_the_same_bytes(self, package: Path) -> None:
        again = build(package / "second", "--without-packages")
        (first,) = (package / "first").glob("*.deb")
        assert first.read_bytes() == again.read_bytes()

    def test_it_installs_the_units_and_the_settings_of_the_checkout(self, package: Path) -> None:
        for source, target in (
            ("thor-policy.service", "usr/lib/systemd/system/thor-policy.service"),
            ("thor-policy-improve.timer", "usr/lib/systemd/system/thor-policy-improve.timer"),
            ("sysusers.conf", "usr/lib/sysusers.d/thor-policy.conf"),
            ("tmpfiles.conf", "usr/lib/tmpfiles.d/thor-policy.conf"),
            ("config.toml", "etc/thor-policy/config.toml"),
        ):
            assert (package / "tree" / target).read_text() == (ROOT / "systemd" / source).read_text()
        assert (package / "tree/DEBIAN/conffiles").read_text() == "/etc/thor-policy/config.toml\n"

    def test_the_program_is_on_the_path_and_belongs_to_the_environment(self, package: Path) -> None:
        tree = package / "tree"
        assert (tree / "usr/bin/thorpolicy").readlink() == Path("/opt/thor-policy/bin/thorpolicy")
        program = tree / "opt/thor-policy/bin/thorpolicy"
        assert program.read_text().startswith("#!/opt/thor-policy/bin/python\n")
        assert os.access(program, os.X_OK)
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        assert (tree / "opt/thor-policy/bin/python").readlink() == Path("/usr/bin") / python
        assert f"Depends: {python}, " in (tree / "DEBIAN/control").read_text()

    def test_the_version_is_that_of_the_package_and_every_file_has_a_digest(self, package: Path) -> None:
        tree = package / "tree"
        assert f"\nVersion: {__version__}\n" in (tree / "DEBIAN/control").read_text()
        listed = {line.split("  ")[1] for line in (tree / "DEBIAN/md5sums").read_text().splitlines()}
        files = {
            str(path.relative_to(tree))
            for path in tree.rglob("*")
            if path.is_file() and not path.is_symlink() and "DEBIAN" not in path.parts
        }
        assert listed == files

    def test_its_scripts_are_valid_and_nothing_is_writable_by_others(self, package: Path) -> None:
        for script in ("postinst", "prerm", "postrm"):
            subprocess.run(["sh", "-n", package / "tree/DEBIAN" / script], check=True)
        (file,) = (package / "first").glob("*.deb")
        listing = subprocess.run(["dpkg-deb", "-c", file], check=True, capture_output=True, text=True).stdout
        for line in listing.splitlines():
            assert line.startswith("l") or line[8] == "-", line
            assert line.split()[1] == "root/root", line

    def test_each_command_has_a_manual_page(self, package: Path) -> None:
        folder = package / "tree/usr/share/man/man1"
        pages = {
            path.name.removesuffix(".gz"): gzip.decompress(path.read_bytes()) for path in folder.iterdir()
        }
        assert set(pages) == set(man_pages.pages())
        assert {"thorpolicy.1", "thorpolicy-serve.1", "thorpolicy-log-verify.1"} <= set(pages)
        for name, page in pages.items():
            assert page.startswith(b".TH "), name
            assert b"\n.SH OPTIONS\n" in page or b"\n.SH COMMANDS\n" in page, name

    def test_the_shells_complete_commands(self, package: Path) -> None:
        share = package / "tree/usr/share"
        for path in ("bash-completion/completions/thorpolicy", "zsh/vendor-completions/_thorpolicy"):
            assert "_THORPOLICY_COMPLETE" in (share / path).read_text()
        assert "_THORPOLICY_COMPLETE" in (share / "fish/vendor_completions.d/thorpolicy.fish").read_text()


def test_the_container_file_names_what_the_package_installs() -> None:
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    steps = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines if line[:1].isupper()}
    assert steps["FROM"].startswith("debian:bookworm")
    assert steps["USER"] == "thor-policy:thor-policy-clients"
    entry = json.loads(steps["ENTRYPOINT"]) + json.loads(steps["CMD"])
    assert entry[:2] == ["/usr/bin/thorpolicy", "serve"]
    settings = tomllib.loads((ROOT / "systemd/config.toml").read_text())
    assert json.loads(steps["VOLUME"]) == [settings["state_dir"]]


class Chroot:
    """A Debian in a folder, with the mounts that a service has."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str, status: int = 0, **options: str) -> str:
        """Run a program as root there, or as another `user`; returns its output."""
        done = subprocess.run(
            [*self.words(**options), *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
        assert done.returncode == status, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout + done.stderr

    def words(self, user: str = "") -> list[str]:
        words = ["chroot", str(self.root)]
        if user:
            words += ["setpriv", f"--reuid={user}", "--regid=thor-policy-clients", "--init-groups"]
        return words

    def files(self) -> set[str]:
        """Every file that no package of Debian changes when it is only used."""
        volatile = ("proc", "dev", "sys", "tmp", "var/lib/dpkg", "var/log", "var/cache", "var/lib/apt", "run")
        listed = set()
        for folder, folders, names in os.walk(self.root):
            relative = os.path.relpath(folder, self.root)
            if relative in volatile:
                folders.clear()
                continue
            listed |= {os.path.normpath(f"{relative}/{name}") for name in names + folders}
        return {name for name in listed if not name.endswith(("-", ".pyc", "__pycache__"))}


@pytest.fixture
def chroot(tmp_path: Path) -> Iterator[Chroot]:
    root = Path(os.environ.get("THOR_POLICY_TEST_CHROOT") or tmp_path / "root")
    if not root.exists():
        packages = "--include=python3,systemd,libgomp1,libstdc++6"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", root]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    mounts = [(["-t", "proc", "proc"], root / "proc"), (["--bind", "/dev"], root / "dev")]
    for options, folder in mounts:
        subprocess.run(["mount", *options, folder], check=True)
    try:
        yield Chroot(root)
    finally:
        for _, folder in reversed(mounts):
            subprocess.run(["umount", "--lazy", folder], check=False)


@pytest.mark.soak
@pytest.mark.model
@needs_dpkg
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("debootstrap") is None, reason="root and debootstrap are needed"
)
def test_installed_in_a_clean_debian_it_serves_and_a_purge_keeps_only_what_was_recorded(
    chroot: Chroot, tmp_path: Path
) -> None:
    package, root = build(tmp_path / "deb"), chroot.root
    clean = chroot.files()
    shutil.copy(package, root / "tmp/thor-policy.deb")
    chroot.run("dpkg", "-i", "/tmp/thor-policy.deb")
    chroot.run("dpkg", "--verify", "thor-policy")
    assert "thor-policy" in chroot.run("id", "thor-policy")
    # A purge before anything was recorded leaves nothing.
    chroot.run("dpkg", "--purge", "thor-policy")
    assert chroot.files() - clean == set()
    chroot.run("id", "thor-policy", status=1)

    chroot.run("dpkg", "-i", "/tmp/thor-policy.deb")
    settings = root / "etc/thor-policy/config.toml"
    settings.write_text(settings.read_text() + "# edited\n")
    model = catalog.resolve(MODEL, Config().models_dir).path
    shutil.copy(model, root / "var/lib/thor-policy/models" / model.name)
    chroot.run("chown", "-R", "thor-policy:thor-policy-clients", "/var/lib/thor-policy")
    chroot.run(
        "install", "-d", "-o", "thor-policy", "-g", "thor-policy-clients", "-m", "750", "/run/thor-policy"
    )
    identifier = serve_and_ask(chroot, tmp_path)

    chroot.run("dpkg", "-i", "/tmp/thor-policy.deb")  # an upgrade keeps records and edited settings
    assert settings.read_text().endswith("# edited\n")
    assert identifier in chroot.run("thorpolicy", "log", "--json", *AS_SERVICE, user="thor-policy")
    chroot.run("dpkg", "--remove", "thor-policy")
    assert settings.exists()
    chroot.run("dpkg", "--purge", "thor-policy")
    left = {name for name in chroot.files() - clean if (root / name).is_file()}
    assert {name.split("/")[:3] == ["var", "lib", "thor-policy"] for name in left} == {True}, left
    assert "var/lib/thor-policy/policy_decisions.db" in left
    assert not [name for name in left if "models" in name or "ballast" in name]
    assert not (root / "opt/thor-policy").exists()
    assert not (root / "etc/thor-policy").exists()


AS_SERVICE = ("--config", "/etc/thor-policy/config.toml")


def serve_and_ask(chroot: Chroot, tmp_path: Path) -> str:
    """Start the daemon as its unit does, with a notify socket; ask; stop it. Returns the decision's id."""
    path = chroot.root / "run/notify.sock"
    path.unlink(missing_ok=True)
    question = chroot.root / "tmp/question.json"
    question.write_text(json.dumps(QUESTION))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, (tmp_path / "log").open("wb") as log:
        # sun_path has 108 bytes, and the chroot's path may be longer.
        folder = os.open(path.parent, os.O_PATH)
        notify.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        path.chmod(0o666)
        notify.settimeout(300)
        command = [*chroot.words("thor-policy"), "/opt/thor-policy/bin/thorpolicy", "serve", *AS_SERVICE]
        environment = {
            "NOTIFY_SOCKET": "/run/notify.sock",
            "PATH": "/usr/sbin:/usr/bin:/bin",
            "HOME": "/var/lib/thor-policy",
        }
        daemon = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            messages = b""
            while b"READY=1" not in messages:
                messages += notify.recv(4096)
            arguments = ("ask", "/tmp/question.json", "--json", "--explain", "none", *AS_SERVICE)
            reply = json.loads(chroot.run("thorpolicy", *arguments, user="thor-policy"))
            chroot.run("thorpolicy", "log", "verify", *AS_SERVICE, user="thor-policy")
        finally:
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(60) == 0, (tmp_path / "log").read_text()[-2000:]
    assert reply["context"]["tier"] in ("model", "rule")
    return str(reply["context"]["decision_id"])
