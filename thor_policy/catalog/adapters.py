"""What the file of a LoRA adapter says of itself, read before llama.cpp is given it.

Owns the keys of such a file. Invariant: what is read here has the type that llama.cpp expects; it ends the
process where a value has another one. Main thread and steward; reads a file, holds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import gguf

from thor_policy.core.decisions import Rendering
from thor_policy.core.errors import CatalogError

#: How questions were put in training; absent: in full, as to a model without an adapter.
RENDERING = "thor_policy.rendering"
#: Keys of an adapter's file, and what each must be.
_TYPES = {
    gguf.Keys.General.TYPE: gguf.GGUFValueType.STRING,
    gguf.Keys.General.ARCHITECTURE: gguf.GGUFValueType.STRING,
    gguf.Keys.Adapter.TYPE: gguf.GGUFValueType.STRING,
    gguf.Keys.Adapter.LORA_ALPHA: gguf.GGUFValueType.FLOAT32,
    "general.base_model.0.name": gguf.GGUFValueType.STRING,
    "thor_policy.base_sha256": gguf.GGUFValueType.STRING,
    RENDERING: gguf.GGUFValueType.STRING,
}
_NEEDED = tuple(_TYPES)[:4]


def rendering_of(path: Path) -> Rendering:
    """How the adapter at `path` wants questions put. Raises CatalogError if it cannot be used."""
    try:
        fields = gguf.GGUFReader(path).fields
        told = {name: _value(fields[name], name) for name in _TYPES if name in fields}
    except CatalogError as error:
        raise CatalogError(f"{path} cannot be used as an adapter: {error}") from None
    except Exception as error:  # whatever a file of strange bytes leads the reader into
        raise CatalogError(f"{path} cannot be read as an adapter: {error}") from error
    if told.get(gguf.Keys.General.TYPE) != gguf.GGUFType.ADAPTER:
        raise CatalogError(f"{path} is a whole model, or none: an adapter's general.type is adapter")
    if missing := [name for name in _NEEDED if name not in told]:
        raise CatalogError(f"{path} cannot be used as an adapter: it does not say {', '.join(missing)}")
    rendering = told.get(RENDERING, "full")
    if rendering not in get_args(Rendering):
        raise CatalogError(
            f"{path}: {RENDERING} is {rendering[:64]!r}; this version knows {', '.join(get_args(Rendering))}"
        )
    return rendering  # type: ignore[no-any-return]


def _value(field: Any, name: str) -> Any:
    if field.types != [_TYPES[name]]:
        raise CatalogError(f"{name} must be one {_TYPES[name].name.lower()} value")
    return field.contents()
