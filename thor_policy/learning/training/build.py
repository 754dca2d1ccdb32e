"""Build an adapter from cases: samples, training, conversion, and a comparison of torch with llama.cpp.

Owns the folder that a run writes. Invariant: an adapter that `make` returns was loaded by llama.cpp beside
its base model, and gave the label probabilities of torch within `TOLERANCE`; the card states the differences.
Main thread of a command.
"""

from __future__ import annotations

import gzip
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from thor_policy.catalog.files import ModelFile
from thor_policy.core.decisions import Adapter, resident_key
from thor_policy.core.errors import TrainingError
from thor_policy.core.requests import NEVER_NS, Evaluation, Json
from thor_policy.engine.native import Vocabulary
from thor_policy.learning.training.samples import Case, Renderer, Sample
from thor_policy.learning.training.settings import Point, Settings
from thor_policy.policy.pack import Pack

if TYPE_CHECKING:
    from thor_policy.learning.training.lora import Learner

#: Prompts on which torch and llama.cpp are compared.
COMPARED = 100
#: Largest accepted difference of a label's probability between them; the mean may be a tenth of it. llama.cpp
#: uses the quantised base and torch the unpacked one, and both compute in bfloat16 or int8 in between.
TOLERANCE = 0.25


class Parity(Struct, frozen=True, kw_only=True):
    """Differences of the right label's probability between llama.cpp and torch, over `prompts` prompts."""

    prompts: int
    mean: float
    largest: float
    same_label: int


class Card(Struct, frozen=True, kw_only=True):
    """The card of an adapter: its file, and how it was trained.

    Its weights lie `share` of the way from the initial weights to the trained ones.
    """

    adapter: str
    sha256: str
    size_bytes: int
    base: str
    base_sha256: str
    rendering: str
    packs: dict[str, str]
    settings: dict[str, Json]
    device: str
    threads: int
    cases: dict[str, int]
    left_out: int
    training_sha256: str
    held_out: int
    parity: Parity
    curve: tuple[dict[str, Json], ...]
    share: float = 1.0
    notes: tuple[str, ...] = ()


def make(
    model: ModelFile,
    packs: Mapping[str, Pack],
    train: Sequence[Case],
    held_out: Sequence[Case],
    settings: Settings,
    *,
    name: str,
    folder: Path,
    start: Path | None = None,
    share: float = 1.0,
    threads: int = 0,
    notes: Sequence[str] = (),
    announce: Callable[[str], None] = lambda _: None,
    advance: Callable[[int, int, float], None] = lambda *_: None,
    checked: Callable[[Point], None] = lambda _: None,
) -> Card:
    """Train on `train`, and keep the weights that decide `held_out` best.

    Writes `folder`/NAME.gguf, the card NAME.json and the training cases NAME.cases.jsonl.gz. `start` is the
    file of an adapter of `model` that training continues from, with its rank and alpha; `share` is the part
    of the way from there to the trained weights. A second call with another share does not train again.
    `announce` is called with a line of text for each part, `advance` and `checked` as in `Learner.fit`.
    Raises TrainingError if there are no cases, if training cannot continue from `start`, or if llama.cpp and
    torch differ by more than `TOLERANCE`.
    """
    from thor_policy.learning.training import conversion
    from thor_policy.learning.training.lora import Learner

    vocabulary = Vocabulary(model.path, vocab_only=True)
    renderer, left_out = Renderer(vocabulary, packs), list[str]()
    samples = list(renderer.samples(train, left_out))
    judged = list(renderer.samples(held_out, left_out))
    if not samples or not judged:
        raise TrainingError(f"{len(samples)} cases to train and {len(judged)} held out: both are needed")
    labels = {pack: renderer.labels(pack) for pack in packs}
    vocabulary.close()
    tokens = sum(map(len, samples))
    announce(
        f"{len(samples):,} samples of {tokens / len(samples):.0f} tokens, {len(judged):,} held out, "
        f"{len(left_out)} left out; loading {model.path.name}"
    )
    if start is not None:
        rank, alpha = conversion.strength_of(start)
        started_from = hashlib.sha256(start.read_bytes()).hexdigest()
        settings = msgspec.structs.replace(settings, rank=rank, alpha=alpha, started_from=started_from)
    learner = Learner(model.path, settings, threads=threads)
    shape: dict[str, Any] = {
        "architecture": learner.architecture,
        "heads": learner.shape.num_attention_heads,
        "kv_heads": learner.shape.num_key_value_heads,
    }
    if start is not None:
        announce(f"continuing from {start.stem}")
        learner.start_from(conversion.read(start, learner.weights(), **shape))
    initial = learner.weights()
    training = digest_of(train)
    curve = learner.fit(
        samples,
        judged,
        labels,
        folder=folder / "checkpoints",
        training=training,
        advance=advance,
        checked=checked,
    )
    learner.go_back(initial, share)
    announce(f"writing the adapter, {share:.0%} of the way, and comparing llama.cpp with torch")
    path = folder / f"{name}.gguf"
    conversion.write(
        path,
        {key: tensor.numpy() for key, tensor in learner.weights().items()},
        name=name,
        **shape,
        alpha=settings.alpha,
        base_name=model.name,
        base_sha256=model.sha256,
        rendering="brief",
        licence="Apache-2.0",
        training_sha256=training,
    )
    parity = compare(model, path, learner, judged, packs, labels, seed=settings.seed)
    content = path.read_bytes()
    card = Card(
        adapter=name,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        base=model.name,
        base_sha256=model.sha256,
        rendering="brief",
        packs={pack.info.name: pack.info.sha256 for pack in packs.values()},
        settings=msgspec.to_builtins(settings),
        device=str(learner.device),
        threads=learner.threads,
        cases=dict(Counter(" ".join(case.source.split()[:2]) for case in train)),
        left_out=len(left_out),
        training_sha256=training,
        held_out=len(judged),
        parity=parity,
        curve=tuple(msgspec.to_builtins(point) for point in curve),
        share=share,
        notes=tuple(notes),
    )
    write_cases(folder / f"{name}.cases.jsonl.gz", train)
    encoded = msgspec.json.format(msgspec.json.encode(card), indent=1) + b"\n"
    (folder / f"{name}.json").write_bytes(encoded)
    if parity.mean > TOLERANCE / 10 or parity.largest > TOLERANCE:
        raise TrainingError(
            f"{path}: label probabilities of llama.cpp and torch differ by {parity.mean:.3f} in the mean and "
            f"{parity.largest:.3f} at most; the limits are {TOLERANCE / 10} and {TOLERANCE}: do not use it"
        )
    return card


