"""What hooks keep between events: whole files, one taker of a decision, a folder of the user alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from thor_policy.hook.calls import Fault
from thor_policy.hook.state import KEEP_S, State, default_folder


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(str(tmp_path / "state"))


def test_the_newest_text_of_a_session_counts(state: State) -> None:
    state.keep_prompt("a", "first")
    state.keep_prompt("a", "second")
    state.keep_prompt("b", "other")
    assert (state.prompt("a"), state.prompt("b"), state.prompt("c")) == ("second", "other", "")


def test_the_first_folder_of_a_session_counts(state: State) -> None:
    state.keep_root("a", "/srv/first")
    state.keep_root("a", "/srv/second")
    assert (state.root("a"), state.root("b")) == ("/srv/first", "")


def test_a_session_of_any_name_is_a_file_in_the_folder(state: State, tmp_path: Path) -> None:
    for name in ("../../x", "a/b", "\0", "x" * 5_000, "\ud800"):
        state.keep_prompt(name, "text")
        assert state.prompt(name) == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


def test_each_of_equal_calls_has_its_own_decision(state: State) -> None:
    state.keep_decision("k", "one-id")
    state.keep_decision("k", "two-id")
    assert {state.take_decision("k"), state.take_decision("k")} == {"one-id", "two-id"}
    assert state.take_decision("k") == ""


def test_a_decision_is_taken_by_one_thread_only(state: State) -> None:
    for number in range(20):
        state.keep_decision("k", str(number))
    taken: list[str] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(state.take_decision("k") for _ in range(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(filter(None, taken), key=int) == [str(number) for number in range(20)]


def test_more_equal_calls_than_can_be_kept_replace_another_which_is_a_loss(state: State) -> None:
    """A call that was denied or broken off never ends: that blocks no later one."""
    for _ in range(64):
        state.keep_decision("k", "x")
    state.keep_decision("k", "newest")
    assert state.losses() == 1
    assert state.take_decision("k") == "newest"


def test_losses_are_counted(state: State) -> None:
    assert state.losses() == 0
    state.count_loss()
    state.count_loss()
    assert state.losses() == 2


def test_files_of_sessions_that_ended_are_removed(state: State, tmp_path: Path) -> None:
    state.keep_prompt("a", "old")
    state.keep_decision("k", "new")
    state.count_loss()
    old = next(path for path in (tmp_path / "state").iterdir() if path.name.startswith("p-"))
    os.utime(old, (0, 0))
    state.remove_old(KEEP_S + 1.0)
    assert (state.prompt("a"), state.take_decision("k"), state.losses()) == ("", "new", 1)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(Fault, match="this user alone"):
        State(str(tmp_path / "state"))


def test_a_folder_behind_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to(tmp_path / "real")
    with pytest.raises(Fault, match="this user alone"):
        State(str(tmp_path / "state"))


def test_a_file_that_is_a_symbolic_link_is_not_read(state: State, tmp_path: Path) -> None:
    state.keep_prompt("a", "text")
    file = next((tmp_path / "state").iterdir())
    file.unlink()
    (tmp_path / "secret").write_text("secret")
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(Fault):
        state.prompt("a")


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="--state"):
        State(str(tmp_path / "file" / "state"))


def test_the_folder_is_in_the_runtime_directory_or_in_the_state_directory() -> None:
    assert default_folder({"XDG_RUNTIME_DIR": "/run/user/7"}) == "/run/user/7/thor-policy-hook"
    assert default_folder({"XDG_STATE_HOME": "/s"}) == "/s/thor-policy-hook"
    assert default_folder({"HOME": "/home/ben"}) == "/home/ben/.local/state/thor-policy-hook"
