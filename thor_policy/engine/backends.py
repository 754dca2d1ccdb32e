"""The two kinds of server that a model can be asked on: llama-server and vLLM.

Owns what each speaks. Invariant: content is made of tokens that are none of the model's special ones, or
the server is refused; and every number that comes back is a finite log-probability of a token that was
asked for. Used by the engine thread.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import ModelInfo
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Json
from thor_policy.engine.http import Link, NotThere

#: Added to the logits of the choices, so that llama-server's sampler keeps them alone; float32 then resolves
#: a logit to 8e-6.
_BIAS = 100.0
#: Log of the smallest probability that a float32 holds: a choice that llama-server leaves out has less.
_LEAST = math.log(2.0**-126)
#: Log-probabilities that vLLM gives at most, unless it was started with another --max-logprobs.
_TOP = 20
#: Share, beside the likeliest choice, that a choice may have which vLLM left out of those.
_NEGLIGIBLE = 1e-3


class Server(Protocol):
    """A model behind a Link. Every call raises EngineError or DeadlineExceeded."""

    #: Tokens that prompt and answer can have together.
    context_tokens: int
    #: Its chat template, or None, and the text of the token that opens a prompt.
    template: str | None
    bos_text: str

    def identify(self, deadline_ns: int) -> ModelInfo: ...

    def markup(self, text: str, deadline_ns: int, *, opening: bool = False) -> list[int]:
        """Tokens of the template's own text, special ones among them; `opening`: with those that open
        every prompt.
        """

    def content(self, text: str, deadline_ns: int) -> list[int]:
        """Tokens of a text that may come from anywhere: none of them is special."""

    def text_of(self, tokens: Sequence[int], deadline_ns: int) -> str: ...

    def weigh(self, prompt: Sequence[int], choices: Sequence[int], deadline_ns: int) -> list[float]:
        """Log-probability of each choice as the next token, up to a constant that all share."""

    def write(self, prompt: Sequence[int], most: int, deadline_ns: int) -> tuple[list[int], bool]:
        """Up to `most` tokens, greedily, to the end of the line or turn; True if that came."""


def meet(link: Link, model: str, deadline_ns: int) -> Server:
    """The server at the other end, asked what it is. Raises EngineError with the cure."""
    try:
        return LlamaServer(link, model, deadline_ns)
    except NotThere:
        pass
    try:
        return Vllm(link, model, deadline_ns)
    except NotThere:
        raise EngineError(
            f"{link.url} has neither /props, as llama-server has, nor /tokenizer_info, as vLLM has when "
            "started with --enable-tokenizer-info-endpoint; without one of them nobody can tell which tokens "
            "are special, and what a request says might become one"
        ) from None


def digest_of_what_is_told(*told: Json) -> str:
    """In place of a file's digest: that of everything the server tells of itself, in canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()


def _chosen(url: str, wanted: str, models: Sequence[_Model]) -> _Model:
    names = [model.id for model in models]
    if not wanted and len(names) == 1:
        return models[0]
    if wanted in names:
        return models[names.index(wanted)]
    said = f"engine_model is {wanted!r}" if wanted else "engine_model is empty"
    raise EngineError(
        f"{said}, and {url} has {', '.join(names) or 'no model'}: set engine_model to one of them"
    )


# ---------------------------------------------------------------- what both answer


class _Model(Struct, frozen=True):
    id: str
    meta: dict[str, Json] | None = None
    root: str | None = None
    max_model_len: int | None = None


class _Models(Struct, frozen=True):
    data: list[_Model]


class _Tokens(Struct, frozen=True):
    tokens: list[int]


# ---------------------------------------------------------------- llama-server


class _Settings(Struct, frozen=True):
    n_ctx: int


class _Props(Struct, frozen=True):
    default_generation_settings: _Settings
    model_path: str
    chat_template: str = ""
    bos_token: str = ""
    model_ftype: str = "unknown"
    build_info: str = ""


class _Content(Struct, frozen=True):
    content: str


class _Probability(Struct, frozen=True):
    id: int
    prob: float


class _Sampled(Struct, frozen=True):
    top_probs: list[_Probability]


class _Weighed(Struct, frozen=True):
    completion_probabilities: list[_Sampled]


class _Line(Struct, frozen=True):
    tokens: list[int]
    stop_type: str