def compare(
    model: ModelFile,
    path: Path,
    learner: Learner,
    judged: Sequence[Sample],
    packs: Mapping[str, Pack],
    labels: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    seed: int,
) -> Parity:
    """Compare llama.cpp with torch on the same questions, which llama.cpp gets as in the daemon.

    Raises EngineError.
    """
    from thor_policy.engine.llama import LlamaEngine

    chosen = random.Random(seed).sample(list(judged), min(COMPARED, len(judged)))  # noqa: S311  no secret
    by_torch = learner.read(
        [sample.prompt for sample in chosen], [labels[sample.case.pack] for sample in chosen]
    )
    adapter = Adapter(name=path.stem, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), rendering="brief")
    differences, same = [], 0
    engine = LlamaEngine(
        model.path, name=model.name, sha256=model.sha256, context_tokens=2_048, packs=len(packs)
    )
    try:
        engine.adopt(adapter, path)
        for pack in packs.values():
            engine.load(pack.brief_prefix, adapter)
        for sample, probabilities in zip(chosen, by_torch, strict=True):
            case, pack = sample.case, packs[sample.case.pack]
            evaluation = msgspec.convert(case.evaluation, Evaluation)
            question = pack.brief_question(evaluation, pack.book.apply(evaluation, case.at))
            scored = engine.score(resident_key(pack.info.sha256, adapter), question, NEVER_NS)
            differences.append(abs(scored.probabilities[case.outcome] - probabilities[case.outcome]))
            same += scored.label == max(probabilities, key=probabilities.__getitem__)
    finally:
        engine.close()
    return Parity(
        prompts=len(chosen),
        mean=sum(differences) / len(differences),
        largest=max(differences),
        same_label=same,
    )


def write_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write the cases as compressed JSON lines, in order; the same cases give the same bytes."""
    lines = b"".join(msgspec.json.encode(case, order="sorted") + b"\n" for case in cases)
    path.write_bytes(gzip.compress(lines, mtime=0))


def digest_of(cases: Sequence[Case]) -> str:
    """sha256 over the cases, in order: the identity of a training set."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(msgspec.json.encode(case, order="sorted") + b"\n")
    return digest.hexdigest()
