"""Code in a command: what it shows plainly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.policy.structure.inline_code import read


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("print('a', \"b c\")", ("a", "b c")),
        (r"print('it\'s', '')", ("it's",)),
        ("`id`; 'x", ("id",)),
        ("1 + 1", ()),
    ],
)
def test_texts_in_quotes_are_read_with_their_escapes(code: str, texts: tuple[str, ...]) -> None:
    assert read(code).texts == texts


@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("print(os.environ)", ("",)),
        ("print(os.environ['HOME'], os.environ.get(\"API_KEY\"))", ("HOME", "API_KEY")),
        ("console.log(process.env.TOKEN, process.env)", ("TOKEN", "")),
        ("puts ENV['A'], ENV.to_h", ("A", "")),
        ('BEGIN{print ENVIRON["A"]}', ("A",)),
        ("print_r(getenv());", ("",)),
        ("myENV = environment", ()),
    ],
)
def test_members_of_the_environment_are_named_and_empty_means_all(
    code: str, variables: tuple[str, ...]
) -> None:
    assert read(code).variables == variables


@pytest.mark.parametrize(
    ("code", "runs_texts", "removes", "runs_foreign"),
    [
        ("os.system('id')", True, False, False),
        ("shutil.rmtree('/')", False, True, False),
        ("exec(b64decode('aWQ='))", True, False, True),
        ("eval(await (await fetch(u)).text())", False, False, True),
        ("print(base64.b64decode(x))", False, False, False),
        ("print(evaluate, remove, executor)", False, False, False),
    ],
)
def test_calls_that_run_or_remove_are_seen(
    code: str, runs_texts: bool, removes: bool, runs_foreign: bool
) -> None:
    shown = read(code)
    assert (shown.runs_texts, shown.removes, shown.runs_foreign) == (runs_texts, removes, runs_foreign)


@given(st.text(max_size=300))
def test_any_code_gives_a_value_of_bounded_size(code: str) -> None:
    assert len(read(code * 40).texts) <= 64
