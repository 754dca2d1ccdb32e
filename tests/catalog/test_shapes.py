"""The shape of a model, from the metadata of its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MODEL
from thor_policy import catalog
from thor_policy.catalog.shapes import Shape, shape_of
from thor_policy.config import Config


@pytest.mark.model
def test_the_shape_of_the_embedded_model_is_that_of_its_file() -> None:
    shape = shape_of(catalog.resolve(MODEL, Config().models_dir).path)
    assert shape == Shape(layers=30, kv_heads=3, key_length=64, value_length=64)


def test_the_cache_of_phi_4_mini_takes_131_kb_a_token() -> None:
    shape = Shape(layers=32, kv_heads=8, key_length=128, value_length=128)
    assert shape.cache_bytes("f16", 1) == 131_072
    assert shape.cache_bytes("q8_0", 1) == 69_632
    assert shape.cache_bytes("f32", 2048) == 2 * 2048 * 131_072


@given(content=st.binary(max_size=200))
def test_a_damaged_file_has_no_shape(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + content)
    assert shape_of(path) is None
    assert shape_of(Path("/nonexistent")) is None
