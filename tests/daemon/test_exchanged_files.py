"""A state directory, database or write-ahead log that is exchanged while the daemon runs: nothing is recorded
into a file that no name leads to, nothing is read as recorded from another, and all goes on once it is back.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.build import Fates, note, rows
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.journal import writer
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.testing import load_stub_engine

PATIENCE_S = 30
QUESTION: Json = {
    "subject": {"type": "user", "id": "a"},
    "action": {"name": "look"},
    "resource": {"type": "doc", "id": "d"},
}


class Exchange(NamedTuple):
    """What is done to the folder of a journal, how it is undone, and what the reason names."""

    do: Callable[[Path, Path], object]
    undo: Callable[[Path, Path], object]
    reason: str


def put_aside(folder: Path, aside: Path) -> None:
    folder.rename(aside)


def put_back(folder: Path, aside: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def by_an_empty_one(folder: Path, aside: Path) -> None:
    folder.rename(aside)
    folder.mkdir(0o750)


def by_a_copy(folder: Path, aside: Path) -> None:
    folder.rename(aside)
    shutil.copytree(aside, folder)


def by_a_link_to_a_copy(folder: Path, aside: Path) -> None:
    folder.rename(aside)
    shutil.copytree(aside, copy := aside.with_name("copy"))
    folder.symlink_to(copy)


def parent_exchanged(folder: Path, aside: Path) -> None:
    folder.parent.rename(aside)
    folder.mkdir(0o750, parents=True)


def parent_back(folder: Path, aside: Path) -> None:
    shutil.rmtree(folder.parent)
    aside.rename(folder.parent)


def file_aside(name: str) -> Callable[[Path, Path], object]:
    return lambda folder, aside: (folder / name).rename(aside)


def file_back(name: str) -> Callable[[Path, Path], object]:
    return lambda folder, aside: aside.replace(folder / name)


def file_copied(name: str) -> Callable[[Path, Path], object]:
    def do(folder: Path, aside: Path) -> None:
        (folder / name).rename(aside)
        shutil.copy2(aside, folder / name)

    return do


def file_linked(name: str) -> Callable[[Path, Path], object]:
    def do(folder: Path, aside: Path) -> None:
        (folder / name).rename(aside)
        (folder / name).symlink_to(aside)

    return do


def directory_in_its_place(folder: Path, aside: Path) -> None:
    (folder / "journal.db").rename(aside)
    (folder / "journal.db").mkdir()


def directory_gone(folder: Path, aside: Path) -> None:
    (folder / "journal.db").rmdir()
    aside.rename(folder / "journal.db")


DB, WAL = "journal.db", "journal.db-wal"
EXCHANGES = {
    "directory renamed": Exchange(put_aside, put_back, "cannot be reached"),
    "directory replaced by an empty one": Exchange(by_an_empty_one, put_back, "another directory"),
    "directory replaced by a copy": Exchange(by_a_copy, put_back, "another directory"),
    "directory replaced by a link to a copy": Exchange(by_a_link_to_a_copy, put_back, "another directory"),
    "directory above replaced": Exchange(parent_exchanged, parent_back, "another directory"),
    "database removed": Exchange(file_aside(DB), file_back(DB), "journal.db is gone"),
    "database replaced by a copy": Exchange(file_copied(DB), file_back(DB), "journal.db is another file"),
    "database replaced by a link to itself": Exchange(file_linked(DB), file_back(DB), "is another file"),
    "database replaced by a directory": Exchange(directory_in_its_place, directory_gone, "is another file"),
    "log replaced by a copy": Exchange(file_copied(WAL), file_back(WAL), "journal.db-wal is another file"),
    "log removed": Exchange(file_aside(WAL), file_back(WAL), "journal.db-wal is gone"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "above" / "state"
    place.mkdir(0o750, parents=True)
    return place


@pytest.fixture
def fates() -> Fates:
    return Fates()


@pytest.fixture
def journal(folder: Path, fates: Fates) -> Iterator[Journal]:
    with closing(Journal(folder / DB, on_committed=fates)) as opened:
        opened.append(note("before"))
        fates.wait(1)
        yield opened


@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=list(EXCHANGES))
def test_nothing_is_acknowledged_that_no_name_leads_to_and_all_goes_on_when_it_is_back(
    journal: Journal, fates: Fates, folder: Path, tmp_path: Path, exchange: Exchange
) -> None:
    aside = tmp_path / "aside"
    exchange.do(folder, aside)
    journal.append(note("during", ticket=1))
    (fate,) = fates.wait(1)
    assert fate.error == "unavailable"
    reason = journal.refusal()
    assert reason is not None
    assert reason.code == "unavailable"
    assert exchange.reason in reason.message
    assert "put the opened one back, or restart the daemon" in reason.message
    assert journal.counters["exchanged"] == 1

    exchange.undo(folder, aside)
    journal.append(note("after", ticket=2))
    (fate,) = fates.wait(1)
    assert fate.error is None
    assert journal.refusal() is None
    journal.close()
    assert [kind for (kind,) in rows(folder / DB, "SELECT kind FROM events")] == ["note", "gap", "note"]
    assert verify(folder / DB).ok


@pytest.mark.parametrize("name", ["directory replaced by an empty one", "database removed", "log removed"])
def test_an_idle_journal_notices_by_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(writer, "IDLE_S", 0.001)
    exchange = EXCHANGES[name]
    with Journal(folder / DB, ballast_mb=1) as journal:
        journal.commit(note()).result()
        exchange.do(folder, tmp_path / "aside")
        until = time.monotonic() + PATIENCE_S
        while not journal.counters["exchanged"] and time.monotonic() < until:
            journal.run(lambda _: None).exception()  # lets the thread have its turn
        assert journal.counters["exchanged"] >= 1
        if "directory" in name:
            assert list(folder.iterdir()) == []  # no ballast, no checkpoint
        exchange.undo(folder, tmp_path / "aside")
        assert journal.commit(note()).result().error is None


def test_a_task_is_refused_while_the_files_are_exchanged(
    journal: Journal, folder: Path, tmp_path: Path
) -> None:
    by_a_copy(folder, tmp_path / "aside")
    error = journal.run(lambda connection: connection.execute("SELECT 1").fetchone()).exception()
    assert "is another directory since the journal was opened" in str(error)
    put_back(folder, tmp_path / "aside")


def test_a_daemon_refuses_with_the_reason_until_the_directory_is_back(
    config: Config, short_dir: Path
) -> None:
    state, aside = short_dir / "state", short_dir / "aside"
    config = Config(state_dir=state, endpoint=config.endpoint, cache_size=0, threads=1)
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
        client.evaluate(QUESTION)
        by_a_copy(state, aside)
        with pytest.raises(RequestError) as caught:
            client.evaluate(QUESTION)
        assert caught.value.code == "unavailable"
        with pytest.raises(RequestError, match=f"{state} is another directory since the journal was opened"):
            client.evaluate(QUESTION)
        status = client.status()
        assert status.trouble is not None
        assert status.journal.counters["exchanged"] == 1
        put_back(state, aside)
        until = time.monotonic() + PATIENCE_S
        while client.status().trouble is not None and time.monotonic() < until:
            pass
        assert client.evaluate(QUESTION)["context"]["outcome"]
    assert verify(config.journal_path).ok
