"""What people use instead: llama-server and llama-cpp-python's chat completion, on the same questions.

Owns the `peers` measurement. Invariant: all get the same model file, threads and prompt; one decision is
measured in turn, question by question. Main thread, and a pool of clients for the explained run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
from msgspec import Struct

from thor_policy import catalog
from thor_policy.bench.children import chat_completion, daemon, llama_server, own_place
from thor_policy.bench.figures import Rate, Report, Series, ratio
from thor_policy.bench.runs import Advance, for_the_model, plain
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Evaluation, Json
from thor_policy.daemon import loading
from thor_policy.engine.native import Vocabulary, build_name
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: Tokens of free text in an explanation of ours; the peer then gets as many characters as ours had.
REASON_TOKENS = 24
#: Explained questions per client.
EXPLAINED_EACH = 4


class Prompt(Struct, frozen=True):
    """Token ids of one question: up to the label, and up to the model's turn."""

    scored: list[int]
    bare: list[int]


def peers(
    config: Config,
    evaluations: Sequence[Evaluation],
    *,
    rounds: int,
    server: Path,
    clients: int = 16,
    advance: Advance,
) -> Report:
    """One decision by each in turn; then explained ones by `clients` at once. `server` is llama-server."""
    pack = loading.load_pack(config)
    asked = for_the_model(pack, evaluations)
    model = catalog.resolve(config.model, config.models_dir).path
    vocabulary = Vocabulary(model, vocab_only=True)
    prompts = [_prompt(vocabulary, pack, one) for one in asked]
    threads = config.threads or len(os.sched_getaffinity(0))
    schema = _schema(pack)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(own_place(config))
        stack.enter_context(daemon(place))
        client = stack.enter_context(Client(place.endpoint, timeout_ms=60_000))
        context = config.context_tokens
        http = stack.enter_context(llama_server(server, model, threads, slots=1, context=context))
        chat = stack.enter_context(chat_completion(model, threads, context=context))
        ways: dict[str, Callable[[int], object]] = {
            "ours": lambda n: client.evaluate(plain(asked[n])),
            "llama-server, one token": lambda n: _complete(http, prompts[n].scored, 1),
            "llama-server, JSON schema": lambda n: _complete(http, prompts[n].bare, 48, schema),
            "llama-cpp-python, JSON chat": lambda n: chat(_messages(pack, asked[n]), schema),
        }
        times = _in_turn(ways, len(asked), rounds, advance)
    by_name = {name: Series(name=name, ms=tuple(ms)) for name, ms in times.items()}
    ours = by_name["ours"]
    ratios = (
        ratio(ours, by_name["llama-server, one token"], bound="at most 1.05"),
        ratio(ours, by_name["llama-server, JSON schema"]),
        ratio(ours, by_name["llama-cpp-python, JSON chat"], bound="at most 0.35 on a CPU"),
    )
    open_ended = [
        (one, prompt)
        for one, prompt in zip(asked, prompts, strict=True)
        if not pack.book.apply(one, time.time()).because
    ]
    rates, facts = _explained(config, pack, open_ended, server, clients)
    return Report(
        name="peers",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model, "threads": str(threads)},
        questions=len(asked),
        rounds=rounds,
        series=tuple(by_name.values()),
        ratios=ratios,
        rates=rates,
        facts=facts,
    )


def _in_turn(
    ways: dict[str, Callable[[int], object]], questions: int, rounds: int, advance: Advance
) -> dict[str, list[float]]:
    """Milliseconds of each way for each question and round, paired by both.

    The ways alternate, but are always at different questions: a peer that was asked the same one just
    before would find it in its cache.
    """
    order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
    times = {name: [0.0] * (questions * rounds) for name in ways}
    for round_number in range(-1, rounds):  # round -1, of a few, fills every cache
        shuffled_questions = list(range(questions))
        order.shuffle(shuffled_questions)
        for turn in range(3 if round_number < 0 else questions):
            names = list(ways)
            order.shuffle(names)
            for name in names:
                shift = list(ways).index(name) * questions // len(ways)
                number = shuffled_questions[(turn + shift) % questions]
                started_ns = time.monotonic_ns()
                ways[name](number)
                if round_number >= 0:
                    took_ms = (time.monotonic_ns() - started_ns) / 1e6
                    times[name][round_number * questions + number] = took_ms
            advance()
    return times


