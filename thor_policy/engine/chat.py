"""Chat templates: which bytes of a prompt are the model's own markup, and which are content.

Owns the model file's chat template (Jinja, run in a sandbox: the file may come from anywhere). Invariant:
the template never sees content. It is rendered over stand-ins, and the result is cut at them, so content
cannot change the markup around it. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from thor_policy.core.engine import ChatTurn, PromptPrefix
from thor_policy.core.errors import EngineError


def _simple(opening: str, separator: str, closing: str) -> str:
    """A template that writes each turn alike: opening, role, separator, text, closing."""
    return (
        f"{{% for turn in messages %}}{{{{ '{opening}' + turn.role + '{separator}' + turn.content }}}}"
        f"{{{{ '{closing}' }}}}{{% endfor %}}{{{{ '{opening}assistant{separator}' }}}}"
    )


#: Templates that a setting can name, for a server that does not tell its own.
TEMPLATES = {
    "chatml": _simple("<|im_start|>", r"\n", r"<|im_end|>\n"),
    "phi-4": _simple("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "phi-4-mini": _simple("<|", "|>", "<|end|>"),
}


def markup(template: str, turns: Sequence[ChatTurn], *, bos: str = "", eos: str = "") -> list[str]:
    """The markup around each turn: n turns give n + 1 strings, and the last one opens the answer.

    The text of the turns plays no part. Raises EngineError if the template fails, or drops, repeats or
    reorders a turn.
    """
    stand_ins = [f"\u2063turn-{number}\u2063" for number in range(len(turns))]
    messages = [
        {"role": turn.role, "content": stand_in} for turn, stand_in in zip(turns, stand_ins, strict=True)
    ]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    try:
        text = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
    except Exception as error:  # whatever a stranger's template runs into
        raise EngineError(f"the model's chat template cannot be used: {error}") from error
    pieces = []
    for stand_in in stand_ins:
        before, found, text = text.partition(stand_in)
        if not found or "\u2063" in before:
            raise EngineError("the model's chat template drops, repeats or reorders turns")
        pieces.append(before)
    if "\u2063" in text:
        raise EngineError("the model's chat template repeats a turn")
    return [*pieces, text]


def around(template: str, prefix: PromptPrefix, *, bos: str = "") -> list[str]:
    """The markup around every turn of `prefix`, then around a question, then what opens its answer."""
    return markup(template, (*prefix.turns, ChatTurn(role="user", text="")), bos=bos)


def prompt(
    marks: Sequence[str], prefix: PromptPrefix, tokenise: Callable[[str, bool], list[int]], *, bos: int = -1
) -> tuple[list[int], list[int]]:
    """Token ids up to what differs between questions, and between the question and the label.

    `marks` come from `around`; `tokenise` makes tokens of a text, and special tokens of it only where its
    second argument is True, which is for markup alone. `bos` opens the prompt, if it is a token at all.
    """
    tokens: list[int] = []
    for mark, turn in zip(marks, prefix.turns, strict=False):
        tokens += tokenise(mark, True) + tokenise(turn.text, False)
    tokens += tokenise(marks[-2], True) + tokenise(prefix.question_head, False)
    if bos >= 0 and tokens[0] != bos:
        tokens.insert(0, bos)
    return tokens, tokenise(marks[-1], True) + tokenise(prefix.answer_head, False)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
