"""The writing of explanations: whatever the model prefers, the text follows the steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.engine import Fixed, FreeText, OneOf, SomeOf, Step
from thor_policy.core.errors import EngineError
from thor_policy.engine.explanations import ExplanationWriter, Trie

#: Chooses the next token among those allowed; None: any token is allowed (free text).
Model = Callable[[Sequence[int] | None], int]

#: Tokens are characters, except this one, which ends the model's turn and has no text.
END = 0
#: Tokens of more than one character, longest first, as in a vocabulary.
PIECES = ("\n\n", ".\n", " R1", " R", "12", "the ", " require_", ",")
FIRST_PIECE = 0x11_0000
LIMIT = 500


def text_of(tokens: Sequence[int]) -> str:
    return "".join(
        PIECES[token - FIRST_PIECE] if token >= FIRST_PIECE else chr(token) if token else ""
        for token in tokens
    )


def characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def pieces(text: str) -> list[int]:
    """Tokens of a text, the longest possible piece first, as in a vocabulary."""
    tokens: list[int] = []
    while text:
        piece = next((piece for piece in PIECES if text.startswith(piece)), text[0])
        tokens.append(ord(piece) if len(piece) == 1 else FIRST_PIECE + PIECES.index(piece))
        text = text[len(piece) :]
    return tokens


def start(*steps: Step, tokenise: Callable[[str], list[int]] = characters) -> ExplanationWriter:
    return ExplanationWriter(steps, tokenise=tokenise, text_of=text_of, ends=lambda token: token == END)


def write(writer: ExplanationWriter, model: Model) -> list[int]:
    """Let `model` write to the end; returns the tokens that an engine would feed."""
    fed = writer.begin()
    for _ in range(LIMIT):
        if writer.done:
            return fed
        allowed = writer.allowed()
        fed += writer.take(model(None if allowed is None else list(allowed)))
    raise AssertionError(f"no end after {LIMIT} tokens: {writer.text!r}")


def text_model(text: str) -> Model:
    """A model that writes `text` and then ends its turn."""
    tokens = iter([*characters(text), END])
    return lambda allowed: next(tokens)


def choice_model(*choices: str) -> Model:
    """A model that chooses these characters in turn; each must be allowed."""
    queue = list("".join(choices))

    def pick(allowed: Sequence[int] | None) -> int:
        assert allowed is not None
        assert queue, f"asked for another choice, among {text_of(sorted(allowed))!r}"
        token = ord(queue.pop(0))
        assert token in allowed
        return token

    return pick


# ---------------------------------------------------------------- the trie


def test_a_trie_branches_where_its_sequences_differ() -> None:
    trie = Trie.of({"allow": [1], "mfa": [2, 3], "attest": [2, 4, 5], "deny": [6]})
    branches = list(trie.branches())
    assert [path for path, _ in branches] == [(), (2,)]
    assert [list(node.children) for _, node in branches] == [[1, 2, 6], [3, 4]]


def test_branches_come_depth_first_in_the_order_given() -> None:
    trie = Trie.of({"a": [5, 9, 1], "b": [5, 9, 0], "c": [3, 1], "d": [3, 0], "e": [1]})
    assert [path for path, _ in trie.branches()] == [(), (5, 9), (3,)]


def test_a_trie_of_one_sequence_has_no_branch() -> None:
    assert list(Trie.of({"only": [1, 2, 3]}).branches()) == []


def test_first_prefix_names_a_sequence_with_which_another_begins() -> None:
    assert Trie.of({"R2": [7, 2], "R1": [7, 1], "R12": [7, 1, 2]}).first_prefix() == "R1"
    assert Trie.of({"allow": [1], "mfa": [2, 3], "attest": [2, 4]}).first_prefix() is None


def test_the_same_tokens_under_two_names_are_refused() -> None:
    with pytest.raises(EngineError, match="'second' is empty or equals 'first'"):
        Trie.of({"first": [1, 2], "second": [1, 2]})


def test_a_name_without_tokens_is_refused() -> None:
    with pytest.raises(EngineError, match="'nothing' is empty"):
        Trie.of({"nothing": []})


@given(st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=8))
def test_the_tokens_of_every_name_lead_to_it(sequences: dict[str, list[int]]) -> None:
    if len({tuple(tokens) for tokens in sequences.values()}) < len(sequences):
        with pytest.raises(EngineError):
            Trie.of(sequences)
        return
    trie = Trie.of(sequences)
    for name, tokens in sequences.items():
        node = trie
        for token in tokens:
            node = node.children[token]
        assert node.value == name


# ---------------------------------------------------------------- single steps


def test_fixed_text_is_fed_without_a_choice() -> None:
    writer = start(Fixed(text=" deny\nclass:"), Fixed(text=" danger"))
    assert text_of(writer.begin()) == " deny\nclass: danger"
    assert (writer.done, writer.generated_tokens, writer.values) == (True, 0, {})


def test_an_explanation_without_steps_is_done_at_once() -> None:
    writer = start()
    assert writer.begin() == []
    assert writer.done


def test_an_enum_needs_a_choice_only_where_its_options_differ() -> None:
    writer = start(OneOf(name="class", options=(" routine", " remote", " danger")), Fixed(text="\n"))
    fed = write(writer, choice_model("r", "e"))
    assert text_of(fed) == " remote\n"
    assert writer.values == {"class": ("remote",)}
    assert writer.generated_tokens == 2


def test_an_enum_of_one_option_needs_no_choice() -> None:
    writer = start(OneOf(name="class", options=(" danger",)), Fixed(text="\nnext"))
    assert text_of(writer.begin()) == " danger\nnext"
    assert (writer.done, writer.values, writer.generated_tokens) == (True, {"class": ("danger",)}, 0)


@pytest.mark.parametrize(("choices", "chosen"), [("1\n", "R1"), ("12", "R12"), ("2", "R2")])
def test_an_option_that_begins_another_ends_where_the_next_text_begins(choices: str, chosen: str) -> None:
    writer = start(OneOf(name="clause", options=(" R1", " R12", " R2")), Fixed(text="\n"))
    write(writer, choice_model(choices))
    assert writer.values == {"clause": (chosen,)}


def some_of(most: int, *options: str, separator: str = ",") -> tuple[Step, ...]:
    return (SomeOf(name="clauses", options=options, most=most, separator=separator), Fixed(text="\nend"))


def test_a_list_continues_with_a_separator_or_ends_with_the_next_text() -> None:
    writer = start(*some_of(3, " R1", " R2", " R12"))
    fed = write(writer, choice_model("1", "2", ",", "2", "\n"))
    assert text_of(fed) == " R12, R2\nend"
    assert writer.values == {"clauses": ("R12", "R2")}


def test_a_list_ends_at_its_maximum_or_when_no_option_is_left() -> None:
    full = start(*some_of(2, " R1", " R2", " R3"))
    assert text_of(write(full, choice_model("1", ",", "2"))) == " R1, R2\nend"
    short = start(*some_of(5, " R1", " R2"))
    assert text_of(write(short, choice_model("1", ","))) == " R1, R2\nend"


def test_a_list_does_not_allow_an_option_twice() -> None:
    writer = start(*some_of(3, " R1", " R2", " R3"))
    writer.begin()
    writer.take(ord("2"))
    writer.take(ord(","))
    assert sorted(writer.allowed() or ()) == characters("13")


def test_the_whole_separator_is_written() -> None:
    writer = start(*some_of(2, "R1", "R2", separator=" and "))
    assert text_of(write(writer, choice_model("1", " "))) == "R1 and R2\nend"


def test_an_enum_without_fixed_text_after_it_is_refused() -> None:
    with pytest.raises(EngineError, match="an enum step must be followed by fixed text"):
        start(OneOf(name="class", options=(" a",))).begin()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (" It is so.", "It is so."),
        (" It is so.\nAnd more", "It is so."),
        (" One\rtwo\u2028three\x85four", "One two three four"),
        ("  spaced   out  ", "spaced out"),
        ("\n", ""),
        ("", ""),
        (" " + "x" * 100, "x" * 29),
    ],
)
def test_free_text_is_one_line_of_bounded_length(written: str, value: str) -> None:
    writer = start(Fixed(text="because:"), FreeText(name="reasoning", max_tokens=30))
    write(writer, text_model(written))
    assert writer.values == {"reasoning": (value,)}
    assert writer.generated_tokens <= 31


def test_free_text_ends_within_a_token_that_contains_a_line_end() -> None:
    writer = start(FreeText(name="reasoning", max_tokens=30), Fixed(text="\nend"))
    tokens = iter([ord("A"), FIRST_PIECE + PIECES.index(".\n")])
    write(writer, lambda allowed: next(tokens))
    assert writer.values == {"reasoning": ("A.",)}
    assert writer.text == "A\nend"


def test_free_text_allows_any_token() -> None:
    writer = start(FreeText(name="reasoning", max_tokens=30))
    writer.begin()
    assert writer.allowed() is None


# ---------------------------------------------------------------- properties

OPTIONS = st.lists(
    st.sampled_from([" R1", " R12", " R2", " R123", " R", " require_mfa", " require_more", " the one"]),
    min_size=1,
    max_size=7,
    unique=True,
).map(tuple)


@st.composite
def step_lists(draw: st.DrawFn) -> list[Step]:
    """Steps as packs use them: fixed text follows each choice."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 4))):
        name = f"step-{number}"
        choice: Step = draw(
            st.builds(OneOf, name=st.just(name), options=OPTIONS)
            | st.builds(SomeOf, name=st.just(name), options=OPTIONS, most=st.integers(1, 4))
            | st.builds(FreeText, name=st.just(name), max_tokens=st.integers(1, 12))
        )
        steps += [choice, Fixed(text=f"\nfield {number}:")]
    return [Fixed(text=" deny\n"), *steps] if draw(st.booleans()) else steps


