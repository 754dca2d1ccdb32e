"""llama.cpp through ctypes: the only module that imports llama_cpp.

Owns the start of the library, its log, the vocabulary of a model file and the batch of a decode. Invariant:
callbacks given to the library live as long as the process, and every object with library memory has a
`close`. Engine thread, and commands that only tokenise.
"""

from __future__ import annotations

import atexit
import ctypes
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# OpenMP's threads wait for each other some hundred times in a decode, and spin for long before they sleep.
# If another program computes on the same cores, spinning keeps the awaited thread from running: a decode
# beside such a program took ten times as long (docs/how-to/operate.md).
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"  # read when the library is loaded

import llama_cpp
import numpy as np
from llama_cpp import _utils
from llama_cpp import llama_cpp as lib

from thor_policy.core.decisions import ModelInfo
from thor_policy.core.engine import DeviceMemory, PromptPrefix
from thor_policy.core.errors import EngineError
from thor_policy.engine.chat import around, prompt

__all__ = [
    "FLASH_ATTENTION",
    "KV_TYPES",
    "Batch",
    "Lora",
    "Vocabulary",
    "build_name",
    "device_memory",
    "gpu_offload",
    "lib",
    "recent_warnings",
    "set_adapter",
]

# Its module opens /dev/null twice when it is imported, and closes neither: a warning at the end of a process.
for opened in (_utils.outnull_file, _utils.errnull_file):
    atexit.register(opened.close)

#: The library's numbers for the values of Config.flash_attention and Config.kv_type.
FLASH_ATTENTION = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}

_recent: deque[str] = deque(maxlen=8)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _collect_log(level: int, text: bytes, _user_data: Any) -> None:
    if level in (3, 4):  # warnings and errors
        _recent.append(text.decode("utf-8", "replace").strip())


def recent_warnings() -> str:
    """The last warnings and errors of the library, for an error message."""
    return "; ".join(_recent)


def _start_backend() -> None:
    lib.llama_log_set(_collect_log, ctypes.c_void_p(0))
    lib.llama_backend_init()


def build_name() -> str:
    """Name of the inference library, as recorded with each decision."""
    return f"llama-cpp-python {llama_cpp.__version__}"


def gpu_offload() -> bool:
    """True if llama.cpp was built for a GPU and sees one."""
    return bool(lib.llama_supports_gpu_offload())


#: Kinds of ggml_backend_dev_type that have, or share, the memory of a GPU.
_GPUS = (1, 2)


def device_memory(kinds: Sequence[int] = _GPUS) -> tuple[DeviceMemory, ...]:
    """Free and total memory of the devices of these kinds, as their backends report it. Any thread."""
    backends = lib._lib  # llama_cpp does not declare these functions of the library that it loads
    device_at = backends.ggml_backend_dev_get
    device_at.restype, device_at.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    kind_of = backends.ggml_backend_dev_type
    kind_of.restype, kind_of.argtypes = ctypes.c_int, [ctypes.c_void_p]
    name_of = backends.ggml_backend_dev_name
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    read_memory = backends.ggml_backend_dev_memory
    read_memory.restype = None
    read_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    count = backends.ggml_backend_dev_count
    count.restype, count.argtypes = ctypes.c_size_t, []
    memories = []
    for device in map(device_at, range(count())):
        if kind_of(device) in kinds:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            read_memory(device, ctypes.byref(free), ctypes.byref(total))
            name = name_of(device).decode("utf-8", "replace")
            memories.append(DeviceMemory(device=name, free_bytes=free.value, total_bytes=total.value))
    return tuple(memories)


