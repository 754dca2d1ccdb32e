"""The files of the state directory: which are refused, that no link is followed, and what the error says."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.build import record, without_model
from tests.callers import as_root
from thor_policy import catalog
from thor_policy.catalog.files import lock as models_lock
from thor_policy.catalog.files import recorded
from thor_policy.config import Config
from thor_policy.core.errors import CatalogError, ThorPolicyError
from thor_policy.daemon.doctor import examine
from thor_policy.daemon.sockets import endpoint_lock
from thor_policy.journal import chain, segments, storage
from thor_policy.journal.checkpoints import Signer
from thor_policy.journal.maintenance.rebuild import rebuild
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.security import files
from thor_policy.security.curve_keys import Keys

#: A user who is not the one of this process.
STRANGER = 65_533
PRECIOUS = b"precious"


class Opener(NamedTuple):
    """A file of the state directory, what makes it, and what opens it."""

    name: str
    make: Callable[[Path], object]
    open: Callable[[Path], object]


def made_journal(folder: Path) -> None:
    record(folder / "journal.db", without_model(id="d1"))


def opened_journal(folder: Path) -> None:
    Journal(folder / "journal.db").close()


def read_journal(folder: Path) -> None:
    Reader(folder / "journal.db").close()


def copied_journal(folder: Path) -> None:
    rebuild(folder / "journal.db", folder / "new" / "journal.db")


def made_segment(folder: Path) -> None:
    row = chain.Row(1, b"a", b"b", 1, b"c", b"d", b"{}", bytes(32), bytes(32), bytes(32))
    segments.write_segment(folder / "segment.jsonl.gz", [(row, None)])


def read_segment(folder: Path) -> None:
    try:
        with segments.reading(folder / "segment.jsonl.gz") as rows:
            list(rows)
    except ValueError as error:  # the callers name the file
        raise CatalogError(f"segment.jsonl.gz {error}") from error


def locked(folder: Path) -> None:
    with endpoint_lock(folder / "policy.sock"):
        pass


def locked_models(folder: Path) -> None:
    with models_lock(folder / ".digests.lock"):
        pass


def put_key(folder: Path) -> None:
    Signer.load(folder / "checkpoint.key")


def new_keys(folder: Path) -> None:
    Keys(folder).new("ada", ("ask",), time.time())


OPENERS = {
    "lock": Opener("journal.lock", made_journal, opened_journal),
    "database": Opener("journal.db", made_journal, opened_journal),
    "log": Opener("journal.db-wal", made_journal, opened_journal),
    "shared memory": Opener("journal.db-shm", made_journal, opened_journal),
    "rollback journal": Opener("journal.db-journal", made_journal, opened_journal),
    "database, read": Opener("journal.db", made_journal, read_journal),
    "log, read": Opener("journal.db-wal", made_journal, read_journal),
    "shared memory, read": Opener("journal.db-shm", made_journal, read_journal),
    "database, verified": Opener("journal.db", made_journal, lambda at: verify(at / "journal.db")),
    "database, copied": Opener("journal.db", made_journal, copied_journal),
    "archive": Opener("segment.jsonl.gz", made_segment, read_segment),
    "checkpoint key": Opener("checkpoint.key", put_key, put_key),
    "register of keys": Opener("clients.json", new_keys, lambda at: Keys(at).clients()),
    "key of the server": Opener("server.key", new_keys, lambda at: Keys(at).server()),
    "lock of the keys": Opener(".lock", new_keys, lambda at: Keys(at).new_server()),
    "lock of the endpoint": Opener("policy.sock.lock", locked, locked),
    "digests of models": Opener("digests.json", lambda at: (at / "digests.json").write_text("{}"), recorded),
    "lock of the models": Opener(".digests.lock", locked_models, locked_models),
}


def linked(path: Path, victim: Path) -> str:
    if path.exists():
        path.rename(victim)
    else:
        victim.write_bytes(PRECIOUS)
    path.symlink_to(victim)
    return "is a symbolic link"


def dangling(path: Path, victim: Path) -> str:
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    return "is a symbolic link"


def of_a_stranger(path: Path, victim: Path) -> str:
    path.touch()
    os.chown(path, STRANGER, -1)
    return f"belongs to user {STRANGER}"


def for_the_group(path: Path, victim: Path) -> str:
    path.touch()
    path.chmod(0o660)
    return "has mode 0660"


def for_all(path: Path, victim: Path) -> str:
    path.touch()
    path.chmod(0o602)
    return "has mode 0602"


def pipe(path: Path, victim: Path) -> str:
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    return "regular file"


def directory(path: Path, victim: Path) -> str:
    path.unlink(missing_ok=True)
    path.mkdir()
    return "directory"


BAD = [linked, dangling, of_a_stranger, for_the_group, for_all, pipe, directory]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "state"
    place.mkdir(0o750)
    return place


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("opener", OPENERS.values(), ids=list(OPENERS))
def test_a_file_that_others_own_or_can_change_is_refused_by_name_and_stays_as_it_was(
    folder: Path, tmp_path: Path, opener: Opener, spoil: Callable[[Path, Path], str]
) -> None:
    if spoil is of_a_stranger and os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    opener.make(folder)
    path, victim = folder / opener.name, tmp_path / "victim"
    problem = spoil(path, victim)
    before = victim.lstat() if victim.exists() else None
    content = victim.read_bytes() if victim.exists() else None
    with pytest.raises(ThorPolicyError) as caught:
        opener.open(folder)
    message = str(caught.value)
    assert path.name in message
    if opener.name != "checkpoint.key":  # tests/journal/test_checkpoints.py has its errors
        assert problem in message
        assert "move it away" in message or "run `ch" in message
    assert (victim.read_bytes() if victim.exists() else None) == content
    if before is not None:
        assert (victim.lstat().st_mode, victim.lstat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


# ---------------------------------------------------------------- the directory


def opened_in(path: Path) -> str:
    with pytest.raises(ThorPolicyError) as caught:
        Journal(path / "journal.db").close()
    assert not (path / "journal.db").exists()
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_state_directory_that_others_can_change_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    if os.geteuid() == 0:
        os.chown(folder, 0, STRANGER)
    message = opened_in(folder)
    assert f"the state directory {folder} has mode {mode:04o}" in message
    assert "run `chmod go-w` on it" in message


def test_a_sticky_state_directory_is_used(folder: Path) -> None:
    folder.chmod(0o1777)
    Journal(folder / "journal.db").close()


@as_root
def test_a_state_directory_of_another_user_is_refused_for_writing_and_can_be_read(folder: Path) -> None:
    made_journal(folder)
    for file in (folder, *folder.iterdir()):
        os.chown(file, STRANGER, STRANGER)
    Reader(folder / "journal.db").close()
    with pytest.raises(ThorPolicyError, match=f"belongs to user {STRANGER}, .* run this as that user"):
        Journal(folder / "journal.db")


@as_root
def test_a_link_of_another_user_to_a_state_directory_is_refused(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    Journal(link / "journal.db").close()  # systemd links the directory of a dynamic user
    os.chown(link, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(ThorPolicyError, match=f"the state directory {link} belongs to user {STRANGER}"):
        Journal(link / "journal.db")


def test_a_file_in_place_of_the_state_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(ThorPolicyError, match="state"):
        Journal(tmp_path / "state" / "journal.db")


def test_doctor_says_what_is_wrong_with_the_state_directory(config: Config) -> None:
    config.state_dir.chmod(0o777)
    (finding,) = [finding for finding in examine(config) if finding.name == "state dir"]
    assert finding.state == "missing"
    assert "0777" in finding.detail
    assert finding.cure == "run `chmod go-w` on it"


# ---------------------------------------------------------------- files that we make


def test_files_are_made_so_that_only_we_can_change_them_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0)
    try:
        for opener in OPENERS.values():
            if not (folder / opener.name).exists() and not opener.name.startswith(("journal.db-", "digests")):
                opener.make(folder)
        with closing(Journal(folder / "journal.db", ballast_mb=1)):
            made = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    finally:
        os.umask(old)
    assert not {name: oct(mode) for name, mode in made.items() if mode & 0o022}


def test_an_unfinished_archive_that_is_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(PRECIOUS)
    (folder / ".segment.jsonl.gz.new").symlink_to(victim)
    made_segment(folder)
    assert victim.read_bytes() == PRECIOUS
    assert not (folder / "segment.jsonl.gz").is_symlink()


def test_a_copy_of_a_journal_does_not_follow_a_link(folder: Path, tmp_path: Path) -> None:
    made_journal(folder)
    victim = tmp_path / "victim"
    (tmp_path / "new").mkdir(0o750)
    (tmp_path / "new" / ".journal.db.new").symlink_to(victim)
    rebuild(folder / "journal.db", tmp_path / "new" / "journal.db")
    assert not victim.exists()


def test_what_stands_in_place_of_the_ballast_is_no_ballast_and_stays(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(PRECIOUS)
    (folder / "ballast").symlink_to(victim)
    space = storage.DiskSpace(folder, min_free_mb=0, ballast_mb=1)
    space.restore()
    assert not space.has_ballast
    assert not space.release()
    assert victim.read_bytes() == PRECIOUS
    assert (folder / "ballast").is_symlink()


def test_the_mode_of_what_a_link_leads_to_is_not_changed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(PRECIOUS)
    victim.chmod(0o600)
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ValueError, match="is a symbolic link"):
        files.set_mode(tmp_path / "link", 0o644)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_a_model_is_used_although_its_digest_cannot_be_recorded(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(PRECIOUS)
    (folder / ".digests.lock").symlink_to(victim)
    (tmp_path / "own.gguf").write_bytes(b"GGUF rest")
    assert catalog.resolve(str(tmp_path / "own.gguf"), folder).path == tmp_path / "own.gguf"
    assert victim.read_bytes() == PRECIOUS
