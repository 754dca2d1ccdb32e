"""The in-process engine: a GGUF model that llama.cpp scores and explains with.

Owns the model, its single context and every stream in it. Invariant: a decision is decoded alone, in its
pack's own stream, from the same position, in one call; only explanations share batches. So the same tokens
give the same bits whatever else is running. Engine thread; another thread may have created the engine.

Streams 0 .. packs-1 hold pack prefixes; each other stream holds one running explanation. `kv_unified=False`
gives each stream its own memory, so streams cannot change each other's logits. The last scored question
follows a prefix in its stream; the next question replaces it. A stream is decoded under one adapter, or none,
as long as it holds the same prefix; prefixes under different adapters can be resident at the same time.
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
from thor_policy.core.requests import NEVER_NS
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
    recent_warnings,
)
from thor_policy.security import files

log = logging.getLogger(__name__)

#: Tokens that one explanation may feed in one step: bounds how long a decision can wait.
STEP_TOKENS = 64
#: The same for a text of idle time: less, since it may keep any decision waiting.
IDLE_STEP_TOKENS = 16
#: Tokens of a prefix that are decoded at once: bounds how long a decision can wait while a pack is loaded.
#: Another size may give other bits, so every prefix is decoded in pieces of this size.
PREFILL_TOKENS = 128
#: Tokens reserved after a question for its explanation.
ANSWER_TOKENS = 192


class _StateRecord(Struct, frozen=True):
    """The record beside a saved prefix state: its digest, and the logits of the golden question."""

    sha256: str
    golden: dict[str, list[float]]


@dataclass
class _Resident:
    """A pack's prefix in its stream, decoded under `adapter`.

    `tail` are the tokens between a question and its label. `shared_path` are label tokens that are decoded
    together with the question: the longest path in `trie` to a branch.
    """

    stream: int
    adapter: Adapter | None
    tokens: list[int]
    tail: list[int]
    digest: str
    trie: Trie
    shared_path: tuple[int, ...]
    labels: tuple[str, ...]
    question_head: str


@dataclass
class _Run:
    """An explanation: waiting for a stream (`stream` is -1), or running in one at `position`."""

    ticket: int
    pack: str
    adapter: Adapter | None
    writer: ExplanationWriter
    suffix: tuple[int, ...]
    deadline_ns: int
    started_ns: int
    stream: int = -1
    position: int = 0
    pending: list[int] = field(default_factory=list)


class LlamaEngine:
    """A GGUF model in this process.

    `context_tokens` is the length of each stream; `packs` and `explanations` count the streams, and
    `enriches` adds one for texts of idle time. Prefix states are saved in `states_dir` (None: not saved).
    Raises EngineError if the model cannot be loaded.
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
        enriches: bool = False,
        threads: int = 0,
        gpu_layers: int = -1,
        flash_attention: str = "auto",
        kv_type: str = "f16",
        states_dir: Path | None = None,
    ) -> None:
        self._path, self._loaded_stat = path, _stat(path)
        self.vocabulary = Vocabulary(path, gpu_layers=gpu_layers)
        self._context_tokens = context_tokens
        self._batch_tokens = max(question_tokens, explanations * STEP_TOKENS)
        self._prefill_tokens = min(PREFILL_TOKENS, self._batch_tokens)
        self._question_tokens = question_tokens
        self._attention = (flash_attention, kv_type)
        self._threads = threads or len(os.sched_getaffinity(0))
        params = lib.llama_context_default_params()
        params.n_seq_max = packs + explanations + enriches
        params.n_ctx = context_tokens * params.n_seq_max
        params.n_batch = params.n_ubatch = self._batch_tokens
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False
        params.flash_attn_type = FLASH_ATTENTION[flash_attention]
        params.type_k = params.type_v = KV_TYPES[kv_type]
        self._context = lib.llama_init_from_model(self.vocabulary.model, params)
        if not self._context:
            self.vocabulary.close()
            raise EngineError(
                f"llama.cpp cannot create a context of {params.n_ctx} tokens for {path}: lower "
                f"context_tokens or parallel_explanations ({recent_warnings()})"
            )
        self._memory = lib.llama_get_memory(self._context)
        self._batch = Batch(self._batch_tokens)
        device = "gpu" if gpu_layers != 0 and gpu_offload() else "cpu"
        self._model = self.vocabulary.info(name, sha256, device=device)
        self._adapters = Adapters(self.vocabulary.model, self._context, self._model, path)
        self._states_dir = states_dir
        self._pack_streams = packs
        self._free_packs = list(range(packs))
        self._free_streams = list(range(packs, packs + explanations))
        self._idle_stream = packs + explanations if enriches else -1
        self._idle_run: _Run | None = None
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
        """Whether the model's file has changed since it was loaded.

        The loaded file stays mapped. Removing or replacing it changes nothing for this process; writing to
        it changes the model in use.
        """
        current, loaded = _stat(self._path), self._loaded_stat
        if current is None or loaded is None:
            return "gone since it was loaded"
        if (current.st_dev, current.st_ino) != (loaded.st_dev, loaded.st_ino):
            return "replaced since it was loaded"
        if (current.st_size, current.st_mtime_ns) != (loaded.st_size, loaded.st_mtime_ns):
            return "written to since it was loaded"
        return "as it was loaded"

    def memory(self) -> tuple[DeviceMemory, ...]:
        """Memory of each GPU that llama.cpp sees."""
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
        """Open an adapter's file, and close the adapters that no stream uses."""
        packs, idle = self._packs.values(), [self._idle_run] if self._idle_run else []
        runs = (*self._runs, *self._waiting, *idle)
        used = [pack.adapter for pack in packs] + [run.adapter for run in runs]
        needed = {used_adapter.sha256 for used_adapter in used if used_adapter is not None}
        self._adapters.adopt(adapter, path, vouched=vouched, needed=needed)

    def load(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> LoadedPrefix:
        """All steps of `loading` at once."""
        return all_steps(self.loading(prefix, adapter))

    def loading(self, prefix: PromptPrefix, adapter: Adapter | None = None) -> Steps[LoadedPrefix]:
        """Make a pack's prefix resident: from its saved state if that is intact, else by decoding it.

        After a decode the golden question must get the same bits twice; after a restore it must get the bits
        that were saved with the state.
        """
        key = resident_key(prefix.pack_sha256, adapter)
        if key in self._packs:
            return LoadedPrefix(prefix_tokens=len(self._packs[key].tokens), restored=True, golden_scores=0)
        if not self._free_packs:
            raise EngineError(
                f"all {len(self._packs)} pack streams are in use: unload a pack, or raise resident_packs"
            )
        resident = self._plan(prefix, adapter)
        self._free_packs.remove(resident.stream)
        try:
            restored = yield from self._restore_or_prefill(resident)
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
        """True if a waiting explanation will copy the prefix's stream; a running one has its own."""
        return any(run.pack == key for run in self._waiting)

    def _restore_or_prefill(self, resident: _Resident) -> Steps[bool]:
        """Restore or decode a prefix, and test it; True if it was restored."""
        state = self._state_path(resident)
        if state is not None and self._restore(resident, state):
            return True
        yield from self._prefill(resident)
        golden = self._score(resident, resident.tail, NEVER_NS)
        yield
        if self._score(resident, resident.tail, NEVER_NS) != golden:
            raise EngineError(
                "the golden question got different scores in two runs, so this device cannot decide "
                "reliably; choose another (gpu_layers = 0 is the CPU)"
            )
        if state is not None:
            yield
            self._save(resident, state, golden)
        return False

    def _plan(self, prefix: PromptPrefix, adapter: Adapter | None) -> _Resident:
        """The tokens and the stream of a prefix. Raises EngineError if it does not fit, or a label is bad."""
        tokens, tail = self.vocabulary.prompt(prefix)
        room = self._context_tokens - len(tokens) - ANSWER_TOKENS
        if room < len(tail) + 64:
            raise EngineError(
                f"the pack's prefix has {len(tokens)} tokens, which leaves too few of {self._context_tokens} "
                "for a question: raise context_tokens or shorten the pack"
            )
        trie = Trie.of({label: self.vocabulary.tokenise(label) for label in prefix.labels})
        if label := trie.first_prefix():
            raise EngineError(
                f"another label begins with the label {label!r}, so the model cannot tell them apart: rename "
                "one of them"
            )
        return _Resident(
            stream=self._free_packs[0],
            adapter=adapter,
            tokens=tokens,
            tail=tail,
            digest=hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest(),
            trie=trie,
            shared_path=max((path for path, _ in trie.branches()), key=len, default=()),
            labels=prefix.labels,
            question_head=prefix.question_head,
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
        """The file of this prefix's saved state; its name is a digest of everything the state depends on."""
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
        """Load the saved state at `path`; False, with a warning, if it is not what was saved."""
        try:
            record = msgspec.json.decode(files.read_own(path.with_suffix(".json")), type=_StateRecord)
            with os.fdopen(files.open_own(path, os.O_RDONLY), "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            log.warning("the prefix state %s cannot be read and is rebuilt: %s", path, error)
            return False
        if sha256 != record.sha256:
            log.warning(
                "the prefix state %s is damaged and is rebuilt: expected sha256 %s, found %s",
                path, record.sha256, sha256,
            )  # fmt: skip
            return False
        count = ctypes.c_size_t(0)
        buffer = (lib.llama_token * len(resident.tokens))()
        read = lib.llama_state_seq_load_file(
            self._context, os.fsencode(path), resident.stream, buffer, len(buffer), ctypes.byref(count)
        )
        if read == 0 or list(buffer[: count.value]) != resident.tokens:
            log.warning("the prefix state %s does not fit this model and is rebuilt", path)
            return False
        if self._score(resident, resident.tail, NEVER_NS) != record.golden:
            log.warning("the prefix state %s gives other scores than when it was saved and is rebuilt", path)
            return False
        return True

    def _save(self, resident: _Resident, path: Path, golden: dict[str, list[float]]) -> None:
        """Save the state for the next start; a failure is logged and only makes the next start slower."""
        tokens = (lib.llama_token * len(resident.tokens))(*resident.tokens)
        partial = path.with_suffix(f".{os.getpid()}.part")
        lib.llama_memory_seq_rm(self._memory, resident.stream, len(resident.tokens), -1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            files.check_directory(path.parent)
            partial.unlink(missing_ok=True)
            os.close(files.open_own(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
            if not lib.llama_state_seq_save_file(
                self._context, os.fsencode(partial), resident.stream, tokens, len(tokens)
            ):
                raise OSError("llama.cpp could not write it")
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            content = msgspec.json.encode(_StateRecord(sha256=digest, golden=golden))
            files.place(path.with_suffix(".json"), content, 0o640, over=True)
            partial.replace(path)
            self._delete_old_states(path.parent)
        except (OSError, ValueError) as error:
            log.warning("the prefix state %s cannot be saved, so the next start is slower: %s", path, error)
            with contextlib.suppress(OSError):
                partial.unlink()

    def _delete_old_states(self, directory: Path) -> None:
        """Delete all but the newest two per stream: each edit of a pack, adapter and scale leaves one."""
        states = sorted(directory.glob("*.state"), key=lambda path: path.lstat().st_mtime_ns, reverse=True)
        for path in states[2 * self._pack_streams :]:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)

    # ------------------------------------------------------------ decisions

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        """Score the labels in one decode of the question and of tokens that several labels share."""
        started_ns = time.monotonic_ns()
        if started_ns >= deadline_ns:
            raise DeadlineExceeded("the deadline passed before the question was read")
        pack = self._packs.get(key)
        if pack is None:
            raise EngineError(f"the pack {key} is not loaded")
        start = len(pack.tokens)
        suffix = self._suffix(pack, question)
        room = min(self._question_tokens, self._context_tokens - start - ANSWER_TOKENS)
        room -= len(pack.shared_path)
        if len(suffix) > room:
            raise RequestError(
                "too_large", f"request: the situation has {len(suffix)} tokens; the limit is {room}"
            )
        logits = self._score(pack, suffix, deadline_ns)
        probabilities = closed_set(pack.trie, logits)
        scored = Scored(
            label=max(pack.labels, key=probabilities.__getitem__).strip(),
            probabilities={label.strip(): probabilities[label] for label in pack.labels},
            logits=tuple(logit for edge_logits in logits.values() for logit in edge_logits),
            suffix_tokens=tuple(suffix),
            prefix_tokens=start,
            prefix_digest=pack.digest,
            score_ms=(time.monotonic_ns() - started_ns) / 1e6,
        )
        self._last_scored = scored
        return scored

    def _suffix(self, pack: _Resident, question: str) -> list[int]:
        """Tokens of a question and of what follows it up to the label."""
        return self.vocabulary.tokenise(question.removeprefix(pack.question_head)) + pack.tail

    def _score(self, pack: _Resident, suffix: Sequence[int], deadline_ns: int) -> dict[str, list[float]]:
        """Logits of the edges at each branch of the label trie, by the path to the branch, in trie order."""
        start, label_at = len(pack.tokens), len(suffix) - 1
        lib.llama_memory_seq_rm(self._memory, pack.stream, start, -1)
        self._batch.clear()
        self._batch.add([*suffix, *pack.shared_path], start, pack.stream, logits_from=label_at)
        self._decode(pack.adapter)
        branches = list(pack.trie.branches())
        logits = {
            path: self._edge_logits(node, label_at + len(path))
            for path, node in branches
            if path == pack.shared_path[: len(path)]
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
        """Milliseconds of one decode of the same tokens: the floor under `score`."""
        pack = self._packs[key]
        suffix = self._suffix(pack, question)
        start = len(pack.tokens)
        lib.llama_memory_seq_rm(self._memory, pack.stream, start, -1)
        self._batch.clear()
        self._batch.add([*suffix, *pack.shared_path], start, pack.stream, logits_from=len(suffix) - 1)
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
        """Continue `scored` in a free stream, or wait until one is free."""
        run = self._run_of(ticket, key, scored, steps, deadline_ns)
        if self._free_streams and self._last_scored is scored:
            self._take_stream(run, keep=len(scored.suffix_tokens))
        else:
            self._waiting.append(run)

    def enrich(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> None:
        """Begin a text of idle time in the stream that is kept for it."""
        if self._idle_stream < 0:
            raise EngineError("this engine has no stream for texts of idle time (setting enrichment)")
        self._idle_run = run = self._run_of(ticket, key, scored, steps, deadline_ns)
        keep = len(scored.suffix_tokens) if self._last_scored is scored else 0
        self._copy_prefix(run, self._idle_stream, keep=keep)

    def enrich_step(self) -> WrittenExplanation | None:
        """Advance the text of idle time by one decode of at most `IDLE_STEP_TOKENS` tokens."""
        run = self._idle_run
        if run is None:
            return None
        late = time.monotonic_ns() >= run.deadline_ns
        written = self._finish(run, truncated=True) if late else next(iter(self._advance([run])), None)
        if written is not None:
            self._idle_run = None
        return written

    def _run_of(
        self, ticket: int, key: str, scored: Scored, steps: tuple[Step, ...], deadline_ns: int
    ) -> _Run:
        writer = ExplanationWriter(
            steps,
            tokenise=self.vocabulary.tokenise,
            text_of=self.vocabulary.text_of,
            ends=self.vocabulary.ends_turn,
        )
        return _Run(
            ticket=ticket,
            pack=key,
            adapter=self._packs[key].adapter,
            writer=writer,
            suffix=scored.suffix_tokens,
            deadline_ns=deadline_ns,
            started_ns=time.monotonic_ns(),
        )

    def step(self) -> list[WrittenExplanation]:
        """Advance all explanations by one shared decode; fixed text is fed with the token before it.

        A decode uses one adapter: that of the oldest explanation. Explanations under another adapter wait.
        """
        ended = [self._finish(run, truncated=True) for run in self._expire()]
        while self._waiting and self._free_streams:
            self._take_stream(self._waiting.popleft(), keep=0)
        adapter = self._runs[0].adapter if self._runs else None
        ended += self._advance([run for run in self._runs if run.adapter == adapter])
        return ended

    def _advance(self, runs: Sequence[_Run]) -> list[WrittenExplanation]:
        """Advance runs under one adapter by one shared decode; returns those that ended."""
        ended: list[WrittenExplanation] = []
        self._batch.clear()
        outputs: list[tuple[_Run, int]] = []
        for run in runs:
            most = IDLE_STEP_TOKENS if run is self._idle_run else STEP_TOKENS
            feed, rest = run.pending[:most], run.pending[most:]
            if run.writer.done or run.position + len(feed) > self._context_tokens:
                ended.append(self._finish(run, truncated=not run.writer.done))
                continue
            last = self._batch.add(feed, run.position, run.stream, logits_from=len(feed) - 1)
            run.position += len(feed)
            run.pending = rest
            if not rest:
                outputs.append((run, last))
        if not self._batch.used:
            return ended
        self._decode(runs[0].adapter)
        for run, output in outputs:
            logits, allowed = self._logits(output), run.writer.allowed()
            if allowed is None:
                token = int(np.argmax(logits))
            else:
                token = max(allowed, key=lambda candidate: logits[candidate])
            run.pending = run.writer.take(token)
            if run.writer.done:
                ended.append(self._finish(run, truncated=False))
        return ended

    def give_up(self) -> None:
        """Forget every explanation and free its stream, and the text of idle time."""
        self._idle_run = None
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
        """Give `run` a free stream: its prefix and the first `keep` tokens of its question."""
        self._copy_prefix(run, self._free_streams.pop(), keep=keep)
        self._runs.append(run)

    def _copy_prefix(self, run: _Run, stream: int, *, keep: int) -> None:
        pack = self._packs[run.pack]
        run.stream = stream
        run.position = len(pack.tokens) + keep
        run.pending = [*run.suffix[keep:], *run.writer.begin()]
        lib.llama_memory_seq_rm(self._memory, run.stream, -1, -1)
        lib.llama_memory_seq_cp(self._memory, pack.stream, run.stream, -1, -1)
        lib.llama_memory_seq_rm(self._memory, run.stream, run.position, -1)

    def _finish(self, run: _Run, *, truncated: bool) -> WrittenExplanation:
        if run.stream >= 0 and run is not self._idle_run:
            self._runs.remove(run)
            self._free_streams.append(run.stream)
        return WrittenExplanation(
            ticket=run.ticket,
            values=run.writer.values,
            text=run.writer.text,
            truncated=truncated,
            generated_tokens=run.writer.generated_tokens,
            explain_ms=(time.monotonic_ns() - run.started_ns) / 1e6,
        )

    # ------------------------------------------------------------ decoding

    def _decode(self, adapter: Adapter | None) -> None:
        """Decode the batch under `adapter`, which must be the adapter of all its streams."""
        self._adapters.use(adapter)
        self._last_scored = None
        code = lib.llama_decode(self._context, self._batch.raw())
        if code != 0:
            raise EngineError(f"llama_decode failed with code {code}: {recent_warnings()}")

    def _logits(self, output: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits after batch token `output`, as a view that is valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self._context, output)
        return np.ctypeslib.as_array(pointer, (self.vocabulary.size,))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
