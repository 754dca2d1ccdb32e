"""The second half of scripts/bench-gpu: our measurements on a CUDA device, with two models.

Owns the folder of reports and the random-weight model. Invariant: each figure is of `thorpolicy bench`,
run as its users run it; nothing is measured here. What a device does not have is said, and nothing is
made up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import random_phi

from thor_policy.cli import render
from thor_policy.config import Config, data_path
from thor_policy.engine.native import device_memory, gpu_offload
from thor_policy.suites import suite_files

#: Words that the made-up vocabulary knows, of the packs and the scenarios.
WORDS = 4_000
#: Length of a stream for that model: texts are longer in a vocabulary that knows few words.
CONTEXT_TOKENS = 4_096


def made(folder: Path, layers: int) -> Path:
    """The random-weight model of Phi-4-mini's shape, with so many of its blocks; kept from run to run."""
    shape = replace(random_phi.MINI, layers=layers, name=f"phi-4-mini-shape-{layers}")
    path = folder / f"{shape.name}.gguf"
    if not path.is_file():
        files = (*data_path("prompts").rglob("*.*"), *suite_files.available(data_path("scenarios")))
        words = random_phi.words_of((one.read_text(encoding="utf-8") for one in sorted(files)), WORDS)
        folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        random_phi.write(beside, shape, words=(*random_phi.WORDS, *words))
        beside.replace(path)
    return path


def measure(what: list[str], model: str, out: Path) -> int:
    """One `thorpolicy bench`; its report goes to `out`. The exit status."""
    program = str(Path(sys.executable).with_name("thorpolicy"))
    settings = {} if model == Config().model else {"THOR_POLICY_CONTEXT_TOKENS": str(CONTEXT_TOKENS)}
    with tempfile.TemporaryDirectory(prefix="tp-gpu-") as state:
        command = ["bench", *what, "--model", model, "--report-dir", str(out)]
        render.line(" ".join(["==", "thorpolicy", *command]))
        done = subprocess.run(
            [program, *command, "--state-dir", state], env=os.environ | settings, check=False
        )
        return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/reports/gpu"), help="folder of the reports")
    parser.add_argument("--requests", type=int, default=2_000, help="questions asked again for determinism")
    parser.add_argument("--rounds", type=int, default=3, help="how often each question is scored")
    parser.add_argument("--only", choices=("embedded", "phi-4-mini-shape"), help="one of the two models")
    parser.add_argument("--llama-server", type=Path, help="its program, built for the device: the peers too")
    parser.add_argument("--layers", type=int, default=random_phi.MINI.layers, help="fewer: not its shape")
    parser.add_argument("--anyway", action="store_true", help="without a device: to try this script")
    told = parser.parse_args()
    if not gpu_offload() and not told.anyway:
        print(
            "bench-gpu: llama.cpp here was not built for a GPU, or sees none; ./scripts/setup builds it for"
            " CUDA where it finds nvcc and a device, and `thorpolicy doctor` says what is missing",
            file=sys.stderr,
        )
        return 2
    render.line("devices: " + (", ".join(one.device for one in device_memory()) or "none but the CPU"))
    models = {"embedded": Config().model, "phi-4-mini-shape": str(made(Path("build/models"), told.layers))}
    statuses = {}
    for name, model in models.items():
        if told.only not in (None, name):
            continue
        runs = [
            ["engine", "--rounds", str(told.rounds)],
            ["daemon"],
            ["determinism", "--requests", str(told.requests)],
        ]
        if told.llama_server:
            runs.append(["peers", "--llama-server", str(told.llama_server)])
        for what in runs:
            statuses[f"{name} {what[0]}"] = measure(what, model, told.out / name)
    render.line(json.dumps(statuses))
    return max(statuses.values())


if __name__ == "__main__":
    sys.exit(main())