def noise(seed: int) -> Model:
    """A model that chooses at random among the allowed tokens."""
    dice = random.Random(seed)
    anything = [END, *range(FIRST_PIECE, FIRST_PIECE + len(PIECES)), *map(ord, "\n\r, Rab1\u2028.:")]
    return lambda allowed: dice.choice(anything if allowed is None else allowed)


@given(step_lists(), st.integers(0, 2**32), st.sampled_from([characters, pieces]))
def test_whatever_the_logits_the_text_follows_the_steps(
    steps: list[Step], seed: int, tokenise: Callable[[str], list[int]]
) -> None:
    writer = start(*steps, tokenise=tokenise)
    fed = write(writer, noise(seed))

    assert fed == writer.tokens
    rest = text_of(fed)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, Fixed):
            assert rest.startswith(step.text)
            rest = rest.removeprefix(step.text)
            continue
        assert isinstance(following, Fixed)
        written, _, _ = rest.partition(following.text)
        rest = rest.removeprefix(written)
        values = writer.values[step.name]
        assert "\n" not in written
        if isinstance(step, FreeText):
            (value,) = values
            assert len(value.splitlines()) <= 1
            assert value in (" ".join(written.split()), " ".join(f"{written}.".split()))
            assert len(written) <= step.max_tokens * max(map(len, PIECES))
            continue
        separator = step.separator if isinstance(step, SomeOf) else "\0"
        chosen = written.split(separator)
        assert set(chosen) <= set(step.options)
        assert len(set(chosen)) == len(chosen) <= (step.most if isinstance(step, SomeOf) else 1)
        assert values == tuple(option.strip() for option in chosen)
    assert rest == ""


@given(step_lists(), st.integers(0, 2**32))
def test_the_same_choices_write_the_same_text(steps: list[Step], seed: int) -> None:
    first, second = start(*steps), start(*steps)
    assert write(first, noise(seed)) == write(second, noise(seed))
    assert (first.text, first.values) == (second.text, second.values)


@given(step_lists(), st.integers(0, 2**32))
def test_a_model_is_asked_only_where_there_is_a_choice(steps: list[Step], seed: int) -> None:
    writer, model = start(*steps), noise(seed)
    writer.begin()
    while not writer.done:
        allowed = writer.allowed()
        assert allowed is None or len(set(allowed)) > 1
        writer.take(model(None if allowed is None else list(allowed)))
    with_choice = [step for step in steps if not isinstance(step, Fixed)]
    assert list(writer.values) == [step.name for step in with_choice]