class Vocabulary:
    """Tokens and chat template of a GGUF file; with `vocab_only`, the weights are not read."""

    def __init__(self, path: Path, *, vocab_only: bool = False, gpu_layers: int = -1) -> None:
        _start_backend()
        _recent.clear()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = gpu_layers
        self.model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            reason = recent_warnings() or "llama.cpp gave no reason"
            raise EngineError(f"{path} cannot be loaded as a model: {reason}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        template = lib.llama_model_chat_template(self.model, None)
        if not template:
            raise EngineError(f"{path} has no chat template; use an instruct model")
        self._template = template.decode("utf-8")
        self._bos = lib.llama_vocab_bos(self.vocab) if lib.llama_vocab_get_add_bos(self.vocab) else -1

    def close(self) -> None:
        if self.model:
            lib.llama_model_free(self.model)
            self.model = None

    def tokenise(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`; only with `special` can text become a special token."""
        raw = text.encode("utf-8")
        buffer = (lib.llama_token * (len(raw) + 2))()
        count = lib.llama_tokenize(self.vocab, raw, len(raw), buffer, len(buffer), False, special)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenise a text of {len(raw)} bytes")
        return list(buffer[:count])

    def text_of(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; special tokens give no text, unless `special`."""
        parts = []
        buffer = ctypes.create_string_buffer(256)
        for token in tokens:
            count = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
            parts.append(buffer.raw[:count] if count > 0 else b"")
        return b"".join(parts).decode("utf-8", "replace")

    def ends_turn(self, token: int) -> bool:
        """True for end-of-turn and end-of-text tokens."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def prompt(self, prefix: PromptPrefix) -> tuple[list[int], list[int]]:
        """Token ids that precede every question, and those between a question and its label."""
        marks = around(self._template, prefix, bos=self._special_text(self._bos))
        return prompt(
            marks, prefix, lambda text, special: self.tokenise(text, special=special), bos=self._bos
        )

    def question(self, prefix: PromptPrefix, question: str) -> tuple[list[int], list[int]]:
        """The exact token ids (prefix, suffix) of one question."""
        before, tail = self.prompt(prefix)
        return before, self.tokenise(question.removeprefix(prefix.question_head)) + tail

    def info(self, name: str, sha256: str, *, device: str) -> ModelInfo:
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self.model, buffer, len(buffer))
        architecture, _, quantisation = (buffer.value.decode() + "  ").split(" ", 2)
        return ModelInfo(
            name=name,
            sha256=sha256,
            quantisation=quantisation.strip(),
            architecture=architecture,
            parameters=lib.llama_model_n_params(self.model),
            build=build_name(),
            device=device,
        )

    def _special_text(self, token: int) -> str:
        return lib.llama_vocab_get_text(self.vocab, token).decode() if token >= 0 else ""


class Lora:
    """An open LoRA adapter. Raises EngineError if the file is not an adapter of the model's shape."""

    def __init__(self, model: Any, path: Path) -> None:
        _recent.clear()
        self.handle = lib.llama_adapter_lora_init(model, os.fsencode(path))
        if not self.handle:
            reason = recent_warnings() or "llama.cpp gave no reason"
            raise EngineError(f"{path} cannot be used as an adapter of this model: {reason}")

    @property
    def is_activated(self) -> bool:
        """True for an adapter (aLoRA) that takes effect only after certain tokens."""
        return bool(lib.llama_adapter_get_alora_n_invocation_tokens(self.handle))

    def metadata(self, key: str) -> str | None:
        """The value of `key` in its file, as text; None if the file has no such key."""
        buffer = ctypes.create_string_buffer(1024)
        count = lib.llama_adapter_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if count >= 0 else None

    def close(self) -> None:
        if self.handle:
            lib.llama_adapter_lora_free(self.handle)
            self.handle = None


def set_adapter(context: Any, lora: Lora | None, scale: float) -> None:
    """Use `lora` at `scale`, or no adapter, in every later decode of the context, in every stream."""
    count = 0 if lora is None else 1
    handles = (lib.llama_adapter_lora_p_ctypes * 1)(lora.handle) if lora else None
    scales = (ctypes.c_float * 1)(scale) if lora else None
    if lib.llama_set_adapters_lora(context, handles, count, scales) != 0:
        raise EngineError(f"llama.cpp cannot use the adapter: {recent_warnings()}")


class Batch:
    """A llama_batch with numpy views; it can hold tokens of several streams."""

    def __init__(self, capacity: int) -> None:
        self._batch = lib.llama_batch_init(capacity, 0, 1)
        shape = (capacity,)
        self._tokens = np.ctypeslib.as_array(self._batch.token, shape)
        self._positions = np.ctypeslib.as_array(self._batch.pos, shape)
        self._outputs = np.ctypeslib.as_array(self._batch.logits, shape)
        for index in range(capacity):
            self._batch.n_seq_id[index] = 1
        self.used = 0

    def clear(self) -> None:
        self.used = 0

    def add(self, tokens: Sequence[int], position: int, stream: int, *, logits_from: int = -1) -> int:
        """Append tokens, with logits from index `logits_from` on. Returns the index of the last token."""
        start, end = self.used, self.used + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = range(position, position + len(tokens))
        self._outputs[start:end] = 0
        if logits_from >= 0:
            self._outputs[start + logits_from : end] = 1
        for index in range(start, end):
            self._batch.seq_id[index][0] = stream
        self.used = end
        return end - 1

    def raw(self) -> Any:
        self._batch.n_tokens = self.used
        return self._batch

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
