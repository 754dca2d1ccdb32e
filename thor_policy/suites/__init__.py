"""Scenario suites: questions with expected answers, how they are run, and what a run proves.

Owns the format of suites and every judgement on an answer. Invariant: a suite is run through a plain callable
from request fields to a reply. So it runs the same against a live daemon and in process, and it sees only
what a client sees. Main thread.
"""
