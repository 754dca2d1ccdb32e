"""thor-policy beside its alternatives, llama-server and llama-cpp-python's chat completion.

Owns the `peers` benchmark. Invariant: all sides get the same model file, threads, prompt and questions, and
single decisions alternate between them. Main thread, and a pool of clients for the explained decisions.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
from msgspec import Struct

from thor_policy import catalog
from thor_policy.bench.children import chat_completion, daemon, isolated_config, llama_server
from thor_policy.bench.figures import Advance, Announce, Fact, Rate, Report, Series, ratio
from thor_policy.bench.runs import as_request, questions_for_model
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.daemon import loading
from thor_policy.engine.native import Vocabulary, build_name
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: Tokens of free text in an explanation of thor-policy; llama-server may then write as many characters.
REASON_TOKENS = 24
#: Explained questions per client, and seconds after which no more of them are asked.
EXPLAINED_EACH, EXPLAINED_S = 4, 120


class Prompt(Struct, frozen=True):
    """Token ids of one question: `scored` ends before the label, `bare` before the model's turn."""

    scored: list[int]
    bare: list[int]


def peers(
    config: Config,
    evaluations: Sequence[Evaluation],
    *,
    questions: int,
    rounds: int,
    clients: int,
    server: Path,
    advance: Advance,
    announce: Announce,
) -> Report:
    """`rounds` rounds of `questions` decisions by each side; then `clients` clients ask for explained ones.

    `server` is the program llama-server. `advance` is called after each decision by all sides. Raises
    EngineError.
    """
    pack = loading.load_pack(config)
    chosen, without_reason = _choose(pack, evaluations, questions)
    model = catalog.resolve(config.model, config.models_dir).path
    vocabulary = Vocabulary(model, vocab_only=True)
    prompts = [_prompt(vocabulary, pack, evaluation) for evaluation in chosen]
    threads = config.threads or len(os.sched_getaffinity(0))
    schema = _schema(pack)
    with contextlib.ExitStack() as stack:
        isolated = stack.enter_context(isolated_config(config))
        stack.enter_context(daemon(isolated))
        client = stack.enter_context(Client(isolated.endpoint, timeout_ms=60_000))
        context = config.context_tokens
        http = stack.enter_context(llama_server(server, model, threads, slots=1, context=context))
        chat = stack.enter_context(chat_completion(model, threads, context=context))
        sides: dict[str, Callable[[int], object]] = {
            "ours": lambda n: client.evaluate(as_request(chosen[n])),
            "llama-server, one token": lambda n: _complete(http, prompts[n].scored, 1),
            "llama-server, JSON schema": lambda n: _complete(http, prompts[n].bare, 48, schema),
            "llama-cpp-python, JSON chat": lambda n: chat(_messages(pack, chosen[n]), schema),
        }
        times = _alternate(sides, len(chosen), rounds, advance, announce)
    by_name = {name: Series(name=name, ms=tuple(ms)) for name, ms in times.items()}
    ours = by_name["ours"]
    ratios = (
        ratio(ours, by_name["llama-server, one token"], bound="at most 1.05"),
        ratio(ours, by_name["llama-server, JSON schema"]),
        ratio(ours, by_name["llama-cpp-python, JSON chat"], bound="at most 0.35 on a CPU"),
    )
    for series in by_name.values():
        announce(series)
    for comparison in ratios:
        announce(comparison)
    unexplained = [(evaluation, _prompt(vocabulary, pack, evaluation)) for evaluation in without_reason]
    rates, facts = _explained(config, pack, unexplained, server, clients, announce)
    for name, value in facts.items():
        announce(Fact(name=name, value=value))
    return Report(
        name="peers",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model, "threads": str(threads)},
        questions=len(chosen),
        rounds=rounds,
        series=tuple(by_name.values()),
        ratios=ratios,
        rates=rates,
        facts=facts,
    )


def _choose(
    pack: Pack, evaluations: Sequence[Evaluation], count: int
) -> tuple[list[Evaluation], list[Evaluation]]:
    """`count` questions for single decisions, and `count` whose reason no rule states, for explained ones."""
    order = random.Random(0)  # noqa: S311  (a sample, not a secret)
    for_model = questions_for_model(pack, evaluations)
    without_reason = [e for e in for_model if not pack.book.apply(e, time.time()).because]
    if not without_reason:
        raise EngineError(
            f"the rules of the pack {pack.info.name} answer every question or state its reason: choose "
            "another pack with --pack"
        )
    return (
        order.sample(for_model, min(count, len(for_model))),
        order.sample(without_reason, min(count, len(without_reason))),
    )


