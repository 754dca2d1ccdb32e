"""Identity: the roles of local callers, the keys of callers over tcp, and what is refused to both."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import zmq
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.build import stalled
from tests.callers import as_root, replies_to
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import GRANT, Config
from thor_policy.core import records
from thor_policy.core.errors import ConfigError, RequestError, Unreachable
from thor_policy.core.requests import Caller, Json, Role
from thor_policy.daemon import journal_access
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.protocol.messages import OPS
from thor_policy.security.curve_keys import KeyRing, Keys, load_client_key
from thor_policy.security.roles import COUNTED, ROLE_OF, ROLE_OF_TASK, PacksFor, Roles, authorise, claimed
from thor_policy.testing import load_stub_engine

PATIENCE_MS = 20_000
#: Milliseconds to wait for a reply that must not come.
SILENCE_MS = 300
NOON = 1_778_668_800.0
EVERY: frozenset[Role] = frozenset(get_args(Role))
#: A user that is neither root nor the user who runs the tests.
STRANGER_UID = 65534

READ: dict[str, Json] = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "guide"},
}


def caller(**members: Any) -> Caller:
    return Caller(**{"transport": "ipc", "uid": 1234, "gid": 1234, "pid": 1} | members)


# ---------------------------------------------------------------- roles


class TestRoles:
    def test_every_operation_has_an_entry(self) -> None:
        assert set(ROLE_OF) == set(OPS)

    def test_by_default_a_local_caller_may_ask_and_record_only(self) -> None:
        assert Roles(Config().roles).of(caller()) == {"ask", "record"}

    @pytest.mark.parametrize("entries", [(), Config().roles, ("local=ask", "uid:0=ask")])
    def test_root_and_the_user_of_the_daemon_have_every_role(self, entries: tuple[str, ...]) -> None:
        for uid in (0, os.geteuid()):
            assert Roles(entries).of(caller(uid=uid)) == EVERY

    def test_a_caller_has_the_roles_of_all_matching_entries(self) -> None:
        roles = Roles(("local=ask", "uid:1234=review", "uid:1234=approve", "gid:99=control"))
        assert roles.of(caller()) == {"ask", "review", "approve"}
        assert roles.of(caller(gid=99)) == EVERY - {"record", "push", "test", "ship", "relay"}
        assert roles.of(caller(uid=1, gid=1)) == {"ask"}

    def test_roles_of_a_group_are_for_its_members_and_for_processes_with_its_gid(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        users = {"ines": 501, "ivo": 502}
        monkeypatch.setattr(grp, "getgrnam", lambda _: grp.struct_group(("ops", "", 77, ["ines", "gone"])))
        monkeypatch.setattr(
            pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "", users[name], 1, "", "", ""))
        )
        roles = Roles(("group:ops=control", "user:ivo=review"))
        assert roles.of(caller(uid=501)) == {"control"}
        assert roles.of(caller(gid=77)) == {"control"}
        assert roles.of(caller(uid=502)) == {"review"}
        assert roles.of(caller()) == set()

    @pytest.mark.parametrize("entry", ["user:nobody-of-that-name=ask", "group:no-such-group=ask"])
    def test_roles_of_an_unknown_user_or_group_are_refused_at_the_start(
        self, entry: str, config: Config
    ) -> None:
        with (
            pytest.raises(ConfigError, match=f"^roles holds '{entry}', but this machine has no"),
            serving(replace(config, roles=(entry,)), load_engine=load_stub_engine),
        ):
            pass

    @pytest.mark.parametrize(
        "entry",
        ["", "local", "local=", "local=all", "local=ask+", "uid:x=ask", "key:a=ask", "user:=ask", "ask"],
    )
    def test_an_invalid_entry_is_refused(self, entry: str) -> None:
        with pytest.raises(ConfigError, match=r"^roles holds .*; it must look like local=ask\+record"):
            Config(roles=(entry,))

    @pytest.mark.parametrize(
        "entry", ["", "local", "local=", "*", "uid:x=core", "key:=core", "till=core", "key:a=b c"]
    )
    def test_an_invalid_entry_of_the_packs_is_refused(self, entry: str) -> None:
        with pytest.raises(ConfigError, match=r"^packs_for holds .*; it must look like local=PACK\+PACK"):
            Config(packs_for=(entry,))

    @pytest.mark.parametrize("entry", ["user:nobody-of-that-name=core", "group:no-such-group=core"])
    def test_packs_of_an_unknown_user_or_group_are_refused_at_the_start(
        self, entry: str, config: Config
    ) -> None:
        with (
            pytest.raises(ConfigError, match=f"^packs_for holds '{entry}', but this machine has no"),
            serving(replace(config, packs_for=(entry,)), load_engine=load_stub_engine),
        ):
            pass

    def test_a_caller_may_name_the_packs_of_all_matching_entries(self) -> None:
        packs = PacksFor(("local=core", "uid:1234=tools+core@2", "gid:99=*", "key:till=tills"))
        assert packs.of(caller(), ()) == {"core", "tools", "core@2"}
        assert packs.of(caller(uid=1), ("ask", "record", "approve", "test")) == {"core"}
        assert packs.of(caller(gid=99), ()) is None
        assert packs.of(Caller(transport="tcp", key="till"), ()) == {"tills"}
        assert packs.of(Caller(transport="tcp", key="laptop"), ()) == set()
        for role in ("review", "control"):
            assert PacksFor(()).of(caller(), (role,)) is None

    @given(st.lists(st.from_regex(GRANT, fullmatch=True), max_size=3), st.integers(1, 2**32 - 2))
    def test_a_caller_gets_no_role_that_no_entry_names(self, entries: list[str], uid: int) -> None:
        try:
            roles = Roles(Config(roles=tuple(entries)).roles)
        except ConfigError:
            return
        if uid != os.geteuid():
            named = {role for entry in entries for role in entry.rpartition("=")[2].split("+")}
            assert roles.of(caller(uid=uid)) <= named

    def test_a_caller_without_uid_has_no_role(self) -> None:
        assert Roles(("local=ask",)).of(Caller(transport="tcp", key="laptop")) == set()


class TestAuthorisation:
    @pytest.mark.parametrize("op", OPS)
    @given(roles=st.sets(st.sampled_from(get_args(Role))))
    def test_an_operation_needs_exactly_its_role(self, op: str, roles: set[Role]) -> None:
        needed = ROLE_OF[op]
        for_a_task = {role for (of, _), role in ROLE_OF_TASK.items() if of == op}
        if needed in roles or (needed is None and roles) or for_a_task & roles:
            authorise(op, caller(), roles)
            return
        message = f"^op: {op} needs .*{needed or 'one of the roles'}.*, which uid 1234 does not have"
        with pytest.raises(RequestError, match=message) as refusal:
            authorise(op, caller(), roles)
        assert refusal.value.code == "unauthorized"

    @pytest.mark.parametrize("task", get_args(get_type_hints(records.Maintenance)["task"]))
    def test_the_role_ship_suffices_for_one_task_and_control_for_all(self, task: str) -> None:
        authorise("maintenance", caller(), {"control"}, task=task)
        if task == "shipped":
            authorise("maintenance", caller(), {"ship"}, task=task)
            return
        with pytest.raises(RequestError, match="op: maintenance needs the role control"):
            authorise("maintenance", caller(), EVERY - {"control"}, task=task)

    def test_an_operation_that_is_not_in_the_table_needs_control(self) -> None:
        authorise("unknown_op", caller(), {"control"})
        with pytest.raises(RequestError, match="needs the role control"):
            authorise("unknown_op", caller(), EVERY - {"control"})

    def test_a_refusal_names_the_key(self) -> None:
        with pytest.raises(RequestError, match="needs the role ask, which the key 'laptop' does not have"):
            authorise("evaluate", Caller(transport="tcp", key="laptop"), {"record"})


class TestClaims:
    @pytest.mark.parametrize("op", [*OPS, "annotations"])
    @given(
        roles=st.sets(st.sampled_from(get_args(Role))),
        count_from=st.sets(st.sampled_from((*get_args(Role), "own"))),
    )
    def test_a_statement_counts_only_from_a_role_of_the_setting_or_as_what_its_role_is_for(
        self, op: str, roles: set[Role], count_from: set[str]
    ) -> None:
        counts = op not in COUNTED or bool(roles & count_from) or (op == "annotations" and "test" in roles)
        own = op in ("outcome", "supplement") and "own" in count_from
        assert claimed(op, roles, count_from) == ("no" if counts else "unless_own" if own else "yes")


# ---------------------------------------------------------------- keys


class TestKeys:
    def test_a_new_key_makes_the_servers_key_too_and_only_the_owner_can_read_secrets(
        self, tmp_path: Path
    ) -> None:
        keys = Keys(tmp_path / "keys")
        path = keys.new("laptop", ("ask", "record"), NOON)
        made = load_client_key(path)
        assert (made.name, made.server) == ("laptop", keys.server().public)
        assert zmq.curve_public(made.secret.encode()).decode() == made.public
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {
            ".lock": 0o600,
            "clients.json": 0o644,
            "laptop.key": 0o600,
            "server.key": 0o600,
            "server.pub": 0o644,
        }
        (known,) = keys.clients()
        assert (known.name, known.roles, known.made_at) == (
            "laptop",
            ("ask", "record"),
            "2026-05-13T10:40:00Z",
        )
        public = (path.parent / "clients.json").read_text() + (path.parent / "server.pub").read_text()
        assert made.secret not in public
        assert keys.server().secret not in public

    def test_the_servers_key_is_made_only_once(self, tmp_path: Path) -> None:
        keys = Keys(tmp_path)
        keys.new_server()
        first = keys.server()
        keys.new_server()
        keys.new("laptop", ("ask",), NOON)
        assert keys.server() == first

    def test_a_name_belongs_to_only_one_unrevoked_key(self, tmp_path: Path) -> None:
        keys = Keys(tmp_path)
        first = load_client_key(keys.new("laptop", ("ask",), NOON))
        with pytest.raises(ConfigError, match="revoke it first"):
            keys.new("laptop", ("ask",), NOON)
        keys.revoke("laptop", NOON)
        second = load_client_key(keys.new("laptop", ("review",), NOON))
        ring = KeyRing(tmp_path)
        assert ring.find(first.public) is None
        holder = ring.find(second.public)
        assert holder is not None
        assert holder.roles == ("review",)

    def test_a_revocation_deletes_the_key_file(self, tmp_path: Path) -> None:
        keys = Keys(tmp_path)
        path = keys.new("laptop", ("ask",), NOON)
        assert keys.revoke("laptop", NOON).revoked_at == "2026-05-13T10:40:00Z"
        assert not path.exists()
        with pytest.raises(ConfigError, match="there is no key 'laptop' to revoke; known: none"):
            keys.revoke("laptop", NOON)

    @pytest.mark.parametrize(
        "name", ["", "..", "../x", "a/b", ".hidden", "a b", "ü", "x" * 65, "a\n", "server"]
    )
    def test_a_key_name_cannot_be_a_path(self, tmp_path: Path, name: str) -> None:
        keys = Keys(tmp_path / "keys")
        with pytest.raises(ConfigError):
            keys.new(name, ("ask",), NOON)
        assert keys.clients() == ()
        assert {path.name for path in tmp_path.iterdir()} == {"keys"}

    def test_a_secret_that_others_may_read_is_refused_with_the_cure(self, tmp_path: Path) -> None:
        path = Keys(tmp_path).new("laptop", ("ask",), NOON)
        path.chmod(0o640)
        with pytest.raises(ConfigError, match=r"has mode 0640, .* run `chmod 600` on it"):
            load_client_key(path)

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_any_other_file_is_refused_and_its_content_not_repeated(self, content: bytes) -> None:
        path = Path(f"/tmp/thor-policy-{os.getpid()}.key")
        path.touch(mode=0o600)
        try:
            path.write_bytes(content)
            with pytest.raises(ConfigError) as refusal:
                load_client_key(path)
        finally:
            path.unlink()
        assert str(refusal.value) == f"{path} is no key file of `thorpolicy keys`"

    def test_a_key_file_with_a_member_twice_is_refused(self, tmp_path: Path) -> None:
        path = Keys(tmp_path).new("laptop", ("ask",), NOON)
        load_client_key(path)
        path.write_bytes(path.read_bytes().replace(b'"name":', b'"name": "other", "name":'))
        with pytest.raises(ConfigError, match="is no key file of"):
            load_client_key(path)

    def test_a_missing_key_file_is_refused_with_the_cure(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError,
            match=r"No such file .*; correct --key, or make a key with `thorpolicy keys new NAME`",
        ):
            load_client_key(tmp_path / "absent.key")
        with pytest.raises(ConfigError, match="run `thorpolicy keys new --server`"):
            Keys(tmp_path).server()


class TestRing:
    @pytest.mark.parametrize("clock_ns", [time.time_ns(), 0, 2**62], ids=["now", "past", "future"])
    def test_sees_a_change_at_once_with_any_clock(self, tmp_path: Path, clock_ns: int) -> None:
        keys, ring = Keys(tmp_path), KeyRing(tmp_path, lambda: clock_ns)
        public = load_client_key(keys.new("laptop", ("ask",), NOON)).public
        for _ in range(2):
            assert ring.find(public)
        keys.revoke("laptop", NOON)
        for _ in range(2):
            assert ring.find(public) is None

    def test_sees_a_change_of_a_young_file_with_an_unchanged_timestamp(self, tmp_path: Path) -> None:
        path = tmp_path / "clients.json"
        public = load_client_key(Keys(tmp_path).new("laptop", ("ask",), NOON)).public
        stamp = path.stat()
        ring = KeyRing(tmp_path, lambda: stamp.st_mtime_ns + 1)
        assert ring.find(public)
        path.write_text(path.read_text().replace(public, "x" * 40))
        os.utime(path, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
        assert ring.find(public) is None

    def test_reads_a_settled_file_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        public = load_client_key(Keys(tmp_path).new("laptop", ("ask",), NOON)).public
        os.utime(tmp_path / "clients.json", (NOON, NOON))
        ring = KeyRing(tmp_path)
        assert ring.find(public)
        monkeypatch.setattr(
            "thor_policy.security.curve_keys._read", lambda *_: pytest.fail("it was read again")
        )
        assert ring.find(public)

    @pytest.mark.parametrize("damage", [b"", b"{", b'{"keys": [{"name": "x"}]}', b"\xff"])
    def test_an_unreadable_file_makes_no_key_valid_and_is_logged_once(
        self, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        public = load_client_key(Keys(tmp_path).new("laptop", ("ask",), NOON)).public
        ring = KeyRing(tmp_path)
        assert ring.find(public)
        (tmp_path / "clients.json").write_bytes(damage)
        for _ in range(3):
            assert ring.find(public) is None
        assert [record.getMessage().split(":")[0] for record in caplog.records] == ["no client key is valid"]
        shutil.rmtree(tmp_path)
        assert ring.find(public) is None

    @given(st.text(max_size=60))
    def test_an_unknown_key_is_not_found(self, public: str) -> None:
        assert KeyRing(Path("/nonexistent")).find(public) is None


# ---------------------------------------------------------------- over tcp


@pytest.fixture
def keyed(config: Config, tcp_endpoint: str) -> Config:
    return replace(config, tcp_endpoint=tcp_endpoint)


@contextmanager
def curve(
    endpoint: str, *, server: str, public: bytes, secret: bytes, routing_id: bytes | None = None
) -> Iterator[zmq.Socket[bytes]]:
    """A client of another implementation: a socket and three keys."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.RCVTIMEO, PATIENCE_MS)
        opened.set(zmq.SNDTIMEO, PATIENCE_MS)
        if routing_id is not None:
            opened.set(zmq.ROUTING_ID, routing_id)
        opened.set(zmq.CURVE_SERVERKEY, server.encode())
        opened.set(zmq.CURVE_PUBLICKEY, public)
        opened.set(zmq.CURVE_SECRETKEY, secret)
        opened.connect(endpoint)
        yield opened


