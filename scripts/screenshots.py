"""Photograph every page of `thorpolicy web` over a demo journal: a journal of two days, a daemon, a browser.

Owns the demo journal and the list of pages. The pictures are WebP files of docs/_static/web, which the docs
show; the browser itself converts them, so no other library is needed.
"""

from __future__ import annotations

import argparse
import base64
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Explanation, Floor, ModelInfo, PackInfo, Scored, Timings
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Action, Annotations, Caller, Entity, Evaluation, Json, Risk
from thor_policy.daemon import service
from thor_policy.gateway.serving import Settings, listen
from thor_policy.journal.writer import Journal
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.testing import load_stub_engine
from thor_policy.web.serving import make_web_server
from thor_policy.web.visits import Places

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "_static" / "web"
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
#: Widths of the pictures, and their largest height, in pixels.
WIDTHS, MAX_HEIGHT = (1_400, 500), 1_200
#: Quality of the WebP files, from 0 to 1.
QUALITY = 0.6
MODEL = ModelInfo(
    name="smollm2-135m-instruct-q4_1",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantisation="Q4_1",
    architecture="llama",
    parameters=135_000_000,
    build="demo",
    device="cpu",
)
PEOPLE = ("ann", "ben", "cleo", "dana", "emil", "nora")
#: Action, resource type and id, rule that matches, outcome, risk, reason.
CASES: tuple[tuple[str, str, str, str | None, str, Risk, str], ...] = (
    ("read", "repo", "handbook", "routine-read", "allow", "low", "Reading a repository is routine."),
    ("run_tests", "repo", "payments", "routine-automation", "allow", "low", "Automation may run tests."),
    ("deploy", "env", "staging", None, "allow", "medium", "Two reviews and a rehearsed rollback."),
    ("deploy", "env", "production", None, "require_attestation", "high", "The change came late on a Friday."),
    ("export_data", "db", "customers", "data-access", "require_mfa", "high", "Exports need a second factor."),
    ("delete_audit_log", "log", "march", "tampering", "deny", "critical", "Nobody may delete audit records."),
    ("grant_admin", "role", "owner", "privileged-without-admin", "deny", "critical", "The role is missing."),
)


# ---------------------------------------------------------------- the demo journal


def fill(config: Config, pack: Pack) -> None:
    """Record two days of decisions of a pack, as a daemon would have."""
    draw = random.Random(7)
    now = time.time()
    with Journal(config.journal_path, synchronous="OFF") as journal:
        for hour in range(48, 0, -1):
            busy = 9 <= (48 - hour) % 24 <= 18
            count = draw.randint(5, 11) if busy else draw.randint(0, 3)
            for minute in sorted(draw.random() * 59 for _ in range(count)):
                journal.decided(_decision(draw, pack.info, pack.labels, now - hour * 3_600 + minute * 60))


def _decision(draw: random.Random, pack: PackInfo, labels: tuple[str, ...], at: float) -> Decision:
    name, kind, resource, rule, outcome, risk, reason = draw.choices(CASES, (9, 7, 5, 4, 3, 1, 2))[0]
    by_model = rule is None
    weights = {label: draw.uniform(0.01, 0.12) for label in labels} | {outcome: draw.uniform(0.5, 2.5)}
    shares = {label: weight / sum(weights.values()) for label, weight in weights.items()}
    text = Explanation(classification="routine", clauses=("R5",), reasoning=reason, text="")
    return Decision(
        id=new_id(),
        at=at,
        evaluation=Evaluation(
            subject=Entity(
                type="user", id=draw.choice(PEOPLE), properties={"role": "developer", "trust": 0.82}
            ),
            action=Action(name=name),
            resource=Entity(type=kind, id=resource),
            context={"team_context": "platform", "details": "Release 7.3, two reviews.", "ticket": "OPS-214"},
        ),
        caller=Caller(transport="ipc", uid=1_000, gid=1_000, pid=42),
        outcome=outcome,
        allow=outcome == "allow",
        tier="model" if by_model else "rule",
        floor=Floor(
            outcome="allow" if by_model else outcome,
            final=not by_model,
            rules=() if rule is None else (rule,),
            facts={"production": resource == "production", "kind": "change"},
            risk=risk,
            because=None if by_model else reason,
        ),
        risk=risk,
        pack=pack,
        model=MODEL if by_model else None,
        label=outcome if by_model else None,
        confidence=shares[outcome] if by_model else None,
        probabilities=shares if by_model else {},
        scored=_scored(shares) if by_model else None,
        explanation=text,
        annotations=Annotations(expected=(outcome if draw.random() < shares[outcome] + 0.1 else "deny",))
        if by_model
        else Annotations(),
        timings=Timings(queue_ms=0.2, rules_ms=0.4, score_ms=draw.uniform(90, 260) if by_model else 0.0),
    )


def _scored(shares: dict[str, float]) -> Scored:
    return Scored(
        label=max(shares, key=shares.__getitem__),
        probabilities=shares,
        logits=tuple(shares.values()),
        suffix_tokens=(1, 2, 3),
        prefix_tokens=1_500,
        prefix_digest="ab" * 32,
        score_ms=120.0,
    )


