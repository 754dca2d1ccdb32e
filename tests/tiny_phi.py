"""A model file of architecture `phi3` with random weights: two layers, a byte vocabulary, a real template.

It judges nothing, but it loads, tokenises and decodes as Phi-4-mini and Phi-4 do, in a few hundred kB.
"""

from __future__ import annotations

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
#: Words that get a token of their own, so that labels and fixed text take few.
WORDS = ("allow", "deny", "require", "mfa", "attestation", "outcome", "class", "clauses", "because", "read")

WIDTH, HEADS, KV_HEADS, LAYERS, FFN, CONTEXT = 128, 4, 2, 2, 256, 4096


def write(path: Path, *, template: str = PHI_4_MINI, seed: int = 0) -> Path:
    """Write the model to `path`; the same seed gives the same bytes."""
    tokens, merges = _vocabulary()
    specials = SPECIALS[template]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(specials)
    ids = {name: len(tokens) + number for number, name in enumerate(specials)}
    out = gguf.GGUFWriter(path, "phi3")
    out.add_name("tiny-phi")
    out.add_context_length(CONTEXT)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-4o")
    out.add_token_list([*tokens, *specials])
    out.add_token_types(kinds)
    out.add_token_merges(merges)
    out.add_bos_token_id(ids["<|endoftext|>"])
    out.add_eos_token_id(ids["<|end|>" if "<|end|>" in ids else "<|im_end|>"])
    out.add_add_bos_token(False)
    out.add_chat_template(template)
    for name, shape in _tensors(len(tokens) + len(specials)).items():
        weights = np.random.default_rng([seed, *name.encode()]).normal(0, 0.15, shape).astype(np.float32)
        out.add_tensor(name, np.ones(shape, np.float32) if "norm" in name else weights)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _tensors(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Shapes as numpy has them: rows first."""
    head = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (WIDTH,),
            f"blk.{layer}.attn_qkv.weight": (WIDTH + 2 * KV_HEADS * head, WIDTH),
            f"blk.{layer}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_up.weight": (2 * FFN, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, FFN),
        }
    return shapes


def _vocabulary() -> tuple[list[str], list[str]]:
    """Byte tokens in GPT-2's spelling, then the words and the merges that build them letter by letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelling = {byte: chr(byte) for byte in printable}
    spelling |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in spelling)}
    tokens = [spelling[byte] for byte in range(256)]
    merges: list[str] = []
    for word in (spelling[32] + word for word in WORDS):
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return tokens, merges
