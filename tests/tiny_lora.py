"""LoRA adapters with random weights, as converters write them: they judge nothing, but move every logit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

RANK = 4


def write(
    path: Path,
    *,
    base: Path,
    base_sha256: str | None = None,
    base_name: str | None = None,
    architecture: str | None = None,
    seed: int = 0,
    blocks: int = 2,
    narrower: int = 0,
    rendering: str | None = None,
) -> Path:
    """Write an adapter of the first `blocks` blocks of the model `base`; the same seed gives the same bytes.

    It says that it was trained on the file with `base_sha256`, or on the model `base_name`, or nothing.
    `narrower` makes its tensors too small for the model.
    """
    model = gguf.GGUFReader(base)
    told = str(model.fields["general.architecture"].contents())
    out = gguf.GGUFWriter(path, architecture or told)
    out.add_type(gguf.GGUFType.ADAPTER)
    out.add_string(gguf.Keys.Adapter.TYPE, "lora")
    out.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(2 * RANK))
    if base_sha256 is not None:
        out.add_string("thor_policy.base_sha256", base_sha256)
    if rendering is not None:
        out.add_string("thor_policy.rendering", rendering)
    if base_name is not None:
        out.add_string("general.base_model.0.name", base_name)
    wanted = tuple(f"blk.{block}.ffn_{part}.weight" for block in range(blocks) for part in ("up", "down"))
    for tensor in model.tensors:
        if tensor.name in wanted:
            width, height = (int(size) - narrower for size in tensor.shape)
            random = np.random.default_rng([seed, *tensor.name.encode()])
            out.add_tensor(f"{tensor.name}.lora_a", random.normal(0, 0.3, (RANK, width)).astype(np.float32))
            out.add_tensor(f"{tensor.name}.lora_b", random.normal(0, 0.3, (height, RANK)).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def write_header(path: Path, **told: str | float | bool) -> Path:
    """Write an adapter without tensors that says what `told` says, `__` for `.`; enough to be read, not used.

    The four things that each must say are said where `told` does not say otherwise.
    """
    out = gguf.GGUFWriter(path, "llama")
    kinds = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    for name, value in (kinds | {key.replace("__", "."): value for key, value in told.items()}).items():
        if isinstance(value, bool):
            out.add_bool(name, value)
        elif isinstance(value, float):
            out.add_float32(name, value)
        else:
            out.add_string(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
