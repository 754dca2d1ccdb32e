"""Replay: a recorded decision is taken again and compared with its record.

Owns the comparison of a decision with its record, step by step. Invariant: a decision is taken again by the
code that takes live decisions (`policy`), from its record alone: the evaluation, the time of receipt, the
temperature; a `Replayer` reads no clock and no settings, and writes nothing. A decision whose rules were
stopped is taken again as one whose rules were stopped, however fast they are now. Main thread of a command,
which also owns the engine.

The steps, in the order of a decision: `rules` (facts, floor, risk), `question` (its text), `tokens`,
`prefix`, `logits`, `probabilities`, `outcome`. The first step that differs is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from thor_policy import catalog
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter, identity_of
from thor_policy.core.engine import Engine
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Json, Request
from thor_policy.daemon import loading
from thor_policy.journal import events
from thor_policy.journal.past_requests import Unasked, request_of, use_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.policy.budget import STOP_CODES
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack

#: `same_label`: numbers differ, but the model's label and the outcome do not. `refused`: the decision cannot
#: be taken again; the reason says what is missing.
Verdict = Literal["identical", "same_label", "diverged", "refused"]

#: Fields of a model that are not part of its identity.
_NAMES = ("name", "quantisation")
#: Longest value that is reported of a step that differs, in characters.
_MOST_CHARS = 400


class Replayed(Struct, frozen=True, kw_only=True):
    """The result for one decision.

    `outcome` and `tier` are those of the record. `step` is the first step that differs, `where` the path of
    the value in it, `recorded` and `now` the two values. `reason` says why the decision was refused, or why
    logits may differ.
    """

    decision_id: str
    verdict: Verdict
    outcome: str | None = None
    tier: str | None = None
    step: str | None = None
    where: str | None = None
    recorded: Json = None
    now: Json = None
    reason: str | None = None


class Replays(Struct, frozen=True, kw_only=True):
    """Decisions replayed on one engine. `exact`: this engine must repeat logits, not only labels."""

    decisions: tuple[Replayed, ...]
    exact: bool

    @property
    def counts(self) -> Counter[Verdict]:
        """Decisions by verdict."""
        return Counter(replayed.verdict for replayed in self.decisions)

    @property
    def differing(self) -> int:
        """How many decisions differ in a value that this engine must repeat."""
        counts = self.counts
        return counts["diverged"] + (counts["same_label"] if self.exact else 0)


def replay_recorded(
    config: Config,
    *,
    decision_ids: Sequence[str] = (),
    sample: int | None = None,
    since: str | None = None,
    journal: Path | None = None,
    progress: Callable[[int], AbstractContextManager[Callable[[], None]]] = lambda _: nullcontext(
        lambda: None
    ),
) -> Replays:
    """Replay decisions of a `journal` (that of `config`) by the pack, model and adapter of `config`.

    `decision_ids` may be the ends of ids. Without them, decisions from `since` (RFC 3339) on are replayed:
    all of them, or a random `sample`. `progress` opens a display for a number of decisions; the callable that
    it yields is called after each. Raises JournalError, CatalogError, PackError, EngineError.
    """
    with Reader(journal or config.journal_path) as reader:
        if decision_ids:
            ids = [reader.resolve(id_or_end) for id_or_end in decision_ids]
        else:
            ids = reader.decided_here(since=since, sample=sample)
        pack = loading.load_pack(config)
        with progress(len(ids)) as advance:
            engine, adapter = loading.open_engine(config, pack)
            with closing(engine):
                replayer = Replayer(reader, engine, pack, adapter=adapter, text_of=_text_of(config))
                decisions: list[Replayed] = []
                for decision_id in ids:
                    decisions.append(replayer.replay(decision_id))
                    advance()
        return Replays(decisions=tuple(decisions), exact=engine.model.exact)


def _text_of(config: Config) -> Callable[[Sequence[int]], str] | None:
    """The text of token ids, by the model's file, which is opened at each call; None for a remote model."""
    if config.engine_url:
        return None

    def text_of(tokens: Sequence[int]) -> str:
        from thor_policy.engine.native import Vocabulary

        vocabulary = Vocabulary(catalog.resolve(config.model, config.models_dir).path, vocab_only=True)
        with closing(vocabulary):
            return vocabulary.text_of(tokens, special=True)

    return text_of


class _Refused(Exception):
    """The decision cannot be taken again; the message says why."""


