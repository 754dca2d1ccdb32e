"""The metadata of a LoRA adapter's file, checked before llama.cpp opens it.

Owns the keys of such a file. Invariant: each value has the type that llama.cpp expects, because llama.cpp
ends the process at a value of another type; and a damaged file takes no more memory than a sound one. Main
thread and the thread of the pack manager; keeps no state.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy

from thor_policy.core.decisions import Rendering
from thor_policy.core.errors import CatalogError

#: Key of the prompt rendering used in training; absent: `full`, as for a model without an adapter.
RENDERING = "thor_policy.rendering"
#: Keys of an adapter's file, with the type of each value.
_TYPES = {
    gguf.Keys.General.TYPE: gguf.GGUFValueType.STRING,
    gguf.Keys.General.ARCHITECTURE: gguf.GGUFValueType.STRING,
    gguf.Keys.Adapter.TYPE: gguf.GGUFValueType.STRING,
    gguf.Keys.Adapter.LORA_ALPHA: gguf.GGUFValueType.FLOAT32,
    "general.base_model.0.name": gguf.GGUFValueType.STRING,
    "thor_policy.base_sha256": gguf.GGUFValueType.STRING,
    RENDERING: gguf.GGUFValueType.STRING,
}
_REQUIRED = tuple(_TYPES)[:4]
#: Most values of metadata and of descriptions of tensors that are read. An adapter of 100 layers has
#: 30,000.
MOST_VALUES = 50_000


class _Reader(gguf.GGUFReader):  # type: ignore[misc]
    """A reader that stops at the end of the file, and at `MOST_VALUES`.

    gguf's own reads an array of 2^63 nothings behind the end. It makes an object of 400 bytes for each byte
    of an array, so that a file of 1 MB takes 400 MB.
    """

    _values = 0

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        self._values += 1
        if self._values > MOST_VALUES:
            raise ValueError(f"has more than {MOST_VALUES} values")
        if offset + numpy.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("a value reaches beyond the end of the file")
        return super()._get(offset, dtype, count, override_order)


def rendering_of(path: Path) -> Rendering:
    """The prompt rendering that the adapter at `path` was trained on.

    Raises CatalogError if the file cannot be used as an adapter.
    """
    try:
        fields = _Reader(path).fields
        metadata = {name: _value(fields[name], name) for name in _TYPES if name in fields}
    except CatalogError as error:
        raise CatalogError(f"{path} cannot be used as an adapter: {error}") from None
    except Exception as error:  # the reader raises anything on malformed bytes
        raise CatalogError(f"{path} cannot be read as an adapter: {error}") from error
    if metadata.get(gguf.Keys.General.TYPE) != gguf.GGUFType.ADAPTER:
        raise CatalogError(
            f"{path} is not an adapter: its general.type must be 'adapter'; see: thorpolicy adapters list"
        )
    if missing := [name for name in _REQUIRED if name not in metadata]:
        raise CatalogError(f"{path} cannot be used as an adapter: it lacks {', '.join(missing)}")
    if not math.isfinite(metadata[gguf.Keys.Adapter.LORA_ALPHA]):
        raise CatalogError(
            f"{path} cannot be used as an adapter: {gguf.Keys.Adapter.LORA_ALPHA} is no number"
        )
    rendering = metadata.get(RENDERING, "full")
    if rendering not in get_args(Rendering):
        raise CatalogError(
            f"{path}: {RENDERING} is {rendering[:64]!r}; it must be one of {', '.join(get_args(Rendering))}"
        )
    return rendering  # type: ignore[no-any-return]


def _value(field: Any, name: str) -> Any:
    if field.types != [_TYPES[name]]:
        raise CatalogError(f"{name} must be a single {_TYPES[name].name.lower()} value")
    return field.contents()
