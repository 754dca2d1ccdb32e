"""The blocks of code in the documents, and a shell that runs them.

Owns the marks of the blocks. The line before a block of shell or Python is an HTML comment, which readers do
not see:

    <!-- run: NAME -->                    the test of that name runs it, after the blocks before it
    <!-- run: NAME in the background -->  a daemon, which runs until the next of its kind or the end
    <!-- run: NAME, exit status 2 -->     it ends with this exit status; without it with 0
    <!-- not run: REASON -->              nothing runs it

A block without language that follows a block to run is its output: its lines must be among those that are
printed, in this order. They may lack the last columns.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
#: Languages of the blocks that need a mark.
LANGUAGES = {"sh", "bash", "console", "python"}
#: Longest that a block may run, and that a daemon may take to start or to stop, in seconds.
BLOCK_TIMEOUT_S, DAEMON_TIMEOUT_S = 300, 120

_MARK = re.compile(
    r"^ *<!-- (?:not run: (?P<reason>.+?)"
    r"|run: (?P<name>[\w ]+?)(?P<background> in the background)?(?:, exit status (?P<status>\d+))?) -->$"
)


@dataclass(frozen=True)
class Block:
    """A block of code; `place` is page:line. Without a mark `name` and `reason` are both empty."""

    page: Path
    line: int
    language: str
    code: str
    name: str = ""
    reason: str = ""
    background: bool = False
    status: int = 0
    output: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """The blocks of shell and Python on a page."""
    lines = (page.read_text(encoding="utf-8") if text is None else text).splitlines()
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0, f"{page.name}: a block of code is not closed"
    blocks: list[Block] = []
    for number, (begin, end) in enumerate(zip(fences[::2], fences[1::2], strict=True)):
        if (language := _language(lines[begin])) not in LANGUAGES:
            continue
        mark = _MARK.match(lines[begin - 1]) if begin else None
        following = fences[2 * number + 2 : 2 * number + 4]
        prints = bool(following) and not _language(lines[following[0]])
        blocks.append(
            Block(
                page,
                begin + 1,
                language,
                _dedented(lines[begin + 1 : end]),
                name=(mark["name"] if mark else "") or "",
                reason=(mark["reason"] if mark else "") or "",
                background=bool(mark and mark["background"]),
                status=int(mark["status"] or 0) if mark else 0,
                output=_dedented(lines[following[0] + 1 : following[1]]) if prints else "",
            )
        )
    return blocks


def blocks_named(name: str) -> list[Block]:
    """The blocks to run under a name, in the order of the pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.name == name]


def missing_line(output: str, printed: str) -> str | None:
    """The first line of `output` that was not printed after the lines before it.

    Spaces count as one, and a page may leave out the last columns.
    """
    printed_lines = iter([_words(line) for line in printed.splitlines()])
    for line in output.splitlines():
        if not any(printed_line.startswith(_words(line)) for printed_line in printed_lines):
            return line
    return None


def _words(line: str) -> str:
    return " ".join(line.split()) + " "


def _language(fence: str) -> str:
    return fence.strip().removeprefix("```")


def _dedented(lines: list[str]) -> str:
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines) + "\n"


@dataclass
class Shell:
    """A user's shell in `folder`: variables and files stay from block to block.

    `environment` is added to that of the tests. Blocks may use `thorpolicy` and `python`.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    _daemon: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._variables = self.folder / ".variables"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"PYTHONPATH": str(ROOT), "PATH": path, "LANG": "C.UTF-8", **self.environment}
        self._variables.write_text(
            "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        )

    def run(self, block: Block, placeholders: Mapping[str, str] | None = None, *, typed: str = "") -> str:
        """What a block prints. Fails if it does not end, or print, as the page says.

        `placeholders` says what stands for names such as ID; `typed` is what the user types.
        """
        code = block.code
        for name, value in (placeholders or {}).items():
            code = value.join(re.split(rf"(?<![\w/]){re.escape(name)}(?!\w)", code))
        if block.language == "python":
            (self.folder / ".sample.py").write_text(code, encoding="utf-8")
            code = "python .sample.py\n"
        if block.background:
            self._start_daemon(code, block.place)
            return ""
        done = subprocess.run(
            self._command(f"{code}export -p > {shlex.quote(str(self._variables))}\n"),
            cwd=self.folder,
            env=self._environment(),
            input=typed,
            capture_output=True,
            text=True,
            timeout=BLOCK_TIMEOUT_S,
            check=False,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == block.status, f"{block.place} ended with {done.returncode}:\n{printed}"
        missing = missing_line(block.output, printed) if block.output else None
        assert missing is None, f"{block.place} did not print {missing!r}, but:\n{printed}"
        return printed

    def stop_daemon(self) -> None:
        """Press Ctrl-C where the daemon runs."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGINT)
            assert self._daemon.wait(DAEMON_TIMEOUT_S) == 0
            self._daemon = None

    def _command(self, code: str) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", f". {shlex.quote(str(self._variables))}\n{code}"]

    def _environment(self) -> dict[str, str]:
        """That of the tests, without what would change the width of tables or the settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("THOR_POLICY_")}
        return {name: value for name, value in kept.items() if name not in {"COLUMNS", "LINES"}}

    def _start_daemon(self, code: str, place: str) -> None:
        """Start a daemon, in the place of the one that runs, and wait until it says that it is ready."""
        self.stop_daemon()
        address = self.folder / ".notify"
        address.unlink(missing_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
            notify.settimeout(DAEMON_TIMEOUT_S)
            notify.bind(str(address))
            *before, last = code.strip().splitlines()
            command = self._command("\n".join([*before, f"exec {last}"]))
            environment = self._environment() | {"NOTIFY_SOCKET": str(address)}
            with (self.folder / ".daemon.log").open("w") as log:
                self._daemon = subprocess.Popen(
                    command, cwd=self.folder, env=environment, stdout=log, stderr=log
                )
            try:
                while "READY=1" not in notify.recv(4096).decode():
                    pass
            except TimeoutError:
                raise AssertionError(
                    f"{place} did not start:\n{(self.folder / '.daemon.log').read_text()}"
                ) from None


@contextlib.contextmanager
def open_shell(folder: Path, environment: Mapping[str, str]) -> Iterator[Shell]:
    """A shell whose daemon is stopped at the end."""
    shell = Shell(folder, environment)
    try:
        yield shell
    finally:
        shell.stop_daemon()
