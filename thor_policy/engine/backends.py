"""The two supported model servers: llama-server and vLLM.

Owns the protocol of each. Invariant: content never becomes a special token of the model, or the server is
refused; every returned number is a finite log-probability of a requested token. Engine thread.
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
from thor_policy.engine.http import Link, PathNotFound

#: Added to the logits of the choices, so that llama-server's sampler keeps only them; float32 then resolves a
#: logit to 8e-6.
_BIAS = 100.0
#: Log of the smallest normal float32: a choice that llama-server leaves out has a smaller probability.
_LEAST = math.log(2.0**-126)
#: Log-probabilities that vLLM returns at most, unless it was started with another --max-logprobs.
_TOP = 20
#: A choice that vLLM left out must have less than this share of the likeliest choice's probability.
_NEGLIGIBLE = 1e-3


class Server(Protocol):
    """A model behind a Link. Every call raises EngineError or DeadlineExceeded."""

    #: Limit of the tokens of prompt and answer together.
    context_tokens: int
    #: The model's chat template, or None, and the text of the token that opens a prompt.
    template: str | None
    bos_text: str

    def identify(self, deadline_ns: int) -> ModelInfo: ...

    def markup(self, text: str, deadline_ns: int, *, opening: bool = False) -> list[int]:
        """Tokens of template text, with special tokens; `opening` adds the tokens that open every prompt."""

    def content(self, text: str, deadline_ns: int) -> list[int]:
        """Tokens of untrusted text, without special tokens."""

    def text_of(self, tokens: Sequence[int], deadline_ns: int) -> str: ...

    def log_probabilities(
        self, prompt: Sequence[int], choices: Sequence[int], deadline_ns: int
    ) -> list[float]:
        """Log-probability of each choice as the next token, up to a constant that all share."""

    def generate(self, prompt: Sequence[int], max_tokens: int, deadline_ns: int) -> tuple[list[int], bool]:
        """Up to `max_tokens` greedy tokens, to the end of the line or turn; True if that end was reached."""


def connect(link: Link, model: str, deadline_ns: int) -> Server:
    """Find out which server answers at `link`. Raises EngineError with the cure."""
    try:
        return LlamaServer(link, model, deadline_ns)
    except PathNotFound:
        pass
    try:
        return Vllm(link, model, deadline_ns)
    except PathNotFound:
        raise EngineError(
            f"{link.url} has neither /props, as llama-server has, nor /tokenizer_info, as vLLM has when "
            "started with --enable-tokenizer-info-endpoint; without one of them the special tokens are "
            "unknown, and the content of a request could become one"
        ) from None


def digest_of_reports(*reports: Json) -> str:
    """The digest of everything a server reports about itself, in canonical JSON; replaces a file's digest."""
    return hashlib.sha256(msgspec.json.encode(reports, order="deterministic")).hexdigest()


def _choose(url: str, name: str, models: Sequence[_Model]) -> _Model:
    """The model called `name`, or the only one if `name` is empty. Raises EngineError."""
    names = [model.id for model in models]
    if not name and len(names) == 1:
        return models[0]
    if name in names:
        return models[names.index(name)]
    setting = f"engine_model is {name!r}" if name else "engine_model is empty"
    raise EngineError(
        f"{setting}, and {url} has {', '.join(names) or 'no model'}: set engine_model to one of them"
    )


# ---------------------------------------------------------------- replies of both


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


class _Weights(Struct, frozen=True):
    completion_probabilities: list[_Sampled]


class _Line(Struct, frozen=True):
    tokens: list[int]
    stop_type: str