def _explained(
    config: Config,
    pack: Pack,
    asked: Sequence[tuple[Evaluation, Prompt]],
    server: Path,
    clients: int,
) -> tuple[tuple[Rate, ...], dict[str, float]]:
    """Explained decisions per second by `clients` clients, where no rule states the reason.

    How much free text each side wrote is told beside.
    """
    total = clients * EXPLAINED_EACH
    model = catalog.resolve(config.model, config.models_dir).path
    threads = config.threads or len(os.sched_getaffinity(0))
    with own_place(config) as place, ThreadPoolExecutor(clients) as pool:
        short = _with_reason_tokens(pack, place.state_dir, REASON_TOKENS)
        place = replace(place, pack=str(short), parallel_explanations=clients)
        local = threading.local()

        def ask(number: int) -> str:
            if not hasattr(local, "client"):
                local.client = Client(place.endpoint, timeout_ms=120_000)
            question = plain(asked[number % len(asked)][0])
            reply = local.client.evaluate(question, explain="inline", deadline_ms=100_000)
            return str(reply["context"]["reasoning"] or "")

        with daemon(place), Client(place.endpoint) as client:
            ours_s, ours = _timed(pool, ask, total)
            waits = client.status().engine
    schema = _schema(pack, reason_chars=round(statistics.mean(map(len, ours))))
    with (
        llama_server(server, model, threads, slots=clients, context=config.context_tokens) as http,
        ThreadPoolExecutor(clients) as pool,
    ):

        def complete(number: int) -> str:
            text = _complete(http, asked[number % len(asked)][1].bare, 160, schema)
            with contextlib.suppress(ValueError):
                return str(json.loads(text)["because"])
            return text

        theirs_s, theirs = _timed(pool, complete, total)
    vocabulary = Vocabulary(model, vocab_only=True)
    words = [statistics.mean(len(vocabulary.tokenise(text)) for text in texts) for texts in (ours, theirs)]
    rates = (
        Rate(name=f"ours, explained, {clients} clients", per_s=total / ours_s, count=total),
        Rate(name=f"llama-server, JSON schema, {clients} slots", per_s=total / theirs_s, count=total),
    )
    facts = {
        "explained_per_s_ours_over_llama_server": theirs_s / ours_s,
        "free_text_tokens_each_ours": words[0],
        "free_text_tokens_each_llama_server": words[1],
        "free_text_tokens_per_s_ours_over_llama_server": (words[0] / ours_s) / (words[1] / theirs_s),
        "explanation_step_ms_max": waits.explanation_step_ms_max,
        "wait_of_a_decision_for_a_step_ms_max": waits.wait_for_step_ms_max,
    }
    return rates, facts


def _timed(pool: ThreadPoolExecutor, ask: Callable[[int], str], total: int) -> tuple[float, list[str]]:
    """Seconds for `total` questions, after some that fill every cache; and the texts that came."""
    list(pool.map(ask, range(16)))
    started = time.monotonic()
    texts = list(pool.map(ask, range(total)))
    return time.monotonic() - started, texts


def _complete(http: httpx.Client, prompt: Sequence[int], n_predict: int, schema: Json = None) -> str:
    body: dict[str, Json] = {"prompt": prompt, "n_predict": n_predict, "cache_prompt": True}
    body |= {"temperature": 0.0, "top_k": 1}
    if schema is not None:
        body["json_schema"] = schema
    answer = http.post("/completion", json=body)
    answer.raise_for_status()
    return str(answer.json()["content"])


def _prompt(vocabulary: Vocabulary, pack: Pack, evaluation: Evaluation) -> Prompt:
    facts = pack.book.apply(evaluation, time.time()).facts
    prefix, suffix = vocabulary.question(pack.prefix, pack.question(evaluation, facts))
    head = len(vocabulary.tokenise(pack.prefix.answer_head))
    return Prompt([*prefix, *suffix], [*prefix, *suffix[:-head]])


def _messages(pack: Pack, evaluation: Evaluation) -> list[dict[str, str]]:
    facts = pack.book.apply(evaluation, time.time()).facts
    turns = [{"role": turn.role, "content": turn.text} for turn in pack.prefix.turns]
    return [*turns, {"role": "user", "content": pack.question(evaluation, facts)}]


def _schema(pack: Pack, *, reason_chars: int = 0) -> Json:
    """The answer as a JSON schema: the outcome, and with `reason_chars` all that an explanation has."""
    properties: dict[str, Json] = {"outcome": {"enum": list(pack.labels)}}
    if reason_chars:
        clauses = {"type": "array", "items": {"enum": list(pack.clauses)}, "minItems": 1, "maxItems": 3}
        properties |= {
            "class": {"enum": list(pack.manifest.classifications)},
            "clauses": clauses,
            "because": {"type": "string", "maxLength": reason_chars},
        }
    return {"type": "object", "properties": properties, "required": list(properties)}


def _with_reason_tokens(pack: Pack, folder: Path, tokens: int) -> Path:
    """A copy of the pack whose reasons have at most `tokens` tokens."""
    copy = folder / pack.info.name
    copy.mkdir()
    old = f"max_reasoning_tokens: {pack.manifest.limits.max_reasoning_tokens}"
    for name in pack_files.FILES:
        text = (pack.path / name).read_text(encoding="utf-8")
        (copy / name).write_text(text.replace(old, f"max_reasoning_tokens: {tokens}"), encoding="utf-8")
    return copy
