"""The documents: every block of shell or Python is run as it stands, or says why not."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.documents import PAGES, ROOT, Shell, blocks_named, blocks_of, missing_line, open_shell
from tests.gateways import gateway
from thor_policy import catalog
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.records import Control
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import load_stub_engine

#: The names under which blocks are run, each by a test below.
NAMES = {
    "canary",
    *("readme", "quickstart", "tutorial", "recipes", "zeromq sample"),
    *("packs", "signatures", "keys", "journal", "checks", "backup", "sources", "approvals", "work", "hooks"),
    *("proxy", "gateway", "receipts"),
}
DOOR = ROOT / "docs" / "examples" / "door-access"
QUESTION = json.loads((ROOT / "docs" / "examples" / "door-question.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_code_is_run_or_says_why_not(page: Path) -> None:
    blocks = blocks_of(page)
    unmarked = [block.place for block in blocks if not block.name and not block.reason]
    assert unmarked == [], "put <!-- run: NAME --> or <!-- not run: REASON --> on the line before"
    assert {block.name for block in blocks if block.name} <= NAMES, "write a test for this name"


def test_the_front_page_links_to_every_page() -> None:
    """docs/conf.py makes the table of contents from these links."""
    docs = ROOT / "docs"
    links = set(re.findall(r"\]\(([^)#]+\.md)\)", (docs / "index.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    inside = {link for link in links if not link.startswith("../")}
    assert inside == {page for page in pages if not page.startswith("examples/")} - {"index.md"}


SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_v18_the_front_pages_link_to_the_threat_model() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        assert re.search(r"\]\((\.\./)?SECURITY\.md\)", page.read_text(encoding="utf-8")), page


def test_v18_every_promise_of_the_threat_model_names_a_test_or_script_that_exists() -> None:
    rows = []
    for table in re.findall(r"\| held by \|\n\|[-|]+\|\n((?:\|.*\n)+)", SECURITY):
        rows += table.splitlines()
    assert len(rows) > 25
    for row in rows:
        places = re.findall(r"`((?:tests|scripts|thor_policy)/[\w./-]+)`", row.rpartition(" | ")[2])
        assert places, row
        assert [place for place in places if not (ROOT / place).exists()] == [], row


@pytest.mark.parametrize(
    "figure",
    [
        "119,328",
        "477,576",
        "38,440",
        "10,000 of 10,000",
        "118 rules",
        "264",
        "3,770",
        "136 ",
        "0 below the floor",
    ],
)
def test_v18_the_figures_of_the_threat_model_are_those_of_the_measurements(figure: str) -> None:
    texts = [ROOT / "docs" / "explanation" / name for name in ("measurements.md", "suites.md")]
    assert figure in SECURITY
    assert any(figure in path.read_text(encoding="utf-8") for path in texts)


def test_every_name_has_blocks() -> None:
    assert {block.name for page in PAGES for block in blocks_of(page)} - {""} == NAMES


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("", ("", "", False, 0)),
        ("<!-- run: tutorial -->", ("tutorial", "", False, 0)),
        ("<!-- run: tutorial in the background -->", ("tutorial", "", True, 0)),
        ("<!-- run: tutorial, exit status 2 -->", ("tutorial", "", False, 2)),
        ("<!-- not run: needs root -->", ("", "needs root", False, 0)),
        ("<!-- not run: -->", ("", "", False, 0)),
    ],
)
def test_a_mark_stands_on_the_line_before_its_block(mark: str, expected: tuple[str, str, bool, int]) -> None:
    text = f"Text\n{mark}\n```sh\nls\n```\n\n```\nfile\n```\n"
    (block,) = blocks_of(ROOT / "README.md", text)
    assert (block.name, block.reason, block.background, block.status) == expected
    assert (block.code, block.output, block.place) == ("ls\n", "file\n", "README.md:3")


@pytest.mark.parametrize(
    ("output", "printed", "missing"),
    [
        ("a 1\nc\n", "a   1\nb\nc\n", None),
        ("a\nb\n", "b\na\n", "b"),
        ("a\n", "ab\n", "a"),
        ("a 1\n", "a 1 c\n", None),
    ],
)
def test_documented_output_must_be_printed_in_its_order(
    output: str, printed: str, missing: str | None
) -> None:
    assert missing_line(output, printed) == missing


def variables_of(config: Config) -> dict[str, str]:
    """The settings of a test, as a user's variables."""
    return {"THOR_POLICY_STATE_DIR": str(config.state_dir), "THOR_POLICY_ENDPOINT": config.endpoint}


@pytest.fixture
def config(short_dir: Path) -> Config:
    return Config(state_dir=short_dir / "state", endpoint=f"ipc://{short_dir}/policy.sock")


