"""Run `thorpolicy bench` on a CUDA device, with the embedded model and with random weights.

Owns the command of scripts/bench-gpu, the folder of reports, and the model of Phi-4-mini's shape with random
weights. Invariant: every figure comes from `thorpolicy bench`; nothing is measured here. Without a device it
refuses with status 2.
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

#: Words of packs and scenarios that get a token each in the vocabulary of the random-weight model.
WORDS = 4_000
#: Context of that model, in tokens: its small vocabulary needs more tokens for a text.
CONTEXT_TOKENS = 4_096


def random_model(folder: Path, layers: int) -> Path:
    """The random-weight model of Phi-4-mini's shape, with `layers` blocks; written only if it is missing."""
    shape = replace(random_phi.MINI, layers=layers, name=f"phi-4-mini-shape-{layers}")
    path = folder / f"{shape.name}.gguf"
    if not path.is_file():
        files = (*data_path("prompts").rglob("*.*"), *suite_files.available(data_path("scenarios")))
        words = random_phi.words_of((file.read_text(encoding="utf-8") for file in sorted(files)), WORDS)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        random_phi.write(partial, shape, words=(*random_phi.WORDS, *words))
        partial.replace(path)
    return path


def bench(arguments: list[str], model: str, out: Path) -> int:
    """Run `thorpolicy bench` with its report in `out`; returns its exit status."""
    program = str(Path(sys.executable).with_name("thorpolicy"))
    settings = {} if model == Config().model else {"THOR_POLICY_CONTEXT_TOKENS": str(CONTEXT_TOKENS)}
    with tempfile.TemporaryDirectory(prefix="tp-gpu-") as state:
        command = ["bench", *arguments, "--model", model, "--report-dir", str(out)]
        render.line(" ".join(["==", "thorpolicy", *command]))
        done = subprocess.run(
            [program, *command, "--state-dir", state], env=os.environ | settings, check=False
        )
        return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench-gpu",
        description="Run the benches on a CUDA device, with the embedded model and with random weights of "
        "Phi-4-mini's shape. Status 0: all ran and no label differed; 1: a label differed; 2: no device.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("results/reports/gpu"), help="folder of the reports")
    add("--requests", type=int, default=2_000, help="questions for `determinism`; default: %(default)s")
    add("--rounds", type=int, default=3, help="rounds over the questions for `engine`; default: %(default)s")
    add("--only", choices=("embedded", "phi-4-mini-shape"), help="use this model alone")
    add("--llama-server", type=Path, metavar="PROGRAM", help="run `peers` too, with this llama-server")
    add("--layers", type=int, default=random_phi.MINI.layers, help="blocks of the random-weight model")
    add("--anyway", action="store_true", help="run without a device, to try this script")
    options = parser.parse_args()
    if not gpu_offload() and not options.anyway:
        print(
            "bench-gpu: llama.cpp has no GPU here. `thorpolicy doctor` says what is missing; ./scripts/setup "
            "builds llama.cpp for CUDA where it finds nvcc and a device",
            file=sys.stderr,
        )
        return 2
    render.line("devices: " + (", ".join(memory.device for memory in device_memory()) or "none but the CPU"))
    shaped = random_model(Path("build/models"), options.layers)
    models = {"embedded": Config().model, "phi-4-mini-shape": str(shaped)}
    statuses = {}
    for name, model in models.items():
        if options.only not in (None, name):
            continue
        runs = [
            ["engine", "--rounds", str(options.rounds)],
            ["daemon"],
            ["determinism", "--requests", str(options.requests)],
        ]
        if options.llama_server:
            runs.append(["peers", "--llama-server", str(options.llama_server)])
        for arguments in runs:
            statuses[f"{name} {arguments[0]}"] = bench(arguments, model, options.out / name)
    render.line(json.dumps(statuses))
    return max(statuses.values())


if __name__ == "__main__":
    sys.exit(main())