def offer(opened: zmq.Socket[bytes], data: bytes) -> None:
    """Send what is not answered: ZeroMQ takes nothing more for a peer that refused the handshake."""
    with suppress(zmq.Again):
        opened.send(data, zmq.NOBLOCK)


def frame(op: str = "evaluate", **members: Json) -> bytes:
    return json.dumps({"v": 1, "id": "q", "op": op, "request": READ} | members).encode()


def counters(config: Config) -> dict[str, Json]:
    with Client(config.endpoint, timeout_ms=PATIENCE_MS) as local:
        status = local.status()
        return {**status.counters, "in_flight": status.in_flight}


def counted(config: Config, name: str, *, above: int = 0) -> dict[str, Json]:
    """The counters, as soon as `name` is above a number."""
    until = time.monotonic() + PATIENCE_MS / 1000
    while (counts := counters(config)).get(name, 0) <= above:
        assert time.monotonic() < until, f"{name} is not counted: {counts}"
    return counts


def refusal_of(client: Client, op: str) -> str | None:
    """The message if the operation is unauthorized; None if it is allowed or fails otherwise."""
    try:
        client.call(op, {})
    except RequestError as error:
        return error.message if error.code == "unauthorized" else None
    return None


class TestTcp:
    def test_a_tcp_endpoint_without_any_client_key_is_refused_before_a_model_is_loaded(
        self, keyed: Config
    ) -> None:
        def load(_: Config) -> Any:
            pytest.fail("a model was loaded")

        with (
            pytest.raises(ConfigError, match="run `thorpolicy keys new NAME`"),
            serving(keyed, load_engine=load),
        ):
            pass

    def test_a_tcp_address_as_the_daemons_only_endpoint_is_refused(self, keyed: Config) -> None:
        alone = replace(keyed, endpoint=keyed.tcp_endpoint)
        with (
            pytest.raises(ConfigError, match="of a CURVE key, with --tcp-endpoint tcp://127"),
            serving(alone, load_engine=load_stub_engine),
        ):
            pass

    def test_an_address_in_use_is_refused(self, keyed: Config) -> None:
        Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        with socket.socket() as other:
            other.bind(("127.0.0.1", int(keyed.tcp_endpoint.rpartition(":")[2])))
            other.listen()
            with (
                pytest.raises(
                    ConfigError, match=r"^cannot listen at tcp_endpoint .*: Address already in use"
                ),
                serving(keyed, load_engine=load_stub_engine),
            ):
                pass

    def test_a_client_with_a_key_may_ask_and_its_key_name_is_recorded(self, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        with (
            serving(keyed, load_engine=load_stub_engine),
            Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own,
        ):
            reply = own.evaluate(READ)
        with Reader(keyed.journal_path) as reader:
            traced = reader.trace(reply["context"]["decision_id"])
        assert traced["event"]["body"]["caller"] == {"transport": "tcp", "key": "laptop"}
        assert traced["decision"]["caller_uid"] is None
        assert verify(keyed.journal_path).ok

    def test_a_key_has_only_its_roles_and_a_refusal_names_the_missing_role(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        paths = {role: keys.new(role, (role,), NOON) for role in get_args(Role)}
        allowed = {"status", "metrics", "approvals"}
        with serving(keyed, load_engine=load_stub_engine):
            for role, path in paths.items():
                with Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own:
                    refused = {op: message for op in OPS if (message := refusal_of(own, op))}
                may = {op for op in ROLE_OF if ROLE_OF[op] == role}
                may |= {op for (op, _), suffices in ROLE_OF_TASK.items() if suffices == role}
                assert set(ROLE_OF) - set(refused) == allowed | may
                for op, message in refused.items():
                    assert f"the role {ROLE_OF[op]}, which the key {role!r} does not have" in message
            counted = counters(keyed)
        by_task = len(ROLE_OF_TASK)  # let through before their task is known
        assert counted["refused_unauthorized"] == (len(paths) - 1) * (len(OPS) - len(allowed)) - by_task
        assert counted["keys_accepted"] == len(paths)

    def test_a_wrong_key_gets_no_answer_and_is_counted(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        client_key = load_client_key(keys.new("laptop", ("ask",), NOON))
        public, secret = zmq.curve_keypair()
        with serving(keyed, load_engine=load_stub_engine):
            with curve(
                keyed.tcp_endpoint, server=client_key.server, public=public, secret=secret
            ) as stranger:
                offer(stranger, frame())
                counted(keyed, "keys_refused")
                assert not stranger.poll(SILENCE_MS)
            counts = counters(keyed)
            assert "requests_of_revoked_keys" not in counts, "the handshake lets nothing in"
            assert {"keys_accepted", "decisions_recorded"} & counts.keys() == set()

    def test_no_client_connects_without_curve_or_with_another_servers_key(self, keyed: Config) -> None:
        client_key = load_client_key(Keys(keyed.keys_dir).new("laptop", ("ask",), NOON))
        other, _ = zmq.curve_keypair()
        with serving(keyed, load_engine=load_stub_engine):
            with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
                plain.set(zmq.LINGER, 0)
                plain.connect(keyed.tcp_endpoint)
                offer(plain, frame())
                without = counted(keyed, "handshakes_failed")["handshakes_failed"]
                assert not plain.poll(SILENCE_MS)
            pair = {"public": client_key.public.encode(), "secret": client_key.secret.encode()}
            with curve(keyed.tcp_endpoint, server=other.decode(), **pair) as misled:
                offer(misled, frame())
                counts = counted(keyed, "handshakes_failed", above=without)
                assert not misled.poll(SILENCE_MS)
            assert {"keys_accepted", "decisions_recorded"} & counts.keys() == set()

    def test_a_revoked_key_gets_no_answer_connected_or_not_and_is_counted(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        client_key = load_client_key(keys.new("laptop", ("ask", "record"), NOON))
        place = {
            "server": client_key.server,
            "public": client_key.public.encode(),
            "secret": client_key.secret.encode(),
        }
        with serving(keyed, load_engine=load_stub_engine), curve(keyed.tcp_endpoint, **place) as inside:
            inside.send(frame())
            assert "decision" in json.loads(inside.recv())
            keys.revoke("laptop", NOON)
            inside.send(frame())
            inside.send(frame("metrics"))
            inside.send_multipart([b"several", b"frames", b"{"])
            assert counted(keyed, "requests_of_revoked_keys", above=2)["requests_of_revoked_keys"] == 3
            assert not inside.poll(SILENCE_MS)
            with curve(keyed.tcp_endpoint, **place) as again:
                offer(again, frame())
                counts = counted(keyed, "keys_refused")
                assert not again.poll(SILENCE_MS)
        assert counts["decisions_recorded"] == 1

    def test_a_reply_that_is_due_when_a_key_is_revoked_is_not_sent_and_counted(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        client_key = load_client_key(keys.new("laptop", ("ask",), NOON))
        place = {
            "server": client_key.server,
            "public": client_key.public.encode(),
            "secret": client_key.secret.encode(),
        }
        with serving(keyed, load_engine=load_stub_engine), curve(keyed.tcp_endpoint, **place) as own:
            with stalled(keyed.journal_path):
                own.send(frame())
                counted(keyed, "in_flight")
                keys.revoke("laptop", NOON)
            counts = counted(keyed, "replies_to_revoked_keys")
            assert not own.poll(SILENCE_MS)
        assert counts["decisions_recorded"] == 1

    def test_an_erasure_over_tcp_records_the_name_of_the_key(self, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask", "control"), NOON)
        with (
            serving(keyed, load_engine=load_stub_engine),
            Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own,
        ):
            own.evaluate(READ)
            assert own.maintenance(records.Maintenance(task="erase", actor="user:alice"))["own"] == 1
        with closing(sqlite3.connect(keyed.journal_path)) as connection:
            (body,) = connection.execute("SELECT body FROM events WHERE kind = 'erased'").fetchone()
        assert (json.loads(body)["by_key"], json.loads(body)["by_uid"]) == ("laptop", None)
        assert verify(keyed.journal_path).ok

    def test_clients_that_set_the_same_routing_id_are_both_served(self, keyed: Config) -> None:
        client_key = load_client_key(Keys(keyed.keys_dir).new("laptop", ("ask",), NOON))
        place = {
            "server": client_key.server,
            "public": client_key.public.encode(),
            "secret": client_key.secret.encode(),
        }
        with (
            serving(keyed, load_engine=load_stub_engine),
            curve(keyed.tcp_endpoint, **place, routing_id=b"laptop") as first,
            curve(keyed.tcp_endpoint, **place, routing_id=b"laptop") as second,
        ):
            for opened in (first, second, first):
                opened.send(frame())
                assert "decision" in json.loads(opened.recv())

    @pytest.mark.parametrize(
        "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE", b"\0" * 999]
    )
    def test_bytes_that_are_no_handshake_do_no_harm(self, keyed: Config, garbage: bytes) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        host, port = keyed.tcp_endpoint.removeprefix("tcp://").split(":")
        with serving(keyed, load_engine=load_stub_engine):
            for _ in range(20):
                with socket.create_connection((host, int(port))) as raw:
                    raw.sendall(garbage)
            with Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own:
                assert own.evaluate(READ)["context"]["decision_id"]
            assert counters(keyed)["received"] == 2

    def test_a_key_made_while_the_daemon_runs_is_valid_at_once(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        keys.new("first", ("ask",), NOON)
        with serving(keyed, load_engine=load_stub_engine):
            path = keys.new("second", ("ask",), NOON)
            with Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own:
                assert own.evaluate(READ)["decision"] in (True, False)

    def test_a_daemon_whose_keys_are_all_revoked_starts_and_lets_nobody_in(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        keys.new("laptop", ("ask",), NOON)
        keys.revoke("laptop", NOON)
        with serving(keyed, load_engine=load_stub_engine), Client(keyed.endpoint) as local:
            assert local.status().tcp_endpoint == keyed.tcp_endpoint


class TestClient:
    def test_needs_a_key_for_tcp(self) -> None:
        with pytest.raises(ConfigError, match="needs a key: --key FILE"):
            Client("tcp://127.0.0.1:5555")

    def test_a_client_with_a_revoked_key_fails_at_once_with_the_reason(self, keyed: Config) -> None:
        keys = Keys(keyed.keys_dir)
        path, kept = keys.new("laptop", ("ask",), NOON), keyed.state_dir / "laptop.key"
        shutil.copy(path, kept)
        keys.revoke("laptop", NOON)
        with (
            serving(keyed, load_engine=load_stub_engine),
            Client(keyed.tcp_endpoint, key=kept) as own,
        ):
            for _ in range(2):
                with pytest.raises(Unreachable, match="does not know the key 'laptop', or it was revoked"):
                    own.status()
            assert not own.alive()
            assert counters(keyed)["keys_refused"] == 3

    def test_a_client_whose_key_is_revoked_while_connected_gets_no_reply_and_the_reason(
        self, keyed: Config
    ) -> None:
        keys = Keys(keyed.keys_dir)
        path = keys.new("laptop", ("ask",), NOON)
        with (
            serving(keyed, load_engine=load_stub_engine),
            Client(keyed.tcp_endpoint, key=path, timeout_ms=SILENCE_MS) as own,
        ):
            assert own.alive()
            keys.revoke("laptop", NOON)
            with pytest.raises(Unreachable, match="gives none if the key 'laptop' is revoked"):
                own.status()

    def test_a_client_refuses_a_server_with_another_key(self, keyed: Config, tmp_path: Path) -> None:
        Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        elsewhere = Keys(tmp_path).new("laptop", ("ask",), NOON)
        with (
            serving(keyed, load_engine=load_stub_engine),
            Client(keyed.tcp_endpoint, key=elsewhere) as own,
            pytest.raises(Unreachable, match="is not the daemon that made the key 'laptop'"),
        ):
            own.status()

    def test_a_valid_client_counts_no_failed_handshake(self, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        with serving(keyed, load_engine=load_stub_engine):
            with Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own:
                assert own.alive()
                own.evaluate(READ)
            assert "handshakes_failed" not in counters(keyed)

    def test_survives_a_restart_of_the_daemon(self, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        with Client(keyed.tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) as own:
            for _ in range(2):
                with serving(keyed, load_engine=load_stub_engine):
                    assert own.evaluate(READ)["context"]["decision_id"]

    def test_a_missing_daemon_is_reported_at_once(self, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        with (
            Client(keyed.tcp_endpoint, key=path) as own,
            pytest.raises(Unreachable, match="no daemon listens"),
        ):
            own.status()

    def test_a_command_for_a_tcp_endpoint_never_writes_a_local_journal(self, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        elsewhere = replace(keyed, endpoint=keyed.tcp_endpoint, tcp_endpoint="", key=str(path))
        for call in (
            lambda: journal_access.submit_record(elsewhere, records.Node(type="goal", title="Ship")),
            lambda: journal_access.maintain(elsewhere, records.Maintenance(task="checkpoint")),
        ):
            with pytest.raises(Unreachable):
                call()
        assert not keyed.journal_path.exists()


# ---------------------------------------------------------------- on the ipc socket


@as_root
class TestAnotherUser:
    @pytest.fixture
    def opened(self, config: Config) -> Config:
        config.state_dir.chmod(0o711)
        return replace(config, socket_mode=0o666)

    def test_another_user_may_ask_and_record_and_any_other_request_is_refused_undecoded(
        self, opened: Config
    ) -> None:
        with serving(opened, load_engine=load_stub_engine):
            replies = replies_to(
                opened.endpoint,
                STRANGER_UID,
                frame(),
                frame("node", record={"type": "goal", "title": "Ship"}),
                frame("status"),
                *(frame(op, record="malformed") for op in ("review", "approval", "maintenance", "control")),
            )
            counts = counters(opened)
        assert [next(iter(reply.keys() - {"v", "id", "context"})) for reply in replies] == [
            "decision", "recorded", "status", "error", "error", "error", "error",
        ]  # fmt: skip
        for reply, role in zip(replies[3:], ("review", "approve", "control", "control"), strict=True):
            assert reply["error"]["code"] == "unauthorized"
            assert (
                f"needs the role {role}, which uid {STRANGER_UID} does not have" in reply["error"]["message"]
            )
        assert counts["refused_unauthorized"] == 4
        assert "decision" in replies[0]

    def test_another_user_has_the_roles_that_the_settings_give(self, opened: Config) -> None:
        given = replace(opened, roles=(f"uid:{STRANGER_UID}=control",))
        with serving(given, load_engine=load_stub_engine):
            maintenance, control, ask = replies_to(
                given.endpoint,
                STRANGER_UID,
                frame("maintenance", record={"task": "checkpoint"}),
                frame("control", record={"task": "reload"}),
                frame(),
            )
        assert maintenance["done"]["checkpoint"] > 0
        assert control["done"]["refused"] == {}
        assert ask["error"]["code"] == "unauthorized"

    def test_a_user_with_the_role_ship_notes_how_far_a_sink_is_and_does_nothing_else(
        self, opened: Config
    ) -> None:
        given = replace(opened, roles=(f"uid:{STRANGER_UID}=ship",))
        note = {"task": "shipped", "shipped": {"sink": "postgres", "seq": 1}}
        others = [
            {"task": "unship", "sink": "postgres"},
            {"task": "erase", "actor": "user:alice", "unshipped": True},
            {"task": "archive", "before": "2030-01-01T00:00:00Z", "unshipped": True},
            {"task": "checkpoint"},
            {"task": "rekey"},
        ]
        with serving(given, load_engine=load_stub_engine):
            noted, *refused = replies_to(
                given.endpoint,
                STRANGER_UID,
                frame("maintenance", record=note),
                *(frame("maintenance", record=task) for task in others),
                frame("control", record={"task": "reload"}),
                frame(),
            )
        assert noted["done"] == {"acknowledged": 1}
        assert {reply["error"]["code"] for reply in refused} == {"unauthorized"}

    def test_a_caller_without_any_role_may_not_read_the_status(self, opened: Config) -> None:
        with serving(replace(opened, roles=()), load_engine=load_stub_engine):
            (reply,) = replies_to(opened.endpoint, STRANGER_UID, frame("status"))
        assert f"needs one of the roles {', '.join(get_args(Role))}" in reply["error"]["message"]


# ---------------------------------------------------------------- commands


class TestCommands:
    @pytest.fixture
    def run(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))

        def call(*arguments: str) -> tuple[int, str]:
            result = CliRunner().invoke(cli, arguments)
            return result.exit_code, result.output

        return call

    def test_make_list_and_revoke_keys(self, run: Any, config: Config) -> None:
        path = config.state_dir / "keys" / "laptop.key"
        assert run("keys", "new", "laptop", "--role", "ask", "--role", "review") == (0, f"{path}\n")
        code, listed = run("keys", "list", "--json")
        (known,) = json.loads(listed)
        assert (known["name"], known["roles"], known["public"]) == (
            "laptop",
            ["ask", "review"],
            load_client_key(path).public,
        )
        assert load_client_key(path).secret not in listed
        assert run("keys", "new", "laptop")[0] == 2
        assert run("keys", "revoke", "laptop")[0] == 0
        assert json.loads(run("keys", "list", "--json")[1])[0]["revoked_at"]
        assert run("keys", "new")[0] == 2
        assert run("keys", "new", "--server") == (0, f"{config.state_dir / 'keys' / 'server.pub'}\n")
        assert code == 0

    def test_key_takes_a_name_in_keys_dir_or_a_file(self, run: Any, keyed: Config) -> None:
        path = Keys(keyed.keys_dir).new("laptop", ("ask",), NOON)
        with ExitStack() as stack:
            stack.enter_context(serving(keyed, load_engine=load_stub_engine))
            for key in ("laptop", str(path)):
                place = ("--endpoint", keyed.tcp_endpoint, "--key", key)
                code, output = run("ask", json.dumps(READ), "--json", *place)
                assert (code, "decision_id" in output) == (0, True)
                assert run("status", *place)[0] == 0
                assert run("log", "checkpoint", *place)[0] == 4
            assert run("ask", json.dumps(READ), "--endpoint", keyed.tcp_endpoint)[0] == 2
