"""Child processes of a benchmark: a thor-policy daemon, a bare model, llama-server, a chat loop.

Owns every process that a benchmark starts. Invariant: each process listens on a private socket or on loopback
only, and ends with the block that started it. Main thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from thor_policy.config import Config
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Json
from thor_policy.engine.llama import STEP_TOKENS

#: How long a child process may take to start or to answer, in seconds.
PATIENCE_S = 180


class Child:
    """A child process that exchanges lines with the benchmark."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=20)
        self._process.kill()
        self._process.wait()
        self._reader.join(timeout=5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    @property
    def rss_mb(self) -> float:
        """Resident memory in MiB."""
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text(encoding="ascii")
        return next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Rss:"))

    @property
    def cpu_s(self) -> float:
        """Processor time so far, in seconds, of all its threads."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        ticks = stat.rpartition(") ")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def send_line(self, line: str) -> None:
        """Write one line to its standard input."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def wait_for(self, word: str) -> None:
        """Wait until it prints a line with `word`. Raises EngineError if it ends first, or is too slow."""
        tail: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise EngineError(f"a child process did not print {word!r} within {PATIENCE_S} s") from None
            tail = [*tail[-5:], line.strip()]
            if word in line:
                return
            if not line:
                raise EngineError(
                    f"a child process ended before it printed {word!r}; its last output: {' '.join(tail)}"
                )

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")


@contextlib.contextmanager
def isolated_config(config: Config) -> Iterator[Config]:
    """The same settings with a temporary state directory, an endpoint in it, and no score cache."""
    with tempfile.TemporaryDirectory(prefix="tp-bench-") as folder:
        yield replace(config, state_dir=Path(folder), endpoint=f"ipc://{folder}/policy.sock", cache_size=0)


_SERVE = """
import sys
from pathlib import Path
from thor_policy import config
from thor_policy.daemon import service
loaded = config.load(Path(sys.argv[1]), environ={})
options = {}
if sys.argv[2] == "stub":
    from thor_policy.testing import load_stub_engine
    options["load_engine"] = load_stub_engine
with service.open_service(loaded, **options) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""
#: Settings that a measured daemon takes from the benchmark's own.
_SETTINGS = (
    "state_dir", "endpoint", "model", "models_dir", "adapter", "adapter_scale", "pack", "threads",
    "gpu_layers", "context_tokens", "resident_packs", "parallel_explanations", "max_question_tokens",
    "synchronous", "cache_size",
)  # fmt: skip


@contextlib.contextmanager
def daemon(config: Config, *, stub: bool = False) -> Iterator[Child]:
    """A thor-policy daemon with these settings; with `stub`, the stub engine replaces the model."""
    engine = "stub" if stub else "model"
    with Child([sys.executable, "-c", _SERVE, str(_settings_file(config)), engine]) as child:
        child.wait_for("ready")
        yield child


@contextlib.contextmanager
def serve(config: Config) -> Iterator[Child]:
    """The command `thorpolicy serve` with these settings, ready to decide."""
    program = "from thor_policy.cli.main import main; main()"
    arguments = ["serve", "--config", str(_settings_file(config))]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("THOR_POLICY_")}
    with Child([sys.executable, "-c", program, *arguments], environ) as child:
        child.wait_for("ready at")
        yield child


def _settings_file(config: Config) -> Path:
    path = config.state_dir / "bench.toml"
    values = {name: getattr(config, name) for name in _SETTINGS}
    lines = [f"{name} = {json.dumps(value, default=str)}\n" for name, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


_BARE = """
import sys
from llama_cpp import llama_cpp as lib
lib.llama_backend_init()
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_seq_max, params.n_ctx, params.n_batch, params.n_threads, count = map(int, sys.argv[2:])
params.n_ubatch, params.n_threads_batch, params.kv_unified = params.n_batch, params.n_threads, False
context = lib.llama_init_from_model(model, params)
tokens = (lib.llama_token * count)(*range(count))
assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)) == 0
lib.llama_synchronize(context)
print("bare ready", flush=True)
sys.stdin.readline()
"""
#: Tokens that the bare process decodes: as many as a question of the pack team-governance has.
_BARE_TOKENS = 76


@contextlib.contextmanager
def bare_model(config: Config, model: Path, *, streams: int) -> Iterator[Child]:
    """A process that has loaded the same model and `streams` streams, decoded once, and did nothing else."""
    batch = max(config.max_question_tokens, config.parallel_explanations * STEP_TOKENS)
    threads = config.threads or len(os.sched_getaffinity(0))
    numbers = (streams, streams * config.context_tokens, batch, threads, _BARE_TOKENS)
    with Child([sys.executable, "-c", _BARE, str(model), *map(str, numbers)]) as child:
        child.wait_for("bare ready")
        yield child


@contextlib.contextmanager
def llama_server(
    program: Path, model: Path, threads: int, *, slots: int, context: int
) -> Iterator[httpx.Client]:
    """llama-server on a free loopback port, with `slots` slots of `context` tokens each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--threads", str(threads), "--parallel", str(slots), "--ctx-size", str(context * slots)]
    with Child(command), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
        deadline = time.monotonic() + PATIENCE_S
        while not _healthy(http):
            if time.monotonic() > deadline:
                raise EngineError(f"llama-server was not ready after {PATIENCE_S} s")
            time.sleep(0.05)
        yield http


def _healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


_CHAT = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=int(sys.argv[3]), n_threads=int(sys.argv[2]),
              n_threads_batch=int(sys.argv[2]), verbose=False)
print("ready", flush=True)
for line in sys.stdin:
    messages, schema = json.loads(line)
    model.create_chat_completion(
        messages, response_format={"type": "json_object", "schema": schema}, temperature=0.0, max_tokens=48
    )
    print("answered", flush=True)
"""


@contextlib.contextmanager
def chat_completion(model: Path, threads: int, *, context: int) -> Iterator[Callable[[Json, Json], None]]:
    """llama-cpp-python's chat completion, as its users call it: a function of messages and a JSON schema."""
    with Child([sys.executable, "-c", _CHAT, str(model), str(threads), str(context)]) as child:
        child.wait_for("ready")

        def ask(messages: Json, schema: Json) -> None:
            child.send_line(json.dumps([messages, schema]))
            child.wait_for("answered")

        yield ask
