"""Write a model file of architecture `phi3` with random weights, of any shape and with a real chat template.

Owns these files: of 1 MB for tests, or of Phi-4-mini's exact shape for measuring without its weights. They
load, tokenise and decode as Phi-4-mini and Phi-4 do, but their answers mean nothing. Invariant: the same
arguments give the same bytes. Pure but for the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import gguf
import numpy as np

#: The chat templates of the two models, as their tokenizer_config.json states them.
PHI_4_MINI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] "
    "+ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SPECIALS = {
    PHI_4_MINI: ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>"),
    PHI_4: ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
}
#: Words that get a token each, so that labels and fixed text take few tokens.
WORDS = ("allow", "deny", "require", "mfa", "attestation", "outcome", "class", "clauses", "because", "read")

#: Numbers in a block of the k-quants, and their blocks as llama.cpp lays them out (ggml-common.h).
_BLOCK = 256
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


@dataclass(frozen=True)
class Shape:
    """The size of a model. Unused tokens fill the vocabulary up to `vocabulary` (0: no unused tokens)."""

    name: str
    width: int
    heads: int
    kv_heads: int
    layers: int
    ffn: int
    context: int
    rotary: int
    vocabulary: int = 0
    quantised: bool = False


TINY = Shape(name="tiny-phi", width=128, heads=4, kv_heads=2, layers=2, ffn=256, context=4_096, rotary=32)
#: As config.json of microsoft/Phi-4-mini-instruct states it: 3.8 billion weights, tied embeddings.
#: Blocks at Q4_K and embeddings at Q6_K: 2.3 GB, where Q4_K_M keeps some projections finer and has 2.5.
MINI = Shape(
    name="phi-4-mini-shape",
    width=3_072,
    heads=24,
    kv_heads=8,
    layers=32,
    ffn=8_192,
    context=131_072,
    rotary=96,
    vocabulary=200_064,
    quantised=True,
)


def write(
    path: Path,
    shape: Shape = TINY,
    *,
    template: str = PHI_4_MINI,
    words: Sequence[str] = WORDS,
    seed: int = 0,
) -> Path:
    """Write the model to `path`, tensor by tensor; `words` get a token each."""
    tokens, merges = _vocabulary(words)
    specials = SPECIALS[template]
    unused = [f"<|unused_{number}|>" for number in range(shape.vocabulary - len(tokens) - len(specials))]
    kinds = [
        *[gguf.TokenType.NORMAL] * len(tokens),
        *[gguf.TokenType.CONTROL] * len(specials),
        *[gguf.TokenType.UNUSED] * len(unused),
    ]
    ids = {name: len(tokens) + number for number, name in enumerate(specials)}
    out = gguf.GGUFWriter(path, "phi3")
    out.add_name(shape.name)
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.ffn)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(shape.rotary)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M if shape.quantised else gguf.LlamaFileType.ALL_F32)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-4o")
    out.add_token_list([*tokens, *specials, *unused])
    out.add_token_types(kinds)
    out.add_token_merges(merges)
    out.add_bos_token_id(ids["<|endoftext|>"])
    out.add_eos_token_id(ids["<|end|>" if "<|end|>" in ids else "<|im_end|>"])
    out.add_add_bos_token(False)
    out.add_chat_template(template)
    tensors = dict(_tensors(shape, len(kinds)))
    types = {name: _type_of(name, shape) for name in tensors}
    for name, dims in tensors.items():
        numbers, size = gguf.GGML_QUANT_SIZES[types[name]]
        nbytes = int(np.prod(dims)) // numbers * size
        out.add_tensor_info(name, dims, np.dtype(np.float32), nbytes, raw_dtype=types[name])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for name, dims in tensors.items():
        out.write_tensor_data(_random_tensor(name, dims, types[name], seed))
    out.close()
    return path


def words_of(texts: Iterable[str], most: int) -> list[str]:
    """At most `most` different words of the texts. Words with a token each are not cut into letters."""
    words = (word for text in texts for word in text.split() if word.isalpha() and word.isascii())
    return list(islice(dict.fromkeys(words), most))


def _type_of(name: str, shape: Shape) -> gguf.GGMLQuantizationType:
    if "norm" in name or not shape.quantised:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType.Q6_K if name == "token_embd.weight" else gguf.GGMLQuantizationType.Q4_K


def _random_tensor(
    name: str, dims: tuple[int, ...], type_: gguf.GGMLQuantizationType, seed: int
) -> np.ndarray:
    """The values of a tensor as the file holds them; quantised values have a size of about 0.02."""
    chance = np.random.default_rng([seed, *name.encode()])
    if "norm" in name:
        return np.ones(dims, np.float32)
    if type_ == gguf.GGMLQuantizationType.F32:
        return chance.normal(0, 0.15, dims).astype(np.float32)
    kind = _Q6_K if type_ == gguf.GGMLQuantizationType.Q6_K else _Q4_K
    count = int(np.prod(dims)) // _BLOCK
    blocks = np.frombuffer(bytearray(chance.bytes(count * kind.itemsize)), kind)
    if kind is _Q6_K:
        blocks["d"], blocks["scales"] = 1e-4, chance.integers(1, 17, (count, 16))
    else:
        blocks["d"], blocks["dmin"] = 1e-4, 7.5e-4  # scales and offsets have one distribution: means are 0
    return blocks.view(np.uint8)


def _tensors(shape: Shape, vocabulary: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """The name and the shape of each tensor, in the order of numpy: rows first."""
    head = shape.width // shape.heads
    yield "token_embd.weight", (vocabulary, shape.width)
    yield "output_norm.weight", (shape.width,)
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight", (shape.width,)
        yield f"blk.{layer}.attn_qkv.weight", (shape.width + 2 * shape.kv_heads * head, shape.width)
        yield f"blk.{layer}.attn_output.weight", (shape.width, shape.width)
        yield f"blk.{layer}.ffn_norm.weight", (shape.width,)
        yield f"blk.{layer}.ffn_up.weight", (2 * shape.ffn, shape.width)
        yield f"blk.{layer}.ffn_down.weight", (shape.width, shape.ffn)


def _vocabulary(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Byte tokens in GPT-2's spelling, then the words and the merges that build them letter by letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = count(256)
    spelling = {byte: chr(byte) if byte in printable else chr(next(others)) for byte in range(256)}
    tokens = dict.fromkeys(spelling[byte] for byte in range(256))
    merges: list[str] = []
    for word in (spelling[32] + word for word in words):
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens[word[:end]] = None
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return list(tokens), merges