@pytest.fixture
def shell(config: Config, tmp_path: Path) -> Iterator[Shell]:
    with open_shell(tmp_path, variables_of(config)) as opened:
        yield opened


@contextlib.contextmanager
def decided(config: Config) -> Iterator[None]:
    """A daemon with the stub, which has decided a question."""
    with serving(config, load_engine=load_stub_engine):
        with Client(config.endpoint) as client:
            client.evaluate(QUESTION)
        yield


def newest_decision(config: Config) -> str:
    with Reader(config.journal_path) as reader:
        return str(reader.decisions(limit=1)[0]["decision_id"])


# ---------------------------------------------------------------- a newcomer, with the embedded model


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, model_file: catalog.ModelFile) -> Iterator[Shell]:
    """The shell in which every block of the quickstart was run, in order, with its daemon.

    It began in a directory that was empty, but for the virtual environment.
    """
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / ".venv").symlink_to(sys.prefix)
    with tempfile.TemporaryDirectory(prefix="tp-") as short_dir:
        config = Config(state_dir=folder / "state", endpoint=f"ipc://{short_dir}/policy.sock")
        with open_shell(folder, variables_of(config)) as shell:
            for block in blocks_named("quickstart"):
                shell.run(block, {"ID": newest_decision(config)} if "ID" in block.code else {})
            yield shell


@pytest.mark.model
def test_the_quickstart_runs_as_written(quickstart: Shell) -> None:
    """Its answers are in the journal: the first by the model, that of the Python client from the cache."""
    with Reader(Config(state_dir=quickstart.folder / "state").journal_path) as reader:
        tiers = [row["tier"] for row in reader.decisions(entity="env:production")]
    assert tiers == ["cache", "model"]


class Tutorial:
    """The pages of the tutorial, run in order in the shell of the quickstart, and each at most once."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._waiting = blocks_named("tutorial")

    def run_through(self, page: str) -> None:
        """Run the blocks that have not run yet, up to the last block of this page."""
        while any(block.place.startswith(f"{page}:") for block in self._waiting):
            self._shell.run(self._waiting.pop(0))


@pytest.fixture(scope="module")
def tutorial(quickstart: Shell) -> Tutorial:
    (quickstart.folder / "docs").symlink_to(ROOT / "docs")
    return Tutorial(quickstart)


@pytest.mark.model
@pytest.mark.parametrize("page", sorted({block.place.split(":")[0] for block in blocks_named("tutorial")}))
def test_a_page_of_the_tutorial_runs_as_written_after_the_pages_before(tutorial: Tutorial, page: str) -> None:
    tutorial.run_through(page)


@pytest.mark.model
def test_the_question_of_the_readme_gets_the_answer_on_the_page(
    shell: Shell, model_file: catalog.ModelFile
) -> None:
    (shell.folder / ".venv").symlink_to(sys.prefix)
    for block in blocks_named("readme"):
        shell.run(block)


# ---------------------------------------------------------------- guides and reference, with the stub


@pytest.mark.model
def test_the_commands_for_packs_run_as_written(
    shell: Shell, config: Config, model_file: catalog.ModelFile
) -> None:
    """The model is for `render`, which prints tokens."""
    names = {"DIR": str(DOOR), "NAME": "team-governance", "FILE": str(DOOR.parent / "door-question.json")}
    with decided(config):
        for block in blocks_named("packs"):
            shell.run(block, names)


def test_the_guide_to_canaries_runs_as_written(shell: Shell, config: Config) -> None:
    """Before the promotion the candidate's callers ask as much as it needs."""
    (shell.folder / "docs").symlink_to(ROOT / "docs")
    with (
        serving(replace(config, pack=str(DOOR)), load_engine=load_stub_engine),
        Client(config.endpoint) as client,
    ):
        for block in blocks_named("canary"):
            if "canary promote" in block.code:
                asked_on_trial(client, 50)
            shell.run(block)
        assert client.control(Control(task="reload"))["packs"][0]["version"] == "1.1.0"


def asked_on_trial(client: Client, least: int) -> None:
    """Ask for many callers, until the candidate has decided so often."""
    on_trial = 0
    for number in itertools.count():
        behalf = {"name": f"token:caller-{number}", "roles": ["ask"]}
        reply = client.call("evaluate", {"request": QUESTION, "as": behalf})
        on_trial += "canary" in reply["context"]
        if on_trial >= least:
            break
    while (canary := client.status().canary) is None or canary.canary.decisions < least:
        pass


