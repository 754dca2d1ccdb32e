"""Chat templates: which bytes of a prompt are the model's markup, and which are content.

Owns the model file's chat template (Jinja, run in a sandbox, because the file is not trusted). Invariant: the
template never sees content. It is rendered with placeholders, and the result is cut at them, so content
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
    """A template that writes every turn as opening, role, separator, text, closing."""
    return (
        f"{{% for turn in messages %}}{{{{ '{opening}' + turn.role + '{separator}' + turn.content }}}}"
        f"{{{{ '{closing}' }}}}{{% endfor %}}{{{{ '{opening}assistant{separator}' }}}}"
    )


#: Values of the setting `engine_template`, for a server that does not report its template.
TEMPLATES = {
    "chatml": _simple("<|im_start|>", r"\n", r"<|im_end|>\n"),
    "phi-4": _simple("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "phi-4-mini": _simple("<|", "|>", "<|end|>"),
}


def markup(template: str, turns: Sequence[ChatTurn], *, bos: str = "", eos: str = "") -> list[str]:
    """The markup around each turn: n turns give n + 1 strings, and the last one opens the answer.

    The text of the turns is not used. Raises EngineError if the template fails, or drops, repeats or
    reorders a turn.
    """
    placeholders = [f"\u2063turn-{number}\u2063" for number in range(len(turns))]
    messages = [
        {"role": turn.role, "content": placeholder}
        for turn, placeholder in zip(turns, placeholders, strict=True)
    ]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    try:
        text = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
    except Exception as error:  # an untrusted template can raise anything
        raise EngineError(f"the model's chat template cannot be used: {error}") from error
    pieces = []
    for placeholder in placeholders:
        before, match, text = text.partition(placeholder)
        if not match or "\u2063" in before:
            raise EngineError("the model's chat template drops, repeats or reorders turns")
        pieces.append(before)
    if "\u2063" in text:
        raise EngineError("the model's chat template repeats a turn")
    return [*pieces, text]


def around(template: str, prefix: PromptPrefix, *, bos: str = "") -> list[str]:
    """The markup around every turn of `prefix` and around a question; the last string opens the answer."""
    return markup(template, (*prefix.turns, ChatTurn(role="user", text="")), bos=bos)


def prompt(
    marks: Sequence[str], prefix: PromptPrefix, tokenise: Callable[[str, bool], list[int]], *, bos: int = -1
) -> tuple[list[int], list[int]]:
    """Token ids that precede every question, and those between a question and its label.

    `marks` come from `around`. `tokenise` turns a text into tokens; its second argument is True for markup,
    and only then may it make special tokens. `bos` opens the prompt, unless it is negative.
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
