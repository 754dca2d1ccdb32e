"""A made board: the files of tests/data/jetson below a folder, and a library with code for chosen GPUs."""

from __future__ import annotations

import os
import struct
import tomllib
from collections.abc import Iterable
from pathlib import Path

DATA = Path(__file__).parent / "data" / "jetson"
LIBRARY = "opt/thor-policy/lib/python3.12/site-packages/llama_cpp/lib/libggml-cuda.so"


def cuda_library(cubins: Iterable[int], ptx: Iterable[int] = ()) -> bytes:
    """A shared library with one container of empty code for each architecture; `sm_110` is 110."""
    code = b""
    for kind, numbers in ((2, cubins), (1, ptx)):
        for number in numbers:
            entry = struct.pack("<HHIQIIHHI", kind, 0x101, 64, 16, 0, 0, 0, 0, number)
            body = entry.ljust(64, b"\0") + bytes(16)
            code += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body + bytes(8)
    names = b"\0.shstrtab\0.nv_fatbin\0"
    sections = [(0, 0, 0), (1, 64, len(names)), (names.index(b".nv"), 64 + len(names), len(code))]
    table = b"".join(struct.pack("<IIQQQQ24x", name, 1, 0, 0, at, size) for name, at, size in sections)
    table_at = 64 + len(names) + len(code)
    header = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack("<Q10xHHH", table_at, 64, len(sections), 1)
    return header.ljust(64, b"\0") + names + code + table


def write_board(root: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Write the files of a ready Thor below `root`, with changes by path; None: without that file."""
    texts = {
        name: entry["text"] for name, entry in tomllib.loads((DATA / "thor.toml").read_text("utf-8")).items()
    }
    group = f"root:x:0:\nvideo:x:{os.getgid()}:thor-policy\nthor-policy-clients:x:989:\n"
    texts |= {"etc/group": group, "dev/nvmap": "", "dev/nvhost-ctrl-gpu": "", "dev/nvidia0": ""}
    for name, text in (texts | (changes or {})).items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name.startswith("dev/"):
                path.chmod(0o660)
    library = root / LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(cuda_library([110]))
    return root
