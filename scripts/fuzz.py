"""Give a part of the daemon hostile inputs, guided by coverage, and keep those that it does not survive.

Owns the command of scripts/fuzz, the process that runs the inputs, and its watchdog. The inputs come from
atheris (libFuzzer), which keeps each input that reaches new code of thor_policy and changes it further; half
of the changes are those of the target (`fuzz_targets`). Where atheris is not installed (it has wheels for
x86_64 only), inputs are changed without knowledge of coverage. Invariant: an input that crashes or hangs the
process, or breaks what is documented, is a file in `--save` afterwards, and the run goes on without it.

The process writes each input to shared memory before it runs it; so the watchdog knows the input that killed
the process, or that runs for too long.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import mmap
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from fuzz_targets import Target

TARGETS = ("wire", "rules", "packs", "suites", "settings", "transport")
#: Largest input, in bytes: more than the largest request, less than what closes a connection unanswered. And
#: the size of the shared memory.
MAX_BYTES, SHARED_BYTES = 120_000, 2**20
#: A file system in memory, for the files of the daemon.
MEMORY_DIR = Path("/dev/shm")  # noqa: S108
#: A run that takes longer, in seconds, is a hang.
HANG_S = 90
#: How long the process may take to load the target, in seconds.
START_S = 180
#: So many processes may crash or hang before the run ends.
MOST_ENDS = 20
#: Memory may grow by this share, and by these MiB, after the first tenth of the run.
GROWTH, GROWTH_MIB = 0.20, 32
#: The packages whose code gives coverage.
PACKAGES = ["thor_policy.core", "thor_policy.policy", "thor_policy.protocol", "thor_policy.suites"]
PACKAGES += ["thor_policy.config", "thor_policy.security", "thor_policy.daemon"]

_HEAD = struct.Struct("<QQdQ")  # runs, start in monotonic ns (0: none), longest run in s, length of the input
_COVERAGE = re.compile(rb"cov: (\d+) ft: (\d+)")


class Shared:
    """What the process reports to its watchdog: number of runs, and the input that it runs now."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SHARED_BYTES)
        self.runs, _, self.longest_s, _ = _HEAD.unpack_from(self._map)

    def begin(self, data: bytes) -> None:
        self._map[_HEAD.size : _HEAD.size + len(data)] = data
        self._write(time.monotonic_ns(), len(data))

    def end(self, started_s: float) -> None:
        self.runs += 1
        self.longest_s = max(self.longest_s, time.monotonic() - started_s)
        self._write(0, 0)

    def _write(self, start_ns: int, length: int) -> None:
        # not `pack_into`, which fills with zeros first: the watchdog reads at any moment
        self._map[: _HEAD.size] = _HEAD.pack(self.runs, start_ns, self.longest_s, length)

    def skip(self) -> None:
        """Count the input that ended the process, so that the next process goes on after it."""
        self.runs, _, self.longest_s, _ = _HEAD.unpack_from(self._map)
        self.end(time.monotonic())

    def read(self) -> tuple[int, float, float, bytes]:
        """Number of runs, seconds of the present run (0: none), seconds of the longest, the present input."""
        runs, start_ns, longest_s, length = _HEAD.unpack_from(self._map)
        now_s = (time.monotonic_ns() - start_ns) / 1e9 if start_ns else 0.0
        return runs, now_s, longest_s, bytes(self._map[_HEAD.size : _HEAD.size + length])


