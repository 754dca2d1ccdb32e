"""What hooks keep between events: whole files, one taker of a decision, a folder of the user alone."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from thor_policy.hook.calls import Fault
from thor_policy.hook.state import KEEP_ROOT_S, KEEP_S, MOST_CALLS, SWEEP_S, State, default_folder


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


def test_more_equal_calls_than_can_be_kept_block_no_later_one_and_are_losses(state: State) -> None:
    """A call that was denied or broken off never ends."""
    for _ in range(64):
        state.keep_decision("k", "x")
    assert state.losses() == 0
    state.keep_decision("k", "newest")
    assert state.losses() == 64
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
    state.remove_old(time.time())
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


# ---------------------------------------------------------------- bounds: endless calls, sessions, clocks

DAY_S = 86_400


def aged(folder: Path, prefix: str, at: float) -> None:
    """Give the files of a kind another time."""
    for path in (folder / "state").iterdir():
        if path.name.startswith(prefix):
            os.utime(path, (at, at))


def names(folder: Path, prefix: str = "") -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir() if path.name.startswith(prefix))


def test_the_outcome_of_a_call_is_not_put_on_an_equal_one_that_was_declined_before(state: State) -> None:
    """A person declined the first call, so it never ends; the agent makes the call again, and it runs."""
    state.keep_decision("k", "declined")
    state.keep_decision("k", "ran")
    assert state.take_decision("k") == "ran"
    state.keep_decision("k", "ran-again")
    assert state.take_decision("k") == "ran-again"


def test_beside_64_calls_that_never_ended_two_at_the_same_time_each_have_their_own(state: State) -> None:
    for number in range(64):
        state.keep_decision("k", f"declined-{number}")
    state.keep_decision("k", "first")
    state.keep_decision("k", "second")
    assert {state.take_decision("k"), state.take_decision("k")} == {"first", "second"}
    assert state.take_decision("k") == "", "no outcome is put on a call that never ran"
    assert state.losses() == 64


def test_a_thousand_calls_that_never_end_block_none_and_keep_few_files(state: State, tmp_path: Path) -> None:
    for number in range(1_000):
        state.keep_decision("k", str(number))
    assert state.take_decision("k") == "999"
    kept = len(names(tmp_path, "d-"))
    assert kept < 64
    assert kept + 1 + state.losses() == 1_000, "each is kept, taken or counted"


def test_of_equal_calls_kept_by_many_at_the_same_time_each_is_kept_or_counted(
    state: State, tmp_path: Path
) -> None:
    def keep(thread: int) -> None:
        for number in range(50):
            state.keep_decision("k", f"{thread}-{number}")

    threads = [threading.Thread(target=keep, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(tmp_path, "d-")) + state.losses() == 300
    assert names(tmp_path, "t-") == []


def test_an_end_without_a_beginning_takes_nothing_and_is_no_loss(state: State, tmp_path: Path) -> None:
    for number in range(100):
        assert state.take_decision(f"k{number}") == ""
    assert (names(tmp_path), state.losses()) == ([], 0)


def test_an_end_that_is_reported_twice_takes_one_decision(state: State) -> None:
    state.keep_decision("use-1", "one-id")
    assert (state.take_decision("use-1"), state.take_decision("use-1")) == ("one-id", "")


def test_two_decisions_of_one_use_leave_none_for_another_use(state: State) -> None:
    """An agent may ask about one use in two events; its end belongs to the later one."""
    state.keep_decision("use-1", "before-tool")
    state.keep_decision("use-1", "permission")
    assert state.take_decision("use-1") == "permission"
    assert state.take_decision("use-2") == ""


def test_many_sessions_keep_their_texts_and_only_old_ones_are_removed(state: State) -> None:
    for number in range(300):
        state.keep_prompt(f"s{number}", str(number))
        state.keep_root(f"s{number}", f"/srv/{number}")
    state.remove_old(time.time())
    assert all(state.prompt(f"s{number}") == str(number) for number in range(300))
    state.remove_old(time.time() + KEEP_S + 60)
    assert all(state.prompt(f"s{number}") == "" for number in range(300))
    assert all(state.root(f"s{number}") == f"/srv/{number}" for number in range(300)), "roots stay longer"


def test_a_session_that_goes_on_for_weeks_keeps_its_first_folder(state: State, tmp_path: Path) -> None:
    """Otherwise the folder that the agent went to would become the workspace."""
    state.keep_root("a", "/srv/project")
    for use in (lambda: state.keep_root("a", "/srv/elsewhere"), lambda: state.root("a")):
        aged(tmp_path, "r-", time.time() - KEEP_ROOT_S + 60)
        use()
        state.remove_old(time.time() + DAY_S)
        assert state.root("a") == "/srv/project"
    aged(tmp_path, "r-", time.time() - KEEP_ROOT_S - 60)
    state.remove_old(time.time())
    assert state.root("a") == ""


def test_a_clock_that_steps_forward_takes_no_folder_from_a_session_that_is_used(state: State) -> None:
    later = time.time() + 20 * DAY_S  # a device without a clock of its own, after its first contact
    state.keep_root("a", "/srv/project")
    state.remove_old(later)
    state.keep_root("a", "/srv/elsewhere")
    assert state.root("a") == "/srv/project"


def test_files_from_a_future_that_a_wrong_clock_made_are_removed(state: State, tmp_path: Path) -> None:
    state.keep_prompt("a", "text")
    state.keep_decision("k", "x")
    aged(tmp_path, "", time.time() + 400 * DAY_S)
    state.count_loss()
    state.remove_old(time.time())
    assert (names(tmp_path), state.losses()) == (["losses", "swept"], 1)


def test_old_files_are_removed_without_any_text_of_a_user(state: State, tmp_path: Path) -> None:
    """An agent whose hook for texts is not installed."""
    now = time.time()
    state.keep_decision("old", "x")
    aged(tmp_path, "d-", now - KEEP_S - 60)
    state.remove_old_sometimes(now)
    assert names(tmp_path, "d-") == []
    state.keep_decision("old", "x")
    aged(tmp_path, "d-", now - KEEP_S - 60)
    state.remove_old_sometimes(now + 60)
    assert len(names(tmp_path, "d-")) == 1, "a folder is not read at every call"
    state.remove_old_sometimes(now + SWEEP_S + 60)
    assert names(tmp_path, "d-") == []
    state.keep_decision("old", "x")
    aged(tmp_path, "d-", now - KEEP_S - 60)
    state.remove_old_sometimes(now - 10 * DAY_S)  # the clock stepped back
    assert len(names(tmp_path, "d-")) == 0


def test_calls_that_never_end_are_bounded_in_number_and_the_oldest_go_first(
    state: State, tmp_path: Path
) -> None:
    now = time.time()
    for number in range(MOST_CALLS + 5):
        (tmp_path / "state" / f"d-{number}-0").write_text("x")
        os.utime(tmp_path / "state" / f"d-{number}-0", (now - number, now - number))
    state.remove_old(now)
    assert len(names(tmp_path, "d-")) == MOST_CALLS
    assert state.losses() == 5
    assert not (tmp_path / "state" / f"d-{MOST_CALLS + 4}-0").exists()
    assert (tmp_path / "state" / "d-0-0").exists()
