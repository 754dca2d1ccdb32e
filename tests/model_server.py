"""An HTTP server on loopback with the protocol of llama-server or vLLM; its model is a digest.

Its tokens are bytes, followed by special tokens, of which one is in no template. As vLLM it turns any text
that spells a special token into that token, as vLLM's tokeniser does. `faults` replaces the answer of a path;
`requests` lists every request in order.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SPECIALS = {256: "<|im_start|>", 257: "<|im_end|>", 258: "<|tool|>"}
CONTEXT = 16_384
#: Bytes that the model prefers: those where labels, classes and clauses differ, and the end of a line.
LIKED = frozenset(b"ardmp_12,\n")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)

Body = dict[str, Any]


class Exchange(BaseHTTPRequestHandler):
    """One request; a fault gets this object and answers it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer leaves as it is written
    server: _Http

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Body) -> None:
        tiny = self.server.tiny
        tiny.requests.append((self.path, body))
        if fault := tiny.faults.get(self.path):
            fault(self)
        elif tiny.key and self.headers["Authorization"] != f"Bearer {tiny.key}":
            self.reply(401, {"error": f"you sent {self.headers['Authorization']}"})
        elif (answer := tiny.paths.get(self.path)) is None:
            self.reply(404, {"error": "no such path"})
        else:
            self.reply(200, answer(body))

    def reply(self, status: int, content: bytes | Any, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    tiny: TinyServer

    def handle_error(self, *_: object) -> None:
        """Ignored: some tests disconnect on purpose."""


class TinyServer:
    """The server, as a context manager; `kind` is `llama-server` or `vLLM`."""

    def __init__(self, kind: str = "llama-server", *, key: str = "") -> None:
        self.key = key
        self.requests: list[tuple[str, Body]] = []
        self.faults: dict[str, Callable[[Exchange], None]] = {}
        self.template: str | None = TEMPLATE
        self.build = "b1"
        #: Tokens that open every prompt, if the request wants them.
        self.opening: list[int] = []
        self.models = ["tiny"]
        #: Set to release every answer that `hang` delays.
        self.released = threading.Event()
        self.paths: dict[str, Callable[[Body], Any]] = {
            "/v1/models": lambda _: {"data": [{"id": name, "max_model_len": CONTEXT} for name in self.models]}
        }
        self.paths |= self._llama_server() if kind == "llama-server" else self._vllm()
        self._http = _Http(("127.0.0.1", 0), Exchange)
        self._http.tiny = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> TinyServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def count(self, path: str) -> int:
        """How many requests there were to `path`."""
        return sum(requested == path for requested, _ in self.requests)

    def hang(self, exchange: Exchange) -> None:
        """A fault: no answer until the test ends."""
        self.released.wait()
        exchange.close_connection = True

    def hang_half_way(self, exchange: Exchange) -> None:
        """A fault: the answer begins and never ends."""
        exchange.send_response(200)
        exchange.send_header("Content-Length", "100")
        exchange.end_headers()
        exchange.wfile.write(b"{")
        exchange.wfile.flush()
        self.hang(exchange)

    def _llama_server(self) -> dict[str, Callable[[Body], Any]]:
        return {
            "/props": lambda _: {
                "default_generation_settings": {"n_ctx": CONTEXT},
                "model_path": "/models/tiny.gguf",
                "build_info": self.build,
                "chat_template": self.template or "",
                "bos_token": SPECIALS[256],
            },
            "/tokenize": lambda body: {
                "tokens": self.opening * body["add_special"]
                + tokens_of(body["content"], special=body["parse_special"])
            },
            "/detokenize": lambda body: {"content": text_of(body["tokens"])},
            "/completion": self._completion,
        }

    def _completion(self, body: Body) -> Any:
        prompt = body["prompt"]
        if "n_probs" in body:
            bias = dict(map(tuple, body["logit_bias"]))
            logits = {token: logit + bias.get(token, 0.0) for token, logit in logits_after(prompt).items()}
            top = sorted(logits, key=logits.__getitem__, reverse=True)[: body["top_k"]]
            weights = {token: math.exp(logits[token] - logits[top[0]]) for token in top}
            probabilities = [{"id": t, "prob": w / sum(weights.values())} for t, w in weights.items()]
            return {"completion_probabilities": [{"top_probs": probabilities}]}
        tokens, end = write(prompt, body["n_predict"])
        return {"tokens": tokens, "stop_type": end}

    def _vllm(self) -> dict[str, Callable[[Body], Any]]:
        return {
            "/tokenizer_info": lambda _: {
                "tokenizer_class": "Tiny",
                "bos_token": SPECIALS[256],
                "eos_token": SPECIALS[257],
                "added_tokens_decoder": {str(token): text for token, text in SPECIALS.items()},
                **({"chat_template": self.template} if self.template else {}),
            },
            "/version": lambda _: {"version": self.build},
            "/tokenize": lambda body: {
                "tokens": self.opening * body["add_special_tokens"] + tokens_of(body["prompt"], special=True)
            },
            "/detokenize": lambda body: {"prompt": text_of(body["tokens"])},
            "/v1/completions": self._completions,
        }

    def _completions(self, body: Body) -> Any:
        prompt = body["prompt"]
        if "allowed_token_ids" in body:
            logits = logits_after(prompt)
            total = math.log(sum(map(math.exp, logits.values())))
            best = max(body["allowed_token_ids"], key=logits.__getitem__)
            top = {best, *sorted(logits, key=logits.__getitem__, reverse=True)[: body["logprobs"]]}
            logprobs = {f"token_id:{token}": logits[token] - total for token in top}
            return {"choices": [{"finish_reason": "length", "logprobs": {"top_logprobs": [logprobs]}}]}
        tokens, end = write(prompt, body["max_tokens"])
        reasons = {"limit": ("length", None), "word": ("stop", "\n"), "eos": ("stop", None)}
        finish, stop = reasons[end]
        return {"choices": [{"finish_reason": finish, "stop_reason": stop, "token_ids": tokens}]}


def tokens_of(text: str, *, special: bool) -> list[int]:
    ids = {name: token for token, name in SPECIALS.items()}
    pieces = re.split(f"({'|'.join(map(re.escape, ids))})", text) if special else [text]
    return [token for piece in pieces for token in ([ids[piece]] if piece in ids else piece.encode())]


def text_of(tokens: list[int]) -> str:
    parts = [SPECIALS[token].encode() if token in SPECIALS else bytes([token]) for token in tokens]
    return b"".join(parts).decode("utf-8", "replace")


def logits_after(prompt: list[int]) -> dict[int, float]:
    """A logit from 0 to 8 by a digest of the prompt, and 12 more for each token in `LIKED`."""
    seed = hashlib.sha256(repr(prompt).encode()).digest()
    digests = {
        token: hashlib.sha256(seed + bytes([token % 256, token // 256])).digest() for token in range(259)
    }
    return {token: digest[0] / 32 + 12 * (token in LIKED) for token, digest in digests.items()}


def write(prompt: list[int], most: int) -> tuple[list[int], str]:
    """Greedy tokens to the end of the line or turn, and llama-server's word for how they ended."""
    tokens: list[int] = []
    while len(tokens) < most:
        logits = logits_after([*prompt, *tokens])
        tokens.append(max(logits, key=logits.__getitem__))
        if tokens[-1] in SPECIALS:
            return tokens, "eos"
        if tokens[-1] == ord("\n"):
            return tokens, "word"
    return tokens, "limit"
