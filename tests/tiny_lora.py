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
