"""LoRA adapters of the model in this process: which may be used, and which is set for a decode.

Owns the open adapters and the one that is set on the context. Invariant: an adapter is used only if it was
trained on this model, according to its file or to a trusted source, and if architecture, tensor names and
shapes agree, which llama.cpp checks. Engine thread.

llama.cpp sets an adapter on the context, not on a stream. A prefix that was decoded under one adapter and is
continued under another gives no error, but logits that are wrong by whole units. So each stream records its
adapter, and `use` must be called before every decode.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from thor_policy.core.decisions import Adapter, ModelInfo
from thor_policy.core.errors import EngineError
from thor_policy.engine.native import Lora, set_adapter

#: Key in an adapter's file: the sha256 of the model file that it was trained on.
BASE_DIGEST = "thor_policy.base_sha256"
#: Key in an adapter's file: the name of the model that it was trained on, written by converters.
BASE_NAME = "general.base_model.0.name"

#: The number format at the end of a model file's name.
_FORMAT = re.compile(r"[-._]((I?Q|TQ|MXFP)\d\w*|B?F16|F32)\Z", re.IGNORECASE)


class Adapters:
    """The open adapters of `model`, whose file is `path`, in `context`."""

    def __init__(self, model: Any, context: Any, info: ModelInfo, path: Path) -> None:
        self._model, self._context = model, context
        self._info, self._path = info, path
        self._open: dict[str, Lora] = {}
        self._used: Adapter | None = None

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool, needed: Collection[str]) -> None:
        """Open `path` unless it is open; close adapters whose sha256 is not `needed`. Raises EngineError."""
        for sha256 in self._open.keys() - {*needed, adapter.sha256}:
            if self._used is not None and self._used.sha256 == sha256:
                self.use(None)
            self._open.pop(sha256).close()
        if adapter.sha256 in self._open:
            return
        lora = Lora(self._model, path)
        if reason := self._mismatch(lora, vouched=vouched):
            lora.close()
            raise EngineError(f"{path} cannot be used as an adapter of {self._info.name}: {reason}")
        self._open[adapter.sha256] = lora

    def use(self, adapter: Adapter | None) -> None:
        """Set `adapter` for the next decode; does nothing if it is set already."""
        if adapter == self._used:
            return
        if adapter is not None and adapter.sha256 not in self._open:
            raise EngineError(f"the adapter {adapter.name} is not open; it must be adopted first")
        if adapter is None:
            set_adapter(self._context, None, 0.0)
        else:
            set_adapter(self._context, self._open[adapter.sha256], adapter.scale)
        self._used = adapter

    def close(self) -> None:
        """Free every adapter; must be called before the model is freed."""
        self.use(None)
        for lora in self._open.values():
            lora.close()
        self._open.clear()

    def _mismatch(self, lora: Lora, *, vouched: bool) -> str | None:
        """Why the adapter must not be used with this model, beyond llama.cpp's own checks; None if it may."""
        if lora.is_activated:
            return "it takes effect only after activation tokens (aLoRA), which no question contains"
        digest, name = lora.metadata(BASE_DIGEST), lora.metadata(BASE_NAME)
        if digest is not None:
            if digest == self._info.sha256:
                return None
            return (
                f"it was trained on the model with sha256 {digest[:64]} ({BASE_DIGEST}); this model's sha256 "
                f"is {self._info.sha256}"
            )
        if vouched or (name and _names_file(name, self._path.stem, self._info.name)):
            return None
        if name:
            return (
                f"it was trained on {name[:64]!r} ({BASE_NAME}); if that is this model, write the model's "
                f"sha256 into the adapter's file under {BASE_DIGEST}"
            )
        return (
            "its file does not name the model that it was trained on: write the model's sha256 into the file "
            f"under {BASE_DIGEST}, or convert it with a model card that names the model ({BASE_NAME})"
        )


def _names_file(name: str, *files: str) -> bool:
    """Whether a model's name matches one of the file names, without number format and publisher.

    `SmolLM2 135M` does not match `SmolLM2-135M-Instruct.Q4_1`: base and instruct model have the same shapes.
    """
    plain = _plain(name)
    return bool(plain) and any(_plain(_FORMAT.sub("", file)).endswith(plain) for file in files)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
