"""What the pages refuse: no token, a revoked one, other origins and hosts, forms of other sessions."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.build import rows
from tests.gateways import tokens_for
from tests.pages import deploy, pages, requested, with_approvals
from tests.web.conftest import Served
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Role
from thor_policy.daemon.service import serving
from thor_policy.security.curve_keys import Keys
from thor_policy.security.tokens import Tokens
from thor_policy.testing import load_stub_engine

CSRF = re.compile(r'name="csrf" value="([^"]+)"')


@contextmanager
def log_in(served: Served, token: str) -> Iterator[httpx.Client]:
    with served.pages.client() as client:
        assert client.post("/login", data={"token": token}).status_code == 303
        yield client


def csrf_of(client: httpx.Client) -> str:
    form = CSRF.search(client.get("/health").text)
    assert form is not None
    return form[1]


def events(served: Served) -> int:
    (count,) = rows(served.config.journal_path, "SELECT count(*) FROM events WHERE kind != 'checkpoint'")[0]
    return int(count)


@pytest.fixture
def task(served: Served) -> str:
    with Client(served.config.endpoint) as client:
        return requested(client, deploy("zoe", change=f"CHG-{time.monotonic_ns()}"))


def new_token(served: Served, name: str, *roles: Role) -> str:
    return Tokens(served.tokens_file).new(name, roles, time.time())


def test_without_a_session_every_page_is_the_log_in_page(served: Served, task: str) -> None:
    before, counted = events(served), served.pages.counters["unauthenticated_missing"]
    with served.pages.client() as client:
        for path in ("/", "/decisions", "/review", "/health", "/packs", "/live/events?after=0"):
            reply = client.get(path)
            assert (reply.status_code, "Log in" in reply.text) == (401, True)
        assert client.post(f"/approvals/{task}", data={"verdict": "deny"}).status_code == 401
        assert client.post("/review/step", data={"step": "skip"}).status_code == 401
    assert served.pages.counters["unauthenticated_missing"] == counted + 8
    assert events(served) == before


@pytest.mark.parametrize("token", ["", "nonsense", "tp_00000000_" + "A" * 43, "x" * 5_000, "\x00é"])
def test_a_token_that_is_not_valid_opens_no_session(served: Served, token: str) -> None:
    counted = served.pages.counters["unauthenticated_invalid"]
    with served.pages.client() as client:
        reply = client.post("/login", data={"token": token})
        assert reply.status_code == 401
        assert "set-cookie" not in reply.headers
    assert served.pages.counters["unauthenticated_invalid"] == counted + 1


def test_a_session_ends_when_its_token_is_revoked(served: Served, task: str) -> None:
    token = new_token(served, "leaver", "approve", "review")
    with log_in(served, token) as client:
        csrf = csrf_of(client)
        Tokens(served.tokens_file).revoke("leaver", time.time())
        before, counted = events(served), served.pages.counters["unauthenticated_invalid"]
        assert client.get("/decisions").status_code == 401
        assert client.post(f"/approvals/{task}", data={"csrf": csrf, "verdict": "deny"}).status_code == 401
        assert client.post("/review/begin", data={"csrf": csrf, "queue": "all"}).status_code == 401
    assert served.pages.counters["unauthenticated_invalid"] == counted + 3
    assert events(served) == before


@pytest.mark.parametrize(
    ("headers", "status", "counter"),
    [
        ({"Origin": "https://evil.example"}, 403, "refused_origin"),
        ({"Origin": "null"}, 403, "refused_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "refused_origin"),
        ({"Host": "evil"}, 400, "refused_host"),
        ({"Host": "evil.example:80"}, 400, "refused_host"),
    ],
    ids=lambda value: str(value),
)
def test_another_origin_or_host_changes_nothing(
    served: Served, task: str, headers: dict[str, str], status: int, counter: str
) -> None:
    with log_in(served, served.tokens["lee"]) as client:
        form = {"csrf": csrf_of(client), "verdict": "deny"}
        before, counted = events(served), served.pages.counters[counter]
        assert client.post(f"/approvals/{task}", data=form, headers=headers).status_code == status
    assert served.pages.counters[counter] == counted + 1
    assert events(served) == before


def test_a_form_without_an_origin_is_refused(served: Served, task: str) -> None:
    with log_in(served, served.tokens["lee"]) as client:
        form, counted = {"csrf": csrf_of(client), "verdict": "deny"}, served.pages.counters["refused_origin"]
        del client.headers["Origin"]
        assert client.post(f"/approvals/{task}", data=form).status_code == 403
    assert served.pages.counters["refused_origin"] == counted + 1


@pytest.mark.parametrize("path", ["/approvals/{task}", "/review/begin", "/review/step", "/logout"])
def test_the_form_token_of_another_session_is_refused(served: Served, task: str, path: str) -> None:
    with log_in(served, served.tokens["lee"]) as thief, log_in(served, served.tokens["robin"]) as victim:
        stolen = csrf_of(victim)
        before, counted = events(served), served.pages.counters["refused_csrf"]
        form = {"verdict": "deny", "queue": "all", "step": "skip"}
        for csrf in (stolen, "", "é"):
            reply = thief.post(path.format(task=task), data=form | {"csrf": csrf})
            assert reply.status_code == 403
        assert thief.get("/health").status_code == 200
    assert served.pages.counters["refused_csrf"] == counted + 3
    assert events(served) == before


def test_the_cookie_is_opaque_strict_and_not_for_scripts(served: Served) -> None:
    with served.pages.client() as client:
        reply = client.post("/login", data={"token": served.tokens["robin"]})
        cookie = reply.headers["set-cookie"]
        assert served.tokens["robin"] not in cookie
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        old = dict(client.cookies)
        assert client.post("/logout", data={"csrf": csrf_of(client)}).status_code == 303
    with served.pages.client(cookies=old) as client:
        assert client.get("/health").status_code == 401


def test_who_may_not_review_cannot_begin(served: Served) -> None:
    with log_in(served, served.tokens["watch"]) as client:
        before = events(served)
        reply = client.post("/review/begin", data={"csrf": csrf_of(client), "queue": "all"})
        assert reply.status_code == 403
        assert "needs the role review" in reply.text
        assert client.get("/decisions").status_code == 200
    assert events(served) == before


def test_a_verdict_without_the_role_is_refused_by_the_daemon(served: Served) -> None:
    with log_in(served, new_token(served, "lead", "review")) as client:
        reply = client.post("/approvals/no-such-task", data={"csrf": csrf_of(client), "verdict": "approve"})
        assert reply.status_code == 403


def test_a_page_that_is_out_of_date_judges_nothing(served: Served) -> None:
    with Client(served.config.endpoint) as asking:
        asking.evaluate(deploy("otto", "test"))
        asking.evaluate(deploy("olga", "test"))
    with log_in(served, new_token(served, "twice", "review")) as client:
        csrf = csrf_of(client)
        client.post("/review/begin", data={"csrf": csrf, "queue": "all"})
        shown = re.search(r'name="decision_id" value="([^"]+)"', client.get("/review").text)
        assert shown is not None
        form = {"csrf": csrf, "step": "judge", "verdict": "accept", "decision_id": shown[1]}
        for _ in range(2):
            client.post("/review/step", data=form)
        assert "the page was out of date" in client.get("/review").text
    judged = rows(served.config.journal_path, "SELECT 1 FROM reviews WHERE decision_id = ?", shown[1])
    assert len(judged) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/static/../serving.py", 404),
        ("/static/VENDORED.md", 404),
        ("/decisions/no-such-id", 404),
        ("/decisions?since=yesterday", 400),
        ("/decisions?" + "&".join(f"a{number}=1" for number in range(50)), 400),
        ("/decisions?words=" + "x" * 9_000, 413),
        ("/decisions?words=%00%ff%27--", 400),
        ("/live/events?after=-1", 400),
        ("/live/events?after=1e9", 400),
        ("/packs/0000", 404),
        ("/suites/report?run=../policy_decisions.db", 404),
        ("/suites/report?run=/etc/passwd", 404),
        ("/statistics?since=never", 400),
        ("/review?full=maybe", 200),
        ("/statistics?days=many", 200),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(served: Served, path: str, status: int) -> None:
    with log_in(served, served.tokens["robin"]) as client:
        faults = served.pages.counters["faults"]
        reply = client.get(path)
        assert reply.status_code == status
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
    assert served.pages.counters["faults"] == faults


def test_without_tokens_the_pages_are_the_process_itself_but_forms_need_their_session(
    served: Served, task: str
) -> None:
    with pages(served.config) as running, running.client() as client, running.client() as other:
        page = client.get("/approvals/" + task)
        assert page.status_code == 200
        form = CSRF.search(page.text)
        assert form is not None
        before = events(served)
        denied = {"csrf": form[1], "verdict": "cancel"}
        assert other.post(f"/approvals/{task}", data=denied).status_code == 401
        other.get("/health")
        assert other.post(f"/approvals/{task}", data=denied).status_code == 403
        assert events(served) == before
        assert client.post(f"/approvals/{task}", data=denied).status_code == 303
    assert rows(served.config.journal_path, "SELECT 1 FROM approval_ends WHERE task = ?", task) == [(1,)]


def test_a_stream_ends_when_its_token_is_revoked(served: Served) -> None:
    with log_in(served, new_token(served, "watcher", "review")) as client:
        with client.stream("GET", "/live/events?after=0") as reply:
            lines = reply.iter_lines()
            assert next(lines).startswith("retry")
            Tokens(served.tokens_file).revoke("watcher", time.time())
            assert not any(line.startswith(":") for line in lines)  # a sign of life
        assert client.get("/live/events?after=0").status_code == 401


def test_a_role_that_the_process_lacks_is_not_granted_to_its_visitors(
    config: Config, tcp_endpoint: str, tmp_path: Path
) -> None:
    keys = Keys(config.keys_dir)
    key = keys.new("web", ("relay", "ask", "control"), time.time())
    file = tmp_path / "t" / "tokens.json"
    tokens = tokens_for(file, robin=("review",), watch=("control",))
    daemon = replace(with_approvals(config), tcp_endpoint=tcp_endpoint)
    with (
        serving(daemon, load_engine=load_stub_engine),
        pages(
            replace(daemon, endpoint=tcp_endpoint), key=key, tokens=tmp_path / "t" / "tokens.json"
        ) as running,
    ):
        for name, status in (("robin", 403), ("watch", 200)):
            with running.client() as client:
                client.post("/login", data={"token": tokens[name]})
                assert client.get("/decisions").status_code == status


def test_while_the_daemon_is_away_pages_say_so(served: Served, short_dir: Path) -> None:
    away = f"ipc://{short_dir}/nobody.sock"
    with pages(replace(served.config, endpoint=away)) as running, running.client() as client:
        reply = client.get("/health")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert client.get("/decisions").status_code == 200


def test_the_command_serves_and_ends_with_sigterm(served: Served) -> None:
    command = [sys.executable, "-c", "from thor_policy.cli.main import main; main()"]
    command += ["web", "--listen", "127.0.0.1:0"]
    command += ["--state-dir", str(served.config.state_dir), "--endpoint", served.config.endpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if "ready at" in line)
        (url,) = re.findall(r"http://[0-9.:]+", line)
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_stream_does_not_keep_the_process_from_ending(served: Served) -> None:
    with ExitStack() as streams:
        with pages(served.config) as running:
            client = streams.enter_context(running.client())
            client.get("/health")
            lines = streams.enter_context(client.stream("GET", "/live/events?after=0")).iter_lines()
            assert next(lines).startswith("retry")
        assert list(lines)[-1] == ""
