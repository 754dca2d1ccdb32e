"""Packs with short prompts, so that the real model soon has them resident."""

from __future__ import annotations

from pathlib import Path

MANIFEST = """
name: small
version: "{version}"
description: Three outcomes and a rule for each way to answer.
outcomes: [{{label: allow}}, {{label: require_mfa}}, {{label: deny}}]
classifications: [routine, odd]
fields: [{{name: who, value: subject.id}}, {{name: does, value: action.name}}]
risk: '"low"'
limits: {{max_reasoning_tokens: 4}}
"""
RULES = """
- {id: banned, when: 'action.name == "banned"', outcome: deny, clause: R1, because: It is banned.}
"""
EXAMPLES = """
- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: look}, resource: {type: doc, id: d}},
   outcome: allow, classification: routine, risk: low, clauses: [R1], reasoning: Fine.}
- {id: X2, evaluation: {subject: {type: user, id: b}, action: {name: burn}, resource: {type: doc, id: d}},
   outcome: deny, classification: odd, risk: low, clauses: [R2], reasoning: Never.}
"""


def write(folder: Path, *, version: str = "1", system: str = "Decide.", rules: str = RULES) -> Path:
    """Write a pack called small to `folder`; another `system` makes it another pack."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "pack.yaml": MANIFEST.format(version=version),
        "rules.yaml": rules,
        "examples.yaml": EXAMPLES,
        "clauses.yaml": "R1: Looking is free.\nR2: Nothing may be destroyed.\n",
        "system.md": f"{system}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder
