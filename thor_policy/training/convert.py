"""What was trained as a GGUF file that llama.cpp loads beside the base model.

Owns the names and the order of numbers in that file. Invariant: the file says which model it belongs to (by
sha256), how questions are put, and at what strength, so nobody has to be told. Pure but for the file written.

llama.cpp keeps the rows of query and key projections of the architecture `llama` in another order (halves of
a rotary pair beside each other), so the output side of their adapters is put into that order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from thor_policy.core import Rendering

#: Names of the projections in a GGUF file.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_KEY = re.compile(r"layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight\Z")


def write(
    path: Path,
    weights: Mapping[str, np.ndarray],
    *,
    name: str,
    architecture: str,
    heads: int,
    kv_heads: int,
    alpha: int,
    base_name: str,
    base_sha256: str,
    rendering: Rendering,
    licence: str,
    training_sha256: str,
) -> None:
    """Write an adapter's tensors (by peft's names) at half precision. Raises ValueError for a strange one."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_string("general.base_model.0.name", base_name)
    writer.add_string("thor_policy.base_sha256", base_sha256)
    writer.add_string("thor_policy.rendering", rendering)
    writer.add_string("thor_policy.training_sha256", training_sha256)
    for key in sorted(weights):
        found = _KEY.search(key)
        if found is None or found[2] not in NAMES:
            raise ValueError(f"{key} is no projection that an adapter file has a name for")
        block, projection, side = found.groups()
        tensor = np.asarray(weights[key])
        if side == "B" and architecture == "llama" and projection[-6:] in ("q_proj", "k_proj"):
            tensor = _paired(tensor, heads if projection.endswith("q_proj") else kv_heads)
        told = f"blk.{block}.{NAMES[projection]}.weight.lora_{side.lower()}"
        writer.add_tensor(told, np.ascontiguousarray(tensor, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(tensor: Any, heads: int) -> Any:
    """Rows of a head, first half and second half, as pairs of one of each."""
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