def _alternate(
    sides: dict[str, Callable[[int], object]],
    questions: int,
    rounds: int,
    advance: Advance,
    announce: Announce,
) -> dict[str, list[float]]:
    """Milliseconds of each side for each question and round, paired by both.

    The sides alternate, each at a different question. Two of them share one llama-server, which would find
    in its cache a question that it has just answered for the other.
    """
    order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
    times = {name: [0.0] * (questions * rounds) for name in sides}
    for round_number in range(-1, rounds):  # round -1 asks a few questions to fill the caches, untimed
        shuffled_questions = list(range(questions))
        order.shuffle(shuffled_questions)
        for turn in range(min(3, questions) if round_number < 0 else questions):
            names = list(sides)
            order.shuffle(names)
            for name in names:
                shift = list(sides).index(name) * questions // len(sides)
                number = shuffled_questions[(turn + shift) % questions]
                started_ns = time.monotonic_ns()
                sides[name](number)
                if round_number >= 0:
                    elapsed_ms = (time.monotonic_ns() - started_ns) / 1e6
                    times[name][round_number * questions + number] = elapsed_ms
            advance()
        if round_number >= 0:
            for name, ms in times.items():
                latest = tuple(ms[round_number * questions : (round_number + 1) * questions])
                announce(Series(name=f"{name}, round {round_number + 1}", ms=latest))
    return times


def _explained(
    config: Config,
    pack: Pack,
    questions: Sequence[tuple[Evaluation, Prompt]],
    server: Path,
    clients: int,
    announce: Announce,
) -> tuple[tuple[Rate, ...], dict[str, float]]:
    """Explained decisions per second of `clients` clients, and how much free text each side wrote."""
    total = clients * EXPLAINED_EACH
    model = catalog.resolve(config.model, config.models_dir).path
    threads = config.threads or len(os.sched_getaffinity(0))
    with isolated_config(config) as isolated, ThreadPoolExecutor(clients) as pool:
        short_pack = _with_reason_tokens(pack, isolated.state_dir, REASON_TOKENS)
        isolated = replace(isolated, pack=str(short_pack), parallel_explanations=clients)
        idle: queue.SimpleQueue[Client] = queue.SimpleQueue()

        def ask(number: int) -> str:
            request = as_request(questions[number % len(questions)][0])
            client = idle.get()
            reply = client.evaluate(request, explain="inline", deadline_ms=100_000)
            idle.put(client)
            return str(reply["context"]["reasoning"] or "")

        with daemon(isolated), contextlib.ExitStack() as stack:
            for _ in range(clients):
                idle.put(stack.enter_context(Client(isolated.endpoint, timeout_ms=120_000)))
            ours_per_s, ours = _measure_rate(pool, ask, clients, total)
            engine_status = idle.get().status().engine
    our_rate = Rate(name=f"ours, explained, {clients} clients", per_s=ours_per_s, count=len(ours))
    announce(our_rate)
    schema = _schema(pack, reason_chars=round(statistics.mean(map(len, ours))))
    with (
        llama_server(server, model, threads, slots=clients, context=config.context_tokens) as http,
        ThreadPoolExecutor(clients) as pool,
    ):

        def complete(number: int) -> str:
            text = _complete(http, questions[number % len(questions)][1].bare, 160, schema)
            with contextlib.suppress(ValueError):
                return str(json.loads(text)["because"])
            return text

        theirs_per_s, theirs = _measure_rate(pool, complete, clients, total)
    server_rate = Rate(
        name=f"llama-server, JSON schema, {clients} slots", per_s=theirs_per_s, count=len(theirs)
    )
    announce(server_rate)
    vocabulary = Vocabulary(model, vocab_only=True)
    tokens_each = [
        statistics.mean(len(vocabulary.tokenise(text)) for text in texts) for texts in (ours, theirs)
    ]
    facts = {
        "explained_per_s_ours_over_llama_server": ours_per_s / theirs_per_s,
        "free_text_tokens_each_ours": tokens_each[0],
        "free_text_tokens_each_llama_server": tokens_each[1],
        "free_text_tokens_per_s_ours_over_llama_server": (
            (tokens_each[0] * ours_per_s) / (tokens_each[1] * theirs_per_s)
        ),
        "explanation_step_ms_max": engine_status.explanation_step_ms_max,
        "wait_of_a_decision_for_a_step_ms_max": engine_status.wait_for_step_ms_max,
    }
    return (our_rate, server_rate), facts


def _measure_rate(
    pool: ThreadPoolExecutor, ask: Callable[[int], str], clients: int, total: int
) -> tuple[float, list[str]]:
    """Answers per second to `total` questions, fewer if they take longer than `EXPLAINED_S`, and their texts.

    One untimed question per client comes first: it fills the caches.
    """
    list(pool.map(ask, range(clients)))
    started = time.monotonic()

    def ask_in_time(number: int) -> str | None:
        return ask(number) if time.monotonic() < started + EXPLAINED_S else None

    texts = [text for text in pool.map(ask_in_time, range(total)) if text is not None]
    return len(texts) / (time.monotonic() - started), texts


def _complete(http: httpx.Client, prompt: Sequence[int], n_predict: int, schema: Json = None) -> str:
    body: dict[str, Json] = {"prompt": prompt, "n_predict": n_predict, "cache_prompt": True}
    body |= {"temperature": 0.0, "top_k": 1}
    if schema is not None:
        body["json_schema"] = schema
    response = http.post("/completion", json=body)
    response.raise_for_status()
    return str(response.json()["content"])


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
    """The answer as a JSON schema: the outcome, and with `reason_chars` every field of an explanation."""
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
    for name, text in pack_files.PackFiles(pack.path).texts.items():
        (copy / name).write_text(text.replace(old, f"max_reasoning_tokens: {tokens}"), encoding="utf-8")
    return copy