def test_the_recipes_for_rules_run_as_written(shell: Shell, config: Config) -> None:
    """No block needs a model: the daemon has a pack of rules alone."""
    (shell.folder / "docs").symlink_to(ROOT / "docs")
    for block in blocks_named("recipes"):
        decision = {"ID": newest_decision(config)} if "show ID" in block.code else {}
        shell.run(block, {"ENDPOINT": config.endpoint, **decision})


def test_the_example_of_sources_runs_as_written(shell: Shell, config: Config) -> None:
    (shell.folder / "docs").symlink_to(ROOT / "docs")
    for block in blocks_named("sources"):
        shell.run(block, {"ENDPOINT": config.endpoint})


def test_the_guide_to_the_proxy_of_mcp_servers_runs_as_written(shell: Shell, config: Config) -> None:
    for block in blocks_named("proxy"):
        shell.run(block, {"ENDPOINT": config.endpoint})


def test_the_guide_to_approvals_runs_as_written(shell: Shell, config: Config, tcp_endpoint: str) -> None:
    (shell.folder / "docs").symlink_to(ROOT / "docs")
    for block in blocks_named("approvals"):
        names = {"tcp://127.0.0.1:7766": tcp_endpoint}
        if "trace ID" in block.code:
            with Reader(config.journal_path) as reader:
                (allowed,) = reader.decisions(outcome="allow")
            names["ID"] = allowed["decision_id"]
        shell.run(block, names)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the command curl is not on this machine")
def test_the_guide_to_the_gateway_runs_as_written(shell: Shell, config: Config) -> None:
    serve, *blocks = blocks_named("gateway")
    shell.run(serve)
    with gateway(config.endpoint) as running:
        for block in blocks:
            shell.run(block, {"http://127.0.0.1:8181": running.url})


def test_the_commands_for_signatures_run_as_written(shell: Shell, tmp_path: Path) -> None:
    pack = shutil.copytree(DOOR, tmp_path / "door-access")
    for block in blocks_named("signatures"):
        shell.run(block, {"DIR": str(pack), "FILE": str(tmp_path / "release.key")})


def test_the_commands_for_keys_run_as_written(shell: Shell) -> None:
    for block in blocks_named("keys"):
        shell.run(block)


@pytest.mark.skipif(shutil.which("jq") is None, reason="the command jq is not on this machine")
def test_the_commands_for_the_graph_of_work_run_as_written(shell: Shell, config: Config) -> None:
    with decided(config):
        for block in blocks_named("work"):
            shell.run(block)


def test_the_guide_to_hooks_runs_as_written(tmp_path: Path, config: Config) -> None:
    variables = variables_of(config) | {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    with open_shell(tmp_path, variables) as shell:
        for block in blocks_named("hooks"):
            shell.run(block)


def test_the_commands_for_the_journal_run_as_written(shell: Shell, config: Config) -> None:
    with decided(config):
        pass
    head = verify(config.journal_path)
    for block in blocks_named("journal"):
        shell.run(block, {"SEQ:HASH": f"{head.events}:{head.head}"}, typed="y\n")


def test_the_guide_to_receipts_runs_as_written(shell: Shell, config: Config) -> None:
    with decided(config):
        pass
    names = {"receipt ID": f"receipt {newest_decision(config)}", "STATE": str(config.state_dir)}
    for block in blocks_named("receipts"):
        kept = list((config.state_dir / "checkpoints").glob("*.json"))
        shell.run(block, names | ({"CHECKPOINT": str(kept[-1])} if "CHECKPOINT" in block.code else {}))


@pytest.mark.model
def test_the_commands_that_check_a_daemon_run_as_written(
    shell: Shell, config: Config, model_file: catalog.ModelFile
) -> None:
    """The model is for `doctor`, which looks for its file."""
    with decided(config):
        for block in blocks_named("checks"):
            shell.run(block)


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the command sqlite3 is not on this machine")
def test_a_backup_can_be_restored_as_written(config: Config, tmp_path: Path) -> None:
    variables = {"STATE": str(config.state_dir), "BACKUP": str(tmp_path / "backup")}
    back_up, restore = blocks_named("backup")
    with open_shell(tmp_path, variables_of(config) | variables) as shell:
        with decided(config):
            decision_id = newest_decision(config)
            shell.run(back_up)
        shell.run(restore)
    assert newest_decision(config) == decision_id


def test_the_sample_for_any_language_gets_a_decision(config: Config) -> None:
    (sample,) = blocks_named("zeromq sample")
    names: dict[str, Any] = {}
    exec(sample.code, names)  # noqa: S102  it is ours
    with decided(config):
        reply = names["ask"](QUESTION, config.endpoint)
    assert reply["context"]["decision_id"] == newest_decision(config)
