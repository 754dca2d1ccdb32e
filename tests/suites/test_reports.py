"""The reports of a run: a well-formed and correct JUnit file, and the HTML page."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import JUDGE, answered, error, many, run_of, skipped
from tests.page_parser import PageParser
from thor_policy.suites.baselines import Gate
from thor_policy.suites.conclusions import Point, Recorded, conclude
from thor_policy.suites.html_report import page
from thor_policy.suites.junit import could_not_run
from thor_policy.suites.junit import junit as junit_of
from thor_policy.suites.run_files import Item, Run, Why

#: What a scenario of a stranger may say.
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=alert(1)>]]>&{{ 7*7 }}\x00\x1b[2J\u202e\ud800"
)

MIXED = run_of(
    answered("Q1"),
    answered("Q2", "allow", misses=("answered allow, expected deny",)),
    skipped("Q3", misses=("needs a calendar",)),
    error("Q4", misses=("busy: the queue is full",)),
    answered("Q1", suite="other", total_ms=50.0),
)
PASSED = run_of(answered("Q1"), answered("Q2"))


# ---------------------------------------------------------------- JUnit

#: The common schema: attributes that must be there, that may be, and children in their order.
SHAPE: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, set(), ("testsuite",)),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"},
        set(),
        ("properties", "testcase"),
    ),
    "properties": (set(), set(), ("property",)),
    "property": ({"name", "value"}, set(), ()),
    "testcase": ({"name", "classname", "time"}, set(), ("skipped", "error", "failure", "system-out")),
    "skipped": ({"message"}, set(), ()),
    "failure": ({"message", "type"}, set(), ()),
    "error": ({"message", "type"}, set(), ()),
    "system-out": (set(), set(), ()),
}


def checked(xml: bytes) -> ElementTree.Element:
    """The root of a JUnit file, after checks of its schema and counts."""
    root = ElementTree.fromstring(xml)  # noqa: S314  (our own)
    assert root.tag == "testsuites"
    for element in root.iter():
        needed, optional, children = SHAPE[element.tag]
        assert needed <= set(element.attrib) <= needed | optional, element.tag
        order = [children.index(child.tag) for child in element]
        assert order == sorted(order), element.tag
        if "time" in element.attrib:
            assert re.fullmatch(r"\d+\.\d{3}", element.attrib["time"])
    for suite in root:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases)
        for kind, counted in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(suite.attrib[counted]) == sum(case.find(kind) is not None for case in cases)
        assert all(sum(child.tag != "system-out" for child in case) <= 1 for case in cases)
    for counted in ("tests", "failures", "errors"):
        assert int(root.attrib[counted]) == sum(int(suite.attrib[counted]) for suite in root)
    return root


def junit(run: Run, gate: Gate | None = None) -> bytes:
    return junit_of(conclude(run, gate=gate))


def failing_cases(root: ElementTree.Element) -> int:
    return int(root.attrib["failures"]) + int(root.attrib["errors"])


def test_junit_has_a_test_suite_per_suite_and_a_case_per_scenario() -> None:
    root = checked(junit(MIXED))
    assert [suite.attrib["name"] for suite in root] == ["trial", "other"]
    trial = root[0]
    assert {k: trial.attrib[k] for k in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "4", "failures": "1", "errors": "1", "skipped": "1", "time": "0.400",
    }  # fmt: skip
    first, second, third, fourth = trial.findall("testcase")
    assert (first.attrib["name"], first.attrib["classname"]) == ("Q1 About Q1", "trial")
    assert len(first) == 0
    failure = second.find("failure")
    assert failure is not None
    assert (failure.attrib, failure.text) == (
        {"message": "answered allow, expected deny", "type": "too loose"},
        "answered allow, expected deny\nanswer: allow, by model; expected deny\nmodel: allow 0.80",
    )
    assert [child.tag for child in third] == ["skipped"]
    assert [child.tag for child in fourth] == ["error"]


def test_a_junit_case_names_its_decision() -> None:
    root = checked(junit(run_of(answered("Q1", decision_id="0198"))))
    assert root.findtext("testsuite/testcase/system-out") == "decision 0198: deny, by model"


def test_junit_properties_name_pack_and_model() -> None:
    properties = {
        element.get("name"): element.get("value") for element in checked(junit(PASSED)).iter("property")
    }
    assert properties["model.small"] == f"tiny-q4 {JUDGE.model_sha256}"
    assert properties["pack.small"] == f"1.0.0 {JUDGE.pack.sha256}"


def test_repeats_are_one_junit_case_that_fails_if_one_round_failed() -> None:
    rounds = [answered("Q1", round=1), answered("Q1", "mfa", round=2), answered("Q1", round=3)]
    root = checked(junit(run_of(*rounds, repeats=3)))
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["time"]) == ("1", "1", "0.300")


def test_under_a_gate_only_the_case_of_the_gate_fails() -> None:
    failing = run_of(answered("Q1", "mfa", misses=("answered mfa",)))
    passed = checked(junit(failing, Gate(reasons=(), comparisons={})))
    assert failing_cases(passed) == 0
    kept = passed.find("testsuite/testcase/skipped")
    assert kept is not None
    assert kept.attrib["message"] == "too loose; the gate decides: answered mfa"
    stopped = checked(junit(failing, Gate(reasons=("Q1 is newly loosened", "and more"), comparisons={})))
    assert (stopped.attrib["tests"], failing_cases(stopped)) == ("2", 1)
    assert stopped.findall("testsuite/testcase")[-1].attrib["name"] == "gate"


def test_a_run_that_could_not_begin_is_a_junit_case_in_error() -> None:
    root = checked(could_not_run("no scenario to run", "2026-05-13T10:00:00Z"))
    assert (root.attrib["tests"], root.attrib["errors"]) == ("1", "1")


@given(st.text())
def test_junit_is_well_formed_whatever_a_scenario_holds(text: str) -> None:
    fields: dict[str, Any] = {"title": text, "misses": (text,), "suite": text, "tags": (text,)}
    root = checked(junit(run_of(answered("Q1", "allow", **fields), error("Q2", **fields))))
    assert failing_cases(root) == 2
    checked(could_not_run(text, "2026-05-13T10:00:00Z"))


def test_characters_that_xml_cannot_hold_are_shown_by_code() -> None:
    root = checked(junit(run_of(answered("Q1", title=HOSTILE))))
    name = root[0].findall("testcase")[0].attrib["name"]
    assert name.startswith("Q1 <script>document.title=")
    assert "\\x00\\x1b[2J" in name


# ---------------------------------------------------------------- the page


def shown(run: Run, gate: Gate | None = None) -> str:
    return page(conclude(run, gate=gate))


def words(html: str) -> str:
    return " ".join(PageParser(html).text.split())


def test_the_page_begins_with_the_verdict() -> None:
    for run, verdict in (
        (PASSED, "All passed"),
        (MIXED, "2 of 4 did not pass"),
        (run_of(skipped("Q1")), "Nothing was asked"),
        (run_of(), "Nothing was asked"),
    ):
        assert f"<h1>{verdict}</h1>" in shown(run)
    assert "<h1>The gate is passed</h1>" in shown(MIXED, Gate(reasons=(), comparisons={}))
    stopped = shown(PASSED, Gate(reasons=("Q1 is newly loosened",), comparisons={}))
    assert "<h1>The gate is not passed</h1>" in stopped
    assert "Q1 is newly loosened" in stopped


def test_the_page_shows_every_scenario_and_each_figure_with_its_interval() -> None:
    text = words(shown(MIXED))
    for expected in (
        "About Q1", "answered allow, expected deny", "busy: the queue is full", "needs a calendar",
        "2 of 4passed 15 to 85 %", "Too loose (1)", "Refused (1)", "Skipped (1)", "Passed (2)",
        "rules alone", "model alone, where it was asked", "always the most frequent outcome",
        "expected calibration error", "model: 3, median 100 ms", "tiny-q4", "a desk",
    ):  # fmt: skip
        assert expected in text, expected


def test_the_page_has_the_calibration_error_of_attacks_apart() -> None:
    attacked = answered("A1", "allow", difficulty="attack", misses=("answered allow",))
    text = words(page(conclude(run_of(answered("Q1"), attacked))))
    assert "attacked10 %0.800.800" in text
    assert "others1100 %0.800.200" in text
    assert "attacked1" not in words(page(conclude(run_of(answered("Q1")))))


def test_the_page_has_failures_by_kind_with_question_rules_and_command() -> None:
    why = Why(question="user:lee burn doc:d", rules=("night",), because="It is night.")
    wrong = answered("L1", "allow", misses=("answered allow",), decision_id="0198-aaaa1111", why=why)
    uncited = answered("U1", status="failed", misses=("did not cite R1",))
    run = run_of(uncited, answered("S1", "deny", wanted="allow", misses=("answered deny",)), wrong)
    text = words(page(conclude(run, recorded=Recorded(state_dir=Path("/srv/state")))))
    assert "1 too loose, 1 too strict, 1 citation only" in text
    places = [text.index(kind) for kind in ("Too loose (1)", "Too strict (1)", "Citation only (1)")]
    assert places == sorted(places)
    for part in (
        "user:lee burn doc:d",
        "allow; night: It is night.",
        "log show aaaa1111 --state-dir /srv/state",
    ):
        assert part in text


def test_a_page_does_not_say_all_passed_if_the_status_is_not_0() -> None:
    point = Point(name="coverage of small", reasons=("40 % is below the threshold of 90 %",))
    html = page(conclude(PASSED, points=(point,)))
    assert "<h1>All scenarios passed, but the run is no success</h1>" in html
    assert "coverage of small: 40 % is below the threshold of 90 %" in html


def test_the_time_axis_has_seconds_from_1000_ms_on_so_that_labels_do_not_overlap() -> None:
    html = shown(run_of(answered("Q1", total_ms=2.0), answered("Q2", total_ms=80_000.0)))
    for label in ("1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"):
        assert f">{label}</text>" in html, label
    assert "0000 ms" not in html


def test_the_page_shows_flips_if_scenarios_were_repeated() -> None:
    rounds = [answered("Q1", round=1), answered("Q1", "mfa", round=2)]
    text = words(shown(run_of(*rounds, repeats=2)))
    assert "deny, mfa; probabilities moved by up to 0.700" in text
    assert "k = 1: 50.0 %, k = 2: 0.0 %" in text
    assert "No scenario was answered differently in any of 2 rounds" in words(
        shown(run_of(answered("Q1", round=1), answered("Q1", round=2), repeats=2))
    )
    assert "Flips" not in words(shown(MIXED))


def hostile() -> Run:
    """A run in which every name and text is hostile."""
    fields: dict[str, Any] = {"title": HOSTILE, "misses": (HOSTILE,), "suite": HOSTILE, "pack": HOSTILE}
    fields |= {"tags": (HOSTILE,), "difficulty": HOSTILE, "decision_id": HOSTILE}
    judge = replace(JUDGE, pack=replace(JUDGE.pack, name=HOSTILE, version=HOSTILE), model=HOSTILE)
    items: list[Item] = [answered(f"{HOSTILE}{n}", "allow", **fields) for n in range(3)]
    items += [answered("Q1", "deny", round=turn, tier=HOSTILE, **fields) for turn in (1, 2)]
    items += [answered("Q1", "allow", round=3, **fields), error("Q2", **fields)]
    return run_of(*items, judges=(judge,), machine=HOSTILE, selection=HOSTILE, repeats=3)


def test_untrusted_text_on_the_page_stays_text() -> None:
    html = shown(hostile(), Gate(reasons=(HOSTILE,), comparisons={}))
    document = PageParser(html)
    assert not {"script", "img", "iframe", "object", "link", "base", "form"} & {
        tag for tag, _ in document.tags
    }
    assert not [name for _, attributes in document.tags for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in document.text
    assert "7*7" not in document.loose  # nor does it turn round what stands beside it
    assert html.encode("utf-8")


def test_the_page_is_self_contained_and_its_policy_forbids_everything_else() -> None:
    document = PageParser(shown(MIXED))
    assert document.references == []
    assert document.security_policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in shown(MIXED)
    assert "@import" not in shown(MIXED)


#: Names under which a browser that takes pictures without a screen may be found; CHROMIUM names another.
BROWSERS = (
    "chromium",
    "chromium-headless-shell",
    "chrome-headless-shell",
    "google-chrome",
    "chromium-browser",
)
BROWSER = next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *BROWSERS))), None)


def photograph(html: str, width: int, picture: Path) -> tuple[int, int]:
    """Open a page in a browser, save a screenshot, and return width and height in pixels."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(html, encoding="utf-8")
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={folder}/profile", f"--window-size={width},2400", f"--screenshot={picture}",
            file.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    size: tuple[int, int] = struct.unpack(">II", head[16:24])
    return size


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path, nor named by CHROMIUM")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page(tmp_path: Path, width: int) -> None:
    items = [replace(item, suite=suite, pack=suite) for suite in ("small", "other") for item in many(20, 10)]
    judges = tuple(replace(JUDGE, pack=replace(JUDGE.pack, name=name)) for name in ("small", "other"))
    html = shown(run_of(*items, judges=judges))
    picture = tmp_path / "report.png"
    assert photograph(html, width, picture) == (width, 2400)
    blank = tmp_path / "blank.png"
    photograph("<!doctype html><title>blank</title>", width, blank)
    assert picture.stat().st_size > 10 * blank.stat().st_size