class LlamaServer:
    """llama-server's own paths: it takes token ids, and tells markup from content when it tokenises."""

    def __init__(self, link: Link, model: str, deadline_ns: int) -> None:
        self._link, self._wanted = link, model
        props = link.get("/props", _Props, deadline_ns)
        self.context_tokens = props.default_generation_settings.n_ctx
        self.template = props.chat_template or None
        self.bos_text = props.bos_token

    def identify(self, deadline_ns: int) -> ModelInfo:
        props = self._link.get("/props", _Props, deadline_ns)
        model = _chosen(self._link.url, self._wanted, self._link.get("/v1/models", _Models, deadline_ns).data)
        meta = model.meta or {}
        parameters = meta.get("n_params")
        return ModelInfo(
            name=model.id,
            sha256=digest_of_what_is_told(self._link.url, model.id, props, meta),
            quantisation=props.model_ftype,
            architecture="unknown",
            parameters=parameters if isinstance(parameters, int) else 0,
            build=f"llama-server {props.build_info}".strip(),
            device=self._link.url,
            exact=False,
        )

    def markup(self, text: str, deadline_ns: int, *, opening: bool = False) -> list[int]:
        return self._tokenise(text, deadline_ns, special=True, opening=opening)

    def content(self, text: str, deadline_ns: int) -> list[int]:
        return self._tokenise(text, deadline_ns, special=False, opening=False)

    def _tokenise(self, text: str, deadline_ns: int, *, special: bool, opening: bool) -> list[int]:
        body = {"content": text, "parse_special": special, "add_special": opening}
        return self._link.post("/tokenize", body, _Tokens, deadline_ns).tokens

    def text_of(self, tokens: Sequence[int], deadline_ns: int) -> str:
        return self._link.post("/detokenize", {"tokens": tokens}, _Content, deadline_ns).content

    def weigh(self, prompt: Sequence[int], choices: Sequence[int], deadline_ns: int) -> list[float]:
        """The choices are lifted above everything else and the sampler keeps them alone: their
        probabilities are exact, whatever rank they had.
        """
        body = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": len(choices),
            "post_sampling_probs": True,
            "samplers": ["top_k"],
            "top_k": len(choices),
            "temperature": 1.0,
            "mirostat": 0,
            "logit_bias": [[token, _BIAS] for token in choices],
            "cache_prompt": True,
            "response_fields": ["completion_probabilities"],
        }
        weighed = self._link.post("/completion", body, _Weighed, deadline_ns).completion_probabilities
        found = {one.id: one.prob for sampled in weighed[:1] for one in sampled.top_probs}
        if not found or not found.keys() <= set(choices) or not all(0 < p <= 1.001 for p in found.values()):
            raise EngineError(f"{self._link.url} did not weigh the tokens that it was asked to weigh")
        return [math.log(found[token]) if token in found else _LEAST for token in choices]

    def write(self, prompt: Sequence[int], most: int, deadline_ns: int) -> tuple[list[int], bool]:
        body = {
            "prompt": prompt,
            "n_predict": most,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "mirostat": 0,
            "stop": ["\n"],
            "cache_prompt": True,
            "return_tokens": True,
            "response_fields": ["tokens", "stop_type"],
        }
        line = self._link.post("/completion", body, _Line, deadline_ns)
        by_token = line.stop_type == "eos"  # then the last token is the one that ends the turn
        return line.tokens[: -1 if by_token else None], line.stop_type != "limit"


# ---------------------------------------------------------------- vLLM


class _TokenizerInfo(Struct, frozen=True):
    added_tokens_decoder: dict[str, str | dict[str, Json]] = {}
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    additional_special_tokens: list[str] = []


class _Version(Struct, frozen=True):
    version: str


class _Prompt(Struct, frozen=True):
    prompt: str


class _Logprobs(Struct, frozen=True):
    top_logprobs: list[dict[str, float]]


class _Choice(Struct, frozen=True):
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] = []


class _Completion(Struct, frozen=True):
    choices: list[_Choice]


