"""Scenario suites: questions with expected answers, how they are run, and what a run proves.

Owns the format of suites and every judgement on an answer. `scenarios` has the nouns, `files` reads them
from YAML, `running` asks and judges, `leaks` looks for scenarios that the
model is shown as examples, `coverage` counts what of a pack a run reached, `invariance` asks again in other
words. Invariant: a suite takes a plain callable from request fields to a
reply, so it runs the same against a live daemon and in process, and it never sees more than a client does.
Main thread.
"""

from thor_policy.suite.files import SCHEMA_FILE, available, load, schema
from thor_policy.suite.running import STRUCTURE_NEEDED, Ask, Result, Status, Summary, judge, run, summarise
from thor_policy.suite.scenarios import (
    DIFFICULTIES,
    Difficulty,
    Embedder,
    Expectation,
    Reasoning,
    Scenario,
    Suite,
)

__all__ = [
    "DIFFICULTIES",
    "SCHEMA_FILE",
    "STRUCTURE_NEEDED",
    "Ask",
    "Difficulty",
    "Embedder",
    "Expectation",
    "Reasoning",
    "Result",
    "Scenario",
    "Status",
    "Suite",
    "Summary",
    "available",
    "judge",
    "load",
    "run",
    "schema",
    "summarise",
]
