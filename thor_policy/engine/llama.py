"""The in-process engine: a GGUF model, scored and explained by llama.cpp.

Owns the model, its one context and every stream in it. Invariant: a decision is decoded alone, in its
pack's own stream, from the same start, in one call; only explanations share batches. So the same tokens
give the same bits whatever else is running. All calls come from the one thread that made it.

Streams: 0 .. packs-1 hold pack prefixes, the rest one running explanation each (`kv_unified=False` gives
each its own memory, so a neighbour cannot move the logits). What follows a prefix in its stream is the
last scored question, dropped before the next one. A stream is decoded under one adapter, or none, for as
long as it holds the same prefix, so prefixes under different adapters lie side by side while one takes the
place of the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from thor_policy.core.decisions import Adapter, ModelInfo, Scored, resident_key
from thor_policy.core.engine import (
    DeviceMemory,
    LoadedPrefix,
    PromptPrefix,
    Step,
    Steps,
    WrittenExplanation,
    all_steps,
)
from thor_policy.core.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.engine.adapters import Adapters
from thor_policy.engine.explanations import ExplanationWriter, Trie, closed_set, path_name
from thor_policy.engine.native import (
    FLASH_ATTENTION,
    KV_TYPES,
    Batch,
    Vocabulary,
    device_memory,
    gpu_offload,
    lib,
    recent_complaints,
)

log = logging.getLogger(__name__)

#: Tokens that one explanation may feed in one step: bounds how long a decision can wait.
STEP_TOKENS = 64
#: Tokens of a prefix that are decoded at once: bounds how long a decision can wait while a pack is loaded.
#: Fewer at once may score other bits, so every prefix is decoded in pieces of this size.
PREFILL_TOKENS = 128
#: Room kept behind a question for its explanation.
ANSWER_TOKENS = 192

#: A deadline that does not come.
NEVER_NS = 2**63 - 1


class _StateRecord(Struct, frozen=True):
    """What is kept beside a prefix state: its digest, and how the golden question scored with it."""

    sha256: str
    golden: dict[str, list[float]]


@dataclass
class _Resident:
    """A pack in its stream, decoded under `adapter`."""

    stream: int
    adapter: Adapter | None
    tokens: list[int]
    tail: list[int]
    digest: str
    labels: Trie
    ride: tuple[int, ...]
    names: tuple[str, ...]
    head: str


@dataclass
class _Run:
    """An explanation: waiting for a stream (-1), or running in one from position `position`."""

    ticket: int
    pack: str
    adapter: Adapter | None
    writing: ExplanationWriter
    suffix: tuple[int, ...]
    deadline_ns: int
    started_ns: int
    stream: int = -1
    position: int = 0
    pending: list[int] = field(default_factory=list)


class LlamaEngine:
    """A GGUF model in this process.

    `context_tokens` is the length of each stream; `packs` and `explanations` count the streams. Prefix
    states are kept in `states_dir` (None: not kept). Raises EngineError if the model cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        sha256: str,
        context_tokens: int = 2048,
        question_tokens: int = 512,
        packs: int = 1,
        explanations: int = 4,
        threads: int = 0,
        gpu_layers: int = -1,
        flash_attention: str = "auto",
        kv_type: str = "f16",
        states_dir: Path | None = None,
    ) -> None:
        self._path, self._file = path, _file_at(path)
        self.vocabulary = Vocabulary(path, gpu_layers=gpu_layers)
        self._context_tokens = context_tokens
        self._batch_tokens = max(question_tokens, explanations * STEP_TOKENS)
        self._prefill_tokens = min(PREFILL_TOKENS, self._batch_tokens)
        self._question_tokens = question_tokens
        self._attention = (flash_attention, kv_type)
        self._threads = threads or len(os.sched_getaffinity(0))
        params = lib.llama_context_default_params()
        params.n_seq_max = packs + explanations
        params.n_ctx = context_tokens * params.n_seq_max
        params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.type_k = params.type_v = KV_TYPES[kv_type]
        self._context = lib.llama_init_from_model(self.vocabulary.model, params)
        if not self._context:
            self.vocabulary.close()
            raise EngineError(f"no context of {params.n_ctx} tokens for {path}: {recent_complaints()}")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = Batch(self._batch_tokens)
        device = "gpu" if gpu_layers != 0 and gpu_offload() else "cpu"
        self._model = self.vocabulary.info(name, sha256, device=device)
        self._adapters = Adapters(self.vocabulary.model, self._context, self._model, path)
        self._states_dir = states_dir
        self._pack_streams = packs
        self._free_packs = list(range(packs))
        self._free_streams = list(range(packs, packs + explanations))
        self._packs: dict[str, _Resident] = {}
        self._runs: list[_Run] = []
        self._waiting: deque[_Run] = deque()
        self._last_scored: Scored | None = None

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def explaining(self) -> int:
        return len(self._runs) + len(self._waiting)

    def file_state(self) -> str:
        """What became of the model's file: the daemon keeps the one it loaded mapped.

        A file that was replaced or removed lives on for it; one that was written to does not.
        """
        found, loaded = _file_at(self._path), self._file
        if found is None or loaded is None:
            return "gone since it was loaded"
        if (found.st_dev, found.st_ino) != (loaded.st_dev, loaded.st_ino):
            return "replaced since it was loaded"
        if (found.st_size, found.st_mtime_ns) != (loaded.st_size, loaded.st_mtime_ns):
            return "written to since it was loaded"
        return "as it was loaded"

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Memory of each GPU that the library sees."""
        return device_memory()

    def close(self) -> None:
        """Free everything; safe to call twice."""
        if self._context:
            self._adapters.close()
            self._batch.close()
            lib.llama_free(self._context)
            self._context = None
            self.vocabulary.close()

    # ------------------------------------------------------------ prefixes

    def adopt(self, adapter: Adapter, path: Path, *, vouched: bool = False) -> None:
        """Open an adapter's file; those that no stream was decoded under are closed."""
        packs, runs = self._packs.values(), (*self._runs, *self._waiting)
        used = [pack.adapter for pack in packs] + [run.adapter for run in runs]
        needed = {one.sha256 for one in used if one is not None}
        self._adapters.adopt(adapter, path, vouched=vouched, needed=needed)

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        """All steps of `loading` at once."""
        return all_steps(self.loading(prefix, adapter))

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        """Make a pack's prefix resident, from its saved state if there is a sound one.

        A fresh prefix scores the golden question twice; a restored one must give the bits that were kept
        with its state.
        """
        key = resident_key(prefix.pack_sha256, adapter)
        if key in self._packs:
            return LoadedPrefix(prefix_tokens=len(self._packs[key].tokens), restored=True, golden_scores=0)
        if not self._free_packs:
            raise EngineError(f"all {len(self._packs)} pack streams are taken")
        resident = self._reside(prefix, adapter)
        self._free_packs.remove(resident.stream)
        try:
            restored = yield from self._fill(resident)
        except BaseException:
            self._free_packs.append(resident.stream)
            raise
        self._packs[key] = resident
        return LoadedPrefix(
            prefix_tokens=len(resident.tokens), restored=restored, golden_scores=1 if restored else 2
        )

    def unload(self, key: str) -> None:
        """Free a prefix's stream."""
        self._free_packs.append(self._packs.pop(key).stream)
        self._last_scored = None

    def needs(self, key: str) -> bool:
        """A running explanation has a stream of its own; one that waits copies the prefix's."""
        return any(run.pack == key for run in self._waiting)

    def _fill(self, resident: _Resident) -> Steps[bool]:
        """Restore or decode a prefix, and test it; true if it was restored."""
        state = self._state_path(resident)
        if state is not None and self._restore(resident, state):
            return True
        yield from self._prefill(resident)
        golden = self._score(resident, resident.tail, NEVER_NS)
        yield
        if self._score(resident, resident.tail, NEVER_NS) != golden:
            raise EngineError(
                "the golden question scored differently twice; this device is not fit to decide"
            )
        if state is not None:
            yield
            self._save(resident, state, golden)
        return False

    def _reside(self, prefix: PromptPrefix, adapter: Adapter | None) -> _Resident:
        tokens, tail = self.vocabulary.prompt(prefix)
        room = self._context_tokens - len(tokens) - ANSWER_TOKENS
        if room < len(tail) + 64:
            raise EngineError(
                f"the pack's prefix has {len(tokens)} tokens; a stream holds {self._context_tokens} and must "
                f"leave room for a question: raise context_tokens or shorten the pack"
            )
        labels = Trie.of({label: self.vocabulary.tokenise(label) for label in prefix.labels})
        if opening := labels.opening():
            raise EngineError(f"the label {opening!r} opens another label; the model cannot tell them apart")
        return _Resident(
            stream=self._free_packs[0],
            adapter=adapter,
            tokens=tokens,
            tail=tail,
            digest=hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest(),
            labels=labels,
            ride=max((path for path, _ in labels.branches()), key=len, default=()),
            names=prefix.labels,
            head=prefix.question_head,
        )

    def _prefill(self, resident: _Resident) -> Steps[None]:
        lib.llama_memory_seq_rm(self._memory, resident.stream, -1, -1)
        for start in range(0, len(resident.tokens), self._prefill_tokens):
            self._batch.clear()
            chunk = resident.tokens[start : start + self._prefill_tokens]
            self._batch.add(chunk, start, resident.stream)
            self._decode(resident.adapter)
            yield

    def _state_path(self, resident: _Resident) -> Path | None:
        """Where this prefix's state is kept: its name is a digest of everything it depends on."""
        if self._states_dir is None:
            return None
        key = "\0".join(
            (
                self._model.sha256,
                self._model.build,
                self._model.device,
                str((self._context_tokens, self._batch_tokens, self._prefill_tokens)),
                str((self._threads, self._attention)),
                resident.adapter.key if resident.adapter else "",
                resident.digest,
            )
        )
        return self._states_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.state"

    def _restore(self, resident: _Resident, path: Path) -> bool:
        """Load the state at `path`; False, with a notice, if it is not what was saved."""
        try:
            kept = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=_StateRecord)
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("prefix state %s cannot be read: %s: rebuilt", path, error)
            return False
        if found != kept.sha256:
            log.warning("prefix state %s is damaged: sha256 %s, not %s: rebuilt", path, found, kept.sha256)
            return False
        count = ctypes.c_size_t(0)
        buffer = (lib.llama_token * len(resident.tokens))()
        read = lib.llama_state_seq_load_file(
            self._context, os.fsencode(path), resident.stream, buffer, len(buffer), ctypes.byref(count)
        )
        if read == 0 or list(buffer[: count.value]) != resident.tokens:
            log.warning("prefix state %s does not fit this model: rebuilt", path)
            return False
        if self._score(resident, resident.tail, NEVER_NS) != kept.golden:
            log.warning("prefix state %s does not score as it did when it was saved: rebuilt", path)
            return False
        return True

    def _save(self, resident: _Resident, path: Path, golden: dict[str, list[float]]) -> None:
        """Keep the state for the next start; failing to is no error, only a slower start."""
        tokens = (lib.llama_token * len(resident.tokens))(*resident.tokens)
        partial = path.with_suffix(f".{os.getpid()}.part")
        lib.llama_memory_seq_rm(self._memory, resident.stream, len(resident.tokens), -1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not lib.llama_state_seq_save_file(
                self._context, os.fsencode(partial), resident.stream, tokens, len(tokens)
            ):
                raise OSError("llama.cpp could not write it")
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            path.with_suffix(".json").write_bytes(
                msgspec.json.encode(_StateRecord(sha256=digest, golden=golden))
            )
            partial.replace(path)
            self._forget_old_states(path.parent)
        except OSError as error:
            log.warning("prefix state %s is not kept: %s", path, error)
            with contextlib.suppress(OSError):
                partial.unlink()

    def _forget_old_states(self, directory: Path) -> None:
        """Each edit of a pack, each adapter and scale leaves a state: keep the newest two a stream."""
        states = sorted(directory.glob("*.state"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in states[2 * self._pack_streams :]:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)

    # ------------------------------------------------------------ decisions

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        """One decode of the question; tokens that several labels share ride along in it."""
        started_ns = time.monotonic_ns()
        if started_ns >= deadline_ns:
            raise DeadlineExceeded("the deadline passed before the question was read")
        pack = self._packs.get(key)
        if pack is None:
            raise EngineError(f"the pack {key} is not loaded")
        start = len(pack.tokens)
        suffix = self.vocabulary.tokenise(question.removeprefix(pack.head)) + pack.tail
        room = min(self._question_tokens, self._context_tokens - start - ANSWER_TOKENS) - len(pack.ride)
        if len(suffix) > room:
            raise RequestError(
                "too_large", f"request: the situation has {len(suffix)} tokens; the limit is {room}"
            )
        logits = self._score(pack, suffix, deadline_ns)
        probabilities = closed_set(pack.labels, logits)
        scored = Scored(
            label=max(pack.names, key=probabilities.__getitem__).strip(),
            probabilities={name.strip(): probabilities[name] for name in pack.names},
            logits=tuple(logit for edge_logits in logits.values() for logit in edge_logits),
            suffix_tokens=tuple(suffix),
            prefix_tokens=start,
            prefix_digest=pack.digest,
            score_ms=(time.monotonic_ns() - started_ns) / 1e6,
        )
        self._last_scored = scored
        return scored

    def _score(self, pack: _Resident, suffix: Sequence[int], deadline_ns: int) -> dict[str, list[float]]:
        """Logits of the edges at each branch of the label trie, by the path to it, in trie order."""
        start, label_at = len(pack.tokens), len(suffix) - 1
        lib.llama_memory_seq_rm(self._memory, pack.stream, start, -1)
        self._batch.clear()
        self._batch.add([*suffix, *pack.ride], start, pack.stream, logits_from=label_at)
        self._decode(pack.adapter)
        branches = list(pack.labels.branches())
        logits = {
            path: self._edge_logits(node, label_at + len(path))
            for path, node in branches
            if path == pack.ride[: len(path)]
        }
        for path, node in branches:
            if path in logits:
                continue
            if time.monotonic_ns() >= deadline_ns:
                raise DeadlineExceeded("the deadline passed while labels were scored")
            lib.llama_memory_seq_rm(self._memory, pack.stream, start + label_at + 1, -1)
            self._batch.clear()
            self._batch.add(path, start + label_at + 1, pack.stream, logits_from=len(path) - 1)
            self._decode(pack.adapter)
            logits[path] = self._edge_logits(node, len(path) - 1)
        return {path_name(path): logits[path] for path, _ in branches}

    def bare_decode_ms(self, key: str, question: str) -> float:
        """What one decode of the same tokens costs by itself, in ms: the floor under `score`."""
        pack = self._packs[key]
        suffix = self.vocabulary.tokenise(question.removeprefix(pack.head)) + pack.tail
        lib.llama_memory_seq_rm(self._memory, pack.stream, len(pack.tokens), -1)
        self._batch.clear()
        self._batch.add([*suffix, *pack.ride], len(pack.tokens), pack.stream, logits_from=len(suffix) - 1)
        started_ns = time.monotonic_ns()
        self._decode(pack.adapter)
        lib.llama_synchronize(self._context)
        return (time.monotonic_ns() - started_ns) / 1e6

    def _edge_logits(self, node: Trie, output: int) -> list[float]:
        values: list[float] = self._logits(output)[list(node.children)].tolist()
        return values

    # ------------------------------------------------------------ explanations

    def explain(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Continue `scored` in a stream of its own, or wait for one."""
        run = _Run(
            ticket=ticket,
            pack=key,
            adapter=self._packs[key].adapter,
            writing=ExplanationWriter(
                steps,
                tokenise=self.vocabulary.tokenise,
                text_of=self.vocabulary.text_of,
                ends=self.vocabulary.ends_turn,
            ),
            suffix=scored.suffix_tokens,
            deadline_ns=deadline_ns,
            started_ns=time.monotonic_ns(),
        )
        if self._free_streams and self._last_scored is scored:
            self._take_stream(run, keep=len(scored.suffix_tokens))
        else:
            self._waiting.append(run)

    def step(self) -> list[WrittenExplanation]:
        """One shared decode; fixed text is fed together with the token before it.

        A decode is done under one adapter, so explanations under another than that of the oldest one wait.
        """
        ended = [self._finish(run, truncated=True) for run in self._expire()]
        while self._waiting and self._free_streams:
            self._take_stream(self._waiting.popleft(), keep=0)
        self._batch.clear()
        outputs: list[tuple[_Run, int]] = []
        adapter = self._runs[0].adapter if self._runs else None
        for run in [run for run in self._runs if run.adapter == adapter]:
            feed, rest = run.pending[:STEP_TOKENS], run.pending[STEP_TOKENS:]
            if run.writing.done or run.position + len(feed) > self._context_tokens:
                ended.append(self._finish(run, truncated=not run.writing.done))
                continue
            last = self._batch.add(feed, run.position, run.stream, logits_from=len(feed) - 1)
            run.position += len(feed)
            run.pending = rest
            if not rest:
                outputs.append((run, last))
        if not self._batch.used:
            return ended
        self._decode(adapter)
        for run, output in outputs:
            logits, allowed = self._logits(output), run.writing.allowed()
            if allowed is None:
                token = int(np.argmax(logits))
            else:
                token = max(allowed, key=lambda candidate: logits[candidate])
            run.pending = run.writing.take(token)
            if run.writing.done:
                ended.append(self._finish(run, truncated=False))
        return ended

    def give_up(self) -> None:
        """Forget every explanation and free its stream."""
        self._waiting.clear()
        self._free_streams += [run.stream for run in self._runs]
        self._runs.clear()

    def _expire(self) -> list[_Run]:
        now = time.monotonic_ns()
        late = [run for run in (*self._runs, *self._waiting) if now >= run.deadline_ns]
        if late:
            self._waiting = deque(run for run in self._waiting if now < run.deadline_ns)
        return late

    def _take_stream(self, run: _Run, *, keep: int) -> None:
        """Copy the pack's stream for `run`: its prefix and the first `keep` tokens of its question."""
        pack = self._packs[run.pack]
        run.stream = self._free_streams.pop()
        run.position = len(pack.tokens) + keep
        run.pending = [*run.suffix[keep:], *run.writing.begin()]
        lib.llama_memory_seq_rm(self._memory, run.stream, -1, -1)
        lib.llama_memory_seq_cp(self._memory, pack.stream, run.stream, -1, -1)
        lib.llama_memory_seq_rm(self._memory, run.stream, run.position, -1)
        self._runs.append(run)

    def _finish(self, run: _Run, *, truncated: bool) -> WrittenExplanation:
        if run.stream >= 0:
            self._runs.remove(run)
            self._free_streams.append(run.stream)
        return WrittenExplanation(
            ticket=run.ticket,
            values=run.writing.values,
            text=run.writing.text,
            truncated=truncated,
            generated_tokens=run.writing.generated_tokens,
            explain_ms=(time.monotonic_ns() - run.started_ns) / 1e6,
        )

    # ------------------------------------------------------------ decoding

    def _decode(self, adapter: Adapter | None) -> None:
        """Decode the batch under what its streams were decoded under so far."""
        self._adapters.use(adapter)
        self._last_scored = None
        code = lib.llama_decode(self._context, self._batch.raw())
        if code != 0:
            raise EngineError(f"llama_decode failed with code {code}: {recent_complaints()}")

    def _logits(self, output: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits after batch token `output`: a view that lasts until the next decode."""
        pointer = lib.llama_get_logits_ith(self._context, output)
        return np.ctypeslib.as_array(pointer, (self.vocabulary.size,))


def _file_at(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
