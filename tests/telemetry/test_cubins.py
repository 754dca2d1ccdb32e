"""Which GPUs a library has code for.

The format was compared with libnvjpeg of CUDA 13.3 for aarch64: cubins of sm_75 to sm_121, sm_110 among them,
and PTX of sm_121.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.boards import cuda_library
from thor_policy.telemetry.cubins import Architectures, architectures


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins") / "lib.so"


def test_cubins_and_ptx_are_told_apart(library: Path) -> None:
    library.write_bytes(cuda_library([90, 110], ptx=[75]))
    assert architectures(library) == Architectures(frozenset({90, 110}), frozenset({75}))


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58), b"text" * 100])
def test_a_file_without_cuda_code_has_no_architectures(library: Path, content: bytes) -> None:
    library.write_bytes(content)
    assert architectures(library) is None
    assert architectures(Path("/bin/sh")) is None
    assert architectures(library / "missing") is None


@given(cut=st.integers(0, 700), at=st.integers(0, 699), value=st.binary(min_size=1, max_size=9))
def test_a_damaged_library_neither_hangs_nor_raises(library: Path, cut: int, at: int, value: bytes) -> None:
    data = bytearray(cuda_library([90, 110], ptx=[75]))
    data[at : at + len(value)] = value
    library.write_bytes(bytes(data[: len(data) - cut]))
    architectures(library)
