"""Training: a low-rank adapter beside frozen weights, on two cores or a GPU.

Owns the torch model, its adapter, the order of the samples and the checkpoints. Invariant: the weights after
a step depend on the settings and the samples alone, so an interrupted run continues as if it had not been
interrupted. Main thread of a command; torch, peft and transformers are imported here and nowhere else.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from msgspec import convert, to_builtins
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, GgufConfig

from thor_policy.core.errors import TrainingError
from thor_policy.engine.explanations import Trie, closed_set, path_name
from thor_policy.learning.training.samples import Sample
from thor_policy.learning.training.settings import Point, Settings

#: The projections of a block that get an adapter: separate ones (llama) or fused ones (phi3).
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj"),
    *("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
)
#: Batches whose samples are sorted by length together, so that a batch holds samples of similar length.
_WINDOW_BATCHES = 8
#: Prompts in one forward pass without gradients.
_READ_BATCH = 16
#: Settings of the C library's allocator (malloc.h), with values that make it keep freed memory.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEEP_FREED = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**28))


class Learner:
    """A model file with an adapter beside its weights.

    It runs on a GPU if there is one, else on `threads` cores (0: all). Raises OSError if the file cannot be
    read.
    """

    def __init__(self, path: Path, settings: Settings, *, threads: int = 0) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(self.threads)
        _keep_freed_memory()
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        transformers.utils.logging.disable_progress_bar()  # it prints a line for each tensor
        base = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.bfloat16,
            attn_implementation="eager",  # a quarter faster than fused attention on two cores in bfloat16
            pad_token_id=0,  # any id: no token reads padding; a default may exceed a small vocabulary
            quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
        )
        base.config.use_cache = False
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=int(settings.alpha),
            lora_dropout=settings.dropout,
            target_modules=list(TARGETS),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of the model
            self.model: Any = get_peft_model(base, config).to(self.device)
        self.shape = base.config
        #: The name in GGUF files, which for these architectures is that of transformers.
        self.architecture = str(base.config.model_type)

    # ------------------------------------------------------------ reading

    def _hidden(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The last block's output for each token: (rows, longest, width). Rows are padded at the end."""
        longest = max(map(len, rows))
        tokens = torch.zeros((len(rows), longest), dtype=torch.long)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.model.base_model.model.model(input_ids=tokens.to(self.device)).last_hidden_state

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.model.base_model.model.lm_head(hidden).float()

    def read(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[Mapping[str, Sequence[int]]]
    ) -> list[dict[str, float]]:
        """The probability of each label after each prompt, derived as in the daemon.

        `labels` holds the tokens of each label, one mapping a prompt.
        """
        self.model.eval()
        probabilities: list[dict[str, float]] = [{} for _ in prompts]
        tries = [Trie.of(tokens_of) for tokens_of in labels]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        with torch.inference_mode():
            for start in range(0, len(order), _READ_BATCH):
                rows: list[list[int]] = []
                places: list[tuple[int, int, int, tuple[int, ...], Trie]] = []  # row, place, prompt, branch
                for number in order[start : start + _READ_BATCH]:
                    row_of: dict[tuple[int, ...], int] = {}
                    branches = sorted(tries[number].branches(), key=lambda branch: -len(branch[0]))
                    for path, node in branches:
                        row = next((row_of[longer] for longer in row_of if longer[: len(path)] == path), None)
                        if row is None:
                            row = row_of[path] = len(rows)
                            rows.append([*prompts[number], *path])
                        places.append((row, len(prompts[number]) + len(path) - 1, number, path, node))
                hidden = self._hidden(rows)
                at = torch.tensor([place[:2] for place in places], device=self.device)
                logits = self._logits(hidden[at[:, 0], at[:, 1]]).cpu()
                edges: dict[int, dict[str, list[float]]] = defaultdict(dict)
                for index, (_, _, number, path, node) in enumerate(places):
                    edges[number][path_name(path)] = logits[index, list(node.children)].tolist()
                for number, logits_of in edges.items():
                    probabilities[number] = closed_set(tries[number], logits_of)
        return probabilities

    # ------------------------------------------------------------ learning

    def fit(
        self,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        labels: Mapping[str, Mapping[str, Sequence[int]]],
        *,
        folder: Path,
        training: str,
        advance: Callable[[int, int, float], None] = lambda *_: None,
        checked: Callable[[Point], None] = lambda _: None,
    ) -> list[Point]:
        """Train on `samples`, and keep the weights that decide `held_out` best; returns the curve.

        `labels` are tokens by pack and label. Checkpoints are written to `folder`; a run continues from a
        checkpoint there that has the same settings and `training` set (its digest). `advance` is called after
        each step with step, steps and loss (nats), `checked` with each new point of the curve. Raises
        TrainingError if the checkpoint there has other settings or cases.
        """
        settings, model = self.settings, self.model
        steps = math.ceil(len(samples) * settings.epochs / settings.batch_size)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.0)
        warm_up = max(1, int(steps * settings.warm_up_share))

        def rate(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        tries = {pack: Trie.of(tokens_of) for pack, tokens_of in labels.items()}
        state = self._resume(folder, optimiser, schedule, training)
        points: list[Point] = state["points"]
        began = time.monotonic() - state["seconds"]
        totals: defaultdict[str, float] = defaultdict(float)
        last = min(steps, settings.stop_after or steps)
        for step, batch in enumerate(self._batches(samples, last)):
            if step < state["step"]:
                continue
            model.train()
            torch.manual_seed(settings.seed * 1_000_003 + step)
            label_loss, rest_loss = self._losses(batch, tries)
            (label_loss + settings.rest_weight * rest_loss).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            totals["steps"] += 1
            totals["label"] += label_loss.item()
            totals["rest"] += rest_loss.item()
            advance(step + 1, steps, label_loss.item())
            if (step + 1) % settings.check_every and step + 1 != last:
                continue
            loss, accuracy = self._evaluate(held_out, labels)
            points.append(
                Point(
                    step=step + 1,
                    steps=steps,
                    seconds=time.monotonic() - began,
                    label_loss=totals["label"] / totals["steps"],
                    rest_loss=totals["rest"] / totals["steps"],
                    held_out_loss=loss,
                    held_out_accuracy=accuracy,
                )
            )
            totals.clear()
            checked(points[-1])
            self._save_checkpoint(folder, optimiser, schedule, points, step + 1, training)
            best = max(range(len(points)), key=lambda number: points[number].merit)
            if len(points) - 1 - best >= settings.patience:
                break
        self._load(folder / "best.pt")
        return points

    def _batches(self, samples: Sequence[Sample], steps: int) -> Iterator[list[Sample]]:
        """`steps` batches; each epoch takes every sample once, in an order of its own."""
        size, made, epoch = self.settings.batch_size, 0, 0
        while made < steps:
            generator = random.Random(self.settings.seed * 7_919 + epoch)  # noqa: S311  an order, no secret
            order = list(samples)
            generator.shuffle(order)
            window = size * _WINDOW_BATCHES
            batches = []
            for start in range(0, len(order), window):
                by_length = sorted(order[start : start + window], key=len)
                batches += [by_length[place : place + size] for place in range(0, len(by_length), size)]
            generator.shuffle(batches)
            for batch in batches[: steps - made]:
                yield batch
                made += 1
            epoch += 1

    def _losses(
        self, batch: Sequence[Sample], tries: Mapping[str, Trie]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss of the labels, each among the closed list, and of the graded tokens after them."""
        hidden = self._hidden([[*sample.prompt, *sample.label, *sample.rest] for sample in batch])
        choices: list[tuple[int, int, list[int], int]] = []  # row, place, allowed tokens, the right one
        words: list[tuple[int, int, int]] = []  # row, place, token
        for row, sample in enumerate(batch):
            node, place = tries[sample.case.pack], len(sample.prompt) - 1
            for token in sample.label:
                if len(node.children) > 1:
                    among = list(node.children)
                    choices.append((row, place, among, among.index(token)))
                node, place = node.children[token], place + 1
            words += [
                (row, place + number, token)
                for number, (token, graded) in enumerate(zip(sample.rest, sample.graded, strict=True))
                if graded
            ]
        rows = torch.tensor([row for row, *_ in (*choices, *words)], device=self.device)
        places = torch.tensor([place for _, place, *_ in (*choices, *words)], device=self.device)
        logits = self._logits(hidden[rows, places])
        label_loss = torch.zeros((), device=self.device)
        for number, (_, _, among, right) in enumerate(choices):
            label_loss = label_loss - torch.log_softmax(logits[number, among], 0)[right]
        rest_loss = torch.zeros((), device=self.device)
        if words:
            targets = torch.tensor([token for _, _, token in words], device=self.device)
            rest_loss = torch.nn.functional.cross_entropy(logits[len(choices) :], targets)
        return label_loss / len(batch), rest_loss

    def _evaluate(
        self, held_out: Sequence[Sample], labels: Mapping[str, Mapping[str, Sequence[int]]]
    ) -> tuple[float, float]:
        """Mean loss and balanced accuracy (over outcomes of each pack) of the labels of held-out samples."""
        read = self.read(
            [sample.prompt for sample in held_out], [labels[sample.case.pack] for sample in held_out]
        )
        loss, right = 0.0, defaultdict(list)
        for sample, probabilities in zip(held_out, read, strict=True):
            case = sample.case
            loss -= math.log(max(probabilities[case.outcome], 1e-9))
            best = max(probabilities, key=probabilities.__getitem__)
            right[case.pack, case.outcome].append(best == case.outcome)
        shares = [sum(group) / len(group) for group in right.values()]
        return loss / max(1, len(held_out)), sum(shares) / max(1, len(shares))

    # ------------------------------------------------------------ checkpoints

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter's tensors by peft's names, float32 on the CPU."""
        state: dict[str, torch.Tensor] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in state.items()}

    def start_from(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set the initial weights; names and shapes are those of `weights()`."""
        state = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
        set_peft_model_state_dict(self.model, state)

    def go_back(self, initial: Mapping[str, torch.Tensor], share: float) -> None:
        """Set the weights that lie `share` of the way from `initial` to the present ones."""
        state = {name: torch.lerp(initial[name], now, share) for name, now in self.weights().items()}
        set_peft_model_state_dict(self.model, state)

    def _save_checkpoint(
        self, folder: Path, optimiser: Any, schedule: Any, points: list[Point], step: int, training: str
    ) -> None:
        """Write `last.pt`, and `best.pt` if the last point is the best."""
        folder.mkdir(parents=True, exist_ok=True)
        if points[-1].merit >= max(point.merit for point in points):
            _save({"weights": self.weights()}, folder / "best.pt")
        _save(
            {
                "settings": to_builtins(self.settings),
                "training": training,
                "weights": self.weights(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
                "points": to_builtins(points),
                "step": step,
                "seconds": points[-1].seconds,
            },
            folder / "last.pt",
        )

    def _resume(self, folder: Path, optimiser: Any, schedule: Any, training: str) -> dict[str, Any]:
        """Load `last.pt`, if it is there. Raises TrainingError if it has other settings or cases."""
        path = folder / "last.pt"
        if not path.is_file():
            return {"step": 0, "points": [], "seconds": 0.0}
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if (state["settings"], state["training"]) != (to_builtins(self.settings), training):
            raise TrainingError(
                f"{path} is of a run with other settings or cases: name another folder, or delete it"
            )
        set_peft_model_state_dict(self.model, state["weights"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        return {**state, "points": convert(state["points"], list[Point])}

    def _load(self, path: Path) -> None:
        set_peft_model_state_dict(self.model, torch.load(path, weights_only=True)["weights"])


def _keep_freed_memory() -> None:
    """Keep freed memory: each step allocates large tensors, and fresh pages cost more than the arithmetic."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:  # glibc's
        for setting, value in _KEEP_FREED:
            mallopt(setting, value)


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a new file, then rename it: an interrupted run leaves the older checkpoint intact."""
    beside = path.with_suffix(".new")
    torch.save(state, beside)
    beside.replace(path)
