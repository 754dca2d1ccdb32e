"""Who answers scenarios: the daemon at the endpoint, or a daemon in this process; and with which pack.

Owns that choice. Invariant: the pack that judges answers here has the same digest as the pack that decides
there. A question names it by digest, so that no other resident pack of the same name can answer. Main thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core.errors import PackError, SuiteError, Unreachable
from thor_policy.core.requests import Json
from thor_policy.core.status import PackStatus, Status
from thor_policy.journal.writer import Journal, OnCommitted
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.policy.residents import DIGEST_CHARS, is_named

#: Who answers: the daemon at the endpoint, this process, or the daemon if one is up.
Whom = Literal["daemon", "process", "either"]


@dataclass(frozen=True)
class Target:
    """Who answers, by which pack; `config.pack` is the directory of the pack.

    `resident` is the pack as the daemon lists it; None if this process answers. `state_dir` is where the
    decisions are recorded, None if they are not; `remote` says that this is on another machine. `model` is
    the digest of the model of the daemon that was asked for its pack, None without a daemon.
    """

    config: Config
    pack: Pack
    resident: PackStatus | None = None
    state_dir: Path | None = None
    remote: bool = False
    model: str | None = None

    @property
    def where(self) -> str:
        """Who answers, in words."""
        if self.resident is not None:
            return "the daemon"
        return "in process" if self.state_dir is not None else "in process, not recorded"


def own_pack(config: Config) -> Pack:
    """The pack of the settings. Raises PackError."""
    return pack_files.load(pack_files.find(config.pack, data_path("prompts")))


def find(
    config: Config,
    whom: Whom,
    *,
    any_pack: bool = False,
    candidate: str | None = None,
    record: bool = True,
) -> Target:
    """Who answers under these settings, and by which pack.

    A daemon answers by the resident pack `candidate` (name, name@version or digest), otherwise by its active
    pack if `any_pack`, otherwise by the pack of the settings, which must be resident. With `record` false
    this process answers by that pack, and the daemon is only asked which one it is. Raises SuiteError,
    PackError, Unreachable.
    """
    status, remote = _status(config, whom, needed=candidate is not None)
    if status is None:
        own = own_pack(config)
        state_dir = config.state_dir if record else None
        return Target(replace(config, pack=str(own.path)), own, state_dir=state_dir)
    if candidate is not None:
        resident = _named(candidate, status.packs, config.endpoint)
        pack = _files_of(resident, config.endpoint)
    elif any_pack:
        resident = next(listed for listed in status.packs if listed.role == "active")
        pack = _files_of(resident, config.endpoint)
    else:
        pack = own_pack(config)
        if not record:
            return Target(replace(config, pack=str(pack.path)), pack, model=status.model.sha256)
        resident = _same(pack, status.packs, config.endpoint)
    at = replace(config, pack=str(pack.path))
    if not record:
        return Target(at, pack, model=status.model.sha256)
    journal = Path(status.journal.path)
    return Target(at, pack, resident, state_dir=journal.parent, remote=remote, model=status.model.sha256)


def _status(config: Config, whom: Whom, *, needed: bool) -> tuple[Status | None, bool]:
    """The status of the daemon, None if this process answers; and True if it is on another machine."""
    if whom == "process" and not needed:
        return None, False
    with Client(config.endpoint, key=config.key_file, timeout_ms=config.max_deadline_ms) as client:
        if client.alive():
            return client.status(), client.remote
    if whom == "daemon" or needed:
        raise Unreachable(f"no daemon listens at {config.endpoint}; start one: thorpolicy serve")
    return None, False


def _named(name: str, packs: Sequence[PackStatus], endpoint: str) -> PackStatus:
    """The resident pack with this name, name@version or digest. Raises SuiteError."""
    matches = [pack for pack in packs if is_named(pack, name)]
    waiting = [pack for pack in matches if pack.role != "active"]
    if len(waiting) == 1:  # a candidate often has the name of the active pack
        return waiting[0]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise SuiteError(f"--candidate {name!r} may be {_listed(matches)}; give one of these digests")
    raise SuiteError(
        f"--candidate {name!r} is not resident at {endpoint}; resident: {_listed(packs)}; load it: "
        "thorpolicy packs load DIR"
    )


def _same(pack: Pack, packs: Sequence[PackStatus], endpoint: str) -> PackStatus:
    """The resident pack with the files of `pack`. Raises SuiteError."""
    for resident in packs:
        if resident.sha256 == pack.info.sha256:
            return resident
    raise SuiteError(
        f"the daemon at {endpoint} does not serve {pack.info.name} {pack.info.sha256[:DIGEST_CHARS]} "
        f"({pack.path}); resident: {_listed(packs)}. Load it (thorpolicy packs reload, or packs load DIR), "
        f"or test it in this process (--no-record), or test the daemon's own pack (--endpoint {endpoint} "
        "without --pack)"
    )


def _files_of(resident: PackStatus, endpoint: str) -> Pack:
    """The files of a resident pack, from its directory or from the packs that ship. Raises SuiteError."""
    shipped = data_path("prompts") / resident.name
    changed = False
    for path in dict.fromkeys((Path(resident.path), shipped)):
        try:
            pack = pack_files.load(path)
        except PackError:
            continue
        if pack.info.sha256 == resident.sha256:
            return pack
        changed |= path == Path(resident.path)
    if changed:
        raise SuiteError(
            f"{resident.path} changed since the daemon at {endpoint} loaded it; load it again: "
            "thorpolicy packs reload"
        )
    raise SuiteError(
        f"the daemon at {endpoint} decides by {_listed([resident])} from {resident.path}, whose files cannot "
        "be read here; copy them to this machine and give --pack DIR"
    )


def _listed(packs: Sequence[PackStatus]) -> str:
    return ", ".join(
        f"{pack.name}@{pack.version} ({pack.sha256[:DIGEST_CHARS]}, {pack.role})" for pack in packs
    )


@contextmanager
def client_of(
    target: Target,
    announce: Callable[[str], None] = lambda _: None,
    stated: Mapping[str, Mapping[str, Mapping[str, Json]]] = {},
) -> Iterator[Client]:
    """A client of who answers. Without a daemon one is started in this process, which loads the model.

    That one takes values of sources from `stated`, by scenario, source and attribute.
    """
    config = target.config
    timeout_ms = config.max_deadline_ms
    if target.resident is not None:
        announce(f"asking the daemon at {config.endpoint}: {_listed([target.resident])}")
        with Client(config.endpoint, key=config.key_file, timeout_ms=timeout_ms) as client:
            yield client
        return
    from thor_policy.daemon import service

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thor-policy-")))
        model_name = "" if target.pack.rules_only else f"{config.model} with "
        announce(f"loading {model_name}{target.pack.info.name} ...")
        private = replace(
            config,
            endpoint=f"ipc://{folder}/policy.sock",
            tcp_endpoint="",
            metrics_port=0,
            cache_size=0,
            drift_every_s=0,
        )
        if target.state_dir is not None:
            stack.enter_context(service.serving(private, stated=stated))
        else:
            if not config.journal_path.is_file():  # otherwise its calibrations are read there
                private = replace(private, state_dir=folder)
            open_journal = partial(_open_temporary, folder / private.journal_path.name)
            stack.enter_context(service.serving(private, open_journal=open_journal, stated=stated))
        client = stack.enter_context(Client(private.endpoint, timeout_ms=timeout_ms))
        if target.model is not None and (model := client.status().model).sha256 != target.model:
            announce(f"the daemon has another model than {model.name}: its answers may differ")
        yield client


def _open_temporary(path: Path, config: Config, on_committed: OnCommitted) -> Journal:
    """A journal that is deleted after the run: no checkpoints, nothing synced to disk."""
    return Journal(path, on_committed=on_committed, synchronous="OFF", masked=config.masked)
