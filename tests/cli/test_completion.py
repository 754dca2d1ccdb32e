"""Shell completion: the scripts, and the names that they complete."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from thor_policy.cli.main import cli
from thor_policy.config import data_path
from thor_policy.policy import pack_files


def completions(*words: str) -> dict[str, str]:
    """The completions that bash is offered for the last of the words: values with their types."""
    completion_class = get_completion_class("bash")
    assert completion_class is not None
    script = completion_class(cli, {}, "thorpolicy", "_THORPOLICY_COMPLETE")
    return {item.value: item.type for item in script.get_completions(list(words[:-1]), words[-1])}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_valid_for_its_shell(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert f"_THORPOLICY_COMPLETE={shell}_complete" in result.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=result.stdout, text=True, check=True)


def test_an_unsupported_shell_is_status_2() -> None:
    assert CliRunner().invoke(cli, ["completion", "csh"]).exit_code == 2


def test_commands_are_completed() -> None:
    assert set(completions("me")) == {"metrics"}
    assert set(completions("packs", "l")) == {"list", "lint", "load"}


@pytest.mark.parametrize(
    "words", [("serve", "--model"), ("models", "pull"), ("models", "verify"), ("models", "path")]
)
def test_model_names_are_completed(words: tuple[str, ...]) -> None:
    assert set(completions(*words, "phi-4-q")) == {"phi-4-q4_k_m"}


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--pack"),
        *(("packs", command) for command in ("show", "lint", "render", "load", "activate", "shadow")),
    ],
)
def test_pack_names_are_completed(words: tuple[str, ...]) -> None:
    assert set(completions(*words, "team-")) == {"team-governance"}
    assert set(completions(*words, "")) == set(pack_files.available(data_path("prompts")))


def test_a_path_is_completed_by_the_shell() -> None:
    assert completions("serve", "--model", "./mo") == {"./mo": "file"}
    assert completions("packs", "show", "/etc/pa") == {"/etc/pa": "dir"}
    for words in (("replay", "--adapter"), ("adapters", "activate")):
        assert completions(*words, "./tu") == {"./tu": "file"}


@pytest.mark.parametrize("words", [("replay", "--adapter"), ("adapters", "activate")])
def test_a_full_model_is_not_offered_as_an_adapter(words: tuple[str, ...]) -> None:
    assert set(completions(*words, "phi")) == set()