def save(folder: Path, target: str, kind: str, data: bytes, why: str) -> Path:
    """Keep an input, and beside it why."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(why + "\n", encoding="utf-8", errors="replace")
    return path


# ---------------------------------------------------------------- the process that runs the inputs


def _key_of(error: BaseException) -> str:
    """What two violations of the same kind share: type, and the place in our code."""
    key = getattr(error, "key", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "thor_policy" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "outside"
    return str(key) if key is not None else f"{type(error).__name__} at {place}"


class Runner:
    """Runs inputs of one target, and saves the first of each kind that it does not survive."""

    def __init__(self, name: str, target: Target, shared: Shared, folder: Path) -> None:
        self._name, self._target, self._shared, self._folder = name, target, shared, folder
        self.runs = 0
        self._keys = {path.read_text().splitlines()[0] for path in folder.glob(f"{name}-*.txt")}

    def run(self, data: bytes) -> None:
        data = bytes(data[:MAX_BYTES])
        self._shared.begin(data)
        started_s = time.monotonic()
        try:
            self._target.run(data)
        except Exception as error:
            if (key := _key_of(error)) not in self._keys:
                self._keys.add(key)
                failing = getattr(self._target, "failing_input", lambda: data)()
                why = "".join(traceback.format_exception(error))
                save(self._folder, self._name, "violation", failing, f"{key}\n{why}")
        self._shared.end(started_s)


def run_inputs(options: argparse.Namespace) -> None:
    """Run inputs until `runs` or `seconds` are over. With libFuzzer it does not return."""
    seed = int(options.seed)
    with ExitStack() as stack:
        memory = MEMORY_DIR if MEMORY_DIR.is_dir() else None  # a sync of a disk would take most of the time
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp-fuzz-", dir=memory)))
        if options.blind:
            import fuzz_targets
        else:
            import atheris

            with atheris.instrument_imports(include=PACKAGES):
                import fuzz_targets
        target = fuzz_targets.TARGETS[options.target](folder)
        runner = Runner(options.target, target, Shared(Path(options.shared)), Path(options.save))
        seeds, until = target.seeds(), time.monotonic() + options.seconds
        if options.blind:
            stack.callback(target.close)
            _run_blindly(options, target, runner, seeds, random.Random(seed))
            return
        corpus = Path(options.corpus)
        for number, data in enumerate(seeds):
            (corpus / f"seed-{number}").write_bytes(data)

        def mutate(data: bytes, max_size: int, mutation: int) -> bytes:
            chance = random.Random(mutation)
            if chance.random() < 0.5:
                changed: bytes = atheris.Mutate(data, max_size)
                return changed
            return target.change(bytes(data), chance)[:max_size]

        def run(data: bytes) -> None:
            if runner.runs >= options.runs or time.monotonic() >= until:
                target.close()
                stack.close()
                os._exit(0)  # at a usual exit libFuzzer would end the threads of a daemon half-way
            runner.run(data)

        fixed = [f"-seed={seed + 1}", f"-max_len={MAX_BYTES}", "-rss_limit_mb=0", "-timeout=3600"]
        arguments = ["fuzz", *fixed, f"-artifact_prefix={options.save}/", str(corpus)]
        atheris.Setup(arguments, run, custom_mutator=mutate)
        atheris.Fuzz()


def _run_blindly(
    options: argparse.Namespace, target: Target, runner: Runner, seeds: list[bytes], chance: random.Random
) -> None:
    """Each input is one of the first ones, changed one to four times."""
    until = time.monotonic() + options.seconds
    for number in range(options.runs):
        if time.monotonic() >= until:
            return
        data = seeds[number % len(seeds)]
        for _ in range(chance.randint(0 if number < len(seeds) else 1, 4)):
            data = target.change(data, chance) if chance.random() < 0.8 else _change_bytes(data, chance)
        runner.run(data)


def _change_bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randint(0, len(data))
    rest = data[at + chance.choice((0, 0, 1, 4)) :]
    return data[:at] + chance.randbytes(chance.choice((0, 1, 1, 4))) + rest


# ---------------------------------------------------------------- the watchdog


class Watch:
    """Starts processes that run inputs, one after another, and watches them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._shared_path = folder / "shared"
        self._shared_path.write_bytes(bytes(SHARED_BYTES))
        (folder / "corpus").mkdir()
        self._shared = Shared(self._shared_path)
        self._log = b""
        self.ends: list[str] = []
        self.coverage: list[tuple[int, int]] = []
        self.memory_mib: list[float] = []

    def run(self, progress: Progress) -> None:
        """Run all inputs. Raises RuntimeError where the target does not start."""
        options, start_s = self._options, time.monotonic()
        task = progress.add_task(f"{options.target}, seed {options.seed}", total=1.0)
        while len(self.ends) < MOST_ENDS:
            runs, passed_s = self._shared.read()[0], time.monotonic() - start_s
            if runs >= options.runs or passed_s >= options.seconds:
                return
            number = len(self.ends)
            arguments = ["--runs", str(options.runs - runs), "--seconds", str(options.seconds - passed_s)]
            with (
                self._started(*arguments, "--seed", str(options.seed + number)) as process,
                ExitStack() as stack,
            ):
                stack.callback(process.kill)
                readers = [threading.Thread(target=self._read, args=(process,), daemon=True)]
                readers[0].start()
                while process.poll() is None:
                    time.sleep(0.05)
                    runs, now_s, _, data = self._shared.read()
                    self._sample(process.pid)
                    share = (time.monotonic() - start_s) / options.seconds
                    progress.update(task, completed=min(1.0, max(runs / options.runs, share)))
                    if now_s > HANG_S:
                        process.kill()
                        process.wait()
                        self._end("hang", data, f"a run took longer than {HANG_S} s")
                        break
                    loading_s = time.monotonic() - start_s - passed_s
                    if runs == 0 and now_s == 0 and loading_s > START_S and not self.ends:
                        process.kill()
                        raise RuntimeError(f"the target did not load within {START_S} s")
                else:
                    readers[0].join()
                    _, _, _, data = self._shared.read()
                    if process.returncode != 0:
                        if self._shared.read()[0] == 0 and not data:
                            raise RuntimeError(f"the target did not load: {self._log[-2_000:].decode()}")
                        self._end("crash", data, f"the process ended with status {process.returncode}")

    def _started(self, *arguments: str) -> subprocess.Popen[bytes]:
        options = self._options
        command = [
            sys.executable,
            __file__,
            options.target,
            *arguments,
            "--inputs",
            "--save",
            str(options.save),
        ]
        command += ["--shared", str(self._shared_path), "--corpus", str(self._folder / "corpus")]
        command += ["--blind"] * options.blind
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Take the coverage from the lines of libFuzzer, and keep the end of the log."""
        assert process.stderr is not None
        for line in process.stderr:
            if match := _COVERAGE.search(line):
                self.coverage.append((int(match[1]), int(match[2])))
            else:
                self._log = (self._log + line)[-20_000:]

    def _sample(self, pid: int) -> None:
        if self._shared.read()[0] > 0:
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError):
                return
            if pages:  # none once it has ended
                self.memory_mib.append(pages * os.sysconf("SC_PAGESIZE") / 2**20)

    def _end(self, kind: str, data: bytes, why: str) -> None:
        path = save(
            self._options.save, self._options.target, kind, data, f"{why}\n{self._log[-20_000:].decode()}"
        )
        self.ends.append(f"{kind}: {why}; {path}")
        self._shared.skip()

    def figures(self, took_s: float) -> dict[str, Any]:
        """The figures of the run, with everything that is not as documented."""
        runs, _, longest_s, _ = self._shared.read()
        options = self._options
        violations = sorted(options.save.glob(f"{options.target}-violation-*.txt"))
        problems = [*self.ends]
        for path in violations:
            problems.append(f"violation: {path.read_text().splitlines()[0]}; {path.with_suffix('')}")
        settled = self.memory_mib[len(self.memory_mib) // 10 :]
        start_mib, end_mib = (settled[0], settled[-1]) if settled else (0.0, 0.0)
        if end_mib > start_mib * (1 + GROWTH) + GROWTH_MIB and not self.ends:
            problems.append(
                f"memory: {start_mib:.0f} MiB after a tenth of the run, {end_mib:.0f} MiB at the end"
            )
        return {
            "target": options.target,
            "seed": options.seed,
            "runs": runs,
            "took_s": round(took_s, 1),
            "guided": not options.blind,
            "coverage": {"first": self.coverage[0], "last": self.coverage[-1]} if self.coverage else None,
            "crashes": sum(end.startswith("crash") for end in self.ends),
            "hangs": sum(end.startswith("hang") for end in self.ends),
            "violations": len(violations),
            "longest_ms": round(longest_s * 1e3, 1),
            "memory_mib": {"start": round(start_mib, 1), "end": round(end_mib, 1)},
            "problems": problems,
        }


def show(figures: dict[str, Any]) -> None:
    """Print the figures."""
    guide = "guided by coverage" if figures["guided"] else "without coverage: atheris is not installed"
    print(f"runs         {figures['runs']:,} of {figures['target']}, seed {figures['seed']}, {guide}")
    print(f"took         {figures['took_s']} s; the longest run {figures['longest_ms']} ms")
    if coverage := figures["coverage"]:
        (first, features), (last, more) = coverage["first"], coverage["last"]
        print(f"coverage     {first} -> {last} places, {features} -> {more} features")
    print(f"crashes      {figures['crashes']}")
    print(f"hangs        {figures['hangs']}")
    print(f"violations   {figures['violations']}")
    print(f"memory       {figures['memory_mib']['start']} -> {figures['memory_mib']['end']} MiB")
    for problem in figures["problems"]:
        print(problem)


def replay(target: str, paths: list[Path]) -> int:
    """Run saved inputs once, with a traceback for each that fails."""
    import fuzz_targets

    failed = 0
    with tempfile.TemporaryDirectory(prefix="tp-fuzz-") as folder:
        attacked = fuzz_targets.TARGETS[target](Path(folder))
        for path in paths:
            try:
                attacked.run(path.read_bytes())
            except Exception:
                failed += 1
                print(f"{path}:\n{traceback.format_exc()}")
        attacked.close()
    print(f"{len(paths)} inputs, {failed} failed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="fuzz",
        description="Give a part of the daemon hostile inputs. Status 0: no crash, no hang, no undocumented "
        "error code, and memory stays flat; 1: there are violations, whose inputs are saved; 2: it failed.",
    )
    parser.add_argument("target", choices=TARGETS, help="what gets the inputs")
    parser.add_argument(
        "--minutes", type=float, help="length of the run; default: 1, or unlimited with --runs"
    )
    parser.add_argument("--runs", type=int, help="number of inputs; default: as many as fit")
    parser.add_argument("--seed", type=int, default=1, help="random seed of the inputs; default: %(default)s")
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("build/fuzz"),
        help="directory of failing inputs; default: %(default)s",
    )
    parser.add_argument("--blind", action="store_true", help="do without atheris, as where it has no wheel")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run saved inputs once")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, without progress")
    parser.add_argument("--inputs", action="store_true", help=argparse.SUPPRESS)  # the process that runs them
    for hidden in ("--shared", "--corpus", "--seconds"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inputs:
        options.seconds = float(options.seconds)
        run_inputs(options)
        return 0
    if options.replay:
        return replay(options.target, options.replay)
    options.seconds = 60 * (options.minutes or (1e6 if options.runs else 1))
    options.runs = options.runs or 10**9
    options.blind |= importlib.util.find_spec("atheris") is None
    options.save.mkdir(parents=True, exist_ok=True)
    for path in options.save.glob(f"{options.target}-*"):  # of an earlier run
        path.unlink()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tp-fuzz-") as folder,
        Progress(console=Console(stderr=True), transient=True, disable=options.json) as progress,
    ):
        watch = Watch(options, Path(folder))
        try:
            watch.run(progress)
        except RuntimeError as error:
            print(f"fuzz: {error}", file=sys.stderr)
            return 2
        figures = watch.figures(time.monotonic() - start_s)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
