"""What a hook keeps from one event of a session to the next: small files in a folder of the user.

Owns the user's text and the folder of each session, the decision of each call that may run, the approval
that a call waits for, and the count of losses. Invariant: a file appears whole or not at all, and a
decision is taken by one process only; the folder belongs to the user and nobody else may write to it. Many
processes at the same time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from thor_policy.hook.calls import Fault, digest

#: Age at which files are removed, in seconds: a call does not run longer than that. A session may rest
#: longer: without the folder in which it began, one that the agent chose would become the workspace.
KEEP_S, KEEP_ROOT_S = 172_800, 2_592_000
#: Seconds after which a call looks for old files, if no text of a user did.
SWEEP_S = 3_600
#: Most calls that may run at the same time, by the files of all sessions.
MOST_CALLS = 10_000
#: Most equal calls of a session at the same time, and longest file.
_MOST_EQUAL, _MAX_BYTES = 64, 65_536
#: The file that counts losses: a byte for each. The file whose time says when old files were looked for.
_LOSSES, _SWEPT = "losses", "swept"


def default_folder(environ: Mapping[str, str]) -> str:
    """The folder for this user.

    In the runtime directory, which ends with the session, or in the state directory.
    """
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "thor-policy-hook")  # noqa: PTH118  pathlib takes 4 ms to import
    state = environ.get("XDG_STATE_HOME") or os.path.join(environ.get("HOME", "/root"), ".local/state")  # noqa: PTH118
    return os.path.join(state, "thor-policy-hook")  # noqa: PTH118


class State:
    """The files in `folder`, which is made when it is missing.

    Methods raise Fault where a disk or a folder fails.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
            found_at = os.lstat(folder)
        except OSError as error:
            raise self._failed(error) from error
        if (
            found_at.st_mode & 0o170000 != 0o040000
            or found_at.st_uid != os.geteuid()
            or found_at.st_mode & 0o022
        ):
            raise Fault(
                f"{folder} is not a folder that this user alone may write to: remove it, or give --state"
            )

    def keep_prompt(self, session: str, text: str) -> None:
        """Keep the user's text of a session in place of the one before."""
        self._replace(f"p-{digest(session)}", text)

    def prompt(self, session: str) -> str:
        """The user's newest text of a session; empty if there is none."""
        return self._read(f"p-{digest(session)}")

    def keep_root(self, session: str, folder: str) -> None:
        """Keep the folder of a session, the first time only: later ones may be where the agent went."""
        name = f"r-{digest(session)}"
        try:
            self._write(name, folder, os.O_EXCL)
        except FileExistsError:
            self._touch(name)
        except OSError as error:
            raise self._failed(error) from error

    def root(self, session: str) -> str:
        """The folder in which a session began; empty if it is not known. It is kept while it is read."""
        name = f"r-{digest(session)}"
        folder = self._read(name)
        if folder:
            self._touch(name)
        return folder

    def keep_decision(self, key: str, decision_id: str) -> None:
        """Keep the decision of a call; equal calls that run at the same time each have one.

        Where so many have not ended, they never will, or their agent never says so. Then they are dropped, as
        losses: no later outcome may be put on one of them.
        """
        while True:
            for number in range(_MOST_EQUAL):
                try:
                    self._write(f"d-{key}-{number}", decision_id, os.O_EXCL)
                except FileExistsError:
                    continue
                except OSError as error:
                    raise self._failed(error) from error
                return
            for number in range(_MOST_EQUAL):
                if self._remove(f"d-{key}-{number}"):  # else another process counts it
                    self.count_loss()

    def take_decision(self, key: str) -> str:
        """The decision of a call, for the first that takes it; empty if there is none.

        Of equal calls it is that of the newest: an older one may have been declined, and never end.
        """
        own = f"t-{os.getpid()}-{time.monotonic_ns()}"
        for number in reversed(range(_MOST_EQUAL)):
            try:
                os.rename(self._path(f"d-{key}-{number}"), self._path(own))  # noqa: PTH104
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._failed(error) from error
            decision_id = self._read(own)
            self._remove(own)
            return decision_id
        return ""

    def keep_task(self, key: str, task: str) -> None:
        """Keep the approval that a call waits for."""
        self._replace(f"a-{key}", task)

    def task(self, key: str) -> str:
        """The approval that a call waits for; empty if there is none."""
        return self._read(f"a-{key}")

    def drop_task(self, key: str) -> None:
        self._remove(f"a-{key}")

    def count_loss(self) -> None:
        """Count an outcome that could not be recorded, or a call that `--observe` could not record."""
        try:
            self._write(_LOSSES, ".", os.O_APPEND)
        except OSError as error:
            raise self._failed(error) from error

    def losses(self) -> int:
        """How many losses were counted."""
        try:
            return os.stat(self._path(_LOSSES)).st_size  # noqa: PTH116
        except OSError:
            return 0

    def remove_old_sometimes(self, now: float) -> None:
        """Remove old files if that was not done for `SWEEP_S` seconds, or if the clock stepped back."""
        try:
            swept = os.lstat(self._path(_SWEPT)).st_mtime
        except OSError:
            swept = 0.0
        if abs(now - swept) > SWEEP_S:
            self.remove_old(now)

    def remove_old(self, now: float) -> None:
        """Remove the files of sessions that ended; `now` is Unix time.

        Of more calls than `MOST_CALLS` that have not ended, the oldest are dropped, as losses. A file from
        the future is as old as one from the past: a clock was wrong.
        """
        ages: dict[str, float] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    try:
                        ages[entry.name] = abs(now - entry.stat(follow_symlinks=False).st_mtime)
                    except FileNotFoundError:  # another process took it
                        continue
            self._write(_SWEPT, "", 0)
            os.utime(self._path(_SWEPT), (now, now))
        except OSError as error:
            raise self._failed(error) from error
        for name, age in list(ages.items()):
            kept_s = KEEP_ROOT_S if name.startswith("r-") else KEEP_S
            if age > kept_s and name not in (_LOSSES, _SWEPT):
                self._remove(name)
                del ages[name]
        calls = sorted((name for name in ages if name.startswith("d-")), key=ages.__getitem__)
        for name in calls[MOST_CALLS:]:
            if self._remove(name):
                self.count_loss()

    # ------------------------------------------------------------ files

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)  # noqa: PTH118

    def _read(self, name: str) -> str:
        try:
            opened = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return os.read(opened, _MAX_BYTES).decode("utf-8", "replace")
            finally:
                os.close(opened)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise self._failed(error) from error

    def _replace(self, name: str, text: str) -> None:
        own = f"t-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self._write(own, text, os.O_EXCL)
            os.replace(self._path(own), self._path(name))  # noqa: PTH105
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, name: str, text: str, flags: int) -> None:
        """Write a file, or remove what was written of it. Raises OSError."""
        data = text.encode("utf-8", "replace")[:_MAX_BYTES]
        path = self._path(name)
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        try:
            if os.write(opened, data) != len(data):
                raise OSError(28, "no space left on device")
        except OSError:
            if flags & os.O_EXCL:
                self._remove(name)
            raise
        finally:
            os.close(opened)

    def _touch(self, name: str) -> None:
        try:
            os.utime(self._path(name), follow_symlinks=False)
        except OSError:  # it is removed sooner: then the folder of the session is unknown, which is strict
            return

    def _remove(self, name: str) -> bool:
        """Whether this process removed the file."""
        try:
            os.unlink(self._path(name))  # noqa: PTH108
        except OSError:  # another process removed it, or the disk fails: then the next write reports it
            return False
        return True

    def _failed(self, error: OSError) -> Fault:
        return Fault(f"{self._folder}: {error.strerror or error}; free the disk, or give --state DIR")
