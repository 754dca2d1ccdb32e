"""The pages in a browser: what appears by itself, keys, approvals, and what a page never does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import Watched
from tests.build import rows
from tests.pages import deploy, requested
from tests.web.conftest import Served
from thor_policy.client.blocking import Client
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Reader

PAGES = (
    *("/", "/decisions", "/decisions?words=deploy&reviewed=no", "/approvals", "/review", "/review/figures"),
    *("/suites", "/packs", "/pulse", "/statistics", "/health"),
)
HOSTILE = "</td><script>alert(1)</script>\u202e\x1b[31m\"' onload=x"


def ask_elsewhere(endpoint: str, question: Json) -> None:
    """Ask from another process."""
    with Client(endpoint) as client:
        client.evaluate(question)


def ask_in_another_process(endpoint: str, question: Json) -> None:
    process = multiprocessing.get_context("spawn").Process(target=ask_elsewhere, args=(endpoint, question))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@contextmanager
def visitor(chromium: Browser, served: Served, name: str, width: int = 1_400) -> Iterator[Watched]:
    """A page that somebody logged in to, with an eye on it."""
    context = chromium.new_context(viewport={"width": width, "height": 900})
    try:
        watched = Watched(context.new_page(), served.pages.url)
        page = watched.page
        page.goto(f"{served.pages.url}/health")
        page.get_by_label("Token").fill(served.tokens[name])
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Log out")).to_be_visible()
        yield watched
        watched.check()
    finally:
        context.close()


def test_a_decision_of_another_process_appears_without_a_reload(chromium: Browser, served: Served) -> None:
    with visitor(chromium, served, "robin") as watched:
        page = watched.page
        page.goto(f"{served.pages.url}/")
        expect(page.get_by_role("status")).to_have_text("live")
        page.evaluate("window.loadedBefore = true")
        ask_in_another_process(served.config.endpoint, deploy("nora", "test"))
        expect(page.locator("#live tbody tr").first).to_contain_text("user:nora")
        assert page.evaluate("window.loadedBefore") is True


def test_a_stream_that_comes_back_gets_what_it_missed(served: Served) -> None:
    with Client(served.config.endpoint) as client, served.pages.client() as http:
        http.post("/login", data={"token": served.tokens["robin"]})
        first = client.evaluate(deploy("first", "test"))["context"]["decision_id"]
        second = client.evaluate(deploy("second", "test"))["context"]["decision_id"]
        with Reader(served.config.journal_path) as reader:
            seq = {id: (reader.get(id) or {})["seq"] for id in (first, second)}
        with http.stream("GET", "/live/events?after=0", headers={"Last-Event-ID": str(seq[first])}) as reply:
            for line in reply.iter_lines():
                if line.startswith("id: "):
                    break
        assert line == f"id: {seq[second]}"


def test_three_decisions_are_reviewed_by_keyboard(chromium: Browser, served: Served) -> None:
    with Client(served.config.endpoint) as client:
        for name in ("ann", "ben", "cleo"):
            client.evaluate(deploy(name, "test"))
    before = len(rows(served.config.journal_path, "SELECT 1 FROM reviews"))
    with visitor(chromium, served, "robin") as watched:
        page = watched.page

        def press(*keys: str, until: str) -> None:
            for key in keys:
                page.keyboard.press(key) if len(key) < 6 else page.keyboard.type(key)
            expect(page.locator("#message")).to_contain_text(until)
            expect(page.locator("html[data-keys=ready]")).to_be_attached()

        page.goto(f"{served.pages.url}/review")
        page.keyboard.press("Enter")
        expect(page.locator("article h2")).to_be_visible()
        expect(page.locator("html[data-keys=ready]")).to_be_attached()
        press("a", until="recorded: accept")
        press("d", "4", until="recorded: correct decision, deny")
        press("b", "4", "Nobody consented.", "Enter", until="recorded: correct both, deny")
        press("u", until="undone: correct both")
        press("s", until="skipped")
        press("p", until="back")
        press("r", "Anybody may.", "Enter", until="recorded: correct reasoning")
        page.keyboard.press("q")
        expect(page.get_by_role("button", name="Begin")).to_be_visible()
    reviews = rows(served.config.journal_path, "SELECT verdict, decision, reviewer FROM reviews ORDER BY seq")
    assert reviews[before:] == [
        ("accept", None, "robin"),
        ("correct_decision", "deny", "robin"),
        ("correct_both", "deny", "robin"),
        ("withdrawn", None, "robin"),
        ("correct_reasoning", None, "robin"),
    ]


def test_a_request_is_approved_by_the_people_of_the_pack(chromium: Browser, served: Served) -> None:
    with Client(served.config.endpoint) as client:
        task = requested(client, deploy("zoe"))
    for name, state in (("kim", "partial"), ("lee", "approved")):
        with visitor(chromium, served, name) as watched:
            page = watched.page
            page.goto(f"{served.pages.url}/approvals")
            page.get_by_role("link", name=f"Task {task[-8:]}").click()
            page.get_by_label("Comment").fill("Checked.")
            page.get_by_role("button", name="Approve").click()
            expect(page.get_by_role("status")).to_contain_text(state)
    approved = rows(served.config.journal_path, "SELECT approver FROM approvals WHERE task = ?", task)
    assert sorted(approved) == [("kim",), ("lee",)]


def test_who_may_not_approve_is_refused_with_the_reason(chromium: Browser, served: Served) -> None:
    with Client(served.config.endpoint) as client:
        task = requested(client, deploy("zoe", change="CHG-8"))
    with visitor(chromium, served, "robin") as watched:
        page = watched.page
        page.goto(f"{served.pages.url}/approvals/{task}")
        page.get_by_role("button", name="Approve").click()
        expect(page.get_by_role("alert")).to_be_visible()
    assert rows(served.config.journal_path, "SELECT 1 FROM approvals WHERE task = ?", task) == []


@pytest.mark.parametrize("width", [1_400, 500])
def test_every_page_works_offline_and_fits(chromium: Browser, served: Served, width: int) -> None:
    with Client(served.config.endpoint) as client:
        hostile = client.evaluate(deploy(HOSTILE, "test", note=HOSTILE * 20))["context"]["decision_id"]
        task = requested(client, deploy("zoe", change=f"CHG-{width}"))
    with visitor(chromium, served, "robin", width) as watched:
        page = watched.page
        page.goto(f"{served.pages.url}/packs")
        pack = page.locator("main h2 a").first.get_attribute("href")
        for path in (*PAGES, f"/decisions/{hostile}", f"/approvals/{task}", str(pack)):
            reply = page.goto(served.pages.url + path)
            assert reply is not None
            assert reply.status == 200, path
            assert page.title().endswith("thor-policy"), path
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.locator("h1").count() == 1, path
            assert "\u202e" not in page.content(), path
            assert page.evaluate("[...document.querySelectorAll('[style], main script')].length") == 0, path
            page.keyboard.press("Tab")
            expect(page.locator(":focus")).to_have_text("Skip to the page") if path != "/review" else None


def test_a_search_narrows_as_filters_change(chromium: Browser, served: Served) -> None:
    with Client(served.config.endpoint) as client:
        client.evaluate(deploy("needle", "test"))
        client.evaluate(deploy("hay", "test"))
    with visitor(chromium, served, "watch") as watched:
        page = watched.page
        page.goto(f"{served.pages.url}/decisions")
        page.get_by_text("Filters").click()
        page.get_by_label("actor").fill("needle")
        page.keyboard.press("Tab")
        expect(page.locator("#results tbody tr")).to_have_count(1)
        expect(page.locator("#results")).to_contain_text("user:needle")
        page.get_by_label("since").fill("yesterday")
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_role("alert")).to_contain_text("RFC 3339")


def test_lines_of_a_list_are_reached_by_keys(chromium: Browser, served: Served) -> None:
    with Client(served.config.endpoint) as client:
        ids = [client.evaluate(deploy(name, "test"))["context"]["decision_id"] for name in ("eve", "adam")]
    with visitor(chromium, served, "watch") as watched:
        page = watched.page
        page.goto(f"{served.pages.url}/decisions")
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("user:eve")
        assert page.url.endswith(ids[0])
        page.goto(f"{served.pages.url}/decisions")
        page.keyboard.press("/")
        expect(page.get_by_label("Words of the question")).to_be_focused()


def test_a_saved_report_is_shown_in_its_own_style(chromium: Browser, served: Served) -> None:
    with visitor(chromium, served, "watch") as watched:
        page = watched.page
        page.goto(f"{served.pages.url}/suites")
        page.get_by_role("link", name="Report of agent-tools").click()
        expect(page.locator("h1")).to_contain_text("did not pass")
        assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "1180px"


def test_a_visitor_sees_only_the_pages_of_its_roles(chromium: Browser, served: Served) -> None:
    with visitor(chromium, served, "kim") as watched:
        page = watched.page
        names = page.get_by_role("navigation").get_by_role("link").all_text_contents()
        assert names == ["Approvals", "Health"]
        page.goto(f"{served.pages.url}/decisions")
        expect(page.get_by_role("alert")).to_contain_text("needs the role review or control")