class LlamaServer:
    """llama-server's own paths, which accept token ids and tokenise markup and content differently."""

    def __init__(self, link: Link, model: str, deadline_ns: int) -> None:
        self._link, self._model_name = link, model
        props = link.get("/props", _Props, deadline_ns)
        self.context_tokens = props.default_generation_settings.n_ctx
        self.template = props.chat_template or None
        self.bos_text = props.bos_token

    def identify(self, deadline_ns: int) -> ModelInfo:
        props = self._link.get("/props", _Props, deadline_ns)
        model = _choose(
            self._link.url, self._model_name, self._link.get("/v1/models", _Models, deadline_ns).data
        )
        meta = model.meta or {}
        parameters = meta.get("n_params")
        return ModelInfo(
            name=model.id,
            sha256=digest_of_reports(self._link.url, model.id, props, meta),
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

    def log_probabilities(
        self, prompt: Sequence[int], choices: Sequence[int], deadline_ns: int
    ) -> list[float]:
        """A bias lifts the choices above all other tokens, and the sampler keeps only them.

        So their probabilities are exact, whatever their rank was.
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
        positions = self._link.post("/completion", body, _Weights, deadline_ns).completion_probabilities
        probs = {token.id: token.prob for position in positions[:1] for token in position.top_probs}
        if not probs or not probs.keys() <= set(choices) or not all(0 < p <= 1.001 for p in probs.values()):
            raise EngineError(f"{self._link.url} returned no valid probabilities of the requested tokens")
        return [math.log(probs[token]) if token in probs else _LEAST for token in choices]

    def generate(self, prompt: Sequence[int], max_tokens: int, deadline_ns: int) -> tuple[list[int], bool]:
        body = {
            "prompt": prompt,
            "n_predict": max_tokens,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "mirostat": 0,
            "stop": ["\n"],
            "cache_prompt": True,
            "return_tokens": True,
            "response_fields": ["tokens", "stop_type"],
        }
        line = self._link.post("/completion", body, _Line, deadline_ns)
        by_token = line.stop_type == "eos"  # then the last token is the end-of-turn token
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
    """vLLM's OpenAI paths, and the paths of its tokeniser.

    The tokeniser always turns the text of a special token into that token. So content is cut inside every
    such text, by the list from /tokenizer_info, and the resulting tokens are checked against that list.
    """

    def __init__(self, link: Link, model: str, deadline_ns: int) -> None:
        self._link, self._model_name = link, model
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
                f"{link.url} does not list all its special tokens (added_tokens_decoder of /tokenizer_info), "
                "so the content of a request could become one; use a llama-server, or a model in process"
            )
        self._model = _choose(link.url, model, link.get("/v1/models", _Models, deadline_ns).data)
        self.context_tokens = self._model.max_model_len or 0
        self.template = info.chat_template
        self.bos_text = info.bos_token or ""

    def identify(self, deadline_ns: int) -> ModelInfo:
        info = self._link.get("/tokenizer_info", dict[str, Json], deadline_ns)
        model = _choose(
            self._link.url, self._model_name, self._link.get("/v1/models", _Models, deadline_ns).data
        )
        version = self._link.get("/version", _Version, deadline_ns).version
        return ModelInfo(
            name=model.id,
            sha256=digest_of_reports(self._link.url, model, version, info),
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
            raise EngineError(f"{self._link.url} turned the content of a request into a special token")
        return tokens

    def _cut(self, text: str) -> list[str]:
        """Pieces of which none contains the text of a special token, if that has two characters or more."""
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

    def log_probabilities(
        self, prompt: Sequence[int], choices: Sequence[int], deadline_ns: int
    ) -> list[float]:
        """vLLM always returns the likeliest choice, because no other token may be sampled.

        A choice that it leaves out gets an upper bound, the least returned log-probability, if that is
        negligible beside the likeliest choice: a looser label must not gain from an unknown number.
        Otherwise raises EngineError.
        """
        choice = self._complete(prompt, 1, deadline_ns, logprobs=_TOP, allowed_token_ids=choices)
        if choice.logprobs is None or not choice.logprobs.top_logprobs:
            raise EngineError(f"{self._link.url} returned no log-probabilities")
        logprobs = {_token_id(name): value for name, value in choice.logprobs.top_logprobs[0].items()}
        if logprobs.keys().isdisjoint(choices) or not all(map(math.isfinite, logprobs.values())):
            raise EngineError(f"{self._link.url} returned no valid probabilities of the requested tokens")
        least, best = min(logprobs.values()), max(logprobs[token] for token in choices if token in logprobs)
        left_out = [token for token in choices if token not in logprobs]
        if left_out and least > best + math.log(_NEGLIGIBLE):
            raise EngineError(
                f"{self._link.url} left out {len(left_out)} of {len(choices)} tokens that matter; start it "
                "with a larger --max-logprobs, or use a model that follows the pack's labels"
            )
        return [logprobs.get(token, least) for token in choices]

    def generate(self, prompt: Sequence[int], max_tokens: int, deadline_ns: int) -> tuple[list[int], bool]:
        choice = self._complete(prompt, max_tokens, deadline_ns, stop=["\n"], return_token_ids=True)
        ended = choice.finish_reason == "stop"
        by_token = ended and choice.stop_reason is None  # then the last token is the end-of-turn token
        return choice.token_ids[: -1 if by_token else None], ended

    def _complete(self, prompt: Sequence[int], max_tokens: int, deadline_ns: int, **options: Json) -> _Choice:
        body = {"model": self._model.id, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0}
        body |= {"return_tokens_as_token_ids": True, **options}
        choices = self._link.post("/v1/completions", body, _Completion, deadline_ns).choices
        if not choices:
            raise EngineError(f"{self._link.url}/v1/completions returned no choice")
        return choices[0]


def _token_id(name: str) -> int:
    _, _, number = name.partition("token_id:")
    return int(number) if number.isdecimal() else -1
