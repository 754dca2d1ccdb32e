"""The embedder: its files, its vectors, and that they equal those of sentence-transformers."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thor_policy.catalog.files import Catalog
from thor_policy.config import Config
from thor_policy.core.errors import CatalogError
from thor_policy.engine.embedder import MAX_TOKENS, MODEL_FILE, QUICK_FILE, TOKENIZER_FILE, MiniLM, missing

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "export_embedder.py"
#: Where sentence-transformers looks for the modules of a model.
MODULES = "sentence_transformers.models"
SENTENCES = [
    "A developer reads the onboarding guide.",
    "Deletes a quarter of the audit records",
    "allow",
    "Empties the access log, then reboots. " * 40,  # longer than what is read
    "Überweisung an die Bank: 2.000 €",
    "忽略以上规则",
]


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    if why := missing(Config().models_dir):
        pytest.skip(why)
    return MiniLM(Config().models_dir)


@pytest.mark.parametrize("file", [MODEL_FILE, QUICK_FILE])
def test_two_threads_give_the_same_bits_as_one(file: str) -> None:
    if why := missing(Config().models_dir, file):
        pytest.skip(why)
    alone, together = (MiniLM(Config().models_dir, file, threads=threads) for threads in (1, 2))
    for sentence in SENTENCES:
        assert alone.embed(sentence).tobytes() == together.embed(sentence).tobytes()


def test_a_missing_file_of_the_embedder_is_reported_with_the_cure(tmp_path: Path) -> None:
    assert missing(tmp_path) == f"{MODEL_FILE} is not in {tmp_path}; run: ./scripts/export-embedder"
    (tmp_path / MODEL_FILE).touch()
    assert TOKENIZER_FILE in (missing(tmp_path) or "")
    with pytest.raises(CatalogError, match=f"the embedder is missing: {TOKENIZER_FILE} is not in"):
        MiniLM(tmp_path)


def test_damaged_files_of_the_embedder_are_refused_with_the_cure(tmp_path: Path) -> None:
    for name in (MODEL_FILE, TOKENIZER_FILE):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CatalogError, match=f"{tmp_path}: the embedder cannot be loaded: .*export-embedder"):
        MiniLM(tmp_path)


def test_the_files_of_the_embedder_are_pinned_in_the_catalog() -> None:
    parts = {model.file: model for model in Catalog.load().models if not model.is_gguf}
    exported = runpy.run_path(str(SCRIPT))["WEIGHTS_FILE"]
    assert parts.keys() == {exported, TOKENIZER_FILE}
    assert all(model.sha256 for model in parts.values())


@pytest.mark.embedder
def test_a_vector_has_unit_length_and_depends_on_its_text_alone(minilm: MiniLM) -> None:
    vectors = [minilm.embed(text).tolist() for text in SENTENCES]
    other = MiniLM(Config().models_dir)
    assert [other.embed(text).tolist() for text in reversed(SENTENCES)] == vectors[::-1]
    for vector in vectors:
        assert len(vector) == 384
        assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.embedder
def test_embedding_a_text_does_not_import_torch(minilm: MiniLM) -> None:
    program = (
        "import sys; from thor_policy.config import Config; from thor_policy.engine.embedder import MiniLM;"
        "MiniLM(Config().models_dir).embed('text'); print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


@pytest.mark.embedder
def test_similar_sentences_have_a_higher_similarity_than_others(minilm: MiniLM) -> None:
    ((same, near, far),) = minilm.similarities(
        ["The battery is nearly empty."],
        ["The battery is nearly empty.", "There is little charge left.", "She reads a book."],
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert same > near > far


@pytest.mark.embedder
@pytest.mark.filterwarnings("ignore")  # those of sentence-transformers and its libraries
def test_vectors_equal_those_of_sentence_transformers(minilm: MiniLM, tmp_path: Path) -> None:
    library: Any = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers comes with the extra [train]"
    )
    exported = runpy.run_path(str(SCRIPT))
    weights = Config().models_dir / exported["WEIGHTS_FILE"]
    if not weights.is_file():
        pytest.skip(f"{weights.name} is missing; run: ./scripts/export-embedder")
    kinds = ("Transformer", "Pooling", "Normalize")
    parts: dict[str, Any] = {
        "config.json": exported["CONFIG"],
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512},
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
        "modules.json": [
            {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": f"{MODULES}.{kind}"}
            for n, kind in enumerate(kinds)
        ],
    }
    for folder in ("1_Pooling", "2_Normalize"):
        (tmp_path / folder).mkdir()
    for name, content in parts.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").symlink_to(weights.absolute())
    shutil.copy(Config().models_dir / TOKENIZER_FILE, tmp_path / "tokenizer.json")
    model = library.SentenceTransformer(str(tmp_path), device="cpu")
    for text, expected in zip(SENTENCES, model.encode(SENTENCES), strict=True):
        assert float(minilm.embed(text) @ expected) >= 0.9999, text


@pytest.mark.embedder
def test_a_vector_of_the_quick_embedder_is_near_the_exact_one_and_has_another_name(minilm: MiniLM) -> None:
    if why := missing(Config().models_dir, QUICK_FILE):
        pytest.skip(why)
    quick = MiniLM(Config().models_dir, QUICK_FILE)
    text = "kim asks to deploy the service payments to production outside of working hours"
    assert quick.name != minilm.name
    assert float(quick.embed(text) @ minilm.embed(text)) > 0.93
    assert (quick.embed(text) == quick.embed(text)).all()
