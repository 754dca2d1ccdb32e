"""The context for agents: Markdown within a budget, cut visibly; a hostile title stays text on its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.build import record
from tests.work import HOSTILE, node, recorded_history
from thor_policy import catalog
from thor_policy.engine.native import Vocabulary
from thor_policy.journal.reader import Reader
from thor_policy.trace.context import LEAST_TOKENS, TOKENS, Context, context, tokens_at_most


def test_a_small_history_is_shown_whole(tmp_path: Path) -> None:
    with Reader(recorded_history(tmp_path / "j.db")) as reader:
        made = context(reader, session="s1")
    assert made.text.splitlines() == [
        "# Work",
        "",
        "## Active goals",
        "",
        "- again (id ..again)",
        "- docs (id ..docs)",
        "- speed (confidence 30 %, id ..speed)",
        "- ship (confidence 90 %, id ..ship)",
        "",
        "## Recent decisions",
        "",
        "- sure (abandoned, confidence 50 %, id ..sure)",
        "- guess (confidence 49 %, id ..guess)",
        "- policy\\_application: deny (id ..-decided)",
        "- use-fast (confidence 70 %, id ..use-fast)",
        "",
        "## Session s1",
        "",
        "- action: write (id ..write)",
        "- decision: use-fast (confidence 70 %, id ..use-fast)",
        "- option: slow-path (id ..low-path)",
        "- option: fast-path (id ..ast-path)",
        "- goal: ship (confidence 90 %, id ..ship)",
    ]
    assert (made.left_out, made.tokens <= TOKENS) == (0, True)


def busy(path: Path) -> Path:
    """Forty long goals and decisions, and a session of them."""
    title = "Replace the old importer, number {}, before 2026-12-31; see ticket 0x{}f"
    goals = [node(f"g{n}", "goal", title=title.format(n, n), session="s") for n in range(40)]
    decisions = [node(f"d{n}", "decision", title=title.format(n, n), session="s") for n in range(40)]
    record(path, *goals, *decisions)
    return path


def sections(made: Context) -> list[int]:
    """The lines of each section, without the one that says how many are left out."""
    parts = made.text.split("\n## ")[1:]
    return [sum(line.startswith("- ") and "(cut at" not in line for line in p.split("\n")) for p in parts]


@pytest.mark.parametrize("budget", [LEAST_TOKENS, 300, 500, TOKENS, 2_000])
def test_a_context_never_has_more_tokens_than_its_budget_and_says_what_is_cut(
    tmp_path: Path, budget: int
) -> None:
    with Reader(busy(tmp_path / "j.db")) as reader:
        made = context(reader, session="s", budget=budget)
    assert made.tokens == tokens_at_most(made.text) <= budget
    shown = sections(made)
    assert made.left_out == 40 + 40 + 50 - sum(shown) > 0
    assert max(shown) - min(shown) <= 1  # each section got its turn
    for left in (40 - shown[0], 40 - shown[1], 50 - shown[2]):
        assert f"- (cut at {budget:,} tokens: {left} more)" in made.text


def test_the_longest_name_of_a_session_fits_into_the_least_budget(tmp_path: Path) -> None:
    name = "\u202e" * 256
    with Reader(busy(tmp_path / "j.db")) as reader:
        made = context(reader, session=name, budget=LEAST_TOKENS)
    assert made.tokens <= LEAST_TOKENS
    assert "\u202e" not in made.text


def test_a_hostile_title_is_text_on_its_own_line(tmp_path: Path) -> None:
    titles = [
        *HOSTILE.values(),
        "# Heading",
        "[a](http://b)",
        "![a](b)",
        "`code`",
        "***x***",
        "- item",
        "> q",
        "+ x",
        "1. one",
        "2) two",
        "      code",
        "---",
        "===",
        "~~~",
        "\u2003# wide",
    ]
    record(tmp_path / "j.db", *(node(f"g{n}", "goal", title=title) for n, title in enumerate(titles)))
    with Reader(tmp_path / "j.db") as reader:
        made = context(reader, budget=100_000)
    tokens = MarkdownIt("commonmark").parse(made.text)
    kinds = [token.type for token in tokens]
    assert (kinds.count("heading_open"), kinds.count("list_item_open")) == (3, len(titles))
    inside = {child.type for token in tokens if token.type == "inline" for child in token.children or []}
    assert inside <= {"text", "text_special"}
    assert "html_block" not in kinds


@pytest.mark.model
def test_the_estimate_is_not_below_the_tokenizer_of_the_model(
    tmp_path: Path, model_file: catalog.ModelFile
) -> None:
    vocabulary = Vocabulary(model_file.path, vocab_only=True)
    with Reader(busy(tmp_path / "j.db")) as reader:
        text = context(reader, session="s", budget=100_000).text
    for some in (
        text,
        "# Work\n\n- 0x1f…\n",
        "Überprüfung der Größe; 漢字 😀",
        *HOSTILE.values(),
        "a b  c\t\n\n",
    ):
        assert len(vocabulary.tokenise(some)) <= tokens_at_most(some), some
    vocabulary.close()
