"""Adapter weights to a GGUF file that llama.cpp loads beside the base model, and back.

Owns the names and the order of numbers in that file. Invariant: the file names the base model (by sha256),
the rendering of questions and the strength (alpha), so an adapter needs no settings beside it. Pure, except
for the files.

For the architecture `llama`, llama.cpp keeps the rows of query and key projections in another order (the two
halves of a rotary pair beside each other), so the output side of their adapters is put into that order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from thor_policy.core.decisions import Rendering
from thor_policy.core.errors import TrainingError

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
    """Write an adapter's tensors (peft's names) in half precision. Raises ValueError for an unknown name."""
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
        tensor = np.asarray(weights[key])
        if reordered := _reordered_heads(key, architecture, heads, kv_heads):
            tensor = _reorder(tensor, reordered, 2)
        writer.add_tensor(_name_in_file(key), np.ascontiguousarray(tensor, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(
    path: Path, keys: Iterable[str], *, architecture: str, heads: int, kv_heads: int
) -> dict[str, np.ndarray]:
    """The tensors of an adapter that `write` wrote, by peft's names `keys`.

    Raises TrainingError if the file holds other tensors.
    """
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = {key: _name_in_file(key) for key in keys}
    if set(names.values()) != tensors.keys():
        raise TrainingError(f"{path} adapts other projections than are trained here: start without it")
    weights = {}
    for key, name in names.items():
        tensor = np.asarray(gguf.dequantize(tensors[name].data, tensors[name].tensor_type), dtype=np.float32)
        if reordered := _reordered_heads(key, architecture, heads, kv_heads):
            tensor = _reorder(tensor, reordered, len(tensor) // reordered // 2)
        weights[key] = tensor
    return weights


def strength_of(path: Path) -> tuple[int, int]:
    """Rank and alpha of the adapter at `path`. Raises TrainingError unless all tensors have one rank."""
    reader = gguf.GGUFReader(path)
    ranks = {int(tensor.shape[1]) for tensor in reader.tensors if tensor.name.endswith(".lora_a")}
    if len(ranks) != 1:
        raise TrainingError(f"{path} has {len(ranks)} ranks; only one can be trained: start without it")
    return ranks.pop(), round(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())


def _name_in_file(key: str) -> str:
    match = _KEY.search(key)
    if match is None or match[2] not in NAMES:
        raise ValueError(f"{key} is no projection that an adapter file has a name for")
    block, projection, side = match.groups()
    return f"blk.{block}.{NAMES[projection]}.weight.lora_{side.lower()}"


def _reordered_heads(key: str, architecture: str, heads: int, kv_heads: int) -> int:
    """The number of heads of a tensor whose rows llama.cpp keeps in another order; 0 for any other tensor."""
    if architecture != "llama" or "lora_B" not in key:
        return 0
    return heads if ".q_proj." in key else kv_heads if ".k_proj." in key else 0


def _reorder(tensor: Any, heads: int, groups: int) -> Any:
    """Interleave the rows of each head: they are `groups` runs; the first rows of all runs come first.

    With 2 groups, the halves of a head become pairs. With one group for each pair, pairs become halves again.
    """
    grouped = tensor.reshape(heads, groups, -1, tensor.shape[1])
    return grouped.swapaxes(1, 2).reshape(tensor.shape)