class Replayer:
    """Takes decisions of one journal again, by one pack on one engine, under an adopted `adapter` if any.

    `text_of` returns the text of token ids. With it, a question whose text differs is reported as `question`,
    and the same text in other tokens as `tokens`; without it both are reported as `tokens`.
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        pack: Pack,
        *,
        adapter: Adapter | None = None,
        text_of: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        self._reader, self._engine, self._pack, self._text_of = reader, engine, pack, text_of
        self._adapter = adapter
        self._policy: Policy | None = None

    def replay(self, decision_id: str) -> Replayed:
        """Take one decision again. Raises JournalError if there is no such decision, EngineError."""
        trace = self._reader.trace(decision_id)
        row = trace["decision"]
        fields = {"decision_id": decision_id, "outcome": row["decision"], "tier": row["tier"]}
        try:
            then, now = self._decide_again(trace["event"])
            fields |= self._compare(trace["event"], then, now)
        except (_Refused, Unasked) as refusal:
            return Replayed(verdict="refused", reason=str(refusal), **fields)
        except RequestError as error:  # a question that was accepted then
            return Replayed(verdict="diverged", step="question", now=error.message, **fields)
        return Replayed(**fields)

    # ------------------------------------------------------------ deciding again

    def _decide_again(self, event: Record) -> tuple[Record, Record]:
        """The recorded decision and the new one, as flat records of the same form."""
        body, private = event["body"], event["private"]
        request = self._request(event)
        policy = self._loaded_policy(with_prior=bool(body.get("prior")))
        policy.clear_calibrations()
        if calibration := self._calibration(body):
            policy.calibrate(calibration)
        policy.contextual = bool(body.get("prior"))
        code = body.get("reason_code")
        stopped = code if code in STOP_CODES else None
        trial = events.trial_of(body)
        decision = policy.decide(request, stopped=stopped, use=use_of(event), trial=trial)
        if decision.tier == "fallback" and body["tier"] != "fallback":
            raise _Refused(f"the model gave no answer now: {decision.reason_code}")
        again = events.decision_event(decision)
        return (
            {**body, "private": private},
            {**_as_read_back(again.body), "private": _as_read_back(again.private)},
        )

    def _loaded_policy(self, *, with_prior: bool) -> Policy:
        """The policy; the pack is loaded into the engine at the first call.

        With the first decision that has a prior, the model is asked the questions without content.
        """
        if self._policy is None:
            self._policy = Policy(self._engine, self._pack, adapter=self._adapter)
        if with_prior and not self._policy.residents.active.prior:
            try:
                self._policy = Policy(self._engine, self._pack, adapter=self._adapter, contextual=True)
            except EngineError as error:
                raise _Refused(f"the model gave no answer now: {error}") from error
        return self._policy

    def _request(self, event: Record) -> Request:
        """The recorded request. Raises Unasked, or _Refused if the pack or the model is another one."""
        request, body, pack = request_of(self._reader, event), event["body"], self._pack.info
        then = body["pack"]
        if then["sha256"] != pack.sha256:
            raise _Refused(
                f"pack: {then['name']} {then['version']} had sha256 {then['sha256']}; "
                f"{pack.name} {pack.version} here has {pack.sha256}"
            )
        if model := body.get("model"):
            self._refuse_another_model(model)
        return request

    def _refuse_another_model(self, model: Record) -> None:
        """Raise _Refused unless every recorded field of the model, and the adapter, is the same here."""
        for name, value in model.items():
            now = getattr(self._engine.model, name, None)
            if name not in (*_NAMES, "adapter") and value != now:
                raise _Refused(f"model: {model['name']} had {name} {value}; the model here has {now}")
        then = msgspec.convert(model.get("adapter"), Adapter | None)
        if (then and then.key) != (self._adapter and self._adapter.key):
            here = _text_of_adapter(self._adapter)
            raise _Refused(f"adapter: decided under {_text_of_adapter(then)} then, under {here} here")

    def _calibration(self, body: Record) -> Calibration | None:
        """The calibration in force then. Raises _Refused if none with that temperature is recorded."""
        temperature = body.get("temperature", 1.0)
        if temperature == 1.0:
            return None
        judge = identity_of(body["model"]["sha256"], self._adapter)
        row = self._reader.calibration(body["pack"]["sha256"], judge, temperature=temperature)
        if row is None:
            raise _Refused(
                f"calibration: none of this pack and model with temperature {temperature} is recorded"
            )
        return Calibration(**row)

    # ------------------------------------------------------------ comparing

    def _compare(self, event: Record, then: Record, now: Record) -> Record:
        """The verdict and the first step that differs, as fields of a Replayed."""
        for step, value_then, value_now in self._steps(then, now):
            if value_then == value_now:
                continue
            where, recorded, repeated = difference(value_then, value_now)
            same = all(then.get(name) == now.get(name) for name in ("outcome", "label"))
            numbers = step in ("logits", "probabilities")
            return {
                "verdict": "same_label" if same and numbers else "diverged",
                "step": step,
                "where": where or None,
                "recorded": _short(recorded),
                "now": _short(repeated),
                "reason": self._another_build(event) if step == "logits" else None,
            }
        if then.get("reason_code") in STOP_CODES:
            reason = (
                f"its rules were stopped then ({then['reason_code']}); what follows from that is as recorded"
            )
            return {"verdict": "identical", "reason": reason}
        if then["tier"] == "fallback":
            raise _Refused(
                f"the model gave no answer then ({then.get('reason_code')}); the rules answer as recorded"
            )
        return {"verdict": "identical"}

    def _steps(self, then: Record, now: Record) -> Iterator[tuple[str, Json, Json]]:
        """Each step with its recorded value and its value now."""
        yield "rules", _rules(then), _rules(now)
        if then["tier"] == "fallback":
            return
        tokens, tokens_now = (record["private"].get("suffix_tokens", []) for record in (then, now))
        if tokens != tokens_now and self._text_of is not None:
            yield "question", self._text_of(tokens).splitlines(), self._text_of(tokens_now).splitlines()
        yield "tokens", tokens, tokens_now
        prompt, prompt_now = then.get("prompt") or {}, now.get("prompt") or {}
        for step, recorded, repeated, names in (
            ("prefix", prompt, prompt_now, ("prefix_digest", "prefix_tokens")),
            ("logits", prompt, prompt_now, ("logits",)),
            ("logits", self._original(then, prompt), prompt_now, ("logits",)),
            ("probabilities", then, now, ("temperature", "prior", "probabilities", "confidence")),
            ("outcome", then, now, ("label", "outcome", "allow", "reason_code", "obligations", "use")),
        ):
            yield (
                step,
                {name: recorded.get(name) for name in names},
                {name: repeated.get(name) for name in names},
            )

    def _original(self, then: Record, prompt: Record) -> Record:
        """The prompt of the decision whose score the cache repeated; without a cached score, its own."""
        original = then.get("original")
        if original is None:
            return prompt
        if self._reader.get(original) is None:
            raise _Refused(f"cache: its score is that of decision {original}, which is not in this journal")
        return self._reader.trace(original)["event"]["body"].get("prompt") or {}

    def _another_build(self, event: Record) -> str | None:
        """The library build and device of then and of now, if they were recorded and differ."""
        model = self._engine.model
        loaded = self._reader.loaded_model(model.sha256, before_seq=event["seq"])
        if loaded is None or (loaded["build"], loaded["device"]) == (model.build, model.device):
            return None
        return f"run by {loaded['build']} on {loaded['device']} then, by {model.build} on {model.device} here"


def difference(then: Json, now: Json) -> tuple[str, Json, Json]:
    """The dotted path of the first place where two JSON values differ, and the value there in each."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*then, *now)):
            if then.get(key) != now.get(key):
                path, *values = difference(then.get(key), now.get(key))
                return f"{key}.{path}".rstrip("."), values[0], values[1]
    if isinstance(then, list) and isinstance(now, list):
        for index in range(max(len(then), len(now))):
            pair = [values[index] if index < len(values) else None for values in (then, now)]
            if pair[0] != pair[1]:
                path, *values = difference(*pair)
                return f"{index}.{path}".rstrip("."), values[0], values[1]
    return "", then, now


def _rules(record: Record) -> Record:
    """Facts, errors, floor and risk. Facts that are false, zero or empty are not recorded."""
    private = record["private"]
    return {
        "facts": private.get("facts", {}),
        "errors": private.get("errors", {}),
        "floor": record["floor"],
        "risk": record["risk"],
    }


def _text_of_adapter(adapter: Adapter | None) -> str:
    return f"{adapter.name} {adapter.sha256} at scale {adapter.scale:g}" if adapter else "none"


def _as_read_back(part: Json) -> Record:
    """A part of an event as it is after writing and reading: JSON types only."""
    decoded: Record = events.decode(events.encode(part))
    return decoded


def _short(value: Json) -> Json:
    """The value, or the first characters of its text if it is longer than `_MOST_CHARS`."""
    text = value if isinstance(value, str) else events.encode(value).decode()
    return value if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 1]}…"
