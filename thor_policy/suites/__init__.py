"""Scenario suites: questions with expected answers, how they are run, and what a run proves.

Owns the format of suites and every judgement on an answer. Invariant: a suite takes a plain callable from
request fields to a reply, so it runs the same against a live daemon and in process, and it never sees more
than a client does. Main thread.
"""
