"""`test` and its JUnit file agree: the file holds a failure or an error exactly if the status is not 0.

Each case here is a way to end. Before each run the file holds the success of an earlier run, which must not
survive a run that fails.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import to_builtins

from tests.suites.test_reports import checked, failing_cases
from tests.suites.test_runner import HOPELESS, TOO_LONG, entry
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

#: Runs the command line.
MAIN = "from thor_policy.cli.main import main; main()"
#: Runs a daemon with the stub engine at the endpoint of the settings until it is killed.
DAEMON = """
import sys
from pathlib import Path
from thor_policy.config import Config
from thor_policy.daemon.service import open_service
from thor_policy.testing import load_stub_engine
folder = Path(sys.argv[1])
config = Config(state_dir=folder, endpoint=f"ipc://{folder}/policy.sock", cache_size=0)
with open_service(config, load_engine=load_stub_engine) as server:
    print("ready", flush=True)
    server.run()
"""

#: Only a command that hangs takes so long. It takes 2 seconds of processor time, and 26 seconds passed beside
#: five others of its kind on two busy cores.
HANG_S = 300.0

Write = Callable[..., str]
Arguments = Callable[[Path, Write], list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*scenarios: Json, **members: Any) -> str:
        path = tmp_path / "suite.yaml"
        whole = {"name": "tiny", "pack": "team-governance", "scenarios": list(scenarios)} | members
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def environment(config: Config) -> dict[str, str]:
    return os.environ | {
        "THOR_POLICY_STATE_DIR": str(config.state_dir),
        "THOR_POLICY_ENDPOINT": config.endpoint,
        "COLUMNS": "80",
    }


@pytest.fixture
def junit_file(tmp_path: Path) -> Path:
    """The place of the JUnit file, where an earlier run left its success."""
    file = tmp_path / "run.xml"
    file.write_text('<testsuites name="thorpolicy test" tests="1" failures="0" errors="0" time="0.000"/>')
    return file


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


def below_a_file(folder: Path, name: str) -> str:
    """A path that nobody can write, root included: its folder is a file."""
    (folder / "file").write_text("")
    return str(folder / "file" / name)


def directory(folder: Path) -> str:
    (folder / "folder").mkdir()
    return str(folder / "folder")


def spoilt_baselines(folder: Path) -> str:
    (folder / "tiny@stub.json").write_text("{")
    return str(folder)


def leaking(write: Write) -> str:
    from thor_policy.config import data_path
    from thor_policy.policy import pack_files

    example = pack_files.load(data_path("prompts") / "team-governance").examples[0]
    plain = {key: value for key, value in entry("COPY").items() if key != "situation"}
    return write(plain | {"request": to_builtins(example.evaluation)})


#: What `test` is called with, and the status it ends with.
CASES: dict[str, tuple[int, Arguments]] = {
    "passed": (0, lambda _, write: [write(entry("P1"))]),
    "a failure": (1, lambda _, write: [write(entry("F1", **HOPELESS))]),
    "a refused question": (1, lambda _, write: [write(entry("X1", **TOO_LONG))]),
    "coverage below its threshold": (
        1, lambda _, write: [write(entry("P1")), "--full", "--coverage-threshold", "100"]
    ),
    "coverage below its threshold under a passed gate": (
        1, lambda _, write: [write(entry("P1")), "--full", "--bless", "--coverage-threshold", "100"]
    ),
    "all skipped": (1, lambda _, write: [write(entry("S1", skip="later"), entry("S2", skip="later"))]),
    "all filtered away": (2, lambda _, write: [write(entry("P1")), "--filter", "nothing"]),
    "no quick scenario": (2, lambda _, write: [write(entry("P1", quick=False))]),
    "a setting out of range": (2, lambda _, write: [write(entry("P1")), "--threads", "-7"]),
    "a setting of the wrong type": (2, lambda _, write: [write(entry("P1")), "--context-tokens", "many"]),
    "no settings file": (2, lambda folder, write: [write(entry("P1")), "--config", str(folder / "no.toml")]),
    "an unknown option": (2, lambda _, write: [write(entry("P1")), "--nosuch"]),
    "an option without its value": (2, lambda _, write: [write(entry("P1")), "--repeat"]),
    "a number out of range": (2, lambda _, write: [write(entry("P1")), "--repeat", "0"]),
    "bless without full": (2, lambda _, write: [write(entry("P1")), "--bless"]),
    "an unknown pack": (2, lambda _, write: [write(entry("P1")), "--pack", "nosuch"]),
    "an outcome that the pack does not have": (
        2, lambda _, write: [write(entry("P1", expect={"outcome": "perhaps"}))]
    ),
    "a leak": (2, lambda _, write: [leaking(write), "--full"]),
    "an HTML file below a file": (
        2, lambda folder, write: [write(entry("P1")), "--html", below_a_file(folder, "run.html")]
    ),
    "an HTML file that is a folder": (
        2, lambda folder, write: [write(entry("P1")), "--html", directory(folder)]
    ),
    "an HTML file on a full disk": (2, lambda _, write: [write(entry("P1")), "--html", "/dev/full"]),
    "baselines below a file": (
        2,
        lambda folder, write: [
            write(entry("P1")), "--full", "--bless", "--baselines", below_a_file(folder, "baselines")
        ],
    ),
    "a spoilt baseline": (
        2,
        lambda folder, write: [
            write(entry("P1")), "--full", "--gate", "--baselines", spoilt_baselines(folder)
        ],
    ),
    "no baseline": (
        1, lambda folder, write: [write(entry("P1")), "--full", "--gate", "--baselines", str(folder)]
    ),
    "no daemon": (
        3, lambda folder, write: [write(entry("P1")), "--against", f"ipc://{folder}/nobody.sock"]
    ),
}  # fmt: skip


@contextmanager
def thorpolicy(
    environment: dict[str, str], *arguments: str, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", MAIN, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with subprocess.Popen(command, env=environment, text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def answered_once(process: subprocess.Popen[str]) -> None:
    """Wait until the run has reported an answer."""
    assert process.stderr is not None
    while "P1" not in (line := process.stderr.readline()):
        assert line, "it ended before an answer"


def agree(status: int, file: Path) -> None:
    failing = failing_cases(checked(file.read_bytes()))
    assert (failing > 0) == (status != 0), f"status {status}, {failing} failures and errors in the file"


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("name", CASES)
def test_the_junit_file_agrees_with_the_exit_status(
    name: str, environment: dict[str, str], write: Write, tmp_path: Path, junit_file: Path
) -> None:
    status, arguments = CASES[name]
    options = (*arguments(tmp_path, write), "--junit", str(junit_file))
    with thorpolicy(environment, "test", *options) as process:
        _, message = process.communicate(timeout=HANG_S)
    assert "Traceback" not in message
    assert process.returncode == status, message
    agree(process.returncode, junit_file)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_file_of_a_run_that_is_stopped_holds_an_error(
    sent: signal.Signals, environment: dict[str, str], write: Write, junit_file: Path
) -> None:
    arguments = (write(entry("P1")), "--repeat", "1000", "--junit", str(junit_file))
    with thorpolicy(environment, "test", *arguments) as process:
        answered_once(process)
        process.send_signal(sent)
        process.communicate(timeout=HANG_S)
    assert process.returncode != 0
    agree(process.returncode, junit_file)


def test_the_file_of_a_run_whose_daemon_goes_away_holds_an_error(
    environment: dict[str, str], config: Config, write: Write, junit_file: Path
) -> None:
    environment |= {"THOR_POLICY_MAX_DEADLINE_MS": "1000"}
    command = [sys.executable, "-c", DAEMON, str(config.state_dir)]
    arguments = ("test", write(entry("P1")), "--repeat", "1000", "--junit", str(junit_file))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "ready\n"
            with thorpolicy(environment, *arguments) as process:
                answered_once(process)
                daemon.kill()
                _, message = process.communicate(timeout=HANG_S)
        finally:
            daemon.kill()
    assert "Traceback" not in message
    assert process.returncode == 3, message
    agree(process.returncode, junit_file)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_the_file_agrees_if_nobody_reads_the_report(
    options: list[str], environment: dict[str, str], write: Write, junit_file: Path
) -> None:
    """The reader of the pipe is gone, or the disk of the file is full."""
    arguments = ("test", write(entry("P1")), *options, "--junit", str(junit_file))
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as closed, Path("/dev/full").open("wb") as full:
        for stream in (closed, full):
            with thorpolicy(environment, *arguments, stdout=stream) as process:
                process.communicate(timeout=HANG_S)
            assert process.returncode != 0
            agree(process.returncode, junit_file)


@pytest.mark.usefixtures("daemon")
def test_an_unwritable_junit_file_is_status_2_and_the_other_report_is_written(
    environment: dict[str, str], write: Write, tmp_path: Path
) -> None:
    page, suite = tmp_path / "run.html", write(entry("P1"))
    for file in (below_a_file(tmp_path, "run.xml"), directory(tmp_path), "/dev/full"):
        with thorpolicy(environment, "test", suite, "--junit", file, "--html", str(page)) as process:
            _, message = process.communicate(timeout=HANG_S)
        assert (process.returncode, "cannot be written" in message) == (2, True), message
        assert "Traceback" not in message
        assert page.is_file()
        page.unlink()
