"""Shell completion: the scripts, and what they are told to complete."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from thor_policy.cli.main import cli
from thor_policy.config import data_path
from thor_policy.policy import pack_files


def completed(*words: str) -> dict[str, str]:
    """What bash would be offered after those words, the last one begun: values with their types."""
    kind = get_completion_class("bash")
    assert kind is not None
    script = kind(cli, {}, "thorpolicy", "_THORPOLICY_COMPLETE")
    return {item.value: item.type for item in script.get_completions(list(words[:-1]), words[-1])}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_what_the_shell_can_read(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0, result.output
    assert f"_THORPOLICY_COMPLETE={shell}_complete" in result.stdout
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=result.stdout, text=True, check=True)


def test_of_another_shell_there_is_none() -> None:
    assert CliRunner().invoke(cli, ["completion", "csh"]).exit_code == 2


def test_commands_are_completed() -> None:
    assert set(completed("me")) == {"metrics"}
    assert set(completed("packs", "l")) == {"list", "lint", "load"}


@pytest.mark.parametrize(
    "words", [("serve", "--model"), ("models", "pull"), ("models", "verify"), ("models", "path")]
)
def test_names_of_models_are(words: tuple[str, ...]) -> None:
    assert set(completed(*words, "phi-4-q")) == {"phi-4-q4_k_m"}


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--pack"),
        *(("packs", one) for one in ("show", "lint", "render", "load", "activate", "shadow")),
    ],
)
def test_names_of_packs_are(words: tuple[str, ...]) -> None:
    assert set(completed(*words, "team-")) == {"team-governance"}
    assert set(completed(*words, "")) == set(pack_files.available(data_path("prompts")))


def test_a_path_that_is_begun_is_completed_by_the_shell() -> None:
    assert completed("serve", "--model", "./mo") == {"./mo": "file"}
    assert completed("packs", "show", "/etc/pa") == {"/etc/pa": "dir"}
    for words in (("replay", "--adapter"), ("adapters", "activate")):
        assert completed(*words, "./tu") == {"./tu": "file"}


@pytest.mark.parametrize("words", [("replay", "--adapter"), ("adapters", "activate")])
def test_a_whole_model_is_no_adapter(words: tuple[str, ...]) -> None:
    assert set(completed(*words, "phi")) == set()