class Vllm:
    """vLLM's OpenAI paths and its tokeniser's.

    Its tokeniser cannot be told to take special tokens for text. So content is cut inside everything that
    spells one, by the list that /tokenizer_info gives, and what comes back is checked against that list.
    """

    def __init__(self, link: Link, model: str, deadline_ns: int) -> None:
        self._link, self._wanted = link, model
        info = link.get("/tokenizer_info", _TokenizerInfo, deadline_ns)
        self._special = {
            int(number): text if isinstance(text, str) else str(text.get("content"))
            for number, text in info.added_tokens_decoder.items()
            if number.isdecimal()
        }
        named = {info.bos_token, info.eos_token, info.unk_token, info.pad_token, None}
        named |= {*info.additional_special_tokens}
        if not self._special or named - {None, *self._special.values()}:
            raise EngineError(
                f"{link.url} does not tell all its special tokens (added_tokens_decoder of /tokenizer_info), "
                "so what a request says might become one; judge with a llama-server, or in process"
            )
        self._model = _chosen(link.url, model, link.get("/v1/models", _Models, deadline_ns).data)
        self.context_tokens = self._model.max_model_len or 0
        self.template = info.chat_template
        self.bos_text = info.bos_token or ""

    def identify(self, deadline_ns: int) -> ModelInfo:
        info = self._link.get("/tokenizer_info", dict[str, Json], deadline_ns)
        model = _chosen(self._link.url, self._wanted, self._link.get("/v1/models", _Models, deadline_ns).data)
        version = self._link.get("/version", _Version, deadline_ns).version
        return ModelInfo(
            name=model.id,
            sha256=digest_of_what_is_told(self._link.url, model, version, info),
            quantisation="unknown",
            architecture="unknown",
            parameters=0,
            build=f"vLLM {version}",
            device=self._link.url,
            exact=False,
        )

    def markup(self, text: str, deadline_ns: int, *, opening: bool = False) -> list[int]:
        body = {"model": self._model.id, "prompt": text, "add_special_tokens": opening}
        return self._link.post("/tokenize", body, _Tokens, deadline_ns).tokens if text else []

    def content(self, text: str, deadline_ns: int) -> list[int]:
        tokens = [token for piece in self._cut(text) for token in self.markup(piece, deadline_ns)]
        if not self._special.keys().isdisjoint(tokens):
            raise EngineError(f"{self._link.url} made a special token of what a request says")
        return tokens

    def _cut(self, text: str) -> list[str]:
        """Pieces none of which spells a special token, as long as that has two characters."""
        pieces, rest = [], text
        while rest:
            ends = [
                at + 1 for word in self._special.values() if len(word) > 1 and (at := rest.find(word)) >= 0
            ]
            end = min(ends, default=len(rest))
            pieces.append(rest[:end])
            rest = rest[end:]
        return pieces

    def text_of(self, tokens: Sequence[int], deadline_ns: int) -> str:
        body = {"model": self._model.id, "tokens": tokens}
        return self._link.post("/detokenize", body, _Prompt, deadline_ns).prompt

    def weigh(self, prompt: Sequence[int], choices: Sequence[int], deadline_ns: int) -> list[float]:
        """The likeliest choice comes back for certain, since nothing else may be sampled. One that is left
        out gets an upper bound, the least that came back, as long as that is negligible beside the
        likeliest: a looser label must not gain by what is not known. Otherwise there is no answer.
        """
        answer = self._complete(prompt, 1, deadline_ns, logprobs=_TOP, allowed_token_ids=choices)
        if answer.logprobs is None or not answer.logprobs.top_logprobs:
            raise EngineError(f"{self._link.url} gave no log-probabilities")
        found = {_token_id(name): value for name, value in answer.logprobs.top_logprobs[0].items()}
        if found.keys().isdisjoint(choices) or not all(map(math.isfinite, found.values())):
            raise EngineError(f"{self._link.url} did not weigh the tokens that it was asked to weigh")
        least, best = min(found.values()), max(found[token] for token in choices if token in found)
        left_out = [token for token in choices if token not in found]
        if left_out and least > best + math.log(_NEGLIGIBLE):
            raise EngineError(
                f"{self._link.url} left out {len(left_out)} of {len(choices)} tokens that matter; start it "
                "with a larger --max-logprobs, or take a model that keeps to the pack's labels"
            )
        return [found.get(token, least) for token in choices]

    def write(self, prompt: Sequence[int], most: int, deadline_ns: int) -> tuple[list[int], bool]:
        answer = self._complete(prompt, most, deadline_ns, stop=["\n"], return_token_ids=True)
        ended = answer.finish_reason == "stop"
        by_token = ended and answer.stop_reason is None  # then the last token is the one that ends the turn
        return answer.token_ids[: -1 if by_token else None], ended

    def _complete(self, prompt: Sequence[int], most: int, deadline_ns: int, **options: Json) -> _Choice:
        body = {"model": self._model.id, "prompt": prompt, "max_tokens": most, "temperature": 0.0}
        body |= {"return_tokens_as_token_ids": True, **options}
        choices = self._link.post("/v1/completions", body, _Completion, deadline_ns).choices
        if not choices:
            raise EngineError(f"{self._link.url}/v1/completions answered with no choice")
        return choices[0]


def _token_id(name: str) -> int:
    _, _, number = name.partition("token_id:")
    return int(number) if number.isdecimal() else -1
