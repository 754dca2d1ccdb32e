"""The page of a graph: self-contained, safe with hostile texts, and usable in a browser."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.work import HOSTILE, hostile_graph, recorded_history
from thor_policy.core.escape import visible
from thor_policy.journal.reader import Reader
from thor_policy.trace.page import html
from thor_policy.trace.work_graph import whole

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome", "chromium-browser")
BROWSER = next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *BROWSERS))), None)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path, nor named by CHROMIUM")


class Elements(HTMLParser):
    """The elements of a page, and the text of each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data


def test_the_scripts_of_others_are_those_whose_digests_are_stated() -> None:
    assets = resources.files("thor_policy.trace") / "assets"
    stated = dict(re.findall(r"\| `([\w.-]+\.js)` \|.*`([0-9a-f]{64})`", (assets / "README.md").read_text()))
    assert set(stated) == {"cytoscape.min.js", "cytoscape-dagre.min.js"}
    for name, digest in stated.items():
        assert hashlib.sha256((assets / name).read_bytes()).hexdigest() == digest
    for name in ("cytoscape", "cytoscape-dagre", "dagre"):
        assert "Permission is hereby granted" in (assets / f"{name}.LICENSE").read_text(encoding="utf-8")


def test_no_text_ends_an_element_and_no_element_names_another_host(tmp_path: Path) -> None:
    page = html(hostile_graph(tmp_path / "j.db"))
    read = Elements(page)
    data, *scripts = read.scripts
    assert len(scripts) == 3
    assert [item["title"] for item in json.loads(data)["items"]] == [
        visible(title) for title in HOSTILE.values()
    ]
    assert not [
        attributes for _, attributes in read.elements if attributes.keys() & {"src", "href", "onload"}
    ]
    (policy,) = (a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("style-src")[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield opened
        opened.close()


def opened(browser: Any, page: str, folder: Path, width: int = 1280) -> tuple[Any, list[str]]:
    """The page in a browser without a network, and what its console complains of."""
    file = folder / "graph.html"
    file.write_text(page, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab = context.new_page()
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: problems.append(dialog.message))
    tab.goto(file.as_uri())
    return tab, problems


def click(tab: Any, title: str) -> None:
    """Click the node with this title on the drawing."""
    place = tab.evaluate(
        """title => { const node = graphView.nodes().filter(node => node.data('label') === title)[0];
        const box = document.getElementById('drawing').getBoundingClientRect();
        const at = node.renderedPosition(); return [box.x + at.x, box.y + at.y]; }""",
        title,
    )
    tab.mouse.click(*place)


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_a_node_is_clicked_and_nodes_are_filtered(browser: Any, tmp_path: Path, width: int) -> None:
    with Reader(recorded_history(tmp_path / "j.db")) as reader:
        graph = whole(reader)
    tab, problems = opened(browser, html(graph), tmp_path, width)
    assert tab.locator("#count").inner_text() == f"{len(graph.items)} of {len(graph.items)} nodes"
    click(tab, "ship")
    shown = tab.locator("#properties").inner_text()
    assert "it is quick" not in shown
    assert "goal" in shown
    assert "leads_to \u2192 option: fast-path" in shown
    tab.locator("#type input[data-value=goal]").uncheck()
    goals = len([item for item in graph.items if item["type"] == "goal"])
    assert tab.locator("#count").inner_text() == f"{len(graph.items) - goals} of {len(graph.items)} nodes"
    visible_nodes = "number => graphView.nodes(':visible').length === number"  # the next frame shows them
    tab.wait_for_function(visible_nodes, arg=len(graph.items) - goals)
    tab.locator("#type input[data-value=goal]").check()
    tab.locator("#status input[data-value=active]").uncheck()
    ended = len([item for item in graph.items if item["status"] != "active"])
    tab.wait_for_function(visible_nodes, arg=ended)
    tab.locator("#status input[data-value=active]").check()
    tab.locator("#search").fill("PATH")
    tab.wait_for_function(visible_nodes, arg=2)
    assert tab.evaluate("graphView.nodes(':visible').map(node => node.data('label')).sort()") == [
        "fast-path",
        "slow-path",
    ]
    tab.locator("#search").fill("")
    sizes = tab.evaluate("Object.fromEntries(graphView.nodes().map(n => [n.data('label'), n.data('size')]))")
    assert sizes["fast-path"] > sizes["ship"]  # by the number of links to it
    tab.locator("#arrange").click()
    if folder := os.environ.get("SCREENSHOTS"):
        click(tab, "fast-path")
        tab.screenshot(path=Path(folder) / f"graph-{width}.png", full_page=True)
    assert problems == []


@needs_browser
def test_hostile_titles_are_text_in_the_browser(browser: Any, tmp_path: Path) -> None:
    graph = hostile_graph(tmp_path / "j.db")
    tab, problems = opened(browser, html(graph), tmp_path)
    before = tab.evaluate("document.querySelectorAll('*').length")
    for item in graph.items:
        # the drawing has them too near to one another to be clicked
        tab.evaluate("number => { graphView.nodes()[number].emit('tap'); }", graph.items.index(item))
        assert visible(item["title"])[:20].strip() in tab.locator("#properties").inner_text()
    assert tab.evaluate("document.querySelectorAll('b, #properties script').length") == 0
    assert tab.evaluate("document.querySelectorAll('*').length") < before + 60
    assert problems == []