def work(client: Client) -> tuple[str, str]:
    """Add what people and programs add; returns a decision and an open task worth a look."""
    for name, resource in (("nora", "test"), ("ben", "staging"), ("ann", "test"), ("emil", "test")):
        client.evaluate(_deploy(name, resource))
    past = client.evaluate(_deploy("dana", "test"))["context"]["decision_id"]
    shown = client.evaluate(_deploy("cleo", "production"))["context"]["decision_id"]
    client.outcome(past, "SUCCESS", 1.0, "The deploy went well.")
    client.outcome(shown, "PENDING")
    consulted = records.Consultation(
        decision_id=shown, system="deploy-calendar", entity="env:production", query="freeze?", value="none"
    )
    client.consultation(consulted)
    client.edge(
        records.Edge(
            source=shown, target=past, type="CITES", similarity=0.91, how="embedding", favourable=True
        )
    )
    client.review(records.Review(decision_id=shown, reviewer="robin", verdict="accept"))
    request = records.ApprovalRequest(decision_id=shown, reason="The fix for the outage of this morning.")
    task = str(client.request_approval(request)["id"])
    other = client.evaluate(_deploy("emil", "production"))["context"]["decision_id"]
    client.request_approval(
        records.ApprovalRequest(decision_id=other, reason="A certificate ends tonight.", urgency="urgent")
    )
    goal = client.node(records.Node(type="goal", title="Ship release 7.3", agent="cleo"))
    option = client.node(
        records.Node(type="option", title="Deploy behind a flag", agent="cleo", confidence=80)
    )
    client.edge(records.Edge(source=goal, target=option, type="leads_to"))
    client.node(records.Node(type="goal", title="Retire the old gateway", agent="ben"))
    return shown, task


def _deploy(name: str, resource: str) -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": name, "properties": {"role": "developer"}},
        "action": {"name": "deploy"},
        "resource": {"type": "env", "id": resource},
        "context": {"change": "CHG-7", "details": "Release 7.3, two reviews, rollback rehearsed."},
    }


# ---------------------------------------------------------------- the pages


@contextmanager
def serving(config: Config) -> Iterator[str]:
    """The pages of a daemon; gives their address."""
    places = Places(
        journal=config.journal_path,
        events_endpoint=config.events_endpoint,
        results=ROOT / "results",
        scenarios=data_path("scenarios"),
        reviewer="robin",
    )
    counters: Counter[str] = Counter()
    opened, settings = listen(Settings(address="127.0.0.1", port=0, endpoint=config.endpoint))
    ready = threading.Event()
    server = make_web_server(settings, places, counters, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        if not ready.wait(20):
            raise SystemExit("screenshots: the pages did not start")
        yield settings.base_url
    finally:
        server.should_exit = True
        thread.join()
        opened.close()


def photograph(browser: Browser, url: str, pages: dict[str, str], out: Path, png: Path | None) -> int:
    """Write every picture; returns their bytes together."""
    total = 0
    for width in WIDTHS:
        for theme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
            page = context.new_page()
            for name, path in pages.items():
                if theme == "dark" and name != "decision":
                    continue
                page.goto(url + path)
                _settle(page, name)
                file = f"{name}-{width}{'-dark' if theme == 'dark' else ''}"
                total += _save(context.new_page(), _shot(page, width), file, out, png)
            context.close()
    return total


def _settle(page: Page, name: str) -> None:
    """Wait until a page is as a visitor sees it."""
    if name == "live":
        expect(page.get_by_role("status")).to_have_text("live")
    if name == "review" and (begin := page.get_by_role("button", name="Begin")).count():
        begin.click()
        expect(page.locator("article h2")).to_be_visible()


def _shot(page: Page, width: int) -> bytes:
    height: int = page.evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
    page.set_viewport_size({"width": width, "height": min(MAX_HEIGHT, max(400, height))})
    picture = page.screenshot()
    page.set_viewport_size({"width": width, "height": 900})
    return picture


_TO_WEBP = """async ([data, quality]) => {
  const image = new Image();
  image.src = `data:image/png;base64,${data}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/webp", quality).split(",")[1];
}"""


def _save(blank: Page, picture: bytes, name: str, out: Path, png: Path | None) -> int:
    if png is not None:
        (png / f"{name}.png").write_bytes(picture)
    data: str = blank.evaluate(_TO_WEBP, [base64.b64encode(picture).decode(), QUALITY])
    blank.close()
    content = base64.b64decode(data)
    (out / f"{name}.webp").write_bytes(content)
    return len(content)


def main(out: Path, png: Path | None) -> int:
    """Make the journal, serve it, photograph it."""
    out.mkdir(parents=True, exist_ok=True)
    if png is not None:
        png.mkdir(parents=True, exist_ok=True)
    governance = pack_files.load(data_path("prompts") / "team-governance")
    with tempfile.TemporaryDirectory(prefix="tp-") as name:
        folder = Path(name)
        config = Config(
            state_dir=folder,
            endpoint=f"ipc://{folder}/policy.sock",
            pack=str(ROOT / "docs" / "examples" / "deploy-approval"),
            people=(f"uid:{os.geteuid()}=robin;manager",),
            threads=1,
        )
        fill(config, governance)
        with service.serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
            shown, task = work(client)
            (resident,) = client.status().packs
            pages = {
                "live": "/",
                "decisions": "/decisions?outcome=require_attestation",
                "decision": f"/decisions/{shown}",
                "approvals": "/approvals",
                "approval": f"/approvals/{task}",
                "review": "/review",
                "review-figures": "/review/figures",
                "suites": "/suites",
                "report": "/suites/report?run=baselines/agent-tools@none.json",
                "packs": "/packs",
                "pack": f"/packs/{resident.sha256}",
                "pulse": "/pulse",
                "statistics": "/statistics",
                "health": "/health",
            }
            with serving(replace(config)) as url, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
                try:
                    total = photograph(browser, url, pages, out, png)
                finally:
                    browser.close()
    print(f"{out}: {total / 1_000:,.0f} kB")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--png", type=Path, help="also keep the pictures as PNG files in this folder")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder of the pictures")
    options = parser.parse_args()
    raise SystemExit(main(options.out, options.png))
