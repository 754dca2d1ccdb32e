"""Small files that others rely on: what is read, what is refused, and when a name appears."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from thor_policy.security import files


class TestReading:
    def test_a_file_is_read_up_to_its_limit(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"12345")
        assert files.read(path, max_bytes=5) == b"12345"
        with pytest.raises(ValueError, match="has more than 4 bytes"):
            files.read(path, max_bytes=4)

    def test_reading_a_pipe_is_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is no regular file"):
            files.read(tmp_path / "pipe")

    def test_reading_a_device_is_refused(self) -> None:
        with pytest.raises(ValueError, match="is no regular file"):
            files.read(Path("/dev/zero"))

    def test_a_link_is_followed_unless_a_flag_forbids_it(self, tmp_path: Path) -> None:
        (tmp_path / "there").write_bytes(b"x")
        (tmp_path / "link").symlink_to("there")
        assert files.read(tmp_path / "link") == b"x"
        with pytest.raises(OSError, match="symbolic links"):
            files.read(tmp_path / "link", os.O_NOFOLLOW)

    def test_a_check_of_the_status_can_refuse_a_file_before_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"x")
        path.chmod(0o644)
        with pytest.raises(ValueError, match="mode 644"):
            files.read(path, check=lambda status: f"mode {status.st_mode & 0o777:o}")


class TestPlacing:
    def test_a_placed_file_has_its_mode_and_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        files.place(path, b"secret", 0o600)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"secret", 0o600)
        assert list(tmp_path.iterdir()) == [path]

    def test_an_existing_file_stays_without_over(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_bytes(b"first")
        with pytest.raises(FileExistsError):
            files.place(path, b"second", 0o600)
        assert path.read_bytes() == b"first"
        assert list(tmp_path.iterdir()) == [path]

    def test_over_replaces_a_file_or_a_link_but_not_the_target_of_the_link(self, tmp_path: Path) -> None:
        other, path = tmp_path / "other", tmp_path / "key"
        other.write_bytes(b"theirs")
        path.symlink_to(other)
        files.place(path, b"ours", 0o644, over=True)
        assert (path.read_bytes(), path.is_symlink(), other.read_bytes()) == (b"ours", False, b"theirs")

    def test_a_rename_replaces_an_existing_file(self, tmp_path: Path) -> None:
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "old").write_bytes(b"old")
        files.rename(tmp_path / "new", tmp_path / "old")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
