"""LoRA adapters of the model in this process: which may be used, and which one a decode is done under.

Owns the open adapters and the one that is set on the context. Invariant: what is decoded under an adapter
was admitted as one for this model: its file says so (or somebody we trust does), and architecture, tensor
names and shapes agree, which llama.cpp checks. Engine thread.

llama.cpp keeps an adapter on the context, not on a stream, and a prefix that was decoded under one and is
continued under another loads silently and is wrong by whole logits. So no caller sets an adapter and then
decodes: each stream says what it was decoded under, and `use` is called before every decode.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from thor_policy.core.decisions import Adapter, ModelInfo
from thor_policy.core.errors import EngineError
from thor_policy.engine.native import Lora, set_adapter

#: Key of an adapter's file with the sha256 of the model file that it was trained on.
BASE_DIGEST = "thor_policy.base_sha256"
#: Key under which converters name the model that an adapter was trained on.
BASE_NAME = "general.base_model.0.name"

#: How a number format is written at the end of a model file's name.
_FORMAT = re.compile(r"[-._]((I?Q|TQ|MXFP)\d\w*|B?F16|F32)\Z", re.IGNORECASE)


class Adapters:
    """The adapters of `model`, whose file is `path`, in `context`."""

    def __init__(self, model: Any, context: Any, info: ModelInfo, path: Path) -> None:
        self._model, self._context = model, context
        self._info, self._path = info, path
        self._open: dict[str, Lora] = {}
        self._used: Adapter | None = None

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool, needed: Collection[str]) -> None:
        """Open `path` unless it is open; close those whose sha256 is not `needed`. Raises EngineError."""
        for sha256 in self._open.keys() - {*needed, adapter.sha256}:
            if self._used is not None and self._used.sha256 == sha256:
                self.use(None)
            self._open.pop(sha256).close()
        if adapter.sha256 in self._open:
            return
        lora = Lora(self._model, path)
        if why := self._against(lora, vouched=vouched):
            lora.close()
            raise EngineError(f"{path} is no adapter for {self._info.name}: {why}")
        self._open[adapter.sha256] = lora

    def use(self, adapter: Adapter | None) -> None:
        """What is decoded next is decoded under `adapter`; costs nothing if it was so before."""
        if adapter == self._used:
            return
        if adapter is not None and adapter.sha256 not in self._open:
            raise EngineError(f"the adapter {adapter.name} is not open")
        if adapter is None:
            set_adapter(self._context, None, 0.0)
        else:
            set_adapter(self._context, self._open[adapter.sha256], adapter.scale)
        self._used = adapter

    def close(self) -> None:
        """Free every adapter; before the model is freed."""
        self.use(None)
        for lora in self._open.values():
            lora.close()
        self._open.clear()

    def _against(self, lora: Lora, *, vouched: bool) -> str | None:
        """Why it should not be used with this model, beyond what llama.cpp found; None if nothing is."""
        if lora.is_activated:
            return "it works only behind words that activate it (aLoRA), which a question does not hold"
        digest, name = lora.told(BASE_DIGEST), lora.told(BASE_NAME)
        if digest is not None:
            if digest == self._info.sha256:
                return None
            return f"{BASE_DIGEST} is {digest[:64]}, the model's sha256 is {self._info.sha256}"
        if vouched or (name and _is_called(name, self._path.stem, self._info.name)):
            return None
        if name:
            return (
                f"it was trained on {name[:64]!r} ({BASE_NAME}); if that is this model, write its sha256 "
                f"into the adapter's file under {BASE_DIGEST}"
            )
        return (
            f"it does not say which model it was trained on: write the model's sha256 into its file under "
            f"{BASE_DIGEST}, or convert it with a model card that names the model ({BASE_NAME})"
        )


def _is_called(name: str, *files: str) -> bool:
    """Whether a model's name is that of a file, but for its number format and who published it.

    `SmolLM2 135M` is not `SmolLM2-135M-Instruct.Q4_1`: base and instruct model have the same shapes.
    """
    plain = _plain(name)
    return bool(plain) and any(_plain(_FORMAT.sub("", file)).endswith(plain) for file in files)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
