"""The sentence embedder: MiniLM on ONNX Runtime, on one CPU thread or two.

Owns the embedder's files and its tokens. Invariant: torch is never imported; ONNX Runtime and the tokenizer
are imported only when an embedder is opened, so a daemon or a run without one does not load them. The vector
of a text is the mean of its token vectors, scaled to unit length, as sentence-transformers computes it. A
text is always embedded alone, in a batch of one with its own length, so its vector depends on nothing else,
and two threads compute the same one in two thirds of the time.
`embed` may be called by any thread, `similarities` by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thor_policy.core.errors import CatalogError

#: The embedder's files in the models directory. The quick one has weights of 8 bits: a quarter of
#: the time. Its vectors are near those of the other, not equal to them.
MODEL_FILE = "all-MiniLM-L6-v2.onnx"
QUICK_FILE = "all-MiniLM-L6-v2.int8.onnx"
TOKENIZER_FILE = "all-MiniLM-L6-v2.tokenizer.json"
#: Tokens of a text that are read; the model was trained on so many.
MAX_TOKENS = 256
#: Most vectors that are kept for further comparisons: 6 MB.
MOST_KNOWN = 4_096


def missing(models_dir: Path, file: str = MODEL_FILE) -> str | None:
    """What the embedder with this file lacks, with the cure; None if it lacks nothing. Imports nothing."""
    for library in ("onnxruntime", "tokenizers"):
        if find_spec(library) is None:
            return f"{library} is not installed; run: ./scripts/setup cpu"
    for name in (file, TOKENIZER_FILE):
        if not (models_dir / name).is_file():
            return f"{name} is not in {models_dir}; run: ./scripts/export-embedder"
    return None


class MiniLM:
    """The embedder with this file. Raises CatalogError if it is missing, or if a file cannot be used."""

    def __init__(self, models_dir: Path, file: str = MODEL_FILE, *, threads: int = 1) -> None:
        self.name = file.removesuffix(".onnx")
        if reason := missing(models_dir, file):
            raise CatalogError(f"the embedder is missing: {reason}")
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._numpy = numpy
        try:
            self._tokenizer = Tokenizer.from_file(str(models_dir / TOKENIZER_FILE))
            self._session = onnxruntime.InferenceSession(
                str(models_dir / file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise plain Exception
            raise CatalogError(
                f"{models_dir}: the embedder cannot be loaded: {error}; run: ./scripts/export-embedder"
            ) from error
        # The tokenizer file sets padding and a limit of 128 tokens; undo both.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        #: Vectors of texts that were compared, because suites compare the same ones again and again.
        self._vectors: dict[str, Any] = {}

    def embed(self, text: str) -> Any:
        """Vector of a text at unit length, as an array of 384 floats."""
        encoding = self._tokenizer.encode(text)
        ids = self._numpy.array([encoding.ids], dtype=self._numpy.int64)
        inputs = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        (states,) = self._session.run(["last_hidden_state"], inputs)
        mean = states[0].mean(axis=0)
        return mean / max(float(self._numpy.linalg.norm(mean)), 1e-9)

    def similarities(self, texts: Sequence[str], others: Sequence[str]) -> list[list[float]]:
        """Cosine of each text (row) with each of the others (column), -1 to 1."""
        return [[float(self._known(text) @ self._known(other)) for other in others] for text in texts]

    def _known(self, text: str) -> Any:
        if text not in self._vectors:
            if len(self._vectors) >= MOST_KNOWN:
                self._vectors.clear()
            self._vectors[text] = self.embed(text)
        return self._vectors[text]
