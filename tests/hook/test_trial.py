"""The fault matrix.

Five agents by eight faults, each as a run of the installed command; and further faults.
"""

from __future__ import annotations

import pytest

from thor_policy.hook import trial
from thor_policy.hook.main import AGENTS


@pytest.mark.parametrize("agent", AGENTS)
def test_each_of_the_eight_faults_blocks(agent: str) -> None:
    tried = list(trial.try_all(agent, trial.MATRIX))
    assert len(tried) == 8
    assert [done for done in tried if not done.blocked] == []
    assert [done.fault for done in tried if not done.ran.stderr.strip()] == []


@pytest.mark.parametrize(("agent", "fault"), list(zip((*AGENTS, *AGENTS), trial.FURTHER, strict=False)))
def test_a_further_fault_blocks(agent: str, fault: str) -> None:
    assert [done for done in trial.try_all(agent, (fault,)) if not done.blocked] == []


@pytest.mark.soak
@pytest.mark.parametrize("agent", AGENTS)
def test_every_further_fault_blocks(agent: str) -> None:
    assert [done for done in trial.try_all(agent, trial.FURTHER) if not done.blocked] == []


@pytest.mark.parametrize(
    ("agent", "ran", "blocks"),
    [
        ("claude", trial.Ran("", "", 0), False),
        ("claude", trial.Ran("", "Traceback", 1), False),
        ("claude", trial.Ran("", "why", 2), True),
        ("codex", trial.Ran('{"hookSpecificOutput": {"permissionDecision": "ask"}}', "", 0), False),
        ("codex", trial.Ran('{"hookSpecificOutput": {"permissionDecision": "deny"}}', "", 0), True),
        ("gemini", trial.Ran("", "", 2), False),
        ("gemini", trial.Ran("", "why", 2), True),
        ("gemini", trial.Ran('{"decision": "deny"}', "", 0), True),
        ("cursor", trial.Ran('{"permission": "ask"}', "", 0), False),
        ("copilot", trial.Ran("null", "", 0), False),
        ("copilot", trial.Ran('{"permissionDecision": "deny"}', "", 0), True),
    ],
)
def test_the_judgement_of_an_output_is_that_of_the_contract(agent: str, ran: trial.Ran, blocks: bool) -> None:
    assert trial.blocks(agent, ran) is blocks
