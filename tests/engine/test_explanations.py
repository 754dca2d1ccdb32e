"""Writing an explanation: whatever the model wants, what comes out follows the steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.engine import Fixed, FreeText, OneOf, SomeOf, Step
from thor_policy.core.errors import EngineError
from thor_policy.engine.explanations import ExplanationWriter, Trie

#: Chooses the next token; None: any token may come (free text).
Model = Callable[[Sequence[int] | None], int]

#: Tokens are characters, but for this one, which ends the model's turn and has no text.
END = 0
#: Tokens of more than one character, longest first, as a vocabulary has them.
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
    """The longest piece first, as a vocabulary would cut it."""
    tokens: list[int] = []
    while text:
        piece = next((piece for piece in PIECES if text.startswith(piece)), text[0])
        tokens.append(ord(piece) if len(piece) == 1 else FIRST_PIECE + PIECES.index(piece))
        text = text[len(piece) :]
    return tokens


def start(*steps: Step, tokenise: Callable[[str], list[int]] = characters) -> ExplanationWriter:
    return ExplanationWriter(steps, tokenise=tokenise, text_of=text_of, ends=lambda token: token == END)


def write(writing: ExplanationWriter, model: Model) -> list[int]:
    """Let `model` write to the end; the tokens that an engine would have fed."""
    fed = writing.begin()
    for _ in range(LIMIT):
        if writing.done:
            return fed
        allowed = writing.allowed()
        fed += writing.take(model(None if allowed is None else list(allowed)))
    raise AssertionError(f"no end after {LIMIT} tokens: {writing.text!r}")


def saying(text: str) -> Model:
    """A model that wants to say this, and then ends its turn."""
    wanted = iter([*characters(text), END])
    return lambda allowed: next(wanted)


def picking(*wanted: str) -> Model:
    """A model that takes the first of the allowed characters that is the next one it wants."""
    queue = list("".join(wanted))

    def pick(allowed: Sequence[int] | None) -> int:
        assert allowed is not None
        assert queue, f"asked once more, for one of {text_of(sorted(allowed))!r}"
        token = ord(queue.pop(0))
        assert token in allowed
        return token

    return pick


# ---------------------------------------------------------------- the trie


def test_a_trie_branches_where_a_choice_has_to_be_made() -> None:
    trie = Trie.of({"allow": [1], "mfa": [2, 3], "attest": [2, 4, 5], "deny": [6]})
    branches = list(trie.branches())
    assert [path for path, _ in branches] == [(), (2,)]
    assert [list(node.children) for _, node in branches] == [[1, 2, 6], [3, 4]]


def test_branches_come_depth_first_in_the_order_given() -> None:
    trie = Trie.of({"a": [5, 9, 1], "b": [5, 9, 0], "c": [3, 1], "d": [3, 0], "e": [1]})
    assert [path for path, _ in trie.branches()] == [(), (5, 9), (3,)]


def test_one_sequence_leaves_no_choice() -> None:
    assert list(Trie.of({"only": [1, 2, 3]}).branches()) == []


def test_a_sequence_that_opens_another_is_told() -> None:
    assert Trie.of({"R2": [7, 2], "R1": [7, 1], "R12": [7, 1, 2]}).opening() == "R1"
    assert Trie.of({"allow": [1], "mfa": [2, 3], "attest": [2, 4]}).opening() is None


def test_the_same_tokens_under_two_names_are_refused() -> None:
    with pytest.raises(EngineError, match="cannot tell 'other' from 'one'"):
        Trie.of({"one": [1, 2], "other": [1, 2]})


def test_a_name_without_tokens_is_refused() -> None:
    with pytest.raises(EngineError, match="cannot tell 'nothing'"):
        Trie.of({"nothing": []})


@given(st.dictionaries(st.text(max_size=3), st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=8))
def test_every_name_is_found_again_under_its_tokens(sequences: dict[str, list[int]]) -> None:
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


def test_fixed_text_is_fed_not_asked_for() -> None:
    writing = start(Fixed(text=" deny\nclass:"), Fixed(text=" danger"))
    assert text_of(writing.begin()) == " deny\nclass: danger"
    assert (writing.done, writing.generated_tokens, writing.values) == (True, 0, {})


def test_no_steps_are_done_at_once() -> None:
    writing = start()
    assert writing.begin() == []
    assert writing.done


def test_an_enum_asks_only_where_options_part() -> None:
    writing = start(OneOf(name="class", options=(" routine", " remote", " danger")), Fixed(text="\n"))
    fed = write(writing, picking("r", "e"))
    assert text_of(fed) == " remote\n"
    assert writing.values == {"class": ("remote",)}
    assert writing.generated_tokens == 2


def test_an_enum_of_one_option_asks_nothing() -> None:
    writing = start(OneOf(name="class", options=(" danger",)), Fixed(text="\nnext"))
    assert text_of(writing.begin()) == " danger\nnext"
    assert (writing.done, writing.values, writing.generated_tokens) == (True, {"class": ("danger",)}, 0)


@pytest.mark.parametrize(("wanted", "chosen"), [("1\n", "R1"), ("12", "R12"), ("2", "R2")])
def test_an_option_that_opens_another_ends_where_the_next_text_begins(wanted: str, chosen: str) -> None:
    writing = start(OneOf(name="clause", options=(" R1", " R12", " R2")), Fixed(text="\n"))
    write(writing, picking(wanted))
    assert writing.values == {"clause": (chosen,)}


def some_of(most: int, *options: str, separator: str = ",") -> tuple[Step, ...]:
    return (SomeOf(name="clauses", options=options, most=most, separator=separator), Fixed(text="\nend"))


def test_a_list_goes_on_with_a_separator_or_ends_with_the_next_text() -> None:
    writing = start(*some_of(3, " R1", " R2", " R12"))
    fed = write(writing, picking("1", "2", ",", "2", "\n"))
    assert text_of(fed) == " R12, R2\nend"
    assert writing.values == {"clauses": ("R12", "R2")}


def test_a_list_ends_by_itself_at_its_most_or_when_nothing_is_left() -> None:
    full = start(*some_of(2, " R1", " R2", " R3"))
    assert text_of(write(full, picking("1", ",", "2"))) == " R1, R2\nend"
    short = start(*some_of(5, " R1", " R2"))
    assert text_of(write(short, picking("1", ","))) == " R1, R2\nend"


def test_a_list_does_not_offer_what_was_taken() -> None:
    writing = start(*some_of(3, " R1", " R2", " R3"))
    writing.begin()
    writing.take(ord("2"))
    writing.take(ord(","))
    assert sorted(writing.allowed() or ()) == characters("13")


def test_the_whole_separator_is_written() -> None:
    writing = start(*some_of(2, "R1", "R2", separator=" and "))
    assert text_of(write(writing, picking("1", " "))) == "R1 and R2\nend"


def test_an_enum_that_nothing_closes_is_refused() -> None:
    with pytest.raises(EngineError, match="an enum step must be followed by fixed text"):
        start(OneOf(name="class", options=(" a",))).begin()


@pytest.mark.parametrize(
    ("said", "kept"),
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
def test_free_text_is_one_line_of_bounded_length(said: str, kept: str) -> None:
    writing = start(Fixed(text="because:"), FreeText(name="reasoning", max_tokens=30))
    write(writing, saying(said))
    assert writing.values == {"reasoning": (kept,)}
    assert writing.generated_tokens <= 31


def test_a_token_that_holds_a_line_end_gives_what_stands_before_it() -> None:
    writing = start(FreeText(name="reasoning", max_tokens=30), Fixed(text="\nend"))
    wanted = iter([ord("A"), FIRST_PIECE + PIECES.index(".\n")])
    write(writing, lambda allowed: next(wanted))
    assert writing.values == {"reasoning": ("A.",)}
    assert writing.text == "A\nend"


def test_any_token_may_come_in_free_text() -> None:
    writing = start(FreeText(name="reasoning", max_tokens=30))
    writing.begin()
    assert writing.allowed() is None


# ---------------------------------------------------------------- properties

OPTIONS = st.lists(
    st.sampled_from([" R1", " R12", " R2", " R123", " R", " require_mfa", " require_more", " the one"]),
    min_size=1,
    max_size=7,
    unique=True,
).map(tuple)


@st.composite
def step_lists(draw: st.DrawFn) -> list[Step]:
    """Steps in the order in which packs use them: each choice is followed by fixed text."""
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
    """A model whose logits are noise: any of what is allowed, and any token where all are."""
    dice = random.Random(seed)
    anything = [END, *range(FIRST_PIECE, FIRST_PIECE + len(PIECES)), *map(ord, "\n\r, Rab1\u2028.:")]
    return lambda allowed: dice.choice(anything if allowed is None else allowed)


@given(step_lists(), st.integers(0, 2**32), st.sampled_from([characters, pieces]))
def test_whatever_the_logits_the_text_follows_the_steps(
    steps: list[Step], seed: int, tokenise: Callable[[str], list[int]]
) -> None:
    writing = start(*steps, tokenise=tokenise)
    fed = write(writing, noise(seed))

    assert fed == writing.tokens
    rest = text_of(fed)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(step, Fixed):
            assert rest.startswith(step.text)
            rest = rest.removeprefix(step.text)
            continue
        assert isinstance(following, Fixed)
        written, _, _ = rest.partition(following.text)
        rest = rest.removeprefix(written)
        values = writing.values[step.name]
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
    one, other = start(*steps), start(*steps)
    assert write(one, noise(seed)) == write(other, noise(seed))
    assert (one.text, one.values) == (other.text, other.values)


@given(step_lists(), st.integers(0, 2**32))
def test_a_model_is_asked_only_where_there_is_a_choice(steps: list[Step], seed: int) -> None:
    writing, model = start(*steps), noise(seed)
    writing.begin()
    while not writing.done:
        allowed = writing.allowed()
        assert allowed is None or len(set(allowed)) > 1
        writing.take(model(None if allowed is None else list(allowed)))
    with_choice = [step for step in steps if not isinstance(step, Fixed)]
    assert list(writing.values) == [step.name for step in with_choice]
